"""All figures, beside what they must reach, in one table and in results.json.

    python -m benchmarks.run [--quick] [--only refine train] [--device cuda] [--out FILE]

`make bench` runs it; the whole takes up to 40 minutes on two cores, `make bench QUICK=1` (smaller sizes) under 3. A GPU
serves `refine` and `train`; the others run on the CPU.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.timing import Figure
from ebrm.utils.files import write_json

#: What is measured, and how the names of its figures begin.
MODULES = {
    "refine": ("refine", "posterior", "default model"), "train": ("train",), "features": ("features",),
    "end_to_end": ("end",), "reading": ("reading",),
}  # fmt: skip
ON_DEVICE = ("refine", "train")
RESULTS = Path(__file__).with_name("results.json")


def measure(names: Sequence[str], quick: bool, device: str, console: Console) -> Iterator[Figure]:
    """The figures of the named modules, said as they come."""
    started = time.monotonic()
    for name in names:
        console.rule(f"{name} ({time.monotonic() - started:.0f} s so far)", align="left", style="dim")
        module = importlib.import_module(f"benchmarks.{name}")
        options = {"device": device} if name in ON_DEVICE else {}
        for figure in module.figures(quick, **options):
            console.print(_line(figure), highlight=False)
            yield figure


def _line(figure: Figure) -> str:
    place = f"d = {figure.d:,}, {figure.network}, {figure.rows:,} rows"
    return f"  {figure.figure}, {place}: {_ratio(figure)}x"


def _ratio(figure: Figure) -> str:
    """The ratio with the digits that tell it from what is required."""
    digits = 3 if figure.ratio < 2 else 1 if figure.ratio < 100 else 0
    return f"{figure.ratio:,.{digits}f}"


def spread(figure: Figure) -> str:
    """`ratio [low, high]`, all with the same digits."""
    digits = 3 if figure.ratio < 2 else 1 if figure.ratio < 100 else 0
    return f"{_ratio(figure)} [{figure.ratio_low:,.{digits}f}, {figure.ratio_high:,.{digits}f}]"


def duration(seconds: float) -> str:
    """Seconds with three digits and a unit that suits them."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:,.{2 if seconds < 10 * size else 1}f} {unit}"
    return f"{seconds / 1e-6:,.0f} µs"


def met(figure: Figure) -> str:
    """`yes`, `no`, or nothing where nothing is required."""
    return "" if figure.required is None else "yes" if figure.met else "no"


def table(figures: Sequence[Figure]) -> Table:
    """All figures, one a row, for a terminal of 100 columns."""
    made = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    made.add_column("Figure", min_width=14)
    made.add_column("d", justify="right", no_wrap=True)
    made.add_column("Network", min_width=10)
    for name in ("Rows", "Plain", "Ours", r"Ratio \[low, high]", "Needs"):
        made.add_column(name, justify="right", no_wrap=True)
    for figure in figures:
        made.add_row(
            figure.figure, f"{figure.d:,}", figure.network, f"{figure.rows:,}", duration(figure.plain_seconds),
            duration(figure.ours_seconds), spread(figure).replace("[", r"\["),
            "" if figure.required is None else f"{figure.required:g} {'met' if figure.met else 'MISSED'}",
            style=None if figure.met else "bold red",
        )  # fmt: skip
    return made


def caption(figures: Sequence[Figure]) -> str:
    """How the ratios are to be read, and how many requirements are met."""
    demanded = [figure for figure in figures if figure.required is not None]
    where = sorted({f"{figure.device}, {figure.threads} threads" for figure in figures})
    missed = sum(not figure.met for figure in demanded)
    return (
        f"Ratio: plain seconds over ours, medians, with the least and greatest of one turn. {'; '.join(where)}. "
        f"{len(demanded) - missed} of {len(demanded)} requirements met."
    )


def kept(out: Path, names: Sequence[str], device: str) -> list[Figure]:
    """What the results at `out` have beside the figures of these modules on this device."""
    if set(names) == set(MODULES) or not out.exists():
        return []
    figures = [Figure(**row) for row in json.loads(out.read_text())]
    return [figure for figure in figures if not (_module(figure) in names and figure.device == device)]


def in_order(figures: Sequence[Figure]) -> list[Figure]:
    """The figures, module by module."""
    return sorted(figures, key=lambda figure: list(MODULES).index(_module(figure)))


def _module(figure: Figure) -> str:
    return next(name for name, begins in MODULES.items() if figure.figure.startswith(begins))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, write the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description="Measure ebrm's speed.")
    parser.add_argument("--quick", action="store_true", help="smaller sizes, fewer turns")
    parser.add_argument(
        "--only", nargs="+", choices=MODULES, default=list(MODULES), metavar="NAME",
        help=f"measure these again, and keep what the results have of the others: {', '.join(MODULES)}",
    )  # fmt: skip
    parser.add_argument("--device", default="cpu", help="where refine and train run (default: cpu)")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help=f"results as JSON (default: benchmarks/{RESULTS.name})"
    )
    args = parser.parse_args(arguments)
    if args.device != "cpu" and not torch.cuda.is_available():
        parser.error(f"--device {args.device}: torch finds no GPU here; leave --device out to measure on the CPU")
    console = Console() if sys.stdout.isatty() else Console(width=100)
    before = kept(args.out, args.only, args.device)
    figures = in_order([*before, *measure(args.only, args.quick, args.device, console)])
    console.print(table(figures), caption(figures), sep="\n\n", highlight=False)
    write_json(args.out, [asdict(figure) for figure in figures])
    console.print(f"RenderedText to {args.out}.", highlight=False)


if __name__ == "__main__":
    main()
