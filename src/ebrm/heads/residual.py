"""The residual head: the base reward plus a correction that is linear in the embedding, r = α r0 + u·x."""

from __future__ import annotations

import copy
import logging
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebrm.errors import ModelError
from ebrm.heads.base import GUMBEL_STD, ClosedFormHead
from ebrm.heads.config import ResidualConfig
from ebrm.heads.data import FiniteRows, HeadData
from ebrm.heads.ridge import Comparisons, average, candidates, clear_gain, comparisons, left_out_average

logger = logging.getLogger(__name__)

#: α, logits a standard deviation of the base reward, with anchors and without (docs/evidence.md): fixed, unless the
#: reward model is known not to have seen the pairs, whose labels then choose a multiple: below the fixed weight only
#: where anchors keep the rest.
FIXED_WEIGHT = {True: 0.25, False: 0.35}
MULTIPLES = {True: (0.0, 0.35, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6), False: (1.0, 1.4, 2.0, 2.8, 4.0, 5.6)}
#: α where the reward model knows these pairs by heart: this share of the correction's standard deviation.
SEEN_SHARE = 0.25
#: The constant that stands for the intercept of the classifier of anchors.
_INTERCEPT = 3.0
#: Rows of the pairs, and of the anchors, that the classifier is fitted on, at most.
_CLASSIFIED = 1000
#: Sharpnesses of P(a > b) that are tried, and the standard deviation of the prior of their logarithm around 1.
_SHARPNESS = tuple(2.0 ** (step / 4) for step in range(-12, 9))
_SHARPNESS_STD = 1.0


class ResidualHead(ClosedFormHead):
    """Residual head: z = (α k + 1 - k) r0 + k u·x, logits; x the standardized embedding, r0 the base reward.

    The energy is that of Gumbel noise around z, so P(a above b) = σ(z_a - z_b) and all estimates are closed forms.
    u minimizes the Bradley-Terry loss of the labels alone plus Λ/2 |u|²; fits at a grid of Λ, none (u = 0) among them,
    are averaged by their likelihood with each prompt left out (:mod:`ebrm.heads.ridge`): more evidence is needed to
    move further from the base reward, and with u = 0 the refined reward is the base reward to the bit. How well the
    base reward fits the labels decides nothing, unless `pairs_seen` is "no": α is then the likeliest multiple, prompts
    left out. With "yes" α is a quarter of the correction's deviation, and u = 0 unless the labels favor it by one
    standard error. With anchors, k(e) = min(1, 2 P(target | e)) by a logistic classifier of the pairs' rows against the
    anchors keeps the correction to texts like the pairs'; without, k = 1.
    """

    noise = "gumbel"
    positive = (*ClosedFormHead.positive, "sharpness")
    not_negative = ("base_weight",)
    infinite = ("gate",)

    config: ResidualConfig
    weight: Tensor  # [d], u over standardized embeddings
    base_weight: Tensor  # α
    gate: Tensor  # [d + 1], the classifier's weights and intercept; all 0 and an infinite intercept without anchors
    sharpness: Tensor

    def _build(self, size: int, groups: int, generator: torch.Generator | None) -> None:
        self.register_buffer("weight", torch.zeros(size))
        self.register_buffer("base_weight", torch.ones((), dtype=torch.float64))
        gate = torch.zeros(size + 1)
        gate[-1] = math.inf
        self.register_buffer("gate", gate)
        self.register_buffer("sharpness", torch.ones((), dtype=torch.float64))

    def check_numbers(self) -> None:
        """As every head; of the classifier's numbers, only the last is +infinity, where there are no anchors."""
        super().check_numbers()
        if not bool(self.gate[:-1].isfinite().all()) or self.gate[-1] == -math.inf:
            raise ModelError("the numbers of gate are not finite; expected finite numbers, or +infinity for the last")

    def near(self, x: Tensor) -> Tensor:  # [n, d] -> [n]
        """k: 1 where a text is like the pairs', toward 0 where it is like the anchors', float64."""
        if not bool(torch.isfinite(self.gate[-1])):
            return x.new_ones(len(x), dtype=torch.float64)
        return (2 * torch.sigmoid(x.double() @ self.gate[:-1].double() + self.gate[-1].double())).clamp_max(1.0)

    def located(self, x: Tensor, base: Tensor | None) -> Tensor:  # [n, d], [n] -> [n]
        """The logits z, float64."""
        if base is None:
            raise ModelError("The residual head adds to the base reward, and none is given. Give the base rewards.")
        near = self.near(x)
        # Not α k + 1 - k: with α = 1 and u = 0 this is the base reward to the bit.
        return base + near * ((self.base_weight - 1) * base + x.double() @ self.weight.double())

    def spread(self, x: Tensor) -> Tensor:  # [n, d] -> [n]
        """Standard deviation of the noise of one comparison, logits; the same for all rows."""
        return x.new_full((len(x),), GUMBEL_STD, dtype=torch.float64) / self.sharpness

    @torch.no_grad()
    def correction(self, embedding: Tensor) -> Tensor:  # [n, d] -> [n]
        """What is added to the base reward, k u·x: in logits, like α r0; float64."""
        x = self.standardizer.embed(embedding.to(self.device))
        return self.near(x) * (x.double() @ self.weight.double())

    def goes_by(self) -> dict[str, Any]:
        """The base weight α, whether there is a correction, and whether anchors hold it."""
        return {
            "base_weight": float(self.base_weight), "correction": bool(self.weight.any()),
            "anchors": bool(torch.isfinite(self.gate[-1])),
        }  # fmt: skip

    def unmoved(self) -> ResidualHead:
        """The same head without its correction: the base reward."""
        head = copy.deepcopy(self)
        for buffer, value in ((head.weight, 0.0), (head.base_weight, 1.0), (head.gain, 1.0), (head.offset, 0.0)):
            buffer.fill_(value)
        return head

    def fit_units(self, data: HeadData) -> None:
        """As every head; where nothing moves, the base rewards themselves."""
        if bool(self.weight.any()):
            super().fit_units(data)

    def learn(self, data: HeadData, generator: torch.Generator) -> None:
        """Fit the classifier of anchors, α and u, and how sharp probabilities are; leaves units alone."""
        x = data.embedding.double() / math.sqrt(data.embedding.shape[1])
        if data.anchors is not None:
            self._fit_gate(data, x, generator)
        near = self.near(data.embedding)
        pairs, chosen, rejected = _comparisons(data, near[:, None] * x, self.config.label_smoothing, generator)
        own, rest = near * data.reward, (1 - near) * data.reward
        offset, fixed = own[chosen] - own[rejected], rest[chosen] - rest[rejected]
        found = candidates(pairs)
        weights, none = average(found)
        u, moved = pairs.back @ weights, left_out_average(found)
        if data.pairs_seen == "yes" and not clear_gain(found, pairs.blocks):
            u = torch.zeros_like(u)
        if not bool(u.any()):
            moved, alpha = torch.zeros_like(moved), 1.0
        elif self.config.base_weight is not None:
            alpha = self.config.base_weight
        elif data.pairs_seen == "yes":
            alpha = SEEN_SHARE * float((near * (x @ u))[data.training_rows].std(correction=0))
        else:
            alpha = FIXED_WEIGHT[data.anchors is not None]
            if data.pairs_seen == "no":
                multiples = MULTIPLES[data.anchors is not None]
                losses = [float(pairs.loss(k * alpha * offset + fixed + moved).sum()) for k in multiples]
                alpha *= multiples[losses.index(min(losses))]
        logger.info(
            "The base reward weighs %.3g logits a standard deviation; fits without a correction have the weight %.2g.",
            alpha, none,
        )  # fmt: skip
        self.weight.copy_(u / math.sqrt(x.shape[1]))
        self.base_weight.fill_(alpha)
        self._fit_sharpness(pairs, alpha * offset + fixed + moved, trusted=data.pairs_seen == "no")

    def _fit_gate(self, data: HeadData, x: Tensor, generator: torch.Generator) -> None:
        """Logistic classifier of the training rows (1) against the anchors (0), both of weight one half."""
        assert data.anchors is not None
        own = _spread_out(data.training_rows.nonzero().squeeze(1))
        few = _spread_out(torch.arange(len(data.anchors.reward)))
        others = FiniteRows(data.anchors.embedding)[few].to(x.device)
        target, anchor = x[own], self.standardizer.embed(others).double() / math.sqrt(x.shape[1])
        ones = torch.full((len(target) + len(anchor), 1), _INTERCEPT).to(x)
        both = torch.cat([torch.cat([target, anchor]), ones], 1)
        sign = torch.cat([torch.ones(len(target)), -torch.ones(len(anchor))]).to(x)
        weight = torch.cat([torch.full((n,), 1.0 / n) for n in (len(target), len(anchor))])
        groups = [f"target {prompt}" for prompt in _row_prompts(data)[own.cpu().numpy()]]
        groups += [f"anchor {data.anchors.prompt_id[row]}" for row in few.tolist()]
        classes = comparisons(sign[:, None] * both, groups, weight=weight, generator=generator)
        weights, _ = average(candidates(classes))
        v = classes.back @ weights
        self.gate.copy_(torch.cat([v[:-1] / math.sqrt(x.shape[1]), v[-1:] * _INTERCEPT]))

    def _fit_sharpness(self, pairs: Comparisons, z: Tensor, trusted: bool) -> None:
        """How sharp P(a > b) may be, by the likelihood with prompts left out and a log-normal prior around 1.

        Labels that the base reward may have been trained on can only make it less sharp.
        """
        tried = [s for s in _SHARPNESS if trusted or s <= 1]
        cost = [float(pairs.loss(s * z).sum()) + 0.5 * (math.log(s) / _SHARPNESS_STD) ** 2 for s in tried]
        self.sharpness.fill_(tried[cost.index(min(cost))])


def _spread_out(rows: Tensor) -> Tensor:
    """At most _CLASSIFIED rows, evenly over all."""
    return rows[torch.linspace(0, len(rows) - 1, min(len(rows), _CLASSIFIED)).round().long().to(rows.device)]


def _comparisons(
    data: HeadData, x: Tensor, smoothing: float, generator: torch.Generator
) -> tuple[Comparisons, Tensor, Tensor]:
    """All pairs, those held out among them, with weights as given: penalties are chosen with each prompt left out."""
    both = [part for part in (data.train, data.validation) if len(part)]
    chosen, rejected = (torch.cat([getattr(p, side) for p in both]) for side in ("chosen", "rejected"))
    label = torch.cat([p.label for p in both])
    given = data.train.weight * (data.evidence / len(data.train))  # as those of held-out pairs
    columns = {"weight": torch.cat([given, data.validation.weight]), "margin": torch.cat([p.margin for p in both])}
    prompts = [f"{place} {name}" for place, p in enumerate(both) for name in p.prompt_id]  # no prompt is in both
    label = (1 - smoothing) * label + smoothing * (1 - label)
    made = comparisons(x[chosen] - x[rejected], prompts, label=label, generator=generator, **columns)
    return made, chosen, rejected


def _row_prompts(data: HeadData) -> np.ndarray:
    """The prompt of every row; rated rows of no pair have their own."""
    prompts = np.array([f"row {place}" for place in range(len(data.reward))], dtype=object)
    for part, pairs in enumerate((data.train, data.validation)):
        for side in (pairs.chosen, pairs.rejected):
            prompts[side.cpu().numpy()] = [f"{part} {name}" for name in pairs.prompt_id]
    return prompts
