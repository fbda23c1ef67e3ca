"""The figures of the study, from its tables alone.

    python recipes/evidence/figures.py [--results FOLDER] [--out FOLDER]

Reads results/*.csv beside this file and writes docs/evidence/*.png.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from drawing import INK, MUTED, drawn, label_ends, look, point, rows_axis
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from summary import Row, number, read_rows, read_table

HERE = Path(__file__).parent
BASE_RM = "head"
NOISY = 0.25
POOLS = {
    "tulu_bon_pool": "AlpacaEval, one policy",
    "mmlu_pro_pool": "MMLU-Pro, many models",
    "arena_bench_pool": "Arena-Hard, many models",
}
GROUPS = {
    ("rmb", "Harmlessness pairwise"): "RMB harmless, pairs",
    ("rmb", "Harmlessness best-of-n"): "RMB harmless, best of n",
    ("xstest", "overall"): "XSTest",
    ("xstest", "should-refuse"): "XSTest, should refuse",
    ("xstest", "should-respond"): "XSTest, should respond",
    ("hh_harmless_test", "overall"): "HH harmless",
    ("hhh", "harmless"): "HHH harmless",
    ("rm-bench", "safety"): "RM-Bench safety",
}
#: A group with fewer items has intervals of tens of points.
FEWEST = 50
SELECTING = (
    "random",
    "longest",
    "base",
    "SiLU head",
    "5 SiLU heads, mean",
    "5 SiLU heads, WCO",
    "EBRM, mean - 1 std",
    "EBRM",
)
CALIBRATED = ("base", "SiLU head", "5 SiLU heads, mean", "EBRM")

Key = tuple[str, str, str, str]
Table = dict[tuple[str, float], dict[Key, Row]]


def by_noise(rows: Sequence[Row]) -> Table:
    """(kind of base reward model, noise) to the rows by method, benchmark, category and metric."""
    found: Table = defaultdict(dict)
    for row in rows:
        found[row.base_rm, row.noise][row.method, row.benchmark, row.category, row.metric] = row
    return found


def best(table: Table, base_rm: str, family: str) -> str | None:
    """The method of a family with the highest mean score under 25% noise."""
    rows = [row for key, row in table[base_rm, NOISY].items() if key[1:] == ("mean", "overall", "score")]
    rows = [row for row in rows if row.method.startswith(family)]
    return max(rows, key=lambda row: row.value).method if rows else None


def compared(table: Table, base_rm: str) -> list[str]:
    """EBRM, and the best of each family of baselines."""
    families = (best(table, base_rm, name) for name in ("linear refit", "SiLU head", "5 SiLU heads"))
    return ["EBRM", *(name for name in families if name)]


def noise_figure(table: Table, path: Path) -> None:
    """Score and gain on the mean of the test sets against the share of wrong labels, where there are several."""
    counts = Counter(kind for kind, _ in table)
    kinds = [kind for kind, count in counts.items() if count > 1]
    with drawn(path, 3.1 * len(kinds)) as figure:
        for line, kind in enumerate(kinds):
            score = figure.add_subplot(len(kinds), 2, 2 * line + 1)
            gain = figure.add_subplot(len(kinds), 2, 2 * line + 2)
            methods = compared(table, kind)
            _against_noise(score, table, kind, ["base", *methods], "score")
            ends = _against_noise(gain, table, kind, methods, "gain")
            gain.axhline(0, color=look("base")[0], linestyle=look("base")[1])
            low, high = gain.get_ylim()
            label_ends(gain, {**ends, "base": 0.0}, gap=(high - low) / 13)
            score.set_title(f"mean score on the test sets, %{_of(kind, kinds)}")
            gain.set_title("gain on the base reward, points")
        figure.supxlabel("training labels turned round, %", fontsize=9)


def _against_noise(axes: Axes, table: Table, kind: str, methods: Sequence[str], metric: str) -> dict[str, float]:
    """One line a method, moved a little to the side so that intervals can be told apart; where it ends."""
    ends = {}
    noises = sorted(noise for base_rm, noise in table if base_rm == kind)
    for place, method in enumerate(methods):
        rows = [table[kind, noise].get((method, "mean", "overall", metric)) for noise in noises]
        shift = 0.4 * (place - (len(methods) - 1) / 2)
        seen = [(100 * noise + shift, row) for noise, row in zip(noises, rows, strict=True) if row is not None]
        color, dash = look(method)
        axes.plot([x for x, _ in seen], [row.value for _, row in seen], dash, color=color)
        for x, row in seen:
            point(axes, x, row.value, (row.low, row.high), color, method != "base", across=False)
        ends[method] = seen[-1][1].value
    axes.set_xticks([100 * noise for noise in noises])
    return ends


def ablation_figure(table: Table, path: Path) -> None:
    """Gain on the mean of the test sets with one thing changed at a time, in the paper's method and in ours."""
    sides = {name: methods for name in ("paper", "EBRM") if (methods := _variants(table, name))}
    rows = max(len(names) for names in sides.values())
    with drawn(path, 1.0 + 0.25 * rows) as figure:
        for place, (name, methods) in enumerate(sides.items()):
            axes = figure.add_subplot(1, len(sides), place + 1)
            axes.axvline(0, color=MUTED, linewidth=1)
            for at, method in enumerate(methods):
                for shift, noise in ((-0.15, 0.0), (0.15, NOISY)):
                    row = table[BASE_RM, noise].get((method, "mean", "overall", "gain"))
                    if row is not None:
                        ends = (row.low, row.high)
                        point(axes, row.value, at + shift, ends, look(name)[0], noise > 0, across=True)
            rows_axis(axes, [method.removeprefix(f"{name}, ") for method in methods])
            axes.get_yticklabels()[0].set_fontweight("bold")
            axes.set_ylim(rows - 0.4, -0.6)
            axes.set_title({"paper": "the paper's method and variants", "EBRM": "ours and variants"}[name])
        for filled, label in ((False, "labels as published"), (True, f"{100 * NOISY:g}% turned round")):
            face = INK if filled else "white"
            figure.axes[0].plot([], [], "o", color=INK, markerfacecolor=face, markersize=5.5, label=label)
        figure.legend(loc="outside upper right", ncols=2, handletextpad=0.2)
        figure.supxlabel("gain on the base reward, mean of the test sets, points", fontsize=9)


def _variants(table: Table, name: str) -> list[str]:
    """A method, then its variants by falling gain under noise."""
    rows = [row for key, row in table[BASE_RM, NOISY].items() if key[1:] == ("mean", "overall", "gain")]
    variants = [row for row in rows if row.method.startswith(f"{name}, ")]
    ordered = [row.method for row in sorted(variants, key=lambda row: -row.value)]
    return [name, *ordered] if any(row.method == name for row in rows) else ordered


def safety_figure(table: Table, path: Path) -> None:
    """Gain on the base in the groups of safety under 25% noise that have `FEWEST` items or more."""
    found = table[BASE_RM, NOISY]
    methods = [name for name in (*compared(table, BASE_RM), "paper") if (name, "mean", "overall", "gain") in found]
    rows = {group: found.get(("EBRM", *group, "gain")) for group in GROUPS}
    groups = [group for group, row in rows.items() if row is not None and row.items >= FEWEST]
    with drawn(path, 0.9 + 0.52 * len(groups)) as figure:
        axes = figure.add_subplot()
        axes.axvline(0, color=look("base")[0], linestyle=look("base")[1])
        for at, group in enumerate(groups):
            for place, method in enumerate(methods):
                row = found[method, *group, "gain"]
                y = at + 0.15 * (place - (len(methods) - 1) / 2)
                point(axes, row.value, y, (row.low, row.high), look(method)[0], True, across=True)
            if at:
                axes.axhline(at - 0.5, color="#eef0f3", linewidth=0.8)
        rows_axis(axes, [GROUPS[group] for group in groups])
        axes.set_xlabel(f"gain on the base reward, points, {100 * NOISY:g}% of the training labels turned round")
        _legend(figure, axes, methods, "o")


def curve_figure(table: Table, lines: Sequence[dict[str, str]], axis: str, path: Path) -> None:
    """Gold along n or KL; a column for each pool, a row for each noise. Bars are of EBRM's gain, as seen from base."""
    lines = [line for line in lines if line["axis"] == axis and line["base_rm"] == BASE_RM]
    noises = sorted({line["noise"] for line in lines})
    pools = [pool for pool in POOLS if any(line["pool"] == pool for line in lines)]
    methods = [name for name in SELECTING if any(line["method"] == name for line in lines)]
    with drawn(path, 0.8 + 2.1 * len(noises)) as figure:
        panels = figure.subplots(len(noises), len(pools), sharex="col", sharey="col", squeeze=False)
        for noise, cells in zip(noises, panels, strict=True):
            for pool, axes in zip(pools, cells, strict=True):
                mine = [line for line in lines if (line["pool"], line["noise"]) == (pool, noise)]
                _curves(axes, mine, methods)
                _gain_bars(axes, table[BASE_RM, float(noise)], mine, axis)
                if noise == noises[0]:
                    axes.set_title(POOLS[pool])
                if axis == "n":
                    _doublings(axes)
            given = f"{100 * float(noise):g}% turned round" if float(noise) else "labels as published"
            cells[0].set_ylabel(f"gold; {given}")
        along = "responses n" if axis == "n" else "KL to a uniform choice, nats"
        figure.supxlabel(f"{along} (bars: 95% interval of EBRM's gain on base, on the same prompts)", fontsize=9)
        _legend(figure, panels[0, 0], methods, "")


def _curves(axes: Axes, lines: Sequence[dict[str, str]], methods: Sequence[str]) -> None:
    for method in methods:
        mine = [line for line in lines if line["method"] == method]
        x, gold = ([number(line[name]) for line in mine] for name in ("x", "gold"))
        color, dash = look(method)
        axes.plot(x, gold, dash, color=color, linewidth=2.2 if method == "EBRM" else 1.5)


def _gain_bars(axes: Axes, found: dict[Key, Row], lines: Sequence[dict[str, str]], axis: str) -> None:
    """Where EBRM's gold would be at the ends of the interval of its gain, if base stayed where it is."""
    for line in lines:
        metric = f"gain at {'n=' if axis == 'n' else 'KL '}{line['x']}"
        row = found.get(("EBRM", line["pool"], "overall", metric))
        if line["method"] == "base" and row is not None:
            x, gold = number(line["x"]), number(line["gold"])
            axes.plot([x, x], [gold + row.low, gold + row.high], color=look("EBRM")[0], linewidth=1.4)


def _doublings(axes: Axes) -> None:
    """An axis of n with marks at the powers of 2."""
    axes.set_xscale("log", base=2)
    axes.set_xticks([1, 2, 4, 8, 16], ["1", "2", "4", "8", "16"])
    axes.xaxis.set_minor_locator(NullLocator())
    ends = [line.get_xdata()[-1] for line in axes.get_lines() if len(line.get_xdata())]
    axes.set_xlim(0.93, 1.07 * max(ends))


def calibration_figure(lines: Sequence[dict[str, str]], path: Path) -> None:
    """Accuracy against confidence on the pairs of all test sets; a panel for each noise."""
    lines = [line for line in lines if line["benchmark"] == "all" and line["base_rm"] == BASE_RM]
    noises = sorted({line["noise"] for line in lines})
    methods = [name for name in CALIBRATED if any(line["method"] == name for line in lines)]
    with drawn(path, 3.6) as figure:
        panels = figure.subplots(1, len(noises), sharex=True, sharey=True, squeeze=False)[0]
        for noise, axes in zip(noises, panels, strict=True):
            axes.axline((50, 50), slope=1, color=MUTED, linewidth=1, label="as sure as right")
            for method in methods:
                mine = [line for line in lines if (line["method"], line["noise"]) == (method, noise)]
                x, y, low, high = (
                    [100 * number(line[name]) for line in mine] for name in ("confidence", "accuracy", "low", "high")
                )
                color, dash = look(method)
                axes.plot(x, y, dash, color=color, linewidth=1.4)
                for numbers in zip(x, y, low, high, strict=True):
                    point(axes, *numbers[:2], numbers[2:], color, method != "base", across=False)
            axes.set_title(f"{100 * float(noise):g}% of the training labels turned round")
            axes.set_xlim(left=49)
        panels[0].set_ylabel("pairs ranked correctly, %")
        figure.get_layout_engine().set(wspace=0.08)
        figure.supxlabel("confidence, max(p, 1 - p), %", fontsize=9)
        _legend(figure, panels[0], methods, "o")


def _legend(figure: Figure, axes: Axes, methods: Sequence[str], marker: str) -> None:
    """Name the methods above the panels."""
    for method in methods:
        color, dash = look(method)
        axes.plot([], [], dash if not marker else "", marker=marker, color=color, markersize=5.5, label=method)
    handles, labels = axes.get_legend_handles_labels()
    columns = len(labels) if len(labels) < 6 else 4
    figure.legend(handles, labels, loc="outside upper left", ncols=columns, columnspacing=1.4, handletextpad=0.5)


def _of(kind: str, kinds: Sequence[str]) -> str:
    return f" ({kind})" if len(kinds) > 1 else ""


def main() -> None:
    """Draw them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--out", type=Path, default=HERE.parents[1] / "docs" / "evidence")
    args = parser.parse_args()
    table = by_noise(read_rows(args.results / "summary.csv"))
    args.out.mkdir(parents=True, exist_ok=True)
    noise_figure(table, args.out / "noise.png")
    ablation_figure(table, args.out / "ablation.png")
    safety_figure(table, args.out / "safety.png")
    lines = read_table(args.results / "curves.csv")
    curve_figure(table, lines, "n", args.out / "best-of-n.png")
    curve_figure(table, lines, "kl", args.out / "kl.png")
    calibration_figure(read_table(args.results / "reliability.csv"), args.out / "calibration.png")
    for path in sorted(args.out.glob("*.png")):
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
