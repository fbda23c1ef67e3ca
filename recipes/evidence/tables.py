"""The tables of the study, from the rewards that `run.py` kept.

    python recipes/evidence/tables.py --data DATA --cache CACHE --out OUT [--models head=frozen finetuned=FOLDER …]

A model is what the tables call a kind of base reward model, and what its texts were read with, as `run.py` was told:
"frozen", or a fine-tuned model's folder. Several folders may have one name, such as one for each noise. Takes all of
OUT/rewards that is there of these models, with whatever seeds. Writes OUT/items.parquet, and beside this file
results/summary.csv, curves.csv, reliability.csv and bars.json. A few minutes.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import curves
import numpy as np
import uncertainty
from bars import bars
from items import item_writer, write_items
from reward_files import HeldOut, Pairs, Refinements, Texts, method_groups, open_refinements, reward_paths
from scores import measure, score_rows
from summary import COLUMNS, Row, write_rows, write_table

from ebrm.errors import DataError
from ebrm.utils.files import write_json

if TYPE_CHECKING:
    from study import Study

RESULTS = Path(__file__).parent / "results"


def texts_of(study: Study, pools: tuple[str, ...]) -> Texts:
    """The texts of a study, in its test sets and pools."""
    tests = {name: test for name, test in study.tests.items() if name not in pools}
    rest = {name: test for name, test in study.tests.items() if name in pools}
    return Texts(tests, rest, study.embedding.shape[1], len(study.embedding))


def held_out_pairs(study: Study, noise: float, seed: int) -> HeldOut:
    """The pairs that no reward model was trained on whose labels were turned round with this noise and seed."""
    _, held, trained = study.split(noise, seed)
    rest = np.setdiff1d(np.arange(len(study.pair)), trained)
    published = np.stack([study.chosen.numpy(), study.rejected.numpy()], axis=1)[rest]
    given = np.stack([held.chosen.numpy(), held.rejected.numpy()], axis=1)
    return HeldOut(Pairs(published, study.prompt[rest]), given)


def open_model(base_rm: str, model: str, data: Path, cache: Path, rewards: Path) -> list[Refinements]:
    """Every base reward model whose texts were read with `model`, with all its refinements."""
    from features import POOLS  # loads transformers, which the tables themselves do without
    from study import open_study

    paths = reward_paths(rewards, Path(model).name)
    if not paths:
        raise DataError(f"There are no files {Path(model).name}-NOISE-SEED.safetensors in {rewards}; see run.py.")
    study = open_study(data, cache, model)
    texts = texts_of(study, POOLS)
    found = []
    for (noise, seed), path in paths.items():
        # The labels of a fine-tuned model are the same for all seeds of its refinement.
        held_out = held_out_pairs(study, noise, seed if model == "frozen" else 0)
        found.append(open_refinements(path, (base_rm, noise, seed), texts, held_out))
    return found


def write_tables(refinements: Iterable[Refinements], out: Path, results: Path) -> None:
    """All tables. Base reward models of one kind and noise are averaged over.

    Raises:
        DataError: two of the same kind, noise and seed.
    """
    rows: list[Row] = []
    lines: list[list[object]] = []
    bins: list[list[object]] = []
    sizes = {}
    ordered = sorted(refinements, key=lambda cell: (cell.base_rm, cell.noise, cell.seed))
    for first, second in itertools.pairwise(ordered):
        if (first.base_rm, first.noise, first.seed) == (second.base_rm, second.noise, second.seed):
            raise DataError(f"{first.base_rm} with noise {first.noise} and seed {first.seed} is there twice.")
    with item_writer(out / "items.parquet") as items:
        for (base_rm, noise), group in itertools.groupby(ordered, lambda cell: (cell.base_rm, cell.noise)):
            cells = list(group)
            print(f"{base_rm}, noise {noise:.2f}: seeds {', '.join(str(cell.seed) for cell in cells)}", flush=True)
            sizes[base_rm] = cells[0].texts.embedding_size
            done: set[str] = set()
            for some, methods in method_groups(cells):
                measured, values = measure(some, methods)
                new = [name for name in methods if name not in done]
                columns = [methods.index(name) * len(some) + seed for name in new for seed in range(len(some))]
                for name, found in values.items():
                    write_items(items, some, name, new, replace(found, value=found.value[:, columns]))
                rows += score_rows(measured, new)
                done |= set(new)
            if noise in curves.NOISES:
                more, more_lines = curves.selection_tables(cells)
                rows, lines = rows + more, lines + more_lines
            if noise in uncertainty.NOISES:
                more, more_lines = uncertainty.uncertainty_tables(cells)
                rows, bins = rows + more, bins + more_lines
    write_rows(rows, results / "summary.csv")
    write_table(lines, curves.COLUMNS, results / "curves.csv")
    write_table(bins, uncertainty.CURVE_COLUMNS, results / "reliability.csv")
    write_json(results / "bars.json", bars(rows, sizes))
    print(f"{len(rows):,} rows of {len(COLUMNS)} columns in {results / 'summary.csv'}")


def main() -> None:
    """Open what is there, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=["head=frozen"])
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    found: list[Refinements] = []
    for named in args.models:
        base_rm, _, model = named.partition("=")
        found += open_model(base_rm, model or "frozen", args.data, args.cache, args.out / "rewards")
    write_tables(found, args.out, args.results)


if __name__ == "__main__":
    main()
