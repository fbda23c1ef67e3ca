"""Labels that drift to the model's own belief, so that pairs it does not trust stop pulling."""

from __future__ import annotations

import torch
from torch import Tensor

from ebrm.errors import ConfigError
from ebrm.pairs import CurationReport, PreferencePairs
from ebrm.utils.validation import check_finite


def dynamic_labels(
    pairs: PreferencePairs, difference: Tensor, rate: float = 0.1
) -> tuple[PreferencePairs, CurationReport]:
    """Move each label a step towards what the model that is being fitted says of its pair.

        label' = (1 - γ) · label + γ · σ(d),  d = r(chosen) - r(rejected), without gradient

    The dynamic labels of POWER-DL, "Sail into the Headwind: Alignment via Robust Rewards and Dynamic Labels against
    Reward Hacking" (arXiv 2412.09544), applied between rounds of fitting: with a soft label the gradient of the loss is
    σ(d) - label, so it vanishes once the label is where the model is. After t steps at one d, starting at l, it is
    σ(d) + (1 - γ)^t (l - σ(d)). Labels stay from 0 to 1. An offset of the rewards does not matter, a scale does. (The
    paper tunes γ for each model; 0.1 is from memory, not checked.)

    Args:
        pairs: p of them.
        difference: `pairs.difference(reward)` by that model, in the head's unit, where its loss has no scale.
        rate: γ, from 0 (labels stay) to 1 (they become the model's).
    """
    if not 0 <= rate <= 1:
        raise ConfigError(f"The rate of dynamic labels is {rate}; expected a number from 0 to 1.")
    known = check_finite(difference.detach(), "difference of rewards")
    if len(known) != len(pairs):
        raise ValueError(f"{len(known)} differences were given for {len(pairs)} pairs")
    label = ((1 - rate) * pairs.label + rate * torch.sigmoid(known)).clamp(0, 1)
    moved = float((label - pairs.label).abs().mean()) if len(pairs) else 0.0
    return pairs.after("dynamic labels", label=label, numbers={"mean move": moved})
