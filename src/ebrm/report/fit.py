"""The report of a fit: what refining changed on the held-out pairs, on one self-contained page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from ebrm.errors import DataError
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
from ebrm.report.figures import ForestRow
from ebrm.report.page import FEW_PROMPTS, render
from ebrm.report.words import decimal, group_name, reward_digits, setting_rows
from ebrm.utils.files import write_text

Floats = NDArray[np.float64]

_FOREST_ROWS = 30
_EXAMPLES = 24


@dataclass(frozen=True)
class Answer:
    """A question, its answer in a few words, and the sentences behind it."""

    question: str
    answer: str
    details: Sequence[str] = ()


@dataclass(frozen=True)
class ChangedExample:
    """A response with a large change of its reward.

    Attributes:
        prompt: the prompt's text; None where only features are at hand.
        response: the response's text, or None.
        label: which side of its pair it is, "chosen" or "rejected".
        base_reward: reward of the frozen RM.
        refined_reward: refined reward, in the same units.
        std: standard deviation of the density.
        interval: ends of its central interval.
        density_nodes: rewards at which the density is known [g], rising.
        density: p(reward | response) at the nodes [g], per unit of reward.
        place: where the pair was read, or its row, which is shown where there is no text.
    """

    prompt: str | None
    response: str | None
    label: str
    base_reward: float
    refined_reward: float
    std: float
    interval: tuple[float, float]
    density_nodes: ArrayLike
    density: ArrayLike
    place: str = ""


@dataclass(frozen=True)
class LiveScore:
    """Responses to one prompt, scored through the reward model: rewards and std one a response."""

    prompt: str
    responses: Sequence[str]
    base: Sequence[float]
    refined: Sequence[float]
    std: Sequence[float]


@dataclass(frozen=True)
class GainAndLoss:
    """What a head gains on the held-out pairs, and what it does to pairs of anchors held out.

    Attributes:
        name: what it is called.
        gain: accuracy minus the base reward's, on the held-out pairs.
        kept: the same on the anchors; below 0 is a loss.
    """

    name: str
    gain: Estimate
    kept: Estimate


@dataclass(frozen=True)
class ReportData:
    """Contents of the report. Only title and overall accuracy are required; the page names what is missing.

    Attributes:
        title: title of the page, naming the model and the data.
        overall: accuracy of base and refined on the held-out pairs.
        headline: what the page says first; None: which reward is better.
        answers: questions and their answers, shown at the top.
        by_category: the same within each category.
        base_reward: base rewards of the held-out pairs [p, 2], columns chosen and rejected.
        refined_reward: refined rewards [p, 2], in the same units.
        probability: P(chosen > rejected) under the two densities [p].
        std: standard deviations of the two densities [p, 2].
        prompt_id: the pairs' prompts [p], the unit resampled for intervals; None takes each pair as its own.
        examples: the responses with the largest changes, in the order they are shown.
        filter_report: `ConflictReport.to_dict()` of the training pairs.
        filtered: whether the filter was applied, or only reported.
        history: one entry an epoch: epoch, loss, validation_accuracy, validation_nll; a missing or NaN
            number was not measured.
        best_epoch: the epoch whose weights were kept.
        fusion: `RewardHead.goes_by()`.
        live: responses scored for this report.
        heads: heads fitted on the same pairs, for the figure of gain against loss.
        curve: numbers of training pairs and what fitting on so many gained on the held-out pairs, rising.
        settings: stage to its settings, or plain name to value; nested mappings are flattened.
        versions: package to version.
        notes: where the data come from and under which license, one sentence each.
        interval_level: coverage of the densities' intervals.
    """

    title: str
    overall: PairedAccuracy
    headline: str | None = None
    answers: Sequence[Answer] = ()
    by_category: Mapping[str, PairedAccuracy] = field(default_factory=dict)
    base_reward: ArrayLike | None = None
    refined_reward: ArrayLike | None = None
    probability: ArrayLike | None = None
    std: ArrayLike | None = None
    prompt_id: ArrayLike | None = None
    examples: Sequence[ChangedExample] = ()
    filter_report: Mapping[str, Any] | None = None
    filtered: bool = True
    history: Sequence[Mapping[str, Any]] = ()
    best_epoch: int | None = None
    fusion: Mapping[str, Any] | None = None
    live: Sequence[LiveScore] = ()
    heads: Sequence[GainAndLoss] = ()
    curve: Sequence[tuple[int, Estimate]] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    interval_level: float = 0.9


def write_report(path: str | Path, data: ReportData) -> Path:
    """Write the report as one HTML file that needs no network; the same data give the same bytes.

    Args:
        path: where to write; an existing file is replaced, as a whole.
        data: what to show.

    Returns:
        The path.

    Raises:
        DataError: if a reward, std or probability is not finite.
        ValueError: if arrays do not fit together.
    """
    write_text(path, fit_page(data))
    return Path(path)


def fit_page(data: ReportData) -> str:
    """Render the page; see `write_report`."""
    pairs = data.overall.pairs
    base = _pairs(data.base_reward, "base_reward", (pairs, 2))
    refined = _pairs(data.refined_reward, "refined_reward", (pairs, 2))
    std = _pairs(data.std, "std", (pairs, 2))
    probability = _pairs(data.probability, "probability", (pairs,))
    prompts = np.arange(pairs) if data.prompt_id is None else np.asarray(data.prompt_id)
    if len(prompts) != pairs:
        raise ValueError(f"prompt_id has {len(prompts)} entries, expected one for each of {pairs} pairs")
    # One precision for all rewards of the page.
    digits = reward_digits(base if base is not None else [e.base_reward for e in data.examples])
    parts: dict[str, Any] = {
        "accuracy": _accuracy(data.overall, data.by_category),
        **({"heads": _heads(data.heads)} if data.heads else {}),
        "rewards": None if base is None or refined is None else _rewards(base, refined, digits),
        "reliability": None if probability is None or base is None else _reliability(probability, base, prompts),
        "uncertainty": None
        if std is None or refined is None
        else _uncertainty(std, refined, probability, prompts, digits),
        "delta": [(example, _density(n, example)) for n, example in enumerate(data.examples[:_EXAMPLES], start=1)],
        "live": [(score.prompt, _ranked(n, score, digits)) for n, score in enumerate(data.live, start=1)],
        "filter": data.filter_report,
        "training": data.history and _training(data.history, data.best_epoch),
        "settings": _settings(data.settings, data.versions),
    }
    textless = [example.prompt is None and example.response is None for example in data.examples]
    whose = "Their texts are" if all(textless) else "The texts of some are"
    return render(
        "fit.html", data=data, digits=digits, bootstrap=data.overall.bootstrap, parts=parts, notes=data.notes,
        all_textless=all(textless), wide=False,
        textless=f"{whose} not at hand, since features hold none; the place of the pair is named." * any(textless),
    )  # fmt: skip


def _pairs(value: ArrayLike | None, name: str, shape: tuple[int, ...]) -> Floats | None:
    if value is None:
        return None
    array = np.asarray(value, dtype=np.float64)
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}, expected {shape}: one row for each pair of `overall`")
    bad = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))
    if len(bad):
        raise DataError(
            f"{name} is not finite in {len(bad)} of {len(array)} held-out pairs, the first in row {bad[0]}. The report "
            "would average over numbers that are not there; find out why those rows have none, or leave the pairs "
            "out."
        )
    return array


def _accuracy(overall: PairedAccuracy, by_category: Mapping[str, PairedAccuracy]) -> dict[str, Any]:
    groups = {} if len(by_category) < 2 else {group_name(k, "category"): v for k, v in by_category.items()}
    enough = {name: result for name, result in groups.items() if result.prompts >= FEW_PROMPTS}
    largest = sorted(enough, key=lambda name: -enough[name].pairs)[:_FOREST_ROWS]
    drawn = {"all pairs": overall} | {name: result for name, result in enough.items() if name in largest}
    rows = [
        ForestRow(
            name,
            {"base": result.base, "refined": result.refined, "difference": result.difference},
            result.pairs,
            clear=result.difference.low > 0 or result.difference.high < 0,
            rule=place == 1,
        )
        for place, (name, result) in enumerate(drawn.items())
    ]
    return {
        "groups": groups,
        "few": FEW_PROMPTS if len(enough) < len(groups) or overall.prompts < FEW_PROMPTS else None,
        "few_prompts": FEW_PROMPTS,
        "not_drawn": len(enough) > _FOREST_ROWS,
        "most": _FOREST_ROWS,
        "forest": figures.score_forest(
            "forest", "Accuracy of both rewards with intervals, as in the table.", rows,
            {"base": "base", "refined": "refined"}, "pairs ranked correctly", "pairs",
        ),
        "difference": figures.difference_forest(
            "gain", "Refined minus base accuracy with intervals, as in the table.", rows, "pairs",
            labels={True: "interval without 0", False: "interval with 0"},
        ),
    }  # fmt: skip


def _heads(heads: Sequence[GainAndLoss]) -> str:
    points = [(one.name, one.gain, one.kept) for one in heads]
    return figures.gain_and_loss(
        "heads", "Gain on the held-out pairs against loss on the anchors, as in the table.", points,
        ("gain on your pairs, points", "change on the anchors, points"),
    )  # fmt: skip


def _rewards(base: Floats, refined: Floats, digits: int) -> dict[str, Any]:
    bounds = figures.reward_range(base, refined)
    edges = figures.reward_edges(bounds)
    sides = [rewards[:, side] for rewards in (base, refined) for side in (0, 1)]
    top = 1.05 * max(figures.shares(side, edges).max() for side in sides)
    rows, drawn = [], {}
    for name, rewards in (("base", base), ("refined", refined)):
        margin = rewards[:, 0] - rewards[:, 1]
        values = (rewards[:, 0].mean(), rewards[:, 1].mean(), margin.mean(), rewards.std(), margin.std())
        rows.append([name, *(decimal(float(v), digits) for v in values)])
        title = f"Distribution of the {name} reward of chosen and rejected responses."
        drawn[name] = figures.reward_histogram(f"rewards-{name}", title, rewards, bounds, top)
    spread = float(base.std())
    return {"rows": rows, "drawn": drawn, "ratio": float(refined.std()) / spread if spread > 0 else None}


def _reliability(probability: Floats, base: Floats, prompts: NDArray[Any]) -> dict[str, Any]:
    """Calibration of P(chosen > rejected), beside the Bradley-Terry probability of the base rewards."""
    both = {"base": np.asarray(expit(base[:, 0] - base[:, 1])), "refined": probability}
    found = {role: calibration(p, prompts) for role, p in both.items()}
    title = "Accuracy against confidence, base and refined; the table sums it up."
    return {
        "found": found,
        "curve": figures.reliability("reliability", title, found),
        "histogram": figures.confidence_histogram(
            "confidence",
            "Distribution of the confidence of base and refined.",
            {role: confidence_and_correct(p)[0] for role, p in both.items()},
        ),
    }


def _uncertainty(
    std: Floats, refined: Floats, probability: Floats | None, prompts: NDArray[Any], digits: int
) -> dict[str, Any]:
    wrong = ~(refined[:, 0] > refined[:, 1])
    spread = pair_std(std[:, 0], std[:, 1])
    scores = {"std": spread}
    if probability is not None:
        scores["confidence"] = 1 - confidence_and_correct(probability)[0]
    curves = {name: risk_coverage(score, wrong, prompts) for name, score in scores.items()}
    return {
        "rows": [(name, error_auroc(score, wrong, prompts), curves[name]) for name, score in scores.items()],
        "risk": figures.risk_curves(
            "risk", "Error rate against the share of pairs kept, the most certain first.", {"refined": curves}
        ),
        "bins": figures.error_bins(
            "errors", "Share of pairs ranked wrongly, in groups of rising std.",
            error_by_uncertainty(spread, wrong, prompts), float(wrong.mean()), digits,
        ),
    }  # fmt: skip


def _density(number: int, example: ChangedExample) -> str:
    title = f"Density of the reward of example {number}; its numbers are in the text."
    nodes, density = (np.asarray(values, dtype=np.float64) for values in (example.density_nodes, example.density))
    rewards = example.base_reward, example.refined_reward, example.interval
    return figures.density_curve(f"density{number}", title, nodes, density, *rewards)


def _ranked(number: int, score: LiveScore, digits: int) -> list[list[str]]:
    """Rows of a table, best refined reward first."""
    if not len(score.responses) == len(score.base) == len(score.refined) == len(score.std):
        raise ValueError(
            f"live score {number} has {len(score.responses)} responses but other numbers of rewards or stds"
        )
    ranks = np.argsort(np.argsort(-np.asarray(score.base), kind="stable"), kind="stable") + 1
    return [
        [
            " ".join(score.responses[i].split()) or "(empty)",
            *(decimal(values[i], digits) for values in (score.refined, score.std, score.base)),
            str(ranks[i]),
        ]
        for i in np.argsort(-np.asarray(score.refined), kind="stable")
    ]


#: Quantity to its title, the label of its axis and whether it is a share.
_CURVES = {
    "loss": ("Training loss", "loss", False),
    "validation_accuracy": ("Validation accuracy", "pairs ranked correctly", True),
    "validation_nll": ("Validation loss", "\u2212log p, nats", False),
}


def _training(history: Sequence[Mapping[str, Any]], best_epoch: int | None) -> dict[str, Any]:
    drawn = {}
    for key, (name, what, share) in _CURVES.items():
        points = [(int(e["epoch"]), float(e[key])) for e in history if e.get(key) is not None and np.isfinite(e[key])]
        if points:
            epochs, values = zip(*points, strict=True)
            first, last = decimal(values[0], 3), decimal(values[-1], 3)
            title = f"{name}: {first} after epoch {epochs[0]}, {last} after epoch {epochs[-1]}."
            drawn[key] = figures.training_curve(key, title, epochs, values, what, share, best_epoch)
    return {
        "drawn": drawn,
        "titles": {key: title for key, (title, _, _) in _CURVES.items()},
    }


def _settings(settings: Mapping[str, Any], versions: Mapping[str, str]) -> dict[str, list[list[str]]]:
    plain = {key: value for key, value in settings.items() if not isinstance(value, Mapping)}
    stages = {key: value for key, value in settings.items() if isinstance(value, Mapping)}
    tables = {
        stage.capitalize(): setting_rows(part)
        for stage, part in (({"settings": plain} if plain else {}) | stages).items()
    }
    if versions:
        tables["Versions"] = [[name, str(versions[name])] for name in sorted(versions)]
    return tables
