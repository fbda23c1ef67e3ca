"""Rows of texts to score, and the loop that scores them a chunk at a time, so that a run that was stopped goes on."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ebrm._version import __version__
from ebrm.data import EXAMPLES, BadRow, RowProblem, count_kinds
from ebrm.errors import DataError, setting
from ebrm.scoring.columns import Shape, find_shape
from ebrm.scoring.config import ScoreConfig
from ebrm.scoring.files import (
    Chunk,
    Journal,
    ParquetCheck,
    Row,
    drop_damaged,
    join_parts,
    read_chunks,
    write_part,
)
from ebrm.utils.files import sha256_file
from ebrm.utils.outputs import place_of, refuse_overwriting
from ebrm.utils.progress_bar import progress

logger = logging.getLogger(__name__)

UNREADABLE = "cannot be read by the reward model"
DROPPED_ROW = "too long, dropped by the text rule"
NOT_FINITE = "not finite"

_ROWS = {
    "response": "a prompt and a response",
    "responses": "a prompt and its responses",
    "messages": "a conversation",
    "pair": "a preference pair",
}


@dataclass(frozen=True)
class Texts:
    """What is to be scored of a chunk's n rows: t texts, in the order of the rows."""

    what: list[Any]  # sides, or item numbers of a features folder [t]
    row: list[int]  # of each text, its place in the chunk, rising [t]
    number: list[int]  # of each text, its place in the row [t]
    sizes: list[int]  # of each row, its texts and those that cannot be read [n]
    problems: list[BadRow | None]  # of each row, the first thing wrong with it [n]


@dataclass(frozen=True)
class Rows:
    """Rows to score and their texts."""

    name: str
    contents: str
    fingerprint: str
    count: int
    columns: tuple[str, ...]
    prefixes: tuple[str, ...]  # of the added columns, one a side
    lists: bool  # whether a row has a list of texts, and its added columns lists
    chunks: Callable[[], Iterator[Chunk]]
    texts: Callable[[Chunk], Texts]
    side: Callable[[int], str]  # what the text `number` of a row is called
    bad: tuple[BadRow, ...] = ()  # the first rows that are seen to be bad without tokenizing
    kinds: Counter[str] = field(default_factory=Counter)
    empty: int = 0  # empty responses

    @property
    def pairs(self) -> bool:
        """Whether each row has two sides."""
        return len(self.prefixes) == 2


def open_rows(path: Path, config: ScoreConfig, kind: str, size: int) -> Rows:
    """Read a file once: columns, shape, row count, and every row that cannot be scored or written for what it holds.

    Args:
        path: the file.
        config: its columns and labels.
        kind: what is written, as `file_kind` says.
        size: rows of a chunk.
    """
    seen: dict[str, Any] = {}  # columns, each with the first value that there is
    count, empty, kinds = 0, 0, Counter[str]()
    shape: Shape | None = None
    bad: list[BadRow] = []
    for chunk in read_chunks(path, size):
        for row in chunk.rows:
            seen.update({name: value for name, value in row.items() if seen.get(name) is None})
        shape = shape or find_shape(seen, config.columns, str(path), config.label_map)
        count += len(chunk.rows)
        texts = _texts(shape, chunk)
        empty += sum(side.is_empty for side in texts.what)
        for problem in texts.problems:
            if problem is not None:
                kinds[problem.kind] += 1
                if len(bad) < EXAMPLES:
                    bad.append(problem)
        del chunk  # before the next is read
    if shape is None:
        raise DataError(f"{path} holds no rows. Check that it is the file meant and is complete.")
    if shape.reader is not None and shape.reader.labels is not None:
        shape.reader.labels.check(str(path))
    columns = tuple(map(str, seen))
    if kind == "parquet" and path.suffix.lower() != ".parquet":
        check = ParquetCheck(columns)
        for chunk in read_chunks(path, size):
            check.add(chunk)
            del chunk
        check.finish(lambda: read_chunks(path, size))
    return Rows(
        str(path), f"{_ROWS[shape.kind]} a row", sha256_file(path), count, columns, shape.prefixes,
        shape.kind == "responses", lambda: read_chunks(path, size), partial(_texts, shape), shape.side, tuple(bad),
        kinds, empty,
    )  # fmt: skip


def _texts(shape: Shape, chunk: Chunk) -> Texts:
    """The texts of a chunk's rows, and what is wrong with rows."""
    found = Texts([], [], [], [], [])
    for place, (row, where) in enumerate(zip(chunk.rows, chunk.where, strict=True)):
        try:
            sides = shape.sides(row, where)
        except RowProblem as problem:
            found.sizes.append(0)
            found.problems.append(problem.at(where))
            continue
        wrong = None
        for number, side in enumerate(sides):
            if isinstance(side, RowProblem):
                wrong = wrong or side.at(where)
                continue
            found.what.append(side)
            found.row.append(place)
            found.number.append(number)
        found.sizes.append(len(sides))
        found.problems.append(wrong)
    return found


def place_for(out: Path, read: Mapping[str, Any]) -> Path:
    """An output's absolute path; DataError where it is one of the files that are `read`."""
    place = place_of(out)
    refuse_overwriting([place], read)
    return place


def score_rows(
    rows: Rows, out: Path, kind: str, config: ScoreConfig, added: Sequence[str], job: Mapping[str, Any],
    shown: Mapping[str, Any], by: str, size: int, *, score: Callable[[Chunk], tuple[list[Row], list[BadRow]]],
    summarize: Callable[[], dict[str, Any]], on_progress: Callable[[int, int], None] | None,
) -> dict[str, Any]:  # fmt: skip
    """Score rows chunk by chunk and write them with the columns that scoring adds; the summary. Held under its lock.

    Args:
        rows: what is scored.
        out: what is written, of this `kind`.
        config: what becomes of rows that cannot be scored.
        added: names of the columns added.
        job: what decides the bytes of the output, besides rows, columns and version.
        shown: the same for people.
        by: what scores, in messages.
        size: rows of a chunk.
        score: the added columns of a chunk's rows, and the rows that stop the run.
        summarize: the summary, made of the finished output.
        on_progress: called with (rows done, rows).
    """
    clash = [name for name in added if name in rows.columns]
    if clash:
        raise DataError(
            f"{rows.name} has columns named {', '.join(clash)}, which would be added. Name the added ones otherwise: "
            f"{setting('prefix', 'refined_')}."
        )
    if rows.kinds and config.bad_rows == "stop":
        raise DataError(_explain(rows, rows.kinds, rows.bad, 0))
    # Not `bad_rows`: rows scored under stop are the same under mark.
    whole = {
        "input": rows.fingerprint, **job,
        "columns": [list(rows.columns), dict(sorted(config.columns.items())), config.prefix],
        "label_map": dict(sorted(config.label_map.items())),
        "chunk_rows": size, "version": __version__,
    }  # fmt: skip
    journal = Journal(
        out, whole, {"input": rows.name, "columns": dict(config.columns), "prefix": config.prefix, **shown}
    )
    if journal.open(config.overwrite, config.restart):
        logger.info(
            "%s is complete already: the same rows by the same %s. %s scores them again.",
            out, by, setting("overwrite", True),
        )  # fmt: skip
        return dict(journal.record["summary"])
    parts = [journal.part(number, kind) for number in range(math.ceil(rows.count / size))]
    if damaged := drop_damaged(parts):
        logger.warning(
            "%d of the parts scored before are damaged (%s in %s): their rows are scored again.",
            len(damaged), ", ".join(part.name for part in damaged[:3]), damaged[0].parent,
        )  # fmt: skip
    before = min(sum(part.exists() for part in parts) * size, rows.count)
    if before:
        logger.info("Going on: %s of %s rows were scored before.", f"{before:,}", f"{rows.count:,}")
    done = 0
    if on_progress is not None:
        on_progress(done, rows.count)
    with journal.keeping(), progress("score", rows.count, "rows") as bar:
        for number, chunk in enumerate(rows.chunks()):
            if not parts[number].exists():
                scored, bad = score(chunk)
                if bad and config.bad_rows == "stop":
                    kinds = Counter(row.kind for row in bad)
                    raise DataError(_explain(rows, kinds, bad[:EXAMPLES], chunk.first))
                write_part(parts[number], kind, chunk, scored, rows.columns, rows.lists)
                del scored
            done += len(chunk.rows)
            bar.advance(len(chunk.rows))
            if on_progress is not None:
                on_progress(done, rows.count)
            del chunk  # before the next is read
    join_parts(parts, out, kind, [*rows.columns, *added])
    summary = summarize()
    journal.finish(summary)
    return summary


def _explain(rows: Rows, kinds: Counter[str], bad: Iterable[BadRow], scored: int) -> str:
    listed = "".join(f"\n  {row}" for row in bad)
    kept = f" The {scored:,} rows before them are scored, and kept for that." if scored else ""
    return (
        f"{rows.name}: {sum(kinds.values()):,} of {rows.count:,} rows cannot be scored "
        f"({count_kinds(dict(kinds))}). The first (row, field: what is wrong, value):{listed}\nMend them, or give "
        f"{setting('bad_rows', 'mark')} to write them out with empty rewards and the reason.{kept}"
    )


def reason(problem: BadRow) -> str:
    """The column `error`: the sentence of what could not be read, else field and fault."""
    if problem.kind in (UNREADABLE, DROPPED_ROW, NOT_FINITE):
        return problem.value if problem.field in ("text", "reward") else f"{problem.field}: {problem.value}"
    return f"{problem.field}: {problem.kind}"


def numbers_in(cell: Any) -> list[float]:
    """The numbers in a cell of the output: one, or a list of them (as JSON in CSV) without those that are not there."""
    if isinstance(cell, str) and cell.startswith("["):
        cell = json.loads(cell)
    return [float(value) for value in (cell if isinstance(cell, list) else [cell]) if value not in (None, "")]


def short(value: float) -> float:
    """A float32 as the shortest decimal that reads back as it; a count as it is."""
    return value if isinstance(value, int) else float(str(np.float32(value)))
