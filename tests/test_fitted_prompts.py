"""A model knows which prompts it was fitted on, and says so where it cannot know."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tests.linear import linear_features
from tests.made import features, model, pairs, rm
from tests.terminal import ebrm

from ebrm.data import prompt_id
from ebrm.features import Features, open_features, save_features
from ebrm.fitted_prompts import FittedPrompts, id_kind
from ebrm.fitting import fit
from ebrm.heads import AttributesConfig, FitConfig, LinearConfig
from ebrm.model import EnergyRewardModel
from ebrm.pairs import PreferencePairs

__all__ = ["features", "model", "pairs", "rm"]


def hashed(*texts: object) -> list[str]:
    return [prompt_id([{"role": "user", "content": str(text)}]) for text in texts]


@pytest.mark.parametrize(
    ("ids", "kind"),
    [
        (hashed("a", "b"), "text"),
        (["Why is the sky blue?", "hh/12"], "data"),
        ([*hashed("a"), "hh/12"], "data"),
        (["hh/12", "pair-000003"], None),
        (["row-000001"], None),
        (["17", "18"], None),
        ([], None),
    ],
)
def test_hashes_of_texts_names_and_numbers_are_told_apart(ids: list[str], kind: str | None) -> None:
    assert id_kind(ids) == kind
    found = FittedPrompts.of(ids)
    assert (None if found is None else found.kind) == kind


@given(st.lists(st.integers(0, 60)), st.lists(st.integers(0, 60), min_size=1))
def test_membership_is_that_of_sets(asked: list[int], fitted: list[int]) -> None:
    known = FittedPrompts.of(hashed(*fitted))
    assert known is not None and len(known) == len(set(fitted))
    found = known.contains(hashed(*asked), "text")
    assert found is not None and found.tolist() == [one in fitted for one in asked]
    assert known.contains(hashed(*asked), "data") is None and known.contains(["a"], None) is None
    turned = FittedPrompts.of(hashed(*fitted[::-1]))
    assert turned is not None and torch.equal(turned.fingerprints, known.fingerprints)


def test_fingerprints_are_the_first_64_bits_of_the_id_s_sha256() -> None:
    (name,) = hashed("a")
    known = FittedPrompts.of([name])
    assert known is not None and known.fingerprints.dtype == torch.int64
    assert int(known.fingerprints[0]) % 2**64 == int(hashlib.sha256(name.encode()).hexdigest()[:16], 16)


def test_a_model_knows_training_and_validation_prompts_but_not_those_held_out(features: Path) -> None:
    result = fit(str(features), head=LinearConfig())
    ids = result.pairs.prompt_id
    found = result.model.fitted_on(ids)
    assert found is not None
    used = np.zeros(len(ids), dtype=bool)
    used[np.concatenate([result.splits.train, result.splits.validation])] = True
    np.testing.assert_array_equal(found, used)
    assert 0 < used.sum() < len(used)
    by_text = result.model.fitted_on(hashed("Question 0", "Question 29 ", "Question 30"))
    assert by_text is not None and by_text.tolist() == [bool(used[0]), False, False]
    assert result.model.fitted_on(["hh/12"]) is None and result.model.fitted_on([]).tolist() == []  # type: ignore[union-attr]
    with pytest.raises(TypeError, match="got one string"):
        result.model.fitted_on(hashed("a")[0])


def test_pairs_that_the_filter_left_out_count_as_fitted_on(features: Path) -> None:
    whole = fit(str(features), head=LinearConfig())
    filtered = fit(str(features), head=LinearConfig(), config=FitConfig(filter_conflicts=True))
    assert filtered.model.prompts is not None and whole.model.prompts is not None
    assert filtered.conflicts.overall.dropped > 0
    assert torch.equal(filtered.model.prompts.fingerprints, whole.model.prompts.fingerprints)


def test_saved_exported_and_changed_models_still_know(model: Path, tmp_path: Path) -> None:
    ids = (
        open_features(model.parent / "none").pairs.prompt_id if False else hashed(*(f"Question {i}" for i in range(40)))
    )
    loaded = EnergyRewardModel.from_pretrained(model)
    expected = loaded.fitted_on(ids)
    assert expected is not None and 0 < expected[:30].sum() < 30 and not expected[30:].any()
    loaded.save_pretrained(tmp_path / "again")
    again = EnergyRewardModel.from_pretrained(tmp_path / "again")
    others = [again, loaded.with_inference(estimate="mode")]
    for name, options in (("linked", ()), ("whole", ("--standalone",))):
        assert ebrm("export", model, "--out", tmp_path / name, *options).code == 0
        others.append(EnergyRewardModel.from_pretrained(tmp_path / name))
    for other in others:
        np.testing.assert_array_equal(other.fitted_on(ids), expected)
    assert again.fingerprint() == loaded.fingerprint()  # which is of what decides the rewards
    stored = load_file(model / "energy.safetensors")["fitted_prompts.text"]
    assert len(stored) == expected.sum() == json.loads((model / "config.json").read_text())["data"]["prompts_fitted_on"]
    assert ["prompts", "fitted", "on", str(len(stored))] in [
        line.split() for line in ebrm("info", model).out.splitlines()
    ]


def test_100_000_prompts_take_800_kilobytes_of_the_weights_and_none_of_the_config(tmp_path: Path) -> None:
    model = fit(linear_features(40), head=LinearConfig()).model
    model.save_pretrained(tmp_path / "few")
    model.prompts = FittedPrompts.of([f"{i:016x}" for i in range(100_000)])
    model.save_pretrained(tmp_path / "many")
    sizes = [(tmp_path / name / "energy.safetensors").stat().st_size for name in ("few", "many")]
    assert 800_000 <= sizes[1] - sizes[0] < 801_000
    configs = [len((tmp_path / name / "config.json").read_bytes()) for name in ("few", "many")]
    assert configs[0] == configs[1]


def test_without_ids_nothing_is_known_and_it_is_said(tmp_path: Path) -> None:
    made_up = fit(linear_features(40), head=LinearConfig())
    assert made_up.pairs.prompt_id[0] == "pair-000000"
    made_up.save(tmp_path / "m")
    model = EnergyRewardModel.from_pretrained(tmp_path / "m")
    assert model.prompts is None and model.fitted_on(made_up.pairs.prompt_id) is None and model.fitted_on([]) is None
    assert json.loads((tmp_path / "m" / "config.json").read_text())["data"]["prompts_fitted_on"] == "not known"
    assert "not known" in next(
        line for line in ebrm("info", tmp_path / "m").out.splitlines() if "prompts fitted" in line
    )


def named(features: Features) -> Features:
    pairs = features.pairs
    return features.with_pairs(replace(pairs, prompt_id=np.array([f"hh/{i}" for i in range(len(pairs))])))


def test_ids_that_came_with_the_data_are_compared_with_such_ids_alone(tmp_path: Path) -> None:
    result = fit(named(linear_features(40)), head=LinearConfig())
    result.save(tmp_path / "m")
    model = EnergyRewardModel.from_pretrained(tmp_path / "m")
    found = model.fitted_on(result.pairs.prompt_id)
    assert found is not None and found.sum() == len(result.splits.train) + len(result.splits.validation)
    assert model.fitted_on(hashed("a")) is None and model.fitted_on(["pair-000001"]) is None


def test_rated_rows_are_fitted_on_by_heads_for_ratings_alone(tmp_path: Path) -> None:
    made = named(linear_features(40))
    ratings = torch.stack([made.reward, -made.reward], dim=1)
    ratings[:4] = torch.nan
    rated = made.with_pairs(replace(made.pairs, ratings=ratings.double()))
    linear, attributes = (fit(rated, head=head) for head in (LinearConfig(), AttributesConfig()))
    assert linear.model.prompts is not None and attributes.model.prompts is not None
    assert torch.equal(linear.model.prompts.fingerprints, attributes.model.prompts.fingerprints)
    # A rated row of which nobody knows the prompt: nothing can be said.
    less = rated.with_pairs(rated.pairs.select(np.arange(5, 40)))
    assert fit(less, head=AttributesConfig()).model.prompts is None
    alone = rated.with_pairs(
        PreferencePairs.of(np.empty(0, np.int64), np.empty(0, np.int64), prompt_id=[], ratings=rated.pairs.ratings)
    )
    assert fit(alone, head=AttributesConfig()).model.prompts is None


def test_prompts_of_rated_rows_are_those_of_the_features_items(features: Path, tmp_path: Path) -> None:
    opened = open_features(features)
    ratings = torch.full((len(opened), 1), torch.nan, dtype=torch.float64)
    ratings[:40, 0] = opened.reward[:40].double()
    save_features(opened.with_pairs(replace(opened.pairs, ratings=ratings)), tmp_path / "rated")
    saved = open_features(tmp_path / "rated")
    alone = PreferencePairs.of(np.empty(0, np.int64), np.empty(0, np.int64), prompt_id=[], ratings=ratings)
    found = fit(saved, alone, head=AttributesConfig()).model.fitted_on(opened.pairs.prompt_id)
    rows = torch.stack([opened.pairs.chosen, opened.pairs.rejected])
    assert found is not None
    np.testing.assert_array_equal(found, (rows < 40).all(dim=0).numpy())
