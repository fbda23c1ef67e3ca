"""Resumable writing of features folders: the one path by which features reach the disk.

The order on disk: a lock, the manifest with `complete: false` (it pins the folder's identity), the two tables, the
shards, each with a SHA-256 of its tensors in its header, and the manifest with `complete: true` and the SHA-256 of
every file. Each file appears whole, by a rename. What is found in an unfinished folder is not trusted: shards have to
have their SHA-256, also before the folder is finished, and tables what this run would write; else they are made again.
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

from ebrm.errors import FeaturesError, setting
from ebrm.features import manifest as manifests
from ebrm.features.config import FeatureConfig
from ebrm.features.distributed import World
from ebrm.features.lock import lock_folder, missing_files
from ebrm.features.manifest import MANIFEST
from ebrm.features.shards import DTYPES, Shard, shard_bytes, shard_size
from ebrm.features.store import (
    ITEM_SCHEMA,
    Features,
    assemble,
    check_pairs,
    item_bytes,
    open_features,
    pair_bytes,
    pair_columns,
    read_items,
)
from ebrm.pairs import PreferencePairs
from ebrm.utils.files import atomic_path, sha256_file, sha256_json, write_json

logger = logging.getLogger(__name__)

_DISK_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


@dataclass(frozen=True)
class ItemReader:
    """The numbers of items, and their names.

    Attributes:
        read: Embedding [m, d] and reward [m] of items start..stop; reports progress by its third argument.
        where: An item's name in an error ("train.jsonl:12, chosen").
        measure: Further manifest entries, measured at the end.
        tolerant: Whether the reward of an item may be NaN: it could not be read, and no pair has it when the features
            are opened.
    """

    read: Callable[[int, int, Callable[[int], None]], tuple[Tensor, Tensor]]
    where: Callable[[int], str]
    measure: Callable[[], dict[str, Any]] = field(default=dict)
    tolerant: bool = False


#: Writes the shards of these numbers in other processes, reporting progress by its last argument, and returns what
#: `ItemReader.measure` does (nothing for a manifest that is complete).
Writer = Callable[[Path, dict[str, Any], Sequence[int], Callable[[int], None]], dict[str, Any]]


@dataclass(frozen=True)
class Plan:
    """All that is known of a folder before the first shard.

    Attributes:
        manifest: See `ebrm.features.manifest.describe`.
        items: Columns of items.parquet; one that is left out is empty.
        pairs: The pairs.
        reader: The numbers of the items.
        amounts: Progress by item [n], in `unit`.
        writer: Writes the shards instead of this process.
    """

    manifest: dict[str, Any]
    items: Mapping[str, Any]
    pairs: PreferencePairs
    reader: ItemReader
    amounts: np.ndarray
    unit: str
    writer: Writer | None = None


def write_features(
    out: Path, manifest: dict[str, Any], plan: Callable[[], Plan], world: World, restart: bool = False
) -> Features:
    """Write or continue a features folder and open it; `plan` is called, under the lock, unless it is finished."""
    with lock_folder(out, manifests.identity(manifest), world, restart) as found:
        if found is not None and found["complete"] and not missing_files(out, found):
            return open_features(out, verify=False)  # verified while it was locked
        return _write(out, plan(), found, world)


def _write(out: Path, plan: Plan, found: dict[str, Any] | None, world: World) -> Features:
    manifest = found if found is not None else plan.manifest
    _refuse_other_content(out, manifest, plan.manifest)
    if not manifest["complete"]:
        manifest = plan.manifest | {"backbone": manifest["backbone"]}  # with the probe it was begun with
    with world.sharing_errors():
        if world.main and found is not None and not found["complete"]:
            _drop_damaged(out, manifest)
    shards = {number: out / manifests.shard_name(number) for number in range(manifests.shard_count(manifest))}
    todo = [number for number, path in shards.items() if not path.exists()]
    world.barrier()  # no process writes before all have looked
    with world.sharing_errors():
        if world.main:
            _begin(out, plan, manifest, found)
    with world.sharing_errors():
        mine = todo[world.rank :: world.size]
        size = manifest["shard_rows"]
        total = sum(int(plan.amounts[number * size : (number + 1) * size].sum()) for number in mine)
        with world.progress("features", total, plan.unit) as advance:
            measured = None if plan.writer is None else plan.writer(out, manifest, mine, advance)
            for number in mine if plan.writer is None else ():
                write_shard(out, plan.reader, manifest, number, advance)
    with world.sharing_errors():
        if world.main:
            if measured is None and not manifest["complete"]:
                measured = plan.reader.measure()
            if plan.reader.tolerant and not manifest["complete"]:
                measured = (measured or {}) | _not_finite(out, manifest, plan)
            _finish(out, manifest, measured or {})
    return assemble(out, manifests.read_manifest(out))


def _not_finite(out: Path, manifest: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """Manifest entries of items without a finite reward: pairs with them by kind, or reasons by text id."""
    bad = assemble(out, manifest).unread
    if bad is None:
        return {}
    kind = "NaN or infinite for the reward model"
    pairs = int((bad[plan.pairs.chosen] | bad[plan.pairs.rejected]).sum())
    found: dict[str, Any] = {"not_finite": int(bad.sum())}
    if pairs:
        found["bad_rows"] = (manifest.get("bad_rows") or {}) | {kind: pairs}
    if "refused" in manifest:
        ids = plan.items["text_id"]
        refused = manifest["refused"] | {ids[row]: f"{kind}" for row in bad.nonzero().flatten().tolist()}
        found |= {"refused": refused, "dropped_texts": len(refused)}
    return found


def save_features(features: Features, out: str | Path, config: FeatureConfig | None = None) -> Features:
    """Write features to a folder: those held in memory, or others in another number type or shard size.

    Raises:
        FeaturesError: As `extract_features`, of the folder and the numbers.
    """
    config = config or FeatureConfig()
    check_pairs(features.pairs, len(features))
    old = features.manifest
    data = old["data"] or {"fingerprint": _fingerprint(features)}
    manifest = old | {
        "complete": False, "files": {}, "data": data, "embedding_dtype": config.embedding_dtype,
        "shard_rows": config.shard_rows, "items": len(features), "pairs": len(features.pairs),
    }  # fmt: skip
    names, ratings = manifest.pop("ratings", None) or [], features.pairs.ratings
    if ratings is not None:
        count = ratings.shape[1]
        manifest["ratings"] = names if len(names) == count else [f"rating_{k}" for k in range(count)]
    items = {"prompt_id": item_prompts(features.pairs, len(features))}
    if features.path is not None:
        items = read_items(features.path / "items.parquet")

    def read(start: int, stop: int, advance: Callable[[int], None]) -> tuple[Tensor, Tensor]:
        advance(stop - start)
        return features.embedding(slice(start, stop)), features.reward[start:stop]

    reader = ItemReader(read, lambda item: f"item {item}")
    plan = Plan(manifest, items, features.pairs, reader, np.ones(len(features), np.int64), "items")
    return write_features(Path(out), manifest, lambda: plan, World(), config.restart)


def item_prompts(pairs: PreferencePairs, items: int) -> list[str | None]:
    """The prompt of every item, by the pairs it is in; None for an item in no pair."""
    prompts: list[str | None] = [None] * items
    for side in (pairs.chosen, pairs.rejected):
        for item, prompt in zip(side.tolist(), pairs.prompt_id.tolist(), strict=True):
            prompts[item] = prompt
    return prompts


def _refuse_other_content(out: Path, found: dict[str, Any], planned: dict[str, Any]) -> None:
    # The identity is equal; what came of it must be too (it would not be after an update of the tokenizer).
    names = ("items", "pairs", "tokens", "embedding_size", "content")
    ours, theirs = ({name: side.get(name) for name in names} for side in (found, planned))
    unlike = manifests.difference(ours, theirs, "what is there", "this run")
    if unlike is not None:
        raise FeaturesError(
            f"The features in {out} were begun with the same reward model, text rule and data, but these now give "
            f"other texts or tokens: {unlike}. A tokenizer or library has changed; choose another folder, or "
            f"{setting('restart', True)} to begin anew."
        )


def _drop_damaged(out: Path, manifest: dict[str, Any]) -> None:
    """Remove the shards of an unfinished folder that are not what was written, and say so."""
    damaged = {}
    for number in range(manifests.shard_count(manifest)):
        path = out / manifests.shard_name(number)
        if path.exists() and (fault := _fault(path, manifest, number)) is not None:
            damaged[path] = fault
    if damaged:
        named = "; ".join(f"{path.name}: {fault}" for path, fault in list(damaged.items())[:3])
        more = f"; and {len(damaged) - 3} more" if len(damaged) > 3 else ""
        logger.warning("%d shards in %s are damaged and are made again (%s%s).", len(damaged), out, named, more)
    for path in damaged:
        path.unlink()


def _fault(path: Path, manifest: dict[str, Any], number: int) -> str | None:
    """What is wrong with a shard that no manifest vouches for, None if nothing."""
    try:
        rows = manifests.rows_of_shard(manifest, number)
        Shard(path, rows, manifest["embedding_size"], manifest["embedding_dtype"]).verify(number)
    except (OSError, ValueError) as error:
        return str(error)
    return None


def _begin(out: Path, plan: Plan, manifest: dict[str, Any], found: dict[str, Any] | None) -> None:
    left = _bytes_left(out, manifest)
    free = shutil.disk_usage(out).free
    if left > free:
        logger.warning("%s may not suffice: %s are still needed there and %s are free.", out, _size(left), _size(free))
    if found != manifest:
        _put_json(out, manifest)
    items = {name: plan.items.get(name, [None] * manifest["items"]) for name in ITEM_SCHEMA.names}
    ratings = None if plan.pairs.ratings is None else plan.pairs.ratings.numpy()
    tables = {"items.parquet": item_bytes(items, ratings), "pairs.parquet": pair_bytes(pair_columns(plan.pairs))}
    for name, data in tables.items():
        there = (out / name).exists()
        if there and (manifest["complete"] or (out / name).read_bytes() == data):
            continue  # of a finished folder it was compared with the manifest
        if there:
            logger.warning("%s is damaged (it is not what this run writes) and is made again.", out / name)
        _put(out, manifest, name, data)


def write_shard(
    out: Path, reader: ItemReader, manifest: dict[str, Any], number: int, advance: Callable[[int], None]
) -> None:
    """Read and write one shard of a folder that has its manifest."""
    start = number * manifest["shard_rows"]
    embedding, reward = reader.read(start, start + manifests.rows_of_shard(manifest, number), advance)
    name = manifest["embedding_dtype"]
    stored = embedding.to(DTYPES[name])
    reward = reward.to(torch.float32)
    finite = embedding.isfinite().all(1) & (reward.isfinite() | (reward.isnan() & reader.tolerant))
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0])
        what = "reward" if bool(embedding[row].isfinite().all()) else "embedding"
        raise FeaturesError(
            f"The {what} of {reader.where(start + row)} is NaN or infinite. In float16 this is overflow in the reward "
            "model: read it in bfloat16 or float32. Otherwise its weights, or the imported numbers, are damaged."
        )
    fits = stored.isfinite().all(1)
    if not bool(fits.all()):
        row = int((~fits).nonzero()[0])
        raise FeaturesError(
            f"The embedding of {reader.where(start + row)} reaches {float(embedding[row].abs().max()):.4g}, more than "
            f"{name} can hold ({torch.finfo(DTYPES[name]).max:.5g}). Choose another folder and "
            f"{setting('embedding_dtype', 'float32')}{' or bfloat16' if name == 'float16' else ''}."
        )
    _put(out, manifest, manifests.shard_name(number), shard_bytes(stored, reward, number))


def _finish(out: Path, manifest: dict[str, Any], measured: dict[str, Any]) -> None:
    files = dict(manifest["files"])
    before = dict(files) if manifest["complete"] else {}
    for number in range(0 if manifest["complete"] else manifests.shard_count(manifest)):
        path = out / manifests.shard_name(number)
        if (fault := _fault(path, manifest, number)) is not None:
            raise FeaturesError(
                f"{path} was damaged after it had been written ({fault}): by another program, or by the disk. Run the "
                "same command again: damaged shards are made anew, others are kept."
            )
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
        total = shard_size(manifest["items"], manifest["embedding_size"], manifest["embedding_dtype"])
        left = _bytes_left(out, manifest)
        raise FeaturesError(
            f"{out / name} cannot be written: {error.strerror}. These features need about {_size(total)}, of which "
            f"{_size(total - left)} are there and {_size(left)} are still missing. Free some space and run the "
            "same command again: finished shards are kept and not redone."
        ) from error


def _bytes_left(out: Path, manifest: dict[str, Any]) -> int:
    missing = (n for n in range(manifests.shard_count(manifest)) if not (out / manifests.shard_name(n)).exists())
    rows = sum(manifests.rows_of_shard(manifest, number) for number in missing)
    return shard_size(rows, manifest["embedding_size"], manifest["embedding_dtype"])


def _size(count: int) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"


def _fingerprint(features: Features) -> str:
    digest = hashlib.sha256(features.reward.numpy().tobytes())
    for start in range(0, len(features), 4096):
        digest.update(features.embedding(slice(start, start + 4096)).numpy().tobytes())
    pairs = {name: [str(value) for value in column] for name, column in pair_columns(features.pairs).items()}
    ratings = features.pairs.ratings
    more = [] if ratings is None else [hashlib.sha256(ratings.numpy().tobytes()).hexdigest()]
    return sha256_json([digest.hexdigest(), pairs, *more])
