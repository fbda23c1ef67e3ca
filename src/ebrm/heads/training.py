"""Fitting the energy: shuffled batches, AdamW, checkpoints, and the epoch that does best on held-out pairs."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ebrm.errors import DataError, ModelError
from ebrm.heads.base import RewardHead
from ebrm.heads.config import EnergyConfig, JointConfig, LikelihoodConfig, NCEConfig
from ebrm.heads.data import EmbeddingSource, agreement, changed_columns, rows_at_once
from ebrm.heads.energy import EnergyHead
from ebrm.heads.fusion import UNMEASURED, HeldOut, choose_fusion, label_losses
from ebrm.heads.grid import Posterior
from ebrm.heads.objective import MixtureNoise, joint_step_losses, likelihood_step_losses, nce_step_losses
from ebrm.pairs import PreferencePairs
from ebrm.utils.neutral import shorten_line
from ebrm.utils.progress_bar import progress
from ebrm.utils.stored import checked, parse_json
from ebrm.utils.tensors import load_tensors, save_tensors

logger = logging.getLogger(__name__)

#: Floats of one joint layer held at a time in training (rows · rewards · width): 128 MiB. A batch over it is split.
_ACTIVATIONS = 2**25
#: Nodes of the likelihood objective, at most: a target of next to no noise would ask for any number.
_MOST_NODES = 256


@dataclass(frozen=True)
class Epoch:
    """One epoch's numbers; the held-out ones are NaN where nothing is held out.

    Attributes:
        epoch: 1 for the first.
        loss: mean training loss.
        validation_accuracy: held-out accuracy of the density alone, read off as in deployment.
        validation_nll: held-out mean of -log p(r0 | e), base units.
        validation_label_loss: held-out mean of -log P(label | densities), with the objective's `label_noise`.
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

    def measured(self) -> dict[str, Any]:
        """As :meth:`to_dict` without the seconds, which differ from run to run."""
        values = self.to_dict()
        del values["seconds"]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Epoch:
        """The epoch whose :meth:`to_dict` these values are."""
        given: dict[str, Any] = {name: math.nan if value is None else value for name, value in values.items()}
        return cls(**given)


@dataclass(frozen=True)
class FittedHead:
    """A fitted head in evaluation mode; for the energy also every epoch's numbers, and which was kept (from 1)."""

    head: RewardHead
    history: tuple[Epoch, ...] = ()
    best_epoch: int = 0


def fit_energy(
    config: EnergyConfig,
    embeddings: EmbeddingSource,
    reward: Tensor,  # [n]
    train: PreferencePairs,
    validation: PreferencePairs,
    *,
    device: torch.device | str = "cpu",
    checkpoint: Path | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    seed: int = 0,
) -> FittedHead:
    """Fit p(r | e) on both members of every training pair (arXiv 2504.13134, section 3.2).

    Joint: passes over pairs; the epoch with the lowest held-out label loss is kept. Likelihood and nce: passes over
    responses, each one row however many pairs it stands in; the epoch with the best held-out accuracy (ties: the lower
    -log p) is kept. With no validation pairs, the last. Held-out pairs count by weight and label.

    Args:
        config, embeddings, reward, train, validation, device, seed: as for :func:`ebrm.heads.fit_head`.
        checkpoint: a file for the state after every epoch; if it is of this very run (settings, rows, rewards), fitting
            goes on from it and ends with the same weights.
        on_epoch: called after every epoch, e.g. by an experiment tracker.

    Raises:
        ModelError: no training pairs, rewards without spread, a checkpoint of another run, or a loss not finite.
        DataError: labels or weights under an objective that is not fitted on labels.
    """
    if len(train) == 0:
        raise ModelError(
            "No training pairs are left to fit the energy on (0 given). Give more pairs, or turn the conflict filter "
            "off if the base RM disagrees with every label."
        )
    joint, changed = isinstance(config.objective, JointConfig), changed_columns(train)
    if changed and not joint:
        raise DataError(
            f"The objective {config.objective.kind} is fitted on base rewards alone, so the pairs' {changed[0]} would "
            'have no effect. Fit with `JointConfig()`, or leave the column out (`strength="off"`).'
        )
    train, validation = train.to("cpu"), validation.to("cpu")
    rows = torch.unique(torch.cat([train.chosen, train.rejected]))
    generator = torch.Generator().manual_seed(seed)
    head = EnergyHead(embeddings.shape[1], config, generator)
    head.fit_units(reward[rows], (embeddings[part] for part in rows.split(rows_at_once(embeddings))))
    head.to(device)
    training = config.training
    optimizer = torch.optim.AdamW(
        head.network.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay
    )
    run = _run_identity(embeddings, reward, train, validation, config, seed)
    # One pass: over pairs [p, 2], or over the responses in them [n, 1].
    passed = torch.stack([train.chosen, train.rejected], 1) if joint else rows.unsqueeze(1)
    label = train.label.float() if "label" in changed else None
    weight = (train.weight / train.weight.mean()).float() if "weight" in changed else None
    at_once = max(1, training.batch_rows // passed.shape[1])
    epochs = config.planned_epochs(math.ceil(len(passed) / at_once))
    patience = training.patience or epochs
    history: list[Epoch] = []
    best = copy.deepcopy(head.state_dict())
    if checkpoint is not None and checkpoint.exists():
        history, best = load_checkpoint(checkpoint, run, head, optimizer, generator)
        logger.info("Going on after epoch %d from %s.", len(history), checkpoint)
    with progress("fit", total=epochs * passed.numel(), unit="rows") as bar:
        bar.advance(len(history) * passed.numel())
        while len(history) < epochs and len(history) - _best_epoch(history, config) < patience:
            started, loss = time.monotonic(), 0.0
            known = bool(history) and not math.isnan(history[-1].validation_accuracy)
            shown = {"accuracy": history[-1].validation_accuracy} if known else {}
            for places in torch.randperm(len(passed), generator=generator).split(at_once):
                batch = passed[places]
                columns = (None if column is None else column[places] for column in (label, weight))
                value = train_step(head, *read_batch(embeddings, reward, batch), optimizer, generator, *columns)
                loss += value * len(batch) / len(passed)
                bar.advance(batch.numel(), loss=value, **shown)
            held_out = validate(head, embeddings, reward, validation)
            epoch = Epoch(len(history) + 1, loss, *held_out, time.monotonic() - started)
            history.append(epoch)
            bar.say(
                f"Epoch {epoch.epoch}: loss {loss:.4f}, held out accuracy {held_out[0]:.3f}, "
                f"-log p {held_out[1]:.3f}, label loss {held_out[2]:.3f}"
            )
            if _best_epoch(history, config) == epoch.epoch:
                best = copy.deepcopy(head.state_dict())
            if checkpoint is not None:
                save_checkpoint(checkpoint, run, history, best, head, optimizer, generator)
            if on_epoch is not None:
                on_epoch(epoch)
    for found in history[_best_epoch(history, config) - 1 :][:1]:
        logger.info(
            "%d epochs; the best was %d: held out accuracy %.3f, label loss %.3f.",
            len(history), found.epoch, found.validation_accuracy, found.validation_label_loss,
        )  # fmt: skip
    head.load_state_dict(best)
    if joint and not len(validation):
        head.fusion = UNMEASURED
    elif joint:
        parts = held_out_densities(head, embeddings, reward, validation)
        head.fusion = choose_fusion(parts, flips=_label_noise(config), scale=training.reward_scale)
        logger.info(
            "Fusion weights by held-out labels: density to the power %g, base noise %g standard deviations.",
            head.fusion.power, head.fusion.base_noise,
        )  # fmt: skip
    head.zero_grad(set_to_none=True)  # the last step's gradients are as large as the weights
    return FittedHead(head.eval(), tuple(history), _best_epoch(history, config))


def read_batch(embeddings: EmbeddingSource, reward: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings and rewards of a batch [k, 1] or [k, 2], column after column."""
    rows = batch.T.reshape(-1)
    return embeddings[rows], reward[rows]


def train_step(
    head: EnergyHead,
    embedding: Tensor,  # [n, d]
    reward: Tensor,  # [n]
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    label: Tensor | None = None,  # [n / 2]
    weight: Tensor | None = None,  # [n / 2]
) -> float:
    """One optimizer step on a batch, in parts that fit in memory; joint: n / 2 pairs, the chosen ones first."""
    e = head.standardizer.embed(embedding.to(head.device))
    r = head.standardizer.to_internal(reward.to(head.device))
    objective, training = head.config.objective, head.config.training
    samples = objective.negatives if isinstance(objective, NCEConfig) else objective.nodes
    if isinstance(objective, LikelihoodConfig) and objective.beta > 0:
        # A cell wider than the positive's noise would make the estimated log Z too low on average: the likelihood
        # could be raised by peaks between nodes.
        low, high = head.support_bounds()
        noise_width = objective.beta * min(objective.noise_scales) * training.reward_scale
        samples = max(samples, min(_MOST_NODES, math.ceil((high - low) / noise_width)))
    common: dict[str, Any] = {
        "regularization": training.regularization,
        "generator": generator,
        "rows_at_once": max(1, _ACTIVATIONS // (head.network.width * samples)),
    }
    grid: dict[str, Any] = {"support": head.support_bounds(), "nodes": samples}
    if isinstance(objective, JointConfig):
        label, weight = (None if column is None else column.to(head.device) for column in (label, weight))
        losses = joint_step_losses(
            head.network, e, r, flips=objective.label_noise, reward_weight=objective.reward_weight,
            reward_noise=objective.reward_noise * training.reward_scale, label=label, weight=weight, **grid, **common,
        )  # fmt: skip
    else:
        noise = MixtureNoise(tuple(scale * training.reward_scale for scale in objective.noise_scales))
        if isinstance(objective, LikelihoodConfig):
            losses = likelihood_step_losses(head.network, e, r, noise, beta=objective.beta, **grid, **common)
        else:
            losses = nce_step_losses(head.network, e, r, noise, beta=objective.beta, negatives=samples, **common)
    optimizer.zero_grad(set_to_none=True)
    total = 0.0
    for loss in losses:
        loss.backward()
        total += float(loss.detach())
    largest = math.inf if training.clip_norm is None else training.clip_norm
    norm = torch.nn.utils.clip_grad_norm_(head.network.parameters(), largest)
    if not bool(torch.isfinite(norm)):
        raise ModelError(
            f"The gradient of the {objective.kind} objective is not finite (loss {total}). Lower `learning_rate`, or "
            "check the features for extreme values."
        )
    optimizer.step()
    return total


def _label_noise(config: EnergyConfig) -> float:
    """Share of wrong labels that held-out label losses assume; the default's where the objective has none."""
    return config.objective.label_noise if isinstance(config.objective, JointConfig) else JointConfig().label_noise


def _best_epoch(history: list[Epoch], config: EnergyConfig) -> int:
    """Lowest label loss (joint) or highest accuracy, then lowest -log p; the last epoch where nothing was held out."""
    if not history or math.isnan(history[0].validation_label_loss):
        return len(history)
    if isinstance(config.objective, JointConfig):
        return min(history, key=lambda e: e.validation_label_loss).epoch
    return max(history, key=lambda e: (e.validation_accuracy, -e.validation_nll)).epoch


# -- held-out pairs --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Part:
    """Some pairs as places among the rows in them [n], each once, and what is read of the rows."""

    rows: Tensor
    pairs: PreferencePairs
    embedding: Tensor  # [n, d]
    reward: Tensor  # [n]
    posterior: Posterior


def _parts(head: EnergyHead, embeddings: EmbeddingSource, reward: Tensor, pairs: PreferencePairs) -> Iterator[_Part]:
    """Pairs in their order, a few at a time; pairs of one response mostly stand together."""
    few = rows_at_once(embeddings) // 2
    for first in range(0, len(pairs), few):
        some = pairs.select(slice(first, first + few))
        rows, place = torch.unique(torch.cat([some.chosen, some.rejected]), return_inverse=True)
        some = replace(some, chosen=place[: len(some)], rejected=place[len(some) :])
        embedding, base = embeddings[rows], reward[rows]
        yield _Part(rows, some, embedding, base, head.posterior(embedding, base))


def held_out_densities(
    head: EnergyHead, embeddings: EmbeddingSource, reward: Tensor, pairs: PreferencePairs
) -> Iterator[HeldOut]:
    """The densities of held-out pairs on the nodes of inference, a part at a time, float32 on the CPU."""
    for part in _parts(head, embeddings, reward, pairs):
        yield HeldOut(
            log_mass=part.posterior.log_cells().float().cpu(),
            nodes=part.posterior.nodes.float().cpu(),
            reward=head.standardizer.to_internal(part.reward.to(head.device)).cpu(),
            pairs=part.pairs,
        )


def validate(
    head: EnergyHead, embeddings: EmbeddingSource, reward: Tensor, pairs: PreferencePairs
) -> tuple[float, float, float]:
    """(accuracy, -log p(r0 | e) in base units, label loss) of held-out pairs by weight and label, or NaN."""
    if len(pairs) == 0:
        return math.nan, math.nan, math.nan
    right, decided, nll, loss, responses = 0.0, 0.0, 0.0, 0.0, 0
    counted = torch.zeros(len(reward), dtype=torch.bool)
    draws = head.draws()
    flips = _label_noise(head.config)
    for part in _parts(head, embeddings, reward, pairs):
        agreeing, all_decided = agreement(part.pairs, _refined(head, part, draws))
        right, decided = right + agreeing, decided + all_decided
        fresh = ~counted[part.rows]
        counted[part.rows] = True
        responses += int(fresh.sum())
        nll -= float(log_density_of(head, part.posterior, part.reward)[fresh].double().sum())
        mass = part.posterior.log_cells().float().cpu()
        loss += float((part.pairs.weight * label_losses(mass, part.pairs, flips).double()).sum())
    return right / decided if decided else math.nan, nll / responses, loss / float(pairs.weight.sum())


def _refined(head: EnergyHead, part: _Part, draws: torch.Generator) -> Tensor:
    """Refined rewards of a part's rows [n], base units."""
    estimate = head.config.inference.estimate
    if estimate == "ascent":
        return head.refine(part.embedding, part.reward, draws).reward
    internal = part.posterior.mean() if estimate == "mean" else part.posterior.mode()
    return head.standardizer.to_base(internal).cpu()


def log_density_of(head: EnergyHead, at: Posterior, reward: Tensor) -> Tensor:
    """Log p(r | e, r0) at the base rewards r0 [n], base units; rewards outside the support count as on its edge."""
    internal = head.standardizer.to_internal(reward.to(head.device)).clamp(*head.support_bounds())
    unit = torch.tensor(head.standardizer.unit, dtype=torch.float64).log()
    return (at.log_density_at(internal) - unit.to(at.nodes.device)).float().cpu()


# -- checkpoints -----------------------------------------------------------------------------------------------------


def _run_identity(
    embeddings: EmbeddingSource,
    reward: Tensor,
    train: PreferencePairs,
    validation: PreferencePairs,
    config: EnergyConfig,
    seed: int,
) -> dict[str, Any]:
    """What makes a checkpoint this run's: every setting, and digests of rewards, pairs and some embeddings."""
    stages = {name: values for name, values in config.to_dict().items() if isinstance(values, dict)}
    del stages["training"]["epochs"]  # more epochs continue the same run
    some = torch.arange(min(64, embeddings.shape[0]))
    return {
        **{f"{stage}.{name}": value for stage, settings in stages.items() for name, value in settings.items()},
        "seed": seed,
        "embedding_shape": list(embeddings.shape),
        "embeddings": _digest(embeddings[some]),
        "rewards": _digest(reward),
        "training_pairs": _digest(train.chosen, train.rejected, train.label, train.weight),
        "validation_pairs": _digest(validation.chosen, validation.rejected, validation.label, validation.weight),
    }


def _digest(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def save_checkpoint(
    path: Path,
    run: dict[str, Any],
    history: list[Epoch],
    best: dict[str, Tensor],
    head: nn.Module,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> None:
    """Write everything the next epoch depends on, atomically."""
    tensors = {f"now.{k}": v for k, v in head.state_dict().items()}
    tensors |= {f"best.{k}": v for k, v in best.items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": torch.as_tensor(v) for k, v in state.items()}
    tensors["generator"] = generator.get_state()
    metadata = {"run": json.dumps(run, sort_keys=True), "history": json.dumps([e.to_dict() for e in history])}
    save_tensors(path, tensors, metadata)


def load_checkpoint(
    path: Path, run: dict[str, Any], head: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator
) -> tuple[list[Epoch], dict[str, Tensor]]:
    """Load the state of this run; the history and the best weights. Damaged or another run's: a ModelError."""
    again = "Delete it to fit from the start."
    try:
        tensors, metadata = load_tensors(path)
        written, epochs = (parse_json(metadata.get(name, "")) for name in ("run", "history"))
    except ValueError as error:
        raise _damaged(path, str(error)) from error
    checked(written, "Settings", f"{path}, run", error=ModelError, do=again)
    checked(epochs, "History", f"{path}, history", error=ModelError, do=again)
    history = [Epoch.from_dict(values) for values in epochs]
    expected = json.loads(json.dumps(run))
    differing = [key for key in expected if written.get(key) != expected[key]]
    if differing:
        key = differing[0]
        then, now = (shorten_line(str(value), 80) for value in (written.get(key), expected[key]))
        raise ModelError(
            f"The checkpoint {path} is of another run: its {key} is {then}, this run's is {now}. Delete it to fit from "
            "the start, or give the settings and data it was made with."
        )
    best = _part(tensors, "best.")
    try:
        head.load_state_dict(best)
        head.load_state_dict(_part(tensors, "now."))
        state = optimizer.state_dict()
        state["state"] = {
            index: _part(tensors, f"optimizer.{index}.") for index in range(len(state["param_groups"][0]["params"]))
        }
        optimizer.load_state_dict(state)
        generator.set_state(tensors["generator"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:  # another head's tensors
        raise _damaged(path, " ".join(str(error).split())[:200]) from error
    return history, best


def _damaged(path: Path, why: str) -> ModelError:
    return ModelError(f"The checkpoint {path} is damaged ({why}). Delete it to fit from the start.")


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
