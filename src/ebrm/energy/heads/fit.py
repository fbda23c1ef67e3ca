"""Fitting any head on pairs, and putting a saved one together again."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ebrm.energy.fit import PairRows
from ebrm.energy.heads.anchored import AnchoredHead
from ebrm.energy.heads.attributes import AttributeHead
from ebrm.energy.heads.bayesian import BayesianHead
from ebrm.energy.heads.binary import BinaryFeedbackHead
from ebrm.energy.heads.bradley_terry import LinearHead, SiluHead
from ebrm.energy.heads.data import Labels, head_data
from ebrm.energy.heads.directions import DirectionalHead
from ebrm.energy.heads.gaussian import GaussianHeads
from ebrm.energy.heads.head import RewardHead
from ebrm.energy.heads.min_norm import MinNormHead
from ebrm.energy.heads.prototypes import PrototypeHead
from ebrm.energy.heads.settings import HeadKind, HeadSettings
from ebrm.energy.rows import EmbeddingRows
from ebrm.energy.standardize import Standardizer

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
    embeddings: EmbeddingRows,  # [rows, d]
    reward: Tensor,  # [rows]
    train: PairRows,
    validation: PairRows,
    settings: HeadSettings = HeadSettings(),  # noqa: B008 - frozen
    *,
    labels: Labels = Labels(),  # noqa: B008 - frozen
) -> RewardHead:
    """Fit a head on preference pairs: the counterpart of :func:`ebrm.energy.fit.fit_density`.

    Rows of the pairs are read into memory: 12 bytes a number of theirs are needed at a time for the linear kinds. The
    same seed gives the same head.

    Args:
        kind: which head (:data:`ebrm.energy.heads.settings.HEADS`); it goes before that of `settings`.
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


def load_head(settings: HeadSettings, tensors: dict[str, Tensor]) -> RewardHead:
    """The head whose settings and state these are.

    Raises:
        KeyError, RuntimeError: tensors that are not those of such a head.
    """
    size, groups = len(tensors["standardizer.embedding_centre"]), int(tensors["groups"])
    head = _CLASSES[settings.kind](size, settings, groups)
    head.load_state_dict(tensors)
    return head.eval().requires_grad_(False)
