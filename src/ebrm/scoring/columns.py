"""Columns of a file to score: one response a row, several to one prompt, or the two sides of a preference pair.

Prompts and replies are read by the rules of `ebrm.data`, so a text is scored in the form it was fitted in. An empty
reply is a text like any other here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ebrm.data import (
    COLUMN_NAMES,
    Message,
    Prompt,
    Reader,
    Reply,
    RowProblem,
    Sides,
    as_list,
    as_reply,
    check_columns,
    check_messages,
    check_prompt,
    check_text,
    check_tools,
    find_layout,
    is_missing,
    messages_in,
    read_sides,
    refuse_media,
    with_tools,
)
from ebrm.errors import DataError, setting

Kind = Literal["response", "responses", "messages", "pair"]

#: Our name for a column of rows to score -> what it holds.
SCORE_COLUMNS: dict[str, str] = {
    "response": "the reply to score (with prompt)",
    "responses": "a list of replies to score (with prompt)",
    "messages": "a conversation that ends in the reply to score",
    **{name: COLUMN_NAMES[name] for name in ("prompt", "system", "tools", "chosen", "rejected", "a", "b", "label")},
}

# Put behind an empty reply while it is read: a reply that is fitted on must not be empty, one that is scored may be.
_FILL = "\ue000"
_UNANSWERED = re.compile(r"\n\nAssistant:\s*\Z")


@dataclass(frozen=True)
class Side:
    """One text to score."""

    prompt: tuple[Message, ...]
    response: Reply
    tools: tuple[dict[str, Any], ...] | None = None

    @property
    def asked(self) -> Prompt:
        """The prompt with its tools, as the reward model takes it."""
        return with_tools(self.prompt, self.tools)

    @property
    def is_empty(self) -> bool:
        """Whether the response is an empty text."""
        return isinstance(self.response, str) and not self.response.strip()


@dataclass(frozen=True)
class Shape:
    """How the columns of a file hold what is to be scored.

    Attributes:
        kind: "response" (with prompt), "responses" (a list of them), "messages" (a conversation that ends in the
            response) or "pair".
        columns: our name → the file's.
        reader: of a pair's rows, by the layout of their columns.
    """

    kind: Kind
    columns: Mapping[str, str]
    reader: Reader | None = None

    @property
    def prefixes(self) -> tuple[str, ...]:
        """Prefix of the added columns of each side."""
        return ("chosen_", "rejected_") if self.kind == "pair" else ("",)

    def side(self, number: int) -> str:
        """What the text `number` of a row is called where it cannot be scored."""
        if self.kind == "responses":
            return f"{self.columns['responses']}[{number}]"
        return self.prefixes[number].removesuffix("_") or "text"

    def sides(self, row: Mapping[str, Any], where: str) -> tuple[Side | RowProblem, ...]:
        """The texts of a row, of a list also what is wrong with one; RowProblem if there are none to score."""
        if self.kind == "pair":
            return self._pair(row, where)
        refuse_media(row, self.columns.values())
        if self.kind == "messages":
            name = self.columns["messages"]
            given, filled = _filled(row.get(name))
            messages = check_messages(given, name)
            if messages[-1]["role"] != "assistant":
                raise RowProblem("does not end in an assistant message", name, messages[-1])
            reply = as_reply(messages[-1])
            prompt = check_prompt(messages[:-1] or [messages[0]], name)
            return (Side(prompt, _unfilled(reply) if filled else reply, self._tools(row)),)
        if self.kind == "response":
            name = self.columns["response"]
            return (self._reply(row, row.get(name), name, where),)
        name = self.columns["responses"]
        given = as_list(row.get(name))
        if given is None:
            raise RowProblem("missing" if row.get(name) is None else "not a list", name, row.get(name))
        if not given:
            raise RowProblem("empty list", name, given)
        self._reply(row, "-", name, where)  # a prompt that cannot be read is wrong for all of them
        sides: list[Side | RowProblem] = []
        for number, reply in enumerate(given):
            try:
                sides.append(self._reply(row, reply, self.side(number), where))
            except RowProblem as problem:
                sides.append(problem)
        return tuple(sides)

    def _reply(self, row: Mapping[str, Any], reply: Any, name: str, where: str) -> Side:
        # Read as a pair whose other side is made up: prompts that are transcripts or JSON, and replies that are
        # message lists, are then taken apart exactly as in fitting.
        reply, filled = _filled([reply] if isinstance(reply, Mapping) else reply)
        if not isinstance(reply, list):
            check_text(reply, name)
        prompt = (row.get(self.columns["prompt"]), self.columns["prompt"])
        pair = Sides(prompt, (reply, name), ("-" if reply != "-" else "--", "the other reply"), self._system(row))
        preference, _ = read_sides(pair, where)
        return Side(preference.prompt, _unfilled(preference.chosen) if filled else preference.chosen, self._tools(row))

    def _system(self, row: Mapping[str, Any]) -> tuple[Message, ...]:
        name = self.columns.get("system")
        if name is None or is_missing(row.get(name)) or row[name] == "":
            return ()
        return ({"role": "system", "content": check_text(row[name], name)},)

    def _tools(self, row: Mapping[str, Any]) -> tuple[dict[str, Any], ...] | None:
        name = self.columns.get("tools")
        return None if name is None else check_tools(row.get(name), name)

    def _pair(self, row: Mapping[str, Any], where: str) -> tuple[Side, ...]:
        assert self.reader is not None
        texts = dict(row)
        empty = False
        for ours in {"chosen", "rejected", "a", "b"} & self.columns.keys():
            name = self.columns[ours]
            texts[name], filled = _filled(texts.get(name), whole=self.reader.layout.implicit)
            empty |= filled
        found = list(self.reader.pairs(texts, where))
        if len(found) != 1:
            name = self.columns.get("label") or self.columns.get("rejected", "")
            raise RowProblem("several pairs in one row" if found else "tie", name, row.get(name))
        if isinstance(found[0], RowProblem):
            raise found[0]
        pair = found[0].preference
        replies = (_unfilled(one) if empty else one for one in (pair.chosen, pair.rejected))
        return tuple(Side(pair.prompt, one, pair.tools) for one in replies)


def _filled(reply: Any, whole: bool = False) -> tuple[Any, bool]:
    """A reply with a mark behind it if it is empty, and whether it is.

    Text, messages that end in it (in any form), or, if it holds the `whole` conversation, a transcript.
    """
    text = isinstance(reply, str)
    try:
        messages = check_messages(messages_in(reply) if text else reply, "", strict=False)
    except RowProblem:  # no messages, or some whose fault is told where they are read
        messages = []
    if messages and messages[-1]["role"] == "assistant" and Side((), as_reply(messages[-1])).is_empty:
        messages[-1] = {"role": "assistant", "content": messages[-1]["content"] + _FILL}
        return json.dumps(messages) if text else messages, True
    if text and not messages and (_UNANSWERED.search(reply) is not None if whole else not reply.strip()):
        return reply + _FILL, True
    return reply, False


def _unfilled(reply: Reply) -> Reply:
    return reply.removesuffix(_FILL) if isinstance(reply, str) else reply


def find_shape(
    seen: Collection[str], mapping: Mapping[str, str], path: str, label_map: Mapping[str, str] | None = None
) -> Shape:
    """Decide by the columns what a file holds: `seen` are their names, or a value of each; `mapping` is {ours: its}."""
    row = seen if isinstance(seen, Mapping) else dict.fromkeys(seen)
    check_columns(mapping, list(SCORE_COLUMNS), list(seen), path)
    names = {ours: mapping.get(ours, ours) for ours in SCORE_COLUMNS}
    there = {ours: name for ours, name in names.items() if name in seen}
    if "system" not in there and "system_prompt" in seen:
        there["system"] = "system_prompt"
    for kind in ("response", "responses"):
        if {"prompt", kind} <= there.keys() and not (kind == "response" and "responses" in mapping):
            return Shape(kind, {ours: there[ours] for ours in ("prompt", kind, "system", "tools") if ours in there})
    layout = find_layout(row, {ours: name for ours, name in mapping.items() if ours in COLUMN_NAMES}, label_map or {})
    if layout is not None and layout.kind not in ("responses", "rated"):
        return Shape("pair", dict(layout.fields), Reader(layout, {}))
    if "messages" in there:
        return Shape("messages", {ours: there[ours] for ours in ("messages", "tools") if ours in there})
    raise DataError(
        f"{path} has the columns {', '.join(map(str, seen)) or '(none)'}, and nothing in them to score. "
        "Expected prompt and response, or prompt and a list of responses, or messages that end in the assistant's, or "
        "chosen and rejected (with or without prompt). "
        f"Name yours: {setting('columns', {'prompt': 'question', 'response': 'answer'})}."
    )
