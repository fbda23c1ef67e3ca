"""From pairs to a fitted model: splits, filter, and what is recorded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.linear import QUICK, TINY, linear_features

from ebrm.errors import DataError, ModelError
from ebrm.fitting import choose_splits, fit
from ebrm.heads import FitConfig, Fusion, HeadConfig, HeadKind, NetworkConfig
from ebrm.heads.fusion import BASE_NOISE
from ebrm.model import EnergyRewardModel
from ebrm.pairs import PreferencePairs


def pairs_with(prompts: list[str], splits: list[str | None]) -> PreferencePairs:
    n = len(prompts)
    return PreferencePairs.of(np.arange(0, 2 * n, 2), np.arange(1, 2 * n, 2), prompt_id=prompts, split=splits)


@given(st.lists(st.tuples(st.integers(0, 40), st.sampled_from([None, "train", "valid", "test"])), min_size=30))
def test_no_prompt_stands_in_two_parts_and_no_pair_is_used_twice(rows: list[tuple[int, str | None]]) -> None:
    pairs = pairs_with([f"p{prompt}" for prompt, _ in rows], [split for _, split in rows])
    try:
        found = choose_splits(pairs, FitConfig())
    except DataError:
        return
    parts = [found.train, found.validation, found.test]
    prompts = [set(pairs.prompt_id[part]) for part in parts]
    assert not prompts[0] & prompts[1] and not prompts[0] & prompts[2] and not prompts[1] & prompts[2]
    together = np.concatenate(parts)
    assert len(set(together.tolist())) == len(together)


def test_the_data_s_own_splits_are_followed() -> None:
    pairs = pairs_with(["a", "b", "c", "d"], ["train", "validation", "test", "train"])
    found = choose_splits(pairs, FitConfig())
    assert (found.train.tolist(), found.validation.tolist(), found.test.tolist()) == ([0, 3], [1], [2])
    assert found.how == "the data's own splits"


def test_a_training_pair_whose_prompt_is_held_out_is_left_out_and_said() -> None:
    found = choose_splits(pairs_with(["a", "c", "b", "c"], ["train", "train", "validation", "test"]), FitConfig())
    assert found.train.tolist() == [0]
    assert "1 training pairs left out" in found.how


def test_data_that_are_all_test_are_cut_by_prompt_instead() -> None:
    pairs = pairs_with([f"p{i}" for i in range(400)], ["test"] * 400)
    found = choose_splits(pairs, FitConfig(validation_fraction=0.1, test_fraction=0.2))
    assert len(found.train) + len(found.validation) + len(found.test) == 400
    assert 0.6 < len(found.train) / 400 < 0.8 and 0.05 < len(found.validation) / 400 < 0.16


def test_a_missing_validation_part_is_cut_from_the_training_prompts() -> None:
    pairs = pairs_with([f"p{i}" for i in range(300)], ["train"] * 250 + ["test"] * 50)
    found = choose_splits(pairs, FitConfig())
    assert found.test.tolist() == list(range(250, 300))
    assert 10 < len(found.validation) < 45 and set(found.validation) <= set(range(250))
    assert "validation cut by prompt" in found.how


def test_one_prompt_leaves_nothing_to_train_on() -> None:
    with pytest.raises(DataError, match=r"Of 2 pairs with 1 different prompts, none is left"):
        for seed in range(20):
            choose_splits(pairs_with(["same", "same"], [None, None]), FitConfig(seed=seed))


def test_a_model_fitted_on_clean_linear_rewards_ranks_like_them() -> None:
    features = linear_features(noise=0.0)
    fitted = fit(features=features, network=TINY, training=QUICK)
    test = features.pairs.select(fitted.splits.test)
    refined = fitted.model.refine(features.embedding(slice(None)), features.reward).reward
    right = refined[test.chosen] > refined[test.rejected]
    assert right.float().mean() > 0.9
    # Chosen and rejected are not swapped on the way: the refined reward goes with the base reward.
    assert torch.corrcoef(torch.stack([refined, features.reward]))[0, 1] > 0.95


def test_the_filter_is_counted_and_can_be_turned_off() -> None:
    features = linear_features(noise=1.0)
    one = FitConfig(**{**vars(QUICK), "epochs": 1})
    with_filter = fit(features=features, network=TINY, training=FitConfig(**{**vars(one), "filter_conflicts": True}))
    without = fit(features=features, network=TINY, training=one)
    assert not FitConfig().filter_conflicts  # the joint objective allows for wrong labels by itself
    train = features.pairs.select(with_filter.splits.train)
    agree = features.reward[train.chosen] > features.reward[train.rejected]
    assert with_filter.conflicts.overall.kept == int(agree.sum()) < len(train)
    assert with_filter.model.record.filter["used"] and not without.model.record.filter["used"]
    weights = [f.model.head.network.output.weight for f in (with_filter, without)]
    assert not torch.equal(*weights)


@pytest.mark.parametrize("filtered", [False, True])
def test_pairs_are_said_to_be_left_out_only_where_they_are(filtered: bool, caplog: pytest.LogCaptureFixture) -> None:
    training = FitConfig(**{**vars(QUICK), "epochs": 1, "filter_conflicts": filtered})
    with caplog.at_level("INFO", "ebrm.fitting"):
        fit(features=linear_features(60, noise=1.0), network=TINY, training=training)
    said = " ".join(record.getMessage() for record in caplog.records)
    assert ("all are used" in said) is not filtered
    for word in ("kept", "dropped", "filter"):
        assert (word in said.lower()) is filtered, word


def test_all_pairs_conflicting_is_an_error_that_says_what_to_do() -> None:
    features = linear_features(noise=0.0, swapped=True)
    with pytest.raises(ModelError, match="kept none.*not swapped.*without --filter-conflicts"):
        fit(features=features, network=TINY, training=FitConfig(**{**vars(QUICK), "filter_conflicts": True}))


def test_without_the_filter_labels_that_all_contradict_the_base_reward_are_learnt() -> None:
    features = linear_features(noise=0.0, swapped=True)
    fitted = fit(features=features, network=TINY, training=QUICK)
    assert fitted.conflicts.overall.kept == 0 and not fitted.model.record.filter["used"]
    test = features.pairs.select(fitted.splits.test)
    chosen, rejected = test.chosen, test.rejected
    assert not (features.reward[chosen] > features.reward[rejected]).any()
    refined = fitted.model.refine(features.embedding(slice(None)), features.reward).reward
    assert (refined[chosen] > refined[rejected]).float().mean() > 0.9
    assert fitted.model.head.trust == Fusion(1.0, BASE_NOISE[-1])  # the base reward is heard least


@pytest.mark.parametrize("kind", ["linear", "prototypes", "min_norm"])
def test_another_head_is_fitted_on_the_same_pairs_saved_and_loaded(kind: HeadKind, tmp_path: Path) -> None:
    features = linear_features(200)
    features.pairs.source[:] = np.array(["a", "b"] * 100, dtype=object)
    fitted = fit(features=features, head=HeadConfig(kind=kind, epochs=20))
    energy = fit(features=features, network=TINY, training=QUICK)
    assert all(np.array_equal(getattr(fitted.splits, n), getattr(energy.splits, n)) for n in ("train", "test"))
    fitted.model.save_pretrained(tmp_path / "m")
    loaded = EnergyRewardModel.from_pretrained(tmp_path / "m")
    assert loaded.record.head is not None and loaded.record.head.kind == kind and not fitted.history
    here, there = (model.refine(features.embeddings, features.reward) for model in (fitted.model, loaded))
    assert torch.equal(here.reward, there.reward) and torch.equal(here.std, there.std)
    test = features.pairs.select(fitted.splits.test)
    assert float((here.reward[test.chosen] > here.reward[test.rejected]).double().mean()) > 0.8


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    files = []
    for name in ("a", "b"):
        model = fit(
            features=linear_features(), network=NetworkConfig(joint_widths=(16,), dropout=0.3), training=QUICK
        ).model
        model.save_pretrained(tmp_path / name)
        files.append((tmp_path / name / "energy.safetensors").read_bytes())
    assert files[0] == files[1]


def test_features_or_backbone_and_preferences_not_both_nor_neither() -> None:
    with pytest.raises(DataError, match="both or neither"):
        fit()
    with pytest.raises(DataError, match="both or neither"):
        fit("demo", "data.jsonl", features=linear_features())
