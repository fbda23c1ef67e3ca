"""Texts that went through a chat template already: how they are noticed, and their turns taken apart."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from ebrm.data.messages import ROLE_NAMES
from ebrm.data.schema import Message, Reply
from ebrm.data.template import PLAIN, TextRule, apply_template
from ebrm.errors import TextError, setting

# How known templates open a turn, and the tokens by which they end one.
_FORMATS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"<\|im_start\|>(?P<role>\w+)\n", ("<|im_end|>",)),  # ChatML
    (r"<\|start_header_id\|>(?P<role>\w+)<\|end_header_id\|>\n\n", ("<|eot_id|>", "<|eom_id|>")),  # Llama 3
    (r"<\|header_start\|>(?P<role>\w+)<\|header_end\|>\n\n", ("<|eot|>",)),  # Llama 4
    (r"<start_of_turn>(?P<role>\w+)\n", ("<end_of_turn>",)),  # Gemma
    (r"<\|start_of_role\|>(?P<role>\w+)<\|end_of_role\|>", ("<|end_of_text|>",)),  # Granite
    (r"<\|START_OF_TURN_TOKEN\|><\|(?P<role>USER|SYSTEM|CHATBOT)_TOKEN\|>", ("<|END_OF_TURN_TOKEN|>",)),  # Command R
    (r"<｜(?P<role>User|Assistant)｜>", ("<｜end▁of▁sentence｜>",)),  # DeepSeek
    (r"<\|(?P<role>system|user|assistant)\|>\n?", ("<|end|>", "</s>", "<|endoftext|>")),  # Zephyr, Phi-3, Tulu
)
_STARTS = ("<s>", "<|begin_of_text|>", "<bos>", "<BOS_TOKEN>", "<｜begin▁of▁sentence｜>", "<|startoftext|>")
#: Markers of known templates. Also noticed where the reward model's tokenizer does not know them.
_KNOWN = (
    "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|header_start|>",
    "<start_of_turn>", "<end_of_turn>", "<|start_of_role|>", "<|START_OF_TURN_TOKEN|>", "<｜User｜>", "<｜Assistant｜>",
    "<|user|>", "<|assistant|>", "[INST]", "[/INST]", "<<SYS>>",
)  # fmt: skip
_U, _A, _V, _B, _S = "\ue000", "\ue001", "\ue002", "\ue003", "\ue004"  # stand for contents


def find_marker(tokenizer: Any, text: str) -> str | None:
    """The first special token of the tokenizer, or marker of a known chat template, in a text; None if there is none.

    Tokens for padding, unknown and masked words do not count.
    """
    found = _markers(tokenizer).search(text)
    return found[0] if found else None


@lru_cache(maxsize=16)
def _markers(tokenizer: Any) -> re.Pattern[str]:
    names = ("pad_token", "unk_token", "mask_token")
    ordinary = {getattr(tokenizer, name, None) for name in names}
    special = {str(token) for token in getattr(tokenizer, "all_special_tokens", ())} - {str(name) for name in ordinary}
    added = getattr(tokenizer, "added_tokens_decoder", {}) or {}
    special |= {token.content for token in added.values() if getattr(token, "special", False)} - ordinary
    words = sorted({*special, *_KNOWN}, key=lambda word: (-len(word), word))
    return re.compile("|".join(re.escape(word) for word in words if word.strip()))


def rendered_already(marker: str, count: str = "Some prompts or responses hold") -> str:
    """What is said where texts hold a template's marker."""
    return (
        f"{count} special tokens of a chat template ({marker}) as text. Are they already rendered? They are read as "
        f"they stand, inside the reward model's own template; {setting('rendered', 'parse')} takes their turns apart "
        f"first, {setting('rendered', 'keep')} says that it is meant so."
    )


def take_apart(rule: TextRule, tokenizer: Any, prompt: Sequence[Message], reply: Reply) -> tuple[list[Message], Reply]:
    """Prompt and reply with the turns that an already rendered text holds, and without the markers that end them.

    A prompt of one user's turn is taken apart where it begins as a known chat template or that of `rule` opens a turn.
    A reply that repeats the prompt at its start (as it stood, or rendered) is what follows.
    """
    turns = list(prompt)
    raw = turns[0]["content"] if len(turns) == 1 and turns[0]["role"] == "user" else None
    given = _turns(rule, tokenizer, raw) if raw is not None else None
    begun = ""
    if given is not None:
        if given[-1]["role"] == "assistant":
            begun = given.pop()["content"]
        if any(turn["role"] == "user" for turn in given):
            turns = given
    if isinstance(reply, str):
        reply = _reply(rule, tokenizer, raw if raw is not None else turns[-1]["content"], begun, reply)
    return turns, reply


def _reply(rule: TextRule, tokenizer: Any, asked: str, begun: str, reply: str) -> str:
    if repeats(asked, reply) and reply[len(asked) :].strip():
        reply = reply[len(asked) :].lstrip()
    else:
        turns = _turns(rule, tokenizer, reply)
        if turns is not None and turns[-1]["role"] == "assistant":
            return str(turns[-1]["content"])
    return begun + _without_end(tokenizer, rule, reply)


def repeats(asked: str, reply: str) -> bool:
    """Whether a reply has the prompt's text at its start, as a whole."""
    return len(asked.strip()) > 1 and reply.startswith(asked) and not reply[len(asked) :][:1].isalnum()


def _without_end(tokenizer: Any, rule: TextRule, text: str) -> str:
    own = _own_marks(rule, tokenizer)
    ends = {end for _, found in _FORMATS for end in found} | {str(tokenizer.eos_token)}
    if own is not None and own.close.strip():
        ends.add(own.close.strip())
    bare = text.rstrip()
    while (end := next((end for end in ends if bare.endswith(end)), None)) is not None:
        text = bare = bare.removesuffix(end).rstrip()
    return text


def _turns(rule: TextRule, tokenizer: Any, text: str) -> list[Message] | None:
    """The turns of a rendered conversation; None where a text is not one as a whole."""
    bare = text.lstrip()
    starts = {*_STARTS, str(tokenizer.bos_token)}
    while (start := next((s for s in starts if bare.startswith(s)), None)) is not None:
        bare = bare.removeprefix(start).lstrip()
    own = _own_marks(rule, tokenizer)
    found = None if own is None else own.turns(bare)
    for opening, ends in _FORMATS if found is None else ():
        found = _by_format(re.compile(opening), ends, bare)
        if found is not None:
            break
    return found


def _by_format(opening: re.Pattern[str], ends: Sequence[str], text: str) -> list[Message] | None:
    marks = list(opening.finditer(text))
    if not marks:
        return None
    before = text[: marks[0].start()].strip()
    if before and "User" not in opening.pattern:  # DeepSeek writes the system's text before the first turn
        return None
    turns: list[Message] = [{"role": "system", "content": before}] if before else []
    for mark, end in zip(marks, [*(later.start() for later in marks[1:]), len(text)], strict=True):
        role = {"chatbot": "assistant"}.get(mark["role"].lower()) or ROLE_NAMES.get(mark["role"].lower())
        content = text[mark.end() : end]
        close = min((place for stop in ends if (place := content.find(stop)) >= 0), default=None)
        if role is None or role == "call":
            return None
        if close is None:
            content = content if end == len(text) and role == "assistant" else content.rstrip()
        elif any(content[close:].strip() == stop for stop in ends):
            content = content[:close]
        else:
            return None  # something follows the end of a turn
        turns.append({"role": role, "content": content})
    return turns


class _Own:
    """What a template writes before, between and after the turns of user and assistant."""

    def __init__(self, first: str, answer: str, again: str, close: str, system: tuple[str, str] | None) -> None:
        self.first, self.answer, self.again, self.close, self.system = first, answer, again, close, system

    def turns(self, text: str) -> list[Message] | None:
        """The turns of a text (without its start token) that this template wrote, up to an opened reply or its end."""
        found = self._parts(text)
        close = self.close.strip()
        # A turn of another role, such as a tool's, would stand inside a content.
        return None if found is None or (close and any(close in turn["content"] for turn in found)) else found

    def _parts(self, text: str) -> list[Message] | None:
        turns: list[Message] = []
        rest = text
        if self.system is not None and self.system[0] and rest.startswith(self.system[0]):
            content, found, rest = rest.removeprefix(self.system[0]).partition(self.system[1])
            if not found:
                return None
            turns.append({"role": "system", "content": content})
        elif self.first and rest.startswith(self.first):
            rest = rest.removeprefix(self.first)
        else:
            return None
        while True:
            content, found, rest = rest.partition(self.answer)
            if not found:
                opened = self.answer.rstrip()
                if not opened or not content.rstrip().endswith(opened):
                    return None
                content, rest = content.rstrip().removesuffix(opened), ""
            turns.append({"role": "user", "content": content})
            content, found, rest = rest.partition(self.again)
            if not found:
                end = self.close.rstrip()
                content = content.rstrip().removesuffix(end) if end else content
                return [*turns, {"role": "assistant", "content": content}]
            turns.append({"role": "assistant", "content": content})


_own: dict[tuple[Any, ...], _Own | None] = {}


def _own_marks(rule: TextRule, tokenizer: Any) -> _Own | None:
    """What the rule's own template writes around turns; None where that cannot be told apart."""
    key = (tokenizer, rule.template, repr(sorted(rule.template_kwargs.items())), rule.date)
    if key not in _own:
        _own[key] = None if rule.template == PLAIN else _find_marks(rule, tokenizer)
    return _own[key]


def _find_marks(rule: TextRule, tokenizer: Any) -> _Own | None:
    contents = (_U, _A, _V, _B)
    turns: list[Message] = [
        {"role": role, "content": content} for role, content in zip(("user", "assistant") * 2, contents, strict=True)
    ]
    try:
        parts = _split(apply_template(rule, tokenizer, turns), contents)
    except TextError:
        return None
    if parts is None or not parts[1].strip() or not parts[2].strip():
        return None
    first, answer, again, _, close = parts
    system = None
    try:
        whole = apply_template(rule, tokenizer, [{"role": "system", "content": _S}, *turns])
        system = _split(whole, (_S, *contents))
    except TextError:
        pass
    opened = None if system is None else (_bare(tokenizer, system[0]), system[1])
    return _Own(_bare(tokenizer, first), answer, again, close, opened)


def _split(text: str, contents: Sequence[str]) -> list[str] | None:
    """What stands before, between and after contents, in their order; None if one is missing."""
    parts = []
    for content in contents:
        before, found, text = text.partition(content)
        if not found:
            return None
        parts.append(before)
    return [*parts, text]


def _bare(tokenizer: Any, text: str) -> str:
    return text.removeprefix(str(tokenizer.bos_token)).lstrip()
