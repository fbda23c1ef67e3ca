"""Manifest of a features folder: its origin, its identity for resuming, and checksums of its files."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from ebrm.backbone import differing_parts
from ebrm.errors import FeaturesError
from ebrm.utils.files import sha256_file
from ebrm.utils.stored import checked, load_json

MANIFEST = "manifest.json"
TABLES = ("items.parquet", "pairs.parquet")
FORMAT = "ebrm-features"
FORMAT_VERSION = 1
MISSING = "is missing"
_NAMED = 5  # files that one message names

# A field that is not compared where both sides state the other one, which decides it.
_STANDS_FOR = {
    "name": "weights_fingerprint", "revision": "weights_fingerprint", "base": "weights_fingerprint",
    "template": "template_sha256",
}  # fmt: skip

# Equal in a folder that a run may continue or return.
_IDENTITY = ("origin", "backbone", "text", "data", "embedding_dtype", "shard_rows")


def describe(
    *, origin: str, backbone: dict[str, Any] | None = None, text: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None, embedding_size: int = 0, embedding_dtype: str = "float32", shard_rows: int = 1,
    items: int = 0, pairs: int = 0, **more: Any,
) -> dict[str, Any]:  # fmt: skip
    """The manifest of a run that is about to start; `more` are further entries (`ratings`, `refused`, `pairing`, …)."""
    given = {
        "origin": origin, "backbone": backbone, "text": text, "data": data, "embedding_dtype": embedding_dtype,
        "embedding_size": embedding_size, "shard_rows": shard_rows, "items": items, "pairs": pairs,
    }  # fmt: skip
    unknown: dict[str, Any] = {
        "complete": False, "tokens": None, "truncated": 0, "dropped": 0, "dropped_texts": 0, "content": None,
        "batch_drift": None, "files": {},
    }  # fmt: skip
    return {"format": FORMAT, "format_version": FORMAT_VERSION} | given | unknown | more


def read_manifest(path: Path) -> dict[str, Any]:
    """The checked manifest of a folder; FeaturesError where there is none, it is not ours, or of another format."""
    if not path.is_dir():
        raise FeaturesError(f"There is no folder {path}. Make features with `ebrm features`, or correct the path.")
    file, again = path / MANIFEST, "Copy the folder again, or delete it and make the features anew."
    if not file.exists():
        raise FeaturesError(
            f"{path} holds no features: there is no {MANIFEST} in it. Make features with `ebrm features`."
        )
    manifest = load_json(file, error=FeaturesError, do=again)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise FeaturesError(f"{file} is not the manifest of an ebrm features folder. Check the path. {again}")
    version = manifest.get("format_version")
    if type(version) is int and version != FORMAT_VERSION:
        raise FeaturesError(
            f"The features in {path} have format version {version}; this ebrm reads version "
            f"{FORMAT_VERSION}. Use the version of ebrm that made them, or make them anew."
        )
    found: dict[str, Any] = checked(manifest, "Manifest", str(file), error=FeaturesError, do=again)
    stated = found["backbone"]
    if found["origin"] == "extracted" and "weights_fingerprint" in (stated or {}) and not _is_full(stated):
        raise FeaturesError(
            f"The features in {path} were made by an earlier version: their manifest does not state the reward model's "
            "configuration and tokenizer, by which a changed one is known. Delete the folder and make them again."
        )
    return found


def read_finished(path: Path, verify: bool = True) -> dict[str, Any]:
    """The manifest of a folder that is finished and whole.

    Args:
        path: the folder.
        verify: compare the SHA-256 of every file (reads everything once), not only its size.

    Raises:
        FeaturesError: no features there, unfinished ones, a newer format, or damaged or missing files (all named).
    """
    manifest = read_manifest(path)
    if not manifest["complete"]:
        made = len(list(path.glob("shard-*.safetensors")))
        raise FeaturesError(
            f"The features in {path} are unfinished: {made} of {shard_count(manifest)} shards are there. "
            f"{remedy(manifest, 'finish')}"
        )
    if faults := find_faults(path, manifest, verify=verify):
        raise FeaturesError(fault_message(path, manifest, faults))
    return manifest


def shard_name(number: int) -> str:
    """File name of shard `number`, counted from 0."""
    return f"shard-{number:05d}.safetensors"


def shard_count(manifest: dict[str, Any]) -> int:
    """Number of shards."""
    return -(-manifest["items"] // manifest["shard_rows"])


def rows_of_shard(manifest: dict[str, Any], number: int) -> int:
    """Number of items in shard `number`."""
    return min(manifest["shard_rows"], manifest["items"] - number * manifest["shard_rows"])


def file_names(manifest: dict[str, Any]) -> Iterator[str]:
    """Every file the manifest vouches for."""
    yield from TABLES
    yield from map(shard_name, range(shard_count(manifest)))


def find_faults(path: Path, manifest: dict[str, Any], verify: bool) -> dict[str, str]:
    """What is wrong with the files of a complete folder: file name -> "is missing" or "is damaged: …"."""
    faults = {}
    for name in file_names(manifest):
        if name not in manifest["files"]:
            faults[name] = f"is not listed in {MANIFEST}"
            if len(faults) > _NAMED:  # as many as are named, of perhaps millions
                break
            continue
        size, digest = manifest["files"][name]["bytes"], manifest["files"][name]["sha256"]
        file = path / name
        if not file.is_file():
            faults[name] = MISSING
        elif file.stat().st_size != size:
            faults[name] = f"is damaged: it has {file.stat().st_size} bytes, expected {size}"
        elif verify and sha256_file(file) != digest:
            faults[name] = "is damaged: its SHA-256 is not the one in the manifest"
    return faults


def fault_message(path: Path, manifest: dict[str, Any], faults: dict[str, str]) -> str:
    """One paragraph that names up to five faulty files and the remedy."""
    named = [f"{name} {what}" for name, what in list(faults.items())[:_NAMED]]
    if len(faults) > _NAMED:
        named.append(f"and {len(faults) - _NAMED} more files likewise")
    damaged = [name for name, what in faults.items() if what != MISSING]
    return f"The features in {path} cannot be used: {'; '.join(named)}. {remedy(manifest, 'repair', bool(damaged))}"


def remedy(manifest: dict[str, Any], what: str, delete: bool = False) -> str:
    """Remedy for an unfinished (`finish`) or faulty (`repair`) folder."""
    command = {
        "extracted": "run `ebrm features` again with the same options",
        "imported": "import again with the same options",
    }.get(manifest["origin"], "write them again, or copy the folder again")
    if what == "finish":
        return f"To finish, {command}: finished shards are not redone."
    first = "Delete the damaged files named here and " if delete else ""
    return f"{first}{command if first else command[0].upper() + command[1:]}: only what is missing is made anew."


def identity(manifest: dict[str, Any]) -> dict[str, Any]:
    """The part of a manifest that is equal in a folder that a run may continue or return."""
    return {name: manifest[name] for name in _IDENTITY}


def difference(
    ours: Any, theirs: Any, here: str, there: str, common: bool = False, ignore: Collection[str] = ()
) -> str | None:
    """The first fields (`common`: of those both state) in which two identities differ, with both sides; or None.

    Reward models that are stated in full are compared in all that decides their rewards; their probe is not.
    """
    ours, theirs, unlike = _apart(ours, theirs, here, there, ignore)
    left, right = _flatten(ours), _flatten(theirs)
    for name in sorted(set(left) | set(right)):
        if common and (left.get(name) is None or right.get(name) is None):
            continue
        prefix, _, last = name.rpartition(".")
        digest = f"{prefix}.{_STANDS_FOR.get(last)}".removeprefix(".")
        if last in ignore or (left.get(digest) is not None and right.get(digest) is not None):
            continue
        if left.get(name) != right.get(name):
            unlike.append(f"{name} is {_short(left.get(name))} for {here} and {_short(right.get(name))} for {there}")
    return "; ".join(unlike[:4]) or None


def _apart(ours: Any, theirs: Any, here: str, there: str, ignore: Collection[str]) -> tuple[Any, Any, list[str]]:
    """What is left to compare beside reward models that both sides state in full, and how these differ."""
    if not (isinstance(ours, dict) and isinstance(theirs, dict)):
        return ours, theirs, []
    if _is_full(ours) and _is_full(theirs):
        return {}, {}, differing_parts(ours, theirs, f"for {here}", f"for {there}", ignore)
    if "weights_fingerprint" in ours and "weights_fingerprint" in theirs and _is_full(ours) != _is_full(theirs):
        side = there if _is_full(ours) else here
        return {}, {}, [f"configuration and tokenizer are not stated for {side} (made by an earlier version)"]
    if not (_is_full(ours.get("backbone")) and _is_full(theirs.get("backbone"))):
        return ours, theirs, []
    unlike = differing_parts(ours["backbone"], theirs["backbone"], f"for {here}", f"for {there}", ignore)
    left, right = ({name: value for name, value in side.items() if name != "backbone"} for side in (ours, theirs))
    return left, right, unlike


def _is_full(identity: Any) -> bool:
    return isinstance(identity, dict) and {"weights_fingerprint", "config", "tokenizer"} <= identity.keys()


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value} if prefix else {}
    if "weights_fingerprint" in value:
        value = {"layers": [], **value}  # left out of a reward model's identity where none was read
    flat = (_flatten(entry, f"{prefix}.{key}" if prefix else str(key)) for key, entry in value.items())
    return {name: entry for part in flat for name, entry in part.items()}


def _short(value: Any) -> str:
    if value is None:
        return "not stated"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else text[:97] + "…"
