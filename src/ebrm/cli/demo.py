"""`ebrm demo`: the whole job on real human preferences that come with the package, offline."""

from __future__ import annotations

from dataclasses import dataclass

from ebrm.cli.common import out_folder, show_accuracy, written_facts
from ebrm.cli.console import Console
from ebrm.cli.parser import Chosen, Command, Part


@dataclass(frozen=True)
class DemoJob:
    """Where the demonstration goes.

    Attributes:
        out: folder for the model, the report and the numbers.
    """

    out: str = "demo-out"


def demo(console: Console, chosen: Chosen) -> None:
    """Run the whole job offline on packaged data: fit, refine, measure, score, report.

    Needs the extra `demo` for the small reward model that scores the live examples.
    """
    out = out_folder(chosen.of(DemoJob).out)
    from ebrm.demo.run import run

    made = run(out)
    show_accuracy(console, made.metrics)
    for number, live in enumerate(made.live, start=1):
        scores = sorted(zip(live.responses, live.base, live.refined, live.std, strict=True), key=lambda row: -row[2])
        rows = [(_shorten(text), *(f"{number:.2f}" for number in numbers)) for text, *numbers in scores]
        console.print("")
        console.table(("", "base", "refined", "std"), rows, f"{number}. {_shorten(live.prompt, 72)}")
    console.print("")
    console.facts(written_facts(made.metrics, out, out / "model"))
    live_scores = [
        {
            "prompt": live.prompt, "responses": list(live.responses), "base_reward": list(live.base),
            "reward": list(live.refined), "std": list(live.std),
        }
        for live in made.live
    ]  # fmt: skip
    console.result({"out": str(out), "metrics": made.metrics, "live": live_scores})


def _shorten(text: str, length: int = 56) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"


command = Command("demo", demo, {"job": Part(DemoJob)})
