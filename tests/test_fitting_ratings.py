"""Heads for thumbs and ratings, fitted from files of single responses."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
import torch
from tests.terminal import ebrm as command
from tests.tiny import save_rm

import ebrm
from ebrm.data import load_ratings
from ebrm.errors import ConfigError, DataError, TextError
from ebrm.features import extract_ratings, open_features
from ebrm.heads import AttributesConfig, BinaryConfig, FitConfig, LinearConfig

WORDS = ("apple", "bread", "cheese", "date", "egg", "fig", "grape", "honey")
UP, DOWN = "{}!", "No, never, not at all."


def thumbs() -> list[dict[str, Any]]:
    """Five prompts with a thumb up and one down, then of every word one prompt with either."""
    both = [(f"Say {word}.", text.format(word), up) for word in WORDS[:5] for text, up in ((UP, True), (DOWN, False))]
    one = [(f"And {word}?", (UP, DOWN)[i % 2].format(word), i % 2 == 0) for i, word in enumerate(WORDS)]
    return [{"prompt": prompt, "completion": text, "label": up} for prompt, text, up in both + one]


@pytest.fixture(scope="module")
def rm(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("rm")
    save_rm(folder, "llama")
    return ebrm.load_backbone(ebrm.BackboneConfig(backbone=str(folder)))


@pytest.fixture(scope="module")
def fitted(rm) -> Any:
    return ebrm.fit(rm, thumbs(), head=BinaryConfig(ridge=0.01), config=FitConfig(test_fraction=0.4))


def test_a_head_is_fitted_on_a_file_of_thumbs_alone(fitted, rm) -> None:
    """Prompts with both thumbs measure; all other responses are fitted on, pair or not."""
    assert len(fitted.features) == 18 and len(fitted.pairs) == 5 and fitted.preferences is None
    held = set(fitted.pairs.select(fitted.splits.test).prompt_id.tolist())
    assert held and fitted.evaluation.metrics["pairs"] == len(held)
    assert fitted.model.record.data["prompts_fitted_on"] == 13 - len(held)
    assert fitted.model.record.data["origin"] == "list of 18 rows" and fitted.features.path is None
    better, worse = fitted.model.score("Say fig.", [UP.format("fig"), DOWN]).reward.tolist()
    assert better > worse


def test_the_thumbs_of_held_out_prompts_teach_nothing(fitted, rm) -> None:
    held = set(fitted.pairs.select(fitted.splits.test).prompt_id.tolist())
    asked = [row.prompt_id for row in load_ratings(thumbs())]
    turned = [row | {"label": row["label"] ^ (p in held)} for row, p in zip(thumbs(), asked, strict=True)]
    again = ebrm.fit(rm, turned, head=BinaryConfig(ridge=0.01), config=FitConfig(test_fraction=0.4))
    assert again.splits.test.tolist() == fitted.splits.test.tolist()
    assert torch.equal(again.model.head.weight, fitted.model.head.weight) and bool(fitted.model.head.weight.any())
    assert not torch.equal(again.pairs.chosen, fitted.pairs.chosen)


def test_several_people_s_thumbs_on_one_response_count_by_their_share(rm, tmp_path) -> None:
    rows = [*thumbs(), {**thumbs()[0], "label": False}]
    features = extract_ratings(rm, load_ratings(rows), tmp_path / "features")
    assert features.pairs.ratings[:2, 0].tolist() == [0.5, 0.0] and len(features) == 18
    assert open_features(tmp_path / "features").manifest["ratings"] == ["label"]
    model = ebrm.fit(features, head=BinaryConfig(ridge=0.1)).model
    assert model.record.head.kind == "binary"
    with pytest.raises(DataError, match="from 0 .thumb down. to 1"):
        bad = features.pairs.ratings * 3
        ebrm.fit(features, ebrm.PreferencePairs.of([], [], ratings=bad), head=BinaryConfig())


def test_rows_of_a_held_out_split_are_never_fitted_on(rm, tmp_path, caplog) -> None:
    rows = [{**row, "split": "test" if i in (0, 1, 10) else "train"} for i, row in enumerate(thumbs())]
    rows += [{**rows[2], "completion": "Maybe.", "label": None, "split": "train"}]
    rows += [{**rows[1], "prompt": rows[3]["prompt"], "completion": "Hm.", "label": True, "split": "test"}]
    with caplog.at_level(logging.WARNING):
        features = extract_ratings(rm, load_ratings(rows[:-2]), tmp_path / "one")
    assert "1 rated responses are not used" in caplog.text
    assert features.pairs.ratings.isnan().nonzero().tolist() == [[10, 0]]  # held out, and nothing to compare it with
    assert features.pairs.split.tolist() == ["test", "train", "train", "train", "train"]
    mixed = extract_ratings(rm, load_ratings([*rows[:-2], rows[-1]]), tmp_path / "two")
    assert mixed.pairs.split.tolist()[:3] == ["test", "test", "test"]  # a prompt's strictest split is that of all


def test_attributes_are_fitted_from_their_columns(rm) -> None:
    rows = [
        {"prompt": f"Say {word}.", "response": text.format(word), "helpfulness": good, "correctness": good + 1,
         "verbosity": 5 - good}
        for word in WORDS for text, good in ((UP, 4), (DOWN, 1))
    ]  # fmt: skip
    config = FitConfig(test_fraction=0.3)
    result = ebrm.fit(rm, rows, head=AttributesConfig(weights=(1, 1, -0.5), ridge=0.01), config=config)
    assert result.evaluation.metrics["pairs"] == len(result.splits.test) > 0
    rated = load_ratings(rows)
    assert ebrm.fit(rm, rated, head=AttributesConfig(ridge=0.01)).model.head.groups == 3
    with pytest.raises(ConfigError, match="The linear head is fitted on pairs, and rated responses are given"):
        ebrm.fit(rm, rated, head=LinearConfig())
    with pytest.raises(DataError, match="does not hold rated responses"):
        ebrm.fit(rm, [{"prompt": "p", "chosen": "a", "rejected": "b"}], head=AttributesConfig())


def test_a_response_that_cannot_be_read_stops_or_is_counted(rm, tmp_path) -> None:
    rows = [*thumbs(), {"prompt": [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}],
                        "completion": "word " * 4000, "label": True}]  # fmt: skip
    with pytest.raises(TextError, match="1 of 19 rated responses cannot be read by the reward model"):
        extract_ratings(rm, load_ratings(rows), tmp_path / "stop")
    found = extract_ratings(rm, load_ratings(rows), tmp_path / "skip", bad_rows="skip")
    assert len(found) == 18 and sum(found.manifest["bad_rows"].values()) == 1
    with pytest.raises(TextError, match="No response is left to use"):
        extract_ratings(rm, load_ratings(rows[-1:]), tmp_path / "none", bad_rows="skip")


def test_other_heads_refuse_a_file_of_thumbs_and_name_the_head_for_it(rm, tmp_path) -> None:
    data, out = tmp_path / "kto.jsonl", tmp_path / "model"
    data.write_text("".join(json.dumps(row) + "\n" for row in thumbs()))
    name = rm.identity.to_dict()["name"]
    refused = command("fit", "--backbone", name, "--data", data, "--out", out, "--head", "linear")
    assert refused.code == 2 and "The head binary is fitted on them as they are" in refused.err
    assert not out.exists()
