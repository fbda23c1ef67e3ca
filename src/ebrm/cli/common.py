"""What several commands share: their arguments, folders to write, and the table of accuracies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from ebrm.cli.console import Console
from ebrm.errors import ConfigError

#: The argument of commands that take a saved model.
Model = Annotated[str, Parameter(name="MODEL", help="Folder that `ebrm fit` wrote, or a Hub name.")]


def out_folder(path: str) -> Path:
    """A folder to write; ConfigError where a file has its name."""
    if Path(path).is_file():
        raise ConfigError(f"--out {path} is a file; it was left as it is. Name a folder.")
    return Path(path)


def show_accuracy(console: Console, metrics: dict[str, Any]) -> None:
    """The table of base and refined accuracy and what it says; nothing where no pairs were held out."""
    if metrics["pairs"]:
        title = f"Held-out pairs ranked correctly ({metrics['pairs']:,} pairs, {metrics['prompts']:,} prompts)"
        console.table(("", "accuracy", "95% interval"), accuracy_rows(metrics), title)
        console.print(verdict(metrics["difference"]))


def accuracy_rows(metrics: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(what, value, interval) of base, refined and their difference."""
    base, refined, difference = (metrics[name] for name in ("base", "refined", "difference"))
    return [
        ("base RM", f"{base['accuracy']:.1%}", _interval(base)),
        ("refined", f"{refined['accuracy']:.1%}", _interval(refined)),
        ("difference", f"{100 * difference['value']:+.1f} points", _interval(difference, sign=True)),
    ]


def verdict(difference: dict[str, Any]) -> str:
    """What the interval of the difference allows to say."""
    low, high = difference["low"], difference["high"]
    if low is None or low <= 0 <= high:
        return "No clear difference: the interval of the difference contains zero."
    return f"The refined reward is {'better' if low > 0 else 'worse'}: the interval of the difference excludes zero."


def _interval(estimate: dict[str, Any], sign: bool = False) -> str:
    if estimate["low"] is None:  # all pairs share one prompt
        return "-"
    plus = "+" if sign else ""
    return f"{100 * estimate['low']:{plus}.1f} to {100 * estimate['high']:{plus}.1f}"
