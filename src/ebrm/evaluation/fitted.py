"""Measuring a fit on its test pairs: the numbers that go into metrics.json, the model card and the report."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ebrm.data import conversation, message_words
from ebrm.evaluation.answers import better_for_me, clearly_worse, deploy, what_else_moves
from ebrm.evaluation.recommendation import DeploymentRule, Recommendation, Seen, fit_power, recommend
from ebrm.heads import HeadConfig
from ebrm.metrics import (
    FEW,
    NO_CATEGORY,
    Bootstrap,
    Calibration,
    Estimate,
    PairedAccuracy,
    calibration,
    design_effect,
    error_auroc,
    pair_std,
    paired_accuracy,
    paired_accuracy_by_category,
)
from ebrm.model import RefinedReward
from ebrm.pairs import PreferencePairs
from ebrm.report import Answer, ChangedExample, LiveScore, ReportData, percent_estimate, points_estimate
from ebrm.utils.outliers import outlying

if TYPE_CHECKING:
    from ebrm.fitting import FitResult

_PACKAGES = ("ebrm", "torch", "transformers", "safetensors", "numpy", "scipy", "scikit-learn", "peft")
#: Said in place of numbers where no pair was held out.
NOTHING_HELD_OUT = "Too few pairs to tell anything: none is held out to measure on."
_EXAMPLES = 6
#: Rows read and refined at a time.
_ROWS = 4096
#: A change of less than this share of the rewards' standard deviation is rounding.
_UNCHANGED = 1e-5


@dataclass(frozen=True)
class FitEvaluation:
    """Base against refined rewards on the held-out test pairs, with intervals of the bootstrap over prompts.

    A pair counts once for the side its label prefers; pairs of label 0.5 are counted in `metrics["undecided"]` alone.

    Attributes:
        pairs: test pairs measured on; 0 where nothing was held out: then the next four and the report are None.
        base, refined: share of them that are ranked as labeled, a tie wrongly.
        difference: refined - base, paired.
        recommendation: deploy it, do not, or bring more pairs (:func:`recommend`).
        metrics: all numbers as JSON values: base.accuracy, refined.accuracy, difference.{value, low, high}, pairs,
            kept_fraction, contradicted_fraction (of training pairs: fitted on, contradicted by the base reward),
            fusion (`RewardHead.goes_by()`), recommendation.{action, pairs, sentence}, what_else_moves, power.{smallest,
            needed}, anchors, memorization, learning_curve (None: not measured), pairs_seen, versions, and more.
        report: everything the page shows.
        answers: to three questions: better for me, what else moves, deploy it.
        seconds: wall time of the stages of fit and evaluation.
    """

    pairs: int
    base: Estimate | None
    refined: Estimate | None
    difference: Estimate | None
    metrics: dict[str, Any]
    report: ReportData | None
    recommendation: Recommendation | None = None
    answers: tuple[Answer, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        """The three questions, a line each; the first with both accuracies and their difference with intervals."""
        if self.base is None or self.refined is None or self.difference is None or self.recommendation is None:
            return NOTHING_HELD_OUT
        base, refined = (percent_estimate(side, "%") for side in (self.base, self.refined))
        accuracy = (
            f"accuracy on {self.pairs:,} held-out pairs: base {base}, refined {refined}, "
            f"difference {points_estimate(self.difference, ' points')}"
        )
        few = f"{self.answers[0].answer}; " if self.answers and self.pairs < FEW else ""
        lines = [
            *(f"warning           {text}" for text in self.metrics["warnings"]),
            f"better for me?    {few}{accuracy}",
        ]
        lines += [f"what else moves?  {answer.answer}" for answer in self.answers[1:2]]
        return "\n".join([*lines, f"deploy it?        {self.recommendation}"])


def measure_fit(
    fitted: FitResult,
    *,
    title: str | None = None,
    live: Sequence[LiveScore] = (),
    notes: Sequence[str] | None = None,
    bootstrap: Bootstrap = Bootstrap(),
    rule: DeploymentRule = DeploymentRule(),  # noqa: B008 - frozen
) -> FitEvaluation:
    """Evaluate base and refined rewards on the test pairs, which were used for nothing before.

    Args:
        fitted: result of :func:`ebrm.fit`.
        title: of the report; None: the reward model and where the pairs come from.
        live: texts scored for the report.
        notes: where the data come from, for the report; None: what was read.
        bootstrap: of the intervals, paired and over prompts.
        rule: bounds of the recommendation.
    """
    test = fitted.pairs.select(fitted.splits.test)
    pairs = test.select(test.label != 0.5)
    record, labels = fitted.model.record, fitted.conflicts.overall
    read = fitted.preferences.report if fitted.preferences is not None else None
    if title is None:
        name = record.backbone.get("name") or "Imported features"
        title = f"{name}, refined on {record.data.get('origin', 'features')}"
    notes = notes if notes is not None else [] if read is None else [f"Data: {read.summary()}."]
    if len(pairs) < len(test):
        notes = [*notes, f"{len(test) - len(pairs)} test pairs have the label 0.5 and are left out."]
    common: dict[str, Any] = {
        "undecided": len(test) - len(pairs),
        "kept_fraction": labels.kept_fraction if record.fit.filter_conflicts else 1.0,
        "contradicted_fraction": labels.dropped_fraction,
        "fusion": fitted.model.head.goes_by(),
        "pairs_seen": record.data.get("pairs_seen", "unknown"),
        "anchors": fitted.anchors and fitted.anchors.to_dict(),
        "memorization": fitted.memorization and fitted.memorization.to_dict(),
        "learning_curve": fitted.curve and fitted.curve.to_dict(),
        "notes": list(fitted.notes),
        "warnings": list(fitted.warnings),
        "versions": versions(),
    }
    if len(pairs) == 0:
        nothing = {"pairs": 0, "base": None, "refined": None, "difference": None, "recommendation": None, **common}
        return FitEvaluation(0, None, None, None, nothing, None, seconds=fitted.seconds)
    started = time.monotonic()
    # The different items of the pairs, ascending, and where chosen and rejected are among them.
    items, where = torch.unique(torch.cat([pairs.chosen, pairs.rejected]), return_inverse=True)
    chosen, rejected = where.split(len(pairs))
    draws = fitted.model.head.draws()
    refined = RefinedReward.cat(
        [
            fitted.model.refine(fitted.features.embedding(rows), fitted.features.reward[rows], draws)
            for rows in items.split(_ROWS)
        ]
    )
    usual = refined.delta[~outlying(refined.base_reward)]
    most = refined.delta.abs().argsort(descending=True, stable=True)[:_EXAMPLES]
    probability = _probability(fitted, pairs)
    seconds = fitted.seconds | {"refine": time.monotonic() - started}
    started = time.monotonic()
    sides = (
        refined.base_reward[chosen].numpy(), refined.base_reward[rejected].numpy(),
        refined.reward[chosen].numpy(), refined.reward[rejected].numpy(),
    )  # fmt: skip
    overall = paired_accuracy(*sides, pairs.prompt_id, bootstrap=bootstrap)
    by_category = paired_accuracy_by_category(*sides, pairs.prompt_id, pairs.category, bootstrap=bootstrap)
    std = torch.stack([refined.std[chosen], refined.std[rejected]], 1).numpy()
    reliability = calibration(probability, pairs.prompt_id, bootstrap=bootstrap)
    error = sides[2] <= sides[3]
    uncertainty = {
        "std": pair_std(std[:, 0], std[:, 1]),
        "confidence": 1 - np.maximum(probability, 1 - probability),
    }
    kinds = by_category
    if len(kinds) < 2:
        kinds = paired_accuracy_by_category(*sides, pairs.prompt_id, pairs.source, bootstrap=bootstrap)
    gained = (sides[2] > sides[3]).astype(float) - (sides[0] > sides[1])
    effect = max(1.0, design_effect(gained, pairs.prompt_id))
    seen, memorization = _seen(common["pairs_seen"]), fitted.memorization
    unchanged = bool((refined.delta.abs() <= _UNCHANGED * float(fitted.model.head.standardizer.reward_std)).all())
    suspected = seen == "yes" or (seen == "unknown" and memorization is not None and memorization.suspected)
    recommendation = recommend(
        overall, effect, unchanged=unchanged, anchors=fitted.anchors, seen="yes" if suspected else seen,
        worse=clearly_worse(kinds, rule), rule=rule,
    )  # fmt: skip
    power, trained = fit_power(overall, effect, rule), fitted.pairs.select(fitted.splits.train)
    of_kind = trained.category if kinds is by_category else trained.source
    answers = (
        better_for_me(overall, power, seen, memorization, [*fitted.warnings, *fitted.notes], unchanged),
        what_else_moves(fitted.anchors, kinds, {name or NO_CATEGORY for name in of_kind}, rule),
        deploy(recommendation, power, overall, fitted.curve),
    )
    seconds["evaluate"] = time.monotonic() - started
    metrics = {
        **_accuracy(overall),
        "pairs": overall.pairs,
        "prompts": overall.prompts,
        "by_category": {name: _accuracy(value) | {"pairs": value.pairs} for name, value in by_category.items()},
        "calibration": _calibration(reliability),
        "error_auroc": _values(
            {name: error_auroc(u, error, pairs.prompt_id, bootstrap=bootstrap) for name, u in uncertainty.items()}
        ),
        "delta": {
            "fraction": float((usual.abs() > 1e-6).float().mean()),
            "mean_absolute": float(usual.abs().mean()),
        },
        "recommendation": recommendation.to_dict(),
        "what_else_moves": answers[1].answer,
        "power": power.to_dict(),
        **common,
    }
    report = ReportData(
        title=title, headline=_headline(recommendation, fitted.warnings), answers=answers,
        overall=overall, by_category=by_category, prompt_id=pairs.prompt_id,
        base_reward=np.stack(sides[:2], 1), refined_reward=np.stack(sides[2:], 1), probability=probability, std=std,
        interval_level=record.head.inference.coverage, examples=_examples(fitted, pairs, items, refined, most),
        filter_report=fitted.conflicts.to_dict(), filtered=record.fit.filter_conflicts,
        history=record.history, best_epoch=record.best_epoch, fusion=common["fusion"],
        settings=_settings(record.head) | {"fit": record.fit.to_dict()}, versions=common["versions"],
        live=live, notes=notes,
        curve=() if fitted.curve is None else list(zip(fitted.curve.pairs, fitted.curve.gain, strict=True)),
    )  # fmt: skip
    return FitEvaluation(
        overall.pairs, overall.base, overall.refined, overall.difference, metrics, report, recommendation, answers,
        seconds,
    )  # fmt: skip


def _headline(recommendation: Recommendation, warnings: Sequence[str]) -> str:
    """What the page says first: what may be wrong with the pairs, before what to do."""
    return " ".join([*(f"Warning: {said}" for said in warnings), f"{recommendation}".removesuffix(".")])


def _seen(value: str) -> Seen:
    return "yes" if value == "yes" else "no" if value == "no" else "unknown"


def _settings(head: HeadConfig) -> dict[str, dict[str, Any]]:
    values = head.to_dict()
    stages = {name: value for name, value in values.items() if isinstance(value, dict)}
    return {head.kind: {name: value for name, value in values.items() if name not in stages}, **stages}


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _probability(fitted: FitResult, pairs: PreferencePairs) -> np.ndarray:
    """P(chosen > rejected) of every pair [p]."""
    head, features = fitted.model.head, fitted.features
    parts = [
        head.prefer((features.embedding(a), features.embedding(b)), (features.reward[a], features.reward[b]))
        for a, b in zip(pairs.chosen.split(_ROWS), pairs.rejected.split(_ROWS), strict=True)
    ]
    return torch.cat(parts).double().clamp(0, 1).numpy()


def _examples(
    fitted: FitResult, pairs: PreferencePairs, items: torch.Tensor, refined: RefinedReward, most: torch.Tensor
) -> list[ChangedExample]:
    texts = {row.row: row for row in fitted.preferences.rows} if fitted.preferences is not None else {}
    nodes, density = fitted.model.density(fitted.features.embedding(items[most]), fitted.features.reward[items[most]])
    examples = []
    for place, index in enumerate(most.tolist()):
        item = int(items[index])
        chosen = bool((pairs.chosen == item).any())
        pair = int(((pairs.chosen if chosen else pairs.rejected) == item).nonzero()[0])
        text = texts.get(pairs.where[pair])
        response = None if text is None else message_words(text.chosen if chosen else text.rejected)
        low, high = refined.interval[index].tolist()
        examples.append(
            ChangedExample(
                prompt=None if text is None else conversation(text.prompt), response=response,
                place=f"{pairs.where[pair]}" if pairs.where[pair] else f"row {item:,} of the features",
                label="chosen" if chosen else "rejected", base_reward=float(refined.base_reward[index]),
                refined_reward=float(refined.reward[index]), std=float(refined.std[index]), interval=(low, high),
                density_nodes=nodes.numpy(), density=density[place].numpy(),
            )
        )  # fmt: skip
    return examples


def _ends(estimate: Estimate) -> dict[str, float | None]:
    return {name: end if math.isfinite(end) else None for name, end in (("low", estimate.low), ("high", estimate.high))}


def _accuracy(value: PairedAccuracy) -> dict[str, Any]:
    def side(name: str) -> dict[str, float | None]:
        estimate = getattr(value, name)
        ties = getattr(value, f"ties_{name}")
        return {"accuracy": estimate.value, **_ends(estimate), "ties": ties}

    return {
        "base": side("base"),
        "refined": side("refined"),
        "difference": {"value": value.difference.value, **_ends(value.difference)},
        "flips": {"fixed": value.flips_fixed, "broken": value.flips_broken, "sign_test_p": value.sign_test},
    }


def _values(estimates: Mapping[str, Estimate | None]) -> dict[str, Any]:
    """Values by name, and under "intervals" their ends by name; None where there is nothing to estimate."""
    return {
        **{name: None if estimate is None else estimate.value for name, estimate in estimates.items()},
        "intervals": {name: None if estimate is None else _ends(estimate) for name, estimate in estimates.items()},
    }


def _calibration(value: Calibration) -> dict[str, Any]:
    estimates = {"ece": value.ece, "brier": value.brier, "log_loss": value.log_loss}
    return {"ece_if_calibrated": value.ece_if_calibrated, **_values(estimates)}
