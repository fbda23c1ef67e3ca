"""Features folders: pairs, rewards, and embeddings that stay on disk until they are indexed.

A folder holds one *item* for every different (prompt, response), in order of first appearance, and pairs that refer
to items by position:

    manifest.json               what made this, how much there is of it, SHA-256 of every other file
    items.parquet               one row an item: prompt_id, tokens, truncated, text_id; ratings where there are any
    pairs.parquet               one row a pair: chosen, rejected, prompt_id, source, category, strength, split, where,
                                rm_training; label, weight, margin where they are not the same for all
    shard-00000.safetensors …   embedding [m, d] and reward [m] of `shard_rows` items each

Equal content gives equal bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from ebrm.errors import DataError, FeaturesError
from ebrm.features import manifest as manifests
from ebrm.features.shards import DTYPES, Shard, ShardedEmbeddings
from ebrm.pairs import PreferencePairs

ITEM_SCHEMA = pa.schema(
    [("prompt_id", pa.string()), ("tokens", pa.int32()), ("truncated", pa.int32()), ("text_id", pa.string())]
)
_PAIR_TYPES = {
    "chosen": pa.int64(), "rejected": pa.int64(), "prompt_id": pa.string(), "source": pa.string(),
    "category": pa.string(), "strength": pa.float32(), "split": pa.string(), "where": pa.string(),
    "rm_training": pa.bool_(),
}  # fmt: skip
PAIR_SCHEMA = pa.schema(list(_PAIR_TYPES.items()))
#: Further columns of pairs.parquet, and the value that needs no column.
_OPTIONAL = {"label": 1.0, "weight": 1.0, "margin": 0.0}
_DEMO = Path(__file__).parents[1] / "demo"
_PACKAGED = {"demo": _DEMO / "features", "demo-anchors": _DEMO / "anchors"}
# Fields of a reward model's identity that move its numbers by rounding only.
_ROUNDING = ("dtype", "attention")


@dataclass(frozen=True, eq=False)
class Features:
    """Embedding and base reward of every item of a set of preference pairs.

    Attributes:
        path: The folder they lie in; None for features held in memory.
        manifest: Their origin, identity and counts.
        pairs: The preference pairs, referring to items.
        reward: float32 [n], the base reward of every item, in memory.
        embeddings: The embedding of every item, [n, d], read from disk on demand.
        unread: bool [n], items for which the reward model gave NaN or infinity: their numbers are 0, and no pair has
            them. None where there is none.
    """

    path: Path | None
    manifest: dict[str, Any]
    pairs: PreferencePairs
    reward: Tensor
    embeddings: ShardedEmbeddings
    unread: Tensor | None = None

    def __len__(self) -> int:
        return len(self.reward)

    @property
    def embedding_size(self) -> int:
        """Length d of an embedding."""
        return self.embeddings.shape[1]

    def embedding(self, index: Tensor | slice) -> Tensor:
        """Embeddings of the items at `index` (a slice or a LongTensor, any order), float32 [k, d]."""
        return self.embeddings[index]

    def with_pairs(self, pairs: PreferencePairs) -> Features:
        """The same items with other pairs (curated, say); `save_features` keeps all but the steps that made them.

        Raises:
            FeaturesError: Pairs of items that are not there, or that the reward model could not read.
        """
        pairs = pairs.to("cpu")
        check_pairs(pairs, len(self))
        self.refuse_unread(pairs)
        return replace(self, pairs=pairs, manifest=self.manifest | {"data": None, "pairs": len(pairs)})

    def refuse_unread(self, pairs: PreferencePairs) -> None:
        """FeaturesError for pairs of items that the reward model gave no finite numbers for."""
        if self.unread is not None and bool((bad := self.unread[pairs.chosen] | self.unread[pairs.rejected]).any()):
            raise FeaturesError(
                f"{int(bad.sum()):,} of {len(pairs):,} pairs have an item for which the reward model gave NaN or "
                f"infinity, first pair {int(bad.nonzero()[0])}. Leave them out (`unread` says which items these are)."
            )

    def check(self, backbone_identity: dict[str, Any] | None, text_identity: dict[str, Any] | None) -> None:
        """Refuse use with another reward model or text rule; only fields that both sides state are compared.

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
        pairs: PreferencePairs,
        backbone: dict[str, Any] | None = None,
        text: dict[str, Any] | None = None,
    ) -> Features:
        """Features held in memory; `save_features` writes them to disk.

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
        pairs = pairs.to("cpu")
        check_pairs(pairs, len(reward))
        stored = str(embedding.dtype).removeprefix("torch.")
        manifest = manifests.describe(
            origin="memory", backbone=backbone, text=text, embedding_dtype=stored, embedding_size=embedding.shape[1],
            shard_rows=max(len(reward), 1), items=len(reward), pairs=len(pairs), complete=True,
        )  # fmt: skip
        return cls(None, manifest, pairs, reward, ShardedEmbeddings([embedding], embedding.shape[1]))


def open_features(path: str | Path, verify: bool = True) -> Features:
    """Open a finished features folder; embeddings stay on disk.

    Args:
        path: A folder of features; or a name of those that come with the package: "demo" for the demonstration's
            pairs, "demo-anchors" for its anchors.
        verify: Compare every file's SHA-256 with the manifest, beside sizes and headers (reads all once).

    Raises:
        FeaturesError: No features there, unfinished ones, another format, or damaged or missing files (all named).
    """
    path = _PACKAGED.get(str(path), Path(path))
    return assemble(path, manifests.read_finished(path, verify))


def is_features(path: str | Path) -> bool:
    """Whether :func:`open_features` finds features here: a folder with a manifest, or a name of the package's own."""
    return str(path) in _PACKAGED or (Path(path) / "manifest.json").is_file()


def assemble(path: Path, manifest: dict[str, Any]) -> Features:
    """Features over the files of a folder whose manifest has been checked."""
    shards = []
    for number in range(manifests.shard_count(manifest)):
        file, rows = path / manifests.shard_name(number), manifests.rows_of_shard(manifest, number)
        try:
            shards.append(Shard(file, rows, manifest["embedding_size"], manifest["embedding_dtype"]))
        except (OSError, ValueError) as error:
            raise FeaturesError(manifests.fault_message(path, manifest, {file.name: f"is damaged: {error}"})) from None
    reward = torch.cat([shard.reward() for shard in shards]) if shards else torch.empty(0)
    columns = read_pairs(path / "pairs.parquet")
    if len(columns["chosen"]) != manifest["pairs"]:
        raise FeaturesError(
            f"{path / 'pairs.parquet'} has {len(columns['chosen'])} pairs, but the manifest has {manifest['pairs']}."
        )
    ratings = read_ratings(path / "items.parquet") if manifest.get("ratings") else None
    try:
        pairs = PreferencePairs.of(**columns, ratings=ratings)
        pairs.check_rows(len(reward))
    except DataError as error:
        raise FeaturesError(f"{path / 'pairs.parquet'} does not fit the {len(reward)} items: {error}") from None
    unread = reward.isnan()
    if bool(unread.any()):
        pairs = pairs.select(np.flatnonzero(~(unread[pairs.chosen] | unread[pairs.rejected]).numpy()))
        if pairs.ratings is not None:
            pairs = replace(pairs, ratings=pairs.ratings.masked_fill(unread[:, None], torch.nan))
        reward = reward.masked_fill(unread, 0.0)
    embeddings = ShardedEmbeddings(shards, manifest["embedding_size"])
    return Features(path, manifest, pairs, reward, embeddings, unread if bool(unread.any()) else None)


def check_pairs(pairs: PreferencePairs, items: int) -> None:
    """Refuse pairs of items that are not there (naming the first), or ratings of another number of items."""
    try:
        pairs.check_rows(items)
    except DataError as error:
        raise FeaturesError(f"The pairs do not fit these features: {error}") from None
    if pairs.ratings is not None and len(pairs.ratings) != items:
        raise FeaturesError(
            f"The ratings have shape {list(pairs.ratings.shape)} for {items} items; expected [{items}, attributes]."
        )


def pair_columns(pairs: PreferencePairs) -> dict[str, Any]:
    """Columns of pairs.parquet."""
    columns = {name: getattr(pairs, name) for name in PAIR_SCHEMA.names}
    columns |= {name: value.numpy() for name, value in columns.items() if isinstance(value, Tensor)}
    columns |= {"prompt_id": pairs.prompt_id.tolist(), "strength": columns["strength"].astype(np.float32)}
    for name, usual in _OPTIONAL.items():
        values = getattr(pairs, name).numpy()
        if (values != usual).any():
            columns[name] = values
    return columns


def pair_bytes(columns: Mapping[str, Any]) -> bytes:
    """Content of pairs.parquet."""
    more = [pa.field(name, pa.float64()) for name in _OPTIONAL if name in columns]
    return table_bytes(columns, pa.schema([*PAIR_SCHEMA, *more]))


def item_bytes(columns: Mapping[str, Any], ratings: np.ndarray | None) -> bytes:
    """Content of items.parquet; `ratings` are [n, a]."""
    if ratings is None:
        return table_bytes(columns, ITEM_SCHEMA)
    kind = pa.list_(pa.float64(), ratings.shape[1])
    flat = pa.array(ratings.reshape(-1), pa.float64(), from_pandas=True)
    lists = pa.FixedSizeListArray.from_arrays(flat, type=kind)
    return table_bytes({**columns, "ratings": lists}, ITEM_SCHEMA.append(pa.field("ratings", kind)))


def table_bytes(columns: Mapping[str, Any], schema: pa.Schema) -> bytes:
    """A Parquet file's content; NaN is stored as null (`strength` that was not given)."""
    arrays = []
    for field in schema:
        try:
            given = columns[field.name]
            arrays.append(given if isinstance(given, pa.Array) else pa.array(given, field.type, from_pandas=True))
        except (UnicodeEncodeError, pa.ArrowException) as error:
            raise FeaturesError(
                f"Column {field.name} cannot be stored as {field.type}: {error}. Correct or leave out that column."
            ) from None
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def read_items(path: Path) -> dict[str, Any]:
    """Columns of items.parquet, as lists; `text_id` is None throughout in features made before it was kept."""
    table = _read(path, ITEM_SCHEMA, ("ratings",), absent="text_id")
    return table.select(ITEM_SCHEMA.names).to_pydict()


def read_ratings(path: Path) -> np.ndarray:
    """Ratings of items.parquet, float64 [n, a], NaN where there is none."""
    column = _read(path, ITEM_SCHEMA, ("ratings",), absent="text_id").column("ratings").combine_chunks()
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), column.type.list_size)


def read_pairs(path: Path) -> dict[str, Any]:
    """Columns of pairs.parquet as arrays (lists take too much memory); text as shared str objects or None."""
    table = _read(path, PAIR_SCHEMA, tuple(_OPTIONAL))
    columns: dict[str, Any] = {}
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        if name in ("source", "category", "split"):
            encoded = column.dictionary_encode()
            texts = np.array([*encoded.dictionary.to_pylist(), None], dtype=object)
            columns[name] = texts[encoded.indices.fill_null(len(texts) - 1).to_numpy()]
        else:
            columns[name] = column.to_numpy(zero_copy_only=False)
    columns["prompt_id"] = columns["prompt_id"].astype(np.str_)
    return columns


def _read(path: Path, schema: pa.Schema, optional: tuple[str, ...] = (), absent: str = "") -> pa.Table:
    """A table of this schema; it may have `optional` columns after it, and the column `absent` is added as nulls."""
    try:
        # A file handle: given a path, pyarrow looks for partitions in the names of its folders.
        with open(path, "rb") as handle:
            table = pq.read_table(handle)
        table.validate(full=True)  # texts are UTF-8
        if absent and absent not in table.column_names:
            table = table.append_column(schema.field(absent), pa.nulls(len(table), schema.field(absent).type))
        more = [name for name in table.column_names if name in optional]
        if not table.drop_columns(more).schema.equals(schema):
            raise pa.ArrowInvalid(
                f"it has the columns {', '.join(table.column_names)}, expected {', '.join(schema.names)}"
            )
    except (OSError, pa.ArrowException) as error:
        raise FeaturesError(
            f"{path} cannot be read: {error}. Delete this file and run the same command again: only it is made anew."
        ) from None
    return table
