"""What stands in a row: texts, lists, numbers and conversations, checked one by one."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from ebrm.benchmarks.benchmark import Item
from ebrm.benchmarks.read import Row
from ebrm.data import ROLES, Message, RowProblem, check_encodable, check_prompt

_PROMPTS = 4096  # parsed prompts kept: the same prompt often stands in many rows
_LOOKS_LIKE_MESSAGES = re.compile(r'\s*\[\s*\{\s*"(role|content)"\s*:')


def value(row: Row, field: str) -> Any:
    """What stands in a column; a dot steps into an object (`chosen.answer`).

    Raises:
        RowProblem: no such column, or missing (null).
    """
    at: Any = row.values
    for name in field.split("."):
        if not isinstance(at, Mapping) or name not in at:
            raise RowProblem("no such column", field, None)
        at = at[name]
    if at is None:
        raise RowProblem("missing", field, None)
    return at


def text(row: Row, field: str) -> str:
    """A string; it may be empty, as some responses of public benchmarks are."""
    return _text(value(row, field), field)


def texts(row: Row, field: str, least: int = 1, key: str | None = None) -> tuple[str, ...]:
    """A list of strings (also as JSON, which is how CSV holds one), or of objects whose `key` is a string.

    Raises:
        RowProblem: not a list, fewer than `least` entries, or an entry that is not a string.
    """
    entries = _list(value(row, field), field, least)
    if key is None:
        return tuple(_text(entry, f"{field}[{number}]") for number, entry in enumerate(entries))
    return tuple(
        text(Row(row.where, row.part, {f"{field}[{number}]": entry}), f"{field}[{number}].{key}")
        for number, entry in enumerate(entries)
    )


def numbers(row: Row, field: str, least: int = 1) -> tuple[float, ...]:
    """A list of finite numbers (also as JSON)."""
    entries = _list(value(row, field), field, least)
    return tuple(_number(entry, f"{field}[{number}]") for number, entry in enumerate(entries))


def name(row: Row, field: str, default: str | None = None) -> str:
    """An id, a category or a split: a string that is not blank, or a whole number; `default` where there is none."""
    given = row.values.get(field) if default is not None else value(row, field)
    if default is not None and (given is None or given == ""):
        return default
    if isinstance(given, int) and not isinstance(given, bool):
        return str(given)
    said = _text(given, field)
    if not said.strip():
        raise RowProblem("empty", field, said)
    return said


def prompt(row: Row, field: str = "prompt") -> tuple[Message, ...]:
    """A conversation that asks for a reply: messages, messages as JSON, or a string, which means one user turn.

    All turns are kept, empty ones too, if one of the user's says something.

    Raises:
        RowProblem: not a conversation, empty, or one that does not end in a user turn.
    """
    given = value(row, field)
    return _prompt_of_string(given, field) if isinstance(given, str) else _conversation(given, field)


def pair(row: Row, item_id: str, group: str, columns: tuple[str, str, str] = ("prompt", "chosen", "rejected")) -> Item:
    """An item of a right and a wrong response, from the `columns` of prompt, right and wrong response."""
    asked, right, wrong = columns
    return Item(item_id, prompt(row, asked), (text(row, right), text(row, wrong)), (1.0, 0.0), group, row.where)


@lru_cache(maxsize=_PROMPTS)
def _prompt_of_string(given: str, field: str) -> tuple[Message, ...]:
    if not _LOOKS_LIKE_MESSAGES.match(given):
        return _conversation([{"role": "user", "content": given}], field)
    try:
        return _conversation(json.loads(given), field)
    except (ValueError, RecursionError) as error:
        if isinstance(error, RowProblem):
            raise
        raise RowProblem("messages that are not JSON", field, given) from None


def _conversation(given: Any, field: str) -> tuple[Message, ...]:
    if not isinstance(given, Sequence) or isinstance(given, (str, bytes)):
        raise RowProblem("not a string or a list of messages", field, given)
    messages: list[Message] = []
    for number, message in enumerate(given):
        at = f"{field}[{number}]"
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise RowProblem("not a message with role and content", at, message)
        if message["role"] not in ROLES:
            raise RowProblem("unknown role", f"{at}.role", message["role"])
        messages.append({"role": message["role"], "content": _text(message["content"], f"{at}.content")})
    if not any(message["role"] == "user" and message["content"].strip() for message in messages):
        raise RowProblem("empty", field, given)
    return check_prompt(messages, field)


def _text(given: Any, field: str) -> str:
    if given is None:
        raise RowProblem("missing", field, None)
    if not isinstance(given, str):
        raise RowProblem("not a string", field, given)
    return check_encodable(given, field)


def _list(given: Any, field: str, least: int) -> Sequence[Any]:
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except (ValueError, RecursionError):
            raise RowProblem("not a list", field, given) from None
    if not isinstance(given, Sequence) or isinstance(given, (str, bytes)):
        raise RowProblem("not a list", field, given)
    if len(given) < least:
        kind = "empty list" if not given else f"a list of {len(given)}, expected at least {least}"
        raise RowProblem(kind, field, list(given))
    return given


def _number(given: Any, field: str) -> float:
    if isinstance(given, bool) or not isinstance(given, (int, float)):
        raise RowProblem("not a number", field, given)
    if not math.isfinite(given):
        raise RowProblem("not a finite number", field, given)
    return float(given)
