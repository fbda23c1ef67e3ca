"""The figures of docs/evidence.md, from results/ alone.

python recipes/adaptation/figures.py [--results FOLDER] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from drawing import GRAY, MUTED, apart, drawn, label_ends, look, within
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

HERE = Path(__file__).parent
#: Panels of the front: scenario and number of pairs.
PANELS = (
    ("chat to grounded", 300), ("chat to HH-harmless", 150), ("chat to XSTest", 150), ("grounded to chat", 300),
    ("judges to people", 300),
)  # fmt: skip
#: What is lost or kept: accuracy on the vendor's own kind. The mean of all other sets would reward forgetting those on
#: which the base is below chance.
KEPT = "vendor's own kind"
#: Methods of the front, with the names they have there.
FRONT = {
    "EBRM, unseen + anchors": "EBRM + anchors", "EBRM, unseen": "EBRM", "linear": "linear",
    "linear + anchors": "linear + anchors",
    "a r0 + ridge": "a r0 + ridge", "a r0 + ridge + anchors": "a r0 + ridge + anchors", "SiLU head": "SiLU head",
    "5 SiLU heads, mean": "5 SiLU heads",
}  # fmt: skip
CURVES = ("EBRM", "EBRM, unseen", "linear", "a r0 + ridge", "SiLU head", "5 SiLU heads, mean")
NAMES = {"minilm": "MiniLM", "gemma": "Gemma 3 270M"}


class Value(NamedTuple):
    """A value with its interval."""

    value: float
    low: float
    high: float


Table = dict[tuple[str, str, str, int, str, str], Value]


def read_table(path: Path) -> Table:
    """Estimates by backbone, base, scenario, n, method and measure."""
    found: Table = {}
    with open(path, newline="") as handle:
        for row in csv.DictReader(handle):
            if row["low"]:
                key = (row["backbone"], row["base"], row["scenario"], int(row["n"]), row["method"], row["measure"])
                found[key] = Value(float(row["value"]), float(row["low"]), float(row["high"]))
    return found


def front(table: Table, backbone: str, base: str, path: Path) -> None:
    """Gain on the target against what is kept of the vendor's own kind: a panel a shift, a point a method."""
    panels = [panel for panel in PANELS if (backbone, base, *panel, "EBRM", "target") in table]
    rows = (len(panels) + 1) // 2
    with drawn(path, 2.9 * rows + 0.3) as figure:
        grid = figure.subplots(rows, 2, squeeze=False).ravel()
        for axes, panel in zip(grid, panels, strict=False):
            found = {
                name: (
                    table[(backbone, base, *panel, name, KEPT)],
                    table[(backbone, base, *panel, name, "target")],
                )
                for name in FRONT
                if (backbone, base, *panel, name, "target") in table
            }
            _front_panel(axes, found)
            axes.set_title(f"{panel[0]}, {panel[1]} pairs")
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        figure.supxlabel("change on the vendor's own kind, points", fontsize=9)
        figure.supylabel("gain on the target, points", fontsize=9)


def _front_panel(axes: Axes, found: dict[str, tuple[Value, Value]]) -> None:
    axes.axhline(0, color=MUTED, linewidth=0.8)
    axes.axvline(0, color=MUTED, linewidth=0.8)
    axes.plot(0, 0, "s", color=GRAY, markersize=6)
    axes.annotate("base", (0, 0), (-5, -10), textcoords="offset points", color=GRAY, fontsize=8, ha="right")
    left, right = (pick(0.0, *(end for x, _ in found.values() for end in x[1:])) for pick in (min, max))
    low, high = (pick(0.0, *(end for _, y in found.values() for end in y[1:])) for pick in (min, max))
    width, height = right - left, high - low
    axes.set_xlim(left - 0.05 * width, right + 0.9 * width)  # names stand at the right
    axes.set_ylim(low - 0.12 * height, high + 0.08 * height)
    axes.set_xticks([tick for tick in axes.get_xticks() if left - 0.05 * width <= tick <= right + 0.05 * width])
    for name, (x, y) in found.items():
        color, kept = look(name)[0], "anchors" in name
        axes.plot([x.low, x.high], [y.value] * 2, color=color, linewidth=1, alpha=0.55)
        axes.plot([x.value] * 2, [y.low, y.high], color=color, linewidth=1, alpha=0.55)
        axes.plot(x.value, y.value, "D" if kept else "o", color=color, markersize=6 if "EBRM" in name else 4.5)
    places = within(apart([y.value for _, y in found.values()], height * 1.2 / 13), low - 0.05 * height, high)
    for (name, (x, y)), place in zip(found.items(), places, strict=True):
        color = look(name)[0]
        axes.plot([x.value, right + 0.08 * width], [y.value, place], color=color, linewidth=0.5, alpha=0.6)
        axes.text(right + 0.1 * width, place, FRONT[name], va="center", color=color, fontsize=8)


def curves(table: Table, path: Path, scenarios: Sequence[str] = ("same domain", "chat to grounded")) -> None:
    """Gain on the target against the number of pairs; a row a backbone."""
    backbones = [one for one in NAMES if (one, "head", scenarios[0], 100, "EBRM", "target") in table]
    with drawn(path, 2.7 * len(backbones) + 0.3) as figure:
        grid = figure.subplots(len(backbones), len(scenarios), squeeze=False)
        for line, backbone in zip(grid, backbones, strict=True):
            for axes, scenario in zip(line, scenarios, strict=True):
                ends, sizes = {}, sorted({key[3] for key in table if key[:3] == (backbone, "head", scenario)})
                for name in CURVES:
                    found = [(n, table.get((backbone, "head", scenario, n, name, "target"))) for n in sizes]
                    points = [(n, value) for n, value in found if value is not None]
                    if not points:
                        continue
                    color, dash = look(name)
                    x = [n for n, _ in points]
                    axes.plot(x, [v.value for _, v in points], dash, marker="o", markersize=3.5, color=color)
                    if name == "EBRM":
                        axes.fill_between(
                            x, [v.low for _, v in points], [v.high for _, v in points], color=color, alpha=0.15, lw=0
                        )
                    ends[name] = points[-1][1].value
                axes.axhline(0, color=look("base")[0], linewidth=1, linestyle="--")
                axes.set_xscale("log")
                axes.set_xticks(sizes, [f"{n:,}" for n in sizes])
                axes.xaxis.set_minor_locator(NullLocator())
                axes.set_title(f"{NAMES[backbone]}: {scenario}")
                label_ends(axes, ends)
        figure.supxlabel("preference pairs", fontsize=9)
        figure.supylabel("gain on the target, points", fontsize=9)


def risk_coverage(path: Path, source: Path) -> None:
    """Errors among the pairs that are decided; a row a backbone, a panel a number of pairs."""
    with open(source, newline="") as handle:
        rows = [row for row in csv.DictReader(handle) if row["base"] == "head" and row["n"] in ("300", "1000")]
    panels = sorted({(row["backbone"], int(row["n"])) for row in rows}, key=lambda one: (one[0] != "minilm", one[1]))
    lines = (len(panels) + 1) // 2
    with drawn(path, 2.7 * lines + 0.3) as figure:
        grid = figure.subplots(lines, 2, squeeze=False).ravel()
        for axes, (backbone, n) in zip(grid, panels, strict=False):
            ends = {}
            for method in dict.fromkeys(row["method"] for row in rows):
                mine = [row for row in rows if (row["backbone"], int(row["n"]), row["method"]) == (backbone, n, method)]
                x, y = ([float(row[name]) * scale for row in mine] for name, scale in (("coverage", 100), ("wrong", 1)))
                if not x:
                    continue
                color, dash = look(method)
                axes.plot(x, y, dash, color=color)
                ends[method] = y[-1]
            label_ends(axes, ends)
            axes.set_title(f"{NAMES[backbone]}: same domain, {n:,} pairs")
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        figure.supxlabel("pairs decided, the most confident first, %", fontsize=9)
        figure.supylabel("of these wrong, %", fontsize=9)


def main() -> None:
    """Draw them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--out", type=Path, default=HERE.parents[1] / "docs" / "evidence")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    table = read_table(args.results / "summary.csv")
    for backbone in NAMES:
        if any(key[:2] == (backbone, "head") for key in table):
            front(table, backbone, "head", args.out / f"front-{backbone}.svg")
    curves(table, args.out / "curves.svg")
    risk_coverage(args.out / "risk-coverage.svg", args.results / "risk_coverage.csv")


if __name__ == "__main__":
    main()
