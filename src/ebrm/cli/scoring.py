"""Scoring a file of rows, or a features folder, chunk by chunk: what `ebrm score` does."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ebrm.cli.console import Console
from ebrm.cli.resume import Journal
from ebrm.cli.rows import Chunk, Row, join_parts, kind_of, read_chunks, write_part
from ebrm.cli.texts import Shape, find_shape
from ebrm.data import EXAMPLES, BadRow, RowProblem, count_kinds
from ebrm.errors import DataError, TextError
from ebrm.utils.files import sha256_file
from ebrm.utils.progress_bar import progress

if TYPE_CHECKING:
    from ebrm.features import Features
    from ebrm.model import EnergyRewardModel

#: Rows a chunk: the unit of work that a killed run may have to redo. Fixed, so that a resumed run forms equal batches.
CHUNK_ROWS = 512

#: Columns added for each text, in this order.
MEASURES = ("reward", "base_reward", "std", "interval_low", "interval_high", "log_density", "delta")

BadRows = Literal["stop", "mark"]


@dataclass(frozen=True)
class ScoreConfig:
    """What is scored and what becomes of it."""

    out: str = field(
        metadata={"help": "File to write: .jsonl, .parquet or .csv. Rows come out in the order they came in."}
    )
    columns: dict[str, str] = field(
        default_factory=dict,
        metadata={
            "help": "Where a column has another name in the data: our name = its name (response=answer). Our names: "
            "prompt, response, messages, chosen, rejected, a, b, label."
        },
    )
    bad_rows: BadRows = field(
        default="stop",
        metadata={
            "help": "Rows that cannot be scored (empty, not text, too long): `stop` and list them, or `mark` them with "
            "empty rewards and the reason in the column `error`."
        },
    )
    prefix: str = field(
        default="",
        metadata={"help": "Put before the names of the added columns, where the data has such names already."},
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace an output that is there already."})


@dataclass(frozen=True)
class Scored:
    """One chunk's added columns (one row a row, `error` last), and the rows that could not be scored."""

    added: list[Row]
    bad: list[BadRow]


@dataclass(frozen=True)
class Input:
    """Rows to score: how many, what they are, and how a chunk of them is scored."""

    name: str
    said: str
    fingerprint: str
    count: int
    columns: tuple[str, ...]
    added: tuple[str, ...]
    chunks: Callable[[], Iterator[Chunk]]
    score: Callable[[EnergyRewardModel, Chunk], Scored]
    bad: tuple[BadRow, ...] = ()  # the first rows that are seen to be bad without tokenizing
    kinds: Counter[str] = field(default_factory=Counter)


def open_texts(path: Path, settings: ScoreConfig) -> Input:
    """Read a file once: columns, shape, row count, and every row that cannot be scored for what it holds.

    Raises:
        DataError: a missing, empty or damaged file, or nothing in it to score.
    """
    seen: dict[str, None] = {}
    count, kinds = 0, Counter[str]()
    shape: Shape | None = None
    bad: list[BadRow] = []
    for chunk in read_chunks(path, CHUNK_ROWS):
        for row in chunk.rows:
            seen.update(dict.fromkeys(row))
        shape = shape or find_shape(list(seen), settings.columns, str(path))
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
    found = shape
    return Input(
        name=str(path),
        said=found.said,
        fingerprint=sha256_file(path),
        count=count,
        columns=tuple(map(str, seen)),
        added=_added_names(found.prefixes, settings.prefix),
        chunks=lambda: read_chunks(path, CHUNK_ROWS),
        score=lambda model, chunk: score_texts(model, found, chunk, settings.prefix),
        bad=tuple(bad),
        kinds=kinds,
    )


def open_feature_pairs(path: Path, settings: ScoreConfig, model: EnergyRewardModel) -> Input:
    """The pairs of a features folder: one row a pair, its texts known by their item numbers.

    Raises:
        FeaturesError: damaged features, or those of another reward model or text rule.
    """
    from ebrm.features import open_features
    from ebrm.utils.files import sha256_json

    features = open_features(path)
    features.check(model.record.backbone, model.record.text_rule)
    pairs = features.pairs
    if not len(pairs):
        raise DataError(f"{path} holds no pairs to score.")
    columns = {
        "where": pairs.where, "prompt_id": pairs.prompt_id, "source": pairs.source, "category": pairs.category,
        "split": pairs.split, "chosen_item": pairs.chosen.numpy(), "rejected_item": pairs.rejected.numpy(),
    }  # fmt: skip

    def chunks() -> Iterator[Chunk]:
        for first in range(0, len(pairs), CHUNK_ROWS):
            block = range(first, min(first + CHUNK_ROWS, len(pairs)))
            rows = [{name: _plain(values[i]) for name, values in columns.items()} for i in block]
            yield Chunk(first, rows, [f"pair {i}" for i in block])

    return Input(
        name=str(path),
        said="the pairs of a features folder",
        fingerprint=sha256_json(features.manifest["files"]),
        count=len(pairs),
        columns=tuple(columns),
        added=_added_names(("chosen_", "rejected_"), settings.prefix),
        chunks=chunks,
        score=lambda model, chunk: score_items(model, features, chunk, settings.prefix),
    )


def run(
    source: Input,
    settings: ScoreConfig,
    job: dict[str, Any],
    console: Console,
    load: Callable[[], EnergyRewardModel],
) -> dict[str, Any]:
    """Score every row and write the output; returns the counts and means. `load` is called if there is work to do.

    Raises:
        DataError: an output in the way, column names that collide, or bad rows with `bad_rows="stop"`.
    """
    out = Path(settings.out)
    kind = kind_of(out)
    clash = [name for name in source.added if name in source.columns]
    if clash:
        raise DataError(
            f"{source.name} has columns named {', '.join(clash)}, which would be added. Give --prefix (for instance "
            "--prefix refined_) to name the added ones otherwise."
        )
    if source.kinds and settings.bad_rows == "stop":
        raise DataError(_explain(source.name, source.count, source.kinds, source.bad, 0))
    journal = Journal(out, job)
    if journal.open(settings.overwrite):
        console.note(f"{out} is complete already: the same rows by the same model. --overwrite scores them again.")
        return dict(journal.record["summary"])
    number_of_chunks = math.ceil(source.count / CHUNK_ROWS)
    parts = [journal.part(number, kind) for number in range(number_of_chunks)]
    before = sum(part.exists() for part in parts)
    if before:
        console.note(
            f"Going on: {min(before * CHUNK_ROWS, source.count):,} of {source.count:,} rows were scored before."
        )
    console.kept = "The rows scored so far are kept; run the same command again to go on."
    model: EnergyRewardModel | None = None
    with progress("score", source.count, "rows") as bar:
        for number, chunk in enumerate(source.chunks()):
            if not parts[number].exists():
                model = model or load()
                scored = source.score(model, chunk)
                if scored.bad and settings.bad_rows == "stop":
                    kinds = Counter(row.kind for row in scored.bad)
                    raise DataError(_explain(source.name, source.count, kinds, scored.bad[:EXAMPLES], chunk.first))
                write_part(parts[number], kind, chunk, scored.added, source.columns)
                del scored
            bar.advance(len(chunk.rows))
            del chunk  # before the next is read
    join_parts(parts, out, kind, [*source.columns, *source.added])
    summary = _summarize(out, source, settings.prefix)
    journal.finish(summary)
    return summary


def score_texts(model: EnergyRewardModel, shape: Shape, chunk: Chunk, prefix: str) -> Scored:
    """Score a chunk of texts by the frozen RM and the energy model."""
    backbone = model.backbone
    ids: list[list[int]] = []
    errors: list[str | None] = []
    bad: list[BadRow] = []
    for row, where in zip(chunk.rows, chunk.where, strict=True):
        try:
            sides = shape.sides(row, where)
            tokens = [backbone.tokenize(side.prompt, side.response, where) for side in sides]
        except RowProblem as problem:
            bad.append(problem.at(where))
            errors.append(f"{problem.field}: {problem.kind}")
            continue
        except TextError as error:
            bad.append(BadRow(where, "text", str(error).removeprefix(f"{where}: "), "refused by the text rule"))
            errors.append(str(error))
            continue
        if any(token is None for token in tokens):
            limit = backbone.text_rule.max_length
            bad.append(BadRow(where, "text", f"more than {limit} tokens", "too long"))
            errors.append(f"longer than the {limit} tokens the reward model reads")
            continue
        ids += [token.ids for token in tokens if token is not None]
        errors.append(None)
    reading = backbone.read(ids)
    return _refined(model, reading.embedding, reading.reward, shape.prefixes, chunk, errors, bad, prefix)


def score_items(model: EnergyRewardModel, features: Features, chunk: Chunk, prefix: str) -> Scored:
    """Score a chunk of a features folder's pairs: no text, no backbone."""
    import torch

    index = torch.tensor([[row["chosen_item"], row["rejected_item"]] for row in chunk.rows]).reshape(-1)
    errors: list[str | None] = [None] * len(chunk.rows)
    prefixes = ("chosen_", "rejected_")
    return _refined(model, features.embedding(index), features.reward[index], prefixes, chunk, errors, [], prefix)


def _refined(
    model: EnergyRewardModel,
    embedding: Any,  # [k * sides, d]: the rows without an error, in order, side by side
    reward: Any,  # [k * sides]
    prefixes: Sequence[str],
    chunk: Chunk,
    errors: list[str | None],
    bad: list[BadRow],
    prefix: str,
) -> Scored:
    import torch

    sides = len(prefixes)
    finite = (torch.isfinite(embedding).all(1) & torch.isfinite(reward)).reshape(-1, sides).all(1)
    good = [i for i, error in enumerate(errors) if error is None]
    for i, is_finite in zip(good, finite.tolist(), strict=True):
        if not is_finite:
            errors[i] = "the reward model's output is not finite"
            bad.append(BadRow(chunk.where[i], "reward", "NaN or infinite", "not finite"))
    keep = finite.repeat_interleave(sides)
    embedding, reward = embedding[keep], reward[keep]
    measured = model.refine(embedding, reward).to_rows()
    wins = (
        model.prefer_rows((embedding[0::2], embedding[1::2]), (reward[0::2], reward[1::2])).tolist()
        if sides == 2
        else itertools.repeat(None)
    )
    empty = dict.fromkeys(_added_names(prefixes, prefix))
    added = []
    rows, win = iter(measured), iter(wins)
    for error in errors:
        values: Row = dict(empty)
        if error is None:
            for side in prefixes:
                row = next(rows)
                values |= {f"{prefix}{side}{name}": _short(row[name]) for name in MEASURES}
            if sides == 2:
                values[f"{prefix}p_chosen"] = _short(next(win))
        values[f"{prefix}error"] = error
        added.append(values)
    return Scored(added, bad)


def _added_names(prefixes: Sequence[str], prefix: str) -> tuple[str, ...]:
    names = [f"{prefix}{side}{name}" for side in prefixes for name in MEASURES]
    return (*names, *([f"{prefix}p_chosen"] if len(prefixes) == 2 else []), f"{prefix}error")


def _summarize(out: Path, source: Input, prefix: str) -> dict[str, Any]:
    """Counts and means, read back from the finished output."""
    pair = f"{prefix}p_chosen" in source.added
    sums: Counter[str] = Counter()
    for chunk in read_chunks(out, CHUNK_ROWS):
        for row in chunk.rows:
            sums["rows"] += 1
            if row[f"{prefix}error"]:
                sums["errors"] += 1
                continue
            for side in ("chosen_", "rejected_") if pair else ("",):
                for name in ("reward", "base_reward", "std", "delta"):
                    value = float(row[f"{prefix}{side}{name}"])
                    sums[name] += abs(value) if name == "delta" else value  # type: ignore[assignment]
                sums["texts"] += 1
            if pair:
                base, refined = (
                    float(row[f"{prefix}chosen_{n}"]) > float(row[f"{prefix}rejected_{n}"])
                    for n in ("base_reward", "reward")
                )
                sums["base_right"] += base
                sums["right"] += refined
                sums["p_chosen"] += float(row[f"{prefix}p_chosen"])  # type: ignore[assignment]
        del chunk  # before the next is read
    if sums["rows"] != source.count:
        raise AssertionError(f"{out} has {sums['rows']} rows for {source.count} rows in")
    texts, good = max(sums["texts"], 1), max(sums["rows"] - sums["errors"], 1)
    summary: dict[str, Any] = {"rows": sums["rows"], "scored": sums["rows"] - sums["errors"], "errors": sums["errors"]}
    for name in ("reward", "base_reward", "std"):
        summary[f"mean_{name}"] = sums[name] / texts
    summary["mean_abs_delta"] = sums["delta"] / texts
    if pair:
        summary |= {
            "base_accuracy": sums["base_right"] / good,
            "accuracy": sums["right"] / good,
            "mean_p_chosen": sums["p_chosen"] / good,
        }
    return summary


def _explain(name: str, count: int, kinds: Counter[str], bad: Iterable[BadRow], scored: int) -> str:
    listed = "".join(f"\n  {row}" for row in bad)
    kept = f" {scored:,} rows before them are scored and kept." if scored else ""
    return (
        f"{name}: {sum(kinds.values()):,} of {count:,} rows cannot be scored ({count_kinds(dict(kinds))}). The first "
        f"(row, field: what is wrong, value):{listed}\nMend them, or give --bad-rows mark to write them out with empty "
        f"rewards and the reason.{kept}"
    )


def _short(value: float) -> float:
    """A float32 as the shortest decimal that reads back as it."""
    import numpy as np

    return float(str(np.float32(value)))


def _plain(value: Any) -> Any:
    """A NumPy scalar as a Python one; None stays."""
    return value.item() if hasattr(value, "item") else value
