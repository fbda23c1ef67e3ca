"""The packaged demonstration, run once as a person runs it, and the card and files it is made of."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tests.terminal import ebrm as in_process
from tests.terminal import refused

import ebrm
from ebrm.backbone.demo import ENCODER_PACKAGE
from ebrm.cli.main import main
from ebrm.demo import run as demo
from ebrm.demo.run import as_preferred, score_live
from ebrm.features import open_features
from ebrm.model import EnergyRewardModel

PACKAGED = Path(ebrm.__path__[0]) / "demo"
pytestmark = pytest.mark.skipif(find_spec(ENCODER_PACKAGE) is None, reason="the extra `demo` is not installed")


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    out = tmp_path_factory.mktemp("demo") / "demo-out"
    with pytest.MonkeyPatch.context() as patch:
        said: list[str] = []
        patch.setattr("sys.stdout.write", lambda text: said.append(text) or len(text))
        assert main(["demo", "--out", str(out)]) == 0
    yield out, "".join(said)


@pytest.fixture(scope="module")
def metrics(ran: tuple[Path, str]) -> dict[str, Any]:
    return json.loads((ran[0] / "metrics.json").read_text())


def test_it_gains_on_the_pairs_and_keeps_chat(metrics: dict[str, Any]) -> None:
    assert metrics["difference"]["low"] > 0.1
    assert metrics["recommendation"]["action"] == "deploy"
    for name in ("base", "refined"):
        assert metrics[name]["low"] < metrics[name]["accuracy"] < metrics[name]["high"]
    gain = metrics["refined"]["accuracy"] - metrics["base"]["accuracy"]
    assert metrics["difference"]["value"] == pytest.approx(gain)
    kept = metrics["anchors"]
    assert kept["base_accuracy"]["low"] > 0.5 and kept["accuracy_difference"]["value"] > -0.02
    assert kept["mean_abs"]["value"] < 0.5 and metrics["pairs_seen"] == "no"


def test_an_earlier_demonstration_is_replaced_and_nothing_else(
    ran: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reached(*_: Any) -> None:
        raise RuntimeError("the demonstration begins")

    monkeypatch.setattr(demo, "open_features", reached)
    for name in ("report.html", "metrics.json", "model"):
        mine = tmp_path / name
        (mine / "model" if name == "model" else mine).mkdir(parents=True)
        if name != "model":
            (mine / name).write_text("mine")
        refused(in_process("demo", "--out", mine), "--out", name, "Choose another name")
        if name != "model":
            with pytest.raises(RuntimeError, match="begins"):
                demo.run(mine, overwrite=True)
    (tmp_path / "empty").mkdir()
    for fine in (ran[0], tmp_path / "new", tmp_path / "empty"):
        with pytest.raises(RuntimeError, match="begins"):
            demo.run(fine)


def test_it_writes_what_it_promises(ran: tuple[Path, str], metrics: dict[str, Any]) -> None:
    timing = json.loads((ran[0] / "model" / "timing.json").read_text())
    assert {"filter", "fit", "refine", "evaluate", "live", "heads"} <= timing["seconds"].keys()
    assert metrics["kept_fraction"] == 1 and metrics["pairs"] > 700
    assert (ran[0] / "report.html").read_text()[:50].upper().startswith("<!DOCTYPE HTML>")


def test_the_numbers_on_the_screen_are_those_in_the_file(ran: tuple[Path, str], metrics: dict[str, Any]) -> None:
    out, said = ran
    for name in ("base", "refined"):
        assert f"{100 * metrics[name]['accuracy']:.1f}%" in said
        assert f"{100 * metrics['anchors'][f'{name}_accuracy']['value']:.1f}%" in said
    for path in ("model", "metrics.json", "report.html"):
        assert path in said
    assert " ".join(metrics["recommendation"]["sentence"].split()) in " ".join(said.split())
    assert json.loads((out / "model" / "config.json").read_text())["fusion"] == metrics["fusion"]


def test_a_person_would_agree_with_the_first_ranking_shown_and_is_told_where_not(ran: tuple[Path, str]) -> None:
    model = EnergyRewardModel.from_pretrained(ran[0] / "model")
    entries = json.loads((PACKAGED / "live.json").read_text())
    right = [as_preferred(score_live(model, entry["prompt"], entry["responses"])) for entry in entries]
    assert right[0] and sum(right) > len(right) / 2
    assert ran[1].count("(wrong: ") == len(right) - sum(right)


def test_the_report_shows_heads_side_by_side_and_no_missing_texts(ran: tuple[Path, str]) -> None:
    page = (ran[0] / "report.html").read_text()
    assert "not at hand" not in page
    for name in ("base RM", "linear head", "SiLU head", "residual head, no anchors", "residual head, anchors"):
        assert name in page and name in ran[1]


def test_the_readme_states_the_demonstration_s_numbers(metrics: dict[str, Any]) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    stated = {line.split("|")[1].strip(): line.split("|") for line in readme.splitlines() if line.startswith("| ")}
    kept = metrics["anchors"]
    # Another processor rounds differently, which may flip a few of the pairs.
    for label, yours, chat in (
        ("base RM", metrics["base"]["accuracy"], kept["base_accuracy"]["value"]),
        ("refined", metrics["refined"]["accuracy"], kept["refined_accuracy"]["value"]),
        ("difference", metrics["difference"]["value"], kept["accuracy_difference"]["value"]),
    ):
        for cell, value, bound in ((stated[label][2], yours, 0.55), (stated[label][3], chat, 1.0)):
            number = float(cell.split("(")[0].replace("points", "").replace("%", "").replace("\u2212", "-"))
            assert number == pytest.approx(100 * value, abs=bound), label
    assert (
        f"{metrics['pairs']:,} held-out pairs of yours" in readme
        and f"{kept['pairs']:,} held-out pairs of chat" in readme
    )


def test_the_saved_model_scores_texts_again(ran: tuple[Path, str]) -> None:
    model = EnergyRewardModel.from_pretrained(ran[0] / "model")
    live = json.loads((PACKAGED / "live.json").read_text())[0]
    ranked = model.rank(live["prompt"], live["responses"])
    assert len(ranked) == len(live["responses"]) and ranked[0].reward >= ranked[-1].reward


def test_the_packaged_features_are_whole_disjoint_and_small() -> None:
    features, anchors = open_features("demo", verify=True), open_features("demo-anchors", verify=True)
    pairs = features.pairs
    prompts = [set(pairs.prompt_id[pairs.split == name]) for name in ("train", "validation", "test")]
    prompts.append(set(anchors.pairs.prompt_id))
    assert all(prompts)
    assert len(set.union(*prompts)) == sum(map(len, prompts))
    assert not pairs.rm_training.any() and not anchors.pairs.rm_training.any()
    size = sum(file.stat().st_size for name in ("features", "anchors") for file in (PACKAGED / name).iterdir())
    assert size <= 6_000_000
    assert features.manifest["backbone"]["name"] == "demo"
    anchors.check(features.manifest["backbone"], features.manifest["text"])


def test_the_anchors_are_kept_to_by_their_name() -> None:
    by_name = ebrm.fit(open_features("demo"), keep="demo-anchors")
    given = ebrm.fit(open_features("demo"), keep=open_features("demo-anchors"))
    assert by_name.anchors is not None and given.anchors is not None
    assert by_name.anchors.to_dict() == given.anchors.to_dict()


@pytest.mark.parametrize("name", ["features", "anchors"])
def test_the_packaged_features_hold_no_text(name: str) -> None:
    folder = PACKAGED / name
    pairs = open_features(folder, verify=False).pairs
    assert not pairs.chosen.is_floating_point() and not pairs.rejected.is_floating_point()  # row numbers
    assert not {"prompt", "response", "text"} & {
        *_columns(folder / "items.parquet"),
        *_columns(folder / "pairs.parquet"),
    }
    for column in (pairs.where, pairs.source, pairs.category, pairs.split):
        assert max(len(str(value)) for value in column) < 60


def _columns(path: Path) -> list[str]:
    import pyarrow.parquet as pq

    return pq.read_schema(path).names
