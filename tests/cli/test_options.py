from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import typer

from ebrm.backbone import BackboneConfig
from ebrm.cli.options import choose, command, read_config, settings_of
from ebrm.data import PreferenceConfig, TextConfig
from ebrm.errors import ConfigError
from ebrm.features import FeatureConfig
from ebrm.heads import FitConfig, InferenceConfig, NetworkConfig


@dataclass(frozen=True)
class First:
    name: str = field(metadata={"help": "Its name"})
    seed: int = field(default=0, metadata={"help": "Seed."})
    rate: float = field(default=9e-5, metadata={"help": "Rate, per step."})
    quick: bool = field(default=False, metadata={"help": "Be quick."})
    careful: bool = field(default=True, metadata={"help": "Be careful."})
    columns: dict[str, str] = field(default_factory=dict, metadata={"help": "Names."})
    mode: Literal["a", "b"] = field(default="a", metadata={"help": "Which."})
    widths: tuple[int, ...] | None = field(default=None, metadata={"help": "Widths."})


@dataclass(frozen=True)
class Second:
    seed: int = field(default=1, metadata={"help": "Another seed."})
    kind: str = field(default="x", metadata={"help": "Kind.", "choices": ("x", "y")})
    kwargs: dict[str, Any] = field(default_factory=dict, metadata={"help": "Anything."})

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ConfigError("seed is negative")


STAGES: dict[str, type] = {"first": First, "second": Second}


def run(arguments: list[str], stages: dict[str, type] = STAGES) -> Any:
    """What the command is called with: (First, Second, the argument)."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    seen: list[Any] = []

    @command(app, "do", stages)
    def do(screen: Any, chosen: Any, thing: Annotated[str, typer.Argument()] = "-") -> None:
        """Do it."""
        seen.append((chosen, thing, screen))

    @app.callback()
    def general() -> None: ...

    app(["do", *arguments], standalone_mode=False)
    return seen[0]


def typed(arguments: list[str]) -> tuple[First, Second]:
    chosen, _, _ = run(arguments)
    return chosen.of(First), chosen.of(Second)


def config(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return ["--config", str(path)]


def test_defaults_are_the_dataclass_ones() -> None:
    first, second = typed(["--name", "n"])
    assert first == First("n")
    assert second == Second()


def test_every_option_reaches_its_field() -> None:
    first, second = typed(
        [
            *("--name", "n", "--seed", "3", "--rate", "1e-3", "--quick", "--no-careful", "--column", "prompt=q"),
            *("--column", "a=b", "--mode", "b", "--widths", "4,5", "--second-seed", "4", "--kind", "y"),
            *("--kwarg", "think=false"),
        ]
    )
    assert first == First("n", 3, 1e-3, True, False, {"prompt": "q", "a": "b"}, "b", (4, 5))
    assert second == Second(4, "y", {"think": False})


def test_yaml_nested_and_flat_under_typed(tmp_path: Path) -> None:
    text = "name: from-file\nfirst:\n  rate: 1e-2\n  columns: {prompt: q, a: b}\nsecond_seed: 7\nquick: true\nsecond:\n"
    first, second = typed([*config(tmp_path, text), "--rate", "0.5", "--column", "a=c", "--no-quick"])
    assert first == First("from-file", rate=0.5, columns={"prompt": "q", "a": "c"}, quick=False)
    assert second == Second(7)


def test_a_default_that_is_typed_still_wins_over_the_file(tmp_path: Path) -> None:
    first, _ = typed([*config(tmp_path, "name: n\nseed: 9\n"), "--seed", "0"])
    assert first.seed == 0


def test_a_needed_field_is_asked_for_by_its_flag() -> None:
    chosen, _, _ = run([])
    with pytest.raises(ConfigError, match=r"--name is needed: Its name\..*`name`"):
        chosen.of(First)


def test_given_holds_only_what_was_given(tmp_path: Path) -> None:
    chosen, _, _ = run([*config(tmp_path, "seed: 0\n"), "--no-careful"])
    assert chosen.given(First) == {"seed": 0, "careful": False}
    assert chosen.given(Second) == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sead: 3\n", ("sead", "Did you mean `seed`")),
        ("first:\n  rte: 3\n", ("first.rte", "Did you mean `rate`")),
        ("fist:\n  rate: 3\n", ("fist", "Did you mean `first`")),
        ("zzzz: 3\n", ("zzzz", "Known here")),
        ("rate: fast\n", ("run.yaml: rate", "`fast`", "a number")),
        ("first:\n  mode: c\n", ("first.mode", "one of a, b")),
        ("kind: z\n", ("kind", "one of x, y")),
        ("- a\n", ("a list",)),
        ("rate: [\n", ("not valid YAML", "line 2")),
        ("name: 12\n", ("quotes",)),
    ],
)
def test_mistakes_in_the_file(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        read_config(config(tmp_path, text)[1], settings_of(STAGES))
    for word in words:
        assert word in str(caught.value)


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_config(tmp_path / "no.yaml", settings_of(STAGES))
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="UTF-8"):
        read_config(tmp_path / "b.yaml", settings_of(STAGES))


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    assert read_config(config(tmp_path, "# nothing\n")[1], settings_of(STAGES)) == {}


def test_a_field_named_like_its_stage_can_be_flat_or_nested(tmp_path: Path) -> None:
    settings = settings_of({"backbone": BackboneConfig})
    flat = read_config(config(tmp_path, "backbone: a/b\n")[1], settings)
    nested = read_config(config(tmp_path, "backbone:\n  backbone: a/b\n")[1], settings)
    assert flat == nested == {("backbone", "backbone"): "a/b"}


def test_only_and_saved() -> None:
    found = settings_of(STAGES, only={"first": ("seed",)}, saved=("second",))
    assert [s.key for s in found] == ["seed", "second_seed", "kind", "kwargs"]
    assert "(default: 0)" in found[0].shown_help
    assert "default" not in found[1].shown_help


def test_the_settings_of_the_library_are_all_options() -> None:
    stages = {
        "data": PreferenceConfig, "text": TextConfig, "reward_model": BackboneConfig, "storage": FeatureConfig,
        "network": NetworkConfig, "training": FitConfig, "inference": InferenceConfig,
    }  # fmt: skip
    settings = settings_of(stages)
    assert len({s.flag for s in settings}) == len({s.key for s in settings}) == len(settings)
    for setting in settings:
        assert setting.help, f"{setting.stage}.{setting.field} has no help"
    chosen, _, _ = run(["--backbone", "m"], stages)
    for kind in stages.values():
        expected = kind("m") if kind is BackboneConfig else kind()
        assert chosen.of(kind) == expected


@pytest.mark.parametrize(
    ("typed", "written", "expected"),
    [
        ("none", None, ()),
        ("0.25,1", None, (0.25, 1.0)),
        ("0.5", None, (0.5,)),
        (None, "layers: none", ()),
        (None, "reward_model:\n  layers: []", ()),
        (None, "layers: [0.25, 1]", (0.25, 1.0)),
        ("none", "layers: [0.25, 1]", ()),
        (None, None, (1 / 3, 2 / 3)),
    ],
)
def test_layers_are_depths_or_none(
    tmp_path: Path, typed: str | None, written: str | None, expected: tuple[float, ...]
) -> None:
    arguments = ["--backbone", "m", *(["--layers", typed] if typed else [])]
    arguments += config(tmp_path, written) if written else []
    chosen, _, _ = run(arguments, {"reward_model": BackboneConfig})
    assert chosen.of(BackboneConfig).layers == expected


def test_choose_needs_a_value_for_every_setting() -> None:
    with pytest.raises(ValueError, match="zip"):
        choose(STAGES, settings_of(STAGES), [None], None)


def test_common_options_reach_the_screen() -> None:
    chosen, thing, screen = run(["x", "--name", "n", "--json", "-q"])
    assert (thing, screen.json, screen.quiet, screen.verbose) == ("x", True, True, False)
    assert chosen.of(First).name == "n"


def test_help_shows_groups_defaults_and_both_switches(capsys: pytest.CaptureFixture[str]) -> None:
    app = typer.Typer(add_completion=False, rich_markup_mode=None)

    @command(app, "do", STAGES)
    def do(screen: Any, chosen: Any) -> None:
        """Do it.

        At length.
        """

    app(["--help"], standalone_mode=False)
    out = capsys.readouterr().out
    for words in (
        "Do it.", "At length.", "\nFirst\n", "\nSecond\n", "--careful, --no-careful", "(default: --careful)",
        "--mode a|b", "--column NAME=VALUE", "--second-seed N", "Rate, per step. (default: 9e-05)", "--config FILE",
    ):  # fmt: skip
        assert words in out, words


def test_the_signature_is_what_the_framework_reads() -> None:
    app = typer.Typer()

    @command(app, "do", {"second": Second})
    def do(screen: Any, chosen: Any, thing: Annotated[str, typer.Argument()]) -> None:
        """Do it."""

    callback = app.registered_commands[0].callback
    assert callback is not None
    assert list(inspect.signature(callback).parameters) == [
        "thing", "second__seed", "second__kind", "second__kwargs", "config", "json", "quiet", "verbose",
    ]  # fmt: skip
