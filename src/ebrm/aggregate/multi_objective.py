"""Several objectives in one reward: weights that are fixed or learned, soft "and", gates, and constraints.

A sum lets a high reward make up for a low one; gates and `log_sigmoid_sum` do not, or less so. A weight has the inverse
unit of its reward: bring rewards of different scales to one first (`standardized`), or the widest spread decides.
Numbers that are not finite are a DataError, other shapes than those given here a ValueError, everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ebrm.errors import ConfigError, DataError
from ebrm.groups import Groups
from ebrm.utils.validation import (
    ArrayLike,
    as_tensor,
    check_choice,
    check_finite,
    check_mask,
    check_range,
    check_setting,
    match_dtype,
    refuse,
)

#: Weights of the five HelpSteer2 attributes, each rated 0 to 4, for Llama3-70B-SteerLM-RM (its model card; an earlier
#: revision has 0 for complexity and verbosity). Wang et al., "HelpSteer2" (arXiv 2406.08673).
LLAMA3_70B_STEERLM: Mapping[str, float] = MappingProxyType(
    {"helpfulness": 0.65, "correctness": 0.8, "coherence": 0.45, "complexity": 0.55, "verbosity": -0.4}
)
#: The same for Nemotron-4-340B-Reward.
NEMOTRON_4_340B: Mapping[str, float] = MappingProxyType(
    {"helpfulness": 0.3, "correctness": 0.74, "coherence": 0.46, "complexity": 0.47, "verbosity": -0.33}
)
#: Weights (base, bonus) of `base_and_bonus` that FIRM's public code takes: consistency as a bonus on the execution of
#: an edit, quality as one on following the instruction.
EDITING = (0.6, 0.4)
GENERATION = (0.4, 0.6)

Gate = Literal["smooth", "min", "product"]


def weighted_sum(rewards: ArrayLike, weight: ArrayLike) -> Tensor:  # [n, a], [a] -> [n]
    """Weighted sum r_i = Σ_a w_a r_ia, weights of any sign (multi-objective GRPO, arXiv 2503.21819; HelpSteer2)."""
    values = check_finite(rewards, "rewards [n, a]", nonempty=not _no_rows(rewards))
    weights = check_finite(weight, "weight [a]", device=values.device, a=values.shape[1])
    return match_dtype((values * weights).sum(1), rewards)


def weighted_mean(rewards: ArrayLike, weight: ArrayLike | None = None) -> Tensor:  # [n, a], [a] -> [n]
    """Weighted mean r_i = Σ_a w_a r_ia / Σ_a w_a; DataError for a weight below 0, or none above. None: equal ones."""
    values = check_finite(rewards, "rewards [n, a]", nonempty=not _no_rows(rewards))
    a = values.shape[1]
    weights = values.new_ones(a) if weight is None else check_finite(weight, "weight [a]", device=values.device, a=a)
    if bool((weights < 0).any()) or not bool((weights > 0).any()):
        raise DataError(f"The weights of a mean are {weights.tolist()}; expected numbers of at least 0, not all 0.")
    weights = weights / weights.amax()
    return match_dtype((values * weights).sum(1) / weights.sum(), rewards)


def attribute_sum(attributes: Mapping[str, ArrayLike], weights: Mapping[str, float]) -> Tensor:  # of [n] -> [n]
    """Weighted sum of named rewards, r = Σ_a w_a · attribute_a (HelpSteer2, arXiv 2406.08673).

    `LLAMA3_70B_STEERLM` and `NEMOTRON_4_340B` are the published weights. A negative weight (verbosity) can be hacked:
    very short answers gain by it. Attributes without a weight are left out; a ConfigError: no weights, one that is not
    finite, or one for an attribute that is not there.
    """
    if not weights or not weights.keys() <= attributes.keys():
        raise ConfigError(
            f"There are weights for {', '.join(map(repr, weights)) or 'no attribute'}, and attributes "
            f"{', '.join(map(repr, attributes)) or 'of no name'}. Expected weights for some of these: use their names."
        )
    if not all(map(math.isfinite, weights.values())):
        raise ConfigError(f"The weights are {dict(weights)}; expected finite numbers.")
    device = as_tensor(attributes[next(iter(weights))], "attribute").device
    columns = [check_finite(attributes[name], f"attribute {name!r}", device=device) for name in weights]
    if len({len(column) for column in columns}) > 1:
        raise ValueError(f"expected attributes of one length, got { {n: len(attributes[n]) for n in weights} }")
    return match_dtype(
        weighted_sum(torch.stack(columns, 1), list(weights.values())), *(attributes[name] for name in weights)
    )


def log_sigmoid_sum(rewards: ArrayLike, reference: ArrayLike) -> Tensor:  # [n, a], [n, a] or [a] -> [n]
    """Log probability that a response is good in every respect: u = Σ_a log σ(r_a - r_ref,a), a soft "and".

    Wang et al. (arXiv 2402.00742): with Bradley-Terry rewards (log odds), σ(r_a - r_ref,a) is the probability of being
    preferred to a response at the reference, taken as "good"; respects are independent given the response. An offset
    of a reward and its reference changes nothing. The reference is one a row and reward [n, a], or one a reward [a]:
    the paper takes a quantile of each prompt's rewards, or the reward of a canned refusal for harmlessness.
    """
    values = check_finite(rewards, "rewards [n, a]", nonempty=not _no_rows(rewards))
    level = as_tensor(reference, "reference", values.device)
    level = check_finite(level, "reference", level.dim())
    if level.shape not in (values.shape, values.shape[1:]):
        raise ValueError(
            f"expected rewards [n, a] and a reference [n, a] or [a], got {tuple(values.shape)} and {tuple(level.shape)}"
        )
    return match_dtype(logsigmoid(values - level).sum(1), rewards)


def gate(score: ArrayLike, how: Gate = "smooth", smoothing: float = 0.1) -> Tensor:  # [n, m] -> [n]
    """Gate: joint satisfaction of m requirements, from 0 to 1.

        smooth: B = exp( 1/m Σ_i log( (s_i + δ) / (1 + δ) ) )
        min: the least of them; product: their product

    "smooth" is that of SearchLLM (arXiv 2603.10473): a geometric mean that a single 0 does not make 0, and so no veto
    where there are many requirements: with m = 10 and δ = 0.1 one that is 0 leaves 0.79. "min" and "product", which
    are vetoes, are ours. `score`, how far each requirement is met, is from 0 to 1 (else a DataError); `smoothing` is δ,
    above 0, for "smooth" only, its default ours.
    """
    scores = check_range(score, 0, 1, "scores of the requirements [n, m]", nonempty=not _no_rows(score))
    check_setting("smoothing", smoothing, above=0)
    check_choice("how", how, ("smooth", "min", "product"))
    if how == "smooth":
        # log((s + δ) / (1 + δ)) = log1p(-(1 - s) / (1 + δ)), exactly 0 where s = 1
        result = torch.log1p((scores - 1) / (1 + smoothing)).mean(1).exp()
    else:
        result = scores.amin(1) if how == "min" else scores.prod(1)
    return match_dtype(result, score)


def gated(
    requirement: ArrayLike,  # [n, m]
    objective: ArrayLike,  # [n, a]
    weight: ArrayLike | None = None,  # [a]
    how: Gate = "smooth",
    smoothing: float = 0.1,
) -> Tensor:  # [n]
    """Weighted mean of objectives times the `gate` of requirements: R = B · Σ_a w_a s_a / Σ_a w_a (SearchLLM).

    Scores of both are from 0 to 1; `weight` is as in `weighted_mean`, `how` and `smoothing` as in `gate`.
    """
    scores = check_range(objective, 0, 1, "scores of the objectives [n, a]")
    needed = as_tensor(requirement, "scores of the requirements", scores.device)
    if len(needed) != len(scores):
        raise ValueError(f"{len(needed)} rows of requirements and {len(scores)} of objectives")
    return match_dtype(gate(needed.double(), how, smoothing) * weighted_mean(scores, weight), objective)


def base_and_bonus(
    base: ArrayLike, bonus: ArrayLike, weights: tuple[float, float] = (1.0, 1.0), has_bonus: ArrayLike | None = None
) -> Tensor:  # [n], [n], [n] -> [n]
    """Base score that a bonus raises to its full worth: R = base · (w_1 + w_2 · bonus) / (w_1 + w_2).

    FIRM (arXiv 2603.12247). A bonus gains nothing where the base is 0, unlike in a sum. The public code clips R to
    [0, 1]; here scores outside [0, 1] are refused, so that there is nothing to clip.

    Args:
        base: the score that is a must: of a rating from 1 to 5 take (rating - 1) / 4, or rating / 5.
        bonus: the score that comes on top.
        weights: (w_1, w_2), w_1 above 0 and w_2 at least 0. The code has (1, 1), and `EDITING` and `GENERATION`.
        has_bonus: whether each row has a bonus, bool; where not, R is the base, and `bonus` is not looked at.
    """
    first, second = weights
    if not (math.isfinite(first) and math.isfinite(second) and first > 0 and second >= 0):
        raise ConfigError(f"`weights` of base and bonus are {weights}; expected finite, above 0 and at least 0.")
    must = check_range(base, 0, 1, "base score [n]")
    given = as_tensor(bonus, "bonus", must.device)
    if has_bonus is not None:
        given = torch.where(check_mask(has_bonus, "has_bonus [n]", must.device, n=len(given)), given, 1)
    extra = check_range(given, 0, 1, "bonus [n]", n=len(must))
    return match_dtype(must * (1 - second / (first + second) * (1 - extra)), base)


def verifiable_or_model(check: ArrayLike, model: ArrayLike, verifiable: ArrayLike) -> Tensor:  # three [n] -> [n]
    """Reward of a rule where there is one, and a model's elsewhere (HARMO, arXiv 2510.05283).

    `check` (such as 0 and 1) is looked at where `verifiable` (bool) only, `model`, on the same scale, elsewhere only.
    """
    first = as_tensor(check, "check")
    second = as_tensor(model, "model", first.device)
    which = check_mask(verifiable, "verifiable [n]", first.device)
    if not first.shape == second.shape == which.shape:
        raise ValueError(f"expected three [n], got {tuple(first.shape)}, {tuple(second.shape)}, {tuple(which.shape)}")
    for name, numbers, looked_at in (("check", first, which), ("model's reward", second, ~which)):
        bad = looked_at & ~numbers.isfinite()
        if bool(bad.any()):
            row = int(bad.nonzero()[0, 0])
            raise DataError(
                f"{int(bad.sum())} of the {int(looked_at.sum())} rows whose {name} counts have none that is finite, "
                f"the first at index {row}: {float(numbers[row])}. Find out why, mark those rows otherwise, or leave "
                "them out."
            )
    return match_dtype(torch.where(which, first, second), check, model)


@dataclass(frozen=True, eq=False)
class Lagrangian:
    """Lagrange multipliers of a reward and k requirements, normalized together, from one batch to the next.

        R = λ_0 r + Σ_k λ_k g_k,  λ = softmax(0, z_1 … z_k),  z_k ← z_k + rate · (threshold_k - mean g_k)

    Multipliers that are normalized with the reward's are the idea of Roy's thesis (arXiv 2412.07177); this form, z
    kept within ±`limit` and all defaults are ours. Requirements are things wanted (give a cost with its sign turned),
    on the scale of the reward, as no multiplier exceeds 1.

    Attributes:
        threshold: the least mean of each requirement, in its unit, float64 [k]. k may be 0: R is the reward.
        level: z, float64 [k].
        rate: how fast z moves, per unit of violation and update, above 0.
        limit: the largest |z|, above 0. 10 lets a multiplier fall to 0.00005 of the reward's.
    """

    threshold: Tensor
    level: Tensor
    rate: float = 0.1
    limit: float = 10.0

    @classmethod
    def start(cls, threshold: ArrayLike, rate: float = 0.1, limit: float = 10.0) -> Lagrangian:  # [k]
        """Equal multipliers for the reward and each requirement."""
        check_setting("rate", rate, above=0)
        check_setting("limit", limit, above=0)
        least = check_finite(threshold, "threshold [k]")
        return cls(least, torch.zeros_like(least), rate, limit)

    @property
    def multiplier(self) -> Tensor:
        """λ, the reward's first [1 + k], float64; their sum is 1."""
        return torch.cat([self.level.new_zeros(1), self.level]).softmax(0)

    def combine(self, reward: ArrayLike, requirement: ArrayLike) -> Tensor:  # [n], [n, k] -> [n]
        """R of each row; multipliers stay as they are."""
        rewards = check_finite(reward, "reward [n]")
        met = self._requirements(requirement, rewards.device)
        if len(met) != len(rewards):
            raise ValueError(f"{len(rewards)} rewards, and {len(met)} rows of requirements")
        weight = self.multiplier.to(rewards.device)
        return match_dtype(weight[0] * rewards + (met * weight[1:]).sum(1), reward)

    def updated(self, requirement: ArrayLike) -> Lagrangian:  # [n, k]
        """The multipliers after a batch: up where its mean is below the threshold, down where above. No rows: same."""
        met = self._requirements(requirement, self.threshold.device)
        if not len(met):
            return self
        level = self.level + self.rate * (self.threshold - met.mean(0))
        return replace(self, level=level.clamp(-self.limit, self.limit))

    def _requirements(self, requirement: ArrayLike, device: torch.device) -> Tensor:
        return check_finite(requirement, "requirements [n, k]", device=device, k=len(self.threshold))


def min_norm_weights(gradient: ArrayLike, normalize: bool = True) -> Tensor:  # [t, d] -> [t]
    """Multiple-gradient descent: weights with which t objectives improve together (MORE, arXiv 2312.07401).

        λ = argmin ‖Σ_t λ_t g_t‖²,  λ_t ≥ 0,  Σ_t λ_t = 1

    v = Σ_t λ_t g_t satisfies v·g_t ≥ ‖v‖² for every t, so a step along it improves every objective, unless it is 0
    (Pareto stationary). Exact, by non-negative least squares: min ‖Gᵀμ‖² + (Σμ - 1)² over μ ≥ 0, and λ = μ / Σμ; MORE's
    public solver iterates. Where several λ give the same v, one of them is returned. The gradients are those of the
    linear reward head alone in MORE; `normalize` divides each by its length first (MORE's default, "l2"), so that the
    smallest no longer takes nearly all the weight (DataError: a gradient of 0).
    """
    from scipy.optimize import nnls

    numbers = check_finite(gradient, "gradients [t, d]", nonempty=True).detach()
    largest = numbers.abs().amax()
    if normalize:
        # By its largest number first, so that no square is too small or too large.
        height = numbers.abs().amax(1)
        if bool((height == 0).any()):
            raise DataError(
                f"The gradient of objective {int((height == 0).nonzero()[0, 0])} is 0, so that it has no direction. "
                "Leave that objective out of this step, or do not normalize."
            )
        numbers = numbers / height[:, None]
        numbers = numbers / numbers.square().sum(1).sqrt()[:, None]
    elif float(largest) == 0:
        return match_dtype(numbers.new_full((len(numbers),), 1 / len(numbers)), gradient)
    else:
        numbers = numbers / largest
    triangle = torch.linalg.qr(numbers.T, mode="r").R.cpu().numpy()  # [min(t, d), t], of the same products
    table = np.concatenate([triangle, np.ones((1, len(numbers)))])
    weight, _ = nnls(table, np.eye(len(table))[-1])
    return match_dtype(torch.from_numpy(weight / weight.sum()).to(numbers.device), gradient)


@dataclass(frozen=True, eq=False)
class BilevelWeights:
    """Result of `bilevel_weights`.

    Attributes:
        weight: of each auxiliary reward, to be added to the trusted one [a], float64.
        before: expected trusted reward of the policy that follows the trusted reward alone, on these rows.
        after: that of the policy that follows the sum; never below `before`, on these rows.
    """

    weight: Tensor
    before: float
    after: float


def expected_trusted(
    trusted: ArrayLike, auxiliary: ArrayLike, groups: Groups, weight: ArrayLike, beta: float = 1.0
) -> tuple[float, Tensor]:  # [n], [n, a], [a] -> value, [a]
    """Expected trusted reward of the policy that follows a sum of rewards, and its gradient in the weights.

        π_w(i | x) ∝ exp( (r_i + Σ_a w_a aux_ia) / β ),  over the responses i to prompt x
        J(w) = mean_x E_πw[r],  dJ/dw_a = mean_x Cov_πw(r, aux_a) / β

    π_w maximizes the sum under a KL penalty β (above 0, in the unit of `trusted`), from a uniform choice among the
    responses at hand. `trusted` is r, rewards that are to be served, such as those of people or of a check; `auxiliary`
    are rewards that may help, with weights of any sign. Returns (J, dJ/dw float64). DataError: a prompt without rows,
    or none at all.
    """
    rewards, others, groups = _bilevel_inputs(trusted, auxiliary, groups, beta)
    weights = check_finite(weight, "weight [a]", device=rewards.device, a=others.shape[1])
    return _expected(rewards, others, groups, weights, beta)


def bilevel_weights(
    trusted: ArrayLike, auxiliary: ArrayLike, groups: Groups, beta: float = 1.0, decay: float = 1e-3, steps: int = 200
) -> BilevelWeights:  # [n], [n, a]
    """Bilevel weights of auxiliary rewards, by what they do to the trusted one: maximize J(w) - decay/2 ‖w‖².

    BARFI (arXiv 2310.19007) poses the outer problem; its inner one is reinforcement learning, differentiated
    implicitly. The closed form of the inner problem (`expected_trusted`, with its arguments) and the decay are ours. J
    is not concave: from w = 0 L-BFGS climbs to a point that need not be the best, and is never worse than w = 0 on
    these rows; check with `expected_trusted` on prompts that were left out. Auxiliary rewards should be of like scales;
    a β that is small beside the rewards' spread within prompts leaves nothing to gain.

    Args:
        decay: what a weight costs, 0 or more; it bounds rewards that sort as the trusted one does.
        steps: at most so many of L-BFGS, 1 or more.
    """
    from scipy.optimize import minimize

    check_setting("decay", decay, at_least=0)
    check_setting("steps", steps, at_least=1)
    rewards, others, groups = _bilevel_inputs(trusted, auxiliary, groups, beta)

    def loss(weight: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = _expected(rewards, others, groups, torch.from_numpy(weight).to(rewards.device), beta)
        return decay / 2 * float(weight @ weight) - value, decay * weight - gradient.cpu().numpy()

    start = np.zeros(others.shape[1])
    before = -loss(start)[0]
    if not len(start):
        return BilevelWeights(rewards.new_zeros(0), before, before)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": steps, "gtol": 1e-9, "ftol": 1e-13})
    weight = torch.from_numpy(found.x).to(rewards.device)
    after = _expected(rewards, others, groups, weight, beta)[0]
    if not after >= before:
        return BilevelWeights(torch.zeros_like(weight), before, before)
    return BilevelWeights(weight, before, after)


def _expected(rewards: Tensor, others: Tensor, groups: Groups, weight: Tensor, beta: float) -> tuple[float, Tensor]:
    policy = groups.softmax((rewards + others @ weight) / beta)
    expected = groups.sum(policy * rewards)
    # Cov(r, aux) = E[(r - E r) aux]
    off = policy * (rewards - groups.spread(expected))
    return float(expected.mean()), off @ others / (beta * groups.count)


def _bilevel_inputs(
    trusted: ArrayLike, auxiliary: ArrayLike, groups: Groups, beta: float
) -> tuple[Tensor, Tensor, Groups]:
    check_setting("beta", beta, above=0)
    rewards = check_finite(trusted, "trusted reward [n]", n=len(groups)).detach()
    others = check_finite(auxiliary, "auxiliary rewards [n, a]", device=rewards.device, n=len(groups)).detach()
    if not groups.count:
        raise DataError("There are 0 prompts; expected at least one, with responses.")
    refuse(groups.sizes == 0, "prompts have no responses", "Leave them out.")
    return rewards, others, groups.to(rewards.device)


def _no_rows(values: ArrayLike) -> bool:
    return len(values) == 0
