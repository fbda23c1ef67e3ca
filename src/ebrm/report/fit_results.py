"""What refining did to the held-out pairs: the report's sections on accuracy, rewards, reliability, uncertainty."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from ebrm.metrics import (
    Estimate,
    PairedAccuracy,
    calibration,
    confidence_and_correct,
    error_auroc,
    error_by_uncertainty,
    pair_std,
    risk_coverage,
)
from ebrm.report import figures
from ebrm.report.page import Figure, Section, Table
from ebrm.report.words import (
    NONE,
    decimal,
    group_name,
    interval,
    percent,
    percent_estimate,
    points_estimate,
)

Floats = NDArray[np.float64]

_FEW_PROMPTS = 20
_FOREST_ROWS = 30


def accuracy_section(overall: PairedAccuracy, by_category: Mapping[str, PairedAccuracy]) -> Section:
    """Accuracy of base and refined, overall and by category."""
    groups = {} if len(by_category) < 2 else {group_name(k, "category"): v for k, v in by_category.items()}
    rows = []
    for name, result in ({"all pairs": overall} | groups).items():
        few = " *" if result.prompts < _FEW_PROMPTS else ""
        counts = (f"{result.pairs:,}", f"{result.prompts:,}")
        estimates = (
            percent_estimate(result.base),
            percent_estimate(result.refined),
            points_estimate(result.difference),
        )
        rows.append([name + few, *counts, *estimates, f"{result.flips_fixed:,}", f"{result.flips_broken:,}"])
    columns = ("group", "pairs", "prompts", "base, %", "refined, %", "difference, points", "put right", "put wrong")

    shown, notes = _drawn_groups(groups)
    if not by_category:
        notes.append("There is no split by category: the pairs have none.")
    elif not groups:
        only = group_name(next(iter(by_category)), "category")
        notes.append(f"There is no split by category: all pairs are in one, {only}.")
    else:
        by_chance = (1 - overall.bootstrap.level) * len(groups)
        notes.append(
            "Intervals are not corrected for the number of categories: if refining changed nothing, about "
            f"{by_chance:.1f} of {len(groups)} would exclude zero by chance."
        )
    drawn = {"all pairs": overall} | shown
    return Section(
        "accuracy",
        "Accuracy",
        figures=[
            Figure(
                "Pairs ranked correctly",
                figures.accuracy_forest("forest", "Accuracy of both rewards with intervals, as in the table.", drawn),
                "Each mark is the share of pairs whose chosen response gets the higher reward, and its bar the "
                "interval: further right is better.",
            ),
            Figure(
                "What refining changed",
                figures.difference_forest(
                    "gain", "Refined minus base accuracy with intervals, as in the table.", drawn
                ),
                "Right of the dashed line the refined reward is better; a bar that crosses the line means no clear "
                "difference.",
            ),
        ],
        tables=[Table("Accuracy of base and refined reward", columns, rows)],
        notes=notes,
    )


def _drawn_groups(groups: Mapping[str, PairedAccuracy]) -> tuple[dict[str, PairedAccuracy], list[str]]:
    """Choose the groups for the figures, and say what is left to the table."""
    notes = []
    enough = {name: result for name, result in groups.items() if result.prompts >= _FEW_PROMPTS}
    if len(enough) < len(groups):
        notes.append(
            f"* Fewer than {_FEW_PROMPTS} prompts: such an interval is too narrow to rely on, and is not in the "
            "figures."
        )
    largest = sorted(enough, key=lambda name: -enough[name].pairs)[:_FOREST_ROWS]
    if len(largest) < len(enough):
        notes.append(
            f"The figures show the {_FOREST_ROWS} largest of {len(groups)} categories; the table has all of them."
        )
    return {name: result for name, result in enough.items() if name in largest}, notes


def rewards_section(base: Floats, refined: Floats, digits: int) -> Section:
    """Distributions of base and refined rewards [p, 2] of chosen and rejected responses."""
    bounds = figures.reward_range(base, refined)
    top = 1.05 * max(figures.histogram_shares(rewards, bounds)[0].max() for rewards in (base, refined))
    rows = []
    for name, rewards in (("base", base), ("refined", refined)):
        margin = rewards[:, 0] - rewards[:, 1]
        values = (rewards[:, 0].mean(), rewards[:, 1].mean(), margin.mean(), rewards.std(), margin.std())
        rows.append([name, *(decimal(float(v), digits) for v in values)])
    spread = float(base.std())
    ratio = (
        f"The refined rewards spread {decimal(float(refined.std()) / spread, 2)} times as wide as the base rewards; "
        "clip ranges and KL coefficients tuned for the base reward see that factor."
        if spread > 0
        else "The base reward is constant on these responses."
    )

    def figure(name: str, which: str, rewards: Floats) -> Figure:
        return Figure(
            f"{which.capitalize()} reward",
            figures.reward_histogram(
                name, f"Distribution of the {which} reward of chosen and rejected responses.", rewards, bounds, top
            ),
            f"How often each {which} reward occurs among chosen and rejected responses, triangles at the means: the "
            "less the two overlap, the better they are told apart.",
        )

    return Section(
        "rewards",
        "Rewards before and after",
        text=[ratio],
        figures=[figure("rewards-base", "base", base), figure("rewards-refined", "refined", refined)],
        tables=[
            Table(
                "Rewards of held-out responses, in the base reward model's units",
                ("reward", "mean, chosen", "mean, rejected", "mean margin", "std", "std of margin"),
                rows,
            )
        ],
        notes=["The figures share their axes; the few rewards beyond the ends are counted in the outermost bars."],
    )


def reliability_section(probability: Floats, base: Floats, prompts: ArrayLike) -> Section:
    """Calibration of P(chosen > rejected) [p], beside the Bradley-Terry probability of the base rewards [p, 2]."""
    refined = calibration(probability, prompts)
    bradley_terry = expit(base[:, 0] - base[:, 1])
    plain = calibration(bradley_terry, prompts)
    rows = [
        [
            name,
            percent_estimate(c.ece, "%"),
            percent(c.ece_if_calibrated),
            _decimal_estimate(c.brier),
            _decimal_estimate(c.log_loss),
        ]
        for name, c in (("base", plain), ("refined", refined))
    ]
    return Section(
        "reliability",
        "Reliability of P(chosen > rejected)",
        text=[
            "A pair counts by its confidence, the larger of P(chosen > rejected) and its complement, and by "
            "whether the side it favors is the chosen one. The refined probability comes from the two densities; "
            "the base reward has none of its own and is given the Bradley\u2013Terry one, the sigmoid of its "
            "reward difference.",
        ],
        figures=[
            Figure(
                "Confidence and accuracy",
                figures.reliability(
                    "reliability",
                    "Accuracy against confidence, base and refined; the table sums it up.",
                    refined,
                    plain,
                ),
                "On the dashed line a confidence of 80% is right in 80% of pairs; below it the reward is too sure "
                "of itself, above it not sure enough.",
            ),
            Figure(
                "How sure each reward is",
                figures.confidence_histogram(
                    "confidence",
                    "Distribution of the confidence of base and refined.",
                    confidence_and_correct(probability)[0],
                    confidence_and_correct(bradley_terry)[0],
                ),
                "How often each confidence occurs: a reward that is always near 50% says little, one that is "
                "always near 100% had better be right.",
            ),
        ],
        tables=[
            Table(
                "Calibration errors with 95% intervals (lower is better)",
                ("reward", "calibration error (ECE)", "ECE by chance alone", "Brier score", "log loss, nats"),
                rows,
            )
        ],
        notes=[
            f"Each mark is one of {len(refined.bins)} groups of about equal size. Always saying one half has a "
            "Brier score of 0.250 and a log loss of 0.693. By chance alone even a perfectly calibrated reward "
            "shows about the ECE of the third column on this many pairs: compare the interval with it, not with 0.",
        ],
    )


def uncertainty_section(
    std: Floats, refined: Floats, probability: Floats | None, prompts: ArrayLike, digits: int
) -> Section:
    """Whether the std [p, 2] of the refined rewards [p, 2], and the confidence, tell which pairs are wrong."""
    wrong = ~(refined[:, 0] > refined[:, 1])
    spread = pair_std(std[:, 0], std[:, 1])
    scores = {"by std": spread}
    if probability is not None:
        scores["by confidence"] = 1 - confidence_and_correct(probability)[0]
    curves = {name: risk_coverage(score, wrong, prompts) for name, score in scores.items()}
    rows = []
    for name, score in scores.items():
        auroc = error_auroc(score, wrong, prompts)
        curve = curves[name]
        rows.append(
            [
                name,
                NONE if auroc is None else _decimal_estimate(auroc),
                percent_estimate(curve.area, "%"),
                percent(curve.random),
                percent(curve.best),
            ]
        )
    return Section(
        "uncertainty",
        "Uncertainty and error",
        text=[
            "Does the refined reward know when it is wrong? A pair's std is that of its reward difference, "
            "the root of the sum of its two variances; it does not look at the difference itself, the confidence does.",
        ],
        figures=[
            Figure(
                "Leaving out the uncertain pairs",
                figures.risk_coverage_curves(
                    "risk", "Error rate against the share of pairs kept, the most certain first.", curves
                ),
                "Going left, the most uncertain pairs are left out: a curve that falls below the dashed line means the "
                "uncertainty finds the errors.",
            ),
            Figure(
                "Errors by uncertainty",
                figures.error_bins(
                    "errors",
                    "Share of pairs ranked wrongly, in groups of rising std.",
                    error_by_uncertainty(spread, wrong, prompts),
                    float(wrong.mean()),
                    digits,
                ),
                "Pairs in groups of equal size, from the smallest std to the largest: marks that rise to the right "
                "mean a larger std goes with more errors.",
            ),
        ],
        tables=[
            Table(
                "How well uncertainty tells errors apart, with 95% intervals",
                ("uncertainty", "AUROC for error", "area under curve", "area at random", "best possible area"),
                rows,
            )
        ],
        notes=[
            "AUROC: the chance that a wrong pair is more uncertain than a right one (0.500 is no better than "
            "guessing, below it misleads). Area under the first figure's curve: lower is better.",
        ],
    )


def _decimal_estimate(estimate: Estimate) -> str:
    """Write a number and its interval with three decimals, 0.653 [0.621, 0.684]."""
    return f"{decimal(estimate.value, 3)} {interval(estimate.low, estimate.high, 3)}"
