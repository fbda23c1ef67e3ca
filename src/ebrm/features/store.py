"""Reading a features folder: which pairs, which rewards, and embeddings that stay on disk until they are needed.

A folder holds one *item* for every different (prompt, response), in order of first appearance, and pairs that refer
to items by position:

    manifest.json               what made this, how much there is of it, SHA-256 of every other file
    items.parquet               one row an item: prompt_id, tokens, truncated, text_id
    pairs.parquet               one row a pair: chosen, rejected, prompt_id, source, category, strength, split, where,
                                rm_training
    shard-00000.safetensors …   embedding [m, d] and reward [m] of `shard_rows` items each
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebrm.errors import FeaturesError
from ebrm.features import manifest as manifests
from ebrm.features.shards import DTYPES, Shard, ShardedEmbeddings, shard_name
from ebrm.features.tables import read_pairs

_ROUNDING = ("dtype", "attention")


@dataclass(frozen=True, eq=False)
class Pairs:
    """Preference pairs over items. All arrays have one entry a pair [p].

    Attributes:
        chosen: int64, item of the preferred response.
        rejected: int64, item of the other response.
        prompt_id: str, the same for pairs of one prompt; splits and bootstrap resampling go by it.
        source: object, str or None.
        category: object, str or None.
        strength: float32, how strongly the first is preferred; NaN where not given.
        split: object, str or None.
        where: object, str ("file.jsonl:12") or None.
        rm_training: bool, whether the reward model was trained on this pair (False where not known).
    """

    chosen: np.ndarray
    rejected: np.ndarray
    prompt_id: np.ndarray
    source: np.ndarray
    category: np.ndarray
    strength: np.ndarray
    split: np.ndarray
    where: np.ndarray
    rm_training: np.ndarray

    @classmethod
    def build(cls, chosen: Any, rejected: Any, prompt_id: Any = None, **columns: Any) -> Pairs:
        """Pairs from sequences of length p; columns left out are empty, and every pair is its own prompt."""
        count = len(chosen)
        if prompt_id is None:
            prompt_id = [f"pair-{row:06d}" for row in range(count)]
        values: dict[str, np.ndarray] = {
            "chosen": np.array(chosen, dtype=np.int64),  # writable, as torch.from_numpy wants it
            "rejected": np.array(rejected, dtype=np.int64),
            "prompt_id": np.asarray(prompt_id, dtype=np.str_),
        }
        for name in ("source", "category", "split", "where"):
            values[name] = np.empty(count, dtype=object)
            given = columns.pop(name, None)
            values[name][:] = None if given is None else given if isinstance(given, np.ndarray) else list(given)
        strength = columns.pop("strength", None)
        values["strength"] = (
            np.full(count, np.nan, dtype=np.float32)
            if strength is None
            else np.asarray(
                strength if isinstance(strength, np.ndarray) else [np.nan if v is None else v for v in strength],
                dtype=np.float32,
            )
        )
        seen = columns.pop("rm_training", None)
        values["rm_training"] = np.zeros(count, bool) if seen is None else np.array([bool(v) for v in seen], bool)
        if columns:
            raise TypeError(f"pairs have no column {', '.join(columns)}")
        for name, value in values.items():
            if value.shape != (count,):
                raise ValueError(f"pair column {name} has shape {list(value.shape)}, expected [{count}]")
        return cls(**values)

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.chosen)

    def take(self, index: Any) -> Pairs:
        """The pairs at `index` (positions or a boolean mask), in that order; items keep their numbers."""
        index = np.asarray(index)
        if index.size == 0 and index.dtype != np.bool_:
            index = index.astype(np.int64)
        return Pairs(**{field.name: getattr(self, field.name)[index] for field in dataclasses.fields(self)})


@dataclass(frozen=True, eq=False)
class Features:
    """What a reward model said about every item of a set of preference pairs.

    Attributes:
        path: The folder they lie in; None for features held in memory.
        manifest: What made them (see `ebrm.features.manifest`).
        pairs: The preference pairs, referring to items.
        reward: float32 [n], the base reward of every item, in memory.
        embeddings: The embedding of every item, [n, d], read from disk on demand.
    """

    path: Path | None
    manifest: dict[str, Any]
    pairs: Pairs
    reward: Tensor
    embeddings: ShardedEmbeddings

    def __len__(self) -> int:
        """Number of items n."""
        return len(self.reward)

    @property
    def embedding_size(self) -> int:
        """Length d of an embedding."""
        return self.embeddings.shape[1]

    def embedding(self, index: Tensor | slice) -> Tensor:
        """Embeddings of the items at `index` (a slice or a LongTensor, any order), float32 [k, d]."""
        return self.embeddings[index]

    def check(self, backbone_identity: dict[str, Any] | None, text_identity: dict[str, Any] | None) -> None:
        """Refuse to be used with another reward model or text rule; None is not compared.

        Features that were imported know less about themselves; only what both sides state is compared. Nor are the
        reward model's dtype and attention implementation, which move its numbers by rounding only.

        Raises:
            FeaturesError: Naming the field and both sides.
        """
        here = "these features" if self.path is None else f"the features in {self.path}"
        for what, stored, wanted in (
            ("reward model", self.manifest.get("backbone"), backbone_identity),
            ("text rule", self.manifest.get("text"), text_identity),
        ):
            if stored is None or wanted is None:
                continue
            difference = manifests.difference(stored, wanted, here, "what they are to be used with", True, _ROUNDING)
            if difference is not None:
                raise FeaturesError(
                    f"The {what} does not fit: {difference}. Make features anew with the {what} that is wanted "
                    f"(`ebrm features`), or use a model that was fitted on features like these."
                )

    @classmethod
    def from_tensors(
        cls,
        embedding: Tensor,  # [n, d]
        reward: Tensor,  # [n]
        pairs: Pairs,
        backbone: dict[str, Any] | None = None,
        text: dict[str, Any] | None = None,
    ) -> Features:
        """Features held in memory, e.g. for tests or to be written by `ebrm.features.writer.save_features`.

        Raises:
            FeaturesError: Shapes that do not fit, pairs that refer to items that are not there, or NaN.
        """
        reward = reward.detach().to("cpu", torch.float32)
        embedding = embedding.detach().to("cpu")
        embedding = embedding if embedding.dtype in DTYPES.values() else embedding.to(torch.float32)
        if embedding.dim() != 2 or reward.shape != embedding.shape[:1]:
            raise FeaturesError(
                f"The embedding has shape {list(embedding.shape)} and the reward {list(reward.shape)}; "
                "expected [n, d] and [n]."
            )
        for name, value in (("embedding", embedding.isfinite().all(1)), ("reward", reward.isfinite())):
            if not bool(value.all()):
                raise FeaturesError(f"The {name} of item {int((~value).nonzero()[0])} is NaN or infinite.")
        check_pairs(pairs, len(reward))
        manifest = manifests.describe(
            origin="memory",
            backbone=backbone,
            text=text,
            data=None,
            embedding_dtype=str(embedding.dtype).removeprefix("torch."),
            embedding_size=embedding.shape[1],
            shard_rows=max(len(reward), 1),
            items=len(reward),
            pairs=len(pairs),
            complete=True,
        )
        return cls(None, manifest, pairs, reward, ShardedEmbeddings([embedding], embedding.shape[1]))


def check_pairs(pairs: Pairs, items: int) -> None:
    """Refuse pairs that refer to items outside 0..items-1 or prefer an item to itself.

    Raises:
        FeaturesError: Naming the first such pair.
    """
    for name in ("chosen", "rejected"):
        index = getattr(pairs, name)
        wrong = np.flatnonzero((index < 0) | (index >= items))
        if len(wrong):
            raise FeaturesError(
                f"Pair {wrong[0]} has {name} = {index[wrong[0]]}, but items are numbered 0 to {items - 1}."
            )
    same = np.flatnonzero(pairs.chosen == pairs.rejected)
    if len(same):
        raise FeaturesError(f"Pair {same[0]} has item {pairs.chosen[same[0]]} as both chosen and rejected.")


def open_features(path: str | Path, verify: bool = True) -> Features:
    """Open a finished features folder; embeddings stay on disk.

    Args:
        path: A folder written by `extract_features`, `import_features` or `save_features`.
        verify: Compare the SHA-256 of every file with the manifest (reads everything once). Sizes and headers are
            always checked.

    Raises:
        FeaturesError: No features there, unfinished ones, a newer format, or damaged or missing files (all named).
    """
    path = Path(path)
    manifest = manifests.read_manifest(path)
    if not manifest["complete"]:
        made = sum((path / shard_name(number)).exists() for number in range(manifests.shard_count(manifest)))
        raise FeaturesError(
            f"The features in {path} are unfinished: {made} of {manifests.shard_count(manifest)} shards are there. "
            f"{manifests.remedy(manifest, 'finish')}"
        )
    faults = manifests.find_faults(path, manifest, verify=verify)
    if faults:
        raise FeaturesError(manifests.fault_message(path, manifest, faults))
    return assemble(path, manifest)


def assemble(path: Path, manifest: dict[str, Any]) -> Features:
    """Features over the files of a folder whose manifest has been checked."""
    shards = []
    for number in range(manifests.shard_count(manifest)):
        rows = manifests.rows_of_shard(manifest, number)
        try:
            shards.append(
                Shard(
                    path / shard_name(number),
                    rows,
                    manifest["embedding_size"],
                    manifest["embedding_dtype"],
                )
            )
        except (OSError, ValueError) as error:
            raise FeaturesError(
                manifests.fault_message(path, manifest, {shard_name(number): f"is damaged: {error}"})
            ) from None
    reward = torch.cat([shard.reward() for shard in shards]) if shards else torch.empty(0)
    columns = read_pairs(path / "pairs.parquet")
    pairs = Pairs.build(**columns)
    if len(pairs) != manifest["pairs"]:
        raise FeaturesError(
            f"{path / 'pairs.parquet'} has {len(pairs)} pairs, but the manifest has {manifest['pairs']}."
        )
    check_pairs(pairs, len(reward))
    return Features(path, manifest, pairs, reward, ShardedEmbeddings(shards, manifest["embedding_size"]))
