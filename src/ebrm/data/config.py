"""Configuration of reading preference pairs, and of templates, special tokens and lengths."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Literal, TypeVar, get_args

from ebrm.data.labels import parse_label_map
from ebrm.errors import ConfigError, DataError, setting

BadRows = Literal["stop", "skip"]
Bos = Literal["auto", "keep", "strip"]
Eos = Literal["auto", "append", "keep"]
Truncation = Literal["error", "prompt_left", "drop", "prompt_left_or_drop"]
System = Literal["keep", "fold"]
Rendered = Literal["warn", "parse", "keep"]

# Our name for a column -> what it holds. `columns` maps these names to the names in the user's data.
COLUMN_NAMES: dict[str, str] = {
    "prompt": "the prompt: a string, a list of messages, or such a list as text",
    "chosen": "the preferred reply (or the whole conversation ending in it, or a list of replies)",
    "rejected": "the other reply (or the whole conversation ending in it, or a list of replies)",
    "a": "the first of two replies, where a label says which is better",
    "b": "the second of two replies, where a label says which is better",
    "label": "which of a and b is better: A>B, B>A, A, B, or values that `label_map` explains",
    "responses": "a list of replies, where scores or ranks beside it say which are better",
    "scores": "a list of the responses' scores, higher is better",
    "ranks": "a list of the responses' ranks, lower is better",
    "response": "one reply, where ratings beside it are fitted on (heads binary and attributes)",
    "ratings": "the ratings of the response: the names of their columns, with commas between them",
    "input": "a text that goes behind the prompt, on a new line",
    "system": "a system text that comes before the prompt",
    "tools": "descriptions of the tools that the prompt offers",
    "strength": "how strongly the preference was felt (a number, any unit; also read from `margin`)",
    "source": "where the row comes from",
    "category": "what kind of row it is; reports are broken down by it",
    "split": "train, validation, test, …",
    "soft_label": "the probability that the preferred reply is the better one, 0 to 1; 0.5 is a tie",
    "pair_weight": "a factor of the pair's loss, 0 or more",
    "reward_margin": "the difference of rewards that the loss asks for, in reward units; it may be negative",
}
# Columns that may be mapped to "", which leaves them unread; without a prompt it is what both sides begin with.
OPTIONAL_COLUMNS = (
    "prompt", "input", "system", "tools", "strength", "source", "category", "split", "soft_label", "pair_weight",
    "reward_margin",
)  # fmt: skip


def check_columns(columns: Mapping[str, str], ours: Sequence[str], seen: Sequence[str], origin: str) -> None:
    """Check {our name: the file's}: ConfigError for a name that is not ours, DataError for a column not there."""
    for name, theirs in columns.items():
        if name not in ours:
            raise ConfigError(
                f"columns has {name}={theirs}, but {name!r} is not one of our names ({', '.join(ours)}). Write our "
                f"name first: {setting('columns', {ours[0]: theirs})}."
            )
        if theirs not in seen:
            near = difflib.get_close_matches(theirs, seen, n=1)
            raise DataError(
                f"columns has {name}={theirs}, but {origin} has no column {theirs!r}. "
                + (f"Did you mean {near[0]!r}? " if near else "")
                + f"Its columns: {', '.join(map(str, seen)) or 'none'}."
            )


@dataclass(frozen=True)
class PreferenceConfig:
    """Reading of preference pairs: split, column names, labels, bad rows, limit.

    Attributes:
        split: Split to read. Unset: `train` of a Hub data set, every row of local data. Set: that split of a Hub data
            set, the local rows whose `split` column holds this name, or the files of that split.
        columns: Where a column has another name in the data: our name = its name (prompt=question, a=response_A,
            b=response_B, label=label). Our names: prompt, chosen, rejected, a, b, label, responses, scores, ranks,
            response, ratings, input, system, tools, strength, source, category, split, soft_label, pair_weight,
            reward_margin. The last ten and prompt may be left unread (split=).
        label_map: What the values of a label say: value = a, b or tie (1=a, 0=b); for a scale, comparisons (<0=a,
            >0=b, 0=tie). Unset: words such as A>B and model_a, and the conventions of known layouts.
        bad_rows: Rows that cannot be used: `stop` and list them, or `skip` and count them.
        limit: Keep at most this many rows, chosen prompt by prompt with a fixed hash. A prompt's rows stay together,
            and at least one prompt is kept. Unset: all.

    Raises:
        ConfigError: a value outside its range, or a column name that is not one of `COLUMN_NAMES`.
    """

    split: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    label_map: dict[str, str] = field(default_factory=dict)
    bad_rows: BadRows = "stop"
    limit: int | None = None

    def __post_init__(self) -> None:
        _one_of("bad_rows", self.bad_rows, BadRows)
        _mapping("columns", self.columns, {"prompt": "question"})
        _mapping("label_map", self.label_map, {"1": "a", "0": "b"})
        if self.split is not None and not isinstance(self.split, str):
            raise ConfigError(f"split is {self.split!r}; one name was expected, as in {setting('split', 'train')}.")
        _whole("limit", self.limit, "rows")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit is {self.limit} rows; it must be at least 1 (leave it unset to read all).")
        for ours, theirs in self.columns.items():
            if ours not in COLUMN_NAMES:
                raise ConfigError(
                    f"columns has {ours}={theirs}, but {ours!r} is not one of our column names "
                    f"({', '.join(COLUMN_NAMES)}). Our name comes first: {setting('columns', {'prompt': 'question'})}."
                )
            if not isinstance(theirs, str):
                raise ConfigError(
                    f"columns has {ours}={theirs!r}; the name of a column was expected, as in "
                    f"{setting('columns', {'prompt': 'question'})}."
                )
            if theirs == "" and ours not in OPTIONAL_COLUMNS:
                raise ConfigError(
                    f"columns has {ours}= with no name; only {', '.join(OPTIONAL_COLUMNS)} can be left unread."
                )
        parse_label_map(self.label_map)


@dataclass(frozen=True)
class TextConfig:
    """Text rule: chat template, special tokens, truncation, longest text.

    Attributes:
        template: Chat template. Unset (or `auto`): the tokenizer's own if it has one, else the plain format. `plain`
            forces the plain format; anything else is a Jinja template's source.
        template_kwargs: Arguments passed to the chat template (enable_thinking=false).
        bos: Start-of-text token. `auto`: exactly one where the tokenizer uses one; `keep`: as the template and
            tokenizer give it; `strip`: none.
        eos: End-of-text token. `auto` and `keep`: as the template and tokenizer give it; `append`: the text ends with
            exactly one.
        truncation: Texts over max_length: `error` stops and names the text, `prompt_left` cuts the prompt's beginning
            (never the response), `drop` leaves the row out and counts it, `prompt_left_or_drop` cuts where that is
            enough and drops the rest. Unset: error, but drop for the `demo` model, which takes 512 tokens only.
        max_length: Longest text, in tokens. Unset: the model's own limit.
        date: The day (2026-12-31) for chat templates that write today's date. Unset: the day on which the text rule is
            made; either is stored, and used ever after. `today`: each day's own, so that rewards change with the day.
        system: System turns. `keep`: as they are; `fold`: their text goes before the user's turn that follows, for
            chat templates that refuse them.
        rendered: Prompts and replies that went through a chat template before (they hold its special tokens). `warn`:
            read as they stand, and counted; `parse`: their turns are taken apart; `keep`: as they stand.

    Raises:
        ConfigError: a value outside its range.
    """

    template: str | None = None
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    bos: Bos = "auto"
    eos: Eos = "auto"
    truncation: Truncation | None = None
    max_length: int | None = None
    date: str | None = None
    system: System = "keep"
    rendered: Rendered = "warn"

    def __post_init__(self) -> None:
        if self.template == "auto":
            object.__setattr__(self, "template", None)
        _mapping("template_kwargs", self.template_kwargs, {"enable_thinking": False})
        _whole("max_length", self.max_length, "tokens")
        _one_of("bos", self.bos, Bos)
        _one_of("eos", self.eos, Eos)
        if self.truncation is not None:
            _one_of("truncation", self.truncation, Truncation)
        if self.max_length is not None and self.max_length < 1:
            raise ConfigError(f"max_length is {self.max_length} tokens; it must be at least 1.")
        _one_of("system", self.system, System)
        _one_of("rendered", self.rendered, Rendered)
        if self.date not in (None, "today") and not _is_day(self.date):
            raise ConfigError(f"date is {self.date!r}; a day was expected, such as {setting('date', '2026-12-31')}.")


def _is_day(text: object) -> bool:
    try:
        return date.fromisoformat(str(text)).isoformat() == text
    except ValueError:
        return False


Config = TypeVar("Config")


def given_config(name: str, value: Any, kind: type[Config]) -> Config:
    """A configuration as it was given, the default one for None; ConfigError for anything else."""
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise ConfigError(f"`{name}` is {value!r}; a {kind.__name__} was expected, as in {name}={kind.__name__}(…).")
    return value


def _mapping(name: str, value: object, example: dict[str, Any]) -> None:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name} is {value!r}; names with values were expected, as in {setting(name, example)}.")


def _whole(name: str, value: object, unit: str) -> None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise ConfigError(f"{name} is {value!r}; a whole number of {unit} was expected.")


def _one_of(name: str, value: object, choices: Any) -> None:
    allowed = get_args(choices)
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}.")
