from __future__ import annotations

import pytest
import torch
from tests.heads.worlds import NONE, linear_truth, world

from ebrm.errors import ModelError
from ebrm.heads import HEADS, HeadConfig, InferenceConfig, fit_head
from ebrm.heads.data import Labels
from ebrm.heads.registry import load_head

WORLD = world(linear_truth, pairs=300, flips=0.1)
ARGS = (WORLD.embedding, WORLD.reward, WORLD.train, WORLD.validation)
USERS = torch.arange(len(WORLD.train)) % 2
LABELS = {
    "min_norm": Labels(group=USERS),
    "prototypes": Labels(group=USERS),
    "attributes": Labels(ratings=torch.stack([WORLD.truth, WORLD.truth + WORLD.embedding[:, 1]], 1)),
}
QUICK = HeadConfig(heads=2, hidden=16, epochs=8, learning_rate=1e-2)


@pytest.mark.parametrize("kind", HEADS)
def test_every_head_learns_is_bytewise_repeatable_and_loads(kind: str) -> None:
    heads = [fit_head(kind, *ARGS, QUICK, labels=LABELS.get(kind, Labels())) for _ in range(2)]  # type: ignore[arg-type]
    head, again = heads
    refined = head.refine(*ARGS[:2], InferenceConfig())
    assert WORLD.accuracy(refined.reward) > (0.75 if kind == "directional" else 0.85)  # it gives up what pays
    assert bool((refined.std > 0).all()) and bool((refined.interval[:, 0] < refined.interval[:, 1]).all())
    assert all(torch.equal(head.state_dict()[name], value) for name, value in again.state_dict().items())
    assert head.settings.kind == kind and not head.training and not any(p.requires_grad for p in head.parameters())
    loaded = load_head(head.settings, head.state_dict())
    assert torch.equal(loaded.refine(*ARGS[:2], InferenceConfig()).reward, refined.reward)
    rows = torch.unique(torch.cat([WORLD.train.chosen, WORLD.train.rejected]))
    low, high = head.standardizer.to_base(head.support)
    assert bool((refined.reward[rows] >= low).all()) and bool((refined.reward[rows] <= high).all())


@pytest.mark.parametrize("kind", sorted(set(HEADS) - {"anchored"}))
def test_the_base_reward_s_units_go_through_and_change_no_ranking(kind: str) -> None:
    labels = LABELS.get(kind, Labels())
    plain = fit_head(kind, *ARGS, QUICK, labels=labels).refine(*ARGS[:2], InferenceConfig())  # type: ignore[arg-type]
    other = (WORLD.embedding, 10 * WORLD.reward - 7, WORLD.train, WORLD.validation)
    moved = fit_head(kind, *other, QUICK, labels=labels).refine(*other[:2], InferenceConfig())  # type: ignore[arg-type]
    assert torch.allclose(moved.reward, 10 * plain.reward - 7, rtol=1e-3, atol=1e-2)
    assert torch.allclose(moved.std, 10 * plain.std, rtol=1e-3)


def test_the_kind_goes_before_the_settings_and_nothing_to_fit_on_is_refused() -> None:
    assert fit_head("linear", *ARGS, HeadConfig(kind="silu")).settings.kind == "linear"
    with pytest.raises(ModelError, match="No training pairs"):
        fit_head("linear", *ARGS[:2], NONE, WORLD.validation)


def test_embeddings_that_say_nothing_give_the_mean_reward() -> None:
    same = torch.ones_like(WORLD.embedding)
    refined = fit_head("linear", same, *ARGS[1:]).refine(same, WORLD.reward, InferenceConfig())
    rows = torch.unique(torch.cat([WORLD.train.chosen, WORLD.train.rejected]))
    assert torch.allclose(refined.reward, WORLD.reward[rows].mean().expand_as(refined.reward), rtol=1e-5)
