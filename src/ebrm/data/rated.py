"""Rated responses, one a row: thumbs up and down (as for KTO), and ratings by attributes. They need no pairs."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any

from ebrm.data.config import PreferenceConfig, given_config
from ebrm.data.layouts import Layout, RatedLayout, find_rated
from ebrm.data.load import explain_bad_rows, limit_by_prompt, refuse_unread_splits, refuse_unseen
from ebrm.data.messages import reply_key
from ebrm.data.reading import Reader
from ebrm.data.schema import (
    EXAMPLES,
    BadRow,
    Message,
    PreferenceReport,
    Prompt,
    Reply,
    RowProblem,
    is_missing,
    number_of,
    prompt_id,
    with_tools,
)
from ebrm.data.sources import Source, open_source
from ebrm.errors import ConfigError, DataError, setting

logger = logging.getLogger(__name__)

# A rated reply is read as the chosen side of a pair, by the same rules; this is the other side.
_OTHER, _ANOTHER = "-", "--"
_OTHER_COLUMN = {"pair": "\ue000", "conversation": "rejected_response"}
_WORDS = {"true": 1.0, "yes": 1.0, "false": 0.0, "no": 0.0}


@dataclass(frozen=True, slots=True)
class RatedResponse:
    """One checked response with its ratings.

    Attributes:
        prompt, response, tools, source, category, split, row: as in `Preference`.
        ratings: one an attribute, NaN where it is not rated; a thumb is 1 (up) or 0 (down).
    """

    prompt: tuple[Message, ...]
    response: Reply
    ratings: tuple[float, ...]
    source: str | None
    category: str | None
    row: str
    split: str | None
    tools: tuple[dict[str, Any], ...] | None = None

    @property
    def asked(self) -> Prompt:
        """The prompt in the form that texts are read in: its messages, with the tools if there are any."""
        return with_tools(self.prompt, self.tools)

    @property
    def prompt_id(self) -> str:
        """As of `Preference`."""
        return prompt_id(self.prompt, self.tools)


@dataclass(frozen=True)
class Ratings:
    """Checked rated responses in the order read, the names of what they are rated by, and the report."""

    rows: tuple[RatedResponse, ...]
    attributes: tuple[str, ...]
    report: PreferenceReport

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[RatedResponse]:
        return iter(self.rows)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (64 hexadecimal digits) of the rows' contents in order; where they were read does not count."""
        digest = hashlib.sha256(json.dumps(self.attributes).encode())
        for r in self.rows:
            content: list[Any] = [list(r.prompt), r.response, list(r.ratings), r.source, r.category, r.split, r.tools]
            text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
            digest.update(text.encode("utf-8", "surrogatepass") + b"\n")
        return digest.hexdigest()


def holds_thumbs(source: Any, config: PreferenceConfig | None = None) -> bool:
    """Whether the first row is one response with a thumb (prompt, completion and a label of yes or no), or mapped so.

    Raises:
        DataError: as `load_ratings`, of the source.
    """
    config = given_config("config", config, PreferenceConfig)
    first = next(open_source(source, config).rows(), None)
    layout = None if first is None else find_rated(first[1], config.columns)
    return layout is not None and (layout.thumbs or "ratings" in config.columns)


def load_ratings(source: Any, config: PreferenceConfig | None = None) -> Ratings:
    """Rated responses in one checked schema, in the order read, with a report of all that was read and left out.

    Read are thumbs (prompt, completion or response, and label: true or false, 1 or 0, yes or no; also messages that
    end in the reply, with label or kto_tag) and ratings beside prompt and response (helpfulness, correctness,
    coherence, complexity, verbosity; rating; ratings_NAME). Other columns are mapped:
    `columns={"response": "answer", "ratings": "clarity,tone"}`.

    Args:
        source: As of `load_preferences`.
        config: Split, column names, bad rows, limit.

    Raises:
        DataError: no such source, damage, no rows, no columns of rated responses, or bad rows with `bad_rows="stop"`.
    """
    config = given_config("config", config, PreferenceConfig)
    opened = open_source(source, config)
    unused = sorted({"chosen", "rejected", "a", "b", "label", "responses", "scores", "ranks"} & config.columns.keys())
    if unused or config.label_map:
        raise ConfigError(
            f"{'`label_map`' if not unused else f'`columns` for {unused[0]}'} has no effect on rated responses. Leave "
            f"it out; ratings are mapped with {setting('columns', {'ratings': 'helpfulness'})}."
        )
    read = _Reading()
    layout = _read(opened, config, read)
    if read.kinds and (config.bad_rows == "stop" or not read.kept):
        raise DataError(explain_bad_rows(opened.origin, read, str(layout)))
    kept = limit_by_prompt(read.kept, config.limit) if config.limit is not None else read.kept
    repeats = len(kept) - len({(row.prompt_id, reply_key(row.response)) for row in kept})
    report = PreferenceReport(
        opened.origin, f"{'thumbs' if layout.thumbs else 'ratings'} of single responses", read.rows, len(kept),
        dict(read.kinds), tuple(read.examples), repeats, limited=len(read.kept) - len(kept), layout=str(layout),
        splits=dict(Counter(row.split or "" for row in kept).most_common()), unread_files=opened.left_out,
        **read.unread(),
    )  # fmt: skip
    logger.info("%s; %s", report.summary(), "; ".join(_counts(layout, kept)))
    return Ratings(tuple(kept), layout.ratings, report)


class _Reading:
    """What was read of a source so far."""

    def __init__(self) -> None:
        self.reader: Reader | None = None
        self.kept: list[RatedResponse] = []
        self.kinds: Counter[str] = Counter()
        self.examples: list[BadRow] = []
        self.rows = self.pairs = 0

    def unread(self) -> dict[str, Any]:
        """Entries of the report on what was not read."""
        assert self.reader is not None
        names = ("odd", "unread_columns", "unread_keys")
        return {name: dict(getattr(self.reader, name)) for name in names}

    def take(self, where: str, row: dict[str, Any], split: str | None, layout: RatedLayout) -> None:
        self.rows += 1
        self.pairs += 1
        try:
            found = _rated(self.reader, row, where, layout)  # type: ignore[arg-type]
        except RowProblem as problem:
            self.kinds[problem.kind] += 1
            if len(self.examples) < EXAMPLES:
                self.examples.append(problem.at(where))
            return
        self.kept.append(replace(found, split=split) if found.split is None and split is not None else found)


def _read(source: Source, config: PreferenceConfig, done: _Reading) -> RatedLayout:
    mapping = config.columns
    by_name = mapping.get("split") != ""
    located = ((where, row, split if by_name else None) for split, rows in source.parts() for where, row in rows)
    first = next(located, None)
    if first is None:
        raise DataError(f"{source.origin} holds no rows. Check that it is the file meant and is complete.")
    layout = find_rated(first[1], mapping)
    if layout is None:
        raise DataError(
            f"{source.origin} does not hold rated responses that can be found. The columns are "
            f"{', '.join(map(str, first[1])) or 'none'}; expected prompt and response (or completion), with a label of "
            "true and false, or with ratings (helpfulness, correctness, …, or ratings_NAME). Name the columns of the "
            f"data with {setting('columns', {'prompt': 'question', 'response': 'answer', 'ratings': 'clarity,tone'})}."
        )
    fields = dict(layout.fields) | {"rejected": _OTHER_COLUMN[layout.kind]}
    columns = {ours: theirs for ours, theirs in mapping.items() if ours not in ("response", "ratings")}
    done.reader = Reader(Layout(layout.kind, "", fields), columns)
    unseen = {ours: theirs for ours, theirs in columns.items() if theirs}
    for where, row, split in chain([first], located):
        unseen = {ours: theirs for ours, theirs in unseen.items() if theirs not in row} if unseen else unseen
        done.take(where, row, split, layout)
    refuse_unseen(source.origin, unseen, list(first[1]))
    refuse_unread_splits(source.origin, done.reader)
    for name in layout.ratings:
        done.reader.unread_columns.pop(name, None)
    return layout


def _rated(reader: Reader, row: dict[str, Any], where: str, layout: RatedLayout) -> RatedResponse:
    ratings = tuple(_rating(row.get(name), name, layout.thumbs) for name in layout.ratings)
    if all(map(math.isnan, ratings)):
        raise RowProblem("missing", ", ".join(layout.ratings), None)
    other = _OTHER if row.get(layout.fields.get("chosen", "")) != _OTHER else _ANOTHER
    found = list(reader.pairs(row | {reader.layout.fields["rejected"]: other}, where))
    if len(found) != 1:
        raise RowProblem("more than one reply", layout.response, row.get(layout.response))
    if isinstance(found[0], RowProblem):
        raise found[0]
    pair = found[0].preference
    return RatedResponse(
        pair.prompt, pair.chosen, ratings, pair.source, pair.category, where, pair.split, pair.tools
    )  # fmt: skip


def _rating(value: Any, name: str, thumb: bool) -> float:
    """A rating as a number, yes and no as 1 and 0; NaN for none."""
    if is_missing(value):
        return math.nan
    if isinstance(value, bool):
        return float(value)
    if isinstance(value, str) and (known := _WORDS.get(value.strip().lower())) is not None:
        return known
    number = number_of(value, name)
    if thumb and number not in (0, 1):
        raise RowProblem("not a thumb (true or false, 1 or 0)", name, value)
    return number


def _counts(layout: RatedLayout, rows: list[RatedResponse]) -> Iterator[str]:
    """What the ratings hold, in words."""
    for place, name in enumerate(layout.ratings):
        values = [row.ratings[place] for row in rows if not math.isnan(row.ratings[place])]
        if layout.thumbs:
            yield f"{name}: {sum(values):,.0f} up, {len(values) - sum(values):,.0f} down"
        elif values:
            yield f"{name}: {len(values):,} ratings from {min(values):g} to {max(values):g}"
        else:
            yield f"{name}: no ratings"
