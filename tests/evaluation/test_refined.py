from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ebrm.evaluation import cache as refined
from ebrm.evaluation.cache import ReadTexts, RefinedTexts
from ebrm.features import open_features
from ebrm.model import EnergyRewardModel


@pytest.fixture(scope="module")
def energy(model: Path) -> EnergyRewardModel:
    return EnergyRewardModel.from_pretrained(model)


@pytest.fixture(scope="module")
def texts(features: Path) -> ReadTexts:
    return ReadTexts([open_features(features)])


def refine(energy: EnergyRewardModel, texts: ReadTexts, folder: Path | None) -> RefinedTexts:
    found = RefinedTexts(energy, texts, folder, "m")
    found.refine(np.arange(len(texts.reward)))
    return found


def test_only_the_folders_asked_for_are_refined(energy: EnergyRewardModel, features: Path, tmp_path: Path):
    part = open_features(features)
    both = ReadTexts([part, part])
    found = RefinedTexts(energy, both, None, "m")
    assert np.isnan(found.reward).all()
    found.refine(np.array([len(part) + 3, len(part)]))
    assert np.isnan(found.reward[: len(part)]).all() and np.isfinite(found.reward[len(part) :]).all()
    found.refine(np.array([0, len(part) - 1]))
    np.testing.assert_allclose(found.reward[: len(part)], found.reward[len(part) :])


def test_rewards_are_the_models_own(energy: EnergyRewardModel, texts: ReadTexts, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(refined, "_ROWS", 7)  # several chunks, and one that is not full
    found = refine(energy, texts, None)
    part = texts.parts[0]
    expected = energy.refine(part.embedding(slice(0, len(part))), part.reward)
    np.testing.assert_allclose(found.reward, expected.reward, atol=1e-5)
    np.testing.assert_allclose(found.std, expected.std, atol=1e-5)
    np.testing.assert_allclose(found.interval, expected.interval, atol=1e-5)


def test_preferences_are_those_of_the_densities(energy, texts, monkeypatch):
    monkeypatch.setattr(refined, "_PAIRS", 5)
    found = refine(energy, texts, None)
    a, b = np.arange(12), np.arange(12)[::-1].copy()
    embedding, reward = texts.parts[0].embedding(slice(0, 12)), texts.parts[0].reward[:12]
    expected = energy.head.prefer((embedding, embedding.flip(0)), (reward, reward.flip(0)), energy.inference.nodes)
    np.testing.assert_allclose(found.prefer(a, b), expected, atol=1e-5)
    np.testing.assert_allclose(found.prefer(a, b) + found.prefer(b, a), 1, atol=1e-12)
    assert len(found.prefer(a[:0], b[:0])) == 0


def test_kept_results_are_used_and_damaged_ones_made_again(energy, texts, tmp_path, monkeypatch):
    first = refine(energy, texts, tmp_path)
    (kept,) = tmp_path.rglob("*.safetensors")
    assert kept.parent.name == energy.fingerprint()[:16]
    with monkeypatch.context() as patched:
        patched.setattr(EnergyRewardModel, "refine", lambda *_: pytest.fail("kept results were not used"))
        again = refine(energy, texts, tmp_path)
    assert np.array_equal(again.reward, first.reward)
    other = energy.with_inference(estimate="mode")
    assert not np.allclose(refine(other, texts, tmp_path).reward, first.reward, atol=1e-6)
    kept.write_bytes(kept.read_bytes()[:100])
    assert np.array_equal(refine(energy, texts, tmp_path).reward, first.reward)
    assert torch.equal(load_file(kept)["reward"].double(), torch.from_numpy(first.reward))


def test_no_texts_at_all(energy):
    found = refine(energy, ReadTexts([]), None)
    assert found.reward.shape == (0,) and found.interval.shape == (0, 2)
