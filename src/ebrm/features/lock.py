"""Lock of a features folder: one run at a time, and only for the features it was begun with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ebrm.errors import EBRMError, FeaturesError, setting
from ebrm.features import manifest as manifests
from ebrm.features.distributed import World
from ebrm.features.manifest import MANIFEST

_LOCK = ".lock"
_SHARDS = "shard-*.safetensors"


@contextmanager
def lock_folder(
    out: Path, identity: dict[str, Any], world: World, restart: bool = False
) -> Iterator[dict[str, Any] | None]:
    """Lock the folder `out` for writing, and make it if it is not there; yield its manifest if it has one.

    An unfinished folder without a shard holds no work, and does not stand in the way of other features. `restart`
    discards any unfinished one. A folder made here that is empty at the end is removed.
    """
    lock: FileLock | None = None
    error: EBRMError | None = None
    made = not out.exists()
    if world.main:
        try:
            found = _inspect(out, identity, restart)
            if found is None or not found["complete"] or missing_files(out, found):
                lock = _lock(out)
                # Another run may have finished or begun in between.
                if _inspect(out, identity, restart) is None:
                    discard(out)
                tidy(out)
            elif any(out.glob(".*")):  # killed at its very end, or just ending
                with suppress(EBRMError):
                    lock = _lock(out)
                    tidy(out)
        except EBRMError as caught:
            error = caught
    try:
        world.barrier(error)
        yield manifests.read_manifest(out) if (out / MANIFEST).exists() else None
    finally:
        if lock is not None:
            # Unlinked while it is held: whoever opened this file meanwhile finds it unlinked and tries anew.
            (out / _LOCK).unlink(missing_ok=True)
            lock.release()
            with suppress(OSError):  # it holds features, or another run has begun
                if made:
                    out.rmdir()


def missing_files(out: Path, manifest: dict[str, Any]) -> list[str]:
    """Files of the folder that are not there."""
    return [name for name in manifests.file_names(manifest) if not (out / name).exists()]


def discard(out: Path) -> None:
    """Remove the files of an unfinished folder, the manifest last; only under the lock."""
    for path in [*out.glob(_SHARDS), *(out / name for name in manifests.TABLES), out / MANIFEST]:
        path.unlink(missing_ok=True)


def _inspect(out: Path, identity: dict[str, Any], restart: bool) -> dict[str, Any] | None:
    """The manifest of a folder that may be written to or returned; None for one that holds nothing to go on with."""
    if not out.exists():
        return None
    if not out.is_dir():
        raise FeaturesError(f"{out} is a file; features need a folder. Choose another name.")
    if not (out / MANIFEST).exists():
        other = sorted(p.name for p in out.iterdir() if p.name != _LOCK and not p.match(".*.partial"))
        if other:
            seen = ", ".join(other[:3]) + (", …" if len(other) > 3 else "")
            raise FeaturesError(
                f"{out} is not empty and holds no features (it has {seen}, and no {MANIFEST}). Nothing was changed in "
                "it; choose another folder."
            )
        return None
    found = manifests.read_manifest(out)
    unlike = manifests.difference(manifests.identity(found), identity, "what is there", "this run")
    if not found["complete"] and (restart or (unlike is not None and not any(out.glob(_SHARDS)))):
        return None
    if unlike is not None and found["complete"]:
        raise FeaturesError(
            f"{out} holds other features than this run makes: {unlike}. Nothing was changed in it; choose another "
            "folder, or delete this one to make it anew."
        )
    if unlike is not None:
        raise FeaturesError(
            f"{out} holds the beginning of other features than this run makes: {unlike}. Nothing was changed in it; "
            f"choose another folder, or {setting('restart', True)} to discard what is there and begin anew."
        )
    if found["complete"]:
        faults = manifests.find_faults(out, found, verify=True)
        damaged = {name: fault for name, fault in faults.items() if fault != manifests.MISSING}
        if damaged:
            raise FeaturesError(manifests.fault_message(out, found, damaged))
    return found


def tidy(out: Path) -> None:
    """Remove partial files of killed processes; only under the lock."""
    for path in out.glob(".*.partial"):
        path.unlink()


def _lock(out: Path) -> FileLock:
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / _LOCK)
        lock.acquire(timeout=0)
    except Timeout:
        raise FeaturesError(
            f"Another run is writing features to {out}. Wait until it has finished (the same command then returns at "
            "once), or choose another folder."
        ) from None
    except OSError as error:
        raise FeaturesError(f"Features cannot be written to {out}: {error.strerror}. Choose another folder.") from error
    return lock
