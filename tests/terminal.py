"""Running `ebrm` in tests: in this process, or in one of its own where a signal or a limit is tested."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
WORDS = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta")


@dataclass(frozen=True)
class Ran:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str

    @property
    def value(self) -> dict[str, Any]:
        """What stood on stdout, as JSON."""
        return json.loads(self.out)


def ebrm(*arguments: object) -> Ran:
    """Run a command in this process."""
    from ebrm.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    return Ran(code, out.getvalue(), err.getvalue())


def ebrm_process(*arguments: object, before: str = "", **more: Any) -> Ran:
    """Run a command in a process of its own, after the Python statements `before`."""
    script = f"import sys\n{before}\nfrom ebrm.cli.main import main\nsys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True, text=True, timeout=300, env=child_environment(), **more,
    )  # fmt: skip
    return Ran(done.returncode, done.stdout, done.stderr)


def ebrm_forked(*arguments: object, before: Callable[[], None]) -> Ran:
    """Run a command in a copy of this process after `before`, which may set limits or stop it by a signal.

    As real a process as one started anew, without seconds of imports; a signal that ended it is a negative code.
    """
    from ebrm.cli.main import main

    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the one thread that could matter is ours
            process = os.fork()
        if process == 0:
            code = 1
            try:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                sys.stdout = open(1, "w", encoding="utf-8")  # noqa: SIM115
                sys.stderr = open(2, "w", encoding="utf-8")  # noqa: SIM115
                # Ctrl-C is ignored in what a shell starts in the background, and children inherit that.
                signal.signal(signal.SIGINT, signal.default_int_handler)
                before()
                code = main([str(argument) for argument in arguments])
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        status = os.waitpid(process, 0)[1]
        said = []
        for stream in (out, err):
            stream.seek(0)
            said.append(stream.read().decode())
    return Ran(os.waitstatus_to_exitcode(status), said[0], said[1])


def child_environment() -> dict[str, str]:
    """This process's environment, with the package where a child finds it."""
    path = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path}


def refused(ran: Ran, *words: str) -> None:
    """Assert the shape of a user's mistake: exit code 2, one paragraph on stderr that holds `words`, no traceback."""
    assert ran.code == 2, ran
    assert "Traceback" not in ran.err
    starts = [line for line in ran.err.splitlines() if line.startswith("ebrm: ")]
    assert len(starts) == 1, ran.err
    paragraph = ran.err[ran.err.index("ebrm: ") :]
    assert paragraph.strip()
    assert "\n\n" not in paragraph
    for word in words:
        assert word in paragraph, f"{word!r} is not in: {paragraph}"


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file under a folder with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def write_lines(path: Path, rows: list[Any]) -> Path:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def some_text(draw: random.Random, words: int = 6) -> str:
    """A few words."""
    return " ".join(draw.choice(WORDS) for _ in range(draw.randint(1, words)))


def preference_rows(count: int, seed: int = 0, prompt: str = "Question") -> list[dict[str, str]]:
    """Preference pairs of which two share each prompt; `prompt` is how prompts begin."""
    draw = random.Random(seed)
    rows = []
    for i in range(count):
        chosen, rejected = some_text(draw), some_text(draw)
        rows.append(
            {
                "prompt": f"{prompt} {i // 2}",
                "chosen": f"{chosen} {i}",
                "rejected": f"{rejected} {i}.",
                "category": WORDS[i % 2],
            }
        )
    return rows


def answer_rows(count: int, seed: int = 1) -> list[dict[str, Any]]:
    """Prompts with responses to score."""
    draw = random.Random(seed)
    return [{"id": i, "prompt": f"Question {i}", "response": some_text(draw)} for i in range(count)]
