"""Settings dataclasses as command-line options and as YAML keys: one list of names, one way to read a value.

A command names its *stages* (``{"network": NetworkConfig, ...}``). Every field of every stage becomes an option,
and the same field is a key of the ``--config`` file, either under its stage's name or at the top level. What is
typed wins over the file, the file wins over the default. Values from both places are read by the same rules.

Where two stages have a field of one name, the first keeps the plain name and the others get their stage's in front
(``--seed`` and ``--inference-seed``).
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from ebrm.cli.coerce import MISSING, describe, parse, parse_items, show
from ebrm.cli.console import Screen
from ebrm.cli.help import command_class
from ebrm.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class Setting:
    """One field of one stage, as an option and as a YAML key."""

    stage: str
    field: str
    key: str  # its name at the top level of the YAML file
    flag: str  # its name on the command line
    hint: Any
    default: Any  # MISSING when the field must be given
    help: str
    choices: tuple[Any, ...]

    @property
    def parameter(self) -> str:
        """The name of the generated function parameter."""
        return f"{self.stage}__{self.field}"

    @property
    def is_mapping(self) -> bool:
        """True for fields given as repeated NAME=VALUE."""
        return typing.get_origin(_without_none(self.hint)) is dict or _without_none(self.hint) is dict

    @property
    def is_flag(self) -> bool:
        """True for fields switched by --x and --no-x."""
        return _without_none(self.hint) is bool

    @property
    def shown_flags(self) -> str:
        """The option as the help shows it: ``--dropout X``."""
        if self.is_flag:
            return f"{self.flag}, --no-{self.flag[2:]}"
        return f"{self.flag} " + ("NAME=VALUE" if self.is_mapping else _metavar(_without_none(self.hint), self.choices))

    @property
    def shown_help(self) -> str:
        """The field's help and its default."""
        default = self.default
        if default is MISSING or default is None or default in ({}, (), ""):
            return self.help
        switch = self.flag if default else f"--no-{self.flag[2:]}"
        return f"{self.help} (default: {switch if self.is_flag else show(default)})".strip()

    def read(self, value: Any, where: str) -> Any:
        """Turn a typed or written value into the field's type; raise ConfigError naming `where`."""
        parsed = parse(value, self.hint, where)
        if self.choices and parsed not in self.choices:
            raise ConfigError(f"{where} is {show(value)}, but must be one of {_list(self.choices)}.")
        return parsed


class Chosen:
    """The settings of one run: what was typed, then what the file says, then the defaults."""

    def __init__(self, stages: Mapping[str, type], given: Mapping[tuple[str, str], Any], flags: Mapping[Any, str]):
        self._stages = dict(stages)
        self._given = dict(given)
        self._flags = dict(flags)

    def of(self, kind: type[T]) -> T:
        """The dataclass of a stage; ConfigError when a field without a default was not given."""
        stage = next(name for name, known in self._stages.items() if known is kind)
        fields: Any = dataclasses.fields(kind)  # type: ignore[arg-type]
        values = {field.name: self._given[stage, field.name] for field in fields if (stage, field.name) in self._given}
        for field in fields:
            if field.name not in values and _default(field) is MISSING:
                raise ConfigError(
                    f"{self._flags[stage, field.name]} is needed: {_sentence(field.metadata.get('help', ''))} "
                    f"Give it on the command line, or as `{field.name}` in the --config file."
                )
        return kind(**values)

    def given(self, kind: type) -> dict[str, Any]:
        """The fields of a stage that were typed or stand in the file, and no others."""
        stage = next(name for name, known in self._stages.items() if known is kind)
        return {field: value for (place, field), value in self._given.items() if place == stage}


def settings_of(
    stages: Mapping[str, type], only: Mapping[str, Iterable[str]] | None = None, saved: Iterable[str] = ()
) -> list[Setting]:
    """Every field of every stage, in order.

    Args:
        stages: stage name -> settings dataclass.
        only: limits a stage to the fields named.
        saved: stages whose values come from a saved model where they are not given, so no default is shown.
    """
    found: list[Setting] = []
    for stage, kind in stages.items():
        hints = _hints(kind)
        for field in dataclasses.fields(kind):
            if only and stage in only and field.name not in only[stage]:
                continue
            key = f"{stage}_{field.name}" if any(s.field == field.name for s in found) else field.name
            hint = hints[field.name]
            setting = Setting(
                stage=stage,
                field=field.name,
                key=key,
                flag="",
                hint=hint,
                default=None if stage in saved else _default(field),
                help=field.metadata.get("help") or _documented(kind).get(field.name, ""),
                choices=tuple(field.metadata.get("choices", ())),
            )
            flag = key.removesuffix("s") if setting.is_mapping else key
            found.append(dataclasses.replace(setting, flag="--" + flag.replace("_", "-")))
    return found


def _documented(kind: type) -> dict[str, str]:
    """Field -> what the `Attributes:` section of its class's docstring says of it."""
    _, _, section = inspect.cleandoc(kind.__doc__ or "").partition("\nAttributes:\n")
    section = re.split(r"\n(?=\S)", section, maxsplit=1)[0]
    entries = re.findall(r"^    (\w+): (.+(?:\n {8}.+)*)", section, re.M)
    return {name: " ".join(text.split()) for name, text in entries}


def command(
    app: typer.Typer,
    name: str,
    stages: Mapping[str, type],
    only: Mapping[str, Iterable[str]] | None = None,
    saved: Iterable[str] = (),
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register ``function(screen, chosen, *arguments)`` as a command whose options are the stages' fields.

    The function's own parameters after `screen` and `chosen` are ordinary typer arguments. The command also gets
    ``--config``, ``--json``, ``--quiet`` and ``--verbose``.
    """
    settings = settings_of(stages, only, saved)

    def register(function: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(function, eval_str=True).parameters.values())[2:]

        @functools.wraps(function)
        def run(**values: Any) -> None:
            screen = Screen.for_command(**{key: values.pop(key) for key in ("json", "quiet", "verbose")})
            path = values.pop("config")
            typed = [values.pop(setting.parameter) for setting in settings]
            chosen = choose(stages, settings, typed, path)
            function(screen, chosen, **values)

        parameters = [*own, *(_option(setting) for setting in settings), *_common()]
        keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
        run.__signature__ = inspect.Signature(keyword)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in keyword}
        app.command(name, cls=command_class(_groups(settings)))(run)
        return function

    return register


def choose(
    stages: Mapping[str, type], settings: Sequence[Setting], typed: Sequence[Any], config: str | Path | None
) -> Chosen:
    """Merge typed options over the YAML file over the defaults; NAME=VALUE options merge name by name.

    `typed` has a value for each setting, as text (or a list of NAME=VALUE, or a bool); None was not typed.
    """
    given: dict[tuple[str, str], Any] = {}
    if config is not None:
        given.update(read_config(config, settings))
    for setting, value in zip(settings, typed, strict=True):
        if value is None or value == []:
            continue
        if setting.is_mapping:
            items = setting.read(parse_items(value, setting.flag, setting.hint), setting.flag)
            given[setting.stage, setting.field] = {**given.get((setting.stage, setting.field), {}), **items}
        else:
            given[setting.stage, setting.field] = setting.read(value, setting.flag)
    flags = {(setting.stage, setting.field): setting.flag for setting in settings}
    return Chosen(stages, given, flags)


def read_config(path: str | Path, settings: Sequence[Setting]) -> dict[tuple[str, str], Any]:
    """Read a YAML file of settings, nested by stage or flat; unknown keys are errors with the nearest name."""
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"--config {path}: there is no such file.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"--config {path} is not UTF-8 text (byte {error.start}).") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "it cannot be parsed"
        raise ConfigError(f"--config {path} is not valid YAML{where}: {problem}.") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"--config {path} holds {describe(content)} at the top; expected `setting: value` lines.")
    by_place = {(setting.stage, setting.field): setting for setting in settings}
    by_key = {setting.key: setting for setting in settings}
    stages = {setting.stage for setting in settings}
    given: dict[tuple[str, str], Any] = {}
    for key, value in content.items():
        if key in stages and isinstance(value, dict) and not _names_mapping(key, settings):
            for field, inner in value.items():
                if (key, field) not in by_place:
                    names = [setting.field for setting in settings if setting.stage == key]
                    raise ConfigError(_unknown(f"{path}: {key}.{field}", str(field), names))
                given[key, field] = by_place[key, field].read(inner, f"{path}: {key}.{field}")
            continue
        if key in stages and value is None and key not in by_key:
            continue  # a stage's name with nothing under it
        if key not in by_key:
            raise ConfigError(_unknown(f"{path}: {key}", str(key), sorted(stages | by_key.keys())))
        setting = by_key[key]
        given[setting.stage, setting.field] = setting.read(value, f"{path}: {key}")
    return given


#: What every command has: (name, type, flags, help).
_COMMON: tuple[tuple[str, Any, tuple[str, ...], str], ...] = (
    (
        "config",
        str | None,
        ("--config",),
        "A YAML file of settings: any option above without its dashes (`token_budget: 8192`), at the top level or "
        "under the name of its group. What is typed wins over the file.",
    ),
    ("json", bool, ("--json",), "Print one JSON object on stdout, and nothing else there."),
    ("quiet", bool, ("-q", "--quiet"), "Only results, warnings and errors."),
    ("verbose", bool, ("-v", "--verbose"), "Also what the libraries underneath say."),
)


def _option(setting: Setting) -> inspect.Parameter:
    """The typer parameter of a setting; None stands for "not typed"."""
    kind: Any
    if setting.is_flag:
        kind, flags = bool | None, f"{setting.flag}/--no-{setting.flag[2:]}"
    else:
        kind, flags = (list[str] | None if setting.is_mapping else str | None), setting.flag
    annotation = Annotated[kind, typer.Option(flags, help=setting.help)]
    return inspect.Parameter(setting.parameter, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _common() -> list[inspect.Parameter]:
    return [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None if name == "config" else False,
            annotation=Annotated[kind, typer.Option(*flags, help=text)],
        )
        for name, kind, flags, text in _COMMON
    ]


def _groups(settings: Sequence[Setting]) -> list[tuple[str, list[tuple[str, str]]]]:
    """The options by stage, for the help page: (title, [(flags, help), ...])."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for setting in settings:
        title = setting.stage.replace("_", " ").capitalize()
        groups.setdefault(title, []).append((setting.shown_flags, setting.shown_help))
    run = []
    for name, _, flags, text in _COMMON:
        run.append((", ".join(flags) + (" FILE" if name == "config" else ""), text))
    return [*groups.items(), ("Run", [*run, ("-h, --help", "Print this.")])]


def _metavar(hint: Any, choices: tuple[Any, ...]) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        choices = choices or arguments
    if choices:
        return "|".join(map(str, choices))
    if origin is tuple:
        return f"{_metavar(arguments[0], ())},…"
    if hint in (int, float):
        return "N" if hint is int else "X"
    return "PATH" if hint is Path else "TEXT"


def _names_mapping(key: str, settings: Sequence[Setting]) -> bool:
    """True when a stage's name is also the name of a NAME=VALUE field, so that a mapping is its value."""
    return any(setting.key == key and setting.is_mapping for setting in settings)


def _unknown(where: str, name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"Did you mean `{near[0]}`?" if near else f"Known here: {_list(names)}."
    return f"{where} is not a setting of this command. {hint}"


def _list(values: Iterable[Any]) -> str:
    return ", ".join(map(str, values))


def _sentence(text: str) -> str:
    text = text.strip().rstrip(".")
    return text + "." if text else ""


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _default(field: Any) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return MISSING


def _without_none(hint: Any) -> Any:
    """`X | None` -> `X`."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        rest = [option for option in typing.get_args(hint) if option is not type(None)]
        return rest[0] if len(rest) == 1 else hint
    return hint
