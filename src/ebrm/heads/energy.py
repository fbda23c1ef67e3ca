"""RewardDensity: p(r | e) with its units and support, and the refined reward read off it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ebrm.heads.ascent import ascend, starting_reward
from ebrm.heads.fusion import Fusion, weigh
from ebrm.heads.grid import Curves, Posterior, grid_nodes, posterior
from ebrm.heads.interpolation import MISFIT, Interpolation, find_interpolation
from ebrm.heads.network import EnergyNetwork
from ebrm.heads.old_config import FitConfig, InferenceConfig, NetworkConfig
from ebrm.heads.rows import EmbeddingSource
from ebrm.heads.standardize import Standardizer

#: Floats of one joint layer held at a time in inference (rows · rewards · width): what stays in a processor's cache,
#: and 64 MiB elsewhere.
_CPU_ACTIVATIONS = 2**21
_ACTIVATIONS = 2**24
#: Rows whose density is held at a time: what is held does not grow with the number of rows.
_BLOCK_ROWS = 2048
#: Nodes of the curve that the ascent climbs.
_ASCENT_NODES = 1025


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

    The density that rewards are read off is p(r | e, r0) ∝ p(r | e)^t N(r0; r, s²) (see :mod:`ebrm.heads.fusion`), with
    t and s fitted under the joint objective; under the others it is p(r | e) alone.

    Internally rewards are standardized (see :class:`Standardizer`); every public method takes and returns the base
    RM's units. Outside the support the density is zero: a tanh network does not decay, so without a support Z would be
    infinite. The support is the range of the training rewards widened by three noise widths; under the joint objective,
    whose densities need not lie where the base rewards do, at least four standard deviations on either side of their
    mean, and at most eight.
    """

    support: Tensor  # [2], internal units
    trusted: Tensor  # [2], internal units: the range of the training rewards
    power: Tensor  # t
    base_noise: Tensor  # s, in standard deviations of the training rewards

    def __init__(self, embedding_size: int, settings: NetworkConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.network = EnergyNetwork(embedding_size, settings, generator)
        self.standardizer = Standardizer(embedding_size)
        self.register_buffer("support", torch.tensor([-1.0, 1.0]))
        self.register_buffer("trusted", torch.tensor([-1.0, 1.0]))
        self.register_buffer("power", torch.ones((), dtype=torch.float64))
        self.register_buffer("base_noise", torch.tensor(torch.inf, dtype=torch.float64))
        # What is known of the network's functions of r: for which tensors, in which versions of theirs.
        self._space: tuple[list[Tensor], list[int], Interpolation | None] | None = None

    def fit_units(self, reward: Tensor, embeddings: Iterable[Tensor], settings: FitConfig, center: bool) -> None:
        """Fit units and support on the training rows: `reward` [n], `embeddings` in batches [k, d]."""
        self.standardizer.fit_reward(reward, settings.reward_scale)
        if center:
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
    def trust(self) -> Fusion:
        """How far the density and the base reward are trusted."""
        return Fusion(float(self.power), float(self.base_noise))

    @trust.setter
    def trust(self, trust: Fusion) -> None:
        self.power.fill_(trust.power)
        self.base_noise.fill_(trust.base_noise)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.support.device

    def support_bounds(self) -> tuple[float, float]:
        """Lowest and highest reward of the density, internal units."""
        return float(self.support[0]), float(self.support[1])

    def _rows(self, rewards: int) -> int:
        """How many rows at `rewards` rewards each fit the activation budget."""
        budget = _CPU_ACTIVATIONS if self.device.type == "cpu" else _ACTIVATIONS
        return max(1, budget // (self.network.width * max(rewards, 1)))

    def _embedded(self, embedding: Tensor, rewards: int) -> Iterator[Tensor]:  # [n, d] -> [k, w] each
        """The rows' part of the first layer, in pieces that fit the activation budget at `rewards` rewards a row."""
        for piece in embedding.split(self._rows(rewards)):
            yield self.network.embed(self.standardizer.embed(piece.to(self.device)))

    @torch.no_grad()
    def energy(self, embedding: Tensor, reward: Tensor) -> Tensor:  # [n, d], [n] or [n, m] -> same
        """f(e, r), higher = more compatible; rewards in base units."""
        internal = self.standardizer.to_internal(reward.to(self.device))
        columns = reward.shape[1] if reward.dim() == 2 else 1
        pieces = internal.reshape(len(internal), columns).split(self._rows(columns))
        values = [
            self.network.join(e.unsqueeze(1), self.network.reward_part(at))
            for e, at in zip(self._embedded(embedding, columns), pieces, strict=True)
        ]
        return torch.cat(values).reshape(reward.shape)

    @torch.no_grad()
    def internal_posterior(self, embedding: Tensor | EmbeddingSource, reward: Tensor, nodes: int) -> Posterior:
        """p(r | e, r0) of `embedding` [n, d], base `reward` [n] at `nodes` nodes over the support, internal units."""
        grid = grid_nodes(*self.support_bounds(), nodes).to(self.device)
        base = self.standardizer.to_internal(reward.to(self.device))
        blocks = ((self._curves(embedding[part], grid)[0], base[part]) for part in _blocks(len(reward)))
        parts = [self._given_base(f, grid, r) for f, r in blocks]
        return Posterior(grid, torch.cat([at.log_density for at in parts]), torch.cat([at.log_z for at in parts]))

    def _given_base(self, f: Tensor, grid: Tensor, base: Tensor) -> Posterior:  # [n, g], [g], [n]
        """p(r | e, r0) of rows whose energies on the grid are `f`."""
        return posterior(grid, weigh(f, grid, base, float(self.power), self._noise))

    def _curves(self, embedding: Tensor, *grids: Tensor) -> list[Tensor]:  # [n, d], [g] each -> [n, g] each
        """f(e, r) on grids over the support (internal units, float64), for one block of rows; float64.

        From its values at a few nodes for the rows that lie in the network's space of functions, and reward by reward
        for the others.
        """
        space, finest = self._interpolation(), max(grids, key=len)
        found: list[list[Tensor]] = [[] for _ in grids]
        if space is None:
            for embedded in self._embedded(embedding, len(finest)):
                for grid, parts in zip(grids, found, strict=True):
                    parts.append(self._directly(embedded, grid))
            return [torch.cat(parts) for parts in found]
        for embedded in self._embedded(embedding, len((space.hidden or space).nodes)):
            at_nodes, astray = self._at_nodes(embedded, space)
            for grid, parts in zip(grids, found, strict=True):
                f = at_nodes @ space.on_grid(len(grid), at_nodes.device)
                if len(astray):
                    f[astray] = self._directly(embedded[astray], grid)
                parts.append(f)
        return [torch.cat(parts) for parts in found]

    def _at_nodes(self, embedded: Tensor, space: Interpolation) -> tuple[Tensor, Tensor]:  # [n, w] -> [n, k], [m]
        """Values of f at the space's nodes, float64, and the rows that do not lie in it."""
        if space.hidden is None:
            f, off = self.network.on_nodes(embedded, space.nodes.to(self.support)), None
        else:
            few = self.network.hidden_on_nodes(embedded, space.hidden.nodes.to(self.support))  # [n, k', w']
            between, misfit = space.hidden_to_nodes.T.to(few), space.hidden.misfit.T.to(few)
            f = self.network.from_hidden(torch.bmm(between.expand(len(few), -1, -1), few))
            off = torch.bmm(misfit.expand(len(few), -1, -1), few).abs().amax((1, 2))
        f = f.double()
        misfit = (f @ space.misfit.to(f)).abs().amax(1)
        misfit = misfit if off is None else torch.maximum(misfit, off)
        return f, (misfit > MISFIT).nonzero().squeeze(1)

    def _directly(self, embedded: Tensor, grid: Tensor) -> Tensor:  # [n, w], [g] -> [n, g]
        """f(e, r) from the network at every reward of the grid, float64."""
        pieces = embedded.split(self._rows(len(grid)))
        return torch.cat([self.network.on_nodes(piece, grid.to(self.support)) for piece in pieces]).double()

    def _interpolation(self) -> Interpolation | None:
        """The space of the network's functions of the reward, found again when weights or support have changed."""
        state = [*self.network.parameters(), self.support]
        versions = [tensor._version for tensor in state if not tensor.is_inference()]
        known = self._space
        if known is None or known[1] != versions or any(a is not b for a, b in zip(known[0], state, strict=True)):
            known = self._space = (state, versions, find_interpolation(self.network, self.support_bounds()))
        return known[2]

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

    def p_best(self, embedding: Tensor, base_reward: Tensor, nodes: int = 257) -> Tensor:  # [n, d], [n] -> [n]
        """P(r_i is the largest of the n rewards) under the rows' densities, taken as independent, [n] float32.

        Sums to one; for two rows it is what `prefer` says; [1.] for one row, and empty for none.
        """
        return self.internal_posterior(embedding, base_reward, nodes).p_best().float().cpu()

    @torch.no_grad()
    def refine(
        self,
        embedding: Tensor | EmbeddingSource,  # [n, d]
        base_reward: Tensor,  # [n]
        settings: InferenceConfig,
        generator: torch.Generator | None = None,
    ) -> Refinement:
        """Refined rewards with their uncertainty, for any number of rows including none.

        Deterministic unless `settings.start` is "paper" or "random"; then draws come from `generator`, or from
        `settings.seed`. Works under `torch.inference_mode()`: nothing here needs a graph. Rows are read and refined
        block by block; what is held in memory at a time does not grow with their number.
        """
        grids = [grid_nodes(*self.support_bounds(), settings.nodes).to(self.device)]
        grid, base = grids[0], self.standardizer.to_internal(base_reward.to(self.device))
        start = base
        if settings.estimate == "ascent":  # drawn for all rows at once: draws do not depend on how rows are blocked
            trusted = (float(self.trusted[0]), float(self.trusted[1]))
            start = starting_reward(base, settings, trusted, generator).clamp(*self.support_bounds())
            grids.append(grid_nodes(*self.support_bounds(), _ASCENT_NODES).to(self.device))
        tail = (1 - settings.coverage) / 2
        blocks = []
        for part in _blocks(len(base)):
            f, *fine = self._curves(embedding[part], *grids)
            at = self._given_base(f, grid, base[part])
            estimate = {"mean": at.mean, "mode": at.mode}.get(settings.estimate)
            internal = estimate() if estimate else self._ascend(fine[0], grids[-1], base[part], start[part], settings)
            interval = torch.stack([at.quantile(tail), at.quantile(1 - tail)], dim=-1)
            blocks.append((internal, at.std(), interval, at.log_density_at(internal), at.mean(), at.mode()))
        internal, std, interval, log_density, mean, mode = (torch.cat(block) for block in zip(*blocks, strict=True))
        base_units, unit = self.standardizer.to_base, self.standardizer.unit
        return Refinement(
            reward=base_units(internal).cpu(),
            std=(std * unit).float().cpu(),
            interval=base_units(interval).cpu(),
            log_density=(log_density - math.log(unit)).float().cpu(),
            mean=base_units(mean).cpu(),
            mode=base_units(mode).cpu(),
        )

    def _ascend(
        self,
        f: Tensor,  # [n, g]
        grid: Tensor,  # [g]
        base: Tensor,  # [n]
        start: Tensor,  # [n]
        settings: InferenceConfig,
    ) -> Tensor:  # [n]
        """The ascent of one block of rows whose energies on a fine grid are `f`, internal units, float64.

        In float64: near the top, f changes by less than float32 can tell, and whether a step "rises" would turn on how
        a row was batched.
        """
        curves = Curves(grid, f)
        power, precision = float(self.power), self._noise**-2

        def weighed(rows: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
            value, slope = curves.at(rows, r)
            off = base[rows].double() - r
            return power * value - 0.5 * precision * off.square(), power * slope + precision * off

        return ascend(weighed, start.double(), settings, self.support_bounds()).reward


def _blocks(rows: int) -> Iterator[slice]:
    """Slices of at most _BLOCK_ROWS rows; one empty slice where there are none, so that results have their shapes."""
    return (slice(first, first + _BLOCK_ROWS) for first in range(0, max(rows, 1), _BLOCK_ROWS))
