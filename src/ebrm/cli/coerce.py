"""One value of a setting, from the command line (always text) or from YAML (already typed): the same rules."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ebrm.errors import ConfigError

MISSING: Any = type("Missing", (), {"__repr__": lambda self: "(needed)"})()

_NONE = ("none", "null")
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def parse(value: Any, hint: Any, where: str) -> Any:
    """Turn `value` into the type `hint`, or raise ConfigError that names `where` and what was expected.

    Hints: str, int, float, bool, Path, None, Literal, dict[str, X], tuple[X, ...] and unions of these. Text is read
    as the type asks: ``none`` for None and for a tuple of no values, ``0.5,1`` for tuples, ``1e4`` for an int.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or hint is object:
        return value
    if origin in (typing.Union, types.UnionType):
        return _union(value, arguments, where)
    if hint is None or hint is type(None):
        if value is None or (isinstance(value, str) and value.lower() in _NONE):
            return None
        raise _wrong(value, "none", where)
    if origin is typing.Literal:
        return _literal(value, arguments, where)
    if origin is dict or hint is dict:
        if not isinstance(value, Mapping):
            raise _wrong(value, "names with values", where)
        inner = arguments[1] if arguments else Any
        return {str(key): parse(item, inner, f"{where} {key}") for key, item in value.items()}
    if origin is tuple:
        return _tuple(value, arguments, where)
    if hint is Path and isinstance(value, str) and value:
        return Path(value)
    if hint in (bool, int, float, str):
        return _scalar(value, hint, where)
    raise TypeError(f"{where}: settings of type {hint} cannot be options")


def parse_items(items: Iterable[str], flag: str, hint: Any) -> dict[str, Any]:
    """``["prompt=question"]`` -> ``{"prompt": "question"}``; values are YAML scalars unless the field wants text."""
    import yaml

    values = {}
    for item in items:
        name, equals, text = item.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"{flag} is {show(item)}; expected NAME=VALUE, as in {flag} prompt=question.")
        wants_text = str in typing.get_args(hint)[1:] or any(
            str in typing.get_args(option)[1:] for option in typing.get_args(hint)
        )
        try:
            values[name.strip()] = text if wants_text else yaml.safe_load(text)
        except yaml.YAMLError:
            values[name.strip()] = text
    return values


def show(value: Any) -> str:
    """A value as a person would type it, shortened."""
    if isinstance(value, tuple | list):
        return ",".join(map(show, value))
    if isinstance(value, float):
        return f"{value:g}"
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "…"


def describe(value: Any) -> str:
    """What kind of thing a YAML value is, in words."""
    if isinstance(value, Mapping):
        return "names with values"
    if isinstance(value, list | tuple):
        return "a list"
    return f"`{show(value)}`"


def _union(value: Any, options: tuple[Any, ...], where: str) -> Any:
    # None first, text last, so that `none` and `12` are not taken for text.
    order = sorted(options, key=lambda option: (option is not type(None), option is str))
    wanted = []
    for option in order:
        try:
            return parse(value, option, where)
        except ConfigError as error:
            if option is not type(None):
                wanted.append(error)
    raise wanted[-1] if len(wanted) == 1 else _wrong(value, " or ".join(_name(o) for o in options), where)


def _literal(value: Any, options: tuple[Any, ...], where: str) -> Any:
    for option in options:
        if value == option and isinstance(value, bool) == isinstance(option, bool):
            return option
        if isinstance(value, str) and str(option) == value:
            return option
    names = [str(option) for option in options]
    near = difflib.get_close_matches(str(value), names, n=1)
    hint = f" Did you mean `{near[0]}`?" if near else ""
    raise ConfigError(f"{where} is {describe(value)}, but must be one of {', '.join(names)}.{hint}")


def _tuple(value: Any, arguments: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    if isinstance(value, str) and value.lower() in _NONE:
        value = []
    elif isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    elif not isinstance(value, list | tuple):
        value = [value]
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(parse(item, arguments[0], where) for item in value)
    if len(value) != len(arguments):
        raise ConfigError(f"{where} has {len(value)} values; expected {len(arguments)}, separated by commas.")
    return tuple(parse(item, kind, where) for item, kind in zip(value, arguments, strict=True))


def _scalar(value: Any, hint: Any, where: str) -> Any:
    if hint is str:
        if isinstance(value, str):
            return value
        hint_text = "text; put it in quotes" if isinstance(value, bool | int | float) else "text"
        raise _wrong(value, hint_text, where)
    if hint is bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in _TRUE + _FALSE:
            return value.lower() in _TRUE
        raise _wrong(value, "true or false", where)
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise _wrong(value, _name(hint), where)
    try:
        number = float(value)
        if hint is float:
            return number
        return (
            int(value)
            if isinstance(value, str) and number.is_integer() and "e" not in value.lower()
            else _whole(number)
        )
    except (ValueError, OverflowError):
        raise _wrong(value, _name(hint), where) from None


def _whole(number: float) -> int:
    if not number.is_integer():
        raise ValueError
    return int(number)


def _name(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "none"}
    return names.get(hint, str(hint))


def _wrong(value: Any, expected: str, where: str) -> ConfigError:
    return ConfigError(f"{where} is {describe(value)}; expected {expected}.")
