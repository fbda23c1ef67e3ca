"""Messages in the forms in which data sets and clients write them, read into one.

A *message* is a dict with `role` (one of `ROLES`) and `content` (a string), and, where given, `tool_calls`,
`tool_call_id`, `name`, `reasoning_content`, `reasoning` or `thinking`, which go to the chat template as transformers
passes them. A *reply* is a string, or an assistant's message where it holds more than text.
"""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence, Sized
from typing import Any

import numpy as np

from ebrm.data.schema import Message, Reply, RowProblem, check_encodable, check_text, is_missing

ROLES = ("system", "developer", "user", "assistant", "tool")

_CALL = "call"  # an assistant's turn whose text is a tool call, as ShareGPT and ms-swift write it
#: Role as written (in lower case) -> our role.
ROLE_NAMES: dict[str, str] = {
    **{role: role for role in ROLES},
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "model", "bot", "chatbot", "chatgpt", "ai"), "assistant"),
    **dict.fromkeys(("function", "observation", "ipython", "tool_response", "function_response"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), _CALL),
}
#: What a message may hold besides role and content; passed to the chat template as it is.
REASONING = ("reasoning_content", "reasoning", "thinking")
EXTRAS = ("tool_calls", "tool_call_id", "name", *REASONING)

# Columns of what a prompt goes with that is no text.
_MEDIA = {f"{what}{s}" for what in ("image", "video", "audio", "img", "pixel_value") for s in ("", "s")}
_ROLE_KEYS, _CONTENT_KEYS = ("role", "from"), ("content", "value", "text")
_TEXT_PARTS = (None, "text", "input_text", "output_text")
_STARTS = re.compile(r"""\s*(?:(?:array\()?\[\s*)?\{\s*(['"])\w+\1\s*:""")
_ROLE = re.compile(r"""(['"])(?:role|from)\1\s*:""")
_ENDS = re.compile(r"\}\s*(?:\]\s*(?:,\s*dtype=object\s*)?\)?\s*)?$")
# In the repr of a NumPy array nothing but white space stands between two dicts. Strings are matched first, so that
# none of this is looked for inside them; one that does not end is matched too, or each quote in it would be tried.
_ARRAY = re.compile(
    r"""(?P<string>'(?:[^'\\]|\\.)*+(?:'|\Z)|"(?:[^"\\]|\\.)*+(?:"|\Z))|(?P<between>\}\s+(?=\{))|(?P<open>array\()|"""
    r"""(?P<close>,\s*dtype=object\s*\))""",
    re.DOTALL,
)


def check_messages(
    value: object, field: str, unread: Counter[str] | None = None, *, strict: bool = True
) -> list[Message]:
    """A non-empty list of messages in our form, from any form in which they are written.

    Taken are lists, one message, JSON strings and Python reprs (as pandas writes them into CSV) of either, columns of
    roles and contents, `from`/`value`, other words for roles, and contents of text parts, which are joined. Keys that
    are not read are counted in `unread` (`prompt[].weight`). A content may be empty in a system message, a tool's
    answer, and beside tool calls or reasoning (there also None or missing); else only if not `strict`.

    Raises:
        RowProblem: anything else; a part that is not text is named ("image: this reward model reads text").
    """
    if value is None:
        raise RowProblem("missing", field, value)
    found = messages_in(value, field) if isinstance(value, str) else _as_list(value)
    if found is None:
        raise RowProblem("not a list of messages", field, value)
    if not found:
        raise RowProblem("empty", field, value)
    return [_message(message, f"{field}[{i}]", field, unread, strict) for i, message in enumerate(found)]


def messages_in(text: str, field: str = "") -> list[Any] | None:
    """The messages that a string as a whole holds, as JSON or as a Python repr; None if it is ordinary text.

    JSON of another kind is ordinary text, also where it has roles of its own (`{"role": "admin", "content": …}`).

    Raises:
        RowProblem: it begins and ends as such a list does, but cannot be parsed.
    """
    if not (_STARTS.match(text) and _ENDS.search(text) and _ROLE.search(text)):
        return None
    found = _parse(text)
    if found is None:
        if _ends_early(text):
            return None
        raise RowProblem("messages that are neither JSON nor a Python list", field, text)
    found = _as_list(found)
    if not found or not all(is_message(message) for message in found):
        return None
    roles = (next(message[key] for key in _ROLE_KEYS if isinstance(message.get(key), str)) for message in found)
    return found if any(role.strip().lower() in ROLE_NAMES for role in roles) else None


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    for source in (text.strip(), _ARRAY.sub(_python, text.strip())):
        try:
            return ast.literal_eval(source)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue
    return None


def _python(match: re.Match[str]) -> str:
    """A piece of an array's repr as the list's."""
    if match["string"] is not None:
        return match["string"]
    return "}, " if match["between"] is not None else ""


def _ends_early(text: str) -> bool:
    """Whether a JSON value ends before the text does: then the text goes on about it, and is ordinary."""
    try:
        json.JSONDecoder().raw_decode(text.lstrip())
    except (ValueError, RecursionError):
        return False
    return True


def is_message(value: Any) -> bool:
    """Whether a value is one message in some form: a mapping with a role, and a content or tool calls."""
    return (
        isinstance(value, Mapping)
        and any(isinstance(value.get(key), str) for key in _ROLE_KEYS)
        and any(key in value for key in (*_CONTENT_KEYS, "tool_calls", "function_call"))
    )


def _as_list(value: Any) -> list[Any] | None:
    """Messages as a list: from a list, an array, one message, or columns of roles and contents."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if is_message(value):
        return [value]
    if isinstance(value, Mapping):
        lists = {key: _plain(column) for key, column in value.items() if column is not None}
        keys = {key for names in (_ROLE_KEYS, _CONTENT_KEYS) for key in names if key in lists}
        if len(keys) < 2 or not all(isinstance(column, list) for column in lists.values()):
            return None
        if len({len(column) for column in lists.values()}) != 1:
            return None
        return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str | bytes) else None


def _message(value: Any, at: str, field: str, unread: Counter[str] | None, strict: bool) -> Message:
    if not isinstance(value, Mapping):
        raise RowProblem("not a message with role and content", at, value)
    given = {key: entry for key, entry in value.items() if entry is not None}
    role_key = next((key for key in _ROLE_KEYS if key in given), None)
    content_key = next((key for key in _CONTENT_KEYS if key in given), None)
    calls_key = next((key for key in ("tool_calls", "function_call") if _some(given.get(key))), None)
    if role_key is None or (content_key is None and calls_key is None and not any(key in given for key in REASONING)):
        if role_key is not None and any(key in value for key in _CONTENT_KEYS):
            raise RowProblem("missing", f"{at}.{next(key for key in _CONTENT_KEYS if key in value)}", None)
        raise RowProblem("not a message with role and content", at, value)
    role = ROLE_NAMES.get(given[role_key].strip().lower()) if isinstance(given[role_key], str) else None
    if role is None:
        raise RowProblem("unknown role", f"{at}.{role_key}", given[role_key])
    content = "" if content_key is None else flat_content(given[content_key], f"{at}.{content_key}")
    extras: dict[str, Any] = {}
    if role == _CALL:
        role, extras["tool_calls"], content = "assistant", _calls_in(content, f"{at}.{content_key}"), ""
    elif calls_key is not None:
        calls = given[calls_key] if calls_key == "tool_calls" else [{"type": "function", "function": given[calls_key]}]
        extras["tool_calls"] = _tool_calls(calls, f"{at}.{calls_key}")
    for key in (*REASONING, "name", "tool_call_id"):
        if key in given and given[key] != "":
            if not isinstance(given[key], str):
                raise RowProblem("not a string", f"{at}.{key}", given[key])
            extras[key] = check_encodable(given[key], f"{at}.{key}") if strict else given[key]
    may_be_empty = role in ("system", "tool") or any(key in extras for key in ("tool_calls", *REASONING))
    if strict and not (content == "" and may_be_empty):
        check_text(content, f"{at}.{content_key}")
    if unread is not None:
        read = {role_key, content_key, calls_key, *EXTRAS, "function_call"}
        unread.update(f"{field}[].{key}" for key in given if key not in read and _some(given[key]))
    return {"role": role, "content": content, **{key: extras[key] for key in EXTRAS if key in extras}}


def flat_content(content: Any, field: str) -> str:
    """A content as one string: text parts are joined without anything between; RowProblem names a part of another kind.

    As transformers' templates write them one after another, and TRL and vLLM take them.
    """
    content = _plain(content)
    if isinstance(content, str):
        return content
    parts = [content] if isinstance(content, Mapping) else content
    if not isinstance(parts, list) or (isinstance(content, Mapping) and "type" not in content):
        raise RowProblem("not a string", field, content)
    texts = []
    for i, part in enumerate(parts):
        if isinstance(part, str):
            texts.append(part)
            continue
        if not isinstance(part, Mapping):
            raise RowProblem("not a part of a content", f"{field}[{i}]", part)
        kind = part.get("type")
        if kind not in _TEXT_PARTS:
            raise RowProblem(f"{kind}: this reward model reads text", f"{field}[{i}]", part)
        if not isinstance(part.get("text"), str):
            raise RowProblem("not a string", f"{field}[{i}].text", part.get("text"))
        texts.append(part["text"])
    return "".join(texts)


def refuse_media(row: Mapping[str, Any], read: Collection[str]) -> None:
    """Refuse (RowProblem) a row that goes with an image, a video or sound in a column besides those that are read."""
    for name, value in row.items():
        if str(name).lower() not in _MEDIA or name in read or value is False or value == "[]" or is_missing(value):
            continue
        if not isinstance(value, Sized) or len(value):
            raise RowProblem(f"{name}: this reward model reads text", str(name), value)


def _tool_calls(value: Any, field: str) -> list[dict[str, Any]]:
    """Tool calls as the template takes them: arguments that are JSON as values, without None (as TRL does)."""
    calls = _plain(_from_json(value))
    calls = [calls] if isinstance(calls, Mapping) else calls
    if not isinstance(calls, list):
        raise RowProblem("not a list of tool calls", field, value)
    found = []
    for i, call in enumerate(calls):
        call = without_none(_from_json(call))
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise RowProblem("tool call without a name", f"{field}[{i}]", call)
        arguments = _from_json(function["arguments"]) if "arguments" in function else {}
        function = {**function, "arguments": arguments}
        found.append({**call, "function": function} if "function" in call else function)
    return found


def _calls_in(text: str, field: str) -> list[dict[str, Any]]:
    """The calls of a turn that is a call by its role: {"name": …, "arguments": …}, or a list of such, as JSON."""
    value = _from_json(text)
    if isinstance(value, str):
        raise RowProblem("tool call that is not JSON", field, text)
    calls = _tool_calls(value, field)
    return [call if "function" in call else {"type": "function", "function": call} for call in calls]


def check_tools(value: object, field: str) -> tuple[dict[str, Any], ...] | None:
    """Descriptions of tools that a prompt offers: a list of dicts, also as JSON; None, NaN and nothing mean none.

    Entries that are None are left out, at any depth, as TRL does: tables fill them in.
    """
    if value is None or (isinstance(value, str) and not value) or (isinstance(value, float) and value != value):
        return None
    tools = _plain(_from_json(value))
    if isinstance(tools, Mapping):
        tools = [tools]
    if not isinstance(tools, list):
        raise RowProblem("not a list of tools", field, value)
    found = [without_none(_from_json(tool)) for tool in tools]
    for i, tool in enumerate(found):
        if not isinstance(tool, dict) or not tool:
            raise RowProblem("not the description of a tool", f"{field}[{i}]", tool)
    return tuple(found) or None


def check_prompt(prompt: Sequence[Message], field: str) -> tuple[Message, ...]:
    """A conversation with a user turn, whose last turn is a user's (or a tool's answer)."""
    if not any(message["role"] == "user" for message in prompt):
        raise RowProblem("no user turn", field, list(prompt))
    if prompt[-1]["role"] not in ("user", "tool"):
        raise RowProblem("prompt does not end in a user turn", field, prompt[-1])
    return tuple(prompt)


def as_reply(message: Message) -> Reply:
    """An assistant's message as a reply: its content, or the message where it holds more than text."""
    return message["content"] if message.keys() == {"role", "content"} else message


def check_reply(value: object, field: str) -> Reply:
    """A reply: a text that is not blank, or an assistant's message that `check_messages` gave, as it is."""
    return value if isinstance(value, dict) else check_text(value, field)


def reply_message(reply: Reply) -> Message:
    """A reply as the assistant's message."""
    return {"role": "assistant", "content": reply} if isinstance(reply, str) else dict(reply)


def conversation(messages: Sequence[Message]) -> str:
    """A prompt as people read it: a single user turn as it stands, more turns with their roles."""
    if len(messages) == 1:
        return message_words(messages[0])
    return "\n\n".join(f"{message['role']}: {message_words(message)}" for message in messages)


def reply_key(reply: Reply) -> str:
    """A string by which replies are told apart: the text itself, or the message's canonical JSON."""
    if isinstance(reply, str):
        return reply
    return json.dumps(reply, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def message_words(message: Message | str) -> str:
    """A message as people read it: reasoning, content and tool calls, each on lines of its own."""
    if isinstance(message, str):
        return message
    parts = [message[key] for key in REASONING if message.get(key)] + [message["content"]]
    for call in message.get("tool_calls") or ():
        function = call.get("function", call)
        arguments = function.get("arguments", {})
        said = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        parts.append(f"{function['name']}({said})")
    return "\n".join(part for part in parts if part)


def without_none(value: Any) -> Any:
    """JSON values without the entries of objects that are None, at any depth; arrays become lists."""
    value = _plain(value)
    if isinstance(value, Mapping):
        return {key: without_none(entry) for key, entry in value.items() if entry is not None}
    return [without_none(entry) for entry in value] if isinstance(value, list) else value


def _from_json(value: Any) -> Any:
    """An object or a list that is written as a JSON string; any other value as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        found = _parse(value)
        return value if found is None else found
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value


def _some(value: Any) -> bool:
    """Whether there is something in a value: not None, and not an empty string, list or object."""
    return value is not None and not (isinstance(value, str | list | tuple | dict) and not value)
