"""Conversations as the text that a reward model reads: the text rule, its chat template, and what that leaves out."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime
from functools import cache
from typing import Any

from jinja2 import TemplateError

from ebrm.data.messages import REASONING
from ebrm.data.schema import Message
from ebrm.errors import TextError, TextRefusedError
from ebrm.utils.files import sha256_json
from ebrm.utils.neutral import shorten_line

logger = logging.getLogger(__name__)

PLAIN = "plain"
_PLAIN_ROLES = {"system": "System", "user": "User", "assistant": "Assistant"}
#: Fields that identities of before have not, and that stand in one only where they decide ids: name to its default.
_LATER = {"date": None, "system": "keep", "rendered": "warn"}
# Two days that differ in everything a template may write of a day.
_DAYS = ("2001-02-03", "2018-11-24")
_CODES = tuple(f"%{letter}" for letter in "aAwdbBmyYHIpMSfjUWcxXGuVDFeTRhnt") + ("%-d", "%-m", "%-H", "%-I", "%-j")
_CODE = re.compile(r"%[-_0^#]*\d*[EO]?[a-zA-Z]")
_PERCENT = "\ue005"


@dataclass(frozen=True)
class TextRule:
    """Template, special tokens, truncation and length for one tokenizer; stored with features and models.

    Attributes:
        template: "plain", or the source of the chat template.
        template_kwargs: arguments of the chat template (`{"enable_thinking": False}`).
        bos, eos, truncation: as in `TextConfig`.
        max_length: longest text, in tokens, special tokens counted.
        date: the day that a template which asks for today's date is given, as 2026-12-31; None: it does not ask.
        system, rendered: as in `TextConfig`.
        date_given: whether the date was chosen; it says nothing of the ids.
    """

    template: str
    template_kwargs: dict[str, Any]
    bos: str
    eos: str
    truncation: str
    max_length: int
    date: str | None = None
    system: str = "keep"
    rendered: str = "warn"
    date_given: bool = field(default=False, compare=False)

    def identity(self) -> dict[str, Any]:
        """Identity of the text rule: all that decides the ids, as JSON-ready values, with the template's SHA-256."""
        values = asdict(replace(self, rendered="parse" if self.rendered == "parse" else "warn"))
        del values["date_given"]
        kept = {name: value for name, value in values.items() if name not in _LATER or value != _LATER[name]}
        return {**kept, "template_sha256": sha256_json(self.template)}

    @classmethod
    def from_identity(cls, identity: Mapping[str, Any]) -> TextRule:
        """The rule of an `identity()`; TextError where a field is missing or the template does not have its SHA-256."""
        try:
            rule = cls(**{f.name: {**_LATER, **identity}[f.name] for f in fields(cls) if f.compare})
        except KeyError as error:
            raise TextError(
                f"The stored text rule has no field {error.args[0]!r} (it has {', '.join(sorted(identity))}). It was "
                "written by another version or damaged; make the features or the model again."
            ) from error
        if identity.get("template_sha256") != sha256_json(rule.template):
            raise TextError(
                "The stored text rule's template does not match the SHA-256 stored beside it: the file was edited or "
                "damaged. Restore it, or make the features or the model again."
            )
        return rule

    def mismatch(
        self, other: TextRule, *, ours: str = "here", theirs: str = "there", ignore: Collection[str] = ()
    ) -> str | None:
        """Say where two rules differ but for `ignore`, naming both sides; None when they make the same token ids."""
        a, b = {**_LATER, **self.identity()}, {**_LATER, **other.identity()}
        names = ("template_sha256", "template_kwargs", "bos", "eos", "truncation", "max_length", *_LATER)
        parts = [
            f"{name} is {a[name]!r} {ours} and {b[name]!r} {theirs}"
            for name in names
            if name not in ignore and a[name] != b[name]
        ]
        return "the text rule differs: " + "; ".join(parts) if parts else None


def write(
    rule: TextRule, tokenizer: Any, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None
) -> str:
    """Messages in our form (`check_messages`) as the text that the model reads.

    Raises:
        TextError: an unknown role, the template refuses, or it leaves out tools, tool calls or reasoning.
    """
    text = apply_template(rule, tokenizer, messages, tools)
    if tools or any(message.keys() - {"role", "content"} for message in messages):
        _refuse_omissions(rule, tokenizer, messages, tools)
    if rule.template != PLAIN:
        _say_left_out(rule, tokenizer, tuple(message["role"] for message in messages))
    return text


def apply_template(
    rule: TextRule, tokenizer: Any, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None
) -> str:
    """The text, whatever the template leaves out."""
    if rule.system == "fold":
        messages = fold_system(messages)
    if rule.template == PLAIN:
        return "\n\n".join(f"{_plain_role(message['role'])}: {message['content']}" for message in messages)
    more = dict(rule.template_kwargs)
    if tools:
        more["tools"] = [dict(tool) for tool in tools]
    try:
        text = tokenizer.apply_chat_template(
            [dict(message) for message in messages], chat_template=template_source(rule), tokenize=False,
            add_generation_prompt=False, **more,
        )  # fmt: skip
    except Exception as error:  # noqa: BLE001 - a template is a program: it may raise whatever Python can
        roles = shorten_line(" → ".join(message["role"] for message in messages), 200)
        said = shorten_line(str(error), 300)
        if not isinstance(error, TemplateError):
            said = f"{type(error).__name__}: {said}" if said else type(error).__name__
        end = "" if said.endswith((".", "!", "?")) else "."
        raise TextRefusedError(f"The chat template refuses this conversation (turns: {roles}): {said}{end}") from error
    return str(text)


def _plain_role(role: str) -> str:
    if role not in _PLAIN_ROLES:
        raise TextRefusedError(
            f"A message has the role {role!r}; the plain format knows system, user and assistant. Rename the role, or "
            "give a chat template that has it."
        )
    return _PLAIN_ROLES[role]


def fold_system(messages: Sequence[Message]) -> list[Message]:
    """System texts put before the user's turn that follows, with a blank line between, as users of Gemma do."""
    folded: list[Message] = []
    waiting: list[str] = []
    for message in messages:
        if message["role"] in ("system", "developer"):
            waiting += [message["content"]] if message["content"] else []
            continue
        if message["role"] == "user" and waiting:
            message = {**message, "content": "\n\n".join([*waiting, message["content"]])}
            waiting = []
        folded.append(message)
    return folded


# ---- the date --------------------------------------------------------------------------------------------------


def template_source(rule: TextRule) -> str:
    """The source of the chat template, with the rule's date instead of today's."""
    return rule.template if rule.date is None else _dated(rule.template, rule.date)


@cache
def _dated(template: str, day: str) -> str:
    # A macro of the name hides transformers' function. Passing one instead does not work: transformers lets nothing
    # but JSON values into a template.
    when = datetime.fromisoformat(day)
    # Also what only some systems know (%k, %P), and with flags and widths (%-d, %5Y): the longest first.
    codes = sorted({*_CODES, *_CODE.findall(template)}, key=lambda code: (-len(code), code))
    filters = "".join(f" | replace({code!r}, {when.strftime(code)!r})" for code in codes)
    body = f"{{{{- format | replace('%%', {_PERCENT!r}){filters} | replace({_PERCENT!r}, '%') -}}}}"
    return f"{{%- macro strftime_now(format) -%}}{body}{{%- endmacro +%}}{template}"


def asks_for_the_date(rule: TextRule, tokenizer: Any) -> bool:
    """Whether texts of a rule depend on the day: renderings under two dates, or without one, differ."""
    if rule.template == PLAIN or "strftime_now" not in rule.template:
        return False
    user, answer = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}
    tool = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
    refused = 0
    probes: tuple[tuple[list[Message], Any], ...] = (
        ([user, answer], None), ([{"role": "system", "content": "s"}, user, answer], None), ([user, answer], [tool]),
    )  # fmt: skip
    for messages, tools in probes:
        try:
            texts = {apply_template(replace(rule, date=day), tokenizer, messages, tools) for day in (*_DAYS, None)}
        except TextError:
            refused += 1
            continue
        if len(texts) > 1:
            return True
    return refused == len(probes)


# ---- what a template leaves out -----------------------------------------------------------------------------------


def _refuse_omissions(
    rule: TextRule, tokenizer: Any, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None
) -> None:
    """TextError where tools, tool calls, or texts beside them would not reach the reward model.

    Every one of them is marked, and each mark has to stand in the text; names and call ids are labels, which most
    templates do not write.
    """
    if rule.template == PLAIN:
        what = _first_extra(messages, tools)
        if what is None:
            return
        raise TextRefusedError(
            f"The plain format has no place for {what}, and the reward model must not be given the text without. Leave "
            "the row out, or give a chat template that writes it."
        )
    marks: dict[str, str] = {}  # mark -> what it stands for
    history: dict[str, str] = {}  # the same of reasoning before the reply, which many templates drop on purpose

    def mark(what: str, among: dict[str, str] = marks) -> str:
        made = f"zq{len(marks) + len(history)}xv"
        among[made] = what
        return made

    marked = [_marked(message, place, len(messages), mark, history) for place, message in enumerate(messages)]
    offered = [_marked_tool(tool, mark) for tool in tools or ()]
    if history and not any(name in messages[-1] for name in REASONING):
        # Whether it writes reasoning in a reply is told by a reply that has some.
        key = next(name for message in messages for name in REASONING if name in message)
        probe = f"zq{len(marks) + len(history)}xv"
        marked[-1] = {**marked[-1], key: probe}
    else:
        probe = next((m for m, what in marks.items() if what.startswith("the reasoning")), "")
    text = apply_template(rule, tokenizer, marked, offered or None)
    gone = [what for made, what in marks.items() if made not in text]
    dropped = [what for made, what in history.items() if made not in text]
    if dropped and probe and probe in text:
        warn_once(
            "The chat template leaves out the reasoning of turns before the reply, as it was written to; the reward "
            "model does not see it."
        )
        dropped = []
    if gone or dropped:
        raise TextRefusedError(
            f"The chat template leaves out {(gone + dropped)[0]}, and the reward model must not be given the text "
            "without. Leave the row out, or give a chat template that writes it."
        )
    labels = sorted({key for message in messages for key in ("name", "tool_call_id") if key in message})
    if labels:
        for key in labels:
            tried = [{**message, key: f"{message[key]}zqxv"} if key in message else message for message in messages]
            if "zqxv" not in _try_written(rule, tokenizer, tried, tools, "zqxv"):
                warn_once(f"The chat template does not write {key!r} of messages; the reward model does not see it.")


def _marked(message: Message, place: int, count: int, mark: Callable[..., str], history: dict[str, str]) -> Message:
    last = place == count - 1
    turn = "the reply" if last else f"message {place + 1} ({message['role']})"
    made = dict(message)
    for key in REASONING:
        if key in message:
            made[key] += mark(f"the reasoning ({key}) of {turn}", *(() if last else (history,)))
    if "tool_calls" in message:
        calls = []
        for call in message["tool_calls"]:
            function = call.get("function", call)
            name = f"the tool call {function['name']} of {turn}"
            function = {**function, "name": function["name"] + mark(name)}
            given = function.get("arguments")
            if isinstance(given, dict) and given:
                made_key = mark(f"the arguments of {name}")
                function["arguments"] = {**given, made_key: made_key}
            elif isinstance(given, str) and given:
                function["arguments"] = given + mark(f"the arguments of {name}")
            calls.append({**call, "function": function} if "function" in call else function)
        made["tool_calls"] = calls
        if message["content"].strip():
            made["content"] += mark(f"the text beside the tool calls of {turn}")
    return made


def _marked_tool(tool: Mapping[str, Any], mark: Callable[[str], str]) -> dict[str, Any]:
    function = tool.get("function", tool)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        return dict(tool)
    function = {**function, "name": function["name"] + mark(f"the tool {function['name']}")}
    return {**tool, "function": function} if "function" in tool else function


def _first_extra(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None) -> str | None:
    for place, message in enumerate(messages):
        turn = "the reply" if place == len(messages) - 1 else f"message {place + 1} ({message['role']})"
        if "tool_calls" in message:
            call = message["tool_calls"][0]
            return f"the tool call {call.get('function', call)['name']} of {turn}"
        for key in REASONING:
            if key in message:
                return f"the reasoning ({key}) of {turn}"
    return "tools" if tools else None


def _try_written(rule: TextRule, tokenizer: Any, messages: Sequence[Message], tools: Any, refused: str) -> str:
    try:
        return apply_template(rule, tokenizer, messages, tools)
    except TextError:
        return refused


_said: set[tuple[int, str, tuple[str, ...]]] = set()


def _say_left_out(rule: TextRule, tokenizer: Any, roles: tuple[str, ...]) -> None:
    """Say once where the template writes nothing of the contents of some role, tried once an order of turns."""
    key = (id(tokenizer), rule.template, roles)
    if key in _said:
        return
    _said.add(key)
    for role in left_out_roles(rule, tokenizer, roles):
        warn_once(
            f"The chat template writes nothing of a {role} turn where turns are {' → '.join(roles[:8])}; the reward "
            "model does not see it."
        )


def left_out_roles(rule: TextRule, tokenizer: Any, roles: Sequence[str]) -> list[str]:
    """Roles of which a template leaves a content out, in a conversation of these roles."""
    contents = [f"zq{place}xv" for place in range(len(roles))]
    messages: list[Message] = [
        {"role": role, "content": content} for role, content in zip(roles, contents, strict=True)
    ]
    text = _try_written(rule, tokenizer, messages, None, " ".join(contents))
    return list(dict.fromkeys(role for role, content in zip(roles, contents, strict=True) if content not in text))


def writes_a_response(rule: TextRule, tokenizer: Any) -> bool:
    """Whether a template writes the text of a response (or refuses to say); those made for lists of parts do not."""
    messages: list[Message] = [{"role": "user", "content": "zq0xv"}, {"role": "assistant", "content": "zq1xv"}]
    return "zq1xv" in _try_written(rule, tokenizer, messages, None, "zq1xv")


@cache
def warn_once(message: str) -> None:
    """Log a warning, once a process."""
    logger.warning(message)
