"""Several rewards added up with fixed weights, such as a reward model's ratings of several attributes.

A weight has the inverse unit of its reward: rewards of different scales need weights that say so, or have to be brought
to one scale first (`ensembles.standardized`, or within each prompt before adding). Otherwise the reward with the widest
spread decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from ebrm.errors import ConfigError, DataError
from ebrm.utils.validation import check_finite

#: Weights of the five HelpSteer2 attributes, each rated 0 to 4, for Llama3-70B-SteerLM-RM (its model card; an earlier
#: revision has 0 for complexity and verbosity). Wang et al., "HelpSteer2" (arXiv 2406.08673).
LLAMA3_70B_STEERLM: Mapping[str, float] = MappingProxyType(
    {"helpfulness": 0.65, "correctness": 0.8, "coherence": 0.45, "complexity": 0.55, "verbosity": -0.4}
)
#: The same for Nemotron-4-340B-Reward.
NEMOTRON_4_340B: Mapping[str, float] = MappingProxyType(
    {"helpfulness": 0.3, "correctness": 0.74, "coherence": 0.46, "complexity": 0.47, "verbosity": -0.33}
)


def weighted_sum(rewards: Tensor, weight: Tensor) -> Tensor:  # [n, a], [a] -> [n]
    """Sum of the rewards with a weight each: r_i = Σ_a w_a r_ia.

    The combination of "Optimizing Safe and Aligned Language Generation: A Multi-Objective GRPO Approach" (arXiv
    2503.21819), whose weights could not be verified, and of HelpSteer2. An offset of one reward moves all results
    alike; the scale of one reward changes their order.

    Args:
        rewards: a rewards for each of n rows [n, a].
        weight: one for each, of any sign [a].

    Returns:
        Rewards [n], in the type of `rewards`.

    Raises:
        DataError: a reward or a weight that is not finite.
        ValueError: not [n, a] and [a], with a ≥ 1.
    """
    values, weights = _checked(rewards, weight)
    return (values * weights).sum(1).to(torch.result_type(rewards, 1.0))


def weighted_mean(rewards: Tensor, weight: Tensor | None = None) -> Tensor:  # [n, a], [a] -> [n]
    """Mean of the rewards with a weight each: r_i = Σ_a w_a r_ia / Σ_a w_a, from the least reward to the highest.

    Args:
        rewards: a rewards, of one scale, for each of n rows [n, a].
        weight: one for each, 0 or more, not all 0 [a]; None: equal ones. Their common scale does not matter.

    Returns:
        Rewards [n], in the type of `rewards`.

    Raises:
        DataError: a reward or a weight that is not finite, a weight below 0, or none above.
        ValueError: not [n, a] and [a], with a ≥ 1.
    """
    given = rewards.new_ones(rewards.shape[-1:], dtype=torch.float64) if weight is None else weight
    values, weights = _checked(rewards, given)
    if bool((weights < 0).any()) or not bool((weights > 0).any()):
        raise DataError(f"The weights of a mean are {weights.tolist()}; expected numbers of at least 0, not all 0.")
    weights = weights / weights.amax()
    return ((values * weights).sum(1) / weights.sum()).to(torch.result_type(rewards, 1.0))


def attribute_sum(attributes: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:  # of [n] -> [n]
    """Weighted sum of rewards that have names: r = Σ_a w_a · attribute_a, as in HelpSteer2 (arXiv 2406.08673).

    `LLAMA3_70B_STEERLM` and `NEMOTRON_4_340B` are the published weights. Names keep a weight from meeting the wrong
    attribute, which an order of columns does not. A negative weight (as that of verbosity) can be hacked: very short
    answers gain by it.

    Args:
        attributes: the rewards of n rows by name, each [n]. Those without a weight are left out.
        weights: the weight of each attribute, at least one.

    Returns:
        Rewards [n], in the common type of the attributes.

    Raises:
        ConfigError: no weights, one that is not finite, or one for an attribute that is not there.
        DataError: a reward that is not finite.
        ValueError: attributes that are not all [n].
    """
    if not weights or not weights.keys() <= attributes.keys():
        raise ConfigError(
            f"There are weights for {', '.join(map(repr, weights)) or 'no attribute'}, and attributes "
            f"{', '.join(map(repr, attributes)) or 'of no name'}. Expected weights for some of these: use their names."
        )
    weight = torch.tensor(list(weights.values()), dtype=torch.float64)
    if not bool(weight.isfinite().all()):
        raise ConfigError(f"The weights are {dict(weights)}; expected finite numbers.")
    columns = [check_finite(attributes[name], f"attribute {name!r}") for name in weights]
    if len({len(column) for column in columns}) > 1:
        raise ValueError("expected attributes of one length, got " + str({n: len(attributes[n]) for n in weights}))
    kind = attributes[next(iter(weights))].dtype
    for name in weights:
        kind = torch.promote_types(kind, attributes[name].dtype)
    result = weighted_sum(torch.stack(columns, 1), weight.to(columns[0].device))
    return result.to(torch.result_type(torch.empty(1, dtype=kind), 1.0))


def _checked(rewards: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    values, weights = check_finite(rewards, "rewards [n, a]", 2), check_finite(weight, "weight")
    if values.shape[1:] != weights.shape or not len(weights):
        raise ValueError(
            f"expected rewards [n, a] and a weight for each of the a, got {tuple(rewards.shape)} and "
            f"{tuple(weight.shape)}"
        )
    return values, weights
