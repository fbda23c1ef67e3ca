"""The folder `.OUT.work`, where a fit works until it is complete, and the way of its model from there to its place.

What in it is worth keeping for which settings, and what becomes of a model that is there already.
"""

from __future__ import annotations

import glob
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
from ebrm.hub import is_model
from ebrm.utils.files import changed, is_stale, write_json
from ebrm.utils.locks import lock_beside, locked
from ebrm.utils.neutral import shorten_line
from ebrm.utils.outputs import place_of, refuse_unmovable, tidy
from ebrm.utils.stored import read_json

#: Says which settings the work was begun with.
_RECORD = "job.json"
#: The model while it is written, when it is complete, and one that it replaces.
_MADE, _NEW, _OLD = "model", "new", "old"
#: What a fit leaves there, with the groups of settings that it depends on (none: all of them). Anything else in the
#: folder is made again in no time.
_PARTS: dict[str, tuple[str, ...]] = {
    "features/shard-*.safetensors": ("source", "reading"),
    "anchors/shard-*.safetensors": ("source", "reading", "anchors"),
    "checkpoint.safetensors": ("source", "reading", "anchors", "head", "fit"),
    f"{_NEW}/config.json": (),
}
#: Settings that change no number, or are told apart by what is stored.
FREE = {"device", "token_budget", "trust_remote_code", "bad_rows", "restart"}
_KEPT = "What is finished is kept; run the same command again to go on."
#: What goes with a model that is replaced even where the new one has none.
_OF_OLD = ("report.html",)

Settings = Mapping[str, Mapping[str, Any]]


@contextmanager
def model_place(shown: str) -> Iterator[tuple[Path, bool]]:
    """The place of a model's folder, held against other runs, and whether a finished model was just put there.

    That is the end of an earlier run which was stopped while it did so.

    Raises:
        DataError: the place cannot be replaced as a whole, or another run holds it.
    """
    out = place_of(shown)
    refuse_unmovable(out, shown)
    with locked(lock_beside(out), str(shown)):
        tidy(out.parent, glob.escape(out.name))
        yield out, _bring_to_end(work_of(out), out)


def work_of(out: Path) -> Path:
    """The folder of work beside a model's place."""
    return out.with_name(f".{out.name}.work")


def check_out(out: Path, overwrite: bool, unlike: Sequence[str] = ()) -> None:
    """Refuse what is at `out`, unless it is empty, or a model that may be replaced.

    Args:
        out: the place of the model.
        overwrite: whether a model may be replaced.
        unlike: settings in which a model there differs from the one that is asked for.

    Raises:
        DataError: it is something else.
    """
    if out.is_dir() and any(out.iterdir()):
        if not overwrite:
            other = f" and was fitted with other settings ({'; '.join(unlike)})" if unlike else " and is not empty"
            also = ", or --overwrite to replace it" if is_model(out) else ""
            raise DataError(f"--out {out} exists already{other}; it was left as it is. Choose another name{also}.")
        if not is_model(out):
            raise DataError(
                f"--out {out} does not hold a model of `ebrm fit`, so --overwrite does not replace it. Choose another "
                "name."
            )


@contextmanager
def work_folder(
    out: Path, settings: Settings, restart: bool, flag: Callable[[str], str], console: Console
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
    work = work_of(out)
    left = _left(work)
    if left and not restart:
        _refuse_other(work, left, settings, flag)
    if restart or not left:
        shutil.rmtree(work, ignore_errors=True)
    for partial in work.rglob(".*.partial"):  # of a killed run
        if is_stale(partial):
            partial.unlink(missing_ok=True)
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


def finished(work: Path) -> bool:
    """Whether the model in the work is complete, and only has to be put in its place."""
    return (work / _NEW).is_dir()


def forget(work: Path, settings: Settings) -> None:
    """Remove work of these very settings, whose model is in its place."""
    if work.is_dir() and not differences(_record(work), settings, str):
        shutil.rmtree(work, ignore_errors=True)


def fresh_model(work: Path) -> Path:
    """Where the model is written; what a killed run left there goes."""
    shutil.rmtree(work / _MADE, ignore_errors=True)
    return work / _MADE


def put_in_place(work: Path, out: Path, overwrite: bool) -> list[str]:
    """Put the complete model at `out`, and in it the user's own files from a model that it replaces; gives their names.

    Killed between any two of its steps, the next run (`_bring_to_end`) ends with the same.
    """
    if (work / _MADE).is_dir():
        (work / _MADE).rename(work / _NEW)  # from here on it is complete
    check_out(out, overwrite)  # again: a fit is long
    if out.exists():
        out.rename(work / _OLD)
    else:
        (work / _OLD).mkdir()  # says that the new model is on its way
    return _end(work, out)


def _end(work: Path, out: Path) -> list[str]:
    moved = _move_own_files(work)
    (work / _NEW).rename(out)
    _remove(work, out)
    return moved


def _remove(work: Path, out: Path) -> None:
    """Remove the work; nobody takes what is left when this is stopped for unfinished work."""
    rest = out.with_name(f".{out.name}.{os.getpid()}.partial")
    work.rename(rest)
    shutil.rmtree(rest, ignore_errors=True)


def _bring_to_end(work: Path, out: Path) -> bool:
    """End a replacement that was stopped: with the new model where it is complete (True), else with the old one."""
    if not (work / _OLD).is_dir():
        return False
    if out.exists():
        if finished(work):
            raise DataError(
                f"{work} holds a finished model ({_NEW}) and the one that it was to replace ({_OLD}), and meanwhile "
                f"something else was put at --out {out}. Move that, or both of these, to another place."
            )
        _remove(work, out)
        return True
    if finished(work):
        _end(work, out)
        return True
    (work / _OLD).rename(out)
    return False


def _move_own_files(work: Path) -> list[str]:
    """Move what the new model has no file for, from the old one."""
    moved = []
    for path in sorted((work / _OLD).iterdir()) if (work / _OLD).is_dir() else []:
        is_rest = path.name.startswith(".") and path.name.endswith(".partial")
        if path.name not in _OF_OLD and not is_rest and not os.path.lexists(work / _NEW / path.name):
            path.rename(work / _NEW / path.name)
            moved.append(path.name)
    return moved


def differences(then: Settings, now: Settings, flag: Callable[[str], str]) -> list[str]:
    """In which settings two fits differ that would give other numbers, as sentences' parts."""
    # As JSON, in which records are.
    then, now = (json.loads(json.dumps(one)) for one in (then, now))
    found = [one for one in changed(dict(then), dict(now)) if one[0].split(".")[-1] not in FREE]
    # Features in place of a reward model leave out a whole group, which its other name says.
    found = [one for one in found if not (one[0].startswith("reading") and one[0].count(".") < 2)] or found[:1]
    # Another kind of head has other settings altogether.
    kinds = [name.removesuffix("kind") for name, _, _ in found if name.endswith(".kind")]
    return [
        f"{flag(name)} has other contents" if name.startswith("contents.")
        else f"{flag(name)} was {_typed(then)} and is {_typed(this)}"
        for name, then, this in found
        if name.endswith(".kind") or not name.startswith(tuple(kinds))
    ]  # fmt: skip


def _left(work: Path) -> list[str]:
    """The parts that are there."""
    return [part for part in _PARTS if any(work.glob(part))]


def _refuse_other(work: Path, left: Sequence[str], settings: Settings, flag: Callable[[str], str]) -> None:
    """DataError where what is left was made with other settings than these."""
    begun = _record(work)
    groups = {group for part in left for group in _PARTS[part] or settings}
    now = {group: settings[group] for group in settings if group in groups}
    unlike = differences({group: begun.get(group) or {} for group in now}, now, flag)
    if begun and not unlike:
        return
    what = "; ".join(unlike[:6]) + ("; …" if len(unlike) > 6 else "") if begun else "which cannot be read"
    raise DataError(
        f"{work} holds an unfinished fit with other settings ({what}). Give the settings it was begun with to finish "
        "it, or --restart to discard it and begin anew."
    )


def _record(work: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = read_json(work / _RECORD, "FitJob", error=DataError, do="")
    except DataError:
        return {}
    return found


def _typed(value: Any) -> str:
    if isinstance(value, dict):
        words = " ".join(f"{key}={show(item)}" for key, item in value.items()) or "unset"
    elif isinstance(value, list) and value and all(isinstance(one, str) for one in value):
        words = " and ".join(value)
    else:
        words = value if isinstance(value, str) else "unset" if value in (None, []) else show(value)
    return shorten_line(words, 200)


def place(path: str | None) -> str | None:
    """A local path so that it is the same from every folder; anything else as it is."""
    return os.path.abspath(path) if path is not None and os.path.exists(path) else path
