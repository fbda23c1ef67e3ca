"""The `ebrm` command: its commands, and the boundary where errors become one paragraph and an exit code.

Exit codes: 0 done · 2 something the user can mend, one paragraph on stderr · 130 interrupted, what is finished is
kept · 1 a defect of ours, with its traceback.
"""

from __future__ import annotations

import errno
import functools
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from cyclopts import App, CycloptsError
from cyclopts.exceptions import MissingArgumentError, UnusedCliTokensError

from ebrm._version import __version__
from ebrm.backbone import BackboneConfig
from ebrm.cli import best_of_n, compare, curate, demo, eval, export, features, fit, imports, info, inspect, score, serve
from ebrm.cli.console import Console, logging_to_stderr, write
from ebrm.cli.help import Page
from ebrm.cli.parser import SWITCHES, Chosen, Option, options_of, parse
from ebrm.data import PreferenceConfig, TextConfig
from ebrm.errors import EBRMError
from ebrm.features import FeatureConfig
from ebrm.heads import FitConfig
from ebrm.utils.files import cache_folder, system_error
from ebrm.utils.threads import choose_threads

_INTERRUPTED = 130

# What the system may refuse that the user can mend, and how.
_ADVICE = {
    errno.ENOSPC: "Free some space, or write somewhere else, and run the same command again; finished parts are kept.",
    errno.EDQUOT: "Free some of your quota, or write somewhere else, and run the same command again.",
    errno.EFBIG: "Raise the limit on file sizes (ulimit -f), or write somewhere else, and run the same command again.",
    errno.EACCES: "Check who may read and write there, or choose another place.",
    errno.EPERM: "Check who may read and write there, or choose another place.",
    errno.EROFS: "Choose a place that can be written.",
    errno.EEXIST: "Choose another name.",
    errno.ENOTEMPTY: "Choose another name.",
    errno.ENOENT: "Check the path.",
    errno.ENOTDIR: "Check the path: one of its folders is a file.",
    errno.EISDIR: "Name a file, not a folder.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.EMFILE: "Raise the limit on open files (ulimit -n).",
    errno.EIO: "The disk or the network drive may be failing.",
    errno.ESTALE: "The network drive was reconnected; run the same command again.",
}

_TAKEN = (errno.EEXIST, errno.ENOTEMPTY)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_ABOUT = "Adapt a frozen reward model to preference pairs: refined rewards, each with its uncertainty."
#: In the order of the work.
COMMANDS = tuple(
    module.command
    for module in (inspect, fit, score, eval, serve, features, curate, imports, export, info, demo, best_of_n, compare)
)
#: Fields whose names alone mean other things, too.
_OF_ANY = ("backbone", "device", "head", "limit", "seed", "server")
#: What helps where a command has no such option, and no other command helps.
_INSTEAD = {("eval", "backbone"): "a link to it at its old place"}
#: They stand before or after the command's name.
_SWITCHES = {flag: name for name, (flags, _) in SWITCHES.items() for flag in flags}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `ebrm` with `argv` (default: the process's arguments) and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    given = {_SWITCHES[word] for word in words if word in _SWITCHES}
    console = Console("json" in given, "quiet" in given, "verbose" in given)
    chosen: Chosen | None = None
    with logging_to_stderr(console.quiet, console.verbose) as logs:
        try:
            app = App("ebrm", help=_ABOUT, version=f"ebrm {__version__}", help_format="plaintext",
                      help_formatter=Page(), print_error=False, exit_on_error=False, verbose=False)  # fmt: skip
            chosen, run = parse(app, COMMANDS, [word for word in words if word not in _SWITCHES])
            logs.translate = functools.partial(in_options, chosen=chosen)
            if chosen is not None and chosen.command != info.command.name:  # which computes nothing
                console.note(choose_threads())
            run(console)
            sys.stdout.flush()
            return 0
        except KeyboardInterrupt:
            write(sys.stderr, f"ebrm: Interrupted. {console.kept or 'Nothing was written.'}")
            return _INTERRUPTED
        except BrokenPipeError:
            # The reader of our output has gone (`ebrm info … | head`): end quietly, and keep the interpreter from
            # complaining when it flushes stdout on its way out.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except Exception as error:
            paragraph = explain(error, chosen)
            if paragraph is None:
                raise
            write(sys.stderr, f"ebrm: {paragraph}")
            console.result({"error": {"kind": type(error).__name__, "message": paragraph}})
            return 2


def explain(error: BaseException, chosen: Chosen | None = None) -> str | None:
    """The paragraph for an error the user can mend, in the running command's options; None for a defect of ours."""
    if isinstance(error, EBRMError):
        return in_options(str(error), chosen)
    if isinstance(error, CycloptsError):
        path = " ".join(["ebrm", *(error.command_chain or ())])
        return f"{_usage(error)} See `{path} --help`."
    number, place = system_error(error)
    if number in _ADVICE:
        place = place or (_fullest(chosen) if number in _FULL else "")
        what = f"{os.strerror(number)}{f': {place}' if place else ''}"
        advice = _ADVICE[number]
        if number in _TAKEN and chosen is not None and any(option.key == "overwrite" for option in chosen.options):
            advice = "Choose another name, or --overwrite."
        return f"{what}. {advice}"
    return None


def _fullest(chosen: Chosen | None) -> str:
    """Of the folders that a command writes in (its output, the cache, temporary files), that with the least space."""
    out = next((value for (_, field), value in chosen.values.items() if field == "out"), None) if chosen else None
    places = [Path(str(out)).absolute()] if out else []
    free = {}
    for place in (*places, cache_folder(), Path(tempfile.gettempdir())):
        there = next(folder for folder in (place, *place.parents) if folder.is_dir())
        with suppress(OSError):
            free[str(there)] = shutil.disk_usage(there).free
    return min(free, key=free.__getitem__, default="")


def in_options(text: str, chosen: Chosen | None) -> str:
    """A library's sentence with the running command's options for its fields.

    A field of reading or fitting that this command has no option for is shown as that of the command which makes what
    this one takes: a model (`ebrm fit --truncation drop`), and for `ebrm eval` also features.
    """
    if chosen is None:
        return text
    for (command, field), words in _INSTEAD.items():
        if chosen.command == command:
            text = re.sub(rf"`{field}(=[^`]*)?`", words, text)
    makers = ("features", "fit") if chosen.command == eval.command.name else ("fit", "features")
    return chosen.in_options(text, elsewhere=lambda name, valued: _elsewhere(name, valued, makers))


@functools.cache
def _elsewhere(name: str, valued: bool, makers: tuple[str, ...]) -> tuple[str, Option] | None:
    if name in _OF_ANY and not valued:
        return None
    kinds = {PreferenceConfig, TextConfig, FeatureConfig, FitConfig, BackboneConfig}
    for command in sorted((each for each in COMMANDS if each.name in makers), key=lambda each: makers.index(each.name)):
        for option in options_of(command.parts_for()):
            if option.field == name and kinds & {*option.configs}:
                return command.name, option
    return None


def _usage(error: CycloptsError) -> str:
    """A mistake in how a command was typed."""
    if isinstance(error, UnusedCliTokensError):
        return f"{' '.join(error.unused_tokens or ())} is more than this command takes."
    if isinstance(error, MissingArgumentError) and error.argument is not None:
        return f"{error.argument.name} is needed." if error.keyword is None else f"{error.keyword} needs a value."
    return " ".join(str(error).split())


if __name__ == "__main__":
    sys.exit(main())
