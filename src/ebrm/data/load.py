"""Preference pairs from any source, each row kept or counted with the reason; splits by prompt."""

from __future__ import annotations

import logging
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import accumulate, chain
from typing import Any, Protocol, TypeVar

import numpy as np

from ebrm.data.config import PreferenceConfig, given_config
from ebrm.data.formats import COMMON_BEGINNING
from ebrm.data.layouts import MORE_OF_PROMPT, Layout, explain_columns, find_layout, looks_like_prompt
from ebrm.data.messages import message_words, reply_key
from ebrm.data.reading import OPTIONAL, Reader
from ebrm.data.schema import EXAMPLES, BadRow, Preference, PreferenceReport, Preferences, RowProblem, count_kinds
from ebrm.data.sources import Source, open_source
from ebrm.errors import ConfigError, DataError, setting

logger = logging.getLogger(__name__)

# After this many rows without the columns of a preference, the columns are wrong, not the rows.
_PATIENCE = 100

Located = tuple[str, dict[str, Any], str | None]  # where, row, split

_SPAN = 2**64  # positions of `hash_position`


def load_preferences(source: Any, config: PreferenceConfig | None = None) -> Preferences:
    """Preference pairs in the one checked schema, in the order read, with a report of all that was read and left out.

    Args:
        source: A file, folder or glob (JSONL, JSON, CSV, TSV, Parquet; text also in .gz and .zst), a Hub name
            `owner/name[:config][@revision]`, a list of these, a `datasets.Dataset`, a table (pandas, Arrow, polars), a
            NumPy array of records, or a list of dicts.
        config: Split, column names, labels, bad rows, limit.

    Raises:
        DataError: no such source, damage, no rows, no columns of a preference, a label whose meaning is not known, or
            bad rows with `bad_rows="stop"`.
    """
    config = given_config("config", config, PreferenceConfig)
    if single := sorted({"response", "ratings"} & config.columns.keys()):
        raise ConfigError(
            f"`columns` for {' and '.join(single)} has no effect on preference pairs: only the heads binary and "
            "attributes are fitted on single responses with ratings. Leave it out, or choose one of these heads."
        )
    opened = open_source(source, config)
    read = _read(opened, config)
    if read.rows == 0:
        raise DataError(f"{opened.origin} holds no rows. Check that it is the file meant and is complete.")
    assert read.reader is not None
    if read.kinds and (config.bad_rows == "stop" or not read.kept):
        assert read.reader is not None
        raise DataError(explain_bad_rows(opened.origin, read, str(read.reader.layout)))
    if not read.kept:
        raise DataError(f"{opened.origin}: all {read.reader.ties:,} rows are ties, so that there is no pair to read.")
    kept, reader = read.kept, read.reader
    if config.limit is not None:
        kept = limit_by_prompt(kept, config.limit)
    odd = dict(reader.odd)
    if reader.disagreed:
        odd["label and scores prefer different replies"] = reader.disagreed
    report = PreferenceReport(
        opened.origin, _format(read.shapes), read.rows, len(kept), dict(read.kinds), tuple(read.examples),
        _count_repeats(kept), limited=len(read.kept) - len(kept),
        layout=_named(reader, several=read.pairs > read.rows), pairs=read.pairs, ties=reader.ties,
        labels=None if reader.labels is None else reader.labels.report(),
        splits=dict(Counter(row.split or "" for row in kept).most_common()), odd=odd,
        unread_columns=dict(reader.unread_columns), unread_keys=dict(reader.unread_keys),
        unread_files=opened.left_out, lengths=_lengths(kept),
    )  # fmt: skip
    logger.info("%s", report.summary())
    for row in read.examples:
        logger.info("skipped %s", row)
    return Preferences(tuple(kept), report)


@dataclass
class _Reading:
    """What was read of a source so far."""

    reader: Reader | None = None
    kept: list[Preference] = field(default_factory=list)
    shapes: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    examples: list[BadRow] = field(default_factory=list)
    rows: int = 0
    pairs: int = 0

    def take(self, where: str, row: dict[str, Any], split: str | None) -> None:
        assert self.reader is not None
        ties = self.reader.ties
        for found in self.reader.pairs(row, where):
            self.pairs += 1
            if isinstance(found, RowProblem):
                self.kinds[found.kind] += 1
                if len(self.examples) < EXAMPLES:
                    self.examples.append(found.at(where))
                continue
            self.shapes[found.shape] += 1
            pair = found.preference
            self.kept.append(replace(pair, split=split) if pair.split is None and split is not None else pair)
        self.pairs += self.reader.ties - ties


def _read(source: Source, config: PreferenceConfig) -> _Reading:
    done, mapping = _Reading(), config.columns
    by_name = mapping.get("split") != ""  # else splits are not read, from columns or from names
    located = ((where, row, split if by_name else None) for split, rows in source.parts() for where, row in rows)
    first: list[Located] = []  # up to the first row with a layout
    layout: Layout | None = None
    for found in located:
        first.append(found)
        layout = find_layout(found[1], mapping, config.label_map)
        if layout is not None or len(first) >= _PATIENCE:
            break
    if layout is None:
        if first:
            seen = list(dict.fromkeys(name for _, row, _ in first for name in row))
            raise DataError(
                f"{source.origin} does not hold preferences that can be found. "
                f"{explain_columns(seen, mapping, first[0][1])}"
            )
        return done
    if config.label_map and layout.kind != "labeled":
        raise DataError(
            f"{source.origin} is read as {layout}, which has no label, so that `label_map` would have no effect. Leave "
            f"it out, or name the columns: {setting('columns', {'a': '…', 'b': '…', 'label': '…'})}."
        )
    done.reader = reader = Reader(layout, mapping)
    unseen = {ours for ours, theirs in mapping.items() if theirs}  # whose mapped column no row has shown yet

    def rows() -> Iterator[Located]:
        for where, row, split in chain(first, located):
            done.rows += 1
            unseen.difference_update([ours for ours in unseen if mapping[ours] in row])
            yield where, row, split

    unknown_since = 0
    for where, row, split in _grouped(rows(), reader) if layout.kind == "rated" else rows():
        done.take(where, row, split)
        if reader.labels is not None and reader.labels.unknown:
            unknown_since = unknown_since or done.rows
            if done.rows >= unknown_since + 10 * _PATIENCE:
                break
    if reader.labels is not None:
        reader.labels.check(source.origin)
    columns = list(first[0][1])
    refuse_unseen(source.origin, {ours: mapping[ours] for ours in sorted(unseen)}, columns)
    _check(source.origin, done, columns)
    return done


def _grouped(rows: Iterator[Located], reader: Reader) -> Iterator[Located]:
    """Rows of one rated response each, those of a prompt that follow each other made one row with lists."""
    fields = reader.layout.fields
    lists = (fields["responses"], fields["scores"])
    kept = {*fields.values(), *(reader.columns.get(ours, name) for ours, names in OPTIONAL.items() for name in names)}
    held: Located | None = None
    for where, row, split in rows:
        reader.count_unread(row)
        if held is not None and held[1].get(fields["prompt"]) == row.get(fields["prompt"]) and held[2] == split:
            for name in lists:
                held[1][name].append(row.get(name))
            continue
        if held is not None:
            yield held
        held = (where, {k: [v] if k in lists else v for k, v in row.items() if k in kept}, split)
    if held is not None:
        yield held


def _check(origin: str, done: _Reading, columns: Sequence[str]) -> None:
    """DataError for what only all rows together show: it looks like another layout than it was read by."""
    reader = done.reader
    assert reader is not None
    layout = reader.layout
    common = COMMON_BEGINNING in done.shapes or "no common prompt" in done.kinds
    if layout.implicit and common and "prompt" not in reader.columns:
        # Two replies that both start with "The" would otherwise yield the prompt "The ".
        unread = [name for name in columns if name in reader.unread_columns]
        overlooked = next((name for name in unread if looks_like_prompt(name)), None)
        overlooked = overlooked or next((name for name in unread if 2 * reader.wordy[name] >= done.rows), None)
        if overlooked is not None:
            said = setting("columns", {"prompt": overlooked})
            raise DataError(
                f"{origin} has no column prompt, so the prompt would be what chosen and rejected both begin with; but "
                f"its column {overlooked!r} looks like the prompt. Set {said}, or "
                f"{setting('columns', {'prompt': ''})} if the sides do begin with their prompt."
            )
    more = next((name for name in MORE_OF_PROMPT if name in reader.unread_texts), None)
    if more and "prompt" in layout.fields and "input" not in reader.columns:
        raise DataError(
            f"{origin}: the prompt is in {layout.fields['prompt']!r}, and {more!r} holds texts that look like part of "
            f"it and would be left out. Have them put behind it with {setting('columns', {'input': more})}, or left "
            f"out with {setting('columns', {'input': ''})}."
        )
    if reader.disagreed and 2 * reader.disagreed >= reader.compared:
        fields = layout.fields
        raise DataError(
            f"{origin}: the label {fields['label']!r} and the scores {fields['score_a']!r}, {fields['score_b']!r} "
            f"prefer different replies in {reader.disagreed:,} of {reader.compared:,} rows, where 1 is read as "
            f"{fields['a']!r} better ({layout.name}). The labels seem to be turned round; if they are right as they "
            f"stand, say what they mean: {setting('label_map', {'1': 'b', '0': 'a'})}."
        )
    refuse_unread_splits(origin, reader)
    texts = [name for name, rows in reader.list_texts.items() if rows == done.rows]
    if texts and (layout.fields["rejected"] in texts or reader.lists == done.rows):
        lists = ", ".join(f"{name!r}: ast.literal_eval(row[{name!r}])" for name in texts)
        raise DataError(
            f"{origin}: each {' and '.join(texts)} is a text that reads as a list of texts, as tables write several "
            "replies. It is not known whether lists are meant. If so, read them as lists:\n"
            "  rows = [dict(row) for _, row in ebrm.data.read_rows(source)]\n"
            f"  pairs = [row | {{{lists}}} for row in rows]\n"
            "and give the pairs to ebrm.load_preferences; if a reply is such a text, write it as "
            '[{"role": "assistant", "content": …}].'
        )


def refuse_unseen(origin: str, missing: Mapping[str, str], columns: Sequence[str]) -> None:
    """DataError for a mapping of columns that no row has."""
    if missing:
        raise DataError(
            f"{setting('columns', dict(missing))} names what no row of {origin} has. The first row's columns are "
            f"{', '.join(map(str, columns))}."
        )


def refuse_unread_splits(origin: str, reader: Reader) -> None:
    """DataError for a column that is not read and seems to say which rows are held out."""
    for name, values in reader.split_like().items():
        raise DataError(
            f"{origin}: the column {name!r} holds {', '.join(sorted(values))}, which look like splits, and is not read "
            f"as such. Rows that are held out are never trained on: set {setting('columns', {'split': name})}, or "
            f"{setting('columns', {'split': ''})} if it says something else."
        )
    for name, part in reader.split_flags().items():
        other = "train" if part != "train" else "test"
        raise DataError(
            f"{origin}: the column {name!r} says by yes or no which rows are of the split {part}, and is not read as "
            "such. Rows that are held out are never trained on: write a column split with the names, as in\n"
            f'  rows = [row | {{"split": "{part}" if row[{name!r}] else "{other}"}} for row in rows]\n'
            f"or set {setting('columns', {'split': ''})} if it says something else."
        )


def explain_bad_rows(origin: str, done: Any, layout: str) -> str:
    """The error for rows that cannot be used: all counted (`done.kinds`), the first (`done.examples`), the way out."""
    bad = sum(done.kinds.values())
    shown = "The first:" if bad > len(done.examples) else "They are:"
    listed = "".join(f"\n  {row}" for row in done.examples)
    if not done.kept:
        way_out = "No row is left to use. Check the file"
        if done.kinds.keys() & {"missing", "not a string", "no common prompt", "no user turn"}:
            way_out += f", and whether the right columns are read ({layout})"
        way_out += "."
    else:
        way_out = f"Correct them, or leave them out and have them counted with {setting('bad_rows', 'skip')}."
    what = f"{done.pairs:,} rows" if done.pairs == done.rows else f"{done.pairs:,} pairs in {done.rows:,} rows"
    return (
        f"{origin}: {bad:,} of {what} cannot be used ({count_kinds(done.kinds)}). {shown} (row, field: kind, "
        f"value){listed}\n{way_out}"
    )


def _named(reader: Reader, several: bool) -> str:
    """The layout in the report: with what it makes of several responses."""
    layout = reader.layout
    text = str(layout)
    if layout.kind in ("responses", "rated"):
        order = layout.entries[1] if layout.entries else layout.fields["ranks" if layout.ascending else "scores"]
        text += f"; the best by {order} ({'lowest' if layout.ascending else 'highest'}) against each worse one"
    elif several:
        text += "; lists of replies, each chosen one against each rejected one"
    return text


def _lengths(rows: Sequence[Preference]) -> dict[str, tuple[int, int, int]]:
    """Least, median and most characters of prompts and replies."""
    found: dict[str, tuple[int, int, int]] = {}
    for name in ("prompt", "chosen", "rejected"):
        counts = np.array([
            sum(len(message_words(message)) for message in row.prompt) if name == "prompt"
            else len(message_words(getattr(row, name)))
            for row in rows
        ])  # fmt: skip
        found[name] = (int(counts.min()), int(np.median(counts)), int(counts.max()))
    return found


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


class _Prompted(Protocol):
    @property
    def prompt_id(self) -> str: ...


Prompted = TypeVar("Prompted", bound=_Prompted)


def limit_by_prompt(rows: list[Prompted], limit: int) -> list[Prompted]:
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
