"""`ebrm best-of-n POOL --out DIR`: what selecting responses by a reward is worth, along n and along KL."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from ebrm.cli.common import out_folder
from ebrm.cli.console import Console
from ebrm.cli.parser import Chosen, Command, Part
from ebrm.errors import ConfigError

if TYPE_CHECKING:
    from ebrm.evaluation import Along, Selection

_HEAD = ("reward", "axis", "x", "gold", "low", "high", "gain", "gain_low", "gain_high", "prompts")


@dataclass(frozen=True)
class PoolConfig:
    """Which columns are what, and where the results go.

    Attributes:
        out: folder for curves.png, curves.csv and results.json; written anew.
        reward: columns with rewards, with commas between; differences are to the first. Unset: base_reward and
            reward, as `ebrm score` writes them, those of them that there are.
        gold: column with the worth of a response; higher is better.
        prompt_column: column that the responses to one prompt have in common. Unset: prompt_id, else prompt.
        least: leave out prompts with fewer responses; curves end at the smallest pool that stays. Unset: as
            many as nine in ten prompts have.
        resamples: bootstrap resamples of the prompts.
        seed: seed of the bootstrap.
    """

    out: str
    reward: tuple[str, ...] = ()
    gold: str = "gold"
    prompt_column: str | None = None
    least: int | None = None
    resamples: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("least", 2), ("resamples", 100), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} is {value}; it must be at least {least}.")


def best_of_n(
    console: Console,
    chosen: Chosen,
    pool: Annotated[
        str,
        Parameter(
            name="POOL",
            help="Responses, one a row (.jsonl, .json, .csv, .tsv, .parquet): the prompt's id, one or more "
            "rewards, and gold. `ebrm score` adds the rewards to such a file.",
        ),
    ],
) -> None:
    """Draw gold against n and against KL when a reward selects among the responses to a prompt.

    Gold of the best of n is the exact mean over all sets of n of a prompt's responses. KL is that of the policy
    that maximizes the reward under a KL penalty, from choosing at random among the responses. Intervals are over
    prompts; differences between rewards are paired.
    """
    settings = chosen.of(PoolConfig)
    out = out_folder(settings.out)
    from ebrm.evaluation import read_pools, select
    from ebrm.metrics import Bootstrap
    from ebrm.report import write_selection_figure
    from ebrm.utils.files import write_json, write_text

    pools = read_pools(pool, settings.reward, settings.gold, settings.prompt_column)
    selection = select(pools, settings.least, bootstrap=Bootstrap(settings.resamples, seed=settings.seed))
    found = {"pool": Path(pool).name, "gold": settings.gold, **selection.to_dict()}
    write_selection_figure(out / "curves.png", selection, settings.gold)
    write_text(out / "curves.csv", _csv(selection))
    write_json(out / "results.json", found)
    _show(console, selection, settings.gold)
    console.facts([("picture", out / "curves.png"), ("numbers", out / "results.json"), ("table", out / "curves.csv")])
    console.result({"out": str(out), **found})


def _show(console: Console, selection: Selection, gold: str) -> None:
    """Gold at n = 2, 4, 8, … of each reward, then where each peaks and what is lost beyond."""
    from ebrm.report import count, decimal, interval

    first = next(iter(selection.along))
    last = len(selection.along[first]["n"].x)
    shown = sorted({2**k for k in range(1, last.bit_length())} | {last})
    rows: list[list[Any]] = []
    for name, axes in selection.along.items():
        along = axes["n"]
        for n in shown:
            at = n - 1
            row = [name if n == shown[0] else "", n, decimal(along.gold.value[at], 3)]
            row.append(interval(along.gold.low[at], along.gold.high[at], 3))
            if along.gain is None:
                row += ["", ""]
            else:
                ends = interval(along.gain.low[at], along.gain.high[at], 3, sign=True)
                row += [decimal(along.gain.value[at], 3, sign=True), ends]
            rows.append(row)
    several = len(selection.along) > 1
    head = ["reward", "best of", gold, "interval", f"minus {first}", "interval"]
    console.table(head if several else head[:4], rows if several else [row[:4] for row in rows])
    for name, axes in selection.along.items():
        console.print(f"{name}: {_peak(axes['n'], 'n =', 0, gold)}; {_peak(axes['kl'], 'KL', 2, gold)}.")
    random, best = selection.random[0], selection.oracle["n"].value[-1]
    console.print(
        f"Any response: {decimal(random, 3)}; the best of {last} by {gold} itself: {decimal(float(best), 3)}. "
        f"{100 * selection.bootstrap.level:g}% intervals over {count(selection.prompts, 'prompt')}."
    )
    for reason, number in selection.left_out.items():
        console.print(f"Left out: {count(number, 'prompt')} ({reason}).")


def _peak(along: Along, word: str, digits: int, gold: str) -> str:
    """Where a curve is highest, and what is lost from there on."""
    from ebrm.report import decimal, interval

    peak, end = along.peak, decimal(float(along.x[-1]), digits)
    where = f"{decimal(peak.x.value, digits)} {interval(peak.x.low, peak.x.high, digits)}"
    highest = f"highest at {word} {where}, {gold} {decimal(peak.gold.value, 3)}"
    if peak.x.value == along.x[-1]:
        return f"{highest}, the end of the axis"
    return f"{highest}, {decimal(peak.loss.value, 3)} {interval(peak.loss.low, peak.loss.high, 3)} less at {end}"


def _csv(selection: Selection) -> str:
    """All points of all curves, one a line."""
    import csv
    import io

    handle = io.StringIO()
    writer = csv.writer(handle, lineterminator="\n")
    writer.writerow(_HEAD)
    for name, axes in selection.along.items():
        for axis, along in axes.items():
            for at, x in enumerate(along.x):
                curves = [curve for curve in (along.gold, along.gain) if curve is not None]
                numbers = [f"{end[at]:.6g}" for curve in curves for end in (curve.value, curve.low, curve.high)]
                numbers += [""] * (6 - len(numbers))
                writer.writerow([name, axis, f"{x:.6g}", *numbers, selection.prompts])
    return handle.getvalue()


command = Command("best-of-n", best_of_n, {"selection": Part(PoolConfig)})
