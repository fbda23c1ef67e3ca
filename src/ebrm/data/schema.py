"""Schema of preference pairs: the checked pair, checks of its fields (RowProblem), and the report of a reading."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from typing import Any

from ebrm.utils.files import sha256_json

Message = dict[str, Any]  # {"role": "user", "content": "…"}, and what `ebrm.data.messages` lets go with it
Reply = str | Message  # the text, or the assistant's message where it holds more than text
#: A prompt: a string (one user turn), messages that end in a user's turn, or {"messages": …, "tools": …}.
Prompt = str | Sequence[Message] | Mapping[str, Any]

EXAMPLES = 5  # bad rows shown in full

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 72
_short.maxlist = _short.maxdict = _short.maxlevel = 3


@dataclass(frozen=True, slots=True)
class Preference:
    """One checked pair: to `prompt`, `chosen` is the better reply and `rejected` the other.

    Attributes:
        prompt: The conversation up to the reply; ends in a user (or tool) turn.
        chosen, rejected: Replies that differ, not blank, byte for byte as in the data: a string, or the assistant's
            message where it holds tool calls or reasoning besides its content.
        strength: How strongly the preference was felt, finite, in the data's own unit; None if not given.
        source, category, split: None if not given.
        row: Where it was read: `file.jsonl:12` (line or row, from 1) or `rows[11]` (from 0).
        tools: Descriptions of the tools that the prompt offers; None for none.
        soft_label: Probability that `chosen` is better; None if not given, which is 1.
        pair_weight: Factor of the pair's loss, 0 or more; None for 1.
        reward_margin: Difference of rewards that the loss asks for, in reward units; None for 0.
    """

    prompt: tuple[Message, ...]
    chosen: Reply
    rejected: Reply
    strength: float | None
    source: str | None
    category: str | None
    row: str
    split: str | None
    tools: tuple[dict[str, Any], ...] | None = None
    soft_label: float | None = None
    pair_weight: float | None = None
    reward_margin: float | None = None

    @property
    def asked(self) -> Prompt:
        """The prompt in the form that texts are read in: its messages, with the tools if there are any."""
        return with_tools(self.prompt, self.tools)

    @property
    def prompt_id(self) -> str:
        """The first 16 hexadecimal digits of the SHA-256 of the prompt's canonical JSON, tools included."""
        return prompt_id(self.prompt, self.tools)


def with_tools(prompt: Sequence[Message], tools: Sequence[dict[str, Any]] | None) -> Prompt:
    """A prompt with its tools, as reward models take it: the messages alone where there are none."""
    return {"messages": prompt, "tools": tools} if tools else prompt


def prompt_id(prompt: Sequence[Message], tools: Sequence[dict[str, Any]] | None = None) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a message list's canonical JSON, with its tools if any."""
    return sha256_json({"messages": list(prompt), "tools": list(tools)} if tools else list(prompt))[:16]


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used.

    Attributes:
        where: `file:row`.
        field: The column (and the place in it), such as `chosen[1].content`.
        value: Its value, shortened.
        kind: The kind of problem, in a few fixed words.
    """

    where: str
    field: str
    value: str
    kind: str

    def __str__(self) -> str:
        return f"{self.where}, {self.field}: {self.kind}, {self.value}"


@dataclass(frozen=True)
class LabelCounts:
    """What the values of a label were read as, and how often each was there.

    Attributes:
        column: the column (or columns) of the label.
        source: where the rule comes from: `label_map`, the name of a known layout, or "" for words that say it.
        sides: the columns of a and b.
        meaning: value → a, b or tie.
        counts: value → rows.
    """

    column: str
    source: str
    sides: tuple[str, str]
    meaning: dict[str, str]
    counts: dict[str, int]

    def __str__(self) -> str:
        said = dict(zip("ab", (f"{side} better" for side in self.sides), strict=True)) | {"tie": "a tie"}
        values = (f"{value} -> {said[self.meaning[value]]} ({count:,})" for value, count in self.counts.items())
        return f"{self.column!r}{f', read as {self.source}' if self.source else ''}: {', '.join(values)}"


@dataclass(frozen=True)
class PreferenceReport:
    """Counts of a reading, its format and the rows left out: `pairs = kept + skipped + ties + limited`.

    Attributes:
        origin: The source's name in messages.
        format: The detected format, such as "explicit prompt, conversational".
        read, kept: Rows of the chosen split, and pairs in the result.
        skipped: Bad rows by kind.
        examples: The first five bad rows.
        duplicates: Kept pairs that repeat an earlier one exactly: two annotators who agree are two observations.
        limited: Good pairs left out by `limit`.
        layout: The layout that was recognized, and the columns that it reads.
        pairs: Pairs that the rows hold: one a row, more where it has several responses. Unset: as many as rows.
        ties: Rows whose label, scores or ranks prefer no reply; they are left out.
        labels: What the values of the label were read as, and their counts; None without a label.
        splits: Kept pairs by the name of their split, "" for none.
        odd: Optional values that were left out, by what was odd: `{"margin not a number": 1}`.
        unread_columns: Columns that were not read, and in how many rows each holds something.
        unread_keys: Keys of messages and responses that were not read, and how often each was there.
        unread_files: Files of a folder that were not read, since others are named as splits and they are not.
        lengths: Least, median and most characters of the kept prompts and replies.
    """

    origin: str
    format: str
    read: int
    kept: int
    skipped: dict[str, int]
    examples: tuple[BadRow, ...]
    duplicates: int
    limited: int = 0
    layout: str = ""
    pairs: int | None = None
    ties: int = 0
    labels: LabelCounts | None = None
    splits: dict[str, int] = field(default_factory=dict)
    odd: dict[str, int] = field(default_factory=dict)
    unread_columns: dict[str, int] = field(default_factory=dict)
    unread_keys: dict[str, int] = field(default_factory=dict)
    unread_files: tuple[str, ...] = ()
    lengths: dict[str, tuple[int, int, int]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        lists = {"examples": [dataclasses.asdict(row) for row in self.examples], "unread_files": [*self.unread_files]}
        lists |= {"lengths": {name: [*three] for name, three in self.lengths.items()}}
        labels = self.labels and dataclasses.asdict(self.labels) | {"sides": [*self.labels.sides]}
        return dataclasses.asdict(self) | lists | {"labels": labels}

    def summary(self) -> str:
        """The report in one line: what was read and how, and all that was left out or not read."""
        if self.pairs in (None, self.read):
            text = f"{self.origin}: {self.kept:,} of {self.read:,} rows kept ({self.format})"
        else:
            text = f"{self.origin}: {self.kept:,} pairs kept of {self.pairs:,} in {self.read:,} rows ({self.format})"
        if self.layout not in ("", "prompt, chosen, rejected", "chosen, rejected"):
            text += f"; read as {self.layout}"
        if self.labels is not None:
            text += f"; label {self.labels}"
        if self.ties:
            text += f"; {self.ties:,} ties left out"
        if self.skipped:
            text += f"; {sum(self.skipped.values()):,} skipped ({count_kinds(self.skipped)})"
        for what, rows in self.odd.items():
            text += f"; {what} in {rows:,} {'row' if rows == 1 else 'rows'} (left out)"
        if self.limited:
            text += f"; {self.limited:,} beyond the limit"
        if self.duplicates:
            text += f"; {self.duplicates:,} exact repeats among the kept"
        if set(self.splits) - {""}:
            text += f"; splits: {', '.join(f'{name or None} {count:,}' for name, count in self.splits.items())}"
        for what, counts in (("columns", self.unread_columns), ("keys", self.unread_keys)):
            if counts:
                text += f"; {what} not read: {', '.join(f'{name} ({count:,})' for name, count in counts.items())}"
        if self.unread_files:
            text += f"; files not read, of no split: {', '.join(self.unread_files)}"
        return text


@dataclass(frozen=True)
class Preferences:
    """Checked pairs in the order read, and the report of their reading."""

    rows: tuple[Preference, ...]
    report: PreferenceReport

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Preference]:
        return iter(self.rows)

    def __getitem__(self, index: int) -> Preference:
        return self.rows[index]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (64 hexadecimal digits) of the rows' contents in order; where they were read does not count."""
        digest = hashlib.sha256()
        for r in self.rows:
            content: list[Any] = [list(r.prompt), r.chosen, r.rejected, r.strength, r.source, r.category, r.split]
            content += [list(r.tools)] if r.tools else []
            of_loss = {"soft_label": r.soft_label, "pair_weight": r.pair_weight, "reward_margin": r.reward_margin}
            content += [of_loss] if any(value is not None for value in of_loss.values()) else []
            text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
            digest.update(text.encode("utf-8", "surrogatepass") + b"\n")
        return digest.hexdigest()


class RowProblem(ValueError):
    """One row cannot be used: the kind of problem, the field and its value. Never leaves this package."""

    def __init__(self, kind: str, field: str, value: object) -> None:
        super().__init__(f"{field}: {kind}")
        self.kind, self.field, self.value = kind, field, value

    def at(self, where: str) -> BadRow:
        """The problem as a row of the report."""
        return BadRow(where, self.field, shorten(self.value), self.kind)


def shorten(value: object) -> str:
    """A value's repr, cut in the middle to at most 72 characters a string."""
    return _short.repr(value)


def count_kinds(kinds: dict[str, int]) -> str:
    """`12 empty, 3 equal sides`, most frequent first."""
    return ", ".join(f"{count:,} {kind}" for kind, count in sorted(kinds.items(), key=lambda kc: (-kc[1], kc[0])))


def check_text(value: object, field: str) -> str:
    """A string that is not blank and has a UTF-8 form, with all its characters (null bytes, emoji, …)."""
    if value is None:
        raise RowProblem("missing", field, value)
    if not isinstance(value, str):
        raise RowProblem("not a string", field, value)
    if not value.strip():
        raise RowProblem("empty", field, value)
    return check_encodable(value, field)


def check_encodable(value: str, field: str) -> str:
    r"""A string without lone surrogates (halves of emoji, of a cut or a broken `\ud83d`), which tokenizers refuse."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise RowProblem("lone surrogate", field, value) from None
    return value


def is_missing(value: object) -> bool:
    """Whether a value stands for none: None, "", or NaN, which tables write where nothing is."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def number_of(value: object, field: str) -> float:
    """A finite number, also as a numeral (CSV)."""
    try:
        if isinstance(value, bool) or not isinstance(value, (int, float, str, Decimal)):
            raise ValueError
        number = float(value)
    except (ValueError, OverflowError):
        raise RowProblem("not a number", field, value) from None
    if not math.isfinite(number):
        raise RowProblem("not finite", field, value)
    return number


def name_of(value: object, field: str) -> str:
    """A name (source, category, split): a string, or a number as its numeral (1.0, of a column with gaps, is "1")."""
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value == int(value) else repr(value)
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, str):
        raise RowProblem("not a name", field, value)
    return check_encodable(value, field)
