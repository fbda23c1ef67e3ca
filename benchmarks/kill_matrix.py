"""Every command, ended at every file-system event of its run, and run again: is the content that of a run in peace?

    python -m benchmarks.kill_matrix [--commands fit,score] [--sample N] [--out FILE]

A command runs in a copy of this process, whose audit hook (`sys.addaudithook`) counts what it opens, renames, removes
and makes under its output. At one of these events the run is killed (SIGKILL), interrupted (SIGINT), or the disk is
full from then on (ENOSPC). Then the same command is given again: it must end with 0 (or refuse with 2 to do again what
is done), and every file must have the bytes of a run that nothing disturbed, but for `timing.json`; no other file may
be left. With the demonstration's reward model and features, so that nothing is downloaded. `--sample N` takes every Nth
event. Writes `benchmarks/kill_matrix.json`.
"""

from __future__ import annotations

import argparse
import errno
import io
import json
import os
import shutil
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ebrm.utils.files import TIMING, write_json

RESULTS = Path(__file__).with_name("kill_matrix.json")
ENDINGS = ("SIGKILL", "SIGINT", "ENOSPC")
#: Events that touch files, and which argument is a path.
_EVENTS = {
    "open": (0,), "os.rename": (0, 1), "os.remove": (0,), "os.mkdir": (0,), "os.rmdir": (0,), "os.truncate": (0,),
    "os.link": (1,), "os.symlink": (1,), "os.chmod": (0,), "shutil.rmtree": (0,), "shutil.move": (0, 1),
    "shutil.copyfile": (1,),
}  # fmt: skip
#: Those that need room on the disk; an `open` does if it is for writing.
_GROWING = ("os.mkdir", "os.link", "os.symlink", "shutil.copyfile")

Disturb = Callable[[int, str, Sequence[Any]], None]


@dataclass(frozen=True)
class Case:
    """A command with its arguments; `{out}` and `{cache}` lie in a folder of the run's own, `{in}` elsewhere."""

    name: str
    arguments: tuple[str, ...]


@dataclass
class Cells:
    """What became of a command: its events, and how many runs ended how after the same command was given again.

    Attributes:
        command: the command line.
        events: file-system events of a run in peace.
        kills: runs that were disturbed.
        equal: those after which the command gave the same content, and left nothing else.
        different: by the ending and the event, what was not as it should be; the first few.
    """

    command: str
    events: int = 0
    kills: int = 0
    equal: int = 0
    different: list[str] = field(default_factory=list)


CASES = (
    Case("features", ("features", "--backbone", "demo", "--data", "{in}/pairs.jsonl", "--out", "{out}", "--shard-rows",
                      "8")),
    Case("fit", ("fit", "--features", "{in}/features", "--out", "{out}")),
    Case("fit-energy", ("fit", "--features", "{in}/features", "--out", "{out}", "--head", "energy", "--epochs", "2",
                        "--joint-widths", "8,4")),
    Case("score", ("score", "{in}/model", "{in}/answers.jsonl", "--out", "{out}.jsonl")),
    Case("eval", ("eval", "demo", "--benchmark", "{in}/pairs.jsonl", "--out", "{out}", "--cache", "{cache}",
                  "--resamples", "100", "--permutations", "100")),
    Case("compare", ("compare", "{in}/features", "--methods", "base,residual", "--out", "{out}", "--resamples", "100")),
    Case("best-of-n", ("best-of-n", "{in}/pool.jsonl", "--reward", "reward", "--gold", "gold", "--out", "{out}",
                       "--resamples", "100")),
    Case("export", ("export", "{in}/model", "--out", "{out}")),
    Case("demo", ("demo", "--out", "{out}")),
)  # fmt: skip


# -- running a command -----------------------------------------------------------------------------------------------


def forked(work: Callable[[], int]) -> int:
    """The exit code of `work` in a copy of this process, negative for the signal that ended it; it says nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the one thread that matters is ours
        process = os.fork()
    if process == 0:
        code = 1
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
            sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
            signal.signal(signal.SIGINT, signal.default_int_handler)
            code = work()
        except BaseException:
            code = 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def command(case: Case, inputs: Path, room: Path) -> list[str]:
    """The command line of a case whose outputs lie in `room`."""
    places = {"in": inputs, "out": room / "out", "cache": room / "cache"}
    return [argument.format(**places) for argument in case.arguments]


def run(case: Case, inputs: Path, room: Path, disturb: Disturb | None = None) -> int:
    """Run a case in a copy of this process; `disturb(number, event, arguments)` is called at each of its events."""

    def work() -> int:
        from ebrm.cli.main import main

        if disturb is not None:
            _listen(room, disturb)
        return main(command(case, inputs, room))

    return forked(work)


def _listen(room: Path, disturb: Disturb) -> None:
    under, count = str(room) + os.sep, 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        places = _EVENTS.get(event)
        if places is None:
            return
        for place in places:
            path = arguments[place]
            if isinstance(path, str | bytes | os.PathLike) and os.fsdecode(path).startswith(under):
                count += 1
                disturb(count, event, arguments)
                return

    sys.addaudithook(hook)


def ending(how: str, at: int) -> Disturb:
    """What ends a run at event `at`: a signal, or a disk that is full from then on."""

    def disturb(number: int, event: str, arguments: Sequence[Any]) -> None:
        if how == "ENOSPC":
            writes = event in _GROWING or (event == "open" and _for_writing(arguments))
            if number >= at and writes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fsdecode(arguments[0]))
        elif number == at:
            os.kill(os.getpid(), getattr(signal, how))

    return disturb


def _for_writing(arguments: Sequence[Any]) -> bool:
    flags = arguments[2] if len(arguments) > 2 else 0
    return bool(isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def content(room: Path) -> dict[str, bytes]:
    """Every file that a run left, but for the seconds it took."""
    files = (path for path in sorted(room.rglob("*")) if path.is_file() and path.name != TIMING)
    return {path.relative_to(room).as_posix(): path.read_bytes() for path in files}


# -- the matrix ------------------------------------------------------------------------------------------------------


def matrix(case: Case, inputs: Path, scratch: Path, sample: int = 1, endings: Sequence[str] = ENDINGS) -> Cells:
    """Disturb a case at every `sample`-th of its events, give it again, and compare."""
    room = scratch / case.name
    seen, write = os.pipe()

    def fresh() -> None:
        shutil.rmtree(room, ignore_errors=True)
        room.mkdir(parents=True)

    fresh()
    code = run(case, inputs, room, lambda number, event, arguments: os.write(write, b".") and None)
    os.set_blocking(seen, False)
    cells = Cells("ebrm " + " ".join(command(case, Path("IN"), Path("."))))
    with suppress(BlockingIOError):
        while counted := os.read(seen, 2**16):
            cells.events += len(counted)
    os.close(seen)
    os.close(write)
    if code:
        raise RuntimeError(f"{cells.command} ended with {code}, undisturbed")
    expected = content(room)
    for at in range((sample + 1) // 2, cells.events + 1, sample):
        for how in endings:
            fresh()
            run(case, inputs, room, ending(how, at))
            done = content(room) == expected  # then `export` refuses to write again
            code, found = run(case, inputs, room), content(room)
            cells.kills += 1
            wrong = [f"exit code {code}"] * (code not in ((0, 2) if done else (0,))) + _differences(expected, found)
            if wrong:
                cells.different.append(f"{how} at event {at}: {'; '.join(wrong)}")
            else:
                cells.equal += 1
    shutil.rmtree(room)
    return cells


def _differences(expected: dict[str, bytes], found: dict[str, bytes]) -> list[str]:
    missing, left = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    other = sorted(name for name in expected.keys() & found.keys() if expected[name] != found[name])
    kinds = (("missing", missing), ("left", left), ("different", other))
    return [f"{kind}: {', '.join(names[:3])}" for kind, names in kinds if names]


def prepare(folder: Path) -> Path:
    """The inputs of all cases: pairs, answers and a pool of texts, some of the demonstration's features, a model."""
    texts = [f"answer {n} goes {'left' if n % 3 else 'right'} at the mill" for n in range(48)]
    pairs = [{"prompt": f"Question {n // 2}", "chosen": texts[n], "rejected": texts[47 - n]} for n in range(24)]
    answers = [{"prompt": f"Question {n}", "response": text} for n, text in enumerate(texts[:20])]
    pool = [
        {"prompt": f"Question {n // 4}", "response": text, "reward": n % 5, "gold": n % 3}
        for n, text in enumerate(texts)
    ]
    for name, rows in (("pairs", pairs), ("answers", answers), ("pool", pool)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def made() -> int:
        from ebrm.features import open_features, save_features
        from ebrm.fitting import fit
        from ebrm.heads import FitConfig

        demo = open_features("demo")
        save_features(demo.with_pairs(demo.pairs.select(slice(0, 60))), folder / "features")
        fit(open_features(folder / "features"), config=FitConfig(test_fraction=0.2)).model.save_pretrained(
            folder / "model"
        )
        return 0

    if forked(made):
        raise RuntimeError("the inputs could not be made")
    return folder


def load_modules(cases: Sequence[Case], inputs: Path, scratch: Path) -> None:
    """Run every command once in this process, so that its copies have loaded what they need."""
    import torch

    from ebrm.cli.main import main

    torch.set_num_threads(1)  # a copy of a process has none of its threads
    for case in cases:
        room = scratch / "loading"
        room.mkdir()
        said = io.StringIO()
        with redirect_stdout(said), redirect_stderr(said):
            code = main(command(case, inputs, room))
        if code:
            raise RuntimeError(f"{case.name} ended with {code}, undisturbed: {said.getvalue()[-500:]}")
        shutil.rmtree(room)


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The results as the Markdown table of docs/reliability.md."""
    lines = ["| command | events | runs ended | equal | different |", "|---|---|---|---|---|"]
    for one in found.values():
        numbers = " | ".join(f"{one[name]:,}" for name in ("events", "kills", "equal", "different"))
        lines.append(f"| `{one['command']}` | {numbers} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Disturb, compare, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commands", default=",".join(case.name for case in CASES), help="with commas between")
    parser.add_argument("--sample", type=int, default=1, help="take every so-manieth event")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    chosen = [case for case in CASES if case.name in given.commands.split(",")]
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="ebrm-kills-") as name:
        scratch = Path(name)
        (scratch / "in").mkdir()
        inputs = prepare(scratch / "in")
        load_modules(chosen, inputs, scratch)
        for case in chosen:
            cells = matrix(case, inputs, scratch, given.sample)
            found[case.name] = asdict(cells) | {"different": len(cells.different), "first": cells.different[:5]}
            print(f"{case.name}: {found[case.name]}", flush=True)
    write_json(given.out, {"sample": given.sample, "endings": list(ENDINGS), "commands": found})
    print(table(found))


if __name__ == "__main__":
    main()
