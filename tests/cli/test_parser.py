from __future__ import annotations

import shlex
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from cyclopts import App, Parameter

from ebrm.backbone import BackboneConfig
from ebrm.cli.main import COMMANDS
from ebrm.cli.parser import Chosen, Command, Part, field_help, options_of, parse
from ebrm.data import PreferenceConfig
from ebrm.errors import ConfigError, setting


@dataclass(frozen=True)
class First:
    """One config.

    Attributes:
        name: its name
        rate: rate, per step,
            over two lines.
        window: a: is an end
    """

    name: str
    seed: int = 0
    rate: float = 9e-5
    quick: bool = False
    careful: bool = True
    columns: dict[str, str] = field(default_factory=dict)
    mode: Literal["a", "b"] = "a"
    widths: tuple[int, ...] | None = None
    window: tuple[float, float] = (-1.0, 1.0)


@dataclass(frozen=True)
class Second:
    seed: int = 1
    kind: Literal["x", "y"] = "x"
    kwargs: dict[str, Any] = field(default_factory=dict)
    mode: Literal["a", "b"] = "a"

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ConfigError(f"The setting seed is {self.seed}; it must be 0 or more, or give {setting('mode', 'b')}.")


@dataclass(frozen=True)
class InferenceConfig:
    seed: int = 2


PARTS = {"first": Part(First), "second": Part(Second), "inference": Part(InferenceConfig)}


def run(*words: object, parts: Any = PARTS, **more: Any) -> tuple[Chosen, tuple[Any, ...]]:
    """What the command is called with: its settings and its arguments."""
    seen: list[Any] = []

    def do(console: Any, chosen: Chosen, thing: Annotated[str, Parameter(name="THING")] = "-") -> None:
        """Do it."""
        seen.append((chosen, thing))

    app = App("ebrm", print_error=False, exit_on_error=False)
    chosen, call = parse(app, [Command("do", do, parts, **more)], ["do", *map(str, words)])
    call(None)
    assert seen[0][0] is chosen
    return seen[0]


def typed(*words: object) -> tuple[First, Second]:
    chosen, _ = run(*words)
    return chosen.of(First), chosen.of(Second)


@pytest.fixture
def config(tmp_path: Path) -> Any:
    def write(text: str) -> tuple[str, str]:
        (tmp_path / "run.yaml").write_text(text, encoding="utf-8")
        return "--config", str(tmp_path / "run.yaml")

    return write


def test_defaults_are_the_dataclass_ones() -> None:
    assert typed("--name", "n") == (First("n"), Second())


def test_every_option_reaches_its_field() -> None:
    words = (
        "x --name n --rate 1e-3 --quick --no-careful --column prompt=q --column a=b --widths 4,5 --window -2,2 "
        "--kind y --kwarg think=false --inference-seed 4"
    )
    chosen, thing = run(*shlex.split(words))
    expected = First("n", 0, 1e-3, True, False, {"prompt": "q", "a": "b"}, "a", (4, 5), (-2.0, 2.0))
    assert (thing, chosen.of(First)) == ("x", expected)
    assert chosen.of(Second) == Second(kind="y", kwargs={"think": False})
    assert chosen.of(InferenceConfig).seed == 4  # one meaning a name: --seed is not inference's


def test_an_option_of_two_configs_is_for_both_and_the_last_one_typed_counts() -> None:
    first, second = typed("--name", "n", "--seed", 3, "--mode=a", "--mode", "b", "--quick", "--no-quick")
    assert (first.seed, second.seed, first.mode, second.mode, first.quick) == (3, 3, "b", "b", False)


def test_in_the_file_an_option_of_two_configs_can_be_given_for_one(config: Any) -> None:
    first, second = typed("--name", "n", *config("mode: b\nfirst: {seed: 3}"))
    assert (first.seed, second.seed, first.mode, second.mode) == (3, 1, "b", "b")
    first, second = typed("--name", "n", "--seed", 5, *config("first: {seed: 3}"))
    assert (first.seed, second.seed) == (5, 5)


def test_the_file_nested_and_flat_is_under_what_is_typed(config: Any) -> None:
    text = (
        "name: from-file\nfirst:\n  rate: 1e-2\n  columns: {prompt: q, a: b}\ninference_seed: 7\nquick: true\nsecond:\n"
    )
    chosen, _ = run(*config(text), "--rate", "0.5", "--column", "a=c", "--no-quick", "--seed", "0")
    assert chosen.of(First) == First("from-file", rate=0.5, columns={"prompt": "q", "a": "c"}, quick=False)
    assert chosen.of(InferenceConfig).seed == 7
    assert chosen.given(First) == {"name": "from-file", "rate": 0.5, "columns": {"prompt": "q", "a": "c"},
                                   "quick": False, "seed": 0}  # fmt: skip
    assert chosen.given(Second) == {"seed": 0}  # a default that is typed is given
    assert run(*config("inference: {seed: 5}"))[0].of(InferenceConfig).seed == 5
    assert run(*config("# nothing\n"))[0].flags(First, Second, InferenceConfig) == []


def test_a_config_with_defaults_of_its_own() -> None:
    chosen, _ = run("--kind", "y", parts={"second": Part(Second(seed=5))})
    assert chosen.of(Second(seed=5)) == Second(5, "y")
    assert next(o for o in chosen.options if o.key == "seed").shown_help.endswith("(default: 5)")


def test_a_needed_field_is_asked_for_by_its_flag() -> None:
    with pytest.raises(ConfigError, match=r"--name is needed: Its name\. .* or as 'name'"):
        run()[0].of(First)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sead: 3\n", ("sead", "Did you mean `seed`")),
        ("first:\n  rte: 3\n", ("first.rte", "Did you mean `rate`")),
        ("fist:\n  rate: 3\n", ("fist", "Did you mean `first`")),
        ("zzzz: 3\n", ("zzzz", "Known here")),
        ("rate: fast\n", ("run.yaml: rate", "`fast`", "a number")),
        ("first:\n  mode: c\n", ("first.mode", "one of a, b")),
        ("- a\n", ("a list",)),
        ("rate: [\n", ("not valid YAML", "line 2")),
        ("name: 12\n", ("quotes",)),
        ("first: 3\n", ("first",)),
    ],
)
def test_mistakes_in_the_file(config: Any, text: str, words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        run(*config(text))
    for word in words:
        assert word in str(caught.value)


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    for name, words in (("no.yaml", "no such file"), ("b.yaml", "UTF-8")):
        with pytest.raises(ConfigError, match=words):
            run("--config", tmp_path / name)


def test_a_field_named_like_its_part_can_be_flat_or_nested_and_a_typed_none_empties_a_list(config: Any) -> None:
    parts = {"backbone": Part(BackboneConfig)}
    for text in ("backbone: a/b\nlayers: [0.25, 1]\n", "backbone:\n  backbone: a/b\n  layers: [0.25, 1]\n"):
        assert run(*config(text), parts=parts)[0].of(BackboneConfig) == BackboneConfig("a/b", layers=(0.25, 1.0))
        assert run(*config(text), "--layers", "none", parts=parts)[0].of(BackboneConfig).layers == ()
    assert run("--backbone", "m", parts=parts)[0].of(BackboneConfig) == BackboneConfig("m")


def test_a_choice_brings_its_options_and_explains_those_it_does_not_bring(config: Any) -> None:
    def parts(choice: Any) -> dict[str, Part]:
        return {"second": Part(Second)} | ({"first": Part(First)} if choice["mode"] == "b" else {})

    def refuse(name: str, choice: Any) -> str | None:
        return "--rate is for mode b." if name == "rate" else None

    more: Any = {"parts": parts, "choosers": {"mode": "second"}, "refuse": refuse}
    for words in (("--rate", 1, "--mode", "b"), ("--rate=1", "--mode=b"), (*config("mode: b\nrate: 1"),)):
        assert run(*words, **more)[0].given(First) == {"mode": "b", "rate": 1.0}
    for words in (("--rate", 1), ("--rate=1", "--mode", "a"), config("rate: 1"), config("second: {mode: a}\nrate: 1")):
        with pytest.raises(ConfigError, match="--rate is for mode b"):
            run(*words, **more)


def test_errors_of_a_config_name_the_option_or_the_place_in_the_file(config: Any) -> None:
    with pytest.raises(ConfigError, match=r"^--seed is -1; .* or give `--mode b`\.$"):
        run("--seed", -1)[0].of(Second)
    with pytest.raises(ConfigError, match=r"run\.yaml: seed is -1; .* `--mode b`"):
        run(*config("seed: -1"))[0].of(Second)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"Rows are bad. Give {setting('quick', True)}.", "Rows are bad. Give `--quick`."),
        (f"Give {setting('careful', False)}.", "Give `--no-careful`."),
        (f"{setting('columns', {'prompt': 'a question'})} fits.", "`--column 'prompt=a question'` fits."),
        (f"{setting('columns', {'a': 'b', 'c': 'd'})}", "`--column a=b --column c=d`"),
        (setting("widths", None), "`--widths none`"),
        (setting("columns", {"a": "my `q`"}), "`--column 'a=my `q`'`"),
        ("Raise `rate` or `other`.", "Raise `--rate` or `other`."),
        (f"{setting('other', 1)} stays, and so does `rate = 3`.", "`other=1` stays, and so does `rate = 3`."),
        ("name is 3; names nothing", "--name is 3; names nothing"),
        ("the name is 3", "the name is 3"),
    ],
)
def test_a_library_s_sentence_is_shown_with_options(text: str, shown: str) -> None:
    assert run("--name", "n")[0].in_options(text) == shown


def test_help_of_fields_comes_from_docstrings() -> None:
    expected = {"name": "Its name", "rate": "Rate, per step, over two lines.", "window": "a: is an end"}
    assert field_help(First) == expected


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_option_of_every_command_has_help_and_fits_its_default(command: Command) -> None:
    options = options_of(command.parts_for())
    assert len({o.flag for o in options}) == len(options)
    for option in options:
        assert option.help, f"{command.name} {option.flag} has no help"


def test_one_option_has_one_meaning_in_all_commands() -> None:
    meanings = defaultdict(set)
    for command in COMMANDS:
        for option in options_of(command.parts_for()):
            meanings[option.key] |= {f"{kind.__name__}.{option.field}" for kind in option.configs}
    for key, found in meanings.items():
        assert len({name.split(".")[1] for name in found}) == 1, (key, found)
    # Words that mean another thing in another config have another name there.
    assert {name.split(".")[0] for name in meanings["data"]} == {"FitJob", "FeaturesJob"}
    assert not {"InferenceConfig.seed", "BenchmarkConfig.seed", "CompareConfig.seed"} & meanings["seed"]
    assert "InferenceConfig.nodes" not in meanings["nodes"] and "BackboneConfig.head" not in meanings["head"]


def test_what_labels_mean_is_typed_value_by_value_or_by_comparison():
    data = {"data": Part(PreferenceConfig)}
    chosen, _ = run(
        "--label-map", "1=a", "--label-map", "0=b", "--label-map", ">1=tie", "--column", "split=", parts=data
    )
    config = chosen.of(PreferenceConfig)
    assert config.label_map == {"1": "a", "0": "b", ">1": "tie"} and config.columns == {"split": ""}
    said = f"Say it with {setting('label_map', {'<0': 'a', '>0': 'b'})}, or {setting('columns', {'split': ''})}."
    assert chosen.in_options(said) == "Say it with `--label-map '<0=a' --label-map '>0=b'`, or `--column split=`."
    with pytest.raises(ConfigError, match=r"^--label-map has 1=better"):
        run("--label-map", "1=better", parts=data)[0].of(PreferenceConfig)
