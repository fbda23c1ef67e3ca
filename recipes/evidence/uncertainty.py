"""Does a reward know when it is wrong, and are its probabilities right? On the pairs of the test sets.

Every number is computed for each seed and averaged. Its interval puts two errors together, as the hypotenuse: that of
the prompts, which is the mean of the seeds' own bootstrap intervals (the prompts are the same in all seeds, so that
averaging over seeds does not shrink it), and that of the seeds, the standard error of their mean times Student's t.

Probabilities of rewards without a density are the logistic function of the reward difference over a temperature. The
temperature is fitted on the held-out training pairs under the labels as given, which is all that a user would have.
Test sets "all": all pairs of the test sets together; "held-out": the held-out training pairs with labels as published.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from reward_files import HELD_OUT, Pairs, Refinements
from scipy.optimize import minimize_scalar
from scipy.special import expit
from scipy.stats import t as student
from summary import Row

from ebrm.metrics import Bootstrap, Estimate, calibration, error_auroc, pair_std, risk_coverage

QUESTION = "5 uncertainty"
NOISES = (0.0, 0.25)
ALL = "all"
BOOTSTRAP = Bootstrap(500)
MARGIN_OF = ("base", "SiLU head", "5 SiLU heads, mean", "EBRM")
STD_OF = ("EBRM", "5 SiLU heads, mean")
CURVE_COLUMNS = ("base_rm", "noise", "benchmark", "method", "confidence", "accuracy", "low", "high", "pairs")


@dataclass(frozen=True)
class Judged:
    """What a base reward model's refinements say of pairs [p] whose better response is known.

    Attributes:
        prompt: what is resampled together [p].
        margin: method to its reward of the better response minus that of the worse one [p].
        std: method to the standard deviation of that difference [p].
        probability: method to its P(better > worse) [p].
    """

    prompt: np.ndarray
    margin: Mapping[str, np.ndarray]
    std: Mapping[str, np.ndarray]
    probability: Mapping[str, np.ndarray]


def inverse_temperature(margin: np.ndarray) -> float:
    """The a that makes -log sigmoid(a * margin) smallest in the mean over pairs [p]; about 0 if none is above 0."""
    unit = float(np.abs(margin).mean())
    if unit == 0.0:
        return 0.0

    def loss(log_scale: float) -> float:
        return float(np.logaddexp(0.0, -np.exp(log_scale) * margin / unit).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-12.0, 6.0), method="bounded").x)) / unit


def judge(cell: Refinements) -> dict[str, Judged]:
    """Every test set that has pairs, all of them together, and the held-out pairs."""
    sets: dict[str, Pairs] = dict(cell.texts.pairs)
    names = tuple(sets)
    sets[ALL] = Pairs(*(np.concatenate([getattr(sets[name], part) for name in names]) for part in ("place", "prompt")))
    sets[HELD_OUT] = cell.held_out.published
    wins = dict(cell.wins)
    if all(name in wins for name in names):
        wins[ALL] = np.concatenate([wins[name] for name in names])
    inverse = {name: inverse_temperature(_margin(cell, name, cell.held_out.given)) for name in MARGIN_OF}
    found = {}
    for name, pairs in sets.items():
        margin = {method: _margin(cell, method, pairs.place) for method in MARGIN_OF}
        probability = {_logistic(method): expit(inverse[method] * margin[method]) for method in MARGIN_OF}
        if name in wins:
            probability["EBRM"] = wins[name].astype(np.float64)
        std = {method: pair_std(*cell.std[method].astype(np.float64)[pairs.place].T) for method in STD_OF}
        found[name] = Judged(pairs.prompt, margin, std, probability)
    return found


def uncertainty_tables(cells: Sequence[Refinements]) -> tuple[list[Row], list[list[object]]]:
    """Rows of the table, and lines of reliability.csv, of base reward models of one kind and noise."""
    judged = [judge(cell) for cell in cells]
    rows: list[Row] = []
    lines: list[list[object]] = []
    for name in judged[0]:
        sets = [found[name] for found in judged]
        estimates = [dict(_metrics(one)) for one in sets]
        for method, metric in estimates[0]:
            same = [found[method, metric] for found in estimates]
            if any(estimate is None for estimate in same):
                continue  # not defined where a seed gets all pairs right, or none
            value, low, high = over_seeds([estimate for estimate in same if estimate is not None])
            about = (QUESTION, cells[0].base_rm, cells[0].noise, method, name, "overall", metric)
            rows.append(Row(*about, value, low, high, len(cells), len(sets[0].prompt)))
        if name in (ALL, HELD_OUT):
            for method in sets[0].probability:
                at = [cells[0].base_rm, f"{cells[0].noise:.2f}", name, method]
                lines += [[*at, *line] for line in _reliability(method, sets)]
    return rows, lines


def over_seeds(estimates: Sequence[Estimate]) -> tuple[float, float, float]:
    """Mean of the seeds' estimates with the interval that the module's text describes: (value, low, high)."""
    value = np.array([estimate.value for estimate in estimates])
    below, above = (
        float(np.mean([abs(estimate.value - end) for estimate, end in zip(estimates, ends, strict=True)]))
        for ends in ([estimate.low for estimate in estimates], [estimate.high for estimate in estimates])
    )
    seeds = len(value)
    error = value.std(ddof=1) / seeds**0.5 * student.ppf(0.975, seeds - 1) if seeds > 1 else 0.0
    mean = float(value.mean())
    return mean, mean - float(np.hypot(below, error)), mean + float(np.hypot(above, error))


def _metrics(judged: Judged) -> Iterator[tuple[tuple[str, str], Estimate | None]]:
    """((method, metric), estimate) of one seed."""
    kinds: list[tuple[str, Mapping[str, np.ndarray], Callable[[np.ndarray], np.ndarray]]] = [
        ("std", judged.std, lambda std: std),
        ("small margin", judged.margin, lambda margin: -np.abs(margin)),
        ("P near 1/2", {k: v for k, v in judged.probability.items() if k == "EBRM"}, lambda p: -np.abs(p - 0.5)),
    ]
    for kind, table, uncertainty in kinds:
        for method, values in table.items():
            about = uncertainty(values), ~(judged.margin[method] > 0), judged.prompt
            yield (method, f"error AUROC, {kind}"), error_auroc(*about, bootstrap=BOOTSTRAP)
            curve = risk_coverage(*about, bootstrap=BOOTSTRAP)
            yield (method, f"risk-coverage area, {kind}"), curve.area
            yield (method, f"risk-coverage gain, {kind}"), curve.gain
    for method, probability in judged.probability.items():
        found = calibration(probability, judged.prompt, bootstrap=BOOTSTRAP)
        yield (method, "ECE"), found.ece
        yield (method, "Brier"), found.brier
        yield (method, "log loss"), found.log_loss


def _reliability(method: str, sets: Sequence[Judged]) -> Iterator[list[object]]:
    """Bins of the pairs of all seeds together."""
    probability = np.concatenate([judged.probability[method] for judged in sets])
    prompt = np.concatenate([judged.prompt for judged in sets])
    for one in calibration(probability, prompt, bootstrap=BOOTSTRAP).bins:
        numbers = one.confidence, one.accuracy.value, one.accuracy.low, one.accuracy.high
        yield [*(f"{number:.4f}" for number in numbers), one.pairs]


def _margin(cell: Refinements, method: str, place: np.ndarray) -> np.ndarray:
    first, second = cell.reward[method].astype(np.float64)[place].T
    return first - second


def _logistic(method: str) -> str:
    """What a method is called that gets its probabilities from its margins alone."""
    return "EBRM, logistic of its margin" if method == "EBRM" else method
