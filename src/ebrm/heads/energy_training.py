"""Fitting p(r | e): shuffled batches, AdamW, and the epoch that does best on held-out pairs."""

from __future__ import annotations

import copy
import hashlib
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ebrm.errors import ModelError
from ebrm.heads.checkpoint import load_checkpoint, save_checkpoint
from ebrm.heads.energy import RewardDensity
from ebrm.heads.fusion import UNMEASURED, choose_fusion
from ebrm.heads.held_out import held_out_densities, validate
from ebrm.heads.noise import MixtureNoise
from ebrm.heads.objective import joint_step_losses, likelihood_step_losses, nce_step_losses
from ebrm.heads.old_config import FitConfig, InferenceConfig, NetworkConfig
from ebrm.heads.rows import EmbeddingSource, rows_at_once
from ebrm.utils.progress_bar import progress

logger = logging.getLogger(__name__)

#: Floats of one joint layer held at a time in training (rows · rewards · width): 128 MiB. A batch over it is split.
_ACTIVATIONS = 2**25


@dataclass(frozen=True)
class PairRows:
    """Preference pairs as rows of the embeddings: `chosen` [p] and `rejected` [p], int64."""

    chosen: Tensor
    rejected: Tensor

    def __len__(self) -> int:
        return len(self.chosen)


@dataclass(frozen=True)
class Epoch:
    """One epoch's numbers.

    Attributes:
        epoch: 1 for the first.
        loss: mean training loss.
        validation_accuracy: held-out accuracy of the density alone, read off as in deployment: how far the base reward
            is trusted is chosen after the last epoch.
        validation_nll: held-out mean of -log p(r0 | e), base units.
        validation_label_loss: held-out mean of -log P(label | densities), wrong labels allowed for (`label_noise`).
        seconds: wall time.
    """

    epoch: int
    loss: float
    validation_accuracy: float
    validation_nll: float
    validation_label_loss: float
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; None where nothing was held out."""
        return {name: None if value != value else value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Fit:
    """A fitted density, every epoch's numbers, and which epoch was kept."""

    density: RewardDensity
    history: tuple[Epoch, ...]
    best_epoch: int


def fit_density(
    embeddings: EmbeddingSource,
    reward: Tensor,  # [n]
    train: PairRows,
    validation: PairRows,
    *,
    network: NetworkConfig = NetworkConfig(),  # noqa: B008 - frozen
    training: FitConfig = FitConfig(),  # noqa: B008 - frozen
    inference: InferenceConfig = InferenceConfig(),  # noqa: B008 - frozen
    device: torch.device | str = "cpu",
    checkpoint: Path | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Fit:
    """Fit p(r | e) on both members of every training pair (arXiv 2504.13134, section 3.2).

    Objective joint: passes over pairs; the epoch with the lowest held-out label loss is kept. Likelihood and nce:
    passes over responses, each one row however many pairs it stands in; the epoch with the best accuracy on the
    validation pairs under `inference` is kept (ties: the lower held-out -log p). With no validation pairs, the last.

    Args:
        embeddings: [n, d], in memory or memory-mapped.
        reward: base rewards [n].
        train, validation: pairs, prompt-disjoint; `train` already filtered, if it is to be.
        network, training, inference: settings.
        device: where to compute.
        checkpoint: a file to keep the state in after every epoch; if it exists and belongs to this very run
            (settings, rows, rewards), fitting goes on from it and ends with the same weights.
        on_epoch: called after every epoch, e.g. by an experiment tracker.

    Raises:
        ModelError: no training pairs, rewards without spread, a checkpoint of another run, or a loss not finite.
    """
    if len(train) == 0:
        raise ModelError(
            "No training pairs are left to fit the energy on (0 given). Give more pairs, or turn the conflict filter "
            "off if the base RM disagrees with every label."
        )
    rows = torch.unique(torch.cat([train.chosen, train.rejected]))
    generator = torch.Generator().manual_seed(training.seed)
    density = RewardDensity(embeddings.shape[1], network, generator)
    batches = (embeddings[part] for part in rows.split(rows_at_once(embeddings)))
    density.fit_units(reward[rows], batches, training, network.standardize_embedding)
    density.to(device)
    optimizer = torch.optim.AdamW(
        density.network.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay
    )
    run = _run_identity(embeddings, reward, train, validation, network, training, inference)
    # One pass: over pairs [p, 2], or over the responses in them [n, 1].
    passed = torch.stack([train.chosen, train.rejected], 1) if training.objective == "joint" else rows.unsqueeze(1)
    at_once = max(1, training.batch_rows // passed.shape[1])
    epochs = training.planned_epochs(math.ceil(len(passed) / at_once))
    history: list[Epoch] = []
    best = copy.deepcopy(density.state_dict())
    if checkpoint is not None and checkpoint.exists():
        history, best = load_checkpoint(checkpoint, run, density, optimizer, generator)
        logger.info("Going on after epoch %d from %s.", len(history), checkpoint)
    with progress("fit", total=epochs * passed.numel(), unit="rows") as bar:
        bar.advance(len(history) * passed.numel())
        while len(history) < epochs and not _out_of_patience(history, training):
            started = time.monotonic()
            loss = 0.0
            for places in torch.randperm(len(passed), generator=generator).split(at_once):
                batch = passed[places]
                value = train_step(density, *read_batch(embeddings, reward, batch), training, optimizer, generator)
                loss += value * len(batch) / len(passed)
                bar.advance(batch.numel(), loss=value, **_last(history))
            held_out = validate(density, embeddings, reward, validation, inference, training.label_noise)
            epoch = Epoch(len(history) + 1, loss, *held_out, time.monotonic() - started)
            history.append(epoch)
            logger.info(
                "Epoch %d: loss %.4f; held out: accuracy %.4f, -log p %.4f, label loss %.4f; %.1f s.",
                epoch.epoch, loss, *held_out, epoch.seconds,
            )  # fmt: skip
            if _best_epoch(history, training) == epoch.epoch:
                best = copy.deepcopy(density.state_dict())
            if checkpoint is not None:
                save_checkpoint(checkpoint, run, history, best, density, optimizer, generator)
            if on_epoch is not None:
                on_epoch(epoch)
    density.load_state_dict(best)
    if training.objective == "joint" and not len(validation):
        density.trust = UNMEASURED
    elif training.objective == "joint":
        parts = held_out_densities(density, embeddings, reward, validation, inference.nodes)
        density.trust = choose_fusion(parts, flips=training.label_noise, scale=training.reward_scale)
        logger.info("Held-out labels are likeliest with %s.", density.trust)
    density.zero_grad(set_to_none=True)  # the last step's gradients are as large as the weights
    return Fit(density.eval(), tuple(history), _best_epoch(history, training))


def read_batch(embeddings: EmbeddingSource, reward: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings and rewards of a batch [k, 1] or [k, 2], column after column."""
    rows = batch.T.reshape(-1)
    return embeddings[rows], reward[rows]


def train_step(
    density: RewardDensity,
    embedding: Tensor,
    reward: Tensor,
    training: FitConfig,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> float:
    """One optimizer step on a batch, split into parts that fit in memory; the parts' gradients add up exactly."""
    e = density.standardizer.embed(embedding.to(density.device))
    r = density.standardizer.to_internal(reward.to(density.device))
    samples = training.negatives if training.objective == "nce" else training.nodes
    common: dict[str, Any] = {
        "regularization": training.regularization,
        "generator": generator,
        "rows_at_once": max(1, _ACTIVATIONS // (density.network.width * samples)),
    }
    grid: dict[str, Any] = {"support": density.support_bounds(), "nodes": samples}
    noise = MixtureNoise(tuple(s * training.reward_scale for s in training.noise_scales))
    if training.objective == "joint":
        losses = joint_step_losses(
            density.network, e, r, flips=training.label_noise, reward_weight=training.reward_weight,
            reward_noise=training.reward_noise * training.reward_scale, **grid, **common,
        )  # fmt: skip
    elif training.objective == "nce":
        losses = nce_step_losses(density.network, e, r, noise, beta=training.beta, negatives=samples, **common)
    else:
        losses = likelihood_step_losses(density.network, e, r, noise, beta=training.beta, **grid, **common)
    optimizer.zero_grad(set_to_none=True)
    total = 0.0
    for loss in losses:
        loss.backward()
        total += float(loss.detach())
    norm = torch.nn.utils.clip_grad_norm_(density.network.parameters(), training.clip_norm)
    if not bool(torch.isfinite(norm)):
        raise ModelError(
            f"The gradient of the {training.objective} objective is not finite (loss {total}). Lower --learning-rate, "
            "or check the features for extreme values."
        )
    optimizer.step()
    return total


def _last(history: list[Epoch]) -> dict[str, float]:
    return {"accuracy": history[-1].validation_accuracy} if history else {}


def _best_epoch(history: list[Epoch], training: FitConfig) -> int:
    """Lowest label loss (joint) or highest accuracy, then lowest -log p; the last epoch where nothing was held out."""
    if not history or history[0].validation_accuracy != history[0].validation_accuracy:
        return len(history)
    if training.objective == "joint":
        return min(history, key=lambda e: e.validation_label_loss).epoch
    return max(history, key=lambda e: (e.validation_accuracy, -e.validation_nll)).epoch


def _out_of_patience(history: list[Epoch], training: FitConfig) -> bool:
    return training.patience > 0 and len(history) - _best_epoch(history, training) >= training.patience


def _run_identity(
    embeddings: EmbeddingSource,
    reward: Tensor,
    train: PairRows,
    validation: PairRows,
    network: NetworkConfig,
    training: FitConfig,
    inference: InferenceConfig,
) -> dict[str, Any]:
    """What makes a checkpoint this run's: every setting, and digests of rewards, pairs and some embeddings."""
    stages = {"network": asdict(network), "training": asdict(training), "inference": asdict(inference)}
    del stages["training"]["epochs"]  # more epochs continue the same run
    some = torch.arange(min(64, embeddings.shape[0]))
    return {
        **{f"{stage}.{name}": value for stage, settings in stages.items() for name, value in settings.items()},
        "embedding_shape": list(embeddings.shape),
        "embeddings": _digest(embeddings[some]),
        "rewards": _digest(reward),
        "training_pairs": _digest(train.chosen, train.rejected),
        "validation_pairs": _digest(validation.chosen, validation.rejected),
    }


def _digest(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
