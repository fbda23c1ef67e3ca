"""score_file_with: rewards of anything that scores texts for every row of a file, streaming and resumable."""

from __future__ import annotations

import difflib
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ebrm.data import BadRow, Prompt, Reply, as_list, is_missing
from ebrm.errors import DataError, TextError
from ebrm.scoring.columns import Side
from ebrm.scoring.config import ScoreConfig
from ebrm.scoring.files import Chunk, Row, file_kind, read_chunks
from ebrm.scoring.rows import UNREADABLE, Rows, numbers_in, open_rows, place_for, reason, score_rows, short
from ebrm.scoring.scorers import TextScorer
from ebrm.utils.files import sha256_json
from ebrm.utils.locks import lock_beside, locked

logger = logging.getLogger(__name__)

#: Rows a chunk. Fewer than for reward models: a judge's answers cost more than a forward.
CHUNK_ROWS = 64

_NO_SCORE = "no score"


def score_file_with(
    scorer: TextScorer | Callable[[Sequence[Prompt], Sequence[Reply]], Tensor],
    source: str | Path, out: str | Path, config: ScoreConfig = ScoreConfig(), *,  # noqa: B008 - frozen
    name: str = "a function", on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write every row of a file with the reward that a scorer gives its response.

    Rows, columns, formats and resuming are those of :func:`score_file`; added are `reward` and `error`, of pairs
    `chosen_reward` and `rejected_reward`, and lists where a row has `responses`. A response without a score (NaN, such
    as a judge's answer that could not be read) has none, says so under `error`, is counted, and stops nothing. Texts
    are given 64 rows at a time, the responses of a row together.

    Args:
        scorer: `text_scorer(…)`, or a function from prompts [n] and responses [n] to rewards [n], NaN for none.
        source: rows as for :func:`score_file`, from a file.
        out: file to write, .jsonl, .csv or .parquet.
        config: columns, and what becomes of rows that cannot be scored.
        name: of a function, what it is known by: a file that was scored in part goes on only by the same name.
        on_progress: called with (rows done, rows) as the work goes on.

    Returns:
        `rows`, `scored` and `errors` (rows with something that has no score), `unscored` (those of them whose text is
        fine, and the scorer gave no number), `texts` and `empty` (responses with a score, and empty ones),
        `mean_reward` (None for none); of pairs also `pairs` and `accuracy` (share with chosen above rejected).

    Raises:
        DataError: as :func:`score_file`; a column of references that is not there. ConfigError: out's ending.
            What the scorer raises.
    """
    if not isinstance(scorer, TextScorer):
        function = scorer
        scorer = TextScorer(lambda prompts, responses, _: function(prompts, responses), name)
    source, out = Path(source), Path(out)
    kind = file_kind(out)
    out = place_for(out, {"what is scored": source, **scorer.reads})
    known = scorer
    if source.is_dir():
        raise DataError(f"{source} is a folder. A scorer reads texts: give a .jsonl, .csv or .parquet file of them.")
    with locked(lock_beside(out), str(out)):
        rows = open_rows(source, config, kind, CHUNK_ROWS)
        logger.info("%s: %s rows, %s.", rows.name, f"{rows.count:,}", rows.contents)
        _check_reference(rows, scorer.reference)
        prefix = config.prefix
        added = [*(f"{prefix}{side}reward" for side in rows.prefixes), f"{prefix}error"]
        settings = dict(scorer.settings)
        job = {"scorer": scorer.name, "settings": sha256_json(settings), "reference": scorer.reference}
        return score_rows(
            rows, out, kind, config, added, job, {"scorer": scorer.name, **settings}, "scorer", CHUNK_ROWS,
            score=lambda chunk: _score(known, rows, chunk, prefix),
            summarize=lambda: _summarize(out, rows, prefix), on_progress=on_progress,
        )  # fmt: skip


def _check_reference(rows: Rows, column: str | None) -> None:
    if column is not None and column not in rows.columns:
        near = difflib.get_close_matches(column, rows.columns, n=1)
        raise DataError(
            f"`reference` is {column}, and {rows.name} has no such column. "
            + (f"Did you mean {near[0]}? " if near else "")
            + f"Its columns: {', '.join(rows.columns)}."
        )


def _score(scorer: TextScorer, rows: Rows, chunk: Chunk, prefix: str) -> tuple[list[Row], list[BadRow]]:
    """The added columns of a chunk's rows, and the rows that cannot be scored for what they hold."""
    texts = rows.texts(chunk)
    problems = list(texts.problems)
    references = [_references(row, scorer) for row in chunk.rows]
    for row, found in enumerate(references):
        if isinstance(found, str) and problems[row] is None:
            value = chunk.rows[row].get(scorer.reference or "")
            problems[row] = BadRow(chunk.where[row], str(scorer.reference), repr(value)[:72], found)
    asked = [k for k, row in enumerate(texts.row) if not isinstance(references[row], str)]
    if rows.pairs:
        asked = [k for k in asked if problems[texts.row[k]] is None]
    sides: list[Side] = [texts.what[k] for k in asked]
    values, faults = _ask(scorer, sides, [references[texts.row[k]] for k in asked])
    by_row: list[dict[int, float]] = [{} for _ in chunk.rows]
    unscored: list[BadRow | None] = [None] * len(chunk.rows)
    for k, value, fault in zip(asked, values, faults, strict=True):
        row, number = texts.row[k], texts.number[k]
        if fault is not None:
            problems[row] = problems[row] or BadRow(chunk.where[row], rows.side(number), fault, UNREADABLE)
        elif math.isfinite(value):
            by_row[row][number] = short(value)
        else:
            unscored[row] = unscored[row] or BadRow(chunk.where[row], rows.side(number), str(value), _NO_SCORE)
    added = []
    for row in range(len(chunk.rows)):
        problem = problems[row] or unscored[row]
        given: Row = {f"{prefix}{side}reward": None for side in rows.prefixes}
        if rows.lists:
            size = texts.sizes[row]
            given[f"{prefix}reward"] = [by_row[row].get(number) for number in range(size)] if size else None
        elif problem is None:
            given = {f"{prefix}{side}reward": by_row[row][number] for number, side in enumerate(rows.prefixes)}
        added.append(given | {f"{prefix}error": None if problem is None else reason(problem)})
    return added, [problem for problem in problems if problem is not None]


def _references(row: Mapping[str, Any], scorer: TextScorer) -> Sequence[str] | str:
    """The references of a row, or what is wrong with them."""
    value = row.get(scorer.reference) if scorer.reference is not None else None
    if is_missing(value):
        return "missing" if scorer.reference is not None and scorer.needs_reference else []
    listed = as_list(value)
    if isinstance(value, str) and not (listed and all(isinstance(one, str) for one in listed)):
        listed = [value]
    if not listed or not all(isinstance(one, str) and one.strip() for one in listed):
        return "not a text, or a list of texts"
    return listed


def _ask(scorer: TextScorer, sides: Sequence[Side], references: Sequence[Any]) -> tuple[list[float], list[str | None]]:
    """The score of each text, NaN where there is none, and why one cannot be scored."""
    if not sides:
        return [], []
    asked = ([side.asked for side in sides], [side.response for side in sides], references)
    try:
        return _numbers(scorer, scorer.score(*asked), len(sides)), [None] * len(sides)
    except (TextError, DataError) as error:
        if len(sides) == 1:
            return [math.nan], [re.sub(r"^Text 0:? ", "", str(error))]
    # One of them cannot be read: each for itself.
    found = [_ask(scorer, [side], [known]) for side, known in zip(sides, references, strict=True)]
    return [value for values, _ in found for value in values], [fault for _, faults in found for fault in faults]


def _numbers(scorer: TextScorer, given: Any, count: int) -> list[float]:
    values = given.tolist() if hasattr(given, "tolist") else list(given)
    if len(values) != count or any(isinstance(value, list) for value in values):
        raise ValueError(f"{scorer.name} gave {len(values)} rewards for {count} responses; expected one each, [n]")
    return [math.nan if value is None else float(value) for value in values]


def _summarize(out: Path, rows: Rows, prefix: str) -> dict[str, Any]:
    """Counts and the mean, read back from the finished output."""
    counts: Counter[str] = Counter()
    total: list[float] = []
    for chunk in read_chunks(out, CHUNK_ROWS):
        for row in chunk.rows:
            error = row[f"{prefix}error"]
            counts["errors"] += bool(error)
            counts["unscored"] += str(error or "").endswith(f": {_NO_SCORE}")
            values = [numbers_in(row[f"{prefix}{side}reward"]) for side in rows.prefixes]
            for found in values:
                counts["texts"] += len(found)
                total += [math.fsum(found)] if found else []
            if rows.pairs and all(values):
                counts["pairs"] += 1
                counts["right"] += values[0][0] > values[1][0]
        del chunk  # before the next is read
    summary: dict[str, Any] = {"rows": rows.count, "scored": rows.count - counts["errors"], "errors": counts["errors"]}
    summary |= {"texts": counts["texts"], "empty": rows.empty, "unscored": counts["unscored"]}
    summary["mean_reward"] = math.fsum(total) / counts["texts"] if counts["texts"] else None
    if rows.pairs:
        right = counts["right"] / counts["pairs"] if counts["pairs"] else None
        summary |= {"pairs": counts["pairs"], "accuracy": right}
    return summary
