"""One value of an option, as text from the command line or typed from YAML: the same rules for both."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ebrm.errors import ConfigError

_NONE = ("none", "null")
_SWITCH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
# What the message about an item without "=" shows; else prompt=question, as for --column.
_EXAMPLES = {"--label-map": "1=a", "--template-kwargs": "enable_thinking=false"}
_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def read(value: Any, hint: Any, where: str) -> Any:
    """Turn `value` into the type `hint`, or raise ConfigError that names `where` and what was expected.

    Hints: str, int, float, bool, Path, Literal, dict[str, X], tuple[X, ...], `X | None`, Any. Text is read as the type
    asks: ``none`` for None and for a tuple of no values, ``0.5,1`` for tuples, ``1e4`` for an int.
    """
    kind = without_none(hint)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    none = value is None or (isinstance(value, str) and value.lower() in _NONE)
    if kind is Any or (none and kind is not hint):
        return None if none else value
    if origin is dict and isinstance(value, Mapping):
        return {str(key): read(item, arguments[1], f"{where} {key}") for key, item in value.items()}
    if origin is typing.Literal:
        for option in arguments:
            if (value == option and isinstance(value, bool) == isinstance(option, bool)) or str(option) == value:
                return option
        known = ", ".join(map(str, arguments))
        raise ConfigError(f"{where} is {describe(value)}, but must be one of {known}.{meant(value, arguments)}")
    if origin is tuple and value is not None:
        return _tuple([] if none else value, arguments, where)
    if kind is bool and isinstance(value, bool | str) and str(value).lower() in _SWITCH:
        return _SWITCH[str(value).lower()]
    if kind in (str, Path) and isinstance(value, str):
        return kind(value)
    if kind in (int, float) and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return _integer(value) if kind is int else float(value)
        except (ValueError, OverflowError):
            pass
    expected = "names with values" if origin is dict else _NAMES.get(arguments[0] if origin is tuple else kind, kind)
    quotes = "; put it in quotes" if kind is str and isinstance(value, bool | int | float) else ""
    raise ConfigError(f"{where} is {describe(value)}; expected {expected}{quotes}.")


def read_items(items: Iterable[str], hint: Any, flag: str) -> dict[str, Any]:
    """``["prompt=question"]`` -> ``{"prompt": "question"}``; values are YAML unless the field wants text."""
    import yaml

    wants_text = typing.get_args(without_none(hint))[1] is str
    values = {}
    for item in items:
        name, equals, text = item.partition("=")
        if not equals or not name.strip():
            example = _EXAMPLES.get(flag, "prompt=question")
            raise ConfigError(f"{flag} is `{show(item)}`; expected NAME=VALUE, as in {flag} {example}.")
        try:
            values[name.strip()] = text if wants_text else yaml.safe_load(text)
        except yaml.YAMLError:
            values[name.strip()] = text
    return values


def show(value: Any) -> str:
    """A value as a person would type it, shortened."""
    if isinstance(value, tuple | list):
        return ",".join(map(show, value))
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else text[:57] + "…"


def describe(value: Any) -> str:
    """What kind of thing a YAML value is, in words."""
    if isinstance(value, Mapping):
        return "names with values"
    return "a list" if isinstance(value, list | tuple) else f"`{show(value)}`"


def metavar(hint: Any) -> str:
    """What stands for a value in the help: ``X``, ``a|b``, ``NAME=VALUE``."""
    hint = without_none(hint)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return "|".join(map(str, arguments))
    if origin is tuple:
        return f"{metavar(arguments[0])},…"
    return "NAME=VALUE" if origin is dict else {int: "N", float: "X", Path: "PATH"}.get(hint, "TEXT")


def without_none(hint: Any) -> Any:
    """`X | None` -> `X`."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (hint,) = (option for option in typing.get_args(hint) if option is not type(None))
    return hint


def meant(name: object, names: Iterable[object]) -> str:
    """`` Did you mean `x`?`` of the nearest of the names, or nothing."""
    near = difflib.get_close_matches(str(name), [str(known) for known in names], n=1)
    return f" Did you mean `{near[0]}`?" if near else ""


def _integer(value: int | float | str) -> int:
    if isinstance(value, str) and "e" not in value.lower() and "." not in value:
        return int(value)  # not by way of a float: it may be longer than one holds
    number = float(value)
    if not number.is_integer():
        raise ValueError
    return int(number)


def _tuple(value: Any, arguments: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    items = list(value) if isinstance(value, list | tuple) else [value]
    kinds = [arguments[0]] * len(items) if arguments[-1] is Ellipsis else arguments
    if len(items) != len(kinds):
        raise ConfigError(f"{where} has {len(items)} values; expected {len(kinds)}, separated by commas.")
    return tuple(read(item, kind, where) for item, kind in zip(items, kinds, strict=True))
