"""The text of ``--help``: options in the groups they are set in, readable from 40 columns up.

The framework's own tables cut option names at 80 columns and load a rendering library first; this is text.
"""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from ebrm.cli.console import width


def command_class(groups: Sequence[tuple[str, Sequence[tuple[str, str]]]]) -> type[TyperCommand]:
    """A command whose help shows its arguments and these groups: (title, [(flags, help), ...])."""

    class Command(TyperCommand):
        def format_help(self, ctx: Any, formatter: Any) -> None:
            arguments = [
                (param.metavar or str(param.name).upper(), getattr(param, "help", None) or "")
                for param in self.params
                if param.param_type_name == "argument"
            ]
            shown = [("Arguments", arguments), *groups] if arguments else list(groups)
            usage = " ".join([ctx.command_path, *(name for name, _ in arguments), "[OPTIONS]"])
            formatter.write(page(usage, self.help or "", shown, width(sys.stdout), _color()))

    return Command


class Overview(TyperGroup):
    """The help of `ebrm` itself: the commands in the order of the work, one sentence each, and a first example."""

    #: Shown under the commands.
    example = (
        "ebrm fit --backbone Skywork/Skywork-Reward-V2-Qwen3-0.6B --data pairs.jsonl --out my-model",
        "ebrm score my-model answers.jsonl --out scored.jsonl",
    )

    def list_commands(self, ctx: Any) -> list[str]:
        """In the order they were registered, not the alphabet's."""
        return list(self.commands)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the whole page."""
        commands = [(name, _first_sentence(self.commands[name].help or "")) for name in self.list_commands(ctx)]
        options = [
            ("--version", "Print the version and stop."),
            ("-h, --help", "Print this, or the help of a command."),
        ]
        columns, color = width(sys.stdout), _color()
        text = page(f"{ctx.command_path} COMMAND [OPTIONS]", self.help or "", (), columns, color)
        longest = max(len(name) for name, _ in [*commands, *options])
        for title, rows in (("Commands", commands), ("Options", options)):
            text += f"\n{_bold(title, color)}\n"
            for name, line in rows:
                text += _beside(name, line, longest, columns, color)
        text += f"\n{_bold('Start', color)}\n" + "".join(f"  {line}\n" for line in self.example)
        formatter.write(text)


def page(
    usage: str, about: str, groups: Sequence[tuple[str, Sequence[tuple[str, str]]]], columns: int, color: bool
) -> str:
    """The help page as text."""
    indent = " " * 11
    lines = [_fill(usage, columns, "Usage: ", indent), ""]
    for paragraph in about.split("\n\n"):
        lines += [_fill(" ".join(paragraph.split()), columns), ""]
    for title, rows in groups:
        lines.append(_bold(title, color))
        for flags, text in rows:
            lines.append("  " + _bold(flags, color))
            if text:
                lines.append(_fill(text, columns, " " * 6, " " * 6))
        lines.append("")
    return "\n".join(lines[:-1]) + "\n"


def _beside(name: str, text: str, longest: int, columns: int, color: bool) -> str:
    body = _fill(text, columns, " " * (longest + 4), " " * (longest + 4))
    return "  " + _bold(name, color) + " " * (longest - len(name) + 2) + body.lstrip() + "\n"


def _fill(text: str, columns: int, first: str = "", rest: str = "") -> str:
    return textwrap.fill(
        text,
        min(columns, 100),
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _bold(text: str, color: bool) -> str:
    return typer.style(text, bold=True) if color else text


def _color() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _first_sentence(text: str) -> str:
    return " ".join(text.split("\n\n")[0].split())
