"""The `ebrm` command: its sub-commands, and the boundary where errors become one paragraph and an exit code.

Exit codes: 0 done · 2 something the user can mend, one paragraph on stderr · 130 interrupted, what is finished is
kept · 1 a defect of ours, with its traceback.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from ebrm._version import __version__
from ebrm.cli import best_of_n, compare, demo, eval, export, features, fit, imports, info, score, serve
from ebrm.cli.console import Screen, write
from ebrm.cli.help import Overview
from ebrm.cli.logs import logging_to_stderr
from ebrm.errors import EBRMError

_INTERRUPTED = 130

# What the system may refuse that the user can mend, and how.
_ADVICE = {
    errno.ENOSPC: "Free some space, or write somewhere else, and run the same command again; finished parts are kept.",
    errno.EDQUOT: "Free some of your quota, or write somewhere else, and run the same command again.",
    errno.EFBIG: "Raise the limit on file sizes (ulimit -f), or write somewhere else, and run the same command again.",
    errno.EACCES: "Check who may read and write there, or choose another place.",
    errno.EPERM: "Check who may read and write there, or choose another place.",
    errno.EROFS: "Choose a place that can be written.",
    errno.EEXIST: "Choose another name, or --overwrite where the command has it.",
    errno.ENOTEMPTY: "Choose another name, or --overwrite where the command has it.",
    errno.ENOENT: "Check the path.",
    errno.ENOTDIR: "Check the path: one of its folders is a file.",
    errno.EISDIR: "Name a file, not a folder.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.EMFILE: "Raise the limit on open files (ulimit -n).",
    errno.EIO: "The disk or the network drive may be failing.",
    errno.ESTALE: "The network drive was reconnected; run the same command again.",
}

app = typer.Typer(
    name="ebrm",
    help="Make a reward model sturdier: refine its rewards with an energy model, each with its uncertainty.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    cls=Overview,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (fit, score, eval, serve, features, imports, export, info, demo, best_of_n, compare):
    module.register(app)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `ebrm` with `argv` (default: the process's arguments) and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in arguments
    Screen.current = Screen.general = None
    with logging_to_stderr("--verbose" in arguments or "-v" in arguments):
        try:
            code = app(arguments, standalone_mode=False, prog_name="ebrm")
            sys.stdout.flush()
            if code == _INTERRUPTED:  # what typer makes of KeyboardInterrupt
                raise KeyboardInterrupt
            return code if isinstance(code, int) else 0
        except SystemExit as stop:
            return stop.code if isinstance(stop.code, int) else 2
        except (KeyboardInterrupt, typer.Abort):
            kept = Screen.current.kept if Screen.current is not None else ""
            write(sys.stderr, f"ebrm: Interrupted. {kept or 'Nothing was written.'}")
            return _INTERRUPTED
        except BrokenPipeError:
            # The reader of our output has gone (`ebrm info … | head`): end quietly, and keep the interpreter from
            # complaining when it flushes stdout on its way out.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except Exception as error:
            paragraph = explain(error)
            if paragraph is None:
                raise
            write(sys.stderr, f"ebrm: {paragraph}")
            if as_json:
                Screen(json=True).result({"error": {"kind": type(error).__name__, "message": paragraph}})
            return 2


def explain(error: BaseException) -> str | None:
    """The paragraph for an error the user can mend; None for a defect of ours."""
    if isinstance(error, EBRMError):
        return as_options(str(error))
    usage = _usage_error()
    if isinstance(error, usage):
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "ebrm"
        text = " ".join(error.format_message().split())  # type: ignore[attr-defined]
        return f"{text if text.endswith(('.', '?')) else text + '.'} See `{path} --help`."
    number, place = _system_error(error)
    if number in _ADVICE:
        what = f"{os.strerror(number)}{f': {place}' if place else ''}"
        return f"{what}. {_ADVICE[number]}"
    return None


def as_options(text: str) -> str:
    """An error's text with settings as they are typed: `bad_rows="skip"` becomes `--bad-rows skip`."""
    parts, end = [], 0
    for found in re.finditer(r"`(\w+)=(?=\S)", text):
        try:
            value, stop = json.JSONDecoder().raw_decode(text, found.end())
        except ValueError:
            continue
        if text[stop : stop + 1] == "`" and found.start() >= end:
            items = value.items() if isinstance(value, dict) else [(None, value)]
            flag = "--" + (found[1].removesuffix("s") if isinstance(value, dict) else found[1]).replace("_", "-")
            typed = (shlex.quote(f"{value}" if name is None else f"{name}={value}") for name, value in items)
            parts += [text[end : found.start()], "`", " ".join(f"{flag} {item}" for item in typed)]
            end = stop
    return "".join([*parts, text[end:]])


def _usage_error() -> type[Exception]:
    """The framework's class of errors in how a command was typed (typer carries its own copy of click since 0.16)."""
    return typer.BadParameter.__mro__[2] if len(typer.BadParameter.__mro__) > 2 else typer.BadParameter


def _system_error(error: BaseException) -> tuple[int, str]:
    """(errno, path) of an error of the operating system; (0, "") if it is none.

    safetensors reports a failed write as its own exception with the number in the text.
    """
    if isinstance(error, OSError) and error.errno is not None:
        names = [str(name) for name in (error.filename, error.filename2) if name is not None]
        return error.errno, " -> ".join(names)
    if type(error).__name__ == "SafetensorError" and (
        found := re.search(r"os error (\d+)|Os \{ code: (\d+)", str(error))
    ):
        return int(found.group(1) or found.group(2)), ""
    return 0, ""


def _version(value: bool) -> None:
    if value:
        sys.stdout.write(f"ebrm {__version__}\n")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _general(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", callback=_version, is_eager=True)
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only results and errors.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Also what the libraries underneath say.")] = False,
) -> None:
    Screen.general = Screen(json, quiet, verbose)
    if context.invoked_subcommand is None:
        sys.stdout.write(context.get_help() + "\n")


if __name__ == "__main__":
    sys.exit(main())
