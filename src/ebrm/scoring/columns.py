"""Columns of a file to score: one response a row, or the two sides of a preference pair.

Prompts and replies are read by the rules of `ebrm.data`, so a text is scored in the form it was fitted in.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ebrm.data import (
    COLUMN_NAMES,
    Columns,
    Message,
    Reply,
    RowProblem,
    as_reply,
    check_messages,
    check_prompt,
    check_text,
    read_preference,
)
from ebrm.errors import ConfigError, DataError, setting

Kind = Literal["response", "messages", "pair"]

#: Our name for a column of rows to score -> what it holds.
SCORE_COLUMNS: dict[str, str] = {
    "response": "the reply to score (with prompt)",
    "messages": "a conversation that ends in the reply to score",
    **{name: COLUMN_NAMES[name] for name in ("prompt", "chosen", "rejected", "a", "b", "label")},
}

# The other side of the pair that a single response is read as; it is never scored.
_OTHER = "\0other"


@dataclass(frozen=True)
class Side:
    """One text to score."""

    prompt: tuple[Message, ...]
    response: Reply


@dataclass(frozen=True)
class Shape:
    """How the columns of a file hold what is to be scored.

    Attributes:
        kind: "response" (with prompt), "messages" (a conversation that ends in the response) or "pair".
        columns: our name → the file's.
        layout: how a pair's columns name its sides (`ebrm.data.Columns.layout`).
    """

    kind: Kind
    columns: Mapping[str, str]
    layout: Any = None

    @property
    def prefixes(self) -> tuple[str, ...]:
        """Prefix of the added columns of each side."""
        return ("chosen_", "rejected_") if self.kind == "pair" else ("",)

    def sides(self, row: Mapping[str, Any], where: str) -> tuple[Side, ...]:
        """The texts of a row; RowProblem if there are none to score."""
        if self.kind == "pair":
            return self._pair(row, where)
        if self.kind == "messages":
            name = self.columns["messages"]
            messages = check_messages(_from_json(row.get(name)), name)
            if messages[-1]["role"] != "assistant":
                raise RowProblem("does not end in an assistant message", name, messages[-1])
            return (Side(check_prompt(messages[:-1] or [messages[0]], name), as_reply(messages[-1])),)
        # Read as a pair whose other side is made up: prompts that are transcripts or JSON, and replies that are
        # message lists, are then taken apart exactly as in fitting.
        name = self.columns["response"]
        response = row.get(name)
        check_text(response, name) if not isinstance(response, list) else None
        other = "-" if response != "-" else "--"
        columns = Columns({"prompt": self.columns["prompt"], "chosen": name, "rejected": _OTHER})
        pseudo = {self.columns["prompt"]: row.get(self.columns["prompt"]), name: response, _OTHER: other}
        preference, _ = read_preference(pseudo, where, columns, "explicit")
        return (Side(preference.prompt, preference.chosen),)

    def _pair(self, row: Mapping[str, Any], where: str) -> tuple[Side, ...]:
        columns = Columns({ours: theirs for ours, theirs in self.columns.items() if ours in COLUMN_NAMES})
        # Only the texts matter here: a row with an odd margin or category can still be scored.
        texts = {name: row.get(name) for ours, name in self.columns.items() if ours in SCORE_COLUMNS}
        preference, _ = read_preference(texts, where, columns, self.layout)
        return Side(preference.prompt, preference.chosen), Side(preference.prompt, preference.rejected)


def _from_json(value: Any) -> Any:
    """A message list written as a JSON string (CSV has nothing else); any other value as it is."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def find_shape(seen: Sequence[str], mapping: Mapping[str, str], path: str) -> Shape:
    """Decide by the columns what a file holds; `mapping` is {our name: the file's}."""
    for ours, theirs in mapping.items():
        if ours not in SCORE_COLUMNS:
            raise ConfigError(
                f"columns has {ours}={theirs}, but {ours!r} is not one of our names ({', '.join(SCORE_COLUMNS)}). "
                f"Write our name first: {setting('columns', {'response': 'answer'})}."
            )
        if theirs not in seen:
            near = difflib.get_close_matches(theirs, seen, n=1)
            raise DataError(
                f"columns has {ours}={theirs}, but {path} has no column {theirs!r}. "
                + (f"Did you mean {near[0]!r}? " if near else "")
                + f"Its columns: {', '.join(map(str, seen))}."
            )
    names = {ours: mapping.get(ours, ours) for ours in SCORE_COLUMNS}
    there = {ours: name for ours, name in names.items() if name in seen}
    if {"prompt", "response"} <= there.keys():
        return Shape("response", {ours: there[ours] for ours in ("prompt", "response")})
    layout = Columns({ours: name for ours, name in there.items() if ours in COLUMN_NAMES}).layout(
        dict.fromkeys(map(str, seen))
    )
    if layout is not None:
        wanted = ("prompt", "a", "b", "label") if layout == "labeled" else ("prompt", "chosen", "rejected")
        return Shape("pair", {ours: there[ours] for ours in wanted if ours in there}, layout)
    if "messages" in there:
        return Shape("messages", {"messages": there["messages"]})
    raise DataError(
        f"{path} has the columns {', '.join(map(str, seen)) or '(none)'}, and nothing in them to score. "
        "Expected prompt and response, or messages that end in the assistant's, or chosen and rejected "
        f"(with or without prompt). Name yours: {setting('columns', {'prompt': 'question', 'response': 'answer'})}."
    )
