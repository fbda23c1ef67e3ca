"""score_file: refined rewards for every row of a file or of a features folder, streaming and resumable."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ebrm._version import __version__
from ebrm.backbone import Reading
from ebrm.data import EXAMPLES, BadRow, RowProblem, count_kinds, prompt_id
from ebrm.errors import DataError, setting
from ebrm.features import MANIFEST, open_features
from ebrm.model import EnergyRewardModel
from ebrm.scoring.columns import Shape, Side, find_shape
from ebrm.scoring.config import ScoreConfig
from ebrm.scoring.files import Chunk, Journal, Row, file_kind, join_parts, read_chunks, write_part
from ebrm.utils.files import sha256_file, sha256_json
from ebrm.utils.progress_bar import progress

logger = logging.getLogger(__name__)

#: Rows a chunk: the unit of work that a killed run may have to redo. Fixed, so that a resumed run forms equal batches.
CHUNK_ROWS = 512

#: Columns added for each text, in this order.
MEASURES = ("reward", "base_reward", "std", "interval_low", "interval_high", "log_density", "delta")

_ROWS = {"response": "a prompt and a response", "messages": "a conversation", "pair": "a preference pair"}


@dataclass(frozen=True)
class _Source:
    """Rows to score. `score` gives the added columns of a chunk, one row a row, and the rows without a reward."""

    name: str
    contents: str
    fingerprint: str
    count: int
    columns: tuple[str, ...]
    prefixes: tuple[str, ...]  # of the added columns, one a side
    chunks: Callable[[], Iterator[Chunk]]
    read: Callable[[EnergyRewardModel, Chunk], tuple[Reading, list[BadRow | None]]]
    fitted_on: Callable[[EnergyRewardModel, Chunk], Sequence[bool | None]]  # whether each row's prompt was fitted on
    bad: tuple[BadRow, ...] = ()  # the first rows that are seen to be bad without tokenizing
    kinds: Counter[str] = field(default_factory=Counter)


def score_file(
    model: EnergyRewardModel | str | Path, source: str | Path, out: str | Path,
    config: ScoreConfig = ScoreConfig(), *,  # noqa: B008 - frozen
    backbone: Mapping[str, Any] | None = None, on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write every row of a file with its refined reward, base reward and uncertainty, in the base RM's units.

    Rows keep their columns and order; added are `reward`, `base_reward`, `std`, `interval_low`, `interval_high`,
    `log_density`, `delta`, `fitted_on` and `error`; of pairs for each side (`chosen_reward`, …), `p_chosen`, P(chosen
    better), calibrated where the model has a calibration, and `confidence`, max(p_chosen, 1 - p_chosen). `fitted_on`
    says whether the model was fitted on the row's prompt, None where it does not know. A run that was stopped is
    continued and ends with the same bytes; a complete one gives its summary at once.

    Args:
        model: the model, or its folder or Hub name.
        source: rows of prompt and response, messages or pairs (.jsonl, .json, .csv, .tsv, .parquet), or a features
            folder, whose pairs need no reward model.
        out: file to write, .jsonl, .csv or .parquet.
        config: columns, and what becomes of rows that cannot be scored.
        backbone: fields of `BackboneConfig` by which the model's RM is loaded; others as saved.
        on_progress: called with (rows done, rows) as the work goes on.

    Returns:
        `rows`, `scored`, `errors`, `mean_reward`, `mean_base_reward`, `mean_std`, `mean_abs_delta`; of pairs also
        `accuracy`, `base_accuracy` (share with chosen above rejected; None for none), `mean_p_chosen` and
        `mean_confidence`, of the pairs with prompts that the model was not fitted on. `fitted_on`: number of rows with
        prompts that it was fitted on, None where it does not know; of such pairs `training_accuracy` and
        `training_base_accuracy`.

    Raises:
        DataError: rows that cannot be scored (`bad_rows="stop"`), a bad source, names that collide, or `out` taken.
        ConfigError, FeaturesError, ModelError, BackboneError: `out`'s ending, other features, model or RM not loadable.
    """
    source, out = Path(source), Path(out)
    kind = file_kind(out)
    if not isinstance(model, EnergyRewardModel):
        model = EnergyRewardModel.from_pretrained(model)
    # The rows first: a mistake in them should not wait for a reward model to load.
    opened = _open_pairs(source, model) if (source / MANIFEST).is_file() else _open_texts(source, config)
    logger.info("%s: %s rows, %s.", opened.name, f"{opened.count:,}", opened.contents)
    added = _added_names(opened.prefixes, config.prefix)
    clash = [name for name in added if name in opened.columns]
    if clash:
        raise DataError(
            f"{opened.name} has columns named {', '.join(clash)}, which would be added. Name the added ones otherwise: "
            f"{setting('prefix', 'refined_')}."
        )
    if opened.kinds and config.bad_rows == "stop":
        raise DataError(_explain(opened, opened.kinds, opened.bad, 0))
    # What decides the bytes of the output. Not `bad_rows`: rows scored under stop are the same under mark.
    job = {
        "input": opened.fingerprint, "model": model.fingerprint(), "settings": sha256_json(dict(backbone or {})),
        "prompts": None if model.prompts is None else sha256_json(model.prompts.fingerprints.tolist()),
        "columns": [list(opened.columns), dict(sorted(config.columns.items())), config.prefix],
        "chunk_rows": CHUNK_ROWS, "version": __version__,
    }  # fmt: skip
    shown = {"input": str(source), "columns": dict(config.columns), "prefix": config.prefix}
    shown |= vars(model.record.head.inference) | dict(backbone or {})
    journal = Journal(out, job, shown)
    if journal.open(config.overwrite, config.restart):
        logger.info(
            "%s is complete already: the same rows by the same model. %s scores them again.",
            out, setting("overwrite", True),
        )  # fmt: skip
        return dict(journal.record["summary"])
    parts = [journal.part(number, kind) for number in range(math.ceil(opened.count / CHUNK_ROWS))]
    before = min(sum(part.exists() for part in parts) * CHUNK_ROWS, opened.count)
    if before:
        logger.info("Going on: %s of %s rows were scored before.", f"{before:,}", f"{opened.count:,}")
    done = 0
    if on_progress is not None:
        on_progress(done, opened.count)
    loaded = False
    with journal.keeping(), progress("score", opened.count, "rows") as bar:
        for number, chunk in enumerate(opened.chunks()):
            if not parts[number].exists():
                if not loaded and backbone and model.record.text_rule is not None:
                    model = model.with_backbone(**backbone)
                loaded = True
                rows, bad = _score(model, opened, chunk, config.prefix)
                if bad and config.bad_rows == "stop":
                    kinds = Counter(row.kind for row in bad)
                    raise DataError(_explain(opened, kinds, bad[:EXAMPLES], chunk.first))
                write_part(parts[number], kind, chunk, rows, opened.columns)
                del rows
            done += len(chunk.rows)
            bar.advance(len(chunk.rows))
            if on_progress is not None:
                on_progress(done, opened.count)
            del chunk  # before the next is read
    join_parts(parts, out, kind, [*opened.columns, *added])
    summary = _summarize(out, opened, config.prefix)
    journal.finish(summary)
    return summary


def _open_texts(path: Path, config: ScoreConfig) -> _Source:
    """Read a file once: columns, shape, row count, and every row that cannot be scored for what it holds."""
    seen: dict[str, None] = {}
    count, kinds = 0, Counter[str]()
    shape: Shape | None = None
    bad: list[BadRow] = []
    for chunk in read_chunks(path, CHUNK_ROWS):
        for row in chunk.rows:
            seen.update(dict.fromkeys(row))
        shape = shape or find_shape(list(seen), config.columns, str(path))
        count += len(chunk.rows)
        for row, where in zip(chunk.rows, chunk.where, strict=True):
            try:
                shape.sides(row, where)
            except RowProblem as problem:
                kinds[problem.kind] += 1
                if len(bad) < EXAMPLES:
                    bad.append(problem.at(where))
        del chunk  # before the next is read
    if shape is None:
        raise DataError(f"{path} holds no rows. Check that it is the file meant and is complete.")
    return _Source(
        str(path), f"{_ROWS[shape.kind]} a row", sha256_file(path), count, tuple(map(str, seen)), shape.prefixes,
        lambda: read_chunks(path, CHUNK_ROWS), partial(_read_texts, shape), partial(_texts_fitted_on, shape),
        tuple(bad), kinds,
    )  # fmt: skip


def _open_pairs(path: Path, model: EnergyRewardModel) -> _Source:
    """The pairs of a features folder: one row a pair, its texts known by their item numbers."""
    features = open_features(path)
    features.check(model.record.backbone, model.record.text_rule)
    pairs = features.pairs
    if not len(pairs):
        raise DataError(f"{path} holds no pairs to score.")
    columns = {
        "where": pairs.where, "prompt_id": pairs.prompt_id, "source": pairs.source, "category": pairs.category,
        "split": pairs.split, "chosen_item": pairs.chosen.numpy(), "rejected_item": pairs.rejected.numpy(),
    }  # fmt: skip

    fitted = model.fitted_on(pairs.prompt_id)  # of all at once: ids are of one kind

    def chunks() -> Iterator[Chunk]:
        for first in range(0, len(pairs), CHUNK_ROWS):
            block = range(first, min(first + CHUNK_ROWS, len(pairs)))
            values = (column[block.start : block.stop].tolist() for column in columns.values())
            rows = [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)]
            yield Chunk(first, rows, [f"pair {i}" for i in block])

    def read(_: EnergyRewardModel, chunk: Chunk) -> tuple[Reading, list[BadRow | None]]:
        index = torch.tensor([[row["chosen_item"], row["rejected_item"]] for row in chunk.rows]).reshape(-1)
        return Reading(features.embedding(index), features.reward[index]), [None] * len(chunk.rows)

    return _Source(
        str(path), "the pairs of a features folder", sha256_json(features.manifest["files"]), len(pairs),
        tuple(columns), ("chosen_", "rejected_"), chunks, read,
        lambda _, chunk: (
            [None] * len(chunk.rows) if fitted is None else fitted[chunk.first : chunk.first + len(chunk.rows)].tolist()
        ),
    )  # fmt: skip


def _texts_fitted_on(shape: Shape, model: EnergyRewardModel, chunk: Chunk) -> list[bool | None]:
    """Whether the model was fitted on the prompt of each row; None for rows that cannot be read too."""
    ids: dict[int, str] = {}
    for place, (row, where) in enumerate(zip(chunk.rows, chunk.where, strict=True)):
        try:
            ids[place] = prompt_id(shape.sides(row, where)[0].prompt)
        except RowProblem:
            continue
    found = model.fitted_on(list(ids.values()))
    known = {} if found is None else dict(zip(ids, found.tolist(), strict=True))
    return [known.get(place) for place in range(len(chunk.rows))]


def _read_texts(shape: Shape, model: EnergyRewardModel, chunk: Chunk) -> tuple[Reading, list[BadRow | None]]:
    """Embeddings and base rewards of a chunk's texts, the sides of each row beside each other; NaN for bad rows."""
    problems: list[BadRow | None] = []
    texts: list[Side] = []
    places: list[int] = []  # of the rows that hold texts
    for row, where in zip(chunk.rows, chunk.where, strict=True):
        try:
            sides = shape.sides(row, where)
        except RowProblem as problem:
            problems.append(problem.at(where))
            continue
        places.append(len(problems))
        texts += sides
        problems.append(None)
    reading, errors = model.backbone.read_texts(
        [side.prompt for side in texts], [side.response for side in texts], on_error="nan"
    )
    count = len(shape.prefixes)
    for k, error in enumerate(errors):
        at = places[k // count]
        if error is not None and problems[at] is None:
            side = shape.prefixes[k % count].removesuffix("_") or "text"
            problems[at] = BadRow(chunk.where[at], side, error, "cannot be read by the reward model")
    n = len(chunk.rows)
    embedding = torch.full((n, count, reading.embedding.shape[1]), torch.nan)
    reward = torch.full((n, count), torch.nan)
    embedding[places] = reading.embedding.reshape(len(places), count, -1)
    reward[places] = reading.reward.reshape(len(places), count)
    return Reading(embedding.flatten(0, 1), reward.flatten()), problems


def _score(model: EnergyRewardModel, source: _Source, chunk: Chunk, prefix: str) -> tuple[list[Row], list[BadRow]]:
    """The added columns of a chunk, one row a row, `error` last; and its rows without a reward."""
    reading, problems = source.read(model, chunk)
    sides = len(source.prefixes)
    refined = model.refine(reading.embedding, reading.reward, on_error="nan")
    for k, error in enumerate(refined.errors):
        row = k // sides
        if error is not None and problems[row] is None:
            side = source.prefixes[k % sides].removesuffix("_") or "reward"
            problems[row] = BadRow(chunk.where[row], side, error, "not finite")
    good = torch.tensor([problem is None for problem in problems])
    wins: Iterator[float] = iter(())
    if sides == 2:
        embedding, reward = reading.embedding.unflatten(0, (-1, 2))[good], reading.reward.reshape(-1, 2)[good]
        wins = iter(model.prefer_rows(tuple(embedding.unbind(1)), tuple(reward.unbind(1))).tolist())  # type: ignore[arg-type]
    measured, fitted = refined.to_rows(), source.fitted_on(model, chunk)
    empty: Row = dict.fromkeys(_added_names(source.prefixes, prefix))
    added = []
    for row, problem in enumerate(problems):
        values = dict(empty)
        if problem is None:
            for k, side in enumerate(source.prefixes):
                values |= {f"{prefix}{side}{name}": _short(measured[row * sides + k][name]) for name in MEASURES}
            if sides == 2:
                p = next(wins)
                values |= {f"{prefix}p_chosen": _short(p), f"{prefix}confidence": _short(max(p, 1 - p))}
        values[f"{prefix}fitted_on"] = fitted[row]
        values[f"{prefix}error"] = None if problem is None else _reason(problem)
        added.append(values)
    return added, [problem for problem in problems if problem is not None]


def _reason(problem: BadRow) -> str:
    """The column `error`: the sentence of what could not be read, else field and fault."""
    if problem.kind in ("cannot be read by the reward model", "not finite"):
        return problem.value if problem.field in ("text", "reward") else f"{problem.field}: {problem.value}"
    return f"{problem.field}: {problem.kind}"


def _added_names(prefixes: Sequence[str], prefix: str) -> tuple[str, ...]:
    names = [f"{prefix}{side}{name}" for side in prefixes for name in MEASURES]
    pair = [f"{prefix}p_chosen", f"{prefix}confidence"] if len(prefixes) == 2 else []
    return (*names, *pair, f"{prefix}fitted_on", f"{prefix}error")


def _summarize(out: Path, source: _Source, prefix: str) -> dict[str, Any]:
    """Counts and means, read back from the finished output."""
    pair = len(source.prefixes) == 2
    sums: Counter[str] = Counter()
    for chunk in read_chunks(out, CHUNK_ROWS):
        for row in chunk.rows:
            sums["rows"] += 1
            # CSV has text for all: "True", "False" or nothing.
            known = str(row[f"{prefix}fitted_on"]) in ("True", "False")
            fitted = known and str(row[f"{prefix}fitted_on"]) == "True"
            sums["known"] += known
            sums["fitted_on"] += fitted
            if row[f"{prefix}error"]:
                sums["errors"] += 1
                continue
            for side in ("chosen_", "rejected_") if pair else ("",):
                for name in ("reward", "base_reward", "std", "delta"):
                    value = float(row[f"{prefix}{side}{name}"])
                    sums[name] += abs(value) if name == "delta" else value  # type: ignore[assignment]
                sums["texts"] += 1
            if pair:
                for name, count in (("base_reward", "base_right"), ("reward", "right")):
                    right = float(row[f"{prefix}chosen_{name}"]) > float(row[f"{prefix}rejected_{name}"])
                    sums[f"training_{count}" if fitted else count] += right
                sums["training_pairs" if fitted else "pairs"] += 1
                for name in () if fitted else ("p_chosen", "confidence"):
                    sums[name] += float(row[f"{prefix}{name}"])  # type: ignore[assignment]
        del chunk  # before the next is read
    if sums["rows"] != source.count:
        raise AssertionError(f"{out} has {sums['rows']} rows for {source.count} rows in")
    texts = max(sums["texts"], 1)
    summary: dict[str, Any] = {"rows": sums["rows"], "scored": sums["rows"] - sums["errors"], "errors": sums["errors"]}
    summary |= {f"mean_{name}": sums[name] / texts for name in ("reward", "base_reward", "std")}
    summary["mean_abs_delta"] = sums["delta"] / texts
    summary["fitted_on"] = sums["fitted_on"] if sums["known"] else None
    if pair:
        shares = {"base_accuracy": "base_right", "accuracy": "right", "mean_p_chosen": "p_chosen"}
        shares["mean_confidence"] = "confidence"
        pairs, training = sums["pairs"], sums["training_pairs"]
        summary |= {name: sums[key] / pairs if pairs else None for name, key in shares.items()}
        if training:
            found = {f"training_{name}": sums[f"training_{shares[name]}"] for name in ("base_accuracy", "accuracy")}
            summary |= {name: count / training for name, count in found.items()}
    return summary


def _explain(source: _Source, kinds: Counter[str], bad: Iterable[BadRow], scored: int) -> str:
    listed = "".join(f"\n  {row}" for row in bad)
    kept = f" The {scored:,} rows before them are scored, and kept for that." if scored else ""
    return (
        f"{source.name}: {sum(kinds.values()):,} of {source.count:,} rows cannot be scored "
        f"({count_kinds(dict(kinds))}). The first (row, field: what is wrong, value):{listed}\nMend them, or give "
        f"{setting('bad_rows', 'mark')} to write them out with empty rewards and the reason.{kept}"
    )


def _short(value: float) -> float:
    """A float32 as the shortest decimal that reads back as it."""
    return float(str(np.float32(value)))
