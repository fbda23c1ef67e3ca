"""The tables of docs/evidence.md, from results/ alone.

python recipes/adaptation/page.py            # print them all
python recipes/adaptation/page.py --write    # between the page's `<!-- table NAME -->` and `<!-- end -->` lines
"""

from __future__ import annotations

import argparse
import csv
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

HERE = Path(__file__).parent
PAGES = (HERE.parents[1] / "docs" / "evidence.md", HERE.parents[1] / "README.md")
NAMES = {"minilm": "MiniLM", "gemma": "Gemma"}
MAIN = ("EBRM", "EBRM, unseen", "linear", "a r0 + ridge", "linear, averaged weights", "SiLU head", "5 SiLU heads, mean")
ANCHORED = ("EBRM + anchors", "EBRM, unseen + anchors", "linear + anchors", "a r0 + ridge + anchors")
SHIFTS = ("chat to grounded", "chat to HH-harmless", "chat to XSTest", "grounded to chat", "judges to people")
KINDS = {
    "chat": "chat", "grounded": "grounded", "hh-harmless": "HH-harmless", "xstest": "XSTest", "hhh": "HHH",
    "llmbar": "LLMBar", "rmb": "RMB", "rm-bench": "RM-Bench",
}  # fmt: skip

Row = dict[str, str]
Place = tuple[str, str, str, str]  # backbone, base, scenario, n


def table(header: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """Markdown; numbers to the right."""
    lines = [f"| {' | '.join(header)} |", f"| --- |{' ---: |' * (len(header) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in body)])


def number(row: Row | None, sign: bool = True, interval: bool = True, digits: int = 1) -> str:
    """A value with its interval, or a dash."""
    if row is None:
        return "–"

    def said(text: str) -> str:
        return format(float(text), f"{'+' if sign else ''}.{digits}f").replace("-", "−")

    if not interval or not row["low"]:
        return said(row["value"])
    return f"{said(row['value'])} [{said(row['low'])}, {said(row['high'])}]"


class Summary:
    """summary.csv, asked for one row at a time."""

    def __init__(self, results: Path) -> None:
        with open(results / "summary.csv", newline="") as handle:
            self.rows = list(csv.DictReader(handle))
        # The base's row of all seeds comes before those beside methods that only some seeds have.
        self._row = {(*self._place(row), row["method"], row["measure"]): row for row in reversed(self.rows)}
        self.places = list(dict.fromkeys(self._place(row) for row in self.rows))
        self.places.sort(key=lambda p: (p[0] != "minilm", p[1] != "head", p[2], int(p[3]) or 10_000))
        self.bars = json.loads((results / "bars.json").read_text())

    @staticmethod
    def _place(row: Row) -> Place:
        return row["backbone"], row["base"], row["scenario"], row["n"]

    def __call__(self, place: Place, method: str, measure: str) -> Row | None:
        """The row, None where there is none."""
        return self._row.get((*place, method, measure))

    def where(self, *scenarios: str, base: str = "head", n: Sequence[str] = ()) -> list[Place]:
        """Places of these scenarios, in the order of the scenarios."""
        found = [p for p in self.places if p[2] in scenarios and p[1] == base and (not n or p[3] in n)]
        return sorted(found, key=lambda p: (p[0] != "minilm", scenarios.index(p[2])))

    def methods(self, place: Place, measure: str) -> list[str]:
        """Methods with this measure, in the order of the file."""
        return [key[4] for key in reversed(self._row) if key[:4] == place and key[5] == measure]


def _named(place: Place) -> str:
    size = f"{int(place[3]):,}" if place[3] != "0" else "all"
    return f"{NAMES[place[0]]}, {place[2]}, {size}"


def gains(summary: Summary, places: Sequence[Place], methods: Sequence[str], measure: str = "target") -> str:
    """A row a place: the base's accuracy, and every method's gain."""
    body = []
    for place in places:
        base = summary(place, "base", "accuracy" if measure == "target" else f"accuracy, {measure}")
        body.append(
            [
                _named(place),
                number(base, sign=False, interval=False),
                *(number(summary(place, m, measure)) for m in methods),
            ]
        )
    return table(["pairs", "base", *methods], body)


def by_method(summary: Summary, places: Sequence[Place], measures: Sequence[str], methods: Sequence[str] = ()) -> str:
    """A row a method, the best first, a column a place and measure."""
    names = list(methods) or list(dict.fromkeys(m for p in places for m in summary.methods(p, measures[0])))

    def order(name: str) -> float:
        found = [summary(place, name, measures[0]) for place in places]
        values = [float(row["value"]) for row in found if row is not None]
        return -sum(values) / len(values) if values else float("inf")

    bases = [summary(place, "base", "accuracy") for place in places for _ in measures]
    head = ["base, accuracy", *(number(row, sign=False, interval=False) for row in bases)]
    body = [
        [name, *(number(summary(p, name, m)) for p in places for m in measures)] for name in sorted(names, key=order)
    ]
    return table(["", *(f"{_named(p)}: {m}" for p in places for m in measures)], [head, *body])


def same_domain(summary: Summary) -> str:
    """Gains on unseen pairs of the same kind."""
    return gains(summary, summary.where("same domain"), MAIN)


def shifts(summary: Summary) -> str:
    """Gains on another domain."""
    return gains(summary, summary.where(*SHIFTS, n=("100", "150", "300", "1000")), (*ANCHORED[:2], *MAIN))


def elsewhere(summary: Summary) -> str:
    """What is gained and lost elsewhere: the mean over all other sets."""
    places = summary.where(*SHIFTS, "longer is better", n=("150", "300"))
    body = [[_named(place), *(number(summary(place, m, "elsewhere")) for m in (*ANCHORED, *MAIN))] for place in places]
    return table(["pairs", *ANCHORED, *MAIN], body)


def kept(summary: Summary) -> str:
    """The vendor's own kind, and sets on which the base is above chance."""
    places = summary.where(*SHIFTS, n=("150", "300"))
    measures = ("vendor's own kind", "elsewhere, base above chance")
    some = (*ANCHORED, "EBRM", "linear", "a r0 + ridge", "SiLU head", "5 SiLU heads, mean")
    body = [[f"{_named(p)}: {m}", *(number(summary(p, name, m)) for name in some)] for p in places for m in measures]
    return table(["", *some], body)


def sets(summary: Summary) -> str:
    """Every other set after a shift of 150 to 300 pairs."""
    body = []
    for place in summary.where(*SHIFTS, n=("150", "300")):
        for kind, said in KINDS.items():
            if summary(place, "EBRM", kind) is not None:
                base = number(summary(place, "base", f"accuracy, {kind}"), sign=False, interval=False)
                some = ("EBRM + anchors", "EBRM", "linear", "SiLU head")
                body.append([f"{_named(place)}: {said}", base, *(number(summary(place, m, kind)) for m in some)])
    return table(["", "base", "EBRM + anchors", "EBRM", "linear", "SiLU head"], body)


def seen(summary: Summary) -> str:
    """The reward model's own pairs: all methods, the paper's among them."""
    return by_method(summary, summary.where("seen", "seen, 25% wrong", n=("0",)), ("target",))


def fine_tuned(summary: Summary) -> str:
    """Bases whose encoder was fine-tuned."""
    scenarios = ("same domain", *SHIFTS, "seen", "seen, 25% wrong")
    return gains(
        summary, summary.where(*scenarios, base="fine-tuned"), ("EBRM", "EBRM, unseen", "EBRM, seen", *MAIN[2:])
    )


def safety(summary: Summary) -> str:
    """Safety pairs: the target, and RMB's harmlessness and helpfulness."""
    places = summary.where("chat to HH-harmless", "chat to XSTest", n=("150",))
    methods = ("EBRM + anchors", "EBRM", "linear", "a r0 + ridge", "SiLU head", "5 SiLU heads, mean")
    return by_method(summary, places, ("target", "RMB harmlessness", "RMB helpfulness"), methods)


def useless(summary: Summary) -> str:
    """Pairs that teach nothing, or the wrong thing."""
    return gains(summary, summary.where("random labels", "30% flipped", "longer is better"), MAIN)


def confidence(summary: Summary) -> str:
    """Does the model know when it is wrong, and are its probabilities right?"""
    body = []
    for place in summary.where("same domain", "chat to HH-harmless", n=("150", "300", "1000")):
        for method in summary.methods(place, "log loss"):
            ece = summary(place, method, "ECE")
            chance = "–" if ece is None else f"{float(ece['value']):.1f} ({float(ece['score']):.1f})"
            both = (number(summary(place, method, m), sign=False, digits=3) for m in ("log loss", "error AUROC"))
            body.append([f"{_named(place)}: {method}", *both, chance])
    return table(["", "log loss", "AUROC of confidence for errors", "ECE (of calibrated ones by chance)"], body)


def selection(summary: Summary) -> str:
    """Gold of the best-rewarded of n responses, above the mean of all."""
    sizes = ("2", "4", "8", "11")
    body = [
        [f"{_named(p)}: {m}", *(number(summary(p, m, f"best of {n}"), digits=3) for n in sizes)]
        for p in summary.where("same domain", "chat to HH-harmless", n=("150", "1000", "300"))
        for m in summary.methods(p, "best of 2")
    ]
    return table(["", *(f"n = {n}" for n in sizes)], body)


def embeddings(summary: Summary) -> str:
    """Which embeddings the head is fitted on."""
    body = []
    for place in summary.where("same domain", "chat to grounded", "chat to HH-harmless"):
        for method in summary.methods(place, "target"):
            if method.startswith("EBRM on "):
                both = [
                    number(summary(place, name, m))
                    for name in (method, "EBRM, unseen")
                    for m in ("target", "elsewhere")
                ]
                body.append([f"{_named(place)}: {method[8:]}", *both])
    return table(["", "target", "elsewhere", "target, default", "elsewhere, default"], body)


def bars(summary: Summary) -> str:
    """What had to be reached: how often it was, and the place that was furthest from it."""
    groups: dict[tuple[str, str], list[dict]] = {}
    for bar in summary.bars:
        groups.setdefault((bar["bar"], bar["required"]), []).append(bar)
    body = []
    for (name, required), some in groups.items():
        lowest = max if required.startswith("<=") or required == "0" else min
        worst = lowest(some, key=lambda bar: bar["reached"])
        reached = f"{worst['reached']:.2f}".replace("-", "−")
        if worst["low"] is not None:
            reached += f" [{worst['low']:.2f}, {worst['high']:.2f}]".replace("-", "−")
        body.append([name, required, f"{sum(bar['met'] for bar in some)} of {len(some)}", reached, worst["where"]])
    return table(["bar", "required", "met", "furthest from it", "where"], body)


#: Rows of the README's table: scenario, its number of pairs, what is said of it, and what EBRM is told.
FRONT = (
    ("same domain", "300", "of the RM's own kind (chat)", "EBRM, unseen"),
    ("chat to grounded", "300", "on grounded answers", "EBRM, unseen + anchors"),
    ("chat to HH-harmless", "150", "on harmlessness (HH)", "EBRM, unseen + anchors"),
    ("chat to XSTest", "150", "on refusals (XSTest)", "EBRM, unseen + anchors"),
    ("seen", "0", "that the RM was trained on", "EBRM, seen"),
    ("random labels", "300", "with labels at random", "EBRM"),
)


def front(summary: Summary) -> str:
    """The README's table: Gemma, gains on the target and changes on the vendor's own kind."""
    body = []
    for scenario, n, said, ours in FRONT:
        place = ("gemma", "head", scenario, n)
        base = summary(place, "base", "accuracy")
        if base is None:
            continue
        own = [number(summary(place, m, "vendor's own kind"), interval=False) for m in (ours, "linear", "SiLU head")]
        kept = " / ".join(own) if own[0] != "–" else "–"
        gained = (number(summary(place, ours, "target")), *(
            number(summary(place, m, "target"), interval=False) for m in ("linear", "SiLU head")
        ))  # fmt: skip
        body.append([f"{int(base['pairs']):,} {said}", f"{number(base, sign=False, interval=False)}%", *gained, kept])
    return table(["your pairs", "base RM", "ebrm", "linear head", "SiLU head", "the RM's own domain"], body)


def missed(summary: Summary) -> str:
    """What is worse than asked for or than a rival, in the README's words: bars, targets, other sets, best of n."""
    bars = summary.bars
    said = [f"{sum(bar['met'] for bar in bars)} of {len(bars)} bars that were set beforehand were met"]

    def against(place: Place, ours: str, words: str) -> None:
        mine = summary(place, ours, "target")
        rivals = {m: summary(place, m, "target") for m in MAIN if not m.startswith("EBRM")}
        found = {name: row for name, row in rivals.items() if row is not None}
        if mine is None or not found:
            return
        name = max(found, key=lambda m: float(found[m]["value"]))
        if float(found[name]["value"]) > float(mine["value"]):
            best = number(found[name], interval=False)
            said.append(f"{words} gains {number(mine, interval=False)} points, {name} {best}")

    for scenario, n, told, ours in FRONT[1:5]:
        against(("gemma", "head", scenario, n), ours, f"{NAMES['gemma']}, pairs {told}: ebrm")
    kept = [(p, summary(p, "EBRM, unseen + anchors", "elsewhere")) for p in summary.where(*SHIFTS, n=("150", "300"))]
    lost = [(p, row) for p, row in kept if row is not None and row["high"] and float(row["high"]) < 0]
    for place, row in sorted(lost, key=lambda one: float(one[1]["value"])):
        said.append(f"{_named(place)} pairs, with anchors: {number(row)} points on the other test sets")
    for place in summary.where("same domain", n=("300",)):
        rows = {m: summary(place, m, "best of 11") for m in ("base", "linear", "EBRM, unseen")}
        values = {m: float(row["value"]) for m, row in rows.items() if row is not None}
        if "EBRM, unseen" in values and max(values, key=values.__getitem__) != "EBRM, unseen":
            names = {"EBRM, unseen": "ebrm"}
            listed = ", ".join(f"{names.get(m, m)} {number(rows[m], interval=False, digits=3)}" for m in rows)
            said.append(f"{_named(place)} pairs, gold of the best of 11 above any response: {listed}")
    return "\n".join(f"- {sentence}." for sentence in said)


BLOCKS: dict[str, Callable[[Summary], str]] = {
    "front": front,
    "missed": missed,
    "bars": bars,
    "same domain": same_domain,
    "shifts": shifts,
    "elsewhere": elsewhere,
    "kept": kept,
    "sets": sets,
    "seen": seen,
    "fine-tuned": fine_tuned,
    "safety": safety,
    "useless": useless,
    "confidence": confidence,
    "selection": selection,
    "embeddings": embeddings,
}
_BLOCK = re.compile(r"(<!-- table ([^>]*?) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str, summary: Summary) -> str:
    """The page with its tables made anew."""

    def block(match: re.Match[str]) -> str:
        if match[2] not in BLOCKS:
            raise SystemExit(f"There is no table {match[2]!r}; there are: {', '.join(BLOCKS)}.")
        return f"{match[1]}\n{BLOCKS[match[2]](summary)}\n\n{match[3]}"

    return _BLOCK.sub(block, text)


def main() -> None:
    """Print the tables, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    summary = Summary(args.results)
    if args.write:
        for page in PAGES:
            page.write_text(filled(page.read_text(encoding="utf-8"), summary), encoding="utf-8")
        return
    for name, make in BLOCKS.items():
        print(f"\n{name}: {make.__doc__}\n\n{make(summary)}")


if __name__ == "__main__":
    main()
