"""Choosing a head by cross-validation: the simplest within one standard error of the best."""

import numpy as np
import pytest
import torch

import ebrm
from ebrm.errors import ConfigError, ModelError
from ebrm.evaluation import choose_head
from ebrm.features import Features
from ebrm.heads import FitConfig, LinearConfig, ResidualConfig
from ebrm.pairs import PreferencePairs

HEADS = (ResidualConfig(), LinearConfig(ridge=0.1))


def world(pairs: int = 120, learnable: bool = True, good_base: bool = False):
    """Embeddings [2p, 6], base rewards and pairs: labels follow the first number, or the base reward, or nothing."""
    draws = np.random.default_rng(0)
    x, base = draws.normal(size=(2 * pairs, 6)), draws.normal(size=2 * pairs)
    worth = x[:, 0] if learnable else base if good_base else draws.normal(size=2 * pairs)
    a, b = np.arange(pairs), pairs + np.arange(pairs)
    first = worth[a] > worth[b]
    made = PreferencePairs.of(
        np.where(first, a, b), np.where(first, b, a), prompt_id=[f"prompt {k}" for k in range(pairs)]
    )
    return torch.from_numpy(x).float(), torch.from_numpy(base).float(), made


def test_a_head_is_chosen_where_labels_follow_the_embedding():
    choice = choose_head(*world(), FitConfig(pairs_seen="no"), candidates=HEADS)
    assert choice.chosen != "base" and choice.accuracy[choice.chosen] > 0.85
    assert choice.margin["base"] < -2 * choice.error["base"]
    assert (choice.pairs, choice.prompts) == (120, 120)


def test_the_base_reward_is_chosen_where_it_already_ranks_the_pairs():
    choice = choose_head(*world(learnable=False, good_base=True), FitConfig(pairs_seen="no"), candidates=HEADS)
    assert choice.chosen == "base" and choice.accuracy["base"] == 1


def test_margins_and_errors_are_those_of_a_paired_comparison_over_prompts():
    x, base, pairs = world()
    choice = choose_head(x, base, pairs, FitConfig(pairs_seen="no"), candidates=HEADS)
    right = (base[pairs.chosen] > base[pairs.rejected]).double().numpy()
    assert choice.accuracy["base"] == pytest.approx(right.mean())
    best = max(choice.accuracy, key=lambda kind: choice.accuracy[kind])
    assert choice.margin[best] == 0 and choice.error[best] == 0
    assert choice.margin["base"] == pytest.approx(right.mean() - choice.accuracy[best])
    assert 0 < choice.error["base"] < 1 / np.sqrt(len(pairs))


@pytest.mark.parametrize("seen", ["unknown", "yes"])
def test_a_base_reward_that_may_know_the_labels_is_no_candidate(seen):
    choice = choose_head(*world(learnable=False, good_base=True), FitConfig(pairs_seen=seen), candidates=HEADS)
    assert list(choice.accuracy) == ["residual", "linear"]


def test_too_few_prompts_for_the_folds_are_refused():
    with pytest.raises(ModelError, match="10 folds of 3 prompts"):
        choose_head(*world(pairs=3), FitConfig(), folds=10, candidates=HEADS)


def test_fit_stores_the_choice_and_a_chosen_base_reward_comes_back_to_the_bit():
    x, base, pairs = world(learnable=False, good_base=True)
    features = Features.from_tensors(x, base, pairs)
    result = ebrm.fit(features, head=ebrm.AutoConfig(folds=2), config=FitConfig(pairs_seen="no"))
    assert result.model.record.data["head_choice"]["chosen"] == "base"
    assert result.notes[0].startswith("Head base, the simplest within one standard error")
    assert torch.equal(result.model.refine(x, base).reward, base)


def test_inference_settings_that_would_have_no_effect_are_refused():
    with pytest.raises(ConfigError, match="Name the head"):
        ebrm.AutoConfig(inference=ebrm.EstimateConfig(coverage=0.5))
