"""What a head is fitted on: embeddings as it sees them, and pairs as rows of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ebrm.errors import DataError, ModelError
from ebrm.heads.energy_training import PairRows
from ebrm.heads.head_config import HeadKind
from ebrm.heads.rows import EmbeddingSource, FiniteRows
from ebrm.heads.standardize import Standardizer
from ebrm.utils.validation import check_finite


@dataclass(frozen=True)
class Labels:
    """What is known of the training pairs beyond which response was chosen; None where nothing is.

    Attributes:
        label: P(chosen is better) [p], see :func:`ebrm.heads.losses.pair_loss`.
        weight: weight of each pair [p].
        margin: margin of each pair [p].
        group: the user (kind prototypes) or the objective (kind min_norm) of each pair, int64 [p] from 0.
        validation_group: the same of the held-out pairs; kind prototypes.
        ratings: ratings [rows, a] of rows of the embeddings, NaN where there is none; kinds attributes and binary
            (one, 1 for a thumb up and 0 for one down). Rated rows in no held-out pair are trained on, so rows with a
            held-out prompt must have none.
    """

    label: Tensor | None = None
    weight: Tensor | None = None
    margin: Tensor | None = None
    group: Tensor | None = None
    validation_group: Tensor | None = None
    ratings: Tensor | None = None


def labels_by_source(
    kind: HeadKind, source: Iterable[object], validation: PairRows, validation_source: Iterable[object]
) -> tuple[PairRows, Labels]:
    """Take the pairs' sources [p] for users or objectives, where the kind has such; no labels otherwise.

    Returns:
        (held-out pairs whose source is one of the training pairs', labels).
    """
    if kind not in ("prototypes", "min_norm"):
        return validation, Labels()
    named = [str(name) for name in source]
    place = {name: number for number, name in enumerate(sorted(set(named)))}
    held = torch.tensor([place.get(str(name), -1) for name in validation_source], dtype=torch.int64)
    known = held >= 0
    group = torch.tensor([place[name] for name in named], dtype=torch.int64)
    kept = PairRows(validation.chosen[known], validation.rejected[known])
    return kept, Labels(group=group, validation_group=held[known])


@dataclass(frozen=True)
class HeadData:
    """The rows of all pairs and all rated rows, each once, and the pairs as places among them.

    Attributes:
        embedding: standardized [n, d], float32.
        reward: base rewards [n], internal units, float64.
        train, validation: pairs as places in these.
        training_rows: which rows stand in training pairs, or are rated and in no held-out pair, bool [n].
        label, weight, margin: of the training pairs [p], float64.
        group, validation_group: of the training and of the held-out pairs, None where they are not known.
        ratings: ratings [n, a] with NaN, or None.
    """

    embedding: Tensor
    reward: Tensor
    train: PairRows
    validation: PairRows
    training_rows: Tensor
    label: Tensor
    weight: Tensor
    margin: Tensor
    group: Tensor | None
    validation_group: Tensor | None
    ratings: Tensor | None


def head_data(
    embeddings: EmbeddingSource,  # [rows, d]
    reward: Tensor,  # [rows]
    train: PairRows,
    validation: PairRows,
    labels: Labels,
    standardizer: Standardizer,
) -> HeadData:
    """Read the pairs' rows into memory, fitting the standardizer on those of the training pairs.

    Raises:
        ModelError: no training pairs, rewards without spread, or an embedding that is not finite.
        DataError: a base reward, label, weight or margin that is not finite.
        ValueError: labels of another number than the training pairs.
    """
    if len(train) == 0:
        raise ModelError("No training pairs are left to fit the head on (0 given). Give more pairs.")
    p = len(train)
    columns = {"label": labels.label, "weight": labels.weight, "margin": labels.margin}
    known = {name: torch.full((p,), float(name != "margin"), dtype=torch.float64) for name in columns}
    for name, column in columns.items():
        if column is not None:
            if column.shape != (p,):
                raise ValueError(f"expected one {name} for each of {p} training pairs, got {tuple(column.shape)}")
            known[name] = check_finite(column, name)
    for name, group, count in (("training", labels.group, p), ("held-out", labels.validation_group, len(validation))):
        if group is not None and group.shape != (count,):
            raise ValueError(f"expected one group for each of {count} {name} pairs, got {tuple(group.shape)}")
        if group is not None and bool((group < 0).any()):
            raise DataError(f"The group of {name} pair {int((group < 0).nonzero()[0, 0])} is negative; count from 0.")
    ratings, rated = labels.ratings, torch.empty(0, dtype=torch.int64)
    if ratings is not None:
        if ratings.dim() != 2 or len(ratings) != len(reward):
            raise ValueError(f"expected ratings [{len(reward)}, a], got {tuple(ratings.shape)}")
        rated = (~ratings.isnan()).any(1).nonzero().squeeze(1)
        check_finite(ratings.nan_to_num(0.0, torch.inf, -torch.inf), "ratings", 2)
    sides = [train.chosen, train.rejected, validation.chosen, validation.rejected, rated]
    rows, place = torch.unique(torch.cat(sides), return_inverse=True)
    chosen, rejected, held_chosen, held_rejected, rated = place.split([len(side) for side in sides])
    training_rows = torch.zeros(len(rows), dtype=torch.bool)
    training_rows[rated] = True
    training_rows[torch.cat([held_chosen, held_rejected])] = False
    training_rows[torch.cat([chosen, rejected])] = True
    embedding = FiniteRows(embeddings)[rows].float()
    paired = torch.zeros(len(reward), dtype=torch.bool)
    paired[rows] = True
    base = check_finite(torch.where(paired, reward.double(), 0.0), "base reward")[rows]
    standardizer.fit_reward(base[training_rows], 1.0)
    standardizer.fit_embedding([embedding[training_rows]])
    return HeadData(
        standardizer.embed(embedding),
        standardizer.to_internal(base).double(),
        PairRows(chosen, rejected),
        PairRows(held_chosen, held_rejected),
        training_rows,
        **known,
        group=labels.group,
        validation_group=labels.validation_group,
        ratings=None if ratings is None else ratings[rows].double(),
    )
