"""RewardHead: a location and a spread a row, and the same answers as the energy model's density gives."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.special import log_ndtr, ndtr, ndtri

from ebrm.aggregate import pessimistic
from ebrm.heads.data import HeadData
from ebrm.heads.energy import Refinement
from ebrm.heads.fusion import Fusion
from ebrm.heads.grid import Posterior, grid_nodes
from ebrm.heads.head_config import HeadConfig
from ebrm.heads.old_config import InferenceConfig
from ebrm.heads.rows import EmbeddingSource, rows_at_once
from ebrm.heads.standardize import Standardizer

#: Standard deviation of the Gumbel noise under which P(a above b) is σ(u_a - u_b).
GUMBEL_STD = math.pi / math.sqrt(6)
_EULER = 0.5772156649015329
#: Lowest log-density on a grid, so that differences of two are numbers.
_LOWEST = -600.0
#: Least standard deviation, in internal units.
_LEAST_STD = 1e-6
#: Nodes across the rows' rewards, and standard deviations on either side of them, for the best of Gaussian rewards.
_BEST_NODES = 4097
_REACH = 6.0


class RewardHead(nn.Module):
    """A reward u(e) and its spread for each row, brought to the base RM's units; one class a kind of head.

    A kind says `scores` [n] and, where it has its own, `spread` [n], both in head units, and how it is fitted, `learn`.
    Bradley-Terry leaves a reward's offset and scale free: `gain` and `offset` give the rewards of the training rows the
    mean and standard deviation of the base rewards (ours), so that clip ranges and KL coefficients still hold. A
    positive gain changes no ranking and no probability here.

    Uncertainty of a kind with `noise` gumbel is that of its own random-utility model: a response's reward is u + g,
    where g is Gumbel noise (mean taken off), and P(a above b) = σ(u_a - u_b). Its standard deviation is π/√6 head units
    for every response: how noisy one comparison is, not how little the head knows. Kinds with `noise` normal have a
    Gaussian of their own standard deviation.

    The base reward decides nothing but the units, except for the kind anchored, whose scores are added to it.
    """

    noise: ClassVar[Literal["gumbel", "normal"]] = "gumbel"

    groups: Tensor  # users or attributes
    support: Tensor  # [2], internal units
    offset: Tensor
    gain: Tensor

    def __init__(self, embedding_size: int, settings: HeadConfig, groups: int = 1) -> None:
        super().__init__()
        self.settings = settings
        self.register_buffer("groups", torch.tensor(groups))
        self.standardizer = Standardizer(embedding_size)
        self.register_buffer("support", torch.tensor([-1.0, 1.0]))
        self.register_buffer("offset", torch.zeros((), dtype=torch.float64))
        self.register_buffer("gain", torch.ones((), dtype=torch.float64))

    # -- what a kind says ------------------------------------------------------------------------------------------

    @classmethod
    def groups_in(cls, data: HeadData) -> int:
        """How many users or attributes a head for these data has; 1 for kinds that know neither."""
        return 1

    def scores(self, x: Tensor) -> Tensor:  # [n, d] -> [n]
        """Reward of standardized embeddings, head units."""
        raise NotImplementedError

    def spread(self, x: Tensor) -> Tensor:  # [n, d] -> [n]
        """Standard deviation of the reward, head units."""
        return x.new_full((len(x),), GUMBEL_STD, dtype=torch.float64)

    def learn(self, data: HeadData, generator: torch.Generator) -> None:
        """Fit what the kind has; leaves units alone."""
        raise NotImplementedError

    def fit_units(self, data: HeadData) -> None:
        """Fit gain, offset and support on the training rows."""
        values = self.scores(data.embedding[data.training_rows]).double()
        spread = values.std(correction=0)
        # A head that says the same of every row has no scale: its rewards are then all the mean.
        gain = torch.where(spread > 1e-9 * values.abs().amax().clamp_min(1e-9), 1 / spread, torch.ones_like(spread))
        self.gain.copy_(gain)
        self.offset.copy_(-gain * values.mean())

    def fit_support(self, data: HeadData) -> None:
        """The range of the training rows' rewards, four standard deviations wider on either side."""
        location, std = self._internal(data.embedding[data.training_rows])
        self.support.copy_(torch.stack([(location - 4 * std).amin(), (location + 4 * std).amax()]))

    # -- what an EnergyRewardModel asks ----------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.support.device

    @property
    def trust(self) -> Fusion:
        """All trust in the head, none in the base reward."""
        return Fusion()

    @torch.no_grad()
    def reward(self, embedding: Tensor | EmbeddingSource) -> tuple[Tensor, Tensor]:  # [n, d] -> [n], [n]
        """(mean, standard deviation) of each row's reward, internal units, float64; a part of the rows at a time."""
        parts = []
        for some in _parts(embedding):
            parts.append(self._internal(self.standardizer.embed(some.to(self.device))))
        mean, std = (torch.cat(part) for part in zip(*parts, strict=True))
        return mean, std

    def _internal(self, x: Tensor) -> tuple[Tensor, Tensor]:  # [n, d] -> [n], [n]
        mean = self.offset + self.gain * self.scores(x).double()
        return mean, (self.gain * self.spread(x).double()).clamp_min(_LEAST_STD)

    def refine(
        self,
        embedding: Tensor | EmbeddingSource,  # [n, d]
        base_reward: Tensor,  # [n]
        settings: InferenceConfig,
        generator: torch.Generator | None = None,
    ) -> Refinement:
        """Refined rewards with their uncertainty, in closed form.

        The settings' pessimism takes that many standard deviations off `reward` alone; what is said of the distribution
        stays as it is.
        The distributions have one peak, where every ascent ends: the estimate ascent is the mode. `base_reward` and
        `generator` decide nothing.
        """
        mean, std = self.reward(embedding)
        tail = (1 - settings.coverage) / 2
        mode = self._mode(mean, std)
        at = pessimistic(mean if settings.estimate == "mean" else mode, std, self.settings.pessimism)
        interval = torch.stack([self._quantile(mean, std, tail), self._quantile(mean, std, 1 - tail)], 1)
        base_units, unit = self.standardizer.to_base, self.standardizer.unit
        return Refinement(
            reward=base_units(at).cpu(),
            std=(std * unit).float().cpu(),
            interval=base_units(interval).cpu(),
            log_density=(self._log_density(mean, std, at) - math.log(unit)).float().cpu(),
            mean=base_units(mean).cpu(),
            mode=base_units(mode).cpu(),
        )

    def internal_posterior(self, embedding: Tensor | EmbeddingSource, reward: Tensor, nodes: int) -> Posterior:
        """The distributions on `nodes` nodes over the support, internal units.

        A node has the probability of its cell, however narrow the distribution is, and the outer nodes what lies
        beyond the support.
        """
        mean, std = self.reward(embedding)
        grid = grid_nodes(float(self.support[0]), float(self.support[1]), nodes).to(mean)
        return self._on(grid, mean, std)

    def density(self, embedding: Tensor, reward: Tensor, nodes: int = 257) -> tuple[Tensor, Tensor]:
        """(rewards [g], density [n, g]) over the support, float32, base units and per base unit."""
        at = self.internal_posterior(embedding, reward, nodes)
        return self.standardizer.to_base(at.nodes).cpu(), (at.density / self.standardizer.unit).float().cpu()

    @torch.no_grad()
    def prefer(
        self,
        embedding: tuple[Tensor, Tensor],  # [n, d] each
        reward: tuple[Tensor, Tensor],  # [n] each
        nodes: int = 257,
    ) -> Tensor:  # [n]
        """P(r_a > r_b) of rows (a, b) with independent noise, [n] float32, in closed form.

        σ(u_a - u_b) with Gumbel noise; Φ((m_a - m_b) / √(s_a² + s_b²)) with Gaussian noise.
        """
        (a, std_a), (b, std_b) = self.reward(embedding[0]), self.reward(embedding[1])
        if self.noise == "gumbel":
            return torch.sigmoid((a - b) / (std_a / GUMBEL_STD)).float().cpu()
        return ndtr((a - b) / (std_a.square() + std_b.square()).sqrt()).float().cpu()

    @torch.no_grad()
    def p_best(self, embedding: Tensor, base_reward: Tensor, nodes: int = 257) -> Tensor:  # [n, d], [n] -> [n]
        """P(r_i is the largest of the n rewards) with independent noise, [n] float32; sums to one, empty for none.

        With Gumbel noise it is the softmax of the scores (Luce). With Gaussian noise an integral on 4,097 nodes across
        the rows' rewards.
        """
        mean, std = self.reward(embedding)
        if self.noise == "gumbel" or len(mean) == 0:
            return torch.softmax(mean * (GUMBEL_STD / std), 0).float().cpu()
        low, high = (mean - _REACH * std).amin(), (mean + _REACH * std).amax()
        grid = grid_nodes(float(low), float(high), _BEST_NODES).to(mean)
        return self._on(grid, mean, std).p_best().float().cpu()

    # -- the two distributions -------------------------------------------------------------------------------------

    def _on(self, grid: Tensor, mean: Tensor, std: Tensor) -> Posterior:  # [g], [n], [n]
        """Node by node the log of its cell's probability over the cell's width, [n, g]."""
        step = float(grid[1] - grid[0])
        edges = (0.5 * (grid[1:] + grid[:-1]) - mean[:, None]) / std[:, None]  # [n, g-1]
        infinite = torch.full_like(edges[:, :1], torch.inf)
        log_mass = self._log_between(torch.cat([-infinite, edges], 1), torch.cat([edges, infinite], 1))
        width = torch.full_like(grid, step)
        width[0] = width[-1] = step / 2
        return Posterior(grid, log_mass.clamp_min(_LOWEST) - width.log(), torch.zeros_like(mean))

    def _log_between(self, low: Tensor, high: Tensor) -> Tensor:
        """Log P(low < (r - mean) / std < high), without cancellation in either tail."""
        if self.noise == "normal":
            flip = low > 0  # beyond the middle, count from the other side
            low, high = torch.where(flip, -high, low), torch.where(flip, -low, high)
            top, bottom = log_ndtr(high), log_ndtr(low)
        else:  # F(z) = exp(-exp(-z)) with z = (r - mode) / scale
            top, bottom = (-torch.exp(-(z * GUMBEL_STD + _EULER)) for z in (high, low))
        # log(e^top - e^bottom) = top + log(1 - e^(bottom - top)); both -inf where nothing is left of them
        gap = torch.where(top.isfinite(), bottom - top, torch.zeros_like(top))
        return top + torch.log(-torch.expm1(gap))

    def _mode(self, mean: Tensor, std: Tensor) -> Tensor:
        return mean if self.noise == "normal" else mean - _EULER * std / GUMBEL_STD

    def _quantile(self, mean: Tensor, std: Tensor, probability: float) -> Tensor:
        if self.noise == "normal":
            return mean + std * ndtri(torch.tensor(probability, dtype=torch.float64)).to(mean)
        return self._mode(mean, std) - std / GUMBEL_STD * math.log(-math.log(probability))

    def _log_density(self, mean: Tensor, std: Tensor, at: Tensor) -> Tensor:
        if self.noise == "normal":
            return -0.5 * ((at - mean) / std).square() - std.log() - 0.5 * math.log(2 * math.pi)
        z = (at - self._mode(mean, std)) * GUMBEL_STD / std
        return -z - torch.exp(-z) - (std / GUMBEL_STD).log()


def _parts(embedding: Tensor | EmbeddingSource) -> Iterator[Tensor]:
    """The rows a few at a time; one part without rows where there are none, so that results have their shapes."""
    few, rows = rows_at_once(embedding), int(embedding.shape[0])  # type: ignore[arg-type]
    return (embedding[first : first + few] for first in range(0, max(rows, 1), few))
