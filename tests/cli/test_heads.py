"""`--head KIND` brings the head's options; an option of another head or objective is refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from tests.terminal import ebrm, refused

from ebrm.cli import fit
from ebrm.cli.heads import HeadChoice, chosen_head, heads_in
from ebrm.cli.parser import Chosen, options_of
from ebrm.heads import HEADS, OBJECTIVES, AutoConfig, EnergyConfig, LinearConfig, NCEConfig, ResidualConfig
from ebrm.model import EnergyRewardModel


def head(choice: dict[str, Any], **given: Any) -> Any:
    """The head's config under a choice and with fields given."""
    options = options_of(fit.command.parts_for(dict.fromkeys(fit.command.choosers) | choice))
    values = {
        (k, o.field): ({**choice, **given})[o.key] for o in options if o.key in {**choice, **given} for k in o.configs
    }
    return chosen_head(Chosen(options, values))


def test_every_head_and_objective_can_be_chosen() -> None:
    hints = get_type_hints(HeadChoice)
    assert set(get_args(get_args(hints["head"])[0])) == {*HEADS, "auto"}
    assert set(get_args(get_args(hints["objective"])[0])) == set(OBJECTIVES)
    assert head({}) == ResidualConfig()
    assert head({"head": "auto"}) == AutoConfig() and head({"head": "auto"}, folds=3) == AutoConfig(folds=3)
    for kind, config in HEADS.items():
        assert head({"head": kind}) == config()
    for kind, objective in OBJECTIVES.items():
        assert head({"objective": kind}) == EnergyConfig(objective=objective())


def test_given_fields_reach_the_head_and_what_it_holds() -> None:
    assert head({"head": "linear"}, ridge=0.5, coverage=0.8) == LinearConfig(
        ridge=0.5, inference=replace(LinearConfig().inference, coverage=0.8)
    )
    found = head({"objective": "nce"}, negatives=7, epochs=3, inference_nodes=33, dropout=0.1)
    assert found.objective == NCEConfig(negatives=7)
    assert (found.training.epochs, found.inference.nodes, found.network.dropout) == (3, 33, 0.1)


def test_the_paper_s_defaults_and_what_is_given_over_them() -> None:
    assert head({"paper": "large"}) == EnergyConfig.paper("large")
    paper = EnergyConfig.paper("small")
    found = head({"paper": "small"}, negatives=7, epochs=2)
    assert found == replace(
        paper, objective=replace(paper.objective, negatives=7), training=replace(paper.training, epochs=2)
    )
    assert "--filter-conflicts)" in ebrm("fit", "--paper", "small", "--help").out.replace("\n      ", " ")


def test_help_shows_the_options_of_the_head_and_of_no_other() -> None:
    choices = ((), ("--head", "linear"), ("--head", "energy"), ("--objective=nce",))
    residual, linear, energy, nce = (ebrm("fit", *words, "--help").out for words in choices)
    assert "--base-weight X" in residual and "--dropout" not in residual and "--ridge" not in residual
    assert "--ridge X" in linear and "--dropout" not in linear and "--objective" not in linear
    assert "--dropout X" in energy and "--ridge" not in energy and "--label-noise" in energy
    assert "--negatives" in nce and "--label-noise" not in nce


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--head linear --hidden 3", ("--hidden", "head silu, prototypes or directional; the head is linear (--head)")),
        ("--head linear --objective nce", ("--objective", "head energy", "the head is linear")),
        ("--head silu --no-standardize-embedding", ("--standardize-embedding", "head energy")),
        ("--dropout 0.1", ("--dropout", "head energy; the head is residual (--head)")),
        ("--base-weight 0", ("--base-weight is 0.0; it must be above 0",)),
        ("--head linear --base-weight 1", ("--base-weight", "head residual; the head is linear")),
        ("--head energy --negatives 3", ("--negatives", "objective nce; the objective is joint (--objective)")),
        ("--paper small --label-noise 0.1", ("--label-noise", "objective joint; the objective is nce")),
        ("--head liner --ridge 1", ("`liner`", "Did you mean `linear`?")),
        ("--objective jont", ("`jont`", "Did you mean `joint`?")),
        ("--head silu --estimate ascent", ("--estimate", "one of mean, mode")),
        ("--head linear --ridge -1", ("--ridge is -1.0; it must be above 0",)),
        ("--head linear --bogus 1", ("Unknown option: --bogus",)),
    ],
)
def test_what_a_head_does_not_have_is_refused(tmp_path: Path, arguments: str, words: tuple[str, ...]) -> None:
    refused(ebrm("fit", "--features", "f", "--out", tmp_path / "m", *arguments.split()), *words)
    assert not any(tmp_path.iterdir())


def test_the_file_chooses_a_head_too(tmp_path: Path) -> None:
    for text in ("head: linear\nhidden: 3\n", "head: {head: linear}\nlinear: {hidden: 3}\n"):
        (tmp_path / "run.yaml").write_text(text)
        refused(ebrm("fit", "--config", tmp_path / "run.yaml", "--features", "f", "--out", "m"), "run.yaml", "--hidden")


def test_a_head_is_fitted_saved_and_scored(features: Path, pairs: Path, tmp_path: Path) -> None:
    ran = ebrm("fit", "--features", features, "--out", tmp_path / "m", "--head", "linear", "--ridge", 0.5, "--seed", 3)
    assert ran.code == 0, ran.err
    record = EnergyRewardModel.from_pretrained(tmp_path / "m").record
    assert record.head == LinearConfig(ridge=0.5) and record.fit.seed == 3
    assert ebrm("score", tmp_path / "m", features, "--out", tmp_path / "o.jsonl", "-q").code == 0
    assert "linear" in ebrm("info", tmp_path / "m").out


def test_heads_that_methods_fit() -> None:
    assert heads_in("base,silu-uwo,base-and-silu") == ["silu"]
    assert heads_in(("base", "energy", "gaussian-worst-case", "min_norm")) == ["energy", "gaussian", "min_norm"]
    assert heads_in("all") == list(HEADS)
