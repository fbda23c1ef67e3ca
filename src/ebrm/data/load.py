"""From any source to checked preferences: every row is either kept or counted, with the reason."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ebrm.data.config import PreferenceConfig
from ebrm.data.formats import COMMON_BEGINNING, USUAL_PROMPT_NAMES, Columns, Layout, read_preference
from ebrm.data.schema import (
    EXAMPLES,
    BadRow,
    Preference,
    PreferenceReport,
    Preferences,
    RowProblem,
    count_kinds,
)
from ebrm.data.sources import Source, open_source
from ebrm.data.split import hash_position
from ebrm.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

# After this many rows without the columns of a preference, the columns are wrong, not the rows.
_PATIENCE = 100


def load_preferences(
    source: str | Path | Dataset | list[dict[str, Any]], settings: PreferenceConfig | None = None
) -> Preferences:
    """Read preference pairs into the one checked schema.

    Args:
        source: A file, folder or glob (JSONL, JSON, CSV, Parquet), a Hub name `owner/name[:config][@revision]`, a
            `datasets.Dataset`, or a list of dicts; see `sources.open_source`.
        settings: See `PreferenceConfig`; defaults apply if None.

    Returns:
        The pairs in the order read, and the report: format, counts, bad rows, exact repeats (which are kept).

    Raises:
        DataError: no such source; not what its name says; no rows; no columns of a preference; bad rows with
            `bad_rows="stop"`; no good row at all.

    """
    settings = settings or PreferenceConfig()
    opened = open_source(source, settings)
    rows, shapes, kinds, examples, read = _read(opened, settings)
    if read == 0:
        raise DataError(f"{opened.origin} holds no rows. Check that it is the file meant and is complete.")
    if kinds and (settings.bad_rows == "stop" or not rows):
        raise DataError(_explain_bad_rows(opened.origin, read, kinds, examples))
    good = len(rows)
    if settings.limit is not None:
        rows = limit_by_prompt(rows, settings.limit)
    report = PreferenceReport(
        origin=opened.origin,
        format=_said(shapes),
        read=read,
        kept=len(rows),
        skipped=dict(kinds),
        examples=tuple(examples),
        duplicates=_count_repeats(rows),
        limited=good - len(rows),
    )
    logger.info("%s", report.summary())
    for row in examples:
        logger.info("skipped %s", row)
    return Preferences(tuple(rows), report)


def _read(
    source: Source, settings: PreferenceConfig
) -> tuple[list[Preference], Counter[str], Counter[str], list[BadRow], int]:
    columns = Columns(settings.columns)
    layout: Layout | None = None
    waiting: list[tuple[str, dict[str, Any]]] = []  # rows before the first with the columns of a preference
    rows: list[Preference] = []
    shapes: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    examples: list[BadRow] = []
    unseen = set(settings.columns)  # our names whose mapped column no row has shown yet
    first_columns: list[str] = []
    read = 0

    def take(where: str, row: dict[str, Any], layout: Layout) -> None:
        try:
            preference, shape = read_preference(row, where, columns, layout)
        except RowProblem as problem:
            kinds[problem.kind] += 1
            if len(examples) < EXAMPLES:
                examples.append(problem.at(where))
        else:
            shapes[shape] += 1
            if preference.split is None and source.split is not None:
                preference = replace(preference, split=source.split)
            rows.append(preference)

    for where, row in source.rows():
        read += 1
        first_columns = first_columns or list(row)
        if unseen:
            unseen = {ours for ours in unseen if settings.columns[ours] not in row}
        layout = layout or columns.layout(row)
        if layout is None:
            waiting.append((where, row))
            if read >= _PATIENCE:
                break
            continue
        for earlier in waiting:
            take(*earlier, layout)
        waiting.clear()
        take(where, row, layout)
    if waiting:
        seen = list(dict.fromkeys(name for _, row in waiting for name in row))
        raise DataError(f"{source.origin} does not hold preferences that can be found. {columns.explain(seen)}")
    if read and unseen:
        missing = " ".join(f"--column {ours}={settings.columns[ours]}" for ours in sorted(unseen))
        raise DataError(
            f"`{missing}` names what no row of {source.origin} has. The first row's columns are "
            f"{', '.join(map(str, first_columns))}."
        )
    overlooked = next((name for name in first_columns if name in USUAL_PROMPT_NAMES), None)
    if layout == "implicit" and overlooked and (COMMON_BEGINNING in shapes or "no common prompt" in kinds):
        # Two replies that both start with "The" would otherwise yield the prompt "The ".
        raise DataError(
            f"{source.origin} has no column prompt, so the prompt would be what chosen and rejected both begin with; "
            f"but its column {overlooked!r} looks like the prompt. Say `--column prompt={overlooked}`; if it is not "
            "the prompt, rename it."
        )
    return rows, shapes, kinds, examples, read


def _explain_bad_rows(origin: str, read: int, kinds: Counter[str], examples: list[BadRow]) -> str:
    bad = sum(kinds.values())
    shown = "The first:" if bad > len(examples) else "They are:"
    listed = "".join(f"\n  {row}" for row in examples)
    if bad == read:
        way_out = "No row is left to use: check the file and the column names (`--column prompt=question`)."
    else:
        way_out = "Mend them, or leave them out and have them counted with `--bad-rows skip`."
    return (
        f"{origin}: {bad:,} of {read:,} rows cannot be used ({count_kinds(kinds)}). {shown} (row, field: kind, "
        f"value){listed}\n{way_out}"
    )


def _said(shapes: Counter[str]) -> str:
    if len(shapes) == 1:
        return next(iter(shapes))
    return "mixed: " + "; ".join(f"{shape} ({count:,} rows)" for shape, count in shapes.most_common())


def _count_repeats(rows: list[Preference]) -> int:
    seen: set[bytes] = set()
    for row in rows:
        digest = sha256(row.prompt_id.encode())
        for text in (row.chosen, row.rejected):
            data = text.encode("utf-8")
            digest.update(len(data).to_bytes(8, "big") + data)  # the length keeps "ab","c" and "a","bc" apart
        seen.add(digest.digest())
    return len(rows) - len(seen)


def limit_by_prompt(rows: list[Preference], limit: int) -> list[Preference]:
    """At most `limit` rows, whole prompts at a time, in their old order.

    Prompts are taken in the order of a fixed hash until the next would exceed the limit, so a smaller limit keeps a
    subset of what a larger one keeps. The first prompt is taken whatever its size.
    """
    if len(rows) <= limit:
        return rows
    by_prompt: defaultdict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        by_prompt[row.prompt_id].append(i)
    kept: list[int] = []
    for prompt in sorted(by_prompt, key=lambda p: (hash_position(f"limit:{p}"), p)):
        if kept and len(kept) + len(by_prompt[prompt]) > limit:
            break
        kept += by_prompt[prompt]
    return [rows[i] for i in sorted(kept)]
