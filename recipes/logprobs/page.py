"""Put what was measured into docs/logprobs.md, between its `<!-- table NAME -->` and `<!-- end -->` lines."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ebrm.metrics import Bootstrap, Estimate, correct_pairs, paired_accuracy

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parent.parent.parent / "docs" / "logprobs.md"
BOOTSTRAP = Bootstrap(resamples=10_000)
RM = "packaged RM"


def percent(found: Estimate) -> str:
    """A share in percent with its interval."""
    return f"{100 * found.value:.0f} ({100 * found.low:.0f} to {100 * found.high:.0f})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def numbers(items: Sequence[Mapping[str, Any]], reward: str, response: str) -> np.ndarray:
    """A reward of all items' responses of one name."""
    return np.array([item["rewards"][reward][response] for item in items])


def padded_table(results: Mapping[str, Any]) -> str:
    """How often each reward is higher for the concise answer than for the same one, padded or twice."""
    items = [item for item in results["items"] if item["kind"] == "padded"]
    prompts = [item["prompt"] for item in items]
    rows = []
    for name in items[0]["rewards"]:
        if name == "tokens":
            continue
        shares = []
        for other in ("padded", "twice"):
            sides = numbers(items, name, "concise"), numbers(items, name, other)
            shares.append(paired_accuracy(*sides, *sides, prompts, bootstrap=BOOTSTRAP).refined)
        rows.append([name, *map(percent, shares)])
    return table(["reward", "concise above padded, %", "concise above twice, %"], rows)


def pairs_table(results: Mapping[str, Any]) -> str:
    """Accuracy of each reward on all pairs, beside the packaged reward model's on the same."""
    items = [item for item in results["items"] if item["kind"] != "padded"]
    prompts = [item["prompt"] for item in items]
    sets = sorted({item["kind"] for item in items})
    base = [numbers(items, RM, side) for side in ("chosen", "rejected")]
    rows = []
    for name in items[0]["rewards"]:
        sides = [numbers(items, name, side) * (-1 if name == "tokens" else 1) for side in ("chosen", "rejected")]
        found = paired_accuracy(*base, *sides, prompts, bootstrap=BOOTSTRAP)
        value, low, high = (f"{100 * end:+.0f}" for end in vars(found.difference).values())
        moved = "–" if name == RM else f"{value} ({low} to {high})"
        right = correct_pairs(*sides)
        by_set = [f"{100 * right[[item['kind'] == one for item in items]].mean():.0f}" for one in sets]
        called = "fewer tokens" if name == "tokens" else name
        rows.append([called, percent(found.refined), moved.replace("-", "−"), *by_set])
    return table(["reward", "accuracy, %", "minus packaged RM", *(f"`{one}`" for one in sets)], rows)


def measured_on(results: Mapping[str, Any]) -> str:
    """What was read."""
    kinds: dict[str, int] = {}
    for item in results["items"]:
        kinds[item["kind"]] = kinds.get(item["kind"], 0) + 1
    padded = kinds.pop("padded")
    pairs = ", ".join(f"{count} of `{name}`" for name, count in sorted(kinds.items()))
    return (
        f"{padded} right answers to questions of TruthfulQA, and {sum(kinds.values())} preference pairs ({pairs}), "
        f"chosen by the hash of their id among those with at most {results['longest']} characters, prompt and response "
        f"together. The language model is Gemma 3 270M, base, in {results['dtype']}. 95% intervals over prompts, "
        "differences paired."
    )


def example_table(example: Mapping[str, Any]) -> str:
    """Every reward of two answers."""
    rows = [[name, *(f"{value:.3f}" for value in values)] for name, values in example["rewards"].items()]
    return table(["reward", *(f"“{answer}”" for answer in example["answers"])], rows)


def attribution(example: Mapping[str, Any]) -> str:
    """What the prompt says about each token of the first answer."""
    shown = ", ".join(f"`{token.strip()}` {value:+.1f}" for token, value in example["attribution"])
    return f"What the prompt says about each token, in nats: {shown}.".replace("-", "−")


def tables() -> dict[str, str]:
    """Name of each place to its text."""
    results = json.loads((RESULTS / "rewards.json").read_text(encoding="utf-8"))
    example = json.loads((RESULTS / "example.json").read_text(encoding="utf-8"))
    of_results: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "measured on": measured_on, "padded": padded_table, "pairs": pairs_table
    }  # fmt: skip
    made = {name: make(results) for name, make in of_results.items()}
    return {**made, "example": example_table(example), "attribution": attribution(example)}


def filled(page: str, made: Mapping[str, str]) -> str:
    """The page with every table put in."""
    for name, text in made.items():
        pattern = rf"(<!-- table {re.escape(name)} -->\n)(?:(?!<!-- ).)*(<!-- end -->)"
        page, count = re.subn(pattern, lambda found, text=text: f"{found[1]}{text}\n{found[2]}", page, flags=re.DOTALL)  # type: ignore[misc]
        if count != 1:
            raise SystemExit(f"{PAGE} has {count} places for the table {name!r}; it must have one.")
    return page


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), tables()), encoding="utf-8")
