"""From curation to a fitted model with the package's own heads, without a bridge by hand."""

from __future__ import annotations

import pytest
import torch
from tests.curate.made_pairs import generator, separable

import ebrm
from ebrm.curate import (
    adaptive_margin,
    cross_fitted_difference,
    dynamic_labels,
    estimated_noise,
    filter_conflicts,
    flip_weakest,
    head_difference,
    peer_review,
    preference_strength,
)
from ebrm.features import Features
from ebrm.heads import LinearConfig, SiLUConfig, head_fitter

FRESH, CLEAN, _ = separable(500, 0.0, 7)


@pytest.fixture(scope="module")
def data():
    embedding, pairs, wrong = separable(300, 0.2)
    reward = torch.randn(len(embedding), generator=generator(3))
    return Features.from_tensors(embedding.float(), reward, pairs), pairs, wrong


def accuracy(model) -> float:
    reward = model.refine(FRESH.float(), torch.zeros(len(FRESH))).reward
    return float((CLEAN.difference(reward) > 0).double().mean())


@pytest.mark.parametrize(
    "config", [LinearConfig(ridge=0.1), SiLUConfig(hidden=8, epochs=20, learning_rate=0.03)], ids=lambda c: c.kind
)
def test_flips_labels_and_margins_by_own_heads_are_fitted_on(data, config):
    features, pairs, wrong = data
    embedding = features.embedding(slice(None))
    difference = cross_fitted_difference(pairs, embedding, head_fitter(config), generator(), folds=3, repeats=2)
    assert estimated_noise(difference) == pytest.approx(0.2, abs=0.08)
    flipped, report = flip_weakest(pairs, preference_strength(difference), 0.2, below=0)
    assert report.flipped > 40 and int((flipped.chosen % 2 == 1).sum()) < int(wrong.sum()) / 2
    soft, _ = dynamic_labels(flipped, flipped.difference(features.reward * 0), 0.1)
    result = ebrm.fit(features, soft, head=config)
    assert accuracy(result.model) > 0.97
    assert len(result.pairs) == len(soft)


def test_peer_review_by_own_heads_is_fitted_on(data):
    features, pairs, wrong = data
    embedding = features.embedding(slice(None))
    trusted, peers, report = peer_review(pairs, embedding, head_fitter(LinearConfig(ridge=0.1)), 0.2, generator())
    assert float((~wrong[trusted.origin]).double().mean()) > 0.95 and report.kept == len(trusted)
    assert float((head_difference(peers.reward, FRESH.float(), CLEAN) > 0).double().mean()) > 0.97
    result = ebrm.fit(features, trusted, head=LinearConfig(ridge=0.1))
    assert accuracy(result.model) > 0.97 and result.evaluation is not None


def test_margins_and_the_conflict_filter_compose(data):
    features, pairs, _ = data
    kept, report = filter_conflicts(pairs, features.reward)
    assert len(kept) == report.overall.kept < len(pairs)
    strength = preference_strength(kept.difference(features.reward)[None])
    asked, report = adaptive_margin(kept, strength)
    assert report.new_margins == len(asked) and asked.steps[-2:] == ("conflict filter", "adaptive margin")
    assert torch.equal(asked.margin, kept.difference(features.reward))
