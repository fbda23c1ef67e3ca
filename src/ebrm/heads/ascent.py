"""Gradient ascent of f(e, ·) from a start, accepting only steps that raise f."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ebrm.heads.old_config import InferenceConfig

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
    """Climb f from `start` by r ← r + λ ∂f/∂r, row by row (arXiv 2504.13134, algorithm 2).

    A step is accepted if it raises f and stays inside `support` (outside, the density is zero); otherwise λ ← η λ
    for that row. A row stops at λ < `step_stop`, and after T = `steps` steps at the latest. So f never falls, T = 0
    returns the start, a flat f returns the start, and a row's path does not depend on the rows beside it.

    Args:
        energy: value and derivative in r at given rows; called with the rows still moving only.
        start: starting rewards, internal units, float32, any number of rows including none.
        settings: `steps` (T), `step_size` (λ0), `step_decay` (η), `step_stop`.
        support: lowest and highest reward of the density, internal units.
    """
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
    """Where the ascent starts (the hybrid start of arXiv 2504.13134, and safer ones).

    Args:
        base: base rewards in internal units.
        settings: `start`, `window`, `fallback`, and `seed` where no generator is given.
        trusted: lowest and highest training reward; start "base" clamps to it.
        generator: source of the draws of "paper" and "random", one a row in order (drawn for every row, so that
            which rows fall outside the window does not shift the draws of the others).
    """
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
