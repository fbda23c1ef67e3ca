"""Stored JSON, checked as it is read: strict JSON of one schema, or one sentence on what is wrong with the file."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ebrm.errors import EBRMError

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

#: Levels of lists and objects in a file: what reads a value step into step stays far from Python's limit.
MAX_DEPTH = 64
_MOST = 2**64
_LONGEST = 60


def read_json(path: Path, schema: str, *, error: type[EBRMError], do: str, foreign: bool = False) -> Any:
    """The value of a JSON file of ours, if it has its schema.

    Args:
        path: the file.
        schema: name of a model in :mod:`ebrm.utils.schemas`.
        error: what is raised.
        do: what the user can do about a file that is not as expected, a sentence.
        foreign: another library wrote it (:func:`parse_json`).

    Raises:
        EBRMError: of the type `error`, for any fault: it cannot be read, is not UTF-8 or JSON, says a name twice, holds
            a number that is not finite or has more than 64 bits, is nested too deep, or does not fit the schema.
    """
    return checked(load_json(path, error=error, do=do, foreign=foreign), schema, str(path), error=error, do=do)


def load_json(path: Path, *, error: type[EBRMError], do: str, foreign: bool = False) -> Any:
    """The value of a JSON file, whatever it is of; errors as of :func:`read_json`."""
    try:
        return parse_json(path.read_bytes(), foreign=foreign)
    except OSError as fault:
        raise error(f"{path} cannot be read: {fault.strerror or fault}. {do}") from None
    except (ValueError, MemoryError) as fault:
        raise error(f"{path} cannot be read: {fault or 'it is too large for the memory'}. {do}") from None


def parse_json(data: bytes | str, *, foreign: bool = False) -> Any:
    """The value of JSON, as this library writes it.

    Args:
        data: UTF-8, without a byte order mark.
        foreign: written by others, who may repeat names and give numbers of any size, as `json.loads` takes them.

    Raises:
        ValueError: it is none; the text says what was seen, and where that is known.
    """
    try:
        text = data if isinstance(data, str) else data.decode("utf-8")
    except UnicodeDecodeError as fault:
        raise ValueError(f"it is not UTF-8 (byte {fault.start})") from None
    if text.startswith("\ufeff"):
        raise ValueError("it begins with a byte order mark, which JSON has not")
    if not text.strip():
        raise ValueError("it is empty")
    ours: dict[str, Any] = {
        "object_pairs_hook": _once, "parse_constant": _constant, "parse_float": _finite, "parse_int": _whole,
    }  # fmt: skip
    try:
        value = json.loads(text, **({} if foreign else ours))
    except json.JSONDecodeError as fault:
        raise ValueError(f"it is not JSON ({fault})") from None
    except RecursionError:
        raise ValueError(_too_deep()) from None
    _check_depth(value)
    return value


def checked(value: Any, schema: str, where: str, *, error: type[EBRMError], do: str) -> Any:
    """The value itself, if it has a schema of :mod:`ebrm.utils.schemas`; else one sentence on its first fault."""
    from pydantic import ValidationError  # not before: `ebrm --help` needs none

    try:
        _schema(schema).model_validate(value)
    except ValidationError as fault:
        raise error(f"{where}: {_first_fault(fault)}. {do}") from None
    return value


def fits(value: Any, schema: str) -> bool:
    """Whether a value has a schema of :mod:`ebrm.utils.schemas`."""
    from pydantic import ValidationError

    try:
        _schema(schema).model_validate(value)
    except ValidationError:
        return False
    return True


@cache
def _schema(name: str) -> type[BaseModel]:
    from ebrm.utils import schemas

    found: type[BaseModel] = getattr(schemas, name)
    return found


def _first_fault(fault: ValidationError) -> str:
    """`head.seed is "x"; expected a valid integer`: the first of pydantic's faults."""
    first = fault.errors(include_url=False)[0]
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
    # Unions add the alternatives' names to a place; the field's own are plain words.
    field = _short(place.removeprefix(".")) or "the file"
    if first["type"] == "missing":
        return f"{field} is missing"
    if first["type"] == "extra_forbidden":
        return f"{field} is not a field that this version of ebrm knows"
    expected = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if first["type"] == "string_pattern_mismatch":  # the only pattern is that of SHA-256
        expected = "64 hexadecimal digits"
    if expected.startswith(("greater", "less")):
        expected = f"a number {expected}"
    return f"{field} is {shown(first['input'])}; expected {expected.rstrip('.')}"


def shown(value: Any) -> str:
    """A value as an error says it: JSON, shortened; lists and objects by what they are."""
    if isinstance(value, dict):
        return f"an object of {len(value):,} fields" if value else "an empty object"
    if isinstance(value, list):
        return f"a list of {len(value):,}" if value else "an empty list"
    return _short(json.dumps(value, ensure_ascii=False, default=str))


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the name {_short(json.dumps(twice, ensure_ascii=False))} stands twice in one object")
    return made


def _constant(word: str) -> float:
    raise ValueError(f"it holds {word}, which is not a number of JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"it holds the number {_short(digits)}, which is too large")
    return number


def _whole(digits: str) -> int:
    number = int(digits) if len(digits) <= 20 else _MOST
    if not -_MOST < number < _MOST:
        raise ValueError(f"it holds the number {_short(digits)}, which is too large")
    return number


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise ValueError(_too_deep())


def _too_deep() -> str:
    return f"it is nested more than {MAX_DEPTH} levels deep"
