"""Results in one table each, with the sentences needed to read it: an evaluation, methods compared, best of n."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ebrm.evaluation import Along, Comparison, Evaluation, Selection, apart
from ebrm.metrics import FEW, Estimate
from ebrm.report.figures import write_selection_figure
from ebrm.report.tables import Table, left_out, markdown
from ebrm.report.words import count, decimal, interval, listing, p_number, too_few, too_few_of
from ebrm.utils.files import TIMING, write_json, write_text
from ebrm.utils.neutral import csv_text

_CURVES = ("reward", "axis", "x", "gold", "low", "high", "gain", "gain_low", "gain_high", "prompts", "training_prompts")


def scores_summary(evaluation: Evaluation) -> tuple[Table, list[str]]:
    """The overall scores, one row a benchmark and scorer, and notes on them."""
    own, reference = bool(apart(evaluation)), evaluation.reference

    def change(estimate: Estimate | None, p: float | None) -> list[str]:
        return [*_cells(estimate, 1, 100, sign=True), "" if estimate is None or p is None else p_number(p)]

    body = []
    for result in evaluation.benchmarks:
        score = result.scores[0].name
        for number, (name, scorer) in enumerate(result.scorers.items()):
            entry = scorer.entries[score]
            row = ["" if number else result.title, name, *_cells(entry.value, 1, 100)]
            row += [*change(entry.difference, entry.p_holm), *(change(entry.gain, entry.p_gain_holm) if own else ())]
            body.append([*row, "" if number else f"{result.counts[score][0]:,}"])
    head = ["benchmark", "scorer", "score", "interval", f"minus {reference}", "interval", "p"]
    head += [*(["minus its base", "interval", "p"] if own else []), "items"]
    notes = [
        f"Scores in percent with {100 * evaluation.bootstrap.level:g}% intervals over prompts. p: permutation test, "
        "corrected for all comparisons of its column (Holm).",
        *left_out(evaluation.benchmarks),
        *(f"{result.title}: {note}" for result in evaluation.benchmarks for note in result.notes),
    ]
    return Table("Official overall scores", head, body), notes


def comparison_summary(comparison: Comparison, caption: str = "Methods") -> tuple[Table, list[str]]:
    """Methods compared (`compare_heads`), one row each, and notes on them."""
    first, pool = comparison.methods[0].name, comparison.n is not None
    head = ["method", "accuracy, %", "interval", f"minus {first}", "interval", "ECE, %", "log loss", "interval"]
    head += [f"best of {comparison.n}", f"minus {first}", "interval"] if pool else []
    body = []
    for m in comparison.methods:
        row = [m.name, *_cells(m.accuracy, 1, 100), *_cells(m.difference, 1, 100, sign=True)]
        row += [decimal(100 * m.ece.value, 1), *_cells(m.log_loss, 3)]
        row += [_cells(m.gold, 3)[0], *_cells(m.gain, 3, sign=True)] if pool else []
        body.append([*row, f"{m.parameters:,}", decimal(m.microseconds, 2)])
    notes = [
        f"{count(comparison.pairs, 'held-out pair')} of {count(comparison.prompts, 'prompt')}; "
        f"{100 * comparison.bootstrap.level:g}% intervals over prompts, differences paired. A tie is ranked "
        "wrongly. P(chosen > rejected) of every method is calibrated alike, with one temperature fitted on the "
        "validation pairs."
    ]
    if comparison.pairs < FEW:
        smallest = max((m.smallest or math.inf for m in comparison.methods[1:]), default=math.inf)
        notes.insert(0, f"{too_few(comparison.pairs, smallest if math.isfinite(smallest) else None, 'held-out pair')}.")
    notes[:0] = [f"Warning: {said}" for said in comparison.warnings]
    if pool and comparison.pool_prompts < FEW:
        notes.append(f"{count(comparison.pool_prompts, 'prompt')} of the pool: too few to tell by gold.")
    if pool:
        notes.append(
            f"Best of {comparison.n}: mean gold over {count(comparison.pool_prompts, 'prompt')}; any response: "
            f"{decimal(comparison.random, 3)}."
        )
    notes += [f"Left out: {count(n, 'prompt')} of the pool ({reason})." for reason, n in comparison.left_out.items()]
    return Table(caption, [*head, "parameters", "µs a row"], body), notes


def selection_summary(selection: Selection, gold: str = "gold") -> tuple[Table, list[str]]:
    """Gold of the best of n = 2, 4, 8, … by each reward, and where each peaks and what is lost beyond."""
    first = next(iter(selection.along))
    last = len(selection.along[first]["n"].x)
    shown = sorted({2**k for k in range(1, last.bit_length())} | {last})
    head, body, notes = ["reward", "best of", gold, "interval"], [], []
    head += [f"minus {first}", "interval"] if len(selection.along) > 1 else []
    for name, axes in selection.along.items():
        along = axes["n"]
        for n in shown:
            row = [name if n == shown[0] else "", str(n), *_cells(_at(along.gold, n - 1), 3)]
            row += _cells(None if along.gain is None else _at(along.gain, n - 1), 3, sign=True)
            body.append(row[: len(head)])
        notes.append(f"{name}: {_peak(axes['n'], 'n =', 0, gold)}; {_peak(axes['kl'], 'KL', 2, gold)}.")
    notes.append(
        f"Any response: {decimal(selection.random[0], 3)}; the best of {last} by {gold} itself: "
        f"{decimal(float(selection.oracle['n'].value[-1]), 3)}. {100 * selection.bootstrap.level:g}% intervals over "
        f"{count(selection.prompts, 'prompt')}."
    )
    if selection.prompts < FEW:
        notes.insert(0, f"{_smallest(selection, gold, last)}.")
    notes += [f"Left out: {count(number, 'prompt')} ({reason})." for reason, number in selection.left_out.items()]
    caption = f"{gold} of the best of n"
    if selection.training_prompts:
        share = f"training prompts: {selection.training_prompts:,} of {selection.prompts:,}"
        caption = f"{caption} ({share})"
        notes.append(
            f"{share[0].upper()}{share[1:]} were fitted on; the numbers do not say what rewards are worth on others."
        )
    return Table(caption, head, body), notes


def _smallest(selection: Selection, gold: str, last: int) -> str:
    """The smallest difference of gold that so few prompts could show, for each reward."""
    known = [(name, one) for name, one in selection.smallest.items() if one is not None]
    if not known:
        return too_few(selection.prompts, None, "prompt")
    said = too_few_of(selection.prompts, "prompt")
    first = next(iter(selection.along))
    sizes = [
        f"{decimal(one, 3)} or more between {name} and {'any response' if name == first else first}"
        for name, one in known
    ]
    return f"{said}; at n = {last} only a difference in {gold} of about {listing(sizes)} could be seen"


def write_comparison(
    folder: Path, comparison: Comparison, caption: str = "Methods", more: Mapping[str, Any] | None = None
) -> None:
    """Write `results.json` (the comparison and `more`) and `table.md`; what they cost in time, in `timing.json`."""
    table, notes = comparison_summary(comparison, caption)
    table = replace(table, head=table.head[:-1], body=[row[:-1] for row in table.body])
    results = {**(more or {}), **comparison.to_dict()}
    timing = {m["name"]: {name: m.pop(name) for name in ("microseconds", "seconds")} for m in results["methods"]}
    write_json(folder / TIMING, {"methods": timing})
    write_json(folder / "results.json", results)
    write_text(folder / "table.md", markdown([table], notes))


def write_selection(
    folder: Path, selection: Selection, gold: str = "gold", more: Mapping[str, Any] | None = None
) -> None:
    """Write `curves.png`, all points of all curves as `curves.csv`, and `results.json` (the selection and `more`)."""
    shown = f"{gold} (training prompts)" if selection.training_prompts else gold
    write_selection_figure(folder / "curves.png", selection, shown)
    rows: list[Sequence[object]] = [_CURVES]
    for name, axes in selection.along.items():
        for axis, along in axes.items():
            for at, x in enumerate(along.x):
                curves = [curve for curve in (along.gold, along.gain) if curve is not None]
                numbers = [f"{end[at]:.6g}" for curve in curves for end in (curve.value, curve.low, curve.high)]
                numbers += [""] * (6 - len(numbers))
                rows.append([name, axis, f"{x:.6g}", *numbers, selection.prompts, selection.training_prompts])
    write_text(folder / "curves.csv", csv_text(rows))
    write_json(folder / "results.json", {**(more or {}), "gold": gold, **selection.to_dict()})


def _cells(estimate: Estimate | None, digits: int, scale: float = 1, sign: bool = False) -> list[str]:
    """Value and interval, empty where there is no estimate."""
    if estimate is None:
        return ["", ""]
    ends = interval(scale * estimate.low, scale * estimate.high, digits, sign)
    return [decimal(scale * estimate.value, digits, sign), ends]


def _at(curve: Any, at: int) -> Estimate:
    return Estimate(float(curve.value[at]), float(curve.low[at]), float(curve.high[at]))


def _peak(along: Along, word: str, digits: int, gold: str) -> str:
    """Where a curve is highest, and what is lost from there on."""
    peak, end = along.peak, decimal(float(along.x[-1]), digits)
    where = f"{decimal(peak.x.value, digits)} {interval(peak.x.low, peak.x.high, digits)}"
    highest = f"highest at {word} {where}, {gold} {decimal(peak.gold.value, 3)}"
    if peak.x.value == along.x[-1]:
        return f"{highest}, the end of the axis"
    return f"{highest}, {decimal(peak.loss.value, 3)} {interval(peak.loss.low, peak.loss.high, 3)} less at {end}"
