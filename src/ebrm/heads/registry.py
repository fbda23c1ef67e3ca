"""Fitting any head on pairs, and putting a saved one together again."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ebrm.heads.anchored import AnchoredHead
from ebrm.heads.attributes import AttributeHead
from ebrm.heads.base import RewardHead
from ebrm.heads.bayesian import BayesianHead
from ebrm.heads.binary import BinaryFeedbackHead
from ebrm.heads.bradley_terry import LinearHead, SiluHead
from ebrm.heads.data import Labels, head_data
from ebrm.heads.directions import DirectionalHead
from ebrm.heads.energy_training import PairRows
from ebrm.heads.gaussian import GaussianHeads
from ebrm.heads.head_config import HeadConfig, HeadKind
from ebrm.heads.min_norm import MinNormHead
from ebrm.heads.prototypes import PrototypeHead
from ebrm.heads.rows import EmbeddingSource
from ebrm.heads.standardize import Standardizer

_CLASSES: dict[str, type[RewardHead]] = {
    "linear": LinearHead,
    "silu": SiluHead,
    "gaussian": GaussianHeads,
    "bayesian": BayesianHead,
    "attributes": AttributeHead,
    "binary": BinaryFeedbackHead,
    "anchored": AnchoredHead,
    "min_norm": MinNormHead,
    "prototypes": PrototypeHead,
    "directional": DirectionalHead,
}


def fit_head(
    kind: HeadKind,
    embeddings: EmbeddingSource,  # [rows, d]
    reward: Tensor,  # [rows]
    train: PairRows,
    validation: PairRows,
    settings: HeadConfig = HeadConfig(),  # noqa: B008 - frozen
    *,
    labels: Labels = Labels(),  # noqa: B008 - frozen
) -> RewardHead:
    """Fit a head on preference pairs: the counterpart of :func:`ebrm.heads.energy_training.fit_density`.

    Rows of the pairs are read into memory: 12 bytes a number of theirs are needed at a time for the linear kinds. The
    same seed gives the same head.

    Args:
        kind: which head (:data:`ebrm.heads.head_config.HEADS`); it goes before that of `settings`.
        embeddings: [rows, d], in memory or on disk.
        reward: base rewards [rows]; they give the head's rewards their units.
        train, validation: pairs as rows, prompt-disjoint; `validation` may be empty.
        settings: of the head.
        labels: what is known of the training pairs beside which response was chosen; needed by the kinds attributes
            (ratings), min_norm (objectives) and prototypes (users).

    Raises:
        ModelError: no training pairs, rewards without spread, or features that are not finite.
        DataError: labels that are not finite, or that the kind needs and that are not there.
    """
    settings = replace(settings, kind=kind)
    standardizer = Standardizer(embeddings.shape[1])
    data = head_data(embeddings, reward, train, validation, labels, standardizer)
    head = _CLASSES[kind](embeddings.shape[1], settings, _CLASSES[kind].groups_in(data))
    head.standardizer = standardizer
    head.learn(data, torch.Generator().manual_seed(settings.seed))
    with torch.no_grad():
        head.fit_units(data)
        head.fit_support(data)
    return head.eval().requires_grad_(False)


def load_head(settings: HeadConfig, tensors: dict[str, Tensor]) -> RewardHead:
    """The head whose settings and state these are.

    Raises:
        KeyError, RuntimeError: tensors that are not those of such a head.
    """
    size, groups = len(tensors["standardizer.embedding_center"]), int(tensors["groups"])
    head = _CLASSES[settings.kind](size, settings, groups)
    head.load_state_dict(tensors)
    return head.eval().requires_grad_(False)
