"""RewardHead: the interface of all reward heads; ClosedFormHead: those whose distribution is Gumbel's or Gauss's."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.special import log_ndtr, ndtr, ndtri

from ebrm.aggregate import pessimistic
from ebrm.errors import ConfigError, ModelError
from ebrm.heads.config import EstimateConfig, HeadConfig
from ebrm.heads.data import EmbeddingSource, HeadData, Standardizer, rows_at_once
from ebrm.heads.fusion import Fusion
from ebrm.heads.grid import LOWEST, Posterior, grid_nodes

#: Standard deviation of the Gumbel noise under which P(a above b) is σ(u_a - u_b).
GUMBEL_STD = math.pi / math.sqrt(6)
_EULER = 0.5772156649015329
#: Least standard deviation, in internal units.
_LEAST_STD = 1e-6
#: Nodes across the rows' rewards, and standard deviations on either side of them, for the best of Gaussian rewards.
_BEST_NODES = 4097
_REACH = 6.0
_POSITIVE = ("standardizer.reward_std", "standardizer.reward_scale", "standardizer.embedding_spread")


@dataclass(frozen=True)
class Refinement:
    """Refined rewards of n rows, float32, in the base RM's units (log_density per such unit).

    Attributes:
        reward: the refined reward [n].
        std: standard deviation of the distribution [n].
        interval: central interval of the config's coverage [n, 2].
        log_density: log p(reward | e) [n].
        mean, mode: of the distribution [n].
    """

    reward: Tensor
    std: Tensor
    interval: Tensor
    log_density: Tensor
    mean: Tensor
    mode: Tensor


class RewardHead(nn.Module):
    """A distribution over the reward of each row, given its frozen embedding and its base reward.

    Config and state are all there is to a head. Rewards given and returned are in the base RM's units; `support` and
    `posterior` in the standardizer's ("internal"). A subclass has `forward`, `posterior` and `_estimates`; `takes`
    names the columns of pairs that its loss uses, and `rated` heads can be fitted on ratings alone.
    """

    takes: ClassVar[tuple[str, ...]] = ("label", "weight", "margin")
    rated: ClassVar[bool] = False
    #: Names of tensors whose numbers are above 0, are at least 0, or may be infinite; all others are finite.
    positive: ClassVar[tuple[str, ...]] = ()
    not_negative: ClassVar[tuple[str, ...]] = ()
    infinite: ClassVar[tuple[str, ...]] = ()

    support: Tensor  # [2], internal units

    def __init__(self, embedding_size: int, config: HeadConfig) -> None:
        super().__init__()
        self.config = config
        self.standardizer = Standardizer(embedding_size)
        self.register_buffer("support", torch.tensor([-1.0, 1.0]))

    @classmethod
    def empty(cls, config: HeadConfig, tensors: dict[str, Tensor]) -> RewardHead:
        """A head of the shape that these tensors are the state of; ModelError where they tell none."""
        return cls(embedding_size(tensors), config)

    def check_numbers(self) -> None:
        """Refuse a state that no fit gives (ModelError, with the tensor's name), after it was loaded."""
        positive = (*_POSITIVE, *self.positive)
        for name, tensor in self.state_dict().items():
            bad = tensor.isnan() if name in self.infinite else ~tensor.isfinite()
            expected = "that are finite"
            if name in positive or name in self.not_negative:
                bad |= tensor <= 0 if name in positive else tensor < 0
                expected = "above 0" if name in positive else "of at least 0"
            if bool(bad.any()):
                first = float(tensor[bad][0])
                raise ModelError(
                    f"{int(bad.sum())} of the {tensor.numel()} numbers of {name} are not possible, the first is "
                    f"{first:g}; expected numbers {expected}"
                )
        for name in ("support", *(("trusted",) if hasattr(self, "trusted") else ())):
            low, high = getattr(self, name).tolist()
            if not low < high:
                raise ModelError(f"{name} is from {low:g} to {high:g}; expected the lower end first")

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.support.device

    @property
    def fusion(self) -> Fusion:
        """Weights of the head's distribution and of the base reward: all on the head, unless a subclass fits them."""
        return Fusion()

    def goes_by(self) -> dict[str, Any]:
        """What a refined reward goes by, as plain JSON values: the weights of :attr:`fusion`, or a head's own."""
        return dict(self.fusion.to_dict())

    @property
    def nodes(self) -> int:
        """Nodes of a grid over the support where none are asked for: `config.inference.nodes`, or 257."""
        return getattr(self.config.inference, "nodes", 257)

    def draws(self) -> torch.Generator:
        """A fresh generator of random starts, by `config.inference.seed`."""
        return torch.Generator().manual_seed(getattr(self.config.inference, "seed", 0))

    def support_bounds(self) -> tuple[float, float]:
        """Lowest and highest reward of the density on a grid, internal units."""
        return float(self.support[0]), float(self.support[1])

    def with_inference(self, **changes: Any) -> Self:
        """This head, weights shared, with other inference settings; one that it does not have is a ConfigError."""
        known = vars(self.config.inference)
        unknown = ", ".join(sorted(set(changes) - set(known)))
        if unknown:
            raise ConfigError(
                f"The {self.config.kind} head has no inference setting {unknown}; it has {', '.join(known)}."
            )
        other = copy.copy(self)
        other.config = replace(self.config, inference=replace(self.config.inference, **changes))
        return other

    @abstractmethod
    def forward(self, embedding: Tensor, base_reward: Tensor | None = None) -> Tensor:  # [n, d], [n] -> [n]
        """Mean of each row's reward, float32, base units; gradients go through to the embedding."""

    @abstractmethod
    def posterior(
        self, embedding: Tensor | EmbeddingSource, base_reward: Tensor, nodes: int | None = None
    ) -> Posterior:
        """The distributions of n rows at `nodes` nodes over the support (None: `self.nodes`), internal units."""

    @abstractmethod
    def _estimates(
        self, embedding: Tensor | EmbeddingSource, base_reward: Tensor, generator: torch.Generator | None
    ) -> Refinement:
        """As :meth:`refine`, in internal units, float64."""

    @torch.no_grad()
    def refine(
        self, embedding: Tensor | EmbeddingSource, base_reward: Tensor, generator: torch.Generator | None = None
    ) -> Refinement:  # [n, d], [n]
        """Refined rewards with their uncertainty, as `config.inference` says, for any number of rows including none.

        Deterministic, but for the energy's starts "paper" and "random", drawn from `generator` or
        `config.inference.seed`. A row's result does not depend on the other rows.
        """
        at = self._estimates(embedding, base_reward, generator)
        to_base, unit = self.standardizer.to_base, self.standardizer.unit
        return Refinement(
            reward=to_base(at.reward).cpu(),
            std=(at.std * unit).float().cpu(),
            interval=to_base(at.interval).cpu(),
            log_density=(at.log_density - math.log(unit)).float().cpu(),
            mean=to_base(at.mean).cpu(),
            mode=to_base(at.mode).cpu(),
        )

    @torch.no_grad()
    def density(self, embedding: Tensor, base_reward: Tensor, nodes: int = 257) -> tuple[Tensor, Tensor]:
        """(rewards [g], density [n, g]) over the support, float32, base units and per base unit."""
        at = self.posterior(embedding, base_reward, nodes)
        return self.standardizer.to_base(at.nodes).cpu(), (at.density / self.standardizer.unit).float().cpu()

    @torch.no_grad()
    def prefer(
        self, embedding: tuple[Tensor, Tensor], base_reward: tuple[Tensor, Tensor], nodes: int | None = None
    ) -> Tensor:  # [n, d] each, [n] each -> [n]
        """P(r_a > r_b) of rows (a, b) with independent rewards, [n] float32."""
        both = self.posterior(torch.cat(embedding), torch.cat(base_reward), nodes)
        a, b = (slice(len(embedding[0])), slice(len(embedding[0]), None))
        first, second = (Posterior(both.nodes, both.log_density[part], both.log_z[part]) for part in (a, b))
        return first.prefer(second).float().cpu()

    @torch.no_grad()
    def p_best(self, embedding: Tensor, base_reward: Tensor, nodes: int | None = None) -> Tensor:  # [n, d], [n] -> [n]
        """P(r_i is the largest of n independent rewards), [n] float32; sums to one, and is empty for no rows."""
        return self.posterior(embedding, base_reward, nodes).p_best().float().cpu()


def embedding_size(tensors: dict[str, Tensor]) -> int:
    """d, as the tensors of a head say it; ModelError where they do not."""
    center = tensors.get("standardizer.embedding_center")
    if center is None or center.dim() != 1 or not len(center):
        said = "missing" if center is None else f"of shape {list(center.shape)}"
        raise ModelError(f"the tensor standardizer.embedding_center is {said}; expected one number a dimension")
    return len(center)


class ClosedFormHead(RewardHead):
    """A reward u(e) with a spread for each row, under Gumbel or Gaussian noise.

    A subclass has `_build`, `scores` [n] and perhaps `spread` [n] in head units, and `learn`; one whose reward depends
    on the base reward has `located` [n] instead of `scores`. Bradley-Terry leaves a
    reward's offset and scale free: `gain` and `offset` give the training rows' rewards the mean and standard deviation
    of the base rewards (ours). With `noise` gumbel, a reward is u + g with centered Gumbel noise g, so P(a above b) =
    σ(u_a - u_b): its deviation, π/√6 head units, is the noise of one comparison, not the head's ignorance.
    """

    noise: ClassVar[Literal["gumbel", "normal"]] = "gumbel"
    positive: ClassVar[tuple[str, ...]] = ("gain", "groups")
    #: Whether pairs of sources that no training pair has are of no use for choosing the epoch.
    grouped: ClassVar[bool] = False

    groups: Tensor  # users, objectives or attributes
    offset: Tensor
    gain: Tensor

    def __init__(
        self, embedding_size: int, config: HeadConfig, groups: int = 1, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(embedding_size, config)
        self.register_buffer("groups", torch.tensor(groups))
        self.register_buffer("offset", torch.zeros((), dtype=torch.float64))
        self.register_buffer("gain", torch.ones((), dtype=torch.float64))
        self._build(embedding_size, groups, generator)

    def _build(self, size: int, groups: int, generator: torch.Generator | None) -> None:
        """Make the kind's parameters and buffers for embeddings of `size` numbers."""

    @classmethod
    def empty(cls, config: HeadConfig, tensors: dict[str, Tensor]) -> RewardHead:
        """A head of the shape that these tensors are the state of; ModelError where they tell none."""
        groups = tensors.get("groups")
        most = max((len(tensor) for tensor in tensors.values() if tensor.dim()), default=0)
        if groups is None or groups.dim() or groups.dtype != torch.int64 or not 1 <= int(groups) <= max(most, 1):
            said = "missing" if groups is None else f"{groups.dtype} {groups.flatten()[:3].tolist()}"
            raise ModelError(f"the tensor groups is {said}; expected the number of users, objectives or attributes")
        return cls(embedding_size(tensors), config, int(groups))

    # -- what a kind defines ---------------------------------------------------------------------------------------

    @classmethod
    def groups_in(cls, data: HeadData) -> int:
        """Number of users, objectives or attributes of a head for these data; 1 for kinds that know none."""
        return 1

    def scores(self, x: Tensor) -> Tensor:  # [n, d] -> [n]
        """Reward of standardized embeddings, head units."""
        raise NotImplementedError

    def located(self, x: Tensor, base: Tensor | None) -> Tensor:  # [n, d], [n] -> [n]
        """Reward of standardized embeddings and base rewards (internal units, float64), head units."""
        return self.scores(x)

    def spread(self, x: Tensor) -> Tensor:  # [n, d] -> [n]
        """Standard deviation of the reward, head units."""
        return x.new_full((len(x),), GUMBEL_STD, dtype=torch.float64)

    @abstractmethod
    def learn(self, data: HeadData, generator: torch.Generator) -> None:
        """Fit the kind's parameters; leaves units alone."""

    def fit_units(self, data: HeadData) -> None:
        """Fit gain and offset on the training rows."""
        values = self.located(data.embedding[data.training_rows], data.reward[data.training_rows]).double()
        spread = values.std(correction=0)
        # Where all rows have the same score there is no scale: the rewards are then all the mean.
        gain = torch.where(spread > 1e-9 * values.abs().amax().clamp_min(1e-9), 1 / spread, torch.ones_like(spread))
        self.gain.copy_(gain)
        self.offset.copy_(-gain * values.mean())

    def fit_support(self, data: HeadData) -> None:
        """The range of the training rows' rewards, four standard deviations wider on either side."""
        location, std = self._internal(data.embedding[data.training_rows], data.reward[data.training_rows])
        self.support.copy_(torch.stack([(location - 4 * std).amin(), (location + 4 * std).amax()]))

    # -- the interface ---------------------------------------------------------------------------------------------

    def forward(self, embedding: Tensor, base_reward: Tensor | None = None) -> Tensor:  # [n, d] -> [n]
        """Mean of each row's reward, float32, base units; most heads read no base reward."""
        base = None if base_reward is None else self.standardizer.to_internal64(base_reward.to(self.device))
        return self.standardizer.to_base(self._internal(self.standardizer.embed(embedding.to(self.device)), base)[0])

    @torch.no_grad()
    def location_scale(
        self, embedding: Tensor | EmbeddingSource, base_reward: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:  # [n, d], [n] -> [n], [n]
        """(mean, standard deviation) of each row's reward, internal units, float64; a part of the rows at a time."""
        base = None if base_reward is None else self.standardizer.to_internal64(base_reward.to(self.device))
        parts = [
            self._internal(self.standardizer.embed(some.to(self.device)), None if base is None else base[rows])
            for some, rows in _parts(embedding)
        ]
        mean, std = (torch.cat(part) for part in zip(*parts, strict=True))
        return mean, std

    def _internal(self, x: Tensor, base: Tensor | None) -> tuple[Tensor, Tensor]:  # [n, d], [n] -> [n], [n]
        mean = self.offset + self.gain * self.located(x, base).double()
        return mean, (self.gain * self.spread(x).double()).clamp_min(_LEAST_STD)

    def _estimates(
        self, embedding: Tensor | EmbeddingSource, base_reward: Tensor, generator: torch.Generator | None
    ) -> Refinement:
        """In closed form. Pessimism takes its standard deviations off `reward` alone."""
        mean, std = self.location_scale(embedding, base_reward)
        inference: EstimateConfig = self.config.inference  # type: ignore[assignment]
        tail, mode = (1 - inference.coverage) / 2, self._mode(mean, std)
        pessimism = getattr(self.config, "pessimism", 0.0)
        at = pessimistic(mean if inference.estimate == "mean" else mode, std, pessimism)
        interval = torch.stack([self._quantile(mean, std, tail), self._quantile(mean, std, 1 - tail)], 1)
        return Refinement(at, std, interval, self._log_density(mean, std, at), mean, mode)

    def posterior(
        self, embedding: Tensor | EmbeddingSource, base_reward: Tensor, nodes: int | None = None
    ) -> Posterior:
        """The distributions on `nodes` nodes, internal units; the outer nodes have all that lies beyond the support."""
        mean, std = self.location_scale(embedding, base_reward)
        return self._on(grid_nodes(*self.support_bounds(), nodes or self.nodes).to(mean), mean, std)

    @torch.no_grad()
    def prefer(
        self, embedding: tuple[Tensor, Tensor], base_reward: tuple[Tensor, Tensor], nodes: int | None = None
    ) -> Tensor:  # [n, d] each, [n] each -> [n]
        """P(r_a > r_b), [n] float32: σ(u_a - u_b) (Gumbel) or Φ((m_a - m_b) / √(s_a² + s_b²)) (Gaussian)."""
        (a, std_a), (b, std_b) = (self.location_scale(e, r) for e, r in zip(embedding, base_reward, strict=True))
        if self.noise == "gumbel":
            return torch.sigmoid((a - b) / (std_a / GUMBEL_STD)).float().cpu()
        return ndtr((a - b) / (std_a.square() + std_b.square()).sqrt()).float().cpu()

    @torch.no_grad()
    def p_best(self, embedding: Tensor, base_reward: Tensor, nodes: int | None = None) -> Tensor:  # [n, d], [n] -> [n]
        """P(r_i is the largest), [n] float32: softmax of the scores (Gumbel; Luce) or by quadrature (Gaussian)."""
        mean, std = self.location_scale(embedding, base_reward)
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
        return Posterior(grid, log_mass.clamp_min(LOWEST) - width.log(), torch.zeros_like(mean))

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


def _parts(embedding: Tensor | EmbeddingSource) -> Iterator[tuple[Tensor, slice]]:
    """The rows a few at a time; one part without rows where there are none, so that results have their shapes."""
    few, rows = rows_at_once(embedding), int(embedding.shape[0])
    places = (slice(first, first + few) for first in range(0, max(rows, 1), few))
    return ((embedding[place], place) for place in places)
