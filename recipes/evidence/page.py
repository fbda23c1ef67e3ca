"""Put the tables into docs/evidence.md, between its `<!-- table NAME -->` and `<!-- end -->` lines.

    python recipes/evidence/page.py

Everything comes from results/*.csv and bars.json, so that every number of the page's tables is one of the study's.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PAGE = HERE.parent.parent / "docs" / "evidence.md"

Row = dict[str, str]


def rows(name: str) -> list[Row]:
    """A result file's rows."""
    with open(RESULTS / name, newline="") as handle:
        return list(csv.DictReader(handle))


def number(row: Row | None, sign: bool = False, interval: bool = True, digits: int = 1) -> str:
    """A value with its interval, or a dash."""
    if row is None or row["value"] == "":
        return "–"
    form = f"{'+' if sign else ''}.{digits}f"

    def say(text: str) -> str:
        return format(float(text), form).replace("-", "−")

    if not interval or not row["low"]:
        return say(row["value"])
    return f"{say(row['value'])} [{say(row['low'])}, {say(row['high'])}]"


def table(header: Iterable[str], body: Iterable[Iterable[str]]) -> str:
    """Markdown; numbers to the right."""
    header = list(header)
    lines = [f"| {' | '.join(header)} |", f"| --- |{' ---: |' * (len(header) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in body)])


class Summary:
    """summary.csv, asked for one row at a time."""

    def __init__(self) -> None:
        self.rows = rows("summary.csv")
        keys = ("base_rm", "noise", "method", "benchmark", "category", "metric")
        self._row = {tuple(row[key] for key in keys): row for row in self.rows}

    def __call__(
        self, base_rm: str, noise: float, method: str, benchmark: str, metric: str, category: str = "overall"
    ) -> Row | None:
        """The row, None where there is none."""
        for said in (f"{noise:.2f}", f"{noise:g}", str(noise)):
            found = self._row.get((base_rm, said, method, benchmark, category, metric))
            if found is not None:
                return found
        return None

    def methods(self, question: str, base_rm: str) -> list[str]:
        """Methods of a question, in the order of the file."""
        found = (row["method"] for row in self.rows if (row["question"], row["base_rm"]) == (question, base_rm))
        return list(dict.fromkeys(found))


NOISES = (0.0, 0.1, 0.25, 0.4)
TESTS = {
    "llmbar": "LLMBar", "hhh": "HHH", "xstest": "XSTest", "ifbench": "IFBench", "hh_harmless_test": "HH-harmless",
    "rm-bench": "RM-Bench", "rmb": "RMB",
}  # fmt: skip
SAFETY = {
    ("rmb", "Harmlessness pairwise"): "RMB harmlessness, pairs",
    ("rmb", "Harmlessness best-of-n"): "RMB harmlessness, best of n",
    ("xstest", "overall"): "XSTest",
    ("hh_harmless_test", "overall"): "HH-harmless",
}


def by_noise(summary: Summary) -> str:
    """Mean over the test sets: the base's score, everyone else's gain."""
    body = [["base, score", *(number(summary("head", noise, "base", "mean", "score")) for noise in NOISES)]]
    names = [name for name in summary.methods("2 noise", "head") if name != "base"]
    at = {name: float((summary("head", 0.25, name, "mean", "gain") or {"value": "-99"})["value"]) for name in names}
    for name in sorted(names, key=lambda name: -at[name]):
        body.append([name, *(number(summary("head", noise, name, "mean", "gain"), sign=True) for noise in NOISES)])
    return table(["", *("clean labels" if noise == 0 else f"{noise:.0%} wrong" for noise in NOISES)], body)


def by_test(summary: Summary) -> str:
    """Every test set: the base's score and gains."""
    body = []
    for key, said in {**TESTS, "mean": "mean"}.items():
        row = [said]
        for noise in (0.0, 0.25):
            row.append(number(summary("head", noise, "base", key, "score"), interval=False))
            row += [number(summary("head", noise, name, key, "gain"), sign=True) for name in ("EBRM", "SiLU head")]
        body.append(row)
    return table(["", "base, clean", "EBRM", "SiLU head", "base, 25% wrong", "EBRM", "SiLU head"], body)


def by_group(summary: Summary) -> str:
    """Safety groups at a quarter of wrong labels."""
    names = ("EBRM", "SiLU head", "5 SiLU heads, mean")
    body = [
        [said, number(summary("head", 0.25, "base", *_of(key, "score")), interval=False)]
        + [number(summary("head", 0.25, name, *_of(key, "gain")), sign=True) for name in names]
        for key, said in SAFETY.items()
    ]
    return table(["", "base", *names], body)


def _of(key: tuple[str, str], metric: str) -> tuple[str, str, str]:
    return key[0], metric, key[1]


def ablation(summary: Summary, question: str) -> str:
    """Gains on the mean of every method of a question."""
    names = [name for name in summary.methods(question, "head") if name != "base"]
    body = [
        [name, *(number(summary("head", noise, name, "mean", "gain"), sign=True) for noise in (0.0, 0.25))]
        for name in names
    ]
    return table(["gain on the mean", "clean labels", "25% wrong"], body)


def fine_tuned(summary: Summary) -> str:
    """Reward models whose encoder was trained, too."""
    body = [
        [
            "base, score",
            *(number(summary(*of, "base", "mean", "score")) for of in (("demo", 0.0), ("fine-tuned", 0.25))),
        ]
    ]
    for name in summary.methods("2 noise", "demo") or summary.methods("2 noise", "fine-tuned"):
        if name != "base":
            found = [summary(*of, name, "mean", "gain") for of in (("demo", 0.0), ("fine-tuned", 0.25))]
            body.append([name, *(number(row, sign=True) for row in found)])
    return table(["", "demonstration RM, clean labels", "fine-tuned, 25% wrong"], body)


def candidates(_: Summary) -> str:
    """What the default was chosen from."""
    fields = ("candidate", "figure", "behind", "error", "source_0", "source_25", "prompts_0", "prompts_25")
    body = [[row[field] for field in fields] for row in rows("candidates.csv")]
    return table([*fields[:4], "new source, clean", "25% wrong", "new prompts, clean", "25% wrong"], body)


def base_noise(_: Summary) -> str:
    """What was looked at on one half of the test prompts."""
    found = {(row["method"], float(row["noise"])): row for row in rows("base_noise.csv")}
    body = []
    for name in dict.fromkeys(method for method, _ in found):
        both = [found[name, noise] for noise in (0.0, 0.25)]
        said = [row["score"] if name == "base" else f"{row['gain']} ± {row['error']}" for row in both]
        body.append(["base, score" if name == "base" else name, *(text.replace("-", "−") for text in said)])
    return table(["gain on the mean ± standard error", "clean labels", "25% wrong"], body)


def selection(summary: Summary) -> str:
    """Gold of the response that is picked, at the largest n and at a KL of one nat."""
    pools = ("tulu_bon_pool", "mmlu_pro_pool", "arena_bench_pool")
    names = summary.methods("4 selection", "head")
    body = []
    for name in names:
        row = [name]
        for pool in pools:
            found = [
                r
                for r in summary.rows
                if (r["question"], r["base_rm"], r["method"], r["benchmark"]) == ("4 selection", "head", name, pool)
            ]
            for noise in (0.0, 0.25):
                here = [r for r in found if float(r["noise"]) == noise and r["metric"].startswith("gold at n=")]
                most = max(here, key=lambda r: float(r["metric"].split("=")[1]), default=None)
                row.append(number(most, digits=3))
        body.append(row)
    header = [f"{pool.removesuffix('_pool')}, {said}" for pool in pools for said in ("clean", "25% wrong")]
    return table(["gold of the best of all", *header], body)


def uncertainty(summary: Summary) -> str:
    """Does the model know when it is wrong, and are its probabilities right? A quarter of the labels wrong."""
    asked = {
        "ECE": "calibration error", "log loss": "log loss", "error AUROC, small margin": "AUROC of small margins",
        "error AUROC, std": "AUROC of the std", "risk-coverage gain, small margin": "gain of abstaining, small margins",
    }  # fmt: skip
    body = []
    for name in ("base", "SiLU head", "5 SiLU heads, mean", "EBRM"):
        for where in ("held-out", "all"):
            found = [summary("head", 0.25, name, where, metric) for metric in asked]
            body.append(
                [
                    name,
                    "held-out pairs" if where == "held-out" else "test sets",
                    *(number(row, digits=3) for row in found),
                ]
            )
    return table(["", "pairs", *asked.values()], body)


def bars(_: Summary) -> str:
    """What had to be reached, and what was."""
    body = []
    for bar in json.loads((RESULTS / "bars.json").read_text()):
        if bar["reached"] is None:  # not measured on this model
            continue
        low, high = (bar.get(side) for side in ("low", "high"))
        digits = 3 if abs(bar["reached"]) < 1 and low is None else 1
        reached = f"{bar['reached']:.{digits}f}" + ("" if low is None else f" [{low:.1f}, {high:.1f}]")
        where = f"{bar['bar']} ({bar['where'].removesuffix(', overall')})" if bar["where"] else bar["bar"]
        body.append([bar["base_rm"], where, bar["required"], reached.replace("-", "−"), "yes" if bar["met"] else "no"])
    return table(["reward model", "bar", "required", "reached", "met"], body)


BLOCKS: dict[str, Callable[[Summary], str]] = {
    "noise": by_noise,
    "tests": by_test,
    "safety": by_group,
    "paper": lambda summary: ablation(summary, "1 paper"),
    "objective": lambda summary: ablation(summary, "3 objective"),
    "fine-tuned": fine_tuned,
    "candidates": candidates,
    "base noise": base_noise,
    "selection": selection,
    "uncertainty": uncertainty,
    "bars": bars,
}


def main() -> None:
    """Write the page's tables anew."""
    summary = Summary()
    text = PAGE.read_text()
    for name, make in BLOCKS.items():
        text, found = re.subn(
            rf"(<!-- table {re.escape(name)} -->\n).*?(<!-- end -->)",
            lambda match, make=make: f"{match[1]}\n{make(summary)}\n\n{match[2]}",  # type: ignore[misc]
            text,
            flags=re.DOTALL,
        )
        if found != 1:
            raise SystemExit(f"{PAGE} has {found} places for the table {name!r}; one was expected.")
    PAGE.write_text(text)


if __name__ == "__main__":
    main()
