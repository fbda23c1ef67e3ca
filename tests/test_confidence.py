"""A fitted model's probabilities, calibrated on held-out pairs, and what it is sure enough to decide."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.linear import ONE_EPOCH, linear_features

import ebrm
from ebrm.calibration import confidence
from ebrm.card import model_card
from ebrm.confidence import abstain, assumed_label_noise, pair_probability
from ebrm.errors import ConfigError, DataError, ModelError
from ebrm.features import save_features
from ebrm.model import EnergyRewardModel, ModelRecord

#: Fitted without much of a penalty on few pairs, so that it is too sure of itself.
OVERCONFIDENT = ebrm.LinearConfig(ridge=1e-6)


@pytest.fixture(scope="module")
def features():
    return linear_features(400, size=24, noise=4.0)


@pytest.fixture(scope="module")
def held(features):
    return features.pairs.select(torch.arange(100, 400))


@pytest.fixture(scope="module")
def model(features):
    return ebrm.fit(features, features.pairs.select(slice(100)), head=OVERCONFIDENT).model


@pytest.fixture(scope="module")
def calibrated(model, features, held):
    return ebrm.calibrate(model, features, held)


def sides(features, pairs):
    a, b = pairs.chosen, pairs.rejected
    return (features.embedding(a), features.embedding(b)), (features.reward[a], features.reward[b])


def test_calibration_lowers_the_log_loss_and_says_what_was_done(model, calibrated, features, held):
    found = calibrated.record.calibration
    before, after = (pair_probability(one, features, held) for one in (model, calibrated))
    assert found.temperature > 1.5 and found.pairs == 300
    assert float(-before.double().log().mean()) == pytest.approx(found.raw_log_loss, rel=1e-5)
    assert float(-after.double().log().mean()) == pytest.approx(found.log_loss, rel=1e-5)
    assert found.log_loss < found.raw_log_loss - 0.02
    assert "fitted on 300 held-out pairs" in found.sentence()


def test_calibration_changes_what_is_said_and_no_reward(model, calibrated, features, held):
    rows = slice(0, 50)
    one, other = (m.refine(features.embedding(rows), features.reward[rows]) for m in (model, calibrated))
    assert torch.equal(one.reward, other.reward) and torch.equal(one.std, other.std)
    both = sides(features, held)
    raw = model.prefer_rows(*both)
    assert torch.equal(calibrated.prefer_rows(*both, calibrated=False), raw)
    assert torch.equal(calibrated.prefer_rows(*both), calibrated.record.calibration(raw))
    assert bool((confidence(calibrated.prefer_rows(*both)) < confidence(raw)).all())
    assert model.record.calibration is None


def test_the_best_of_two_is_the_preferred_one(calibrated, features, held):
    (a, b), (first, second) = sides(features, held.select(slice(1)))
    p = calibrated.prefer_rows((a, b), (first, second))
    best = calibrated.p_best(torch.cat([a, b]), torch.cat([first, second]))
    assert best[0] == pytest.approx(float(p), abs=1e-5) and float(best.sum()) == 1
    raw = calibrated.p_best(torch.cat([a, b]), torch.cat([first, second]), calibrated=False)
    assert abs(float(raw[0]) - 0.5) > abs(float(best[0]) - 0.5)
    many = calibrated.p_best(features.embedding(slice(0, 5)), features.reward[:5])
    assert float(many.sum()) == pytest.approx(1, abs=1e-6)


def test_pairs_that_the_reward_model_was_trained_on_are_left_out(model, features, held):
    seen = torch.arange(300) < 200
    marked = replace(held, rm_training=seen)
    found = ebrm.calibrate(model, features, marked).record.calibration
    assert found == ebrm.calibrate(model, features, held.select(~seen)).record.calibration
    everything = ebrm.calibrate(model, features, replace(held, rm_training=torch.ones(300, dtype=torch.bool)))
    assert everything.record.calibration.temperature == 1 and everything.record.calibration.pairs == 0
    assert abstain(model, features, marked, 0.1, generator=np.random.default_rng(0))[1].pairs == 100


def test_pairs_that_the_model_was_fitted_on_are_left_out(features, caplog):
    named = features.with_pairs(replace(features.pairs, prompt_id=np.array([f"{k:016x}" for k in range(400)])))
    result = ebrm.fit(named, head=OVERCONFIDENT)
    fitted, test = (result.pairs.select(getattr(result.splits, name)) for name in ("train", "test"))
    found = ebrm.calibrate(result.model, named, result.pairs).record.calibration
    assert found == ebrm.calibrate(result.model, named, test).record.calibration and found.pairs == len(test)
    assert f"{400 - len(test)} with prompts that the model was fitted on" in caplog.text
    rules = [
        abstain(result.model, named, pairs, 0.3, generator=np.random.default_rng(0))[1]
        for pairs in (result.pairs, test)
    ]
    assert rules[0] == rules[1]
    with pytest.raises(DataError, match=f"None of the {len(fitted)} pairs can say how sure"):
        ebrm.calibrate(result.model, named, fitted)


def test_a_pair_counts_by_its_label_and_weight(model, features, held):
    unsure = replace(held, label=torch.full((300,), 0.5, dtype=torch.float64))
    assert ebrm.calibrate(model, features, unsure).record.calibration.temperature > 10
    half = replace(held, weight=(torch.arange(300) < 150).double())
    found = ebrm.calibrate(model, features, half).record.calibration
    expected = ebrm.calibrate(model, features, held.select(slice(150))).record.calibration
    assert found.temperature == pytest.approx(expected.temperature, rel=1e-6)


def test_the_head_s_own_label_noise_is_assumed(features, held):
    joint = ebrm.EnergyConfig(
        network=ONE_EPOCH.network, training=ONE_EPOCH.training, objective=ebrm.JointConfig(label_noise=0.15)
    )
    model = ebrm.fit(features, features.pairs.select(slice(100)), head=joint).model
    assert assumed_label_noise(model) == 0.15
    assert ebrm.calibrate(model, features, held).record.calibration.label_noise == 0.15
    assert ebrm.calibrate(model, features, held, label_noise=0.0).record.calibration.label_noise == 0
    with pytest.raises(ConfigError, match="label_noise"):
        ebrm.calibrate(model, features, held, label_noise=0.5)


def test_a_head_without_label_noise_assumes_none(model):
    assert assumed_label_noise(model) == 0


def test_abstention_decides_the_same_pairs_whatever_the_temperature(model, calibrated, features, held):
    p = pair_probability(model, features, held)
    found = {}
    for name, one in (("raw", model), ("calibrated", calibrated)):
        kept, marginal, selective = abstain(one, features, held, 0.2, generator=np.random.default_rng(0))
        assert kept.record.abstention == (marginal, selective)
        assert kept.record.calibration == one.record.calibration
        probability = pair_probability(kept, features, held)
        found[name] = [rule.decides(probability) for rule in (marginal, selective)]
    for one, other in zip(*found.values(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert 0 < found["raw"][0].mean() < 1
    assert (found["raw"][0] & (p.numpy() < 0.5)).mean() <= 0.2


def test_calibrating_again_replaces_what_was_there(calibrated, features, held):
    ruled = abstain(calibrated, features, held, 0.2, generator=np.random.default_rng(0))[0]
    again = ebrm.calibrate(ruled, features, held)
    assert again.record.calibration == calibrated.record.calibration and again.record.abstention == ()
    assert calibrated.with_calibration(None).record.calibration is None


def test_many_pairs_are_compared_in_parts(model, features, held, monkeypatch):
    whole = pair_probability(model, features, held)
    monkeypatch.setattr("ebrm.confidence._PAIRS", 7)
    assert torch.allclose(pair_probability(model, features, held), whole, atol=1e-6)
    assert pair_probability(model, features, held.select(slice(0))).shape == (0,)


def test_it_is_saved_with_the_model(calibrated, features, held, tmp_path):
    ruled = abstain(calibrated, features, held, 0.2, generator=np.random.default_rng(0))[0]
    ruled.save_pretrained(tmp_path)
    back = EnergyRewardModel.from_pretrained(tmp_path)
    assert back.record.calibration == calibrated.record.calibration
    assert back.record.abstention == ruled.record.abstention
    assert torch.equal(back.prefer_rows(*sides(features, held)), calibrated.prefer_rows(*sides(features, held)))
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert calibrated.record.calibration.sentence() in card and ruled.record.abstention[0].sentence() in card


def test_models_saved_without_a_calibration_load(model, tmp_path):
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config.pop("calibration") is None and config.pop("abstention") == []
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    back = EnergyRewardModel.from_pretrained(tmp_path)
    assert back.record.calibration is None and back.record.abstention == ()
    assert "temperature" not in model_card(model.written())


def test_a_config_that_transformers_wrote_keeps_it(calibrated, tmp_path):
    calibrated.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    config |= {"transformers_version": "5.0", "id2label": {"0": "LABEL_0"}}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert EnergyRewardModel.from_pretrained(tmp_path).record.calibration == calibrated.record.calibration


def test_a_damaged_calibration_is_refused(calibrated, tmp_path):
    calibrated.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    config["calibration"] = {"temperature": -1.0}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ModelError, match=r"calibration.temperature is -1.0; expected a number greater than 0"):
        EnergyRewardModel.from_pretrained(tmp_path)


def test_the_record_goes_through_json(calibrated):
    record = calibrated.record
    assert ModelRecord.from_dict(json.loads(json.dumps(record.to_dict()))) == record


def test_another_calibration_is_another_fingerprint(model, calibrated, features, held):
    other = ebrm.calibrate(model, features, held, label_noise=0.2)
    assert len({one.fingerprint() for one in (model, calibrated, other)}) == 3
    assert calibrated.with_calibration(None).fingerprint() == model.fingerprint()


def test_scored_pairs_have_the_calibrated_probability_and_its_confidence(calibrated, features, held, tmp_path):
    folder = tmp_path / "saved"
    save_features(features.with_pairs(held), folder)
    summary = ebrm.score_file(calibrated, folder, tmp_path / "out.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    expected = pair_probability(calibrated, features, held)
    assert [row["p_chosen"] for row in rows] == pytest.approx(expected.tolist(), abs=1e-5)
    for row in rows:
        assert row["confidence"] == pytest.approx(max(row["p_chosen"], 1 - row["p_chosen"]), abs=1e-7)
    assert summary["mean_confidence"] == pytest.approx(float(confidence(expected).mean()), abs=1e-5)
