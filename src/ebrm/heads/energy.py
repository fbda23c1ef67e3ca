"""The energy model: p(r | e) on a support, and refined rewards read off it by quadrature or gradient ascent."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ebrm.heads.base import Refinement, RewardHead
from ebrm.heads.config import EnergyConfig, InferenceConfig, JointConfig
from ebrm.heads.data import EmbeddingSource
from ebrm.heads.fusion import Fusion, weigh
from ebrm.heads.grid import Curves, Posterior, grid_nodes, posterior
from ebrm.heads.interpolation import MISFIT, Interpolation, find_interpolation
from ebrm.heads.network import EnergyNetwork

#: Floats of one joint layer held at a time in inference (rows · rewards · width): what stays in a processor's cache,
#: and 64 MiB elsewhere.
_CPU_ACTIVATIONS = 2**21
_ACTIVATIONS = 2**24
#: Rows whose density is held at a time: what is held does not grow with the number of rows.
_BLOCK_ROWS = 2048
#: Nodes of the curve that the ascent climbs.
_ASCENT_NODES = 1025


#: (rows [k], reward [k]) → (f [k], ∂f/∂r [k]): value and derivative for the rows still moving.
ValueAndDerivative = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Ascent:
    """Where the ascent ended: `reward` [n], its `value` f [n], and the accepted steps a row [n]."""

    reward: Tensor
    value: Tensor
    accepted: Tensor


def ascend(
    energy: ValueAndDerivative,
    start: Tensor,  # [n]
    settings: InferenceConfig,
    support: tuple[float, float] = (-torch.inf, torch.inf),
) -> Ascent:
    """Climb f by r ← r + λ ∂f/∂r where that raises f inside `support`, else λ ← η λ (arXiv 2504.13134, alg. 2)."""
    reward = start.clone()
    rows = torch.arange(len(start), device=start.device)
    accepted = torch.zeros_like(rows)
    if len(start) == 0:
        return Ascent(reward, reward.clone(), accepted)
    low, high = support
    value, slope = energy(rows, reward)
    final_value = value.clone()
    r, step = reward.clone(), torch.full_like(reward, settings.step_size)
    for _ in range(settings.steps):
        if len(rows) == 0:
            break
        candidate = r + step * slope
        new_value, new_slope = energy(rows, candidate)
        better = (new_value > value) & (candidate >= low) & (candidate <= high)
        r = torch.where(better, candidate, r)
        value = torch.where(better, new_value, value)
        slope = torch.where(better, new_slope, slope)
        step = torch.where(better, step, step * settings.step_decay)
        reward[rows], final_value[rows] = r, value
        accepted[rows] += better.long()
        moving = step >= settings.step_stop
        if not bool(moving.all()):
            rows, r, value, slope, step = rows[moving], r[moving], value[moving], slope[moving], step[moving]
    return Ascent(reward, final_value, accepted)


def starting_reward(
    base: Tensor,  # [n], internal units
    settings: InferenceConfig,
    trusted: tuple[float, float],
    generator: torch.Generator | None = None,
) -> Tensor:  # [n]
    """Start of the ascent from base rewards, internal units (hybrid start of arXiv 2504.13134, and others)."""
    if settings.start == "base":
        return base.clamp(*trusted)
    if settings.start == "zero":
        return torch.zeros_like(base)
    if generator is None:
        generator = torch.Generator().manual_seed(settings.seed)
    low, high = settings.fallback
    uniform = torch.rand(base.shape, generator=generator, device=generator.device).to(base.device)
    draw = low + (high - low) * uniform
    if settings.start == "random":
        return draw
    return torch.where((base >= settings.window[0]) & (base <= settings.window[1]), base, draw)


class EnergyHead(RewardHead):
    """p(r | e) = exp f(e, r) / Z(e) on a support fitted to the training rewards (EBRM, arXiv 2504.13134).

    Rewards are read off p(r | e, r0) ∝ p(r | e)^t N(r0; r, s²), t and s fitted under the joint objective, and p(r | e)
    alone under the others. The support, needed since a tanh network does not decay, is the range of the training
    rewards widened by three noise widths; under the joint objective 4 to 8 standard deviations on either side of their
    mean. Where the base reward counts and lies beyond the support, nothing is known of f there: the
    distribution is that at its edge, moved along by as much as the base reward lies beyond.
    """

    takes = ("label", "weight")
    positive = ("base_noise",)
    not_negative = ("power",)
    infinite = ("base_noise",)

    config: EnergyConfig
    trusted: Tensor  # [2], internal units: the range of the training rewards
    power: Tensor  # t
    base_noise: Tensor  # s, in standard deviations of the training rewards

    def __init__(
        self,
        embedding_size: int,
        config: EnergyConfig = EnergyConfig(),  # noqa: B008 - frozen
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(embedding_size, config)
        self.network = EnergyNetwork(embedding_size, config.network, generator)
        self.register_buffer("trusted", torch.tensor([-1.0, 1.0]))
        self.register_buffer("power", torch.ones((), dtype=torch.float64))
        self.register_buffer("base_noise", torch.tensor(torch.inf, dtype=torch.float64))
        # The space of the network's functions of r, for which tensors, in which versions of theirs; shared by copies.
        self._space: list[tuple[list[Tensor], list[int], Interpolation | None]] = []

    def fit_units(self, reward: Tensor, embeddings: Iterable[Tensor]) -> None:
        """Fit units and support on the training rows: `reward` [n], `embeddings` in batches [k, d]."""
        objective, scale = self.config.objective, self.config.training.reward_scale
        self.standardizer.fit_reward(reward, scale)
        if self.config.network.standardize_embedding:
            self.standardizer.fit_embedding(embeddings)
        internal = self.standardizer.to_internal(reward)
        low, high = float(internal.min()), float(internal.max())
        self.trusted.copy_(torch.tensor([low, high]))
        if isinstance(objective, JointConfig):
            least, most = 4 * scale, 8 * scale
            self.support.copy_(torch.tensor([max(-most, min(-least, low)), min(most, max(least, high))]))
        else:
            margin = 3 * max(objective.noise_scales) * scale
            self.support.copy_(torch.tensor([low - margin, high + margin]))

    @property
    def fusion(self) -> Fusion:
        """Weights of the density and of the base reward."""
        return Fusion(float(self.power), float(self.base_noise))

    @fusion.setter
    def fusion(self, fusion: Fusion) -> None:
        self.power.fill_(fusion.power)
        self.base_noise.fill_(fusion.base_noise)

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

    def forward(self, embedding: Tensor, base_reward: Tensor | None = None) -> Tensor:  # [n, d], [n] -> [n]
        """Mean of p(r | e), or of p(r | e, r0) where the base rewards r0 are given, float32, base units."""
        grid = grid_nodes(*self.support_bounds(), self.config.inference.nodes).to(self.device)
        embedded = self.network.embed(self.standardizer.embed(embedding.to(self.device)))
        f = self.network.on_nodes(embedded, grid.to(self.support)).double()
        if base_reward is None:
            return self.standardizer.to_base(posterior(grid, f).mean())
        base, beyond = self._base(base_reward)
        return self.standardizer.to_base(self._given_base(f, grid, base).mean() + beyond)

    @torch.no_grad()
    def posterior(
        self, embedding: Tensor | EmbeddingSource, base_reward: Tensor, nodes: int | None = None
    ) -> Posterior:
        """p(r | e, r0) of `embedding` [n, d], base rewards [n] at `nodes` nodes over the support, internal units."""
        at, beyond = self._at(embedding, base_reward, nodes)
        return at.moved(beyond)

    @torch.no_grad()
    def prefer(
        self, embedding: tuple[Tensor, Tensor], base_reward: tuple[Tensor, Tensor], nodes: int | None = None
    ) -> Tensor:  # [n, d] each, [n] each -> [n]
        """P(r_a > r_b), [n] float32, on the nodes around the higher of two rewards that lie beyond the support."""
        (a, up_a), (b, up_b) = (self._at(e, r, nodes) for e, r in zip(embedding, base_reward, strict=True))
        most = self._around(torch.maximum(up_a, up_b))
        return a.moved(up_a - most).prefer(b.moved(up_b - most)).float().cpu()

    @torch.no_grad()
    def p_best(self, embedding: Tensor, base_reward: Tensor, nodes: int | None = None) -> Tensor:  # [n, d], [n] -> [n]
        """P(r_i is the largest), [n] float32, on the nodes around the row that lies furthest above the support."""
        at, beyond = self._at(embedding, base_reward, nodes)
        most = self._around(beyond.amax()) if len(beyond) else 0.0
        return at.moved(beyond - most).p_best().float().cpu()

    def _around(self, most: Tensor) -> Tensor:
        """Where the nodes are put for rewards of which the highest lies `most` beyond the support.

        Around that one; in the middle where it lies below, or it would share the first cell with all that is lower.
        """
        low, high = self.support_bounds()
        return torch.where(most < 0, most - (high - low) / 2, most)

    def _at(
        self, embedding: Tensor | EmbeddingSource, base_reward: Tensor, nodes: int | None
    ) -> tuple[Posterior, Tensor]:
        """The distributions given base rewards clamped to the support, and how far to move them [n]."""
        grid = grid_nodes(*self.support_bounds(), nodes or self.nodes).to(self.device)
        base, beyond = self._base(base_reward)
        blocks = ((self._curves(embedding[part], grid)[0], base[part]) for part in _blocks(len(base_reward)))
        parts = [self._given_base(f, grid, r) for f, r in blocks]
        at = Posterior(grid, torch.cat([at.log_density for at in parts]), torch.cat([at.log_z for at in parts]))
        return at, beyond

    def _base(self, base_reward: Tensor) -> tuple[Tensor, Tensor]:  # [n] -> [n], [n]
        """Base rewards inside the support, and how far beyond it they were (0 if they do not count; float64)."""
        base = self.standardizer.to_internal64(base_reward.to(self.device))
        inside = base.clamp(*self.support_bounds())
        beyond = base - inside if math.isfinite(self._noise) else torch.zeros_like(base)
        return (inside if math.isfinite(self._noise) else base).float(), beyond

    def _given_base(self, f: Tensor, grid: Tensor, base: Tensor) -> Posterior:  # [n, g], [g], [n]
        """p(r | e, r0) of rows whose energies on the grid are `f`."""
        return posterior(grid, weigh(f, grid, base, float(self.power), self._noise))

    def _curves(self, embedding: Tensor, *grids: Tensor) -> list[Tensor]:  # [n, d], [g] each -> [n, g] each
        """f(e, r) on grids over the support for one block of rows, by interpolation where they allow it; float64."""
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
        for tensors, known, space in self._space:
            if known == versions and all(a is b for a, b in zip(tensors, state, strict=True)):
                return space
        space = find_interpolation(self.network, self.support_bounds())
        self._space[:] = [(state, versions, space)]
        return space

    @property
    def _noise(self) -> float:
        """Error of the base reward in internal units."""
        return float(self.base_noise) * float(self.standardizer.reward_scale)

    def _estimates(
        self, embedding: Tensor | EmbeddingSource, base_reward: Tensor, generator: torch.Generator | None
    ) -> Refinement:
        """Block by block of rows, so that memory does not grow with their number."""
        inference = self.config.inference
        grids = [grid_nodes(*self.support_bounds(), inference.nodes).to(self.device)]
        grid, (base, beyond) = grids[0], self._base(base_reward)
        start = base
        if inference.estimate == "ascent":  # drawn for all rows at once: draws do not depend on how rows are blocked
            trusted = (float(self.trusted[0]), float(self.trusted[1]))
            start = starting_reward(base, inference, trusted, generator).clamp(*self.support_bounds())
            grids.append(grid_nodes(*self.support_bounds(), _ASCENT_NODES).to(self.device))
        tail = (1 - inference.coverage) / 2
        blocks = []
        for part in _blocks(len(base)):
            f, *fine = self._curves(embedding[part], *grids)
            at = self._given_base(f, grid, base[part])
            estimate = {"mean": at.mean, "mode": at.mode}.get(inference.estimate)
            internal = estimate() if estimate else self._ascend(fine[0], grids[-1], base[part], start[part], inference)
            interval = torch.stack([at.quantile(tail), at.quantile(1 - tail)], dim=-1)
            log_density, up = at.log_density_at(internal), beyond[part]
            blocks.append(
                (internal + up, at.std(), interval + up[:, None], log_density, at.mean() + up, at.mode() + up)
            )
        return Refinement(*(torch.cat(block) for block in zip(*blocks, strict=True)))

    def _ascend(
        self, f: Tensor, grid: Tensor, base: Tensor, start: Tensor, settings: InferenceConfig
    ) -> Tensor:  # [n, g], [g], [n], [n] -> [n]
        """The ascent of one block of rows with energies `f` on a fine grid, in float64: f barely rises near its top."""
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
