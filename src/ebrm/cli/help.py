"""The text of `--help`: options in the groups they are set in, readable from 40 columns up.

cyclopts' own panels put names beside texts in a frame, which leaves little of either on a narrow screen.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cyclopts.help import HelpPanel
    from rich.console import Console

_EXAMPLE = (
    "ebrm fit --backbone Skywork/Skywork-Reward-V2-Qwen3-0.6B --data pairs.jsonl --out my-model",
    "ebrm score my-model answers.jsonl --out scored.jsonl",
)


class Page:
    """A formatter for cyclopts: names in bold, their texts under them; those of commands beside them."""

    def __call__(self, console: Console, options: Any, panel: HelpPanel) -> None:
        """Print one group."""
        rows = [(", ".join(e.display_labels_with_metavar), _plain(e.description)) for e in panel.entries]
        if _plain(panel.title) == "Run":
            rows.append(("--help, -h", "Print this."))
        if panel.format == "command":
            rows.append(("--install-completion", "Let bash, zsh or fish complete commands and options."))
        if not rows:
            return
        _print(console, _plain(panel.title), bold=True)
        commands, longest = panel.format == "command", max(len(names) for names, _ in rows)
        for names, text in rows:
            _print(console, f"  {names.ljust(longest)}  " if commands else f"  {names}\n", bold=True, end="")
            body = _fill(console, text, " " * (longest + 4 if commands else 6))
            _print(console, body.lstrip() if commands else body)
        _print(console, "\nStart" if commands else "", bold=True)
        if commands:
            _print(console, "\n".join(f"  {line}" for line in _EXAMPLE))

    def render_usage(self, console: Console, options: Any, usage: Any) -> None:
        """Print how the command is called."""
        _print(console, f"Usage: {_plain(usage).removeprefix('Usage: ')}\n")

    def render_description(self, console: Console, options: Any, description: Any) -> None:
        """Print what the command does, its paragraphs filled."""
        for paragraph in _plain(description).split("\n\n"):
            _print(console, _fill(console, paragraph) + "\n")


def _plain(value: Any) -> str:
    value = getattr(value, "primary_renderable", value)
    return str(getattr(value, "plain", value) or "").strip()


def _fill(console: Console, text: str, indent: str = "") -> str:
    return textwrap.fill(
        " ".join(text.split()), min(console.width, 100), initial_indent=indent, subsequent_indent=indent,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def _print(console: Console, text: str, bold: bool = False, end: str = "\n") -> None:
    from rich.text import Text

    console.print(Text(text, style="bold" if bold else ""), soft_wrap=True, end=end)
