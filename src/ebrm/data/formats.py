"""Formats of preference pairs (TRL's names), each turned into (prompt, chosen, rejected).

An *explicit* prompt has a column of its own, an *implicit* one is what both sides begin with; *standard* sides are
strings, *conversational* ones lists of messages. The columns decide what is explicit, once for the data; strings or
messages are recognized row by row.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ebrm.data.messages import as_reply, check_messages, check_prompt, check_reply
from ebrm.data.schema import Message, Preference, RowProblem, check_name, check_strength, check_text
from ebrm.errors import setting

Layout = Literal["explicit", "implicit", "labeled"]

# Names under which a column is looked for when it is not mapped.
_ALIASES = {"strength": ("strength", "margin")}

# Names other data sets use, only to suggest a mapping.
_USUAL = {
    "prompt": "question instruction query input conversation_input context",
    "chosen": "chosen_response response_chosen preferred winner_response best positive",
    "rejected": "rejected_response response_rejected reject dispreferred loser_response negative",
    "a": "response_a answer_a completion_a output_a response_0 response_1 response1 answer_0",
    "b": "response_b answer_b completion_b output_b response_1 response_2 response2 answer_1",
    "label": "label preference winner better better_response_id overall_preference",
}
_USUAL_NAMES = {ours: tuple(names.split()) for ours, names in _USUAL.items()}

USUAL_PROMPT_NAMES = _USUAL_NAMES["prompt"]
COMMON_BEGINNING = "implicit prompt, standard (longest common beginning)"

_BETTER_A = {"a>b", "a>>b", "a", "0", "0.0", "model_a", "response_a"}
_BETTER_B = {"b>a", "b>>a", "b", "1", "1.0", "model_b", "response_b"}
_TIE = {"a=b", "b=a", "tie", "ties", "tie (bothbad)", "both", "neither", "none"}

_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLE_OF = {"Human": "user", "Assistant": "assistant"}


class Columns:
    """Columns of the data that hold our fields."""

    def __init__(self, mapping: Mapping[str, str]) -> None:
        self.mapping = dict(mapping)

    def name(self, ours: str, row: Mapping[str, Any]) -> str | None:
        """The name of our field in this row, or None if the row does not have it."""
        names = (self.mapping[ours],) if ours in self.mapping else _ALIASES.get(ours, (ours,))
        return next((name for name in names if name in row), None)

    def get(self, ours: str, row: Mapping[str, Any]) -> tuple[Any, str]:
        """The value of our field and its name in this row; (None, our name) if the row does not have it."""
        name = self.name(ours, row)
        return (None, self.mapping.get(ours, ours)) if name is None else (row[name], name)

    def layout(self, row: Mapping[str, Any]) -> Layout | None:
        """How this row's columns hold a preference; None if they do not."""
        has = {ours for ours in ("prompt", "chosen", "rejected", "a", "b", "label") if self.name(ours, row)}
        labeled = {"prompt", "a", "b", "label"} <= has
        if labeled and not {"a", "b", "label"}.isdisjoint(self.mapping):
            return "labeled"  # as mapped, whatever other columns there are
        if {"chosen", "rejected"} <= has:
            return "explicit" if "prompt" in has else "implicit"
        return "labeled" if labeled else None

    def explain(self, seen: Sequence[str]) -> str:
        """Sentence for an error: columns seen, columns expected, and how to map them."""
        lower = {str(name).lower(): str(name) for name in seen}
        labeled = {"a", "b"} & self.mapping.keys() or any(name in lower for name in _USUAL_NAMES["a"])
        guesses: dict[str, str] = {}
        taken: set[str] = set()
        for ours in ("prompt", "a", "b", "label") if labeled else ("prompt", "chosen", "rejected"):
            if ours not in self.mapping and ours in seen:
                continue
            names = [self.mapping.get(ours, ""), *_USUAL_NAMES[ours]]
            guess = next((lower[n.lower()] for n in names if n.lower() in lower.keys() - taken), None)
            if guess is not None:
                taken.add(guess.lower())
                guesses[ours] = guess
        absent = [f"{ours}={theirs}" for ours, theirs in self.mapping.items() if theirs not in seen]
        mapped = f" The mapping names columns that are not there: {', '.join(absent)}." if absent else ""
        return (
            f"The columns are {', '.join(map(str, seen)) or 'none'}; expected prompt, chosen and rejected (the prompt "
            "may also be the common beginning of chosen and rejected), or prompt, a, b and label."
            f"{mapped} Name the columns of the data with {setting('columns', guesses or {'prompt': 'question'})}."
        )


def read_preference(row: Mapping[str, Any], where: str, columns: Columns, layout: Layout) -> tuple[Preference, str]:
    """One row as a checked preference, and its format in words; raises RowProblem for a row that cannot be used."""
    prompt_value, prompt_name = columns.get("prompt", row)
    sides = (
        _by_label(row, columns) if layout == "labeled" else (columns.get("chosen", row), columns.get("rejected", row))
    )
    (chosen, chosen_name), (rejected, rejected_name) = sides
    if layout == "implicit" and prompt_value is not None:
        raise RowProblem("prompt in some rows only", prompt_name, prompt_value)
    for value, name in ((chosen, chosen_name), (rejected, rejected_name)):
        if value is None:
            raise RowProblem("missing", name, value)
    names = (chosen_name, rejected_name)
    if layout == "implicit":
        prompt, texts, shape = _implicit(chosen, rejected, names)
        prompt_name = chosen_name
    else:
        prompt, texts, shape = _explicit(prompt_value, prompt_name, chosen, rejected, names)
    if layout == "labeled":
        shape += ", two replies and a label"
    chosen_text, rejected_text = (check_reply(text, name) for text, name in zip(texts, names, strict=True))
    if chosen_text == rejected_text:
        raise RowProblem("equal sides", rejected_name, rejected_text)
    checked, strength = check_prompt(prompt, prompt_name), check_strength(*columns.get("strength", row))
    source, category, split = (check_name(*columns.get(name, row)) for name in ("source", "category", "split"))
    return Preference(checked, chosen_text, rejected_text, strength, source, category, where, split), shape


def _by_label(row: Mapping[str, Any], columns: Columns) -> tuple[tuple[Any, str], tuple[Any, str]]:
    """(better, worse) of the two replies, each with its column's name."""
    a, b = columns.get("a", row), columns.get("b", row)
    label, name = columns.get("label", row)
    if label is None:
        raise RowProblem("missing", name, label)
    # True and False are not among the words: which reply `True` names is not known.
    word = str(label).strip().strip("[]").replace(" > ", ">").strip().lower()
    if word in _BETTER_A:
        return a, b
    if word in _BETTER_B:
        return b, a
    raise RowProblem("tie" if word in _TIE else "label not understood", name, label)


def _explicit(
    prompt: Any, prompt_name: str, chosen: Any, rejected: Any, names: tuple[str, str]
) -> tuple[list[Message], list[Any], str]:
    sides = (chosen, rejected)
    if _is_conversation(chosen) and _is_conversation(rejected):
        # The sides hold the whole conversation, so a prompt column can only repeat (part of) it.
        messages, texts = _split_conversations(chosen, rejected, names)
        if prompt is not None and not _repeats(prompt, messages):
            raise RowProblem("prompt column and conversation disagree", prompt_name, prompt)
        return messages, texts, "implicit prompt, conversational (repeated in the prompt column)"
    texts = [_reply(side, name) for side, name in zip(sides, names, strict=True)]
    if not isinstance(prompt, str):
        if prompt is not None and not _is_list(prompt):
            raise RowProblem("not a string", prompt_name, prompt)
        return check_messages(prompt, prompt_name), texts, "explicit prompt, conversational"
    parsed = _messages_in(prompt)
    if parsed is not None:
        messages = check_messages(parsed, prompt_name)
        return messages, texts, "explicit prompt, conversational (messages as a JSON string)"
    check_text(prompt, prompt_name)
    turns = _transcript(prompt)
    if turns is not None and turns[-1]["role"] == "assistant" and not turns[-1]["content"].strip():
        # "…\n\nAssistant:" with the reply in the other column, where the space after the colon went too.
        messages = check_messages(turns[:-1], prompt_name)
        texts = [text.removeprefix(" ") if isinstance(text, str) else text for text in texts]
        return messages, texts, "explicit prompt, standard (Human/Assistant transcripts)"
    return [{"role": "user", "content": prompt}], texts, "explicit prompt, standard"


def _reply(side: Any, name: str) -> Any:
    """The reply of one side: a string, or what a list of exactly one assistant message holds."""
    if not _is_list(side):
        return side
    messages = check_messages(side, name)
    if len(messages) > 1:
        raise RowProblem("more than one reply message", name, side)
    if messages[0]["role"] != "assistant":
        raise RowProblem("reply is not an assistant message", name, side)
    return as_reply(messages[0])


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _is_conversation(side: Any) -> bool:
    """Whether a side is a message list that begins before the reply."""
    return _is_list(side) and len(side) > 1 and isinstance(side[0], Mapping) and side[0].get("role") != "assistant"


def _repeats(prompt: Any, messages: Sequence[Message]) -> bool:
    """Whether a prompt column repeats the conversation, or one of its user turns."""
    turns = _messages_in(prompt) if isinstance(prompt, str) else prompt
    if turns is None:
        return any(m["role"] == "user" and m["content"].strip() == prompt.strip() for m in messages)
    return isinstance(turns, Sequence) and [dict(m) for m in turns if isinstance(m, Mapping)] == list(messages)


def _messages_in(text: str) -> list[Any] | None:
    """The message list that a string holds as JSON; None if it holds none, and is just text."""
    if not (text.lstrip().startswith("[") and '"role"' in text):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    is_list = isinstance(value, list) and all(isinstance(m, dict) and {"role", "content"} <= m.keys() for m in value)
    return value if is_list and value else None


def _implicit(chosen: Any, rejected: Any, names: tuple[str, str]) -> tuple[list[Message], list[Any], str]:
    shape = "implicit prompt, conversational"
    if isinstance(chosen, str) and isinstance(rejected, str):
        parsed = _messages_in(chosen), _messages_in(rejected)
        if parsed[0] is None or parsed[1] is None:
            return _implicit_text(chosen, rejected, names)
        chosen, rejected = parsed
        shape += " (messages as a JSON string)"
    for side, name in zip((chosen, rejected), names, strict=True):
        if not _is_list(side):
            raise RowProblem("the sides are not of one type" if isinstance(side, str) else "not a string", name, side)
    messages, texts = _split_conversations(chosen, rejected, names)
    return messages, texts, shape


def _split_conversations(chosen: Any, rejected: Any, names: tuple[str, str]) -> tuple[list[Message], list[Any]]:
    """Both sides are conversations that differ in nothing but the last, the assistant's message."""
    sides = [check_messages(chosen, names[0]), check_messages(rejected, names[1])]
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
