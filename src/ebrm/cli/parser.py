"""Options, `--help` and YAML keys of a command, made from the fields of config dataclasses by cyclopts.

Of the libraries that build a command line from dataclasses, cyclopts raises its errors (one sentence, with the name
that was meant), tells what was typed from the defaults and takes a help page of our own. Values and YAML are read
here, by the same rules: cyclopts would round `30.7` to a whole number.
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
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar, overload

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
    ("CurateConfig", "steps"): "step",
    **{
        (config, field): key
        for config in ("JudgeScorer", "YesNoScorer", "RubricScorer")
        for field, key in (("url", "judge"), ("model", "judge_model"), ("cache", "judge_cache"), ("seed", "judge_seed"))
    },
}
_CONFIG = (
    "A YAML file of settings: any option above without its dashes (`token_budget: 8192`), at the top level or under "
    "the name of its group. What is typed wins over the file."
)
#: Switches of every command: their flags and help.
SWITCHES = {
    "json": (("--json",), "Print one JSON object on stdout, and nothing else there."),
    "quiet": (("--quiet", "-q"), "Only results, warnings and errors."),
    "verbose": (("--verbose", "-v"), "Also what the libraries underneath log."),
}
#: What `ebrm.errors.setting` writes, and a field's name in backticks.
_SETTING = re.compile(r'`(?P<name>[a-z_]+)(?:=(?P<value>(?:"(?:\\.|[^"\\])*"|[^"`])+))?`')


@dataclass(frozen=True)
class Part:
    """A config whose fields are options of a command: `only` these, or all; no default is shown of a `saved` one.

    What has no default must be given, `unless` the option of that name is.
    """

    config: Any  # the dataclass, or an instance of it that holds the defaults
    only: tuple[str, ...] = ()
    saved: bool = False
    unless: str = ""


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
    unless: str = ""
    repeat: bool = False  # typed once a value, which may have commas

    @property
    def is_mapping(self) -> bool:
        """True for fields given as repeated NAME=VALUE."""
        return typing.get_origin(without_none(self.hint)) is dict

    @property
    def flag(self) -> str:
        """Its name on the command line; one value of a mapping is given at a time."""
        return "--" + (self.key.removesuffix("s") if self.is_mapping else self.key).replace("_", "-")

    def typed(self, value: Any) -> str:
        """The option with a value, as it is typed."""
        if isinstance(value, bool):
            return self.flag if value else f"--no-{self.flag[2:]}"
        return f"{self.flag} {'none' if value in (None, [], ()) else shlex.quote(show(value))}"

    def in_flags(self, flags: Mapping[str, str]) -> str:
        """The help with the names of other fields (max_length) as their flags."""
        return re.sub(
            r"(?<![\w.])[a-z]+(?:_[a-z]+)+(?![\w.=])", lambda found: flags.get(found[0], found[0]), self.shown_help
        )

    @property
    def shown_help(self) -> str:
        """The field's help and its default, or that it must be given."""
        if self.default is MISSING:
            return f"{self.help} (required{f' unless {self.unless} is given' if self.unless else ''})"
        if self.default in (None, (), "") or self.default == {}:
            return self.help
        default = self.typed(self.default) if isinstance(self.default, bool) else show(self.default)
        return f"{self.help} (default: {default})".strip()


@dataclass(frozen=True)
class Command:
    """A command: `function(console, chosen, *arguments)`, and the parts its options come from.

    The parts may depend on options such as the head: `choosers` names these and their groups, and `parts` is a function
    of their values, None where one is not given. `refuse(key, choice)` may tell why a choice does not have an option.
    `usage` is how it is called, where its arguments do not say it.
    """

    name: str
    function: Callable[..., None]
    parts: Mapping[str, Part] | Callable[[Mapping[str, Any]], Mapping[str, Part]]
    choosers: Mapping[str, str] = field(default_factory=dict)
    refuse: Callable[[str, Mapping[str, Any]], str | None] = lambda key, choice: None
    usage: str | None = None

    def parts_for(self, choice: Mapping[str, Any] | None = None) -> Mapping[str, Part]:
        """The parts under a choice, by default where nothing is chosen."""
        return self.parts(choice or dict.fromkeys(self.choosers)) if callable(self.parts) else self.parts


@dataclass(frozen=True)
class Chosen:
    """The settings of one run: what was typed, then what the file holds (keys `written`), then the defaults."""

    options: Sequence[Option]
    values: Mapping[tuple[type, str], Any]
    file: str = ""
    written: frozenset[str] = frozenset()
    command: str = ""

    @overload
    def of(self, config: type[T], **more: Any) -> T: ...
    @overload
    def of(self, config: T, **more: Any) -> T: ...
    def of(self, config: Any, **more: Any) -> Any:
        """A config (its class, or an instance with the defaults) with `more` and what was given.

        Raises:
            ConfigError: a field without a default was not given, or the config refuses a value.
        """
        kind = config if isinstance(config, type) else type(config)
        values = more | self.given(kind)
        for option in self.options:
            if config is kind and kind in option.configs and option.default is MISSING and option.field not in values:
                raise ConfigError(
                    f"{option.flag} is needed: {option.help.strip().rstrip('.')}. Give it on the command line, or as "
                    f"'{option.key}' in the --config file."
                )
        try:
            return kind(**values) if config is kind else dataclasses.replace(config, **values)
        except ConfigError as error:  # in the options of this config, where another has a field of the same name
            raise ConfigError(self.in_options(str(error), kind)) from None

    def given(self, kind: type) -> dict[str, Any]:
        """The fields of a config that were typed or stand in the file, and no others."""
        return {field: value for (config, field), value in self.values.items() if config is kind}

    def flags(self, *kinds: type) -> list[str]:
        """The options of these configs that were given."""
        return [o.flag for o in self.options if any((kind, o.field) in self.values for kind in {*kinds} & {*o.configs})]

    def in_options(
        self,
        text: str,
        kind: type | None = None,
        elsewhere: Callable[[str, bool], tuple[str, Option] | None] | None = None,
    ) -> str:
        """A library's sentence with its fields (of `kind`, if given) as the options or the keys they came from.

        Fields stand in backticks, with a value (`bad_rows="skip"`) or alone, or at the beginning (``epochs is 0``).
        One that this command has no option for is the option of the command that `elsewhere` gives for its name, and
        whether it has a value there.
        """
        options = {o.field: o for o in reversed(self.options) if kind is None or kind in o.configs}

        def name(option: Option) -> str:
            return f"{self.file}: {option.key}" if option.key in self.written else option.flag

        def shown(found: re.Match[str]) -> str:
            option, value, command = options.get(found["name"]), found["value"], ""
            if option is None and elsewhere is not None and (there := elsewhere(found["name"], value is not None)):
                command, option = f"ebrm {there[0]} ", there[1]
            if option is None:
                return found[0]
            if value is None:
                return f"`{command}{option.flag if command else name(option)}`"
            value = json.loads(value)
            items = [f"{key}={item}" for key, item in value.items()] if isinstance(value, dict) else [value]
            return f"`{command}{' '.join(map(option.typed, items))}`"

        text = _SETTING.sub(shown, text)
        start = re.match(r"(?:The setting )?([a-z_]+)(?= (?:is|has|names|sets|\() ?)", text)
        return name(options[start[1]]) + text[start.end() :] if start and start[1] in options else text


def options_of(parts: Mapping[str, Part]) -> list[Option]:
    """Every field of every part, in order. Where a field of another part has the same key, the option is for both."""
    found: dict[str, Option] = {}
    for group, part in parts.items():
        kind = part.config if isinstance(part.config, type) else type(part.config)
        hints, texts = typing.get_type_hints(kind), field_help(kind)
        for each in dataclasses.fields(kind):
            default = each.default if each.default_factory is MISSING else each.default_factory()
            default = default if part.config is kind else getattr(part.config, each.name)
            if (part.only and each.name not in part.only) or dataclasses.is_dataclass(default):
                continue  # the fields of a config that it holds are options in a group of their own
            default = None if part.saved else default
            key = key_of(kind, each.name)
            if (first := found.get(key)) is not None:
                default = first.default if first.default == default else None
                found[key] = dataclasses.replace(first, configs=(*first.configs, kind), default=default)
            else:
                help = texts.get(each.name, "")
                found[key] = Option(
                    key,
                    group,
                    each.name,
                    (kind,),
                    hints[each.name],
                    default,
                    help,
                    part.unless,
                    "repeat" in each.metadata,
                )
    return list(found.values())


def key_of(kind: type, field: str) -> str:
    """The name of a config's field among the options of all commands."""
    return RENAMED.get((kind.__name__, field), field)


@functools.cache
def field_help(kind: type) -> dict[str, str]:
    """What the `Attributes:` section of a config's docstring tells of each field."""
    from docstring_parser import parse

    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base):
            read = parse(inspect.cleandoc(base.__doc__ or "")).params
            texts |= {each.arg_name: " ".join((each.description or "").split()) for each in read}
    # A sentence begins with a capital letter, unless it begins with a value that it explains.
    return {k: text if text.split(" ")[0].endswith(":") else text[:1].upper() + text[1:] for k, text in texts.items()}


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
        if "--install-completion" in argv:
            return None, lambda console: _install_completion(commands, console)
        if wrong := [word for word in argv if word not in ("-h", "--help", "--version")]:
            raise ConfigError(f"There is no option {wrong[0]} before a command. See `ebrm --help`.")
        function, bound, _ = app.parse_args(argv)
        return None, lambda console: function(*bound.args, **bound.kwargs)
    early = _typed_early(argv, ("config", *command.choosers))
    file = early["config"] or ""
    written = _read_yaml(file) if file else {}
    choice = {key: early[key] or _written_choice(written, key, group) for key, group in command.choosers.items()}
    parts = command.parts_for(choice)
    options = options_of(parts)
    stub = _stub(command, options)
    app.command(stub, name=command.name, usage=command.usage)
    try:
        function, bound, _ = app.parse_args(argv)
    except UnknownOptionError as error:
        typed = str(error.token.keyword or error.token.value).split("=")[0].removeprefix("--no-").lstrip("-")
        if reason := command.refuse(typed.replace("-", "_"), choice):
            raise ConfigError(reason) from None
        raise
    if function is not stub:
        return None, lambda console: function(*bound.args, **bound.kwargs)
    given = _read_written(file, written, parts, options, lambda key: command.refuse(key, choice))
    keys = {o.key for o in options if any((kind, o.field) in given for kind in o.configs)}
    for option in options:
        if (value := bound.arguments.pop(option.key, None)) is None:
            continue
        items = read_items(value, option.hint, option.flag) if option.is_mapping else {}
        if option.repeat:
            given |= {(kind, option.field): tuple(value) for kind in option.configs}
            keys.discard(option.key)
            continue
        for kind in option.configs:
            whole = given.get((kind, option.field), {}) | items if option.is_mapping else value
            given[kind, option.field] = read(whole, option.hint, option.flag)
        keys.discard(option.key)
    arguments = [value for key, value in bound.arguments.items() if key not in {"config", *SWITCHES}]
    chosen = Chosen(options, given, file, frozenset(keys), command.name)
    return chosen, lambda console: command.function(console, chosen, *arguments)


def _install_completion(commands: Sequence[Command], console: Any) -> None:
    """Have the user's shell complete commands and options, as they are where nothing is chosen."""
    app = App("ebrm", help_format="plaintext")
    for each in commands:
        app.command(_stub(each, options_of(each.parts_for())), name=each.name)
    try:
        place = app.install_completion()
    except Exception as error:  # noqa: BLE001 - a shell that it does not know or find, in several exceptions
        raise ConfigError(f"Completion could not be installed: {' '.join(str(error).split())}") from error
    console.print(f"Completion is installed in {place}; it works in the next shell.")


def _stub(command: Command, options: Sequence[Option]) -> Callable[..., None]:
    """A function with the signature that cyclopts makes the command's arguments, options and help of."""

    def stub(*_: Any, **__: Any) -> None: ...

    parameters = [
        parameter.replace(kind=inspect.Parameter.POSITIONAL_ONLY)
        for parameter in list(inspect.signature(command.function, eval_str=True).parameters.values())[2:]
    ]

    def add(key: str, kind: Any, **more: Any) -> None:
        how = Parameter(negative=None if kind is bool else (), allow_repeating=True, **more)
        annotation = Annotated[kind | None, how]
        parameters.append(inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation))

    named = {option.field: option.flag for option in options}
    names = dict.fromkeys(option.group for option in options)
    groups = {name: Group(name.replace("_", " ").capitalize(), sort_key=k) for k, name in enumerate(names)}
    for option in options:
        kind = bool if without_none(option.hint) is bool else list[str] if option.is_mapping or option.repeat else str
        what = metavar(option.hint)
        add(
            option.key, kind, group=groups[option.group], name=option.flag, help=option.in_flags(named), metavar=what,
            allow_leading_hyphen=what[0] in "NX",
        )  # fmt: skip
    run = Group("Run", sort_key=len(groups))
    add("config", str, group=run, name="--config", help=_CONFIG, metavar="FILE")
    for key, (flags, text) in SWITCHES.items():
        add(key, bool, group=run, name=flags, help=text, negative_bool="")
    stub.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    stub.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    stub.__doc__, stub.__name__ = command.function.__doc__, command.name
    return stub


def _typed_early(argv: Sequence[str], names: Iterable[str]) -> dict[str, str | None]:
    """The values of the options that decide which other options there are."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in names:
        early.add_argument("--" + name.replace("_", "-"), nargs="?")
    return vars(early.parse_known_args(list(argv))[0])


def _written_choice(written: Mapping[str, Any], key: str, group: str) -> Any:
    inner = written.get(group)
    value = inner.get(key) if isinstance(inner, dict) else None
    return value if value is not None or isinstance(written.get(key), dict) else written.get(key)


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
) -> dict[tuple[type, str], Any]:
    """The settings in the file: keys at the top level, or fields under the names of their parts."""
    given: dict[tuple[type, str], Any] = {}

    def take(place: str, known: Mapping[str, Option], names: Iterable[str], value: Any, kinds: Sequence[type]) -> None:
        name = place.rpartition(".")[2]
        if (option := known.get(name)) is None:
            if reason := refuse(name):
                raise ConfigError(f"{path}: {reason}")
            hint = meant(name, names) or f" Known here: {', '.join(names)}."
            raise ConfigError(f"{path}: {place} is not a setting of this command.{hint}")
        if option.repeat and isinstance(value, str):
            value = [value]
        for kind in kinds or option.configs:
            given[kind, option.field] = read(value, option.hint, f"{path}: {place}")

    by_key = {option.key: option for option in options}
    for key, value in written.items():
        is_value = key in by_key and (by_key[key].is_mapping or not isinstance(value, dict | None))
        if key in parts and not is_value and isinstance(value, dict | None):
            config = parts[key].config
            kind = config if isinstance(config, type) else type(config)
            fields = {o.field: o for o in options if kind in o.configs}
            for name, item in (value or {}).items():
                take(f"{key}.{name}", fields, list(fields), item, [kind])
        else:
            take(key, by_key, sorted({*by_key, *parts}), value, [])
    return given
