"""Training: the time to the held-out likelihood that one epoch of plain NCE+ reaches, and the time of one pass.

Plain takes the paper's settings (M = 768, batches of 256, AdamW at 9e-5); ours the `likelihood` objective with ebrm's
defaults. Both start from the same weights and see the same rows in the same units. Held-out likelihood is the mean of
-log p(r0 | e) over other rows, by quadrature, measured outside the timing with one function for both.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.plain import copy_back, plain_epoch, plain_network
from benchmarks.rows import made_rows
from benchmarks.timing import Figure, Ratio, seconds
from ebrm.heads import EnergyConfig, EnergyHead, LikelihoodConfig, NetworkConfig, read_batch, train_step

TO_LIKELIHOOD, PASS, SAME_RATE = "training epoch", "training epoch, per pass", "training epoch, plain at ebrm's rate"
#: Ratios that must be reached on two CPU cores, by embedding size.
REQUIRED = {512: 20.0, 4096: 50.0}
#: Training rows, by embedding size: one plain epoch takes one to three minutes.
ROWS = {512: 2**10, 4096: 2**9}
QUICK_ROWS = {512: 2**6, 4096: 2**5}
SEEDS = (0, 1)
PLAIN = EnergyConfig.paper("small")
OURS = EnergyConfig(objective=LikelihoodConfig())
#: Ours is measured this often an epoch, and given up on after so many epochs.
_CHECKS, _EPOCHS = 8, 5


@torch.no_grad()
def held_out_loss(density: EnergyHead, embedding: Tensor, reward: Tensor, nodes: int = 257) -> float:
    """Mean -log p(r0 | e) of rows, internal units, log Z by the trapezoid rule on the network itself, float64."""
    low, high = density.support_bounds()
    grid = torch.linspace(low, high, nodes, device=density.device)
    log_weight = torch.full((nodes,), (high - low) / (nodes - 1), dtype=torch.float64, device=density.device)
    log_weight[[0, -1]] /= 2
    log_weight.log_()
    total, network = 0.0, density.network
    for e, r0 in zip(embedding.split(64), reward.split(64), strict=True):
        embedded = network.embed(density.standardizer.embed(e.to(density.device)))
        r = density.standardizer.to_internal(r0.to(density.device)).clamp(low, high)
        f = network.join(embedded.unsqueeze(1), network.reward_part(r.unsqueeze(1))).squeeze(1).double()
        log_z = torch.logsumexp(network.on_nodes(embedded, grid).double() + log_weight, 1)
        total += float((log_z - f).sum())
    return total / len(reward)


@dataclass(frozen=True)
class Race:
    """One seed: seconds, and held-out -log p (before, after plain's epoch, of ours when it got there).

    Attributes:
        plain_seconds: plain's epoch.
        ours_seconds: ours until it was as good.
        pass_seconds: ours for one whole epoch.
        epochs: how many passes ours took.
        before, plain_loss, ours_loss: held-out -log p.
    """

    plain_seconds: float
    ours_seconds: float
    pass_seconds: float
    epochs: float
    before: float
    plain_loss: float
    ours_loss: float


def race(
    d: int,
    training: tuple[Tensor, Tensor],
    held_out: tuple[Tensor, Tensor],
    seed: int,
    *,
    device: str = "cpu",
    network: NetworkConfig = NetworkConfig(size="small"),  # noqa: B008 - frozen
    plain_settings: EnergyConfig = PLAIN,
    our_settings: EnergyConfig = OURS,
) -> Race:
    """One plain epoch, then ours from the same weights until its held-out likelihood is as good.

    Raises:
        RuntimeError: ours did not get there in five epochs.
    """
    embedding, reward = training
    density = EnergyHead(d, replace(our_settings, network=network), torch.Generator().manual_seed(seed))
    density.fit_units(reward, embedding.split(8192))
    density.to(device)
    before = held_out_loss(density, *held_out)
    few = embedding[: our_settings.training.batch_rows], reward[: our_settings.training.batch_rows]
    _plain_epoch(density, (few[0][:8], few[1][:8]), held_out, seed, plain_settings)  # a warm-up of each
    other = copy.deepcopy(density)
    train_step(other, *few, _optimizer(other.network, our_settings), torch.Generator().manual_seed(seed))
    plain_seconds, target = _plain_epoch(density, training, held_out, seed, plain_settings)

    generator = torch.Generator().manual_seed(seed)
    optimizer = _optimizer(density.network, our_settings)

    def steps(batches: tuple[Tensor, ...]) -> None:
        for batch in batches:
            e, r = read_batch(embedding, reward, batch.unsqueeze(1))
            train_step(density, e, r, optimizer, generator)

    taken, pass_seconds, reached = 0.0, 0.0, None
    loss = before
    for epoch in range(_EPOCHS):
        batches = torch.randperm(len(reward), generator=generator).split(our_settings.training.batch_rows)
        every = max(1, len(batches) // _CHECKS)
        for first in range(0, len(batches), every):
            taken += seconds(partial(steps, batches[first : first + every]))
            if reached is None:
                loss = held_out_loss(density, *held_out)
                if loss <= target:
                    reached = taken, epoch + min(1.0, (first + every) / len(batches))
        pass_seconds = pass_seconds or taken
        if reached is not None:
            return Race(plain_seconds, reached[0], pass_seconds, reached[1], before, target, loss)
    raise RuntimeError(
        f"After {_EPOCHS} epochs on {len(reward)} rows of {d} numbers the held-out -log p was {loss:.4f}; one epoch of "
        f"plain NCE+ reached {target:.4f}."
    )


def _plain_epoch(
    density: EnergyHead,
    training: tuple[Tensor, Tensor],
    held_out: tuple[Tensor, Tensor],
    seed: int,
    settings: EnergyConfig,
) -> tuple[float, float]:
    """(seconds, held-out -log p afterwards) of one plain epoch from the weights of `density`, which it keeps."""
    torch.manual_seed(seed)  # dropout
    network = plain_network(density.network)
    optimizer, generator = _optimizer(network, settings), torch.Generator().manual_seed(seed)
    taken = seconds(lambda: plain_epoch(network, optimizer, density, *training, settings, generator))
    fitted = copy.deepcopy(density)
    copy_back(network, fitted.network)
    return taken, held_out_loss(fitted, *held_out)


def _optimizer(network: nn.Module, config: EnergyConfig) -> torch.optim.Optimizer:
    training = config.training
    return torch.optim.AdamW(network.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay)


def figures(quick: bool, device: str = "cpu") -> Iterator[Figure]:
    """Both figures at both sizes; at 512 also beside a plain epoch with ebrm's own learning rate."""
    for d, n in (QUICK_ROWS if quick else ROWS).items():
        held = 128 if quick else 1024
        embedding, reward = made_rows(n + held, d)
        training, held_out = (embedding[:n], reward[:n]), (embedding[n:], reward[n:])
        races = []
        for seed in SEEDS[:1] if quick else SEEDS:
            races.append(race(d, training, held_out, seed, device=device))
            _say(d, n, f"seed {seed}", races[-1])
        plain = [each.plain_seconds for each in races]
        to_likelihood = Ratio.of(plain, [each.ours_seconds for each in races])
        a_pass = Ratio.of(plain, [each.pass_seconds for each in races])
        size = {"d": d, "network": "small", "rows": n, "device": device}
        yield Figure.from_ratio(TO_LIKELIHOOD, to_likelihood, **size, required=REQUIRED[d])
        yield Figure.from_ratio(PASS, a_pass, **size)
        if d == 512:
            rate = OURS.training.learning_rate
            quicker = replace(PLAIN, training=replace(PLAIN.training, learning_rate=rate))
            same_rate = race(d, training, held_out, SEEDS[0], device=device, plain_settings=quicker)
            _say(d, n, f"seed {SEEDS[0]}, plain at {rate:g}", same_rate)
            yield Figure.from_ratio(SAME_RATE, Ratio.of([same_rate.plain_seconds], [same_rate.ours_seconds]), **size)


def _say(d: int, n: int, what: str, of: Race) -> None:
    print(
        f"d = {d:,}, {n:,} rows, {what}: held-out -log p {of.before:.4f} at first, {of.plain_loss:.4f} after a plain "
        f"epoch ({of.plain_seconds:.1f} s), {of.ours_loss:.4f} after {of.epochs:g} of ours ({of.ours_seconds:.2f} s)"
    )
