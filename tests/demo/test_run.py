"""The packaged demonstration, run once as a person runs it, and the card and files it is made of."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

import ebrm
from ebrm.backbone.demo import ENCODER_PACKAGE
from ebrm.cli.main import main
from ebrm.features import open_features
from ebrm.hub import fusion_in_words
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


def test_it_writes_what_it_promises(ran: tuple[Path, str]) -> None:
    out, _ = ran
    metrics = json.loads((out / "metrics.json").read_text())
    for name in ("base", "refined"):
        assert 0.5 < metrics[name]["accuracy"] < 1
        assert metrics[name]["low"] < metrics[name]["accuracy"] < metrics[name]["high"]
    gain = metrics["refined"]["accuracy"] - metrics["base"]["accuracy"]
    assert metrics["difference"]["value"] == pytest.approx(gain)
    assert metrics["difference"]["low"] <= gain <= metrics["difference"]["high"]
    assert {"filter", "fit", "refine", "evaluate", "live"} <= metrics["seconds"].keys()
    assert metrics["kept_fraction"] == 1 and 0 < metrics["contradicted_fraction"] < 1 and metrics["pairs"] > 1500
    assert "<!DOCTYPE html>" in (out / "report.html").read_text()[:50].upper().replace("DOCTYPE HTML", "DOCTYPE html")


def test_the_numbers_on_the_screen_are_those_in_the_file(ran: tuple[Path, str]) -> None:
    out, said = ran
    metrics = json.loads((out / "metrics.json").read_text())
    for name in ("base", "refined"):
        assert f"{100 * metrics[name]['accuracy']:.1f}%" in said
    for path in ("model", "metrics.json", "report.html"):
        assert path in said
    assert fusion_in_words(metrics["fusion"]) in " ".join(said.split())
    assert json.loads((out / "model" / "config.json").read_text())["fusion"] == metrics["fusion"]


def test_the_readme_states_the_demonstration_s_numbers(ran: tuple[Path, str]) -> None:
    metrics = json.loads((ran[0] / "metrics.json").read_text())
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    stated = {
        line.split("|")[1].strip(): line
        for line in readme.splitlines()
        if line.startswith(("| base", "| refined", "| diff"))
    }
    # Another processor rounds differently, which may flip a few of the pairs: half a point is about nine of them.
    for label, value in (
        ("base RM", metrics["base"]["accuracy"]),
        ("refined", metrics["refined"]["accuracy"]),
        ("difference", metrics["difference"]["value"]),
    ):
        number = float(stated[label].split("|")[2].replace("points", "").replace("%", ""))
        assert number == pytest.approx(100 * value, abs=0.55), label
    assert f"{metrics['pairs']:,} human-labeled pairs" in readme


def test_the_saved_model_scores_texts_again(ran: tuple[Path, str]) -> None:
    model = EnergyRewardModel.from_pretrained(ran[0] / "model")
    live = json.loads((PACKAGED / "live.json").read_text())[0]
    ranked = model.rank(live["prompt"], live["responses"])
    assert len(ranked) == len(live["responses"]) and ranked[0].reward >= ranked[-1].reward


def test_the_packaged_features_are_whole_disjoint_and_small() -> None:
    features = open_features(PACKAGED / "features", verify=True)
    pairs = features.pairs
    prompts = {name: set(pairs.prompt_id[pairs.split == name]) for name in ("train", "validation", "test")}
    assert all(prompts.values())
    assert not prompts["train"] & prompts["test"] and not prompts["train"] & prompts["validation"]
    assert not prompts["validation"] & prompts["test"]
    assert pairs.rm_training[pairs.split == "train"].all() and not pairs.rm_training[pairs.split != "train"].any()
    assert sum(file.stat().st_size for file in (PACKAGED / "features").iterdir()) <= 6_000_000
    assert features.manifest["backbone"]["name"] == "demo"


def test_the_packaged_features_hold_no_text() -> None:
    folder = PACKAGED / "features"
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
