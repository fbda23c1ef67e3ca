"""Options, `--help` and YAML keys of a command, made from the fields of config dataclasses by cyclopts.

Of the three libraries that build a command line from dataclasses, cyclopts raises its errors (one sentence, with the
name that was meant) where tyro prints boxes and exits and jsonargparse lists every failed type; it takes one converter
for a value wherever it comes from, gives back what was typed apart from the defaults, and loads in a tenth of a second.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import inspect
import json
import re
import shlex
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from cyclopts import App, Group, Parameter
from cyclopts.exceptions import UnknownOptionError

from ebrm.cli.values import describe, meant, metavar, read, read_items, show, without_none
from ebrm.errors import ConfigError

T = TypeVar("T")

#: Options that are not named like their field: one name has one meaning in all commands.
RENAMED = {
    ("BackboneConfig", "head"): "backbone_head",
    ("InferenceConfig", "seed"): "inference_seed",
    ("InferenceConfig", "nodes"): "inference_nodes",
    ("BenchmarkConfig", "data"): "benchmark_data",
    ("BenchmarkConfig", "seed"): "bootstrap_seed",
    ("CompareConfig", "data"): "benchmark_data",
    ("CompareConfig", "seed"): "bootstrap_seed",
    ("PoolConfig", "seed"): "bootstrap_seed",
    ("Bootstrap", "seed"): "bootstrap_seed",
}
#: What every command has, beside its configs.
_RUN = {
    "config": "A YAML file of settings: any option above without its dashes (`token_budget: 8192`), at the top level "
    "or under the name of its group. What is typed wins over the file.",
    "json": "Print one JSON object on stdout, and nothing else there.",
    "quiet": "Only results, warnings and errors.",
    "verbose": "Also what the libraries underneath log.",
}


@dataclass(frozen=True)
class Part:
    """A config whose fields are options of a command: `only` these, or all; no default is shown of a `saved` one."""

    config: Any  # the dataclass, or an instance of it that holds the defaults
    only: tuple[str, ...] = ()
    saved: bool = False

    @property
    def kind(self) -> type:
        """The dataclass."""
        return self.config if isinstance(self.config, type) else type(self.config)


@dataclass(frozen=True)
class Option:
    """A field of one config, or of several that have it, as an option and as a key of the --config file."""

    key: str
    group: str
    field: str
    configs: tuple[type, ...]
    hint: Any
    default: Any  # MISSING when the field must be given
    help: str

    @property
    def flag(self) -> str:
        """Its name on the command line; one value of a mapping is given at a time."""
        return "--" + (self.key.removesuffix("s") if self.is_mapping else self.key).replace("_", "-")

    @property
    def is_mapping(self) -> bool:
        """True for fields given as repeated NAME=VALUE."""
        return typing.get_origin(without_none(self.hint)) is dict

    def typed(self, value: Any) -> str:
        """The option with a value, as it is typed."""
        if isinstance(value, bool):
            return self.flag if value else f"--no-{self.flag[2:]}"
        return f"{self.flag} {'none' if value in (None, [], ()) else shlex.quote(show(value))}"

    @property
    def shown_help(self) -> str:
        """The field's help and its default."""
        if self.default in (dataclasses.MISSING, None, (), "") or self.default == {}:
            return self.help
        default = self.typed(self.default) if isinstance(self.default, bool) else show(self.default)
        return f"{self.help} (default: {default})".strip()


@dataclass(frozen=True)
class Command:
    """A command: `function(console, chosen, *arguments)`, and the parts its options come from.

    The parts may depend on what is chosen by the options named in `choosers` (such as the head): they are then a
    function of these values, None where one is not given. `refuse(name, chosen)` may say why an option that this
    choice does not have is unknown.
    """

    name: str
    function: Callable[..., None]
    parts: Mapping[str, Part] | Callable[[Mapping[str, str | None]], Mapping[str, Part]]
    choosers: tuple[str, ...] = ()
    refuse: Callable[[str, Mapping[str, str | None]], str | None] = lambda name, chosen: None


class Chosen:
    """The settings of one run: what was typed, then what the file holds, then the defaults."""

    def __init__(
        self, options: Sequence[Option], given: Mapping[str, Any], file: str = "", written: Iterable[str] = ()
    ):
        self.options, self.values = options, dict(given)
        self._file, self._written = file, frozenset(written)

    def of(self, kind: type[T]) -> T:
        """A config with what was given; ConfigError where a field without a default was not."""
        values = self.given(kind)
        for option in self.options:
            if kind in option.configs and option.default is dataclasses.MISSING and option.field not in values:
                text = option.help.strip().rstrip(".")
                raise ConfigError(
                    f"{option.flag} is needed: {text}. Give it on the command line, or as '{option.key}' in the "
                    "--config file."
                )
        return self._made(kind, lambda: kind(**values))

    def over(self, defaults: T) -> T:
        """A config with these defaults and what was given."""
        return self._made(type(defaults), lambda: dataclasses.replace(defaults, **self.given(type(defaults))))  # type: ignore[type-var]

    def _made(self, kind: type, make: Callable[[], T]) -> T:
        try:
            return make()
        except ConfigError as error:  # in the options of this config, where another has a field of the same name
            raise ConfigError(self.in_options(str(error), kind)) from None

    def given(self, kind: type) -> dict[str, Any]:
        """The fields of a config that were typed or stand in the file, and no others."""
        return {o.field: self.values[o.key] for o in self.options if kind in o.configs and o.key in self.values}

    def in_options(self, text: str, kind: type | None = None) -> str:
        """A library's sentence with its fields (of `kind`, if given) as the options or the keys they came from.

        Fields stand in backticks, with a value (`bad_rows="skip"`) or alone, or at the beginning (``epochs is 0``).
        """
        options = {o.field: o for o in reversed(self.options) if kind is None or kind in o.configs}

        def name(option: Option) -> str:
            return f"{self._file}: {option.key}" if option.key in self._written else option.flag

        parts, end = [], 0
        for found in re.finditer(r"`([a-z_]+)([`=])", text):
            option = options.get(found[1])
            if option is None or found.start() < end:
                continue
            typed, stop = name(option), found.end()
            if found[2] == "=":
                try:
                    value, stop = json.JSONDecoder().raw_decode(text, stop)
                except ValueError:
                    continue
                items = value.items() if isinstance(value, dict) else [(None, value)]
                typed = " ".join(option.typed(item if key is None else f"{key}={item}") for key, item in items)
                stop += 1
            parts += [text[end : found.start()], f"`{typed}`"]
            end = stop
        text = "".join([*parts, text[end:]])
        start = re.match(r"(?:The setting )?(?P<name>[a-z_]+)(?= (?:is|has|names) )", text)
        if start and start["name"] in options:
            text = name(options[start["name"]]) + text[start.end() :]
        return text


def options_of(parts: Mapping[str, Part]) -> list[Option]:
    """Every field of every part, in order. Where a field of another part has the same key, the option is for both."""
    found: dict[str, Option] = {}
    for group, part in parts.items():
        kind = part.kind
        hints, texts = typing.get_type_hints(kind), field_help(kind)
        for field in dataclasses.fields(kind):
            if (part.only and field.name not in part.only) or not field.init or _holds_config(field):
                continue
            default = None if part.saved else _default(field, part.config)
            key = RENAMED.get((kind.__name__, field.name), field.name)
            if (first := found.get(key)) is not None:
                default = first.default if first.default == default else None
                found[key] = dataclasses.replace(first, configs=(*first.configs, kind), default=default)
            else:
                found[key] = Option(
                    key, group, field.name, (kind,), hints[field.name], default, texts.get(field.name, "")
                )
    return list(found.values())


@functools.cache
def field_help(kind: type) -> dict[str, str]:
    """What the `Attributes:` section of a config's docstring tells of each field, or its metadata."""
    from docstring_parser import parse

    found = {f.name: f.metadata["help"] for f in dataclasses.fields(kind) if "help" in f.metadata}
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base):
            texts = parse(inspect.cleandoc(base.__doc__ or "")).params
            found |= {p.arg_name: " ".join((p.description or "").split()) for p in texts}
    # A sentence begins with a capital letter, unless it begins with a value that it explains.
    return {k: text if text.split(" ")[0].endswith(":") else text[:1].upper() + text[1:] for k, text in found.items()}


def parse(app: App, commands: Sequence[Command], argv: Sequence[str]) -> tuple[Chosen | None, Callable[..., Any]]:
    """What `argv` asks for: a command's settings and the function to call with a console; (None, what prints the help).

    Raises:
        ConfigError, cyclopts.CycloptsError: a mistake in what was typed, or in the --config file.
    """
    name = next((word for word in argv if not word.startswith("-")), None)
    command = next((each for each in commands if each.name == name), None)
    if command is None:
        known = [each.name for each in commands]
        if name is not None:
            raise ConfigError(f"There is no command {name}.{meant(name, known)} The commands are {', '.join(known)}.")
        for k, each in enumerate(commands):
            app.command(_stub(each, ()), name=each.name, sort_key=k)
        if wrong := [word for word in argv if word not in ("-h", "--help", "--version")]:
            raise ConfigError(f"There is no option {wrong[0]} before a command. See `ebrm --help`.")
        function, bound, _ = app.parse_args(argv)
        return None, lambda console: function(*bound.args, **bound.kwargs)
    early = _typed_early(argv, ("config", *command.choosers))
    written = _read_yaml(early["config"]) if early["config"] else {}
    inner = [value for value in written.values() if isinstance(value, dict)]
    choice = {
        name: early[name] or next((v[name] for v in (written, *inner) if name in v), None) for name in command.choosers
    }
    parts = command.parts if isinstance(command.parts, Mapping) else command.parts(choice)
    options = options_of(parts)
    stub = _stub(command, options)
    app.command(stub, name=command.name)
    try:
        function, bound, _ = app.parse_args(argv)
    except UnknownOptionError as error:
        typed = str(error.token.keyword or error.token.value).split("=")[0].removeprefix("--no-").lstrip("-")
        if reason := command.refuse(typed.replace("-", "_"), choice):
            raise ConfigError(reason) from None
        raise
    if function is not stub:
        return None, lambda console: function(*bound.args, **bound.kwargs)
    file = str(early["config"] or "")
    given = _read_written(file, written, parts, options, lambda key: command.refuse(key, choice))
    keys = set(given)
    for option in options:
        if (value := bound.arguments.pop(option.key, None)) is None:
            continue
        if option.is_mapping:
            value = given.get(option.key, {}) | read_items(value, option.hint, option.flag)
        given[option.key] = read(value, option.hint, option.flag)
        keys.discard(option.key)
    arguments = [value for key, value in bound.arguments.items() if key not in _RUN]
    chosen = Chosen(options, given, file, keys)
    return chosen, lambda console: command.function(console, chosen, *arguments)


def _stub(command: Command, options: Sequence[Option]) -> Callable[..., None]:
    """A function with the signature that cyclopts makes the command's arguments, options and help of."""

    def stub(*_: Any, **__: Any) -> None: ...

    parameters = [
        parameter.replace(kind=inspect.Parameter.POSITIONAL_ONLY)
        for parameter in list(inspect.signature(command.function, eval_str=True).parameters.values())[2:]
    ]

    def add(key: str, kind: Any, group: Group, **more: Any) -> None:
        how = Parameter(group=group, negative=None if kind is bool else (), allow_repeating=True, **more)
        annotation = Annotated[kind | None, how]
        parameters.append(inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation))

    groups = {name: Group(name.replace("_", " ").capitalize(), sort_key=k) for k, name in enumerate(_groups(options))}
    for option in options:
        kind = bool if without_none(option.hint) is bool else list[str] if option.is_mapping else str
        more = {"name": option.flag, "help": option.shown_help, "metavar": metavar(option.hint)}
        add(option.key, kind, groups[option.group], allow_leading_hyphen=more["metavar"][0] in "NX", **more)
    run = Group("Run", sort_key=len(groups))
    add("config", str, run, name="--config", help=_RUN["config"], metavar="FILE")
    for name in ("json", "quiet", "verbose"):
        names = [f"--{name}"] + [f"-{name[0]}"] * (name != "json")
        add(name, bool, run, name=names, help=_RUN[name], negative_bool="")
    stub.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    stub.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    stub.__doc__, stub.__name__ = command.function.__doc__, command.name
    return stub


def _groups(options: Sequence[Option]) -> list[str]:
    return list(dict.fromkeys(option.group for option in options))


def _typed_early(argv: Sequence[str], names: Iterable[str]) -> dict[str, str | None]:
    """The values of the options that decide which other options there are."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in names:
        early.add_argument("--" + name.replace("_", "-"), nargs="?")
    return vars(early.parse_known_args(list(argv))[0])


def _read_yaml(path: str) -> dict[str, Any]:
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
    if not isinstance(content, dict | None):
        raise ConfigError(f"--config {path} holds {describe(content)} at the top; expected `setting: value` lines.")
    return {str(key): value for key, value in (content or {}).items()}


def _read_written(
    path: str,
    written: Mapping[str, Any],
    parts: Mapping[str, Part],
    options: Sequence[Option],
    refuse: Callable[[str], str | None],
) -> dict[str, Any]:
    """The settings in the file: keys at the top level, or fields under the names of their parts."""
    given = {}

    def take(place: str, known: Mapping[str, Option], names: Iterable[str], value: Any) -> None:
        name = place.rpartition(".")[2]
        if (option := known.get(name)) is None:
            if reason := refuse(name):
                raise ConfigError(f"{path}: {reason}")
            hint = meant(name, names) or f" Known here: {', '.join(names)}."
            raise ConfigError(f"{path}: {place} is not a setting of this command.{hint}")
        given[option.key] = read(value, option.hint, f"{path}: {place}")

    by_key = {option.key: option for option in options}
    for key, value in written.items():
        if (
            key in parts
            and (isinstance(value, dict) or value is None)
            and not (key in by_key and by_key[key].is_mapping)
        ):
            fields = {o.field: o for o in options if parts[key].kind in o.configs}
            for name, item in (value or {}).items():
                take(f"{key}.{name}", fields, list(fields), item)
        else:
            take(key, by_key, sorted({*by_key, *parts}), value)
    return given


def _holds_config(field: Any) -> bool:
    """True for a field that is a config itself: its own fields are options in a group of their own."""
    default = _default(field, None)
    return dataclasses.is_dataclass(default)


def _default(field: Any, config: Any) -> Any:
    if config is not None and not isinstance(config, type):
        return getattr(config, field.name)
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
