"""What lies behind the scores: the report's sections on calibration, abstention and the rewards themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from ebrm.evaluation import BenchmarkResult, Evaluation, ScorerResult
from ebrm.metrics import Calibration, RiskCoverage
from ebrm.report.benchmark_figures import (
    Floats,
    PanelKind,
    margin_panel,
    panel_legend,
    reliability_panel,
    risk_panel,
)
from ebrm.report.benchmark_metrics import (
    ABSTENTION,
    CALIBRATION,
    ORDER,
    PAIRS,
    Column,
    all_metrics,
    metric_grid,
    metric_value,
    unknown_metrics,
)
from ebrm.report.benchmark_verdicts import families, titles
from ebrm.report.page import Panel, Section
from ebrm.report.words import listing, name_in_text

# So many figures of one kind are drawn at most, but never fewer than one for each benchmark.
_FIGURES = 36

T = TypeVar("T")


@dataclass(frozen=True)
class Curves(Generic[T]):
    """A kind of curve that is drawn for each benchmark.

    Attributes:
        kind: of its panels.
        title: what it shows.
        caption: how to read it.
        metric: name, word and format of the number above each figure.
        take: from a result to what is drawn; None where there is nothing to draw.
        draw: from the figure's id, its title and what `take` gave for each role to SVG.
    """

    kind: PanelKind
    title: str
    caption: str
    metric: tuple[str, str, Column]
    take: Callable[[ScorerResult], T | None]
    draw: Callable[[str, str, Mapping[str, T]], str]


_RELIABILITY: Curves[Calibration] = Curves(
    "reliability",
    "Accuracy against confidence",
    "On the dashed line a confidence of 80% is right in 80% of pairs; below it the reward is too sure of itself, above "
    "it not sure enough. Each mark is a group of pairs of about equal size, with its interval.",
    ("ece", "ECE, %:", CALIBRATION["ece"]),
    lambda result: result.calibration,
    reliability_panel,
)
_RISK: Curves[Mapping[str, RiskCoverage]] = Curves(
    "risk",
    "Error rate against the share of pairs kept",
    "Going left, the pairs that the reward is least certain of are left out: a curve that falls means that its "
    "uncertainty finds the errors. Lower is better everywhere.",
    ("aurc_gain_confidence", "gained, points:", ABSTENTION["aurc_gain_confidence"]),
    lambda result: result.risk or None,
    risk_panel,
)
_MARGINS: Curves[Floats] = Curves(
    "margin",
    "Reward margins, right minus wrong response",
    "Left of the dashed line a pair is ranked wrongly. The few margins beyond the ends are counted in the outermost "
    "bars.",
    ("margin", "mean, in stds:", PAIRS["margin"]),
    lambda result: result.margins if len(result.margins) else None,
    margin_panel,
)


def calibration_section(evaluation: Evaluation) -> Section | None:
    """Whether P(right > wrong) means what it says."""
    panels = _panels(evaluation, _RELIABILITY)
    grid = metric_grid(evaluation, "Calibration errors", CALIBRATION)
    if not panels and grid is None:
        return None
    return Section(
        "calibration",
        "Calibration of P(right > wrong)",
        text=[
            "A pair counts by its confidence, the larger of P(right > wrong) and its complement, and by whether the "
            "side it favors is the right one. A refined reward has this probability from its two densities; a reward "
            "model has none of its own and is given the Bradley\u2013Terry one, the sigmoid of its reward difference."
        ],
        panels=panels,
        grids=[grid] if grid else [],
        notes=[
            "ECE: the mean distance of the marks from the dashed line, lower is better; by chance alone even a "
            "perfectly calibrated reward has some on this many pairs. Always saying one half has a Brier score of "
            "0.250 and a log loss of 0.693.",
            *_not_drawn(evaluation),
        ],
    )


def abstention_section(evaluation: Evaluation) -> Section | None:
    """What is gained by leaving out the pairs that a reward is least certain of."""
    panels = _panels(evaluation, _RISK)
    grid = metric_grid(evaluation, "How well uncertainty finds the errors", ABSTENTION)
    if not panels and grid is None:
        return None
    return Section(
        "abstention",
        "Leaving out uncertain pairs",
        text=[
            "Does a reward know when it is wrong? By confidence, a pair is uncertain if P(right > wrong) is near one "
            "half; by std, if the density of its reward difference is wide, whatever the difference."
        ],
        panels=panels,
        grids=[grid] if grid else [],
        notes=[
            "AUROC: the chance that a wrong pair is more uncertain than a right one (0.500 is no better than guessing, "
            "below it misleads). Area: the mean error rate over all shares kept. Gained: how far it lies below that of "
            "leaving out pairs at random; above the figures, by confidence.",
            *_not_drawn(evaluation),
        ],
    )


def rewards_section(evaluation: Evaluation) -> Section | None:
    """Margins, length, and the order of more than two responses."""
    panels = _panels(evaluation, _MARGINS)
    tied = any(metrics["ties"].value > 0 for metrics in all_metrics(evaluation) if "ties" in metrics)
    pairs = PAIRS if tied else {name: column for name, column in PAIRS.items() if "ties" not in name}
    tables = (
        ("Pairs of a right and a wrong response", pairs),
        ("Order of several responses", ORDER),
        ("Further measures", unknown_metrics(evaluation)),
    )
    grids = [metric_grid(evaluation, caption, columns) for caption, columns in tables]
    found = [grid for grid in grids if grid]
    if not panels and not found:
        return None
    return Section(
        "rewards",
        "Margins, length and order",
        panels=panels,
        grids=found,
        notes=[
            "These numbers do not follow a benchmark's own rule: all pairs of a right (or better) and a wrong (or "
            "worse) response count, at most nine an item. Pairs of like length: the longer response has at most 1.1 "
            "times the characters of the shorter. A correlation with length above zero means that longer responses to "
            "the same prompt get higher rewards, rightly or not."
            + ("" if tied else " No two rewards of a pair are tied."),
            *_not_drawn(evaluation),
        ],
    )


def drawn_families(evaluation: Evaluation) -> list[dict[str, str]]:
    """The families whose curves are drawn: those with the reference first, as many as there is room for."""
    ranked = sorted(families(evaluation), key=lambda roles: evaluation.reference not in roles.values())
    return ranked[: max(1, _FIGURES // len(evaluation.benchmarks))]


def _not_drawn(evaluation: Evaluation) -> list[str]:
    drawn = {who for roles in drawn_families(evaluation) for who in roles.values()}
    absent = [name_in_text(who) for who in evaluation.bases if who not in drawn]
    return [f"Not drawn, for want of room: {listing(absent)}; the tables have their numbers."] if absent else []


def _panels(evaluation: Evaluation, curves: Curves[T]) -> list[Panel]:
    """One panel for each base with its refined reward, one figure in it for each benchmark."""
    names = titles(evaluation)
    panels: list[Panel] = []
    drawn = drawn_families(evaluation)
    for number, roles in enumerate(drawn, start=1):
        label = " and its base ".join(name_in_text(roles[role]) for role in ("refined", "base") if role in roles)
        figures = []
        for place, benchmark in enumerate(evaluation.benchmarks, start=1):
            found = {role: curves.take(benchmark.scorers[who]) for role, who in roles.items()}
            data = {role: one for role, one in found.items() if one is not None}
            if data:
                title = names[benchmark.name]
                svg = curves.draw(f"{curves.kind}-{number}-{place}", f"{curves.title} on {title}: {label}.", data)
                figures.append((title, _above(benchmark, roles, curves), svg))
        if figures:
            std = [
                role for role, who in roles.items() if any("std" in b.scorers[who].risk for b in evaluation.benchmarks)
            ]
            panels.append(
                Panel(
                    f"{curves.title}: {label}" if len(drawn) > 1 else curves.title,
                    "" if panels else curves.caption,
                    panel_legend({role: name_in_text(who) for role, who in roles.items()}, curves.kind, std),
                    figures,
                    folded=bool(panels),
                )
            )
    return panels


def _above(benchmark: BenchmarkResult, roles: Mapping[str, str], curves: Curves[T]) -> str:
    """The number that sums up a figure, for each role."""
    metric, word, column = curves.metric
    values = {role: benchmark.scorers[who].metrics.get(metric) for role, who in roles.items()}
    known = {role: metric_value(value, column) for role, value in values.items() if value is not None}
    if not known:
        return ""
    return f"{word} " + ", ".join(value if len(roles) == 1 else f"{value} {role}" for role, value in known.items())
