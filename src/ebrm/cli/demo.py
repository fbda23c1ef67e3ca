"""`ebrm demo`: the whole job on real human preferences that come with the package, offline."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import typer

from ebrm.card import trust_in_words
from ebrm.cli.accuracy import show_accuracy
from ebrm.cli.console import Screen
from ebrm.cli.options import Chosen, command
from ebrm.errors import DataError


@dataclass(frozen=True)
class DemoJob:
    """Where the demonstration goes."""

    out: str = field(default="demo-out", metadata={"help": "Folder for the model, the report and the numbers."})


def register(app: typer.Typer) -> None:
    """Add the command."""

    @command(app, "demo", {"demo": DemoJob})
    def demo(screen: Screen, chosen: Chosen) -> None:
        """Run the whole job offline on packaged data: fit, refine, measure, score, report.

        Needs the extra `demo` for the small reward model that scores the live examples.
        """
        out = Path(chosen.of(DemoJob).out)
        if out.is_file():
            raise DataError(f"--out {out} is a file. Name a folder.")
        from ebrm.demo.run import run

        made = run(out)
        show_accuracy(screen, made.metrics)
        for number, live in enumerate(made.live, start=1):
            screen.say("")
            scores = zip(live.responses, live.base, live.refined, live.std, strict=True)
            rows = [
                (_shorten(response), f"{base:.2f}", f"{refined:.2f}", f"± {std:.2f}")
                for response, base, refined, std in sorted(scores, key=lambda score: -score[2])
            ]
            screen.table(("", "base", "refined", "std"), rows, f"{number}. {_shorten(live.prompt, 70)}")
        screen.say("")
        screen.facts(
            [
                ("trust", trust_in_words(made.metrics["trust"])),
                ("model", str(out / "model")),
                ("numbers", str(out / "metrics.json")),
                ("report", str(out / "report.html")),
            ]
        )
        live_scores = [
            {
                "prompt": live.prompt,
                "responses": list(live.responses),
                "base_reward": list(live.base),
                "reward": list(live.refined),
                "std": list(live.std),
            }
            for live in made.live
        ]
        screen.result({"out": str(out), "metrics": made.metrics, "live": live_scores})


def _shorten(text: str, length: int = 48) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"
