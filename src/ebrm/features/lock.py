"""Lock of a features folder: one run at a time, and only for the features it was begun with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from ebrm.errors import EBRMError, FeaturesError, setting
from ebrm.features import manifest as manifests
from ebrm.features.distributed import World
from ebrm.features.manifest import MANIFEST
from ebrm.utils import locks
from ebrm.utils.outputs import tidy

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
    error: EBRMError | None = None
    with ExitStack() as held:
        if world.main:
            try:
                found = _inspect(out, identity, restart)
                if found is None or not found["complete"] or missing_files(out, found):
                    held.enter_context(_lock(out))
                    # Another run may have finished or begun in between.
                    if _inspect(out, identity, restart) is None:
                        discard(out)
                    tidy(out)
                elif any(out.glob(".*")):  # killed at its very end, or just ending
                    with suppress(EBRMError):
                        held.enter_context(_lock(out))
                        tidy(out)
            except EBRMError as caught:
                error = caught
        world.barrier(error)
        yield manifests.read_manifest(out) if (out / MANIFEST).exists() else None


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


@contextmanager
def _lock(out: Path) -> Iterator[None]:
    with ExitStack() as held:
        try:
            held.enter_context(locks.locked(out / _LOCK, f"features to {out}", FeaturesError))
        except OSError as error:
            raise FeaturesError(
                f"Features cannot be written to {out}: {error.strerror}. Choose another folder."
            ) from error
        yield
