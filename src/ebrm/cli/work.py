"""The folder `.OUT.work` where a fit works until it is complete: what in it is worth keeping, for which settings."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ebrm.cli.console import Console
from ebrm.cli.values import show
from ebrm.errors import DataError
from ebrm.utils.files import changed, read_json, write_json

#: Says which settings the work was begun with.
_RECORD = "job.json"
#: What a fit leaves there, with the groups of settings that it depends on (none: all of them). Anything else in the
#: folder is made again in no time.
_PARTS: dict[str, tuple[str, ...]] = {
    "features/shard-*.safetensors": ("source", "reading"),
    "anchors/shard-*.safetensors": ("source", "reading", "anchors"),
    "checkpoint.safetensors": (),
}
#: Settings that change no number, or are told apart by what is stored.
_FREE = {"device", "token_budget", "trust_remote_code", "bad_rows", "restart"}
_KEPT = "What is finished is kept; run the same command again to go on."


def check_out(out: Path, overwrite: bool) -> None:
    """Refuse what is at `out`, unless it is empty, or a model that may be replaced.

    Raises:
        DataError: it is something else.
    """
    if out.is_dir() and any(out.iterdir()):
        if not overwrite:
            raise DataError(
                f"--out {out} exists already and is not empty; it was left as it is. Choose another name, or "
                "--overwrite to replace it."
            )
        if not (out / "config.json").is_file():
            raise DataError(
                f"--out {out} does not hold a model, so --overwrite does not replace it. Choose another name."
            )


@contextmanager
def work_folder(
    out: Path, settings: Mapping[str, Mapping[str, Any]], restart: bool, flag: Callable[[str], str], console: Console
) -> Iterator[Path]:
    """The folder beside `out` for the work; where the body fails before anything worth keeping, it goes.

    Args:
        out: what is made.
        settings: by group (`source`, `reading`, `anchors`, …), nested as they like.
        restart: discard what another run left.
        flag: a setting's dotted name as the option it came from.
        console: told what an interruption leaves.

    Raises:
        DataError: it holds work of other settings, without `restart`.
    """
    work = out.with_name(f".{out.name}.work")
    if (work / "old").is_dir() and not out.exists():  # stopped between the two renames at the very end
        (work / "old").rename(out)
    left = _left(work)
    if left and not restart:
        _refuse_other(work, left, settings, flag)
    if restart or not left:
        shutil.rmtree(work, ignore_errors=True)
    try:
        work.mkdir(parents=True, exist_ok=True)
        write_json(work / _RECORD, settings)
        yield work
    except BaseException:
        if _left(work):
            console.kept = _KEPT
        else:
            shutil.rmtree(work, ignore_errors=True)
        raise


def _left(work: Path) -> list[str]:
    """The parts that are there."""
    return [part for part in _PARTS if any(work.glob(part))]


def _refuse_other(
    work: Path, left: Sequence[str], settings: Mapping[str, Mapping[str, Any]], flag: Callable[[str], str]
) -> None:
    """DataError where what is left was made with other settings than these."""
    begun = _record(work)
    groups = {group for part in left for group in _PARTS[part] or settings}
    # As JSON, in which the record is.
    now = json.loads(json.dumps({group: settings[group] for group in settings if group in groups}))
    found = [
        one for one in changed({group: begun.get(group) for group in now}, now) if one[0].split(".")[-1] not in _FREE
    ]
    if begun and not found:
        return
    # Another kind of head has other settings altogether.
    kinds = [name.removesuffix("kind") for name, _, _ in found if name.endswith(".kind")]
    unlike = [
        f"{flag(name)} was {_typed(then)} and is {_typed(this)}" for name, then, this in found
        if name.endswith(".kind") or not name.startswith(tuple(kinds))
    ]  # fmt: skip
    what = "; ".join(unlike[:6]) + ("; …" if len(unlike) > 6 else "") if begun else "which cannot be read"
    raise DataError(
        f"{work} holds an unfinished fit with other settings ({what}). Give the settings it was begun with to finish "
        "it, or --restart to discard it and begin anew."
    )


def _record(work: Path) -> dict[str, Any]:
    try:
        found = read_json(work / _RECORD)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and "source" in found else {}


def _typed(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key}={show(item)}" for key, item in value.items()) or "unset"
    if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
        return " and ".join(value)
    return value if isinstance(value, str) else "unset" if value in (None, []) else show(value)


def place(path: str | None) -> str | None:
    """A local path so that it is the same from every folder; anything else as it is."""
    return os.path.abspath(path) if path is not None and os.path.exists(path) else path
