"""Every method on every base, scenario, size and seed: one small file a cell, from the caches of embeddings.

    python recipes/adaptation/run.py --data DATA --cache CACHE --out OUT [--jobs 2]

CACHE has the folders `minilm` and `gemma`, and `minilm-lora0` and `minilm-lora0.25` where MiniLM was fine-tuned. A cell
that is in OUT already is not made again. One thread a process.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402 - after the number of threads is set
import torch  # noqa: E402
from methods import PairsSeen, energies, every, other_embeddings, ours, problem_of  # noqa: E402
from study import ALTERNATES, EMBEDDING, SCENARIOS, Scenario, Study, base_of, case_of, load  # noqa: E402

from ebrm.optimize import best_of_n_gold  # noqa: E402

SEEDS = 5
#: Scenarios that a fine-tuned base is measured on, and sizes where the energies are (their first seeds).
FINE_TUNED = ("same domain", "chat to grounded", "chat to HH-harmless", "chat to XSTest", "seen", "seen, 25% wrong")
SLOW = {("same domain", 300), ("chat to HH-harmless", 150), ("seen", 0), ("seen, 25% wrong", 0)}
SLOW_SEEDS, EMBEDDING_SEEDS = 1, 3
#: Where embeddings are compared, by the head for what the scenario is.
EMBEDDINGS = {("same domain", 300), ("chat to grounded", 100), ("chat to HH-harmless", 150)}


@dataclass(frozen=True)
class Cell:
    """One problem: which embeddings, which base, which scenario, how many pairs, which seed."""

    backbone: str
    base: str
    scenario: str
    n: int
    seed: int

    @property
    def name(self) -> str:
        """The cell's file, without its ending."""
        scenario = self.scenario.replace(" ", "-").replace(",", "").replace("%", "")
        return f"{self.backbone}.{self.base}.{scenario}.{self.n}.{self.seed}"


def cells(cache: Path, seeds: int = SEEDS) -> list[Cell]:
    """All cells for which the cache has embeddings; small ones and first seeds first."""
    made = []
    for backbone in ("minilm", "gemma"):
        for scenario in SCENARIOS:
            bases = ["head"] if (cache / backbone).exists() else []
            tuned = f"{backbone}-lora{scenario.wrong:g}"
            if scenario.name in FINE_TUNED and (cache / tuned).exists():
                bases.append("fine-tuned")
            made += [
                Cell(backbone, base, scenario.name, n, seed)
                for base in bases
                for n in scenario.sizes
                for seed in range(seeds)
            ]
    return sorted(made, key=lambda cell: (cell.base, cell.backbone != "minilm", cell.seed, cell.n or 1500))


def scenario_of(cell: Cell) -> Scenario:
    """The cell's scenario."""
    return next(one for one in SCENARIOS if one.name == cell.scenario)


@lru_cache(maxsize=2)
def study_of(cache: Path, data: Path, folder: str, backbone: str) -> tuple[Study, np.ndarray]:
    """The study of a cache, and its embeddings."""
    names = (*EMBEDDING[backbone], *(one for names in ALTERNATES[backbone].values() for one in names))
    study = load(cache / folder, backbone, data, tuple(dict.fromkeys(names)))
    return study, np.ascontiguousarray(study.embedding(EMBEDDING[backbone]))


def measure(cell: Cell, cache: Path, data: Path, out: Path, again: bool = False) -> float:
    """Make a cell's file; gives the seconds it took. `again`: only EBRM is fitted, what else the file has is kept."""
    started = time.monotonic()
    torch.set_num_threads(1)
    scenario, fine_tuned = scenario_of(cell), cell.base != "head"
    folder = f"{cell.backbone}-lora{scenario.wrong:g}" if fine_tuned else cell.backbone
    study, embedding = study_of(cache, data, folder, cell.backbone)
    case = case_of(study, scenario, cell.n, cell.seed, fine_tuned)
    base = base_of(study, scenario, cell.seed, fine_tuned)
    problem = problem_of(study, case, base, embedding, cell.seed)
    place = (cell.scenario, cell.n)
    said: tuple[PairsSeen, ...] = ("unknown", "yes") if scenario.seen else ("unknown", "no")
    found = ours(problem, said) if again else every(problem, said)
    if not again and not fine_tuned and place in SLOW and cell.seed < SLOW_SEEDS:
        found |= energies(problem)
    if not fine_tuned and place in EMBEDDINGS and cell.seed < EMBEDDING_SEEDS:
        others = {name: study.embedding(names) for name, names in ALTERNATES[cell.backbone].items()}
        found |= other_embeddings(problem, "no", others)
    sets = {"target": case.test, **case.elsewhere}
    where = np.concatenate(list(sets.values()))
    columns: dict[str, np.ndarray] = {
        "prompt": study.prompt[where].astype(np.int32),
        "set": np.repeat(np.arange(len(sets), dtype=np.int8), [len(pairs) for pairs in sets.values()]),
        "category": study.category[where],
    }
    for name, refined in found.items():
        difference = refined.reward[study.chosen[where]] - refined.reward[study.rejected[where]]
        columns[f"score {name}"] = (1 + np.sign(difference)).astype(np.int8)  # halves: 2 right, 1 a tie, 0 wrong
        columns[f"probability {name}"] = refined.probabilities(problem.asked).astype(np.float32)
    # Gold of the best of 1, 2, … responses of each pool: exact, so there is no noise but that of the prompts.
    pools = {
        name: [best_of_n_gold(refined.reward[rows][None], gold[None])[0].tolist() for rows, gold in study.pools]
        for name, refined in found.items()
    }
    if again:
        with np.load(out / f"{cell.name}.npz") as old:
            columns = {name: old[name] for name in old.files if name != "meta"} | columns
            pools = json.loads(str(old["meta"]))["pools"] | pools
    meta = asdict(cell) | {
        "pairs": len(case.user), "vendor_pairs": len(case.vendor), "prompts_read": study.read,
        "prompts_asked": study.asked, "sets": list(sets), "pools": pools,
        "vendor_sets": [name for name in sets if name in scenario.vendor or scenario.by_source and name == "chat"],
        "base_on_user": float((problem.base_difference > 0).mean()), "seconds": time.monotonic() - started,
    }  # fmt: skip
    partial = out / f"{cell.name}.partial.npz"
    np.savez_compressed(partial, meta=np.array(json.dumps(meta)), **columns)
    partial.rename(out / f"{cell.name}.npz")
    return time.monotonic() - started


def main() -> None:
    """Make what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "cache", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--only", default="", help="cells whose name has this in it")
    parser.add_argument("--again", action="store_true", help="only EBRM, on the cells that are there")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    every_cell = [cell for cell in cells(args.cache, args.seeds) if args.only in cell.name]
    todo = [cell for cell in every_cell if args.again == (args.out / f"{cell.name}.npz").exists()]
    print(f"{len(todo)} of {len(every_cell)} cells to make", flush=True)
    started = time.monotonic()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.jobs, mp_context=context) as pool:
        running = {pool.submit(measure, cell, args.cache, args.data, args.out, args.again): cell for cell in todo}
        for done, future in enumerate(as_completed(running), 1):
            cell, took = running[future], future.result()
            left = (time.monotonic() - started) / done * (len(todo) - done) / 60
            print(f"{done} of {len(todo)}: {cell.name}, {took:.1f} s; {left:.0f} min left", flush=True)


if __name__ == "__main__":
    main()
