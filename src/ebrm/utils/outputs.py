"""What an output may replace: never what a run reads, and only what ebrm wrote.

Results of several files are made in a folder `.work` inside the output and moved from there when all are complete, so
that a run that fails or is killed leaves what was there, and the next run finishes moving.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

from ebrm.errors import DataError, setting
from ebrm.utils.files import TIMING, is_stale, sha256_file, sha256_json, write_json
from ebrm.utils.locks import locked
from ebrm.utils.stored import read_json

#: What a run reads, by what people call it: "`data`" or "MODEL".
Inputs = Mapping[str, str | Path | Sequence[str | Path] | None]

RESULTS = "results.json"
#: What a folder of features is known by.
_FEATURES = "manifest.json"
_WORK, _NEW, _MOVED = ".work", "new", "files.json"
_OF_RUNS = re.compile(r"\.(.+\.)?(work|progress)|\..+\.partial")
#: Files of an input's folder that are looked at.
_FILES = 20_000


def place_of(out: str | Path) -> Path:
    """An output's absolute path, links followed.

    Raises:
        DataError: links that lead in a circle, or a place inside a folder that a run works in.
    """
    try:
        found = Path(out).resolve()
    except (RuntimeError, OSError) as error:
        raise DataError(f"out is {out}, which leads in a circle of links. Choose another name.") from error
    for part in (found, *found.parents):
        if _OF_RUNS.fullmatch(part.name):
            raise DataError(
                f"out is {out}, in {part}: under such names ebrm keeps the unfinished work of its runs, and removes it "
                "when they are done. Choose another name."
            )
    return found


def refuse_unmovable(out: Path, shown: str | Path) -> None:
    """DataError where a folder cannot be replaced as a whole: a mount point, or one that this process runs in."""
    here = Path.cwd()
    if here == out or out in here.parents:
        why = "is" if here == out else "holds"
        raise DataError(
            f"out is {shown}, which {why} the folder that this command runs in; a model's folder is put in place as a "
            "whole. Name a folder that does not exist yet."
        )
    if os.path.ismount(out):
        raise DataError(
            f"out is {shown}, which is a mount point; a model's folder is put in place as a whole. Name a folder in "
            f"it, such as {out / 'model'}."
        )


def refuse_replacing(out: Path, inputs: Inputs) -> None:
    """DataError where a folder that is to be replaced holds an input, or is part of one."""
    if not out.exists():
        return
    real = out.resolve()
    for name, given, path in _each(inputs):
        if path.resolve() in real.parents:
            raise DataError(
                f"out is {out}, which is part of what is read ({name}: {given}), so it is not replaced. Choose another "
                "name."
            )
        for place in dict.fromkeys((Path(os.path.abspath(path)), path.resolve(), *_linked(path))):
            if real == place or real in place.parents:
                where = "is" if place == real else "lies in"
                raise DataError(
                    f"{name} is {given}, which {where} the folder that would be replaced (out: {out}). Nothing was "
                    "changed; choose another name for what is written."
                )


def refuse_overwriting(targets: Iterable[Path], inputs: Inputs) -> None:
    """DataError where a file that would be written is one that is read, under whatever name or link."""
    there = {_inode(path): path for path in targets if path.exists()}
    if not there:
        return
    for name, given, path in _each(inputs):
        for file in [path] if not path.is_dir() else islice(path.rglob("*"), _FILES):
            if (target := there.get(_inode(file))) is not None:
                part = "which" if file == path else f"of which {file.relative_to(path)}"
                raise DataError(
                    f"out is {target}, and {name} is {given}, {part} is the same file: what is read is not "
                    "overwritten. Choose another name."
                )


def check_files(out: Path, names: Iterable[str], ours: Callable[[str], bool], overwrite: bool, by: str) -> None:
    """DataError where `out` has something under these names that is not this command's own, unless it may go.

    Args:
        out: a folder, perhaps not there.
        names: files that are to be written in it.
        ours: whether a file that is there was written by this command and is as it was.
        overwrite: replace also other files; folders never.
        by: the command.
    """
    there = [name for name in names if os.path.lexists(out / name)]
    folders = [name for name in there if (out / name).is_dir()]
    others = [name for name in there if not ours(name)]
    if others and (out / _FEATURES).is_file():
        raise DataError(
            f"out is {out}, which holds features ({_FEATURES}); its {' and '.join(others)} would be replaced, and is "
            "kept. Choose another name."
        )
    taken = folders or ([] if overwrite else others)
    if taken:
        changed = (
            "" if folders else f", or {setting('overwrite', True)} to replace {'it' if len(taken) == 1 else 'them'}"
        )
        raise DataError(
            f"out is {out}, which holds {' and '.join(taken)} that `ebrm {by}` did not write, or that changed since; "
            f"nothing was changed in it. Choose another name{changed}."
        )


@contextmanager
def results_folder(
    out: Path, by: str, names: Sequence[str], inputs: Inputs, overwrite: bool = False,
    ours: Callable[[str], bool] | None = None,
) -> Iterator[Path]:  # fmt: skip
    """Yield an empty folder for results, and move them to `out` when the body is done; one run at a time.

    `results.json`, if there is one, gets the `format` `ebrm-NAME-1` and `files`, the SHA-256 of all other files, by
    which a later run knows what it may replace. It is moved last.

    Args:
        out: the folder; other files in it stay.
        by: the command.
        names: what will be written for certain, so that it is refused before the work.
        inputs: what is read.
        overwrite: replace files that this command did not write.
        ours: whether a file in `out` is this command's; unset: as its `results.json` says.

    Raises:
        DataError: something else is there, an input would be overwritten, or another run writes to `out`.
    """
    place_of(out)
    kind = f"ebrm-{by}-1"
    known = ours or (lambda name: _is_listed(out, kind, name))
    with locked(out / ".lock", str(out)):
        work = out / _WORK
        _finish_moving(out)
        shutil.rmtree(work, ignore_errors=True)

        def check(files: Iterable[str]) -> None:
            refuse_overwriting([out / name for name in files], inputs)
            check_files(out, files, known, overwrite, by)

        check(names)
        try:
            new = work / _NEW
            new.mkdir(parents=True)
            yield new
            made = sorted(path.relative_to(new).as_posix() for path in new.rglob("*") if path.is_file())
            check(made)
            if RESULTS in made:
                # Of seconds no digest: the results would differ from run to run.
                sums = {name: None if name == TIMING else sha256_file(new / name) for name in made if name != RESULTS}
                before = {name: sha for name, sha in _listed(out, kind).items() if _is_listed(out, kind, name)}
                before.pop(RESULTS, None)
                results = read_json(new / RESULTS, "Results", error=DataError, do="Run the same command again.")
                write_json(new / RESULTS, {**results, "format": kind, "files": before | sums})
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
        write_json(work / _MOVED, made)  # from here on they are complete: what stops this run, the next one ends it
        _finish_moving(out)
        shutil.rmtree(work, ignore_errors=True)


def contents(given: str | Path | None, without: Path, whole: bool = True) -> str | None:
    """A digest of what a name of an input stands for: its files on this disk, or the name where it is none here.

    Args:
        given: file, folder or pattern, or a name on the Hub.
        without: a place in it that does not count, and the work beside it.
        whole: of files above 2 MiB all bytes, and not only their size and their first and last MiB.
    """
    if given is None:
        return None
    skipped, found = {without, *without.parent.glob(f".{glob.escape(without.name)}.*")}, []
    for _, _, path in _each({"": given}):
        listed = path / "manifest.json"  # of features; it holds the digests of all other files
        for file in [listed] if listed.is_file() else path.rglob("*") if path.is_dir() else [path]:
            real = file.resolve()
            if real.is_file() and not skipped.intersection((real, *real.parents)):
                name = file.name if file == path else file.relative_to(path).as_posix()
                found.append([name, sha256_file(real) if whole else _sha256_ends(real)])
    return sha256_json(sorted(found)) if found else str(given)


def _sha256_ends(path: Path, size: int = 2**20) -> str:
    length = path.stat().st_size
    if length <= 2 * size:
        return sha256_file(path)
    with open(path, "rb") as handle:
        digest = hashlib.sha256(str(length).encode() + handle.read(size))
        handle.seek(-size, os.SEEK_END)
        return hashlib.sha256(digest.digest() + handle.read()).hexdigest()


def tidy(folder: Path, name: str = "*") -> None:
    """Remove files and folders that dead processes left half written in a folder, under names of this pattern."""
    for path in folder.glob(f".{name}.*.partial"):
        if is_stale(path):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _finish_moving(out: Path) -> None:
    """Move complete results from the folder of work, those that an earlier run did not come to included."""
    work = out / _WORK
    try:
        made = read_json(work / _MOVED, "Moved", error=DataError, do="")
    except DataError:
        return
    for name in sorted(made, key=lambda name: (name == RESULTS, name)):
        if (work / _NEW / name).is_file():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(work / _NEW / name, out / name)


def _listed(out: Path, kind: str) -> dict[str, Any]:
    """Files and their SHA-256, as the results in a folder say."""
    found = _results(out)
    return {**found.get("files", {}), RESULTS: None} if found.get("format") == kind else {}


def _results(out: Path) -> dict[str, Any]:
    """The results in a folder; {} where there are none, or they cannot be read."""
    try:
        found: dict[str, Any] = read_json(out / RESULTS, "Results", error=DataError, do="")
    except DataError:
        return {}
    return found


def _is_listed(out: Path, kind: str, name: str) -> bool:
    listed = _listed(out, kind)
    if name not in listed or not (out / name).is_file():
        return False
    return listed[name] is None or listed[name] == sha256_file(out / name)


def _each(inputs: Inputs) -> Iterator[tuple[str, str | Path, Path]]:
    """(what it is called, as it was given, a place on this disk) of every input; names on the Hub have no place."""
    for name, given in inputs.items():
        for one in [] if given is None else [given] if isinstance(given, str | Path) else given:
            path = Path(one).expanduser()
            if os.path.lexists(path):
                yield name, one, path
            elif glob.has_magic(str(one)):
                yield from ((name, one, Path(found)) for found in glob.glob(str(path), recursive=True))


def _linked(path: Path) -> Iterator[Path]:
    """Where links in a folder lead."""
    if path.is_dir():
        yield from (file.resolve() for file in islice(path.rglob("*"), _FILES) if file.is_symlink())


def _inode(path: Path) -> tuple[int, int]:
    with suppress(OSError):
        found = path.stat()
        return found.st_dev, found.st_ino
    return -1, -1
