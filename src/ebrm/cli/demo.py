"""`ebrm demo`: a reward model adapted to real human preferences of another domain, all in the package, offline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ebrm.cli.common import accuracy_rows, out_folder, written_facts
from ebrm.cli.console import Console
from ebrm.cli.parser import Chosen, Command, Part


@dataclass(frozen=True)
class DemoJob:
    """Where the demonstration goes.

    Attributes:
        out: folder for the model, the report and the numbers; those of an earlier demonstration are replaced.
        overwrite: replace files of these names that something else wrote.
    """

    out: str = "demo-out"
    overwrite: bool = False


def demo(console: Console, chosen: Chosen) -> None:
    """Adapt a small reward model offline to packaged pairs of a domain it has not seen, and measure what it keeps.

    Needs the extra `demo` for the small reward model that scores the live examples.
    """
    job = chosen.of(DemoJob)
    out = out_folder(job.out)
    from ebrm.demo.run import as_preferred, run
    from ebrm.report import points_estimate

    made = run(out, job.overwrite)
    console.print(
        "A reward model trained on chat, adapted to requests that sound unsafe: answer the safe ones, refuse the rest.",
        "",
    )
    found, kept = made.metrics, made.metrics["anchors"]
    title = f"Your pairs: held out and ranked correctly ({found['pairs']:,} pairs, {found['prompts']:,} prompts)"
    console.table(("", "accuracy", "95% interval"), accuracy_rows(found), title)
    console.print("")
    console.table(
        ("", "accuracy", "95% interval"), _kept_rows(kept),
        f"Kept: chat pairs held out ({kept['pairs']:,} pairs, {kept['prompts']:,} prompts)",
    )  # fmt: skip
    console.print(
        f"There rewards move by {kept['mean_abs']['value']:.2f} standard deviations on average, and "
        f"{kept['flipped']['value']:.1%} of comparisons change their order.",
        "",
        found["recommendation"]["sentence"],
    )
    rows = [(one.name, points_estimate(one.gain), points_estimate(one.kept)) for one in made.heads]
    console.print("")
    console.table(("head", "your pairs", "chat"), rows, "Gain and loss against the base RM, points")
    for number, live in enumerate(made.live, start=1):
        scores = sorted(zip(live.responses, live.base, live.refined, strict=True), key=lambda row: -row[2])
        shown = [(_shorten(text), f"{base:.2f}", f"{refined:.2f}") for text, base, refined in scores]
        wrong = "" if as_preferred(live) else " (wrong: the best response is not first)"
        console.print("")
        console.table(("", "base", "refined"), shown, f"{number}. {_shorten(live.prompt, 72)}{wrong}")
    console.print("")
    console.facts(written_facts(found, out, out / "model")[1:])
    live_scores = [
        {
            "prompt": live.prompt, "responses": list(live.responses), "base_reward": list(live.base),
            "reward": list(live.refined), "std": list(live.std), "as_preferred": as_preferred(live),
        }
        for live in made.live
    ]  # fmt: skip
    heads = [{"name": one.name, "gain": one.gain.to_dict(), "kept": one.kept.to_dict()} for one in made.heads]
    console.result({"out": str(out), "metrics": found, "heads": heads, "live": live_scores})


def _kept_rows(anchors: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Accuracy on anchors held out, before and after."""
    rows = [(name, anchors[f"{key}_accuracy"]) for name, key in (("base RM", "base"), ("refined", "refined"))]
    found = [(name, f"{one['value']:.1%}", f"{100 * one['low']:.1f} to {100 * one['high']:.1f}") for name, one in rows]
    change = anchors["accuracy_difference"]
    ends = f"{100 * change['low']:+.1f} to {100 * change['high']:+.1f}"
    return [*found, ("difference", f"{100 * change['value']:+.1f} points", ends)]


def _shorten(text: str, length: int = 56) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"


command = Command("demo", demo, {"job": Part(DemoJob)})
