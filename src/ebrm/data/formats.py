"""Pairs as rows hold them, each turned into (prompt, chosen, rejected), checked.

An *explicit* prompt has a column of its own, an *implicit* one is what both sides begin with; *standard* sides are
strings, *conversational* ones lists of messages (TRL's names). The layout decides what is explicit, once for the data;
strings or messages are recognized row by row.
"""

from __future__ import annotations

import ast
import io
import json
import os
import re
import tokenize
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ebrm.data.messages import (
    ROLE_NAMES,
    as_reply,
    check_messages,
    check_prompt,
    check_reply,
    check_tools,
    flat_content,
    is_message,
    messages_in,
)
from ebrm.data.schema import Message, Preference, RowProblem, check_text

COMMON_BEGINNING = "implicit prompt, standard (longest common beginning)"

Value = tuple[Any, str]  # a value, and its column's name

AS_TEXT = " (messages written as text)"

_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLE_OF = {"Human": "user", "Assistant": "assistant"}


@dataclass(frozen=True)
class Sides:
    """A pair as a row holds it.

    Attributes:
        prompt: of a column of its own; None where both sides begin with it.
        chosen, rejected: replies, or whole conversations that end in them.
        before: turns that come before the prompt: a system text, earlier questions and answers.
        tools: descriptions of tools.
    """

    prompt: Value | None
    chosen: Value
    rejected: Value
    before: tuple[Message, ...] = ()
    tools: Value | None = None


@dataclass(frozen=True)
class Extras:
    """What is kept beside a pair: None where it is not given."""

    strength: float | None = None
    source: str | None = None
    category: str | None = None
    split: str | None = None
    soft_label: float | None = None
    pair_weight: float | None = None
    reward_margin: float | None = None


def read_sides(
    sides: Sides, where: str, extras: Extras | None = None, unread: Counter[str] | None = None
) -> tuple[Preference, str]:
    """A pair as a checked preference, and its format in words; raises RowProblem for one that cannot be used.

    Keys of messages that are not read are counted in `unread`.
    """
    values = [sides.chosen, sides.rejected]
    names = (sides.chosen[1], sides.rejected[1])
    for value, name in values:
        if value is None:
            raise RowProblem("missing", name, value)
    written = [isinstance(value, str) for value, _ in values]
    chosen, rejected = (_parsed(value, name) for value, name in values)
    if sides.prompt is None:
        prompt_name = names[0]
        prompt, replies, shape = _implicit(chosen, rejected, names, unread)
    else:
        value, prompt_name = sides.prompt
        prompt, replies, shape = _explicit(value, prompt_name, chosen, rejected, names, unread)
    if any(was and not isinstance(now, str) for was, now in zip(written, (chosen, rejected), strict=True)):
        shape += AS_TEXT if AS_TEXT not in shape else ""
    prompt = _with_before(sides.before, prompt)
    chosen_reply, rejected_reply = (check_reply(reply, name) for reply, name in zip(replies, names, strict=True))
    if chosen_reply == rejected_reply:
        raise RowProblem("equal sides", names[1], rejected_reply)
    tools = check_tools(*sides.tools) if sides.tools is not None else None
    more = extras or Extras()
    checked = check_prompt(prompt, prompt_name)
    return Preference(
        checked,
        chosen_reply,
        rejected_reply,
        more.strength,
        more.source,
        more.category,
        where,
        more.split,
        tools,
        more.soft_label,
        more.pair_weight,
        more.reward_margin,
    ), shape


def _with_before(before: Sequence[Message], prompt: list[Message]) -> list[Message]:
    if not before:
        return prompt
    if before[0]["role"] == "system" and prompt[0]["role"] in ("system", "developer"):
        if prompt[0]["content"] != before[0]["content"]:
            raise RowProblem("system column and system turn disagree", "system", before[0]["content"])
        before = before[1:]
        return [prompt[0], *before, *prompt[1:]]
    return [*before, *prompt]


def _parsed(value: Any, name: str) -> Any:
    """A side with messages that are written as text (JSON, a Python repr) as the messages; else as it is."""
    if isinstance(value, str):
        found = messages_in(value, name)
        return value if found is None else found
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if _is_list(value) and value and all(isinstance(part, Mapping) and _is_part(part) for part in value):
        return flat_content(list(value), name)
    if isinstance(value, Mapping):
        return [value] if is_message(value) else check_messages(value, name, strict=False)
    return list(value) if isinstance(value, tuple) else value


def _is_part(value: Mapping[str, Any]) -> bool:
    """Whether an object is a part of a content, and no message."""
    return "type" in value and not {"role", "from"} & value.keys()


def holds_conversation(value: Any) -> bool:
    """Whether a value holds a conversation that begins before the reply: messages in any form, or a transcript."""
    try:
        found = _parsed(value, "")
    except RowProblem:
        return False
    return _transcript(found) is not None if isinstance(found, str) else _is_conversation(found)


def as_list(value: Any) -> list[Any] | None:
    """A list, also one that is written as text: JSON, Python's repr, or NumPy's of numbers; None for anything else."""
    if isinstance(value, np.ndarray):
        return list(value.tolist())
    if isinstance(value, str):
        text = value.strip()
        if not (text.startswith("[") and text.endswith("]")):
            return None
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            if re.fullmatch(r"\[[-+.\deE\s]*\]", text):
                return list(text[1:-1].split())
            found = _literal(text)
        return found if isinstance(found, list) else None
    return list(value) if isinstance(value, Sequence) and not isinstance(value, bytes) else None


def _literal(text: str) -> Any:
    """A Python literal; None if it is none, or holds strings side by side (NumPy's repr), which Python would join."""
    try:
        kinds = [token.type for token in tokenize.generate_tokens(io.StringIO(text).readline)]
        kinds = [kind for kind in kinds if kind not in (tokenize.NL, tokenize.NEWLINE)]
        joined = any(x == y == tokenize.STRING for x, y in zip(kinds, kinds[1:], strict=False))
        return None if joined else ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError, tokenize.TokenError):
        return None


def _explicit(
    prompt: Any, prompt_name: str, chosen: Any, rejected: Any, names: tuple[str, str], unread: Counter[str] | None
) -> tuple[list[Message], list[Any], str]:
    sides = (chosen, rejected)
    if _is_conversation(chosen) and _is_conversation(rejected):
        # The sides hold the whole conversation, so a prompt column can only repeat (part of) it.
        messages, replies = _split_conversations(chosen, rejected, names, unread)
        if prompt is not None and not _repeats(prompt, prompt_name, messages):
            raise RowProblem("prompt column and conversation disagree", prompt_name, prompt)
        return messages, replies, "implicit prompt, conversational (repeated in the prompt column)"
    replies = [_reply(side, name, unread) for side, name in zip(sides, names, strict=True)]
    found = _parsed(prompt, prompt_name)
    if not isinstance(found, str):
        if found is not None and not _is_list(found):
            raise RowProblem("not a string", prompt_name, prompt)
        shape = "explicit prompt, conversational" + (AS_TEXT if isinstance(prompt, str) else "")
        return check_messages(found, prompt_name, unread), replies, shape
    check_text(found, prompt_name)
    turns = _transcript(found)
    if turns is not None and turns[-1]["role"] == "assistant" and not turns[-1]["content"].strip():
        # "…\n\nAssistant:" with the reply in the other column, where the space after the colon went too.
        messages = check_messages(turns[:-1], prompt_name)
        replies = [reply.removeprefix(" ") if isinstance(reply, str) else reply for reply in replies]
        return messages, replies, "explicit prompt, standard (Human/Assistant transcripts)"
    return [{"role": "user", "content": found}], replies, "explicit prompt, standard"


def _reply(side: Any, name: str, unread: Counter[str] | None) -> Any:
    """The reply of one side: a string, or what a list of exactly one assistant message holds."""
    if not _is_list(side):
        return side
    messages = check_messages(side, name, unread)
    if len(messages) > 1:
        raise RowProblem("more than one reply message", name, side)
    if messages[0]["role"] != "assistant":
        raise RowProblem("reply is not an assistant message", name, side)
    return as_reply(messages[0])


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) or (isinstance(value, Sequence) and not isinstance(value, (str, bytes)))


def _is_conversation(side: Any) -> bool:
    """Whether a side is a message list that begins before the reply."""
    if not _is_list(side) or len(side) < 2 or not isinstance(side[0], Mapping):
        return False
    role = str(side[0].get("role", side[0].get("from"))).strip().lower()
    return ROLE_NAMES.get(role) != "assistant"


def _repeats(prompt: Any, name: str, messages: Sequence[Message]) -> bool:
    """Whether a prompt column repeats the conversation (also with a reply), or one of its user turns."""
    turns = _parsed(prompt, name)
    if isinstance(turns, str):
        return any(m["role"] == "user" and m["content"].strip() == turns.strip() for m in messages)
    if not _is_list(turns):
        return False
    told = check_messages(turns, name, strict=False)
    return told == list(messages) or (told[:-1] == list(messages) and told[-1]["role"] == "assistant")


def _implicit(
    chosen: Any, rejected: Any, names: tuple[str, str], unread: Counter[str] | None
) -> tuple[list[Message], list[Any], str]:
    if isinstance(chosen, str) and isinstance(rejected, str):
        return _implicit_text(chosen, rejected, names)
    for side, name in zip((chosen, rejected), names, strict=True):
        if not _is_list(side):
            raise RowProblem("the sides are not of one type" if isinstance(side, str) else "not a string", name, side)
    messages, replies = _split_conversations(chosen, rejected, names, unread)
    return messages, replies, "implicit prompt, conversational"


def _split_conversations(
    chosen: Any, rejected: Any, names: tuple[str, str], unread: Counter[str] | None = None
) -> tuple[list[Message], list[Any]]:
    """Both sides are conversations that differ in nothing but the last, the assistant's message."""
    sides = [check_messages(chosen, names[0], unread), check_messages(rejected, names[1], unread)]
    for side, name in zip(sides, names, strict=True):
        if side[-1]["role"] != "assistant":
            raise RowProblem("reply is not an assistant message", f"{name}[{len(side) - 1}].role", side[-1]["role"])
    if sides[0][:-1] != sides[1][:-1]:
        pairs = zip(sides[0][:-1], sides[1][:-1], strict=False)
        at = next((i for i, (x, y) in enumerate(pairs) if x != y), min(map(len, sides)) - 1)
        raise RowProblem("prompts differ between the sides", f"{names[1]}[{at}]", sides[1][at])
    if len(sides[0]) == 1:
        raise RowProblem("no user turn", names[0], chosen)
    return sides[0][:-1], [as_reply(side[-1]) for side in sides]


def _implicit_text(chosen: str, rejected: str, names: tuple[str, str]) -> tuple[list[Message], list[Any], str]:
    check_text(chosen, names[0])
    check_text(rejected, names[1])
    turns = [_transcript(chosen), _transcript(rejected)]
    if turns[0] is not None and turns[1] is not None:
        messages, texts = _split_conversations(turns[0], turns[1], names)
        return messages, texts, "implicit prompt, standard (Human/Assistant transcripts)"
    if (turns[0] is None) != (turns[1] is None):
        raise RowProblem("prompts differ between the sides", names[1], rejected)
    if chosen == rejected:
        raise RowProblem("equal sides", names[1], rejected)
    cut = prompt_end(chosen, rejected)
    if cut is None:
        raise RowProblem("no common prompt", names[0], chosen)
    prompt: list[Message] = [{"role": "user", "content": chosen[:cut]}]
    return prompt, [chosen[cut:], rejected[cut:]], COMMON_BEGINNING


def prompt_end(chosen: str, rejected: str) -> int | None:
    """Where two texts' common prompt ends: after their last common line break, else white space; None without."""
    common = os.path.commonprefix([chosen, rejected])
    for boundary in (r"\n", r"\s"):
        for match in reversed(list(re.finditer(boundary, common))):
            end = match.end()
            if common[:end].strip() and chosen[end:].strip() and rejected[end:].strip():
                return end
    return None


def _transcript(text: str) -> list[Message] | None:
    r"""The turns of an HH-RLHF transcript, "\n\nHuman: …\n\nAssistant: …"; None if the text does not begin as one."""
    marked = text if text.startswith("\n\n") else "\n\n" + text
    marks = list(_TURN.finditer(marked))
    if len(marks) < 2 or marks[0].start() != 0 or marks[0][1] != "Human":
        return None
    ends = [mark.start() for mark in marks[1:]] + [len(marked)]
    return [
        {"role": _ROLE_OF[mark[1]], "content": marked[mark.end() : end].removeprefix(" ")}
        for mark, end in zip(marks, ends, strict=True)
    ]
