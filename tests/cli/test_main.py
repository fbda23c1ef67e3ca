from __future__ import annotations

import errno
from pathlib import Path

import pytest
from tests.terminal import ebrm, ebrm_process, refused

from ebrm import __version__
from ebrm.cli import info
from ebrm.cli.main import explain, main
from ebrm.errors import DataError

HEAVY = ("torch", "transformers", "datasets", "numpy", "pyarrow", "pandas", "scipy", "matplotlib", "yaml")


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Make `ebrm info` fail."""

    def fail(path: str) -> None:
        raise error

    monkeypatch.setattr(info, "read", fail)


def test_help_loads_nothing_heavy() -> None:
    before = f"import atexit\natexit.register(lambda: print([n for n in {HEAVY} if n in sys.modules], file=sys.stderr))"
    for words in ((), ("fit",), ("compare",)):
        ran = ebrm_process(*words, "--help", before=before)
        assert (ran.code, ran.err) == (0, "[]\n")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands_and_options(shell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("cyclopts.completion.detect.detect_shell", lambda: shell)
    ran = ebrm("--install-completion")
    assert ran.code == 0, ran.err
    written = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    for word in ("best-of-n", "restart", "backbone-head"):
        assert word in written


def test_help_lists_the_commands_in_the_order_of_the_work() -> None:
    ran = ebrm("--help")
    assert ran.code == 0
    places = [ran.out.index(f"  {name} ") for name in ("fit", "score", "features", "info", "demo")]
    assert places == sorted(places)
    assert ebrm().out == ran.out


@pytest.mark.parametrize("columns", ["40", "80"])
@pytest.mark.parametrize("name", [(), ("fit",), ("score",), ("features",), ("info",), ("demo",)])
def test_help_fits_the_width(monkeypatch: pytest.MonkeyPatch, columns: str, name: tuple[str, ...]) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    ran = ebrm(*name, "--help")
    assert ran.code == 0
    # Option names, examples and unbreakable words are never cut; everything that can wrap does.
    long = [line for line in ran.out.splitlines() if len(line) > int(columns) and len(line.split()) > 4]
    assert [line for line in long if not line.startswith("  ebrm ")] == []


def test_version() -> None:
    assert ebrm("--version").out == f"ebrm {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nothing",), ("There is no command nothing", "best-of-n")),
        (("inf",), ("Did you mean `info`?",)),
        (("info",), ("PATH", "ebrm info --help")),
        (("info", "a", "b"), ("b is more than this command takes",)),
        (("--verson",), ("--verson", "ebrm --help")),
        (("fit", "--out"), ("--out needs a value",)),
        (("score", "m", "in.jsonl", "--ot", "x"), ("--ot", "Did you mean --out?")),
        (("compare", "f", "--window", "-1"), ("--window has 1 values; expected 2",)),
        (("info", "x", "--jsn"), ("--jsn", "--json")),
        (("score", "m", "in.jsonl"), ("--out is needed",)),
        (("score", "m", "in.jsonl", "--out", "o.txt"), (".jsonl, .csv or .parquet",)),
        (("fit", "--out", "m"), ("--backbone and --data, or --features",)),
        (("fit", "--out", "m", "--data", "d"), ("--backbone is needed",)),
        (("fit", "--out", "m", "--head", "energy", "--size", "huge"), ("small, large",)),
        (("fit", "--features", "nowhere", "--out", "m"), ("nowhere",)),
    ],
)
def test_mistakes_in_typing(
    arguments: tuple[str, ...], words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(ebrm(*arguments), *words)


def test_an_error_for_machines_also_where_the_flag_is_before_the_command() -> None:
    for words in (("info", "/no/\u2028 ü", "--json"), ("--json", "info", "/no/\u2028 ü")):
        ran = ebrm(*words)
        assert ran.code == 2 and ran.value["error"]["kind"] == "ModelError"
        assert "neither a folder here nor" in ran.value["error"]["message"] and "neither a folder" in ran.err


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "No space left"), (errno.EACCES, "Permission denied"), (errno.EFBIG, "File too large"),
        (errno.EEXIST, "Choose another name"), (errno.EDQUOT, "quota"), (errno.EROFS, "can be written"),
    ],
)  # fmt: skip
def test_the_system_refuses(monkeypatch: pytest.MonkeyPatch, number: int, words: str) -> None:
    failing(monkeypatch, OSError(number, "…", "/some/file"))
    refused(ebrm("info", "x"), words, "/some/file")


def test_safetensors_reports_the_system_in_its_own_way() -> None:
    class SafetensorError(Exception):
        pass

    for said in ("I/O error: No space left on device (os error 28)", "IoError(Os { code: 28, kind: StorageFull })"):
        assert "No space left" in str(explain(SafetensorError(said)))
    assert explain(SafetensorError("header too small")) is None


@pytest.mark.parametrize("defect", [ValueError("ours"), OSError("without a number"), KeyError("x"), AssertionError()])
def test_a_defect_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, defect: Exception) -> None:
    failing(monkeypatch, defect)
    with pytest.raises(type(defect)):
        main(["info", "x"])
    before = "import ebrm.cli.info as info\ndef fail(path): raise ValueError('ours')\ninfo.read = fail"
    if isinstance(defect, ValueError):
        ran = ebrm_process("info", "x", before=before)
        assert ran.code == 1
        assert "Traceback" in ran.err


def test_an_interruption(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, KeyboardInterrupt())
    ran = ebrm("info", "x")
    assert ran.code == 130
    assert ran.err == "ebrm: Interrupted. Nothing was written.\n"


def test_a_reader_that_has_gone() -> None:
    before = (
        "import os, ebrm.cli.info as info\nread_end, write_end = os.pipe()\nos.close(read_end)\nos.dup2(write_end, 1)\n"
        "info.read = lambda path: ('model', {})\ninfo.model_facts = lambda path, values: [('a', 'b')]"
    )
    ran = ebrm_process("info", "x", before=before)
    assert ran.code == 1
    assert ran.err == ""


def test_an_error_with_odd_characters_stays_one_paragraph(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, DataError("a\x1b[2Jb \x00 ü 🙂:\n  first\n\n\n  second \r\n"))
    refused(ebrm("info", "x"), "a\\x1b[2Jb \\x00 ü 🙂", "\n  first\n  second\n")


def test_environment_and_log_levels_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    import logging
    import os

    monkeypatch.delenv("TRANSFORMERS_VERBOSITY", raising=False)
    level, handlers = logging.getLogger("ebrm").level, list(logging.getLogger().handlers)
    ebrm("--help")
    assert "TRANSFORMERS_VERBOSITY" not in os.environ
    assert (logging.getLogger("ebrm").level, logging.getLogger().handlers) == (level, handlers)
