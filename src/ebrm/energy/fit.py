"""Fitting p(r | e): shuffled batches, AdamW, and the epoch that the deployed inference likes best."""

from __future__ import annotations

import copy
import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ebrm.energy.checkpoint import load_checkpoint, save_checkpoint
from ebrm.energy.density import RewardDensity
from ebrm.energy.noise import MixtureNoise
from ebrm.energy.objective import likelihood_step_losses, nce_step_losses
from ebrm.energy.settings import FitSettings, InferenceSettings, NetworkSettings
from ebrm.errors import ModelError
from ebrm.progress import progress

logger = logging.getLogger(__name__)

#: Floats of one joint layer held at a time in training (rows · rewards · width): 128 MiB. A batch over it is split.
_ACTIVATIONS = 2**25
#: Rows read at a time where all are needed (units, validation).
_READ_ROWS = 8192


class EmbeddingRows(Protocol):
    """Embeddings [n, d] in memory or on disk: indexed by a LongTensor or a slice, float32 out."""

    @property
    def shape(self) -> tuple[int, int]:
        """(n, d)."""
        ...

    def __getitem__(self, index: Any) -> Tensor: ...


@dataclass(frozen=True)
class PairRows:
    """Preference pairs as rows of the embeddings: `chosen` [p] and `rejected` [p], int64."""

    chosen: Tensor
    rejected: Tensor

    def __len__(self) -> int:
        return len(self.chosen)


@dataclass(frozen=True)
class Epoch:
    """One epoch's numbers: mean training loss, held-out accuracy of the deployed inference, held-out -log p(r0 | e)."""

    epoch: int
    loss: float
    validation_accuracy: float
    validation_nll: float
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
    embeddings: EmbeddingRows,
    reward: Tensor,  # [n]
    train: PairRows,
    validation: PairRows,
    *,
    network: NetworkSettings = NetworkSettings(),  # noqa: B008 - frozen
    training: FitSettings = FitSettings(),  # noqa: B008 - frozen
    inference: InferenceSettings = InferenceSettings(),  # noqa: B008 - frozen
    device: torch.device | str = "cpu",
    checkpoint: Path | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Fit:
    """Fit p(r | e) on both members of every training pair (arXiv 2504.13134, section 3.2).

    A response that stands in several pairs is one training row. The epoch with the best accuracy on the validation
    pairs under `inference` is kept (ties: the lower held-out -log p); with no validation pairs, the last.

    Args:
        embeddings: [n, d], in memory or memory-mapped.
        reward: base rewards [n].
        train, validation: pairs, prompt-disjoint; `train` already filtered.
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
    batches = (embeddings[part] for part in rows.split(_READ_ROWS))
    density.fit_units(reward[rows], batches, training, network.standardize_embedding)
    density.to(device)
    optimizer = torch.optim.AdamW(
        density.network.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay
    )
    run = _run_identity(embeddings, reward, train, validation, network, training, inference)
    epochs = training.planned_epochs(len(rows))
    history: list[Epoch] = []
    best = copy.deepcopy(density.state_dict())
    if checkpoint is not None and checkpoint.exists():
        history, best = load_checkpoint(checkpoint, run, density, optimizer, generator)
        logger.info("Going on after epoch %d from %s.", len(history), checkpoint)
    with progress("fit", total=epochs * len(rows), unit="rows") as bar:
        bar.advance(len(history) * len(rows))
        while len(history) < epochs and not _out_of_patience(history, training.patience):
            started = time.monotonic()
            loss = 0.0
            for batch in _shuffled(rows, training.batch_rows, generator):
                value = _step(density, embeddings[batch], reward[batch], training, optimizer, generator)
                loss += value * len(batch) / len(rows)
                bar.advance(len(batch), loss=value, **_last(history))
            accuracy, nll = _validate(density, embeddings, reward, validation, inference)
            epoch = Epoch(len(history) + 1, loss, accuracy, nll, time.monotonic() - started)
            history.append(epoch)
            logger.info(
                "Epoch %d: loss %.4f, held-out accuracy %.4f, held-out -log p %.4f, %.1f s.",
                epoch.epoch, loss, accuracy, nll, epoch.seconds,
            )  # fmt: skip
            if _best_epoch(history) == epoch.epoch:
                best = copy.deepcopy(density.state_dict())
            if checkpoint is not None:
                save_checkpoint(checkpoint, run, history, best, density, optimizer, generator)
            if on_epoch is not None:
                on_epoch(epoch)
    density.load_state_dict(best)
    density.zero_grad(set_to_none=True)  # the last step's gradients are as large as the weights
    return Fit(density.eval(), tuple(history), _best_epoch(history))


def _shuffled(rows: Tensor, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """The rows in a new random order, in batches; sorted inside a batch, as a memory-mapped reader likes it."""
    for batch in rows[torch.randperm(len(rows), generator=generator)].split(size):
        yield batch.sort().values


def _step(
    density: RewardDensity,
    embedding: Tensor,
    reward: Tensor,
    training: FitSettings,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> float:
    """One optimiser step on a batch, split into parts that fit in memory; the parts' gradients add up exactly."""
    e = density.standardizer.embed(embedding.to(density.device))
    r = density.standardizer.to_internal(reward.to(density.device))
    noise = MixtureNoise(tuple(s * training.reward_scale for s in training.noise_scales))
    samples = training.negatives if training.objective == "nce" else training.nodes
    common: dict[str, Any] = {
        "beta": training.beta,
        "regularization": training.regularization,
        "generator": generator,
        "rows_at_once": max(1, _ACTIVATIONS // (density.network.width * samples)),
    }
    if training.objective == "nce":
        losses = nce_step_losses(density.network, e, r, noise, negatives=samples, **common)
    else:
        bounds = density.support_bounds()
        losses = likelihood_step_losses(density.network, e, r, noise, support=bounds, nodes=samples, **common)
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


def _validate(
    density: RewardDensity,
    embeddings: EmbeddingRows,
    reward: Tensor,
    pairs: PairRows,
    inference: InferenceSettings,
) -> tuple[float, float]:
    """(accuracy of the deployed inference, mean -log p(r0 | e) in base units) on held-out pairs; NaN without any."""
    if len(pairs) == 0:
        return float("nan"), float("nan")
    rows, where = torch.unique(torch.cat([pairs.chosen, pairs.rejected]), return_inverse=True)
    refined, nll = torch.empty(len(rows)), 0.0
    draws = torch.Generator().manual_seed(inference.seed)
    for first in range(0, len(rows), _READ_ROWS):
        part = rows[first : first + _READ_ROWS]
        e, r = embeddings[part], reward[part]
        refined[first : first + len(part)] = density.refine(e, r, inference, draws).reward
        nll += float(-log_density(density, e, r, inference.nodes).double().sum())
    margin = refined[where[: len(pairs)]] - refined[where[len(pairs) :]]
    return float((margin > 0).double().mean()), nll / len(rows)


def log_density(density: RewardDensity, embedding: Tensor, reward: Tensor, nodes: int) -> Tensor:
    """Log p(r | e) of given rewards [n], base units; rewards outside the support count as on its edge."""
    at = density.internal_posterior(embedding, nodes)
    internal = density.standardizer.to_internal(reward.to(density.device)).clamp(*density.support_bounds())
    unit = torch.tensor(density.standardizer.unit, dtype=torch.float64).log()
    return (at.log_density_at(internal) - unit.to(at.nodes.device)).float().cpu()


def _last(history: list[Epoch]) -> dict[str, float]:
    return {"accuracy": history[-1].validation_accuracy} if history else {}


def _best_epoch(history: list[Epoch]) -> int:
    """Highest held-out accuracy, then lowest held-out -log p; the last epoch where nothing was held out."""
    if not history or history[0].validation_accuracy != history[0].validation_accuracy:
        return len(history)
    return max(history, key=lambda e: (e.validation_accuracy, -e.validation_nll)).epoch


def _out_of_patience(history: list[Epoch], patience: int) -> bool:
    return patience > 0 and len(history) - _best_epoch(history) >= patience


def _run_identity(
    embeddings: EmbeddingRows,
    reward: Tensor,
    train: PairRows,
    validation: PairRows,
    network: NetworkSettings,
    training: FitSettings,
    inference: InferenceSettings,
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
