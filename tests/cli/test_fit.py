from __future__ import annotations

import json
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from tests.terminal import ebrm, preference_rows, refused, snapshot, write_lines

from ebrm.backbone import BackboneConfig
from ebrm.card import fusion_in_words
from ebrm.cli import fit
from ebrm.cli.parser import Chosen, options_of
from ebrm.data import PreferenceConfig, TextConfig
from ebrm.errors import BackboneError, ConfigError
from ebrm.features import FeatureConfig, open_features
from ebrm.heads import ResidualConfig
from ebrm.integrations.trl import reward_function
from ebrm.model import EnergyRewardModel

QUICK = ("--head", "energy", "--joint-widths", "12,6", "--epochs", 2)


@pytest.fixture(autouse=True)
def plain_report(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Only the first test draws the figures of the report."""
    if not request.node.name.startswith("test_from_text"):
        monkeypatch.setattr("ebrm.report.write_report", lambda path, data: path.write_text("a report"))


def fitted(features: Path, out: Path, *more: object) -> Any:
    return ebrm("fit", "--features", features, "--out", out, *QUICK, *more)


def interrupted(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_from_text_to_a_model_with_numbers_and_report(rm: Path, pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "m"
    ran = ebrm("fit", "--backbone", rm, "--data", pairs, "--out", out, *QUICK, "--json")
    assert ran.code == 0, ran.err
    written = {"config.json", "energy.safetensors", "README.md", "metrics.json", "report.html", "timing.json"}
    assert {path.name for path in out.iterdir()} == written
    assert [path.name for path in tmp_path.iterdir()] == ["m"]  # nothing is left of the work
    metrics = json.loads((out / "metrics.json").read_text())
    assert ran.value == {"out": str(out), "metrics": metrics}
    for name in ("base", "refined"):
        assert metrics[name]["low"] <= metrics[name]["accuracy"] <= metrics[name]["high"]
    difference = metrics["refined"]["accuracy"] - metrics["base"]["accuracy"]
    assert metrics["difference"]["value"] == pytest.approx(difference)
    for words in (
        "60 of 60 rows kept",
        "explicit prompt, standard",
        "The base RM contradicts",
        "are used",
        "Epoch 1: loss",
        "2 epochs; the best",
    ):
        assert words in ran.err, words
    report = (out / "report.html").read_text(encoding="utf-8")
    assert "Question" in report and "beta" in report  # texts of what moved most, and categories
    assert f"{100 * metrics['base']['accuracy']:.1f}" in (out / "README.md").read_text(encoding="utf-8")
    timing = json.loads((out / "timing.json").read_text())
    assert (
        timing["seconds"].keys() == {"features", "filter", "fit", "refine", "evaluate"} and len(timing["epochs"]) == 2
    )
    again = tmp_path / "again"
    assert ebrm("fit", "--backbone", rm, "--data", pairs, "--out", again, *QUICK, "-q").code == 0
    one, two = snapshot(out), snapshot(again)
    assert one.keys() == two.keys() and [name for name in one if one[name] != two[name]] == ["timing.json"]


def test_too_few_pairs_to_measure(rm: Path, features: Path, tmp_path: Path) -> None:
    refused(fitted(features, tmp_path / "m", "--test-fraction", 0), "--test-fraction is 0")
    refused(fitted(features, tmp_path / "m", "--filter-conflicts", "--dropout", 1.5), "--dropout", "below 1")
    data = write_lines(tmp_path / "one.jsonl", preference_rows(1))
    refused(ebrm("fit", "--backbone", rm, "--data", data, "--out", tmp_path / "m", *QUICK), "Give more pairs")
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("filtered", [False, True])
def test_people_get_a_table_and_how_labels_were_used(features: Path, tmp_path: Path, filtered: bool) -> None:
    ran = fitted(features, tmp_path / "m", *["--filter-conflicts"] * filtered)
    assert ran.code == 0, ran.err
    lines, shown = ran.out.splitlines(), " ".join(ran.out.split())
    assert lines[0].startswith("Held-out pairs ranked correctly (")
    assert [line.split()[0] for line in lines[2:5]] == ["base", "refined", "difference"]
    assert str(tmp_path / "m" / "report.html") in ran.out
    metrics = json.loads((tmp_path / "m" / "metrics.json").read_text())
    contradicted = f"the base RM contradicts {metrics['contradicted_fraction']:.1%} of the training pairs"
    kept = f"the conflict filter kept {metrics['kept_fraction']:.1%}" if filtered else "all were used"
    assert f"labels {contradicted} ({kept})" in shown
    assert (0 < metrics["kept_fraction"] < 1) if filtered else "filter" not in shown
    assert ("Conflict filter: kept" in ran.err) == filtered
    assert fusion_in_words(metrics["fusion"]) in shown


def test_features_can_be_kept(rm: Path, pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "m"
    assert ebrm("fit", "--backbone", rm, "--data", pairs, "--out", out, *QUICK, "--keep-features").code == 0
    assert fitted(out / "features", tmp_path / "again").code == 0
    first, again = (EnergyRewardModel.from_pretrained(path).head.state_dict() for path in (out, tmp_path / "again"))
    assert first and all(tensor.equal(again[name]) for name, tensor in first.items())


def test_a_fit_from_features_takes_the_texts_for_its_report(
    rm: Path, pairs: Path, features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []
    monkeypatch.setattr("ebrm.report.write_report", lambda path, data: told.append(data.examples[0].response))
    for name, more in (("with", ("--data", pairs)), ("without", ())):
        ran = ebrm("fit", "--features", features, "--out", tmp_path / name, *more)
        assert ran.code == 0, ran.err
    assert told[0] and told[1] is None
    refused(
        ebrm("fit", "--features", features, "--data", pairs, "--limit", 9, "--out", tmp_path / "m"),
        "not made from these preferences", "split, columns, limit",
    )  # fmt: skip
    halves = [tmp_path / f"{name}, half.jsonl" for name in "ab"]
    lines = pairs.read_text().splitlines(keepends=True)
    for half, part in zip(halves, (lines[:30], lines[30:]), strict=True):
        half.write_text("".join(part))
    several = ("--data", halves[0], "--data", halves[1])
    assert ebrm("fit", "--backbone", rm, *several, "--out", tmp_path / "m").code == 0
    heads = [EnergyRewardModel.from_pretrained(tmp_path / name).head.state_dict() for name in ("m", "with")]
    assert all(tensor.allclose(heads[1][name], atol=1e-4) for name, tensor in heads[0].items())


def test_features_and_reward_models_that_are_not_there_are_said_by_name(
    rm: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(ebrm("fit", "--features", "runs/f", "--out", "m"), "no folder runs/f", "ebrm features")
    moving = shutil.copytree(rm, tmp_path / "rm")
    assert ebrm("fit", "--backbone", moving, "--data", pairs, "--out", "m").code == 0
    moving.rename(tmp_path / "elsewhere")
    refused(ebrm("score", "m", pairs, "--out", "o.jsonl"), "If it has moved", "`--backbone PATH`")
    assert ebrm("score", "m", pairs, "--out", "o.jsonl", "--backbone", "elsewhere").code == 0
    with pytest.raises(BackboneError, match="If it has moved"):
        reward_function("m")
    assert reward_function("m", backbone="elsewhere")(["Question"], ["an answer"])[0] is not None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--backbone", "rm", "--layers", "none"), "--backbone, --layers ("),
        (("--no-trust-remote-code",), "--trust-remote-code ("),
        (("--data", "d.jsonl", "--keep-features"), "--keep-features ("),
        (("--config", "c.yaml"), "--layers, --token-budget, --limit ("),
    ],
)
def test_options_of_reading_are_refused_with_features(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: tuple[str, ...], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text("reward_model:\n  layers: [0.5]\n  token_budget: 100\nlimit: 5\ndevice: cpu\nepochs: 2\n")
    refused(fitted(features, tmp_path / "m", *given), f"together with {words}", "either --features, or --backbone and")
    assert [path.name for path in tmp_path.iterdir()] == ["c.yaml"]


def test_every_option_is_either_refused_with_features_or_matters_to_the_fit() -> None:
    refused_fields = set()
    options = options_of(fit.command.parts_for())
    for option in options:
        if fit.FitJob in option.configs:
            continue
        try:
            fit._reading(fit.FitJob("m", features="f"), Chosen(options, {(k, option.field): 1 for k in option.configs}))
        except ConfigError as error:
            assert f"together with {option.flag} (" in str(error)
            refused_fields |= {(kind, option.field) for kind in option.configs}
    read_by = (BackboneConfig, PreferenceConfig, TextConfig, FeatureConfig)
    expected = {(kind, field.name) for kind in read_by for field in fields(kind)}
    # The device is also where the head is fitted; to restart is of the whole fit.
    assert refused_fields == expected - {(BackboneConfig, "device"), (FeatureConfig, "restart")}


def test_what_is_there_is_left_alone(features: Path, model: Path, tmp_path: Path) -> None:
    full, file = tmp_path / "full", tmp_path / "file"
    full.mkdir()
    (full / "thesis.tex").write_text("years of work")
    file.write_text("x")
    before = snapshot(tmp_path)
    refused(fitted(features, full), "exists already", "Choose another name")
    refused(fitted(features, full, "--overwrite"), "does not hold a model")
    for more in ((), ("--overwrite",)):
        refused(fitted(features, file, *more), "is a file")
    assert snapshot(tmp_path) == before
    refused(fitted(features, model, "--seed", 1), "exists already", "--seed was 0 and is 1", "--overwrite")
    refused(fitted(features, model, "--objective", "nce"), "--objective was joint and is nce")


def test_overwrite_replaces_a_model_only_when_the_new_one_is_complete(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "m"
    assert fitted(features, out).code == 0
    before = snapshot(out)
    with monkeypatch.context() as patched:
        patched.setattr("ebrm.evaluation.measure_fit", interrupted)
        assert fitted(features, out, "--overwrite", "--seed", 5).code == 130
    assert snapshot(out) == before
    assert fitted(features, out, "--overwrite", "--seed", 5, "--device", "cpu").code == 0
    assert snapshot(out)["energy.safetensors"] != before["energy.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_an_unfinished_fit_is_not_mixed_with_another(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("ebrm.evaluation.measure_fit", interrupted)
        ran = fitted(features, tmp_path / "m")
    assert ran.code == 130 and "run the same command again" in ran.err
    for other, words in (
        (("--seed", 1), "(--seed was 0 and is 1)"),
        (("--objective", "nce"), "(--objective was joint and is nce)"),
        (("--dropout", 0.1, "--overwrite"), "(--dropout was 0.5 and is 0.1)"),
    ):
        refused(fitted(features, tmp_path / "m", *other), "unfinished fit with other settings", words, "--restart")
    ran = fitted(features, tmp_path / "m", "--device", "cpu")
    assert ran.code == 0, ran.err
    assert "Going on after epoch 2" in ran.err


def test_settings_from_a_file(features: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    lines = (
        f"features: {features}",
        f"out: {tmp_path / 'm'}",
        "head: energy",
        "network: {joint_widths: [10, 5]}",
        "training: {epochs: 1}",
    )
    config.write_text("\n".join(lines))
    assert ebrm("fit", "--config", config, "--epochs", 2).code == 0
    head = EnergyRewardModel.from_pretrained(tmp_path / "m").record.head
    assert (head.network.joint_widths, head.training.epochs) == ((10, 5), 2)


def residual(rm: Path, pairs: Path, out: Path, *more: object) -> Any:
    return ebrm("fit", "--backbone", rm, "--data", pairs, "--out", out, *more)


def test_by_default_the_residual_head_is_fitted(rm: Path, pairs: Path, tmp_path: Path) -> None:
    ran = residual(rm, pairs, tmp_path / "m", "--base-weight", 0.5)
    assert ran.code == 0, ran.err
    model = EnergyRewardModel.from_pretrained(tmp_path / "m")
    assert model.record.head == ResidualConfig(base_weight=0.5) and model.record.fit.pairs_seen == "unknown"
    assert "Epoch" not in ran.err and "the base RM contradicts" in " ".join(ran.out.split())
    scored = ebrm("score", tmp_path / "m", pairs, "--out", tmp_path / "o.jsonl", "-q")
    assert scored.code == 0, scored.err
    assert "residual" in ebrm("info", tmp_path / "m").out


def test_anchors_are_kept_to_and_the_drift_is_measured(rm: Path, pairs: Path, tmp_path: Path) -> None:
    anchors = preference_rows(60, seed=8, prompt="Something else")
    texts = [{"prompt": row["prompt"], "response": row["chosen"]} for row in anchors]
    keep = {"pairs": write_lines(tmp_path / "pairs.jsonl", anchors), "texts": write_lines(tmp_path / "t.jsonl", texts)}
    keep["features"] = tmp_path / "kept"
    assert ebrm("features", "--backbone", rm, "--data", keep["pairs"], "--out", keep["features"], "-q").code == 0
    for name, source in keep.items():
        ran = residual(rm, pairs, tmp_path / name, "--keep", source)
        assert "What else moves: " in ran.out
        assert ran.code == 0, ran.err
        drift = json.loads((tmp_path / name / "metrics.json").read_text())["anchors"]
        rows = {"texts": 60}.get(name, 120)
        assert 0.1 * rows < drift["rows"] < 0.5 * rows and drift["pairs"] == (
            0 if name == "texts" else drift["rows"] / 2
        )
        assert f"{rows - drift['rows']} texts to keep to, {drift['rows']} to measure the drift on" in ran.err
        assert "there are no anchors" not in " ".join(ran.out.split())
    gates = [
        EnergyRewardModel.from_pretrained(tmp_path / name).head.state_dict()["gate"] for name in ("pairs", "features")
    ]
    assert gates[0].equal(gates[1]) and bool(gates[0].isfinite().all())
    assert sorted(path.name for path in (tmp_path / "pairs").iterdir()) == [
        "README.md", "config.json", "energy.safetensors", "metrics.json", "report.html", "timing.json",
    ]  # fmt: skip


def test_anchors_that_cannot_be_kept_to_are_refused(rm: Path, pairs: Path, features: Path, tmp_path: Path) -> None:
    keep = write_lines(tmp_path / "keep.jsonl", preference_rows(40, seed=8))
    refused(
        residual(rm, pairs, tmp_path / "m", "--keep", keep, "--head", "linear"), "linear", "--keep", "residual head"
    )
    refused(residual(rm, pairs, tmp_path / "m", "--keep", tmp_path / "nothing.jsonl"), "nothing.jsonl")
    refused(
        ebrm("fit", "--features", features, "--out", tmp_path / "m", "--keep", keep), "no reward model to read texts"
    )
    few = write_lines(tmp_path / "few.jsonl", preference_rows(2, seed=8))
    refused(residual(rm, pairs, tmp_path / "n", "--keep", few), "1 different prompts", "20 prompts or more")
    assert not (tmp_path / "m").exists() and not (tmp_path / "n").exists()


def test_who_has_seen_the_pairs_is_fitted_by_and_stored(features: Path, tmp_path: Path) -> None:
    heads = {}
    for seen in ("no", "yes", "unknown"):
        ran = ebrm("fit", "--features", features, "--out", tmp_path / seen, "--pairs-seen", seen)
        assert ran.code == 0, ran.err
        model = EnergyRewardModel.from_pretrained(tmp_path / seen)
        assert model.record.fit.pairs_seen == seen == model.record.data["pairs_seen"]
        assert json.loads((tmp_path / seen / "metrics.json").read_text())["pairs_seen"] == seen
        heads[seen] = model.head.state_dict()
    assert heads["no"]["weight"].equal(heads["unknown"]["weight"])  # of the labels in any case
    assert not bool(heads["yes"]["weight"].any())  # random labels: the base reward comes back
    assert (
        "The refined reward is the base reward"
        in json.loads((tmp_path / "yes" / "metrics.json").read_text())["notes"][0]
    )
    refused(ebrm("fit", "--features", features, "--out", tmp_path / "m", "--pairs-seen", "maybe"), "no, yes, unknown")


def test_a_risk_gives_thresholds_that_the_model_keeps(rm: Path, tmp_path: Path) -> None:
    pairs = write_lines(tmp_path / "pairs.jsonl", preference_rows(160, seed=3))
    ran = residual(rm, pairs, tmp_path / "m", "--risk", 0.4, "--test-fraction", 0.4)
    assert ran.code == 0, ran.err
    rules = EnergyRewardModel.from_pretrained(tmp_path / "m").record.abstention
    assert [rule.kind for rule in rules] == ["marginal", "selective"] and all(rule.risk == 0.4 for rule in rules)
    for rule in rules:
        assert rule.sentence() in " ".join(ran.out.split())
    few = residual(rm, pairs, tmp_path / "few", "--risk", 0.001)
    assert few.code == 0 and "cannot be promised" in few.out
    assert not EnergyRewardModel.from_pretrained(tmp_path / "few").record.abstention[0].possible
    for risk in (0, 1, 1.5):
        refused(
            residual(rm, "nowhere.jsonl", tmp_path / "n", "--risk", risk),
            f"--risk` is {float(risk)}",
            "above 0 and below 1",
        )


def test_swapped_sides_are_asked_about_in_the_first_lines_of_every_command(
    rm: Path, pairs: Path, features: Path, tmp_path: Path
) -> None:
    read = open_features(features)
    right = (read.reward[read.pairs.chosen] > read.reward[read.pairs.rejected]).tolist()
    rows = [
        row | ({"chosen": row["rejected"], "rejected": row["chosen"]} if agrees else {})
        for row, agrees in zip(map(json.loads, pairs.read_text().splitlines()), right, strict=True)
    ]
    data, made = write_lines(tmp_path / "swapped.jsonl", rows), tmp_path / "f"
    asked = "are chosen and rejected swapped?"
    assert asked in ebrm("features", "--backbone", rm, "--data", data, "--out", made).err
    ran = ebrm("fit", "--features", made, "--out", tmp_path / "m")
    assert ran.out.startswith("Warning: The reward model ranks") and asked in " ".join(ran.out.split())
    assert asked in ran.err and "**Warning:** The reward model ranks 0 of" in (tmp_path / "m" / "README.md").read_text()
    compared = ebrm("compare", made, "--methods", "base,linear", "--resamples", 100, "--out", tmp_path / "c")
    assert compared.out.startswith("Warning: The reward model ranks")
    assert "Warning: The reward model ranks" in (tmp_path / "c" / "table.md").read_text()
    ran = ebrm(
        "eval", rm, "--benchmark", data, "--out", tmp_path / "e", "--cache", tmp_path / "cache", "--resamples", 100
    )
    assert ran.code == 0 and asked in ran.err and asked in " ".join(ran.out.split())
