"""The report of a fit: what refining changed, on one self-contained page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ebrm.errors import DataError
from ebrm.metrics import PairedAccuracy
from ebrm.report.fit_data import ChangedExample, LiveScore, ReportData
from ebrm.report.fit_results import (
    accuracy_section,
    reliability_section,
    rewards_section,
    uncertainty_section,
)
from ebrm.report.fit_run import (
    delta_section,
    filter_section,
    live_section,
    settings_section,
    training_section,
)
from ebrm.report.page import Page, Section, Tile, render_page
from ebrm.report.words import count, p_value, percent, percent_estimate, points_estimate, reward_digits
from ebrm.utils.files import write_text

__all__ = ["LiveScore", "ChangedExample", "ReportData", "report_page", "write_report"]

Floats = NDArray[np.float64]


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
    write_text(path, render_page(report_page(data)))
    return Path(path)


def report_page(data: ReportData) -> Page:
    """Arrange the data as a page; see `write_report`."""
    base = _pairs(data.base_reward, "base_reward", data.overall.pairs, 2)
    refined = _pairs(data.refined_reward, "refined_reward", data.overall.pairs, 2)
    std = _pairs(data.std, "std", data.overall.pairs, 2)
    probability = _pairs(data.probability, "probability", data.overall.pairs, 1)
    pairs = data.overall.pairs
    prompts = np.arange(pairs) if data.prompt_id is None else np.asarray(data.prompt_id)
    if len(prompts) != pairs:
        raise ValueError(f"prompt_id has {len(prompts)} entries, expected one for each of {pairs} pairs")

    shown = base if base is not None else [e.base_reward for e in data.examples]
    digits = reward_digits(shown)  # one precision for all rewards of the page
    sections: list[Section] = [accuracy_section(data.overall, data.by_category)]
    missing: list[str] = []

    def add(section: Section | None, otherwise: str) -> None:
        if section is None:
            missing.append(otherwise)
        else:
            sections.append(section)

    add(
        rewards_section(base, refined, digits) if base is not None and refined is not None else None,
        "Reward distributions: the rewards of the held-out pairs were not given.",
    )
    add(
        reliability_section(probability, base, prompts) if probability is not None and base is not None else None,
        "Reliability: no probabilities P(chosen > rejected), or no base rewards to compare with, were given.",
    )
    add(
        uncertainty_section(std, refined, probability, prompts, digits)
        if std is not None and refined is not None
        else None,
        "Uncertainty and error: no standard deviations of the rewards were given.",
    )
    add(
        delta_section(data.examples, data.interval_level, digits) if data.examples else None,
        "What moved most: no examples were given.",
    )
    add(live_section(data.live, digits) if data.live else None, "Scored live: no texts were scored for this report.")
    add(
        filter_section(data.filter_report, data.filtered, digits) if data.filter_report else None,
        "Labels and base reward: how many labels the base reward contradicts was not given.",
    )
    add(
        training_section(data.history, data.best_epoch, data.trust) if data.history else None,
        "Training: there is no history; nothing was trained in this run, or it was not kept.",
    )
    add(
        settings_section(data.settings, data.versions) if data.settings or data.versions else None,
        "Settings and versions: they were not given.",
    )
    headline, summary = _headline(data.overall)
    return Page(data.title, headline, summary, _tiles(data.overall), sections, missing, list(data.notes))


def _pairs(value: ArrayLike | None, name: str, pairs: int, columns: int) -> Floats | None:
    if value is None:
        return None
    array = np.asarray(value, dtype=np.float64)
    expected = (pairs, 2) if columns == 2 else (pairs,)
    if array.shape != expected:
        raise ValueError(f"{name} has shape {array.shape}, expected {expected}: one row for each pair of `overall`")
    bad = np.flatnonzero(~np.isfinite(array).reshape(pairs, -1).all(axis=1))
    if len(bad):
        raise DataError(
            f"{name} is not finite in {len(bad)} of {pairs} held-out pairs, the first in row {bad[0]}. The report "
            "would average over numbers that are not there; find out why those rows have none, or leave the pairs "
            "out."
        )
    return array


def _headline(result: PairedAccuracy) -> tuple[str, list[str]]:
    headline = {
        "better": "The refined reward is better than the base reward",
        "worse": "The refined reward is worse than the base reward",
        "no clear difference": "No clear difference between the refined and the base reward",
    }[result.verdict]
    finding = (
        f"On {count(result.pairs, 'held-out pair')} from {count(result.prompts, 'prompt')} the refined reward ranks "
        f"the chosen response above the rejected one in {percent(result.refined.value)} of pairs, the base reward "
        f"in {percent(result.base.value)}: a difference of {points_estimate(result.difference, ' points')}."
    )
    if result.prompts < 2:
        meaning = "All pairs share one prompt, so that nothing can be said about other prompts."
    else:
        meaning = {
            "better": "The interval lies above zero.",
            "worse": "The interval lies below zero: on data like these, use the base reward.",
            "no clear difference": "The interval contains zero: these pairs cannot tell the two apart.",
        }[result.verdict]
    ties = "No two rewards of a pair are tied."
    if result.ties_base or result.ties_refined:
        ties = (
            f"Ties count as wrong ({result.ties_base:,} base, {result.ties_refined:,} refined); as one half each they "
            f"would give {percent_estimate(result.base_ties_half, '%')} base and "
            f"{percent_estimate(result.refined_ties_half, '%')} refined."
        )
    return headline, [
        f"{finding} {meaning}",
        f"Refining put {count(result.flips_fixed, 'pair')} right that the base reward had wrong, and "
        f"{result.flips_broken:,} wrong that it had right (exact sign test {p_value(result.sign_test)}, which takes "
        f"pairs as independent). {ties}",
        f"Brackets hold {100 * result.bootstrap.level:g}% intervals from "
        f"{result.bootstrap.resamples:,} bootstrap resamples of the prompts.",
    ]


def _tiles(result: PairedAccuracy) -> list[Tile]:
    def tile(label: str, text: str, role: str) -> Tile:
        value, bracket = text.split(" [", 1)
        return Tile(label, value, "[" + bracket, role)

    return [
        tile("Base reward, pairs right", percent_estimate(result.base, "%"), "base"),
        tile("Refined reward, pairs right", percent_estimate(result.refined, "%"), "refined"),
        tile("Difference, percentage points", points_estimate(result.difference), "ink"),
    ]
