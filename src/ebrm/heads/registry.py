"""Fitting any head on preference pairs, and putting a saved one together again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ebrm.errors import ConfigError, DataError, ModelError
from ebrm.heads.base import ClosedFormHead, RewardHead
from ebrm.heads.config import HEADS, EnergyConfig, HeadConfig, PairsSeen
from ebrm.heads.data import Anchors, EmbeddingSource, Standardizer, changed_columns, head_data, with_strength
from ebrm.heads.energy import EnergyHead
from ebrm.heads.linear import AnchoredHead, BayesianHead, GaussianHead, LinearHead
from ebrm.heads.multi_objective import AttributesHead, BinaryHead, MinNormHead
from ebrm.heads.residual import ResidualHead
from ebrm.heads.training import Epoch, FittedHead, fit_energy
from ebrm.heads.two_layer import DirectionalHead, PrototypesHead, SiLUHead
from ebrm.pairs import PreferencePairs

logger = logging.getLogger(__name__)

_CLASSES: dict[str, type[RewardHead]] = {
    "residual": ResidualHead,
    "energy": EnergyHead,
    "linear": LinearHead,
    "silu": SiLUHead,
    "gaussian": GaussianHead,
    "bayesian": BayesianHead,
    "attributes": AttributesHead,
    "binary": BinaryHead,
    "anchored": AnchoredHead,
    "min_norm": MinNormHead,
    "prototypes": PrototypesHead,
    "directional": DirectionalHead,
}


def fit_head(
    config: HeadConfig,
    embeddings: EmbeddingSource,  # [rows, d]
    base_reward: Tensor,  # [rows]
    train: PreferencePairs,
    validation: PreferencePairs,
    *,
    device: torch.device | str = "cpu",
    checkpoint: Path | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    strength: Literal["weight", "margin", "off"] = "weight",
    pairs_seen: PairsSeen = "unknown",
    anchors: Anchors | None = None,
    seed: int = 0,
) -> FittedHead:
    """Fit a head on preference pairs, with their labels, weights, margins and annotators' strength.

    Weights count relative to their mean. Held-out pairs choose the penalty or epoch by their loss with label and
    weight, and no margin; the residual head is fitted on them like on the others, and chooses with each prompt left
    out. Heads but the energy read the pairs' rows into memory. The same seed gives the same head.

    Args:
        config: which head, and how it is fitted.
        embeddings: [rows, d], in memory or on disk.
        base_reward: base rewards [rows]; they give a head's rewards their units.
        train, validation: pairs of rows, prompt-disjoint; `validation` may be empty. The heads attributes and binary
            are fitted on `train.ratings`, also where there are no pairs; rows in held-out pairs are not trained on, and
            rows of held-out prompts must have no ratings. The source of a pair is its user (prototypes) or objective
            (min_norm); held-out pairs of other sources are left out for these two.
        device: where to fit, and where the head is afterwards.
        checkpoint: a file for the energy's state after every epoch, from which the same fit goes on; energy only.
        on_epoch: called after every epoch of the energy.
        strength: how the pairs' strength enters (:class:`ebrm.heads.FitConfig`).
        pairs_seen: whether the reward model was trained on the pairs; matters to the residual head.
        anchors: texts whose reward should not move; the residual head only.
        seed: of initial weights, shuffling, resampling, noise and dropout.

    Raises:
        ConfigError: anchors for another head than the residual one.
        ModelError: no training pairs, rewards without spread, features or a loss that is not finite.
        DataError: a column that the head's loss has no place for, weights that are all 0, or no ratings or sources
            where the head needs them.
    """
    if config.kind not in _CLASSES:
        raise ConfigError(
            f"The head {config.kind!r} is chosen among others by `ebrm.fit`; name one of {', '.join(HEADS)}."
        )
    kind = _CLASSES[config.kind]
    if anchors is not None and kind is not ResidualHead:
        raise ConfigError(f"The {config.kind} head has no use for anchors; the residual head keeps to them.")
    train, validation = with_strength(train, strength), with_strength(validation, strength)
    for name, pairs in (("training", train), ("held-out", validation)):
        _check_columns(kind, config, name, pairs)
    if isinstance(config, EnergyConfig):
        return fit_energy(
            config, embeddings, base_reward, train, validation,
            device=device, checkpoint=checkpoint, on_epoch=on_epoch, seed=seed,
        )  # fmt: skip
    assert issubclass(kind, ClosedFormHead)
    standardizer = Standardizer(embeddings.shape[1])
    data = head_data(
        embeddings, base_reward, train, validation, standardizer,
        rated=kind.rated, grouped=kind.grouped, pairs_seen=pairs_seen, anchors=anchors, device=device,
    )  # fmt: skip
    head = kind(embeddings.shape[1], config, kind.groups_in(data), torch.Generator().manual_seed(seed))
    head.standardizer = standardizer
    head.to(device)
    head.learn(data, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        head.fit_units(data)
        head.fit_support(data)
    return FittedHead(head.eval().requires_grad_(False))


def load_head(config: HeadConfig, tensors: dict[str, Tensor]) -> RewardHead:
    """The head whose config and state these are, in evaluation mode.

    Raises:
        ModelError: a tensor that is missing, left over, of another shape or number type, or that holds numbers which
            no fit gives (NaN, a scale that is not above 0, a support whose ends are the wrong way round); it is named.
    """
    # Only shapes are made here: a config must not have memory taken that the tensors do not bear out.
    with torch.device("meta"):
        head = _CLASSES[config.kind].empty(config, tensors)
    wanted = head.state_dict()
    for name in sorted(wanted.keys() ^ tensors.keys()):
        raise ModelError(f"the tensor {name} is {'missing' if name in wanted else 'not one of this head'}")
    for name, tensor in tensors.items():
        expected = wanted[name]
        if tensor.shape != expected.shape or tensor.dtype != expected.dtype:
            raise ModelError(
                f"the tensor {name} is {tensor.dtype} {list(tensor.shape)}; expected {expected.dtype} "
                f"{list(expected.shape)}"
            )
    # Copies: tensors as a file's bytes hold them are aligned otherwise, and sums of them end in another last bit.
    head.load_state_dict({name: tensor.clone() for name, tensor in tensors.items()}, assign=True)
    head.check_numbers()
    return head.eval().requires_grad_(False)


def head_fitter(
    config: HeadConfig, *, base_reward: Tensor | None = None, device: torch.device | str = "cpu", seed: int = 0
) -> Callable[[Tensor, PreferencePairs], Callable[[Tensor], Tensor]]:
    """`fit(embedding [n, d], pairs) -> reward(embedding [m, d]) -> [m]`, as `ebrm.curate` takes it.

    Args:
        config: which head is fitted; one that is not fitted on base rewards (not energy or anchored) without them; not
            residual, whose reward is not a function of the embedding alone.
        base_reward: base rewards of the rows [n]; None: rewards have mean 0 and standard deviation 1 on the training
            rows.
        device, seed: as in :func:`fit_head`.
    """
    if config.kind == "residual":
        raise ConfigError(
            "The residual head adds to base rewards, and here rewards are of embeddings alone: take linear."
        )
    if base_reward is None and config.kind in ("energy", "anchored"):
        raise DataError(f"The {config.kind} head is fitted on base rewards, too. Give `base_reward`.")

    def fit(embedding: Tensor, pairs: PreferencePairs) -> Callable[[Tensor], Tensor]:
        base = base_reward
        if base is None:  # it decides the units only: evenly spaced rewards of mean 0 and standard deviation 1
            rows = torch.unique(torch.cat([pairs.chosen, pairs.rejected]))
            even = torch.linspace(-1, 1, len(rows), dtype=torch.float64, device=embedding.device)
            base = torch.zeros(len(embedding), dtype=torch.float64, device=embedding.device)
            base[rows] = even / even.std(correction=0)
        head = fit_head(config, embedding, base, pairs, pairs.select(slice(0)), device=device, seed=seed).head
        return lambda some: head(some).to(some.device)

    return fit


def _check_columns(kind: type[RewardHead], config: HeadConfig, name: str, pairs: PreferencePairs) -> None:
    """Refuse columns that would have no effect on the head; count ratings that have none, which data may just have."""
    takes = () if kind.rated and pairs.ratings is not None else kind.takes
    unused = [column for column in changed_columns(pairs) if column not in takes]
    if unused:
        raise DataError(
            f"The loss of the {config.kind} head has no place for the {name} pairs' {unused[0]}. Leave the column out "
            '(`strength="off"` where it comes from the strength), or choose another head.'
        )
    if len(pairs) and not bool(pairs.weight.any()):
        raise DataError(f"All {len(pairs)} {name} pairs have the weight 0, so there is nothing to learn from them.")
    if name == "training" and pairs.ratings is not None and not kind.rated:
        rated = int((~pairs.ratings.isnan()).any(1).sum())
        logger.warning("The ratings of %d rows are not used: the %s head is fitted on pairs.", rated, config.kind)
