"""RewardDensity: p(r | e) with its units and support, and the refined reward read off it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ebrm.energy.ascent import ascend, starting_reward
from ebrm.energy.grid import Posterior, grid_nodes, posterior
from ebrm.energy.network import EnergyNetwork
from ebrm.energy.settings import FitSettings, InferenceSettings, NetworkSettings
from ebrm.energy.standardize import Standardizer
from ebrm.energy.trust import Trust, weigh

#: Floats of one joint layer held at a time in inference (rows · rewards · width): 64 MiB.
_ACTIVATIONS = 2**24


@dataclass(frozen=True)
class Refinement:
    """What the density says of n rows, float32, in the base RM's units (log_density per such unit).

    Attributes:
        reward: the refined reward [n].
        std: standard deviation of the density [n].
        interval: central interval of the settings' coverage [n, 2].
        log_density: log p(reward | e) [n].
        mean, mode: of the density [n].
    """

    reward: Tensor
    std: Tensor
    interval: Tensor
    log_density: Tensor
    mean: Tensor
    mode: Tensor


class RewardDensity(nn.Module):
    """p(r | e) = exp f(e, r) / Z(e) on a support fitted to the training rewards, and what it says given r0 as well.

    The density that rewards are read off is p(r | e, r0) ∝ p(r | e)^t N(r0; r, s²) (see :mod:`ebrm.energy.trust`), with
    t and s fitted under the joint objective; under the others it is p(r | e) alone.

    Internally rewards are standardised (see :class:`Standardizer`); every public method takes and returns the base
    RM's units. Outside the support the density is zero: a tanh network does not decay, so without a support Z would be
    infinite. The support is the range of the training rewards widened by three noise widths; under the joint objective,
    whose densities need not lie where the base rewards do, at least four standard deviations on either side of their
    mean, and at most eight.
    """

    support: Tensor  # [2], internal units
    trusted: Tensor  # [2], internal units: the range of the training rewards
    sharpness: Tensor  # t
    base_noise: Tensor  # s, in standard deviations of the training rewards

    def __init__(
        self, embedding_size: int, settings: NetworkSettings, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.network = EnergyNetwork(embedding_size, settings, generator)
        self.standardizer = Standardizer(embedding_size)
        self.register_buffer("support", torch.tensor([-1.0, 1.0]))
        self.register_buffer("trusted", torch.tensor([-1.0, 1.0]))
        self.register_buffer("sharpness", torch.ones((), dtype=torch.float64))
        self.register_buffer("base_noise", torch.tensor(torch.inf, dtype=torch.float64))

    def fit_units(self, reward: Tensor, embeddings: Iterable[Tensor], settings: FitSettings, centre: bool) -> None:
        """Fit units and support on the training rows: `reward` [n], `embeddings` in batches [k, d]."""
        self.standardizer.fit_reward(reward, settings.reward_scale)
        if centre:
            self.standardizer.fit_embedding(embeddings)
        internal = self.standardizer.to_internal(reward)
        low, high = float(internal.min()), float(internal.max())
        self.trusted.copy_(torch.tensor([low, high]))
        if settings.objective == "joint":
            least, most = 4 * settings.reward_scale, 8 * settings.reward_scale
            self.support.copy_(torch.tensor([max(-most, min(-least, low)), min(most, max(least, high))]))
        else:
            margin = 3 * max(settings.noise_scales) * settings.reward_scale
            self.support.copy_(torch.tensor([low - margin, high + margin]))

    @property
    def trust(self) -> Trust:
        """How far the density and the base reward are trusted."""
        return Trust(float(self.sharpness), float(self.base_noise))

    @trust.setter
    def trust(self, trust: Trust) -> None:
        self.sharpness.fill_(trust.sharpness)
        self.base_noise.fill_(trust.base_noise)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.support.device

    def support_bounds(self) -> tuple[float, float]:
        """Lowest and highest reward of the density, internal units."""
        return float(self.support[0]), float(self.support[1])

    def _chunks(self, embedding: Tensor, rewards: int) -> Iterator[tuple[slice, Tensor]]:
        """Slices of rows, with their part of the first layer, that fit the activation budget."""
        rows = max(1, _ACTIVATIONS // (self.network.width * max(rewards, 1)))
        for first in range(0, len(embedding), rows):
            part = slice(first, first + rows)
            yield part, self.network.embed(self.standardizer.embed(embedding[part].to(self.device)))

    @torch.no_grad()
    def energy(self, embedding: Tensor, reward: Tensor) -> Tensor:  # [n, d], [n] or [n, m] -> same
        """f(e, r), higher = more compatible; rewards in base units."""
        internal = self.standardizer.to_internal(reward.to(self.device))
        columns = reward.shape[1] if reward.dim() == 2 else 1
        parts = [
            self.network.join(e.unsqueeze(1), self.network.reward_part(internal[part].reshape(len(e), columns)))
            for part, e in self._chunks(embedding, columns)
        ]
        values = torch.cat(parts) if parts else internal.new_zeros(0, columns)
        return values.reshape(reward.shape)

    @torch.no_grad()
    def internal_posterior(self, embedding: Tensor, reward: Tensor, nodes: int) -> Posterior:
        """p(r | e, r0) of `embedding` [n, d], base `reward` [n] at `nodes` nodes over the support, internal units."""
        grid = grid_nodes(*self.support_bounds(), nodes)
        floats = grid.float().to(self.device)
        values = [self.network.on_nodes(e, floats) for _, e in self._chunks(embedding, nodes)]
        f = torch.cat(values) if values else floats.new_zeros(0, nodes)
        base = self.standardizer.to_internal(reward.to(self.device))
        return posterior(grid.to(self.device), weigh(f, floats, base, float(self.sharpness), self._noise))

    @property
    def _noise(self) -> float:
        """Error of the base reward in internal units."""
        return float(self.base_noise) * float(self.standardizer.reward_scale)

    def density(self, embedding: Tensor, reward: Tensor, nodes: int = 257) -> tuple[Tensor, Tensor]:
        """(rewards [g], p(r | e, r0) [n, g]) over the support, float32, base units and per base unit."""
        at = self.internal_posterior(embedding, reward, nodes)
        density = at.density / self.standardizer.unit
        return self.standardizer.to_base(at.nodes).cpu(), density.float().cpu()

    def prefer(
        self,
        embedding: tuple[Tensor, Tensor],  # [n, d] each
        reward: tuple[Tensor, Tensor],  # [n] each
        nodes: int = 257,
    ) -> Tensor:  # [n]
        """P(r_a > r_b) for (a, b) rows under their densities, taken as independent, [n] float32."""
        both = self.internal_posterior(torch.cat(embedding), torch.cat(reward), nodes)
        n = len(embedding[0])
        a = Posterior(both.nodes, both.log_density[:n], both.log_z[:n])
        b = Posterior(both.nodes, both.log_density[n:], both.log_z[n:])
        return a.prefer(b).float().cpu()

    @torch.no_grad()
    def refine(
        self,
        embedding: Tensor,  # [n, d]
        base_reward: Tensor,  # [n]
        settings: InferenceSettings,
        generator: torch.Generator | None = None,
    ) -> Refinement:
        """Refined rewards with their uncertainty, for any number of rows including none.

        Deterministic unless `settings.start` is "paper" or "random"; then draws come from `generator`, or from
        `settings.seed`. Works under `torch.inference_mode()`: nothing here needs a graph.
        """
        at = self.internal_posterior(embedding, base_reward, settings.nodes)
        mean, mode = at.mean(), at.mode()
        if settings.estimate == "ascent":
            base = self.standardizer.to_internal(base_reward.to(self.device))
            bounds = self.support_bounds()
            start = starting_reward(base, settings, (float(self.trusted[0]), float(self.trusted[1])), generator)
            internal = self._ascend(embedding, base, start.clamp(*bounds), settings, bounds)
        else:
            internal = mean if settings.estimate == "mean" else mode
        unit = self.standardizer.unit
        tail = (1 - settings.coverage) / 2
        interval = torch.stack([at.quantile(tail), at.quantile(1 - tail)], dim=-1)
        base_units = self.standardizer.to_base
        log_unit = float(torch.tensor(unit, dtype=torch.float64).log())
        return Refinement(
            reward=base_units(internal).cpu(),
            std=(at.std() * unit).float().cpu(),
            interval=base_units(interval).cpu(),
            log_density=(at.log_density_at(internal) - log_unit).float().cpu(),
            mean=base_units(mean).cpu(),
            mode=base_units(mode).cpu(),
        )

    def _ascend(
        self, embedding: Tensor, base: Tensor, start: Tensor, settings: InferenceSettings, bounds: tuple[float, float]
    ) -> Tensor:
        """The ascent in chunks of rows, internal units, float32 [n].

        In float64: near the top, f changes by less than float32 can tell, and whether a step "rises" would turn on how
        a row was batched.
        """
        network = copy.deepcopy(self.network).double()
        sharpness, precision = float(self.sharpness), self._noise**-2
        ends = []
        for part, embedded in self._chunks(embedding, 1):
            wide, measured = embedded.double(), base[part].double()

            def weighed(
                rows: Tensor, r: Tensor, wide: Tensor = wide, measured: Tensor = measured
            ) -> tuple[Tensor, Tensor]:
                f, slope = network.with_derivative(wide[rows], r)
                off = measured[rows] - r
                return sharpness * f - 0.5 * precision * off.square(), sharpness * slope + precision * off

            climbed = ascend(
                weighed,
                start[part].double(),
                settings,
                bounds,
            )
            ends.append(climbed.reward.float())
        return torch.cat(ends) if ends else start
