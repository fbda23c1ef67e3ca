"""Writing a features folder so that it can be stopped at any moment: the one path by which features reach the disk.

The order on disk: a lock, the manifest with `complete: false` (it pins what the folder is for), the two tables, the
shards, and the manifest with `complete: true` and the SHA-256 of every file. Each file appears whole, by a rename.
Nothing that depends on when or how often a run was stopped is written, so a resumed folder equals an unbroken one.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebrm.errors import EBRMError, FeaturesError
from ebrm.features import manifest as manifests
from ebrm.features.config import FeatureConfig
from ebrm.features.distributed import Ranks
from ebrm.features.lock import claim, missing_files
from ebrm.features.manifest import MANIFEST
from ebrm.features.shards import DTYPES, Shard, shard_bytes, shard_name, shard_size
from ebrm.features.store import Features, Pairs, assemble, check_pairs, open_features
from ebrm.features.tables import ITEM_SCHEMA, PAIR_SCHEMA, read_items, table_bytes
from ebrm.utils.files import atomic_path, sha256_file, sha256_json, write_json

logger = logging.getLogger(__name__)

_DISK_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


@dataclass(frozen=True)
class Source:
    """Where the numbers of a shard come from.

    Attributes:
        read: Gives embedding [m, d] and reward [m] of items start..stop, and reports progress by its third argument.
        where: What an item is called in an error ("train.jsonl:12, chosen").
        measure: Gives what is measured at the end, as further manifest entries.
    """

    read: Callable[[int, int, Callable[[int], None]], tuple[Tensor, Tensor]]
    where: Callable[[int], str]
    measure: Callable[[], dict[str, Any]] = field(default=dict)


#: Makes the shards of these numbers in other processes, reporting progress by its last argument, and gives what
#: `Source.measure` gives (nothing for a manifest that is complete).
Writer = Callable[[Path, dict[str, Any], Sequence[int], Callable[[int], None]], dict[str, Any]]


@dataclass(frozen=True)
class Plan:
    """All that is known before the first shard.

    Attributes:
        manifest: What is made, from what (see `ebrm.features.manifest.describe`).
        items: Columns of items.parquet; one that is left out is empty.
        pairs: The pairs.
        source: Where the numbers come from.
        amounts: What an item counts for in the progress [n].
        unit: The unit of those amounts.
        writer: Makes the shards instead of this process.
    """

    manifest: dict[str, Any]
    items: Mapping[str, Any]
    pairs: Pairs
    source: Source
    amounts: np.ndarray
    unit: str
    writer: Writer | None = None


def write_folder(out: Path, plan: Plan, found: dict[str, Any] | None, ranks: Ranks) -> Features:
    """Write what is missing in a claimed folder, finish it, and open it.

    Args:
        out: The folder.
        plan: What to write.
        found: The manifest that `claim` yielded.
        ranks: Process i of k makes shards i, i + k, …; the main process does the rest.

    Raises:
        FeaturesError: A number that is not finite or does not fit the number type, a full disk, or another content than
            the folder was begun with.
    """
    manifest = found if found is not None else plan.manifest
    _refuse_other_content(out, manifest, plan.manifest)
    todo = [number for number in range(manifests.shard_count(manifest)) if not _made(out, manifest, number)]
    ranks.agree()  # nobody writes before everybody has looked
    with _sharing_errors(ranks):
        if ranks.main:
            _begin(out, plan, manifest, found)
    with _sharing_errors(ranks):
        mine = todo[ranks.index :: ranks.count]
        size = manifest["shard_rows"]
        total = sum(int(plan.amounts[number * size : (number + 1) * size].sum()) for number in mine)
        with ranks.progress("features", total, plan.unit) as advance:
            if plan.writer is not None:
                measured = plan.writer(out, manifest, mine, advance)
            else:
                measured = None
                for number in mine:
                    write_shard(out, plan.source, manifest, number, advance)
    with _sharing_errors(ranks):
        if ranks.main:
            if measured is None and not manifest["complete"]:
                measured = plan.source.measure()
            _finish(out, manifest, measured or {})
    return assemble(out, manifests.read_manifest(out))


def save_features(features: Features, out: str | Path, settings: FeatureConfig | None = None) -> Features:
    """Write features to a folder: those held in memory, or others in another number type or shard size.

    Args:
        features: What to write.
        out: The folder; continued if it holds the beginning of the same features.
        settings: Number type and shard size.

    Raises:
        FeaturesError: As `write_folder`.
    """
    settings = settings or FeatureConfig()
    check_pairs(features.pairs, len(features))
    old = features.manifest
    data = old["data"] or {"fingerprint": _fingerprint(features)}
    manifest = old | {
        "complete": False,
        "files": {},
        "data": data,
        "embedding_dtype": settings.embedding_dtype,
        "shard_rows": settings.shard_rows,
        "items": len(features),
        "pairs": len(features.pairs),
    }
    if features.path is not None:
        items = read_items(features.path / "items.parquet")
    else:
        items = {
            "prompt_id": item_prompts(features.pairs, len(features)),
            "tokens": None,
            "truncated": None,
            "text_id": None,
        }

    def read(start: int, stop: int, advance: Callable[[int], None]) -> tuple[Tensor, Tensor]:
        advance(stop - start)
        return features.embedding(slice(start, stop)), features.reward[start:stop]

    source = Source(read, lambda item: f"item {item}")
    plan = Plan(manifest, items, features.pairs, source, np.ones(len(features), np.int64), "items")
    ranks, out = Ranks(), Path(out)
    with claim(out, manifests.identity(manifest), ranks) as found:
        if found is not None and found["complete"] and not missing_files(out, found):
            return open_features(out, verify=False)  # verified while it was claimed
        return write_folder(out, plan, found, ranks)


def item_prompts(pairs: Pairs, items: int) -> list[str | None]:
    """The prompt of every item, by the pairs it is in; None for an item in no pair."""
    prompts: list[str | None] = [None] * items
    for side in (pairs.chosen, pairs.rejected):
        for item, prompt in zip(side.tolist(), pairs.prompt_id.tolist(), strict=True):
            prompts[item] = prompt
    return prompts


def pair_columns(pairs: Pairs) -> dict[str, Any]:
    """Columns of pairs.parquet."""
    return {name: getattr(pairs, name) for name in PAIR_SCHEMA.names} | {"prompt_id": pairs.prompt_id.tolist()}


def _refuse_other_content(out: Path, found: dict[str, Any], planned: dict[str, Any]) -> None:
    # The identity is equal; what came of it must be too (it would not be after an update of the tokenizer).
    names = ("items", "pairs", "tokens", "embedding_size", "content")
    unlike = manifests.difference(
        {name: found.get(name) for name in names},
        {name: planned.get(name) for name in names},
        "what is there",
        "this run",
    )
    if unlike is not None:
        raise FeaturesError(
            f"The features in {out} were begun with the same reward model, text rule and data, but these now give "
            f"other texts or tokens: {unlike}. A tokenizer or library has changed; choose another folder."
        )


def _made(out: Path, manifest: dict[str, Any], number: int) -> bool:
    path = out / shard_name(number)
    if not path.exists():
        return False
    try:
        rows = manifests.rows_of_shard(manifest, number)
        Shard(path, rows, manifest["embedding_size"], manifest["embedding_dtype"])
    except (OSError, ValueError) as error:
        raise FeaturesError(manifests.fault_message(out, manifest, {path.name: f"is damaged: {error}"})) from None
    return True


def _begin(out: Path, plan: Plan, manifest: dict[str, Any], found: dict[str, Any] | None) -> None:
    left = _bytes_left(out, manifest)
    free = shutil.disk_usage(out).free
    if left > free:
        logger.warning("%s may not suffice: %s are still needed there and %s are free.", out, _size(left), _size(free))
    if found is None:
        _put_json(out, manifest)
    items = {name: _column(plan.items.get(name), manifest["items"]) for name in ITEM_SCHEMA.names}
    for name, columns, schema in (
        ("items.parquet", items, ITEM_SCHEMA),
        ("pairs.parquet", pair_columns(plan.pairs), PAIR_SCHEMA),
    ):
        if not (out / name).exists():
            _put(out, manifest, name, table_bytes(columns, schema))


def _column(value: Any, count: int) -> Any:
    return [None] * count if value is None else value


def write_shard(
    out: Path, source: Source, manifest: dict[str, Any], number: int, advance: Callable[[int], None]
) -> None:
    """Read and write one shard of a folder that has its manifest.

    Raises:
        FeaturesError: As `write_folder`.
    """
    start = number * manifest["shard_rows"]
    embedding, reward = source.read(start, start + manifests.rows_of_shard(manifest, number), advance)
    name = manifest["embedding_dtype"]
    stored = embedding.to(DTYPES[name])
    reward = reward.to(torch.float32)
    finite = embedding.isfinite().all(1) & reward.isfinite()
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0])
        what = "reward" if bool(embedding[row].isfinite().all()) else "embedding"
        raise FeaturesError(
            f"The {what} of {source.where(start + row)} is NaN or infinite. In float16 this is overflow in the reward "
            "model: "
            "read it in bfloat16 or float32. Otherwise its weights, or the imported numbers, are damaged."
        )
    fits = stored.isfinite().all(1)
    if not bool(fits.all()):
        row = int((~fits).nonzero()[0])
        raise FeaturesError(
            f"The embedding of {source.where(start + row)} reaches {float(embedding[row].abs().max()):.4g}, more than "
            f"{name} can hold ({torch.finfo(DTYPES[name]).max:.5g}). Choose another folder and embedding_dtype float32"
            f"{' or bfloat16' if name == 'float16' else ''}."
        )
    _put(out, manifest, shard_name(number), shard_bytes(stored, reward))


def _finish(out: Path, manifest: dict[str, Any], measured: dict[str, Any]) -> None:
    files = dict(manifest["files"])
    before = {name: entry for name, entry in files.items() if manifest["complete"]}
    for name in manifests.file_names(manifest):
        entry = {"bytes": (out / name).stat().st_size, "sha256": sha256_file(out / name)}
        if name in before and entry != before[name]:
            logger.warning(
                "%s was made anew and is not byte for byte what it was (another device or library version); its new "
                "checksum is recorded.", out / name,
            )  # fmt: skip
        files[name] = entry
    _put_json(out, manifest | measured | {"files": files, "complete": True})


def _put(out: Path, manifest: dict[str, Any], name: str, data: bytes) -> None:
    with _explaining_full_disk(out, manifest, name), atomic_path(out / name) as partial:
        partial.write_bytes(data)


def _put_json(out: Path, manifest: dict[str, Any]) -> None:
    with _explaining_full_disk(out, manifest, MANIFEST):
        write_json(out / MANIFEST, manifest)


@contextmanager
def _explaining_full_disk(out: Path, manifest: dict[str, Any], name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise FeaturesError(f"{out / name} cannot be written: {error.strerror}.") from error
        total, left = _bytes_all(manifest), _bytes_left(out, manifest)
        raise FeaturesError(
            f"{out / name} cannot be written: {error.strerror}. These features need about {_size(total)}, of which "
            f"{_size(total - left)} are there and {_size(left)} are still missing. Make room and run the same command "
            "again: finished shards are kept and not redone."
        ) from error


def _bytes_all(manifest: dict[str, Any]) -> int:
    return shard_size(manifest["items"], manifest["embedding_size"], manifest["embedding_dtype"])


def _bytes_left(out: Path, manifest: dict[str, Any]) -> int:
    return sum(
        shard_size(manifests.rows_of_shard(manifest, number), manifest["embedding_size"], manifest["embedding_dtype"])
        for number in range(manifests.shard_count(manifest))
        if not (out / shard_name(number)).exists()
    )


def _size(count: int) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"


@contextmanager
def _sharing_errors(ranks: Ranks) -> Iterator[None]:
    """All processes leave this block together, all with the error if one of them has one."""
    error: EBRMError | None = None
    try:
        yield
    except EBRMError as caught:
        error = caught
    ranks.agree(error)


def _fingerprint(features: Features) -> str:
    digest = hashlib.sha256(features.reward.numpy().tobytes())
    for start in range(0, len(features), 4096):
        digest.update(features.embedding(slice(start, start + 4096)).numpy().tobytes())
    pairs = {name: [str(value) for value in column] for name, column in pair_columns(features.pairs).items()}
    return sha256_json([digest.hexdigest(), pairs])
