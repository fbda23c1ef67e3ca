from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from tests.terminal import ebrm, preference_rows, refused, snapshot, write_lines

from ebrm import fitting
from ebrm.backbone import BackboneConfig
from ebrm.card import trust_in_words
from ebrm.cli import fit
from ebrm.cli.parser import Chosen, options_of
from ebrm.data import PreferenceConfig, TextConfig
from ebrm.errors import ConfigError
from ebrm.features import FeatureConfig
from ebrm.model import EnergyRewardModel


@pytest.fixture(autouse=True)
def plain_report(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Only the first test draws the figures of the report."""
    if not request.node.name.startswith("test_from_text"):
        monkeypatch.setattr("ebrm.report.write_report", lambda path, data: path.write_text("a report"))


QUICK = ("--joint-widths", "12,6", "--epochs", 2)


def test_from_text_to_a_model_with_numbers_and_report(rm: Path, pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "m"
    ran = ebrm("fit", "--backbone", rm, "--data", pairs, "--out", out, *QUICK, "--json")
    assert ran.code == 0, ran.err
    assert {path.name for path in out.iterdir()} == {
        "config.json", "energy.safetensors", "README.md", "metrics.json", "report.html",
    }  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["m"]  # nothing is left of the work
    metrics = json.loads((out / "metrics.json").read_text())
    assert ran.value == {"out": str(out), "metrics": metrics}
    for name in ("base", "refined"):
        assert metrics[name]["low"] <= metrics[name]["accuracy"] <= metrics[name]["high"]
    difference = metrics["refined"]["accuracy"] - metrics["base"]["accuracy"]
    assert metrics["difference"]["value"] == pytest.approx(difference)
    for said in (
        "60 of 60 rows kept",
        "explicit prompt, standard",
        "The base RM contradicts",
        "all are used",
        "Epoch 2",
    ):
        assert said in ran.err, said
    report = (out / "report.html").read_text(encoding="utf-8")
    assert "Question" in report  # the texts of what moved most
    assert "beta" in report  # categories
    card = (out / "README.md").read_text(encoding="utf-8")
    assert f"{100 * metrics['base']['accuracy']:.1f}" in card


def test_accuracy_is_that_of_the_test_pairs(features: Path, model: Path) -> None:
    from ebrm.features import open_features
    from ebrm.fitting import choose_splits
    from ebrm.heads import FitConfig

    read = open_features(features)
    test = read.pairs.select(choose_splits(read.pairs, FitConfig()).test)
    right = int((read.reward[test.chosen] > read.reward[test.rejected]).sum())
    metrics = json.loads((model / "metrics.json").read_text())
    assert metrics["pairs"] == len(test)
    assert metrics["base"]["accuracy"] == pytest.approx(right / len(test))
    assert right not in (0, len(test))  # or a swapped pair would not be seen
    assert EnergyRewardModel.from_pretrained(model).record.metrics["pairs"] == len(test)


def test_nothing_held_out(features: Path, tmp_path: Path) -> None:
    ran = ebrm("fit", "--features", features, "--out", tmp_path / "m", *QUICK, "--test-fraction", 0)
    if ran.code == 0:
        assert "no report" in ran.err
        assert json.loads((tmp_path / "m" / "metrics.json").read_text())["pairs"] == 0
        assert not (tmp_path / "m" / "report.html").exists()
    else:
        refused(ran, "--test-fraction is 0")


def test_people_get_a_table(features: Path, tmp_path: Path) -> None:
    ran = ebrm("fit", "--features", features, "--out", tmp_path / "m", *QUICK)
    assert ran.code == 0, ran.err
    lines = ran.out.splitlines()
    assert lines[0].startswith("Held-out pairs ranked rightly (")
    assert [line.split()[0] for line in lines[2:5]] == ["base", "refined", "difference"]
    assert str(tmp_path / "m" / "report.html") in ran.out
    metrics = json.loads((tmp_path / "m" / "metrics.json").read_text())
    shown = " ".join(ran.out.split())
    contradicted = f"the base RM contradicts {metrics['contradicted_fraction']:.1%} of the training pairs"
    assert f"labels {contradicted} (all were used)" in shown and "filter" not in shown
    assert f"trust {trust_in_words(metrics['trust'])}" in shown


def test_what_the_filter_leaves_out_is_said(features: Path, tmp_path: Path) -> None:
    ran = ebrm("fit", "--features", features, "--out", tmp_path / "m", *QUICK, "--filter-conflicts")
    assert ran.code == 0, ran.err
    metrics = json.loads((tmp_path / "m" / "metrics.json").read_text())
    assert 0 < metrics["kept_fraction"] < 1
    assert f"(the conflict filter kept {metrics['kept_fraction']:.1%})" in " ".join(ran.out.split())
    assert "Conflict filter: kept" in ran.err


def test_features_can_be_kept(rm: Path, pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "m"
    assert ebrm("fit", "--backbone", rm, "--data", pairs, "--out", out, *QUICK, "--keep-features").code == 0
    assert ebrm("fit", "--features", out / "features", "--out", tmp_path / "again", *QUICK).code == 0
    first, again = (EnergyRewardModel.from_pretrained(path) for path in (out, tmp_path / "again"))
    for name, tensor in first.head.state_dict().items():
        assert tensor.equal(again.head.state_dict()[name]), name


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--layers", "none"), "--layers"),
        (("--layers", "0.5"), "--layers"),
        (("--backbone", "rm"), "--backbone"),
        (("--dtype", "float32"), "--dtype"),
        (("--no-trust-remote-code",), "--trust-remote-code"),
        (("--data", "d.jsonl", "--keep-features"), "--data, --keep-features"),
        (
            ("--column", "prompt=question", "--max-length", 9, "--embedding-dtype", "float16"),
            "--column, --max-length, ",
        ),
    ],
)
def test_features_leave_no_room_for_options_of_reading(
    given: tuple[Any, ...], said: str, features: Path, tmp_path: Path
) -> None:
    ran = ebrm("fit", "--features", features, "--out", tmp_path / "m", *QUICK, *given)
    refused(ran, f"together with {said}", "either --features, or --backbone and --data")
    assert not any(tmp_path.iterdir())


def test_options_of_reading_in_the_config_file_are_refused_too(features: Path, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("reward_model:\n  layers: [0.5]\n  token_budget: 100\nlimit: 5\ndevice: cpu\nepochs: 2\n")
    ran = ebrm("fit", "--config", config, "--features", features, "--out", tmp_path / "m")
    refused(ran, "together with --layers, --token-budget, --limit (")


def test_every_option_is_either_refused_with_features_or_matters_to_the_fit() -> None:
    refused_fields = set()
    options = options_of(fit.command.parts)
    for option in options:
        if fit.FitJob in option.configs:
            continue
        try:
            fit._refuse_unused(fit.FitJob("m", features="f"), Chosen(options, {option.key: "a value"}))
        except ConfigError as error:
            assert f"together with {option.flag} (" in str(error)
            refused_fields |= {(kind, option.field) for kind in option.configs}
    read_by = (BackboneConfig, PreferenceConfig, TextConfig, FeatureConfig)
    expected = {(kind, field.name) for kind in read_by for field in fields(kind)}
    assert refused_fields == expected - {(BackboneConfig, "device")}


def test_the_device_is_also_the_energys(features: Path, tmp_path: Path) -> None:
    assert ebrm("fit", "--features", features, "--out", tmp_path / "m", *QUICK, "--device", "cpu").code == 0


def test_what_is_there_is_left_alone(features: Path, model: Path, tmp_path: Path) -> None:
    full, file = tmp_path / "full", tmp_path / "file"
    full.mkdir()
    (full / "thesis.tex").write_text("years of work")
    file.write_text("x")
    before = snapshot(tmp_path)
    refused(ebrm("fit", "--features", features, "--out", full, *QUICK), "exists already", "--overwrite")
    refused(ebrm("fit", "--features", features, "--out", file, *QUICK), "is a file")
    refused(ebrm("fit", "--features", features, "--out", full, *QUICK, "--overwrite"), "does not hold a model")
    refused(ebrm("fit", "--features", features, "--out", file, *QUICK, "--overwrite"), "does not hold a model")
    assert snapshot(tmp_path) == before
    refused(ebrm("fit", "--features", features, "--out", model, *QUICK), "exists already")


def test_overwrite_replaces_a_model_only_when_the_new_one_is_complete(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "m"
    assert ebrm("fit", "--features", features, "--out", out, *QUICK).code == 0
    before = snapshot(out)

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(fitting.FitResult, "save", interrupted)
        assert ebrm("fit", "--features", features, "--out", out, *QUICK, "--overwrite", "--seed", 5).code == 130
    assert snapshot(out) == before
    assert ebrm("fit", "--features", features, "--out", out, *QUICK, "--overwrite", "--seed", 5).code == 0
    assert snapshot(out)["energy.safetensors"] != before["energy.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_an_unfinished_fit_is_not_mixed_with_another(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "m"
    with monkeypatch.context() as patched:
        patched.setattr(fitting.FitResult, "save", interrupted)
        ran = ebrm("fit", "--features", features, "--out", out, *QUICK)
    assert ran.code == 130
    assert "run the same command again" in ran.err
    refused(ebrm("fit", "--features", features, "--out", out, *QUICK, "--seed", 1), "unfinished fit", "--overwrite")
    ran = ebrm("fit", "--features", features, "--out", out, *QUICK)
    assert ran.code == 0, ran.err
    assert "Going on after epoch 2" in ran.err


def test_settings_from_a_file(features: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        f"features: {features}\nout: {tmp_path / 'm'}\nnetwork:\n  joint_widths: [10, 5]\ntraining:\n  epochs: 1\n"
    )
    assert ebrm("fit", "--config", config, "--epochs", 2).code == 0
    record = EnergyRewardModel.from_pretrained(tmp_path / "m").record
    assert record.head.network.joint_widths == (10, 5)
    assert record.head.training.epochs == 2


def test_too_few_pairs_to_measure(rm: Path, tmp_path: Path) -> None:
    data = write_lines(tmp_path / "one.jsonl", preference_rows(1))
    refused(ebrm("fit", "--backbone", rm, "--data", data, "--out", tmp_path / "m", *QUICK), "Give more pairs")
    assert not (tmp_path / "m").exists()
