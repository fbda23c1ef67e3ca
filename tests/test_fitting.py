"""From pairs to a fitted model: splits, filter, and what is recorded."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.linear import ONE_EPOCH, QUICK, linear_features

from ebrm.backbone import BackboneConfig
from ebrm.data import TextConfig
from ebrm.errors import ConfigError, DataError, ModelError
from ebrm.evaluation import compare_heads
from ebrm.features import Features
from ebrm.fitting import FitResult, choose_splits, fit
from ebrm.heads import HEADS, FitConfig, Fusion, HeadConfig, LinearConfig, NetworkConfig, ResidualConfig
from ebrm.heads.fusion import BASE_NOISE
from ebrm.model import EnergyRewardModel
from ebrm.pairs import PreferencePairs
from ebrm.report import comparison_summary
from ebrm.utils.outliers import outlying, outlying_embeddings


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


@pytest.mark.parametrize(
    ("given", "said"),
    [
        *(({"head": head}, "`head` is .*ebrm.LinearConfig()") for head in (LinearConfig, "linear", {"kind": "linear"})),
        *(({"config": config}, "`config` is .*ebrm.FitConfig()") for config in ({"seed": 1}, LinearConfig(), None)),
        *(({"device": device}, f"`device` is {device!r}.*auto, cpu") for device in ("cuda:99", "gpu", None)),
    ],
)
def test_what_is_no_config_or_device_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        fit(linear_features(20), **given)


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (["train"] * 20 + ["val"] * 5 + ["test"] * 5, ["train"] * 20 + ["validation"] * 5 + ["test"] * 5),
        (["training"] * 20 + ["dev"] * 5 + ["evaluation"] * 5, ["train"] * 20 + ["validation"] * 5 + ["test"] * 5),
        (["Train"] * 20 + ["VALID"] * 5 + ["Testing"] * 5, ["train"] * 20 + ["validation"] * 5 + ["test"] * 5),
        (["train_prefs"] * 25 + ["test_prefs"] * 5, [""] * 25 + ["test"] * 5),  # what is not held out is cut by prompt
        (["train_sft"] * 25 + ["val_gen"] * 5, [""] * 25 + ["validation"] * 5),
        ([None] * 25 + ["test"] * 5, [""] * 25 + ["test"] * 5),
        ([None] * 20 + ["eval-00"] * 5 + ["dpo_dev"] * 5, [""] * 20 + ["test"] * 5 + ["validation"] * 5),
    ],
)
def test_rows_of_a_held_out_split_are_never_trained_on(names: list[str | None], parts: list[str]) -> None:
    found = choose_splits(pairs_with([f"p{i}" for i in range(30)], names), FitConfig())
    of = {row: part for part in ("train", "validation", "test") for row in getattr(found, part).tolist()}
    assert all(
        of[row] == part if part else of[row] in ("train", "validation", "test") for row, part in enumerate(parts)
    )
    assert {of[row] for row, part in enumerate(parts) if part in ("validation", "test")} <= {"validation", "test"}
    assert len(found.train) and found.how.startswith("the data's own splits")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["train"] * 8 + ["holdout"] * 2, r"not known: 'holdout' \(2 pairs\)"),
        (["train"] * 8 + ["0", "1"], r"'0' \(1 pairs\), '1' \(1 pairs\)"),
        (["filtered"] * 10, r"'filtered' \(10 pairs\)"),
        (["train_test"] * 10, "not known: 'train_test'"),
        (["test"] * 10, r"All 10 pairs are held out \(test\)"),
        (["val"] * 5 + ["test_prefs"] * 5, r"All 10 pairs are held out \(test_prefs, val\)"),
    ],
)
def test_splits_that_are_not_known_or_leave_nothing_to_train_on_stop_a_fit(names: list[str], said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        choose_splits(pairs_with([f"p{i}" for i in range(10)], list(names)), FitConfig())
    assert '`columns={"split": ""}`' in str(caught.value)


def test_a_split_of_training_pairs_alone_is_cut_by_prompt() -> None:
    pairs = pairs_with([f"p{i}" for i in range(400)], ["train"] * 400)
    found = choose_splits(pairs, FitConfig(validation_fraction=0.1, test_fraction=0.2))
    assert len(found.train) + len(found.validation) + len(found.test) == 400
    assert 0.6 < len(found.train) / 400 < 0.8 and 0.05 < len(found.validation) / 400 < 0.16


def test_a_source_of_another_kind_is_refused() -> None:
    for source in (BackboneConfig("my-rm"), None, 3):
        with pytest.raises(ConfigError, match="`source` is a .* as `backbone`"):
            fit(source, [{"prompt": "2+2?", "chosen": "4", "rejected": "5"}])  # type: ignore[arg-type]


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
    fitted = fit(features, head=QUICK)
    test = features.pairs.select(fitted.splits.test)
    refined = fitted.model.refine(features.embedding(slice(None)), features.reward).reward
    right = refined[test.chosen] > refined[test.rejected]
    assert right.float().mean() > 0.9
    # Chosen and rejected are not swapped on the way: the refined reward goes with the base reward.
    assert torch.corrcoef(torch.stack([refined, features.reward]))[0, 1] > 0.95


def test_the_filter_is_counted_and_can_be_turned_off() -> None:
    features = linear_features(noise=1.0)
    with_filter = fit(features, head=ONE_EPOCH, config=FitConfig(filter_conflicts=True))
    without = fit(features, head=ONE_EPOCH)
    assert not FitConfig().filter_conflicts  # the joint objective allows for wrong labels by itself
    train = features.pairs.select(with_filter.splits.train)
    agree = features.reward[train.chosen] > features.reward[train.rejected]
    assert with_filter.conflicts.overall.kept == int(agree.sum()) < len(train)
    assert with_filter.model.record.filter["used"] and not without.model.record.filter["used"]
    weights = [f.model.head.network.output.weight for f in (with_filter, without)]
    assert not torch.equal(*weights)


@pytest.mark.parametrize("filtered", [False, True])
def test_pairs_are_said_to_be_left_out_only_where_they_are(filtered: bool, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "ebrm.fitting"):
        fit(linear_features(60, noise=1.0), head=ONE_EPOCH, config=FitConfig(filter_conflicts=filtered))
    said = " ".join(record.getMessage() for record in caplog.records)
    assert ("all are used" in said) is not filtered
    for word in ("kept", "dropped", "filter"):
        assert (word in said.lower()) is filtered, word


def test_all_pairs_conflicting_is_an_error_that_says_what_to_do() -> None:
    features = linear_features(noise=0.0, swapped=True)
    with pytest.raises(ModelError, match="kept none.*not swapped.*`filter_conflicts=false`"):
        fit(features, head=QUICK, config=FitConfig(filter_conflicts=True))


def test_without_the_filter_labels_that_all_contradict_the_base_reward_are_learnt() -> None:
    features = linear_features(noise=0.0, swapped=True)
    fitted = fit(features, head=QUICK)
    assert fitted.conflicts.overall.kept == 0 and not fitted.model.record.filter["used"]
    test = features.pairs.select(fitted.splits.test)
    chosen, rejected = test.chosen, test.rejected
    assert not (features.reward[chosen] > features.reward[rejected]).any()
    refined = fitted.model.refine(features.embedding(slice(None)), features.reward).reward
    assert (refined[chosen] > refined[rejected]).float().mean() > 0.9
    assert fitted.model.head.fusion == Fusion(1.0, BASE_NOISE[-1])  # the base reward is heard least


@pytest.mark.parametrize("kind", ["residual", "linear", "energy"])
@pytest.mark.parametrize("value", [65504.0, -1e30, 3.0e38])
def test_a_reward_that_overflowed_moves_nothing_and_is_named(
    kind: str, value: float, caplog: pytest.LogCaptureFixture
) -> None:
    head = ONE_EPOCH if kind == "energy" else HEADS[kind]()
    features = linear_features(200)
    place = int(choose_splits(features.pairs).train[3])
    features.pairs.where[place] = "pairs.jsonl:12"
    row = int(features.pairs.rejected[place])
    reward = features.reward.clone()
    reward[row] = value
    rest = (torch.arange(len(reward)) != row).nonzero().squeeze(1)
    clean = fit(replace(features, pairs=features.pairs.select(np.arange(200) != place)), head=head)
    caplog.clear()
    fitted = fit(replace(features, reward=reward), head=head)
    assert np.isin(fitted.splits.train, place).sum() == 0 and len(fitted.splits.train) == len(clean.splits.train)
    here, there = (m.refine(features.embeddings[rest], reward[rest]).reward for m in (fitted.model, clean.model))
    torch.testing.assert_close(here, there)
    (note,) = fitted.warnings
    assert (
        f"1 with base rewards unlike all others, the first is pairs.jsonl:12, rejected, with {value:g}" in note
        and note in caplog.text
    )


def test_only_rare_rewards_far_from_all_others_are_outliers() -> None:
    normal = torch.randn(2000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    heavy = torch.distributions.Laplace(0.0, 1.0).icdf(torch.linspace(1e-5, 1 - 1e-5, 2000, dtype=torch.float64))
    saturated = torch.cat([torch.full((1800,), 0.999).double() + 1e-6 * normal[:1800], torch.rand(200).double()])
    for reward in (normal, heavy, saturated, torch.zeros(50), torch.tensor([0.0, 1.0] * 20), torch.tensor([0.0, 1e9])):
        assert not outlying(reward.double()).any()
    for n in (10, 20, 2000):
        some = normal[:n].clone()
        some[7] = -1e30
        assert outlying(some).nonzero().flatten().tolist() == [7]
    assert outlying(torch.cat([normal, normal.new_tensor([19.0, 21.0])])).nonzero().flatten().tolist() == [2001]
    for many in (
        [65504.0] * 3,
        [65504.0] * 12,
        [1e30, -1e30, 65504.0],
        [500.0] + [65504.0] * 8,
    ):  # they hide one another
        some = torch.cat([normal[:60], normal.new_tensor(many)])
        assert outlying(some).nonzero().flatten().tolist() == list(range(60, 60 + len(many)))
        assert torch.equal(outlying(1000 * some + 1e4), outlying(some))


def test_outlying_embeddings_are_far_from_all_others() -> None:
    embedding = 1e3 + torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
    rows = torch.arange(200)
    assert not outlying_embeddings(lambda some: embedding[some], rows).any()
    embedding[3, 5], embedding[7] = 1e6, float("inf")
    assert outlying_embeddings(lambda some: embedding[some], rows).nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize("kind", ["residual", "linear"])
def test_many_outliers_and_one_in_an_embedding_move_no_other_reward(kind: str) -> None:
    features = linear_features(200)
    train = choose_splits(features.pairs).train
    hit = train[[3, 9, 27, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50]]
    rows = features.pairs.rejected[hit]
    reward, embedding = features.reward.clone(), features.embeddings[:].clone()
    reward[rows[1:]] = 65504.0
    embedding[rows[0], 2] = 1e6
    clean = fit(replace(features, pairs=features.pairs.select(~np.isin(np.arange(200), hit))), head=HEADS[kind]())
    fitted = fit(Features.from_tensors(embedding, reward, features.pairs), head=HEADS[kind]())
    assert len(fitted.splits.train) == len(train) - 14
    rest = (~torch.isin(torch.arange(400), rows)).nonzero().squeeze(1)
    here, there = (m.model.refine(features.embeddings[rest], reward[rest]).reward for m in (fitted, clean))
    torch.testing.assert_close(here, there)
    (note,) = fitted.warnings
    assert "14 pairs are not fitted on" in note and "13 with base rewards" in note and "1 with embeddings" in note


def test_outliers_among_pairs_held_out_are_said_and_leave_the_numbers() -> None:
    features = linear_features(200)
    clean = fit(features)
    held = clean.splits.test
    reward = features.reward.clone()
    reward[features.pairs.chosen[held[0]]] = 1e30
    fitted = fit(replace(features, reward=reward))
    (note,) = fitted.warnings
    assert "0 pairs are not fitted on" in note and "1 of the pairs held out to measure have one, too" in note
    before, after = clean.evaluation, fitted.evaluation
    assert (
        before.base is not None
        and after.base is not None
        and abs(after.base.value - before.base.value) <= 1 / len(held)
    )
    assert after.metrics["delta"]["mean_absolute"] == pytest.approx(before.metrics["delta"]["mean_absolute"], rel=0.05)
    assert after.answers[0].answer != "No: the refined reward is the base reward"


@pytest.mark.parametrize("value", [65504.0, 1e30])
def test_an_outlier_among_anchors_moves_no_reward_and_not_the_drift(value: float) -> None:
    features, anchors = linear_features(150), linear_features(100, seed=1)
    clean = fit(features, keep=anchors)
    reward = anchors.reward.clone()
    reward[[5, 60, 61]] = value
    fitted = fit(features, keep=replace(anchors, reward=reward))
    (note,) = fitted.warnings
    assert "3 of 200 anchors are left out" in note and f"{value:g}" in note
    here, there = (m.model.refine(features.embeddings[:], features.reward).reward for m in (fitted, clean))
    assert float((here - there).abs().max()) < 0.05 * float(features.reward.std())
    assert fitted.anchors is not None and clean.anchors is not None
    assert fitted.anchors.mean_abs.value == pytest.approx(clean.anchors.mean_abs.value, rel=0.2)


def test_a_reward_model_in_other_units_gives_the_same_model_up_to_units() -> None:
    features = linear_features(150)
    one, other = fit(features), fit(replace(features, reward=1000 * features.reward + 1e4))
    here, there = (m.model.refine(m.features.embeddings[:], m.features.reward) for m in (one, other))
    torch.testing.assert_close(1000 * here.reward + 1e4, there.reward, rtol=1e-4, atol=0.1)
    torch.testing.assert_close(1000 * here.std, there.std, rtol=1e-4, atol=0.1)
    assert one.evaluation.metrics["difference"] == other.evaluation.metrics["difference"]


def test_swapped_labels_are_asked_about_however_good_the_numbers_look(caplog: pytest.LogCaptureFixture) -> None:
    fitted = fit(linear_features(100, noise=0.5, swapped=True))
    (warning,) = fitted.warnings
    assert "are chosen and rejected swapped?" in warning and warning in caplog.text
    assert str(fitted.evaluation).splitlines()[0].endswith(warning)
    assert warning in fitted.evaluation.answers[0].details and fitted.evaluation.metrics["warnings"] == [warning]
    assert fitted.evaluation.report is not None and warning in str(fitted.evaluation.report.headline)[:300]
    compared = compare_heads(linear_features(100, noise=0.5, swapped=True), ("base", "linear"))
    assert compared.warnings == (warning,) and comparison_summary(compared)[1][0] == f"Warning: {warning}"
    assert fit(linear_features(100, noise=5.0)).warnings == ()  # labels close to chance


@pytest.mark.parametrize("kind", ["residual", "linear", "prototypes", "min_norm"])
def test_another_head_is_fitted_on_the_same_pairs_saved_and_loaded(kind: str, tmp_path: Path) -> None:
    features = linear_features(200)
    features.pairs.source[:] = np.array(["a", "b"] * 100, dtype=object)
    fitted = fit(features, head=HEADS[kind]())
    energy = fit(features, head=ONE_EPOCH)
    assert all(np.array_equal(getattr(fitted.splits, n), getattr(energy.splits, n)) for n in ("train", "test"))
    fitted.save(tmp_path / "m")
    loaded = EnergyRewardModel.from_pretrained(tmp_path / "m")
    assert loaded.record == fitted.model.record and loaded.record.head.kind == kind and not fitted.history
    here, there = (model.refine(features.embeddings, features.reward) for model in (fitted.model, loaded))
    assert torch.equal(here.reward, there.reward) and torch.equal(here.std, there.std)
    test = features.pairs.select(fitted.splits.test)
    accuracy = float((here.reward[test.chosen] > here.reward[test.rejected]).double().mean())
    assert accuracy > 0.8 and fitted.evaluation.refined is not None
    assert fitted.evaluation.refined.value == pytest.approx(accuracy) == loaded.record.metrics["refined"]["accuracy"]


def test_a_fit_measures_itself_once_and_saves_what_the_command_line_does(tmp_path: Path) -> None:
    result = fit(linear_features(noise=0.7), head=QUICK)
    assert result.evaluation is result.evaluation
    written = result.save(tmp_path / "m")
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == [
        "README.md", "config.json", "energy.safetensors", "metrics.json", "report.html", "timing.json",
    ]  # fmt: skip
    metrics = json.loads((tmp_path / "m" / "metrics.json").read_text())
    assert metrics == json.loads(json.dumps(written.metrics)) and written is result.evaluation
    difference = result.evaluation.difference
    assert difference is not None and difference.low <= difference.value <= difference.high
    assert metrics["difference"]["value"] == difference.value
    assert f"on {result.evaluation.pairs} held-out pairs" in (tmp_path / "m" / "README.md").read_text()


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    head = replace(QUICK, network=NetworkConfig(joint_widths=(16,), dropout=0.3))
    files = []
    for name in ("a", "b"):
        fit(linear_features(), head=head).model.save_pretrained(tmp_path / name)
        files.append((tmp_path / name / "energy.safetensors").read_bytes())
    assert files[0] == files[1]


def given_pairs(features: Features, **columns: Any) -> PreferencePairs:
    names = ("prompt_id", "category")
    known = {name: getattr(features.pairs, name) for name in names}
    return PreferencePairs.of(features.pairs.chosen, features.pairs.rejected, **known, **columns)


def state(result: FitResult) -> dict[str, torch.Tensor]:
    return result.model.head.state_dict()


def equal(one: FitResult, other: FitResult) -> bool:
    return all(torch.equal(value, state(other)[name]) for name, value in state(one).items())


@pytest.mark.parametrize("head", [ResidualConfig(), LinearConfig(), ONE_EPOCH], ids=lambda head: head.kind)
def test_labels_weights_and_strength_of_given_pairs_reach_the_fit(head: HeadConfig) -> None:
    features, generator = linear_features(200), torch.Generator().manual_seed(1)
    uneven = 0.1 + torch.rand(200, generator=generator)
    plain = fit(features, head=head)
    assert equal(plain, fit(features, given_pairs(features), head=head))
    for column in ("weight", "label", "strength"):
        values = uneven.clamp(max=1.0)
        assert not equal(plain, fit(features, given_pairs(features, **{column: values}), head=head)), column
    strong = given_pairs(features, strength=uneven)
    assert equal(plain, fit(features, strong, head=head, config=FitConfig(strength="off")))
    train = plain.splits.train
    by_weight = torch.ones(200).double()
    for part in (train, plain.splits.validation):  # the mean strength of each part is a weight of 1
        by_weight[part] = uneven[part].double() * (len(part) / uneven[part].double().sum())
    weighted = fit(features, given_pairs(features, weight=by_weight), head=head).model.refine(
        features.embeddings, features.reward
    )
    assert torch.allclose(
        fit(features, strong, head=head).model.refine(features.embeddings, features.reward).reward,
        weighted.reward, atol=0.05,
    )  # fmt: skip


def test_strength_can_be_a_margin_and_cannot_be_a_negative_weight() -> None:
    features = linear_features(200)
    strength = torch.linspace(0, 2, 200)
    margin = fit(features, given_pairs(features, margin=strength), head=LinearConfig())
    strong = given_pairs(features, strength=strength)
    assert equal(margin, fit(features, strong, head=LinearConfig(), config=FitConfig(strength="margin")))
    with pytest.raises(DataError, match='pair .* has -1; expected 0 or more.*`strength="margin"`'):
        fit(features, given_pairs(features, strength=strength - 1), head=LinearConfig())
    with pytest.raises(DataError, match="loss of the energy head has no place for the training pairs' margin"):
        fit(features, strong, head=ONE_EPOCH, config=FitConfig(strength="margin"))
    assert equal(
        fit(features, given_pairs(features, margin=strength)),
        fit(features, strong, config=FitConfig(strength="margin")),
    )


def test_a_label_below_a_half_turns_the_pair_around_and_one_of_a_half_is_not_measured() -> None:
    features = linear_features(200, noise=0.7)
    pairs = features.pairs
    plain = fit(features, head=LinearConfig(ridge=0.1))
    swapped = PreferencePairs.of(pairs.rejected, pairs.chosen, prompt_id=pairs.prompt_id, label=torch.zeros(200))
    turned = fit(features, swapped, head=LinearConfig(ridge=0.1))
    assert equal(plain, turned)
    assert turned.evaluation.metrics["refined"] == plain.evaluation.metrics["refined"]
    assert turned.conflicts.overall == plain.conflicts.overall
    label = torch.ones(200)
    undecided = plain.splits.test[:7]
    label[undecided] = 0.5
    measured = fit(features, given_pairs(features, label=label), head=LinearConfig(ridge=0.1)).evaluation
    assert measured.metrics["undecided"] == 7 and measured.pairs == plain.evaluation.pairs - 7
    assert measured.report is not None and "7 test pairs have the label 0.5" in measured.report.notes[-1]


@pytest.mark.parametrize("kind", ["attributes", "binary"])
def test_ratings_alone_are_enough_and_those_of_test_pairs_are_not_learned(kind: str, tmp_path: Path) -> None:
    features = linear_features(200, noise=0.0)
    ratings = features.reward.double() if kind == "attributes" else (features.reward > 3).double()
    alone = fit(features, PreferencePairs.of([], [], ratings=ratings), head=HEADS[kind]())
    refined = alone.model.refine(features.embeddings, features.reward).reward
    assert torch.corrcoef(torch.stack([refined, features.reward]))[0, 1] > 0.9
    assert alone.evaluation.pairs == 0 and alone.evaluation.difference is None
    alone.save(tmp_path / "m")
    assert not (tmp_path / "m" / "report.html").exists()
    paired = fit(features, given_pairs(features, ratings=ratings), head=HEADS[kind]())
    test = features.pairs.select(paired.splits.test)
    wrong = ratings.clone()
    wrong[test.chosen], wrong[test.rejected] = ratings[test.rejected], ratings[test.chosen]
    assert equal(paired, fit(features, given_pairs(features, ratings=wrong), head=HEADS[kind]()))


def test_what_cannot_be_fitted_or_has_no_effect_is_refused() -> None:
    features = linear_features(60)
    with pytest.raises(DataError, match="no preferences to fit on: nowhere is not a features folder"):
        fit("nowhere")
    with pytest.raises(DataError, match="There is no file or folder 'data.jsonl'"):
        fit(features, "data.jsonl")
    with pytest.raises(DataError, match="were not made from these preferences .list of 1 rows.*split, columns"):
        fit(features, [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    with pytest.raises(ConfigError, match="`text` has no effect on features"):
        fit(features, text=TextConfig(max_length=5))
    with pytest.raises(DataError, match="beyond the 120"):
        fit(features, PreferencePairs.of([0, 500], [1, 501]), head=LinearConfig())
    with pytest.raises(TypeError, match="network"):
        fit(features, network=NetworkConfig())  # type: ignore[call-arg]
    assert str(inspect.signature(fit)).count("*") == 1 and "head" in inspect.signature(fit).parameters


def knowing(features: Features, by: float) -> Features:
    """The same features of a reward model that has the labels of the pairs by heart."""
    reward = torch.randn(len(features), generator=torch.Generator().manual_seed(7))
    reward[features.pairs.chosen] += by
    return replace(features, reward=reward)


def test_pairs_that_the_reward_model_was_trained_on_are_known_as_seen() -> None:
    features = linear_features(200)
    flags = torch.zeros(200, dtype=torch.bool)
    flags[::2] = True
    flagged, yes = (
        fit(features, given_pairs(features, rm_training=flags)),
        fit(features, config=FitConfig(pairs_seen="yes")),
    )
    assert flagged.model.record.fit.pairs_seen == flagged.model.record.data["pairs_seen"] == "yes"
    assert equal(flagged, yes) and not equal(flagged, fit(features))
    said = fit(features, given_pairs(features, rm_training=flags), config=FitConfig(pairs_seen="no"))
    assert said.model.record.fit.pairs_seen == "no" and not equal(said, flagged)  # the user knows better


def test_unless_pairs_are_unseen_the_result_does_not_depend_on_how_well_the_base_reward_fits_them() -> None:
    features = linear_features(200)
    for seen in ("unknown", "yes"):
        results = [fit(knowing(features, by), config=FitConfig(pairs_seen=seen)) for by in (-3.0, 0.0, 3.0)]
        for name in ("weight", "base_weight", "gate"):
            assert all(torch.equal(state(one)[name], state(results[0])[name]) for one in results)
    heavy, light = (
        fit(knowing(features, by), config=FitConfig(pairs_seen="no")).model.head.base_weight for by in (3.0, -3.0)
    )
    assert heavy > 2 * light


def test_a_reward_model_that_knows_the_pairs_by_heart_is_asked_about(caplog: pytest.LogCaptureFixture) -> None:
    features = knowing(linear_features(200, noise=30.0), 4.0)
    found = fit(features)
    assert found.memorization is not None and found.memorization.suspected
    assert "was it trained on them?" in caplog.text
    caplog.clear()
    for seen in ("yes", "no"):
        assert fit(features, config=FitConfig(pairs_seen=seen)).memorization is None
    fair = fit(linear_features(200))
    assert fair.memorization is not None and not fair.memorization.suspected
    assert "was it trained on them?" not in caplog.text


def test_a_head_that_hardly_moves_says_so_and_why() -> None:
    features = linear_features(400, size=40, noise=1e4)  # labels at random
    near, same = (fit(features, config=FitConfig(pairs_seen=seen)) for seen in ("unknown", "yes"))
    refined = [one.model.refine(features.embeddings, features.reward).reward for one in (near, same)]
    assert torch.equal(refined[1], features.reward) and not torch.equal(refined[0], features.reward)
    assert torch.corrcoef(torch.stack([refined[0], features.reward]))[0, 1] > 0.98
    (nearly,), (exactly,) = near.notes, same.notes
    for note in (nearly, exactly):
        assert "no correction predicts the labels of these pairs clearly better than none" in note
    assert nearly.startswith("The refined reward is nearly (what is added has ") and "% of its" in nearly
    assert exactly.startswith("The refined reward is the base reward: ")
    evaluation = near.evaluation
    assert evaluation.metrics["notes"] == [nearly] and evaluation.answers[0].details.count(nearly) == 1
    assert fit(linear_features(400)).notes == () == fit(features, head=LinearConfig()).notes
