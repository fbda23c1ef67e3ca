"""Refining rows: the same ascent, the posterior on a grid and the default model, beside the plain ascent.

Plain is always the ascent of the network that the figure names (of `small` for the default model); one run of it a turn
serves all figures of the same rows. Networks are fitted briefly on made-up rows first, outside the timing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from benchmarks.plain import plain_network, plain_refine
from benchmarks.rows import fit_briefly, made_rows
from benchmarks.timing import Figure, Ratio, compare_each
from ebrm.heads import UNMEASURED, EnergyConfig, EnergyHead, LikelihoodConfig, NetworkConfig, TrainingConfig

ASCENT, GRID, DEFAULT = "refine, same rule (ascent)", "posterior on a grid", "default model"
#: Ratios that must be reached on two CPU cores, by embedding size.
REQUIRED: dict[str, dict[int, float]] = {
    ASCENT: {512: 2.5, 4096: 8.0},
    GRID: {512: 12.0, 4096: 30.0},
    DEFAULT: {4096: 200.0},
}
#: Mean and mode may differ from 4,097 direct points by this, in standard deviations of the row's density.
TOLERANCE = 1e-3
#: Rows whose plain ascent is timed, by embedding size; beyond them one run of it takes over a minute.
PLAIN_ROWS = {512: (2**9, 2**11, 2**13), 4096: (2**9, 2**11)}
#: Rows that only ours is timed on, beside the plain ascent of the largest size above, scaled to as many rows.
OWN_ROWS = (2**15, 2**17)
#: Rows the networks are fitted on, quick or not.
FITTED_ROWS = {True: 512, False: 2048}
_LARGE_ROWS = 64


@dataclass(frozen=True)
class Error:
    """Largest error over the rows, in standard deviations of each row's density."""

    mean: float
    mode: float

    def check(self, name: str) -> None:
        """Raise if either is not below :data:`TOLERANCE`.

        Raises:
            RuntimeError: the posterior is not accurate enough for its speed to count.
        """
        if not (self.mean < TOLERANCE and self.mode < TOLERANCE):
            raise RuntimeError(
                f"{name}: the mean is off by {self.mean:.1e} and the mode by {self.mode:.1e} standard deviations from "
                f"4,097 direct points; both must be below {TOLERANCE:g}."
            )


@torch.no_grad()
def error(
    density: EnergyHead,
    embedding: Tensor,  # [n, d]
    reward: Tensor,  # [n], base units
    points: int = 4097,
) -> Error:
    """How far mean and mode of `refine` are from the network evaluated at `points` equally spaced rewards, float64."""
    refined = density.refine(embedding, reward)
    network = copy.deepcopy(density.network).double()
    nodes = torch.linspace(*density.support_bounds(), points, dtype=torch.float64, device=density.device)
    step = nodes[1] - nodes[0]
    weight = torch.full_like(nodes, float(step))
    weight[[0, -1]] /= 2
    mean, mode, std = [], [], []
    units, fusion = density.standardizer, density.fusion
    width = fusion.base_noise * float(units.reward_scale)
    for e, r0 in zip(embedding.split(8), reward.split(8), strict=True):
        e, r0 = units.embed(e.to(density.device)).double(), units.to_internal(r0.to(density.device)).double()
        f = fusion.power * network.on_nodes(network.embed(e), nodes)
        f = f - 0.5 * ((r0.unsqueeze(1) - nodes) / width) ** 2
        p = (f - f.amax(1, keepdim=True)).exp()
        p = p / (p * weight).sum(1, keepdim=True)
        mean.append((p * weight * nodes).sum(1))
        std.append((p * weight * (nodes - mean[-1].unsqueeze(1)) ** 2).sum(1).sqrt())
        best = f.argmax(1)
        inner = best.clamp(1, points - 2)
        left, top, right = (f.gather(1, (inner + k).unsqueeze(1)).squeeze(1) for k in (-1, 0, 1))
        bend = left - 2 * top + right
        vertex = nodes[inner] + torch.where(bend < 0, 0.5 * (left - right) / bend, torch.zeros_like(bend)) * step
        mode.append(torch.where(best == inner, vertex, nodes[best]))
    spread = torch.cat(std) * units.unit
    of_mean = (refined.mean.to(spread) - units.to_base(torch.cat(mean)).double()).abs() / spread
    of_mode = (refined.mode.to(spread) - units.to_base(torch.cat(mode)).double()).abs() / spread
    return Error(float(of_mean.max()), float(of_mode.max()))


def figures(quick: bool, device: str = "cpu") -> Iterator[Figure]:
    """All figures of refining, smallest rows first.

    Raises:
        RuntimeError: mean or mode are less accurate than :data:`TOLERANCE`.
    """
    for d in (512, 4096):
        yield from _at_size(d, quick, device)
    yield from _large(quick, device)


def _at_size(d: int, quick: bool, device: str) -> Iterator[Figure]:
    counts = (2**8,) if quick else PLAIN_ROWS[d]
    fitted_on = FITTED_ROWS[quick]
    embedding, reward = made_rows(max(fitted_on, *counts) if quick else OWN_ROWS[-1], d)
    e, r = embedding[:fitted_on], reward[:fitted_on]
    brief = EnergyConfig(
        network=NetworkConfig(size="small"), objective=LikelihoodConfig(nodes=16),
        training=TrainingConfig(epochs=2 if quick else 6, batch_rows=128),
    )  # fmt: skip
    small = fit_briefly(e, r, brief).head.to(device)
    # At the paper's rate the network bends less: its ascents are shorter, and ours takes fewer nodes.
    gentle = replace(brief.training, learning_rate=EnergyConfig.paper().training.learning_rate)
    smooth = fit_briefly(e, r, replace(brief, training=gentle)).head.to(device)
    default = fit_briefly(e, r, EnergyConfig()).head.to(device)
    assert isinstance(small, EnergyHead) and isinstance(smooth, EnergyHead) and isinstance(default, EnergyHead)
    default.fusion = UNMEASURED  # the density is computed whatever its weight: the check shall not pass it over
    for name, density in (("small", small), ("small at the paper's rate", smooth), ("default", default)):
        checked = 16 if quick else 64
        found = error(density, embedding[-checked:], reward[-checked:])
        print(f"d = {d:,}, {name}: mean off by {found.mean:.1e}, mode by {found.mode:.1e} std on {checked} rows")
        found.check(f"d = {d:,}, {name}")
    network, climbing = plain_network(small.network), small.with_inference(estimate="ascent")

    def ways(n: int) -> dict[str, Callable[[], object]]:
        e, r = embedding[:n], reward[:n]
        return {
            ASCENT: partial(climbing.refine, e, r),
            GRID: partial(small.refine, e, r),
            DEFAULT: partial(default.refine, e, r),
        }

    for n in counts:
        plain = partial(plain_refine, network, small, embedding[:n], reward[:n])
        if n == counts[0]:  # what a first call sets up does not grow with the rows
            taken = plain().steps
            print(f"d = {d:,}: the plain ascent takes {', '.join(map(str, taken))} steps on the first {n} rows")
        ratios = compare_each(plain, ways(n), 2 if quick else 3, warm_up=n == counts[0])
        for name, ratio in ratios.items():
            yield _figure(name, ratio, d, n, device, REQUIRED[name].get(d))
    if quick:
        return
    n = counts[-1]
    plain = partial(plain_refine, plain_network(smooth.network), smooth, embedding[:n], reward[:n])
    steps = plain().steps
    print(f"d = {d:,}: at the paper's rate the plain ascent takes {', '.join(map(str, steps))} steps on {n} rows")
    ways_of_smooth = {GRID: partial(smooth.refine, embedding[:n], reward[:n])}
    ratio = compare_each(plain, ways_of_smooth, 3, warm_up=False)[GRID]
    called = f"{GRID}, fitted at the paper's rate: plain stops after {max(steps)} steps"
    yield _figure(GRID, ratio, d, n, device, REQUIRED[GRID][d], called=called)
    for n in OWN_ROWS:
        part = counts[-1]
        plain = partial(plain_refine, network, small, embedding[:part], reward[:part])
        scaled = {name: way for name, way in ways(n).items() if name != ASCENT}
        for name, ratio in compare_each(plain, scaled, 1, warm_up=False).items():
            whole = f"{name}; plain: {n // part} x {part:,} rows"
            yield _figure(name, ratio.with_plain_times(n // part), d, n, device, None, called=whole)


def _figure(
    name: str, ratio: Ratio, d: int, rows: int, device: str, required: float | None, called: str | None = None
) -> Figure:
    network = NetworkConfig().size if name == DEFAULT else "small"
    return Figure.from_ratio(called or name, ratio, d=d, network=network, rows=rows, device=device, required=required)


def _large(quick: bool, device: str) -> Iterator[Figure]:
    """The published network for 8B reward models: one size, few rows, no requirement."""
    d, n = 4096, 4 if quick else _LARGE_ROWS
    embedding, reward = made_rows(32 if quick else 128, d)
    brief = EnergyConfig(
        network=NetworkConfig(size="large"), objective=LikelihoodConfig(nodes=8),
        training=TrainingConfig(epochs=1, batch_rows=16),
    )  # fmt: skip
    density = fit_briefly(embedding, reward, brief).head.to(device)
    assert isinstance(density, EnergyHead)
    e, r = embedding[:n], reward[:n]
    plain = partial(plain_refine, plain_network(density.network), density, e, r)
    density.refine(e[:1], r[:1])  # sets up what does not grow with the rows
    ways = {GRID: partial(density.refine, e, r)}
    ratio = compare_each(plain, ways, 1 if quick else 3, warm_up=False)[GRID]
    yield Figure.from_ratio(GRID, ratio, d=d, network="large", rows=n, device=device)
