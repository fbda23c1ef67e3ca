"""Training data of heads: rows of embeddings, their units, and preference pairs as places among them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from ebrm.errors import DataError, ModelError
from ebrm.heads.config import PairsSeen
from ebrm.pairs import PreferencePairs
from ebrm.utils.validation import check_finite

#: Numbers read at a time where all rows are needed: 4 MiB, which stays in the processor's cache.
_READ_FLOATS = 2**20


class EmbeddingSource(Protocol):
    """Embeddings [n, d] in memory (a tensor) or on disk: indexed by a LongTensor or a slice, float32 out."""

    @property
    def shape(self) -> Sequence[int]:
        """(n, d)."""
        ...

    def __getitem__(self, index: Any, /) -> Tensor: ...


def rows_at_once(embeddings: EmbeddingSource) -> int:
    """How many rows to read at a time where all are needed."""
    return max(2, _READ_FLOATS // max(embeddings.shape[1], 1))


class FiniteRows:
    """Embeddings that are checked for finite values as they are read."""

    def __init__(self, rows: Tensor | EmbeddingSource) -> None:
        self._rows = rows
        self.shape = (int(rows.shape[0]), int(rows.shape[1]))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Tensor:
        some = self._rows[index].detach()
        if not bool(torch.isfinite(some).all()):
            few = rows_at_once(self)
            parts = (self._rows[first : first + few] for first in range(0, len(self), few))
            refuse_not_finite("embedding", torch.cat([torch.isfinite(part).all(1) for part in parts]))
        return some


def refuse_not_finite(what: str, finite: Tensor) -> None:
    """Raise a ModelError that names the first of the rows [n] that are not `finite`, if there is one."""
    if not bool(finite.all()):
        raise ModelError(
            f"The {what} of row {int((~finite).nonzero()[0, 0])} is not finite, so it has no refined reward. "
            f"{int((~finite).sum())} of {len(finite)} rows are so; find out where they come from, or leave them out."
        )


class Standardizer(nn.Module):
    """Affine maps fitted on the training rows: (r - mean) / std · scale and (e - center) / spread, in buffers."""

    reward_mean: Tensor
    reward_std: Tensor
    reward_scale: Tensor
    embedding_center: Tensor  # [d]
    embedding_spread: Tensor  # [d]

    def __init__(self, embedding_size: int) -> None:
        super().__init__()
        self.register_buffer("reward_mean", torch.zeros((), dtype=torch.float64))
        self.register_buffer("reward_std", torch.ones((), dtype=torch.float64))
        self.register_buffer("reward_scale", torch.ones((), dtype=torch.float64))
        self.register_buffer("embedding_center", torch.zeros(embedding_size))
        self.register_buffer("embedding_spread", torch.ones(embedding_size))

    def fit_reward(self, reward: Tensor, scale: float) -> None:  # reward [n]
        """Fit mean and standard deviation (divisor n) on `reward` [n]; `scale` is that of internal rewards."""
        values = reward.double()
        std = values.std(correction=0) if len(values) else torch.zeros(())
        if not bool(std > 0):
            raise ModelError(
                f"The {len(values)} training rewards are all equal, so they have no scale and no density can be "
                "fitted. Check that the reward model's head is the trained one, or give more pairs."
            )
        self.reward_mean.copy_(values.mean())
        self.reward_std.copy_(std)
        self.reward_scale.fill_(scale)

    def fit_embedding(self, batches: Iterable[Tensor]) -> None:  # each [k, d]
        """Fit center and standard deviation of each number of the embedding, streaming over `batches`."""
        count, mean = 0, torch.zeros_like(self.embedding_center, dtype=torch.float64)
        square = torch.zeros_like(mean)  # sum of squared distances from the mean, joined batch by batch (Chan et al.)
        for batch in batches:
            if not len(batch):
                continue
            values = batch.to(mean)
            shift = values.mean(0) - mean
            total = count + len(values)
            square += (values - values.mean(0)).square().sum(0) + shift.square() * (count * len(values) / total)
            mean += shift * (len(values) / total)
            count = total
        spread = (square / max(count, 1)).sqrt()
        self.embedding_center.copy_(mean)
        # Below this, what is left after centering is rounding: a number that never changes stays as it is.
        self.embedding_spread.copy_(torch.where(spread > 1e-6 * mean.abs(), spread, torch.ones_like(spread)))

    def to_internal(self, reward: Tensor) -> Tensor:
        """Base units → internal units, float32, any shape."""
        return self.to_internal64(reward).float()

    def to_internal64(self, reward: Tensor) -> Tensor:
        """Base units → internal units, float64: back in base units, a float32 reward is the same to the bit."""
        return (reward.double() - self.reward_mean) * (self.reward_scale / self.reward_std)

    def to_base(self, internal: Tensor) -> Tensor:
        """Internal units → base units, float32, any shape."""
        return (internal.double() * (self.reward_std / self.reward_scale) + self.reward_mean).float()

    def to_score(self, reward: Tensor) -> Tensor:
        """The logistic of (reward - mean) / std, 0 to 1, float32: 0.5 is an average training response."""
        return torch.sigmoid((reward.double() - self.reward_mean.cpu()) / self.reward_std.cpu()).float()

    @property
    def unit(self) -> float:
        """Base units in one internal unit; lengths scale by it, densities by its inverse."""
        return float(self.reward_std / self.reward_scale)

    def embed(self, embedding: Tensor) -> Tensor:  # [n, d] -> [n, d]
        """Embeddings as the network sees them, float32."""
        return (embedding.float() - self.embedding_center) / self.embedding_spread


def with_strength(pairs: PreferencePairs, use: Literal["weight", "margin", "off"]) -> PreferencePairs:
    """The pairs with strength s in weight (w s / mean(s); arXiv 2410.01257), in margin (m + s), or dropped."""
    known = ~pairs.strength.isnan()
    none = torch.full_like(pairs.strength, torch.nan)
    if use == "off" or not bool(known.any()):
        return replace(pairs, strength=none)
    strength = torch.where(known, pairs.strength, 0.0)
    if use == "margin":
        return replace(pairs, margin=pairs.margin + strength, strength=none)
    if bool((strength < 0).any()) or not bool(strength.any()):
        first = int((strength < 0).nonzero()[0, 0]) if bool((strength < 0).any()) else int(known.nonzero()[0, 0])
        raise DataError(
            f"Strengths of preference cannot be weights: pair {first} has {float(strength[first]):g}; expected 0 or "
            'more, and not all 0. Fit with `strength="margin"` or `strength="off"`.'
        )
    scaled = strength * (known.sum() / strength.sum())
    return replace(pairs, weight=pairs.weight * torch.where(known, scaled, 1.0), strength=none)


def changed_columns(pairs: PreferencePairs) -> list[str]:
    """Columns of the pair loss that are not as if nothing were given (label 1, weight 1, margin 0)."""
    default = {"label": 1.0, "weight": 1.0, "margin": 0.0}
    return [name for name, value in default.items() if bool((getattr(pairs, name) != value).any())]


def agreement(pairs: PreferencePairs, reward: Tensor) -> tuple[float, float]:  # [rows]
    """Weights: (of the pairs that rewards [rows] order as labeled, weight of all with a label other than 0.5)."""
    chosen, rejected = reward[pairs.chosen], reward[pairs.rejected]
    label, weight = pairs.label.to(chosen.device), pairs.weight.to(chosen.device)
    right = torch.where(label > 0.5, chosen > rejected, chosen < rejected)
    decided = weight * (label != 0.5)
    return float((decided * right).sum()), float(decided.sum())


@dataclass(frozen=True, eq=False)
class Anchors:
    """Texts whose reward should stay the base reward's, as rows of the same reward model's features.

    Attributes:
        embedding: [m, d], in memory or on disk.
        reward: base rewards [m].
        prompt_id: of each row [m].
    """

    embedding: EmbeddingSource
    reward: Tensor
    prompt_id: Sequence[str]

    def __post_init__(self) -> None:
        counts = {int(self.embedding.shape[0]), len(self.reward), len(self.prompt_id)}
        if len(counts) > 1 or counts == {0}:
            raise DataError(
                f"Anchors have {self.embedding.shape[0]} embeddings, {len(self.reward)} base rewards and "
                f"{len(self.prompt_id)} prompt ids; one of each for every row was expected, and at least one row."
            )


@dataclass(frozen=True)
class HeadData:
    """Rows of all pairs and all rated rows, each once, and the pairs as places among them.

    `embedding` is standardized float32, `reward` internal float64; training weights have mean 1, `evidence` is their
    sum as given; `training_rows` stand in training pairs, or are rated and in no held-out pair; `group` and
    `validation_group` are places of the pairs' sources in `names` (sorted; "" for none).
    """

    embedding: Tensor
    reward: Tensor
    train: PreferencePairs
    validation: PreferencePairs
    evidence: float
    training_rows: Tensor
    names: tuple[str, ...]
    group: Tensor
    validation_group: Tensor
    ratings: Tensor | None
    pairs_seen: PairsSeen = "unknown"
    anchors: Anchors | None = None


def head_data(
    embeddings: EmbeddingSource,  # [rows, d]
    reward: Tensor,  # [rows]
    train: PreferencePairs,
    validation: PreferencePairs,
    standardizer: Standardizer,
    *,
    rated: bool = False,
    grouped: bool = False,
    pairs_seen: PairsSeen = "unknown",
    anchors: Anchors | None = None,
    device: torch.device | str = "cpu",
) -> HeadData:
    """Read the pairs' rows into memory, fitting the standardizer on training rows; see :class:`HeadData`."""
    train, validation = train.to("cpu"), validation.to("cpu")
    ratings, rows_rated = train.ratings if rated else None, torch.empty(0, dtype=torch.int64)
    if ratings is not None:
        if len(ratings) != len(reward):
            raise ValueError(f"expected ratings [{len(reward)}, a], got {tuple(ratings.shape)}")
        check_finite(ratings.nan_to_num(0.0, torch.inf, -torch.inf), "ratings", 2)
        rows_rated = (~ratings.isnan()).any(1).nonzero().squeeze(1)
    if len(train) == 0 and len(rows_rated) == 0:
        raise ModelError("No training pairs are left to fit the head on (0 given). Give more pairs.")
    names = tuple(sorted({name or "" for name in train.source}))
    place_of = {name: place for place, name in enumerate(names)}
    held = torch.tensor([place_of.get(name or "", -1) for name in validation.source], dtype=torch.int64)
    if grouped:
        validation, held = validation.select(held >= 0), held[held >= 0]
    sides = [train.chosen, train.rejected, validation.chosen, validation.rejected, rows_rated]
    rows, place = torch.unique(torch.cat(sides), return_inverse=True)
    chosen, rejected, held_chosen, held_rejected, rows_rated = place.split([len(side) for side in sides])
    training_rows = torch.zeros(len(rows), dtype=torch.bool)
    training_rows[rows_rated] = True
    training_rows[torch.cat([held_chosen, held_rejected])] = False
    training_rows[torch.cat([chosen, rejected])] = True
    embedding = FiniteRows(embeddings)[rows].float()
    paired = torch.zeros(len(reward), dtype=torch.bool)
    paired[rows] = True
    base = check_finite(torch.where(paired, reward.double(), 0.0), "base reward")[rows]
    standardizer.fit_reward(base[training_rows], 1.0)
    standardizer.fit_embedding([embedding[training_rows]])
    standardizer.to(device)
    evidence = float(train.weight.sum())
    weight = train.weight * (len(train) / train.weight.sum()) if len(train) else train.weight
    group = torch.tensor([place_of[name or ""] for name in train.source], dtype=torch.int64)
    return HeadData(
        embedding=standardizer.embed(embedding.to(device)),
        reward=standardizer.to_internal64(base.to(device)),
        train=replace(train, chosen=chosen, rejected=rejected, weight=weight, ratings=None).to(device),
        validation=replace(validation, chosen=held_chosen, rejected=held_rejected, ratings=None).to(device),
        evidence=evidence,
        training_rows=training_rows.to(device),
        names=names,
        group=group.to(device),
        validation_group=held.to(device),
        ratings=None if ratings is None else ratings[rows].double().to(device),
        pairs_seen=pairs_seen,
        anchors=anchors,
    )
