"""Preference pairs from any source, each row kept or counted with the reason; splits by prompt."""

from __future__ import annotations

import logging
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ebrm.data.config import PreferenceConfig
from ebrm.data.formats import COMMON_BEGINNING, USUAL_PROMPT_NAMES, Columns, Layout, read_preference
from ebrm.data.messages import reply_key
from ebrm.data.schema import EXAMPLES, BadRow, Preference, PreferenceReport, Preferences, RowProblem, count_kinds
from ebrm.data.sources import Source, open_source
from ebrm.errors import ConfigError, DataError, setting

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

# After this many rows without the columns of a preference, the columns are wrong, not the rows.
_PATIENCE = 100

_SPAN = 2**64  # positions of `hash_position`


def load_preferences(
    source: str | Path | Dataset | list[dict[str, Any]], config: PreferenceConfig | None = None
) -> Preferences:
    """Preference pairs in the one checked schema, in the order read, with a report (format, counts, bad rows, repeats).

    Args:
        source: A file, folder or glob (JSONL, JSON, CSV, TSV, Parquet; text also in .gz), a Hub name
            `owner/name[:config][@revision]`, a `datasets.Dataset`, or a list of dicts.
        config: Split, column names, bad rows, limit.

    Raises:
        DataError: no such source, damage, no rows, no columns of a preference, or bad rows with `bad_rows="stop"`.
    """
    config = config or PreferenceConfig()
    opened = open_source(source, config)
    rows, shapes, kinds, examples, read = _read(opened, config)
    if read == 0:
        raise DataError(f"{opened.origin} holds no rows. Check that it is the file meant and is complete.")
    if kinds and (config.bad_rows == "stop" or not rows):
        raise DataError(_explain_bad_rows(opened.origin, read, kinds, examples))
    good = len(rows)
    if config.limit is not None:
        rows = limit_by_prompt(rows, config.limit)
    report = PreferenceReport(
        opened.origin, _format(shapes), read, len(rows), dict(kinds), tuple(examples), _count_repeats(rows),
        limited=good - len(rows),
    )  # fmt: skip
    logger.info("%s", report.summary())
    for row in examples:
        logger.info("skipped %s", row)
    return Preferences(tuple(rows), report)


def _read(
    source: Source, config: PreferenceConfig
) -> tuple[list[Preference], Counter[str], Counter[str], list[BadRow], int]:
    columns = Columns(config.columns)
    layout: Layout | None = None
    waiting: list[tuple[str, dict[str, Any]]] = []  # rows before the first with the columns of a preference
    rows: list[Preference] = []
    shapes: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    examples: list[BadRow] = []
    unseen = set(config.columns)  # our names whose mapped column no row has shown yet
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
            unseen = {ours for ours in unseen if config.columns[ours] not in row}
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
        missing = {ours: config.columns[ours] for ours in sorted(unseen)}
        raise DataError(
            f"{setting('columns', missing)} names what no row of {source.origin} has. The first row's columns are "
            f"{', '.join(map(str, first_columns))}."
        )
    overlooked = next((name for name in first_columns if name in USUAL_PROMPT_NAMES), None)
    if layout == "implicit" and overlooked and (COMMON_BEGINNING in shapes or "no common prompt" in kinds):
        # Two replies that both start with "The" would otherwise yield the prompt "The ".
        raise DataError(
            f"{source.origin} has no column prompt, so the prompt would be what chosen and rejected both begin with; "
            f"but its column {overlooked!r} looks like the prompt. Set {setting('columns', {'prompt': overlooked})}; "
            "if it is not the prompt, rename it."
        )
    return rows, shapes, kinds, examples, read


def _explain_bad_rows(origin: str, read: int, kinds: Counter[str], examples: list[BadRow]) -> str:
    bad = sum(kinds.values())
    shown = "The first:" if bad > len(examples) else "They are:"
    listed = "".join(f"\n  {row}" for row in examples)
    if bad == read:
        example = setting("columns", {"prompt": "question"})
        way_out = f"No row is left to use: check the file and the column names ({example})."
    else:
        way_out = f"Correct them, or leave them out and have them counted with {setting('bad_rows', 'skip')}."
    return (
        f"{origin}: {bad:,} of {read:,} rows cannot be used ({count_kinds(kinds)}). {shown} (row, field: kind, "
        f"value){listed}\n{way_out}"
    )


def _format(shapes: Counter[str]) -> str:
    if len(shapes) == 1:
        return next(iter(shapes))
    return "mixed: " + "; ".join(f"{shape} ({count:,} rows)" for shape, count in shapes.most_common())


def _count_repeats(rows: list[Preference]) -> int:
    seen: set[bytes] = set()
    for row in rows:
        digest = sha256(row.prompt_id.encode())
        for reply in (row.chosen, row.rejected):
            data = reply_key(reply).encode("utf-8")
            digest.update(len(data).to_bytes(8, "big") + data)  # the length keeps "ab","c" and "a","bc" apart
        seen.add(digest.digest())
    return len(rows) - len(seen)


def limit_by_prompt(rows: list[Preference], limit: int) -> list[Preference]:
    """At most `limit` rows, whole prompts in the order of a fixed hash (the first always), so limits nest."""
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


def hash_position(text: str) -> int:
    """Hash of `text` as one of 2**64 equal places: the first 8 bytes of its SHA-256."""
    return int.from_bytes(sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def split_by_prompt(
    prompt_ids: Sequence[str], fractions: dict[str, float], seed: int
) -> dict[str, np.ndarray]:  # int64 row indices, ascending
    """Rows divided into named parts, all rows of a prompt in one part, by nothing but (seed, prompt_id).

    Parts hold their fraction of the *prompts* in expectation; with few prompts a part may be empty.

    Args:
        prompt_ids: One id a row.
        fractions: Part name to its share of prompts, summing to 1.
        seed: Another seed gives an independent split.

    Raises:
        ConfigError: a negative or non-finite fraction, or a sum other than 1.
    """
    shares = list(fractions.values())
    if not shares or any(not (math.isfinite(s) and s >= 0) for s in shares) or abs(math.fsum(shares) - 1) > 1e-9:
        raise ConfigError(f"fractions are {fractions}; they must each be 0 or more and sum to 1.")
    bounds = [min(round(total * _SPAN), _SPAN) for total in accumulate(shares)]
    # Rounding may leave the sum just under 1; what is left goes to the last part that has a share.
    last = max(i for i, share in enumerate(shares) if share > 0)
    bounds[last:] = [_SPAN] * (len(bounds) - last)
    names = list(fractions)
    part_of: dict[str, int] = {}
    for prompt in prompt_ids:
        if prompt not in part_of:
            position = hash_position(f"split:{seed}:{prompt}")
            part_of[prompt] = next(i for i, bound in enumerate(bounds) if position < bound)
    parts = np.fromiter((part_of[prompt] for prompt in prompt_ids), dtype=np.int64, count=len(prompt_ids))
    return {name: np.flatnonzero(parts == i) for i, name in enumerate(names)}
