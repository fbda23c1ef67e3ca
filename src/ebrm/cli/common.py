"""What several commands share: their arguments, folders to write, and how results are shown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from ebrm.card import fusion_in_words
from ebrm.cli.console import Console
from ebrm.errors import ConfigError
from ebrm.utils.outputs import place_of

if TYPE_CHECKING:
    from ebrm.report import Table

#: The argument of commands that take a saved model.
Model = Annotated[str, Parameter(name="MODEL", help="Folder that `ebrm fit` wrote, or a Hub name.")]


def out_folder(path: str) -> Path:
    """A folder to write; ConfigError where a file has its name, DataError where it is in unfinished work."""
    place_of(path)
    if Path(path).is_file():
        raise ConfigError(f"--out {path} is a file; it was left as it is. Name a folder.")
    return Path(path)


def one_or_several(names: Sequence[str]) -> str | list[str] | None:
    """Names of data as the library takes them."""
    return names[0] if len(names) == 1 else list(names) or None


def at_least(config: Any, **least: int) -> None:
    """Refuse fields of a config that are below their least value."""
    for name, low in least.items():
        value = getattr(config, name)
        if value is not None and value < low:
            raise ConfigError(f"{name} is {value}; it must be at least {low}.")


def show_summary(console: Console, summary: tuple[Table, Sequence[str]]) -> None:
    """A table of results and the sentences under it."""
    table, notes = summary
    console.table(table.head, table.body)
    console.print(*notes)


def show_accuracy(console: Console, metrics: dict[str, Any]) -> None:
    """What may be wrong with the pairs, the table of base and refined accuracy, and what to do."""
    console.print(*(f"Warning: {said}" for said in metrics["warnings"]))
    if not metrics["pairs"]:
        from ebrm.evaluation import NOTHING_HELD_OUT

        console.print(NOTHING_HELD_OUT)
    else:
        from ebrm.report import count

        behind = f"{count(metrics['pairs'], 'pair')}, {count(metrics['prompts'], 'prompt')}"
        title = f"Held-out pairs ranked correctly ({behind})"
        console.table(("", "accuracy", "95% interval"), accuracy_rows(metrics), title)
        if metrics.get("anchors"):
            console.print(f"What else moves: {metrics['what_else_moves']}")
        console.print(metrics["recommendation"]["sentence"])


def accuracy_rows(metrics: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(what, value, interval) of base, refined and their difference."""
    rows = []
    for label, name in (("base RM", "base"), ("refined", "refined"), ("difference", "difference")):
        found, plus = metrics[name], "+" if name == "difference" else ""
        value = f"{100 * found['value']:+.1f} points" if plus else f"{found['accuracy']:.1%}"
        # There is no interval where all pairs share one prompt.
        ends = "-" if found["low"] is None else f"{100 * found['low']:{plus}.1f} to {100 * found['high']:{plus}.1f}"
        rows.append((label, value, ends))
    return rows


def written_facts(metrics: dict[str, Any], out: Path, model: Path) -> list[tuple[str, Any]]:
    """What a fit goes by, and where its model, numbers and report are."""
    fusion = ("fusion", fusion_in_words(metrics["fusion"]))
    return [fusion, ("model", model), ("numbers", out / "metrics.json"), ("report", out / "report.html")]
