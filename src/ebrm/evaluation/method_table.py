"""Many methods on the same features and the same split, measured alike: one row of numbers a method."""

from __future__ import annotations

import difflib
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import expit

from ebrm.benchmarks import Floats
from ebrm.errors import ConfigError
from ebrm.evaluation.best_of_n import ResponsePools, select
from ebrm.evaluation.compare_heads import METHODS, Fitted, Problem, Rows
from ebrm.evaluation.score_models import ReadPool
from ebrm.features import Features
from ebrm.groups import Groups
from ebrm.metrics import Bootstrap, Estimate, calibration, paired_accuracy
from ebrm.pairs import PreferencePairs

logger = logging.getLogger(__name__)

#: Rows whose scoring is timed, and how often.
_TIMED_ROWS, _TIMES = 2048, 3
#: PreferencePairs whose probability is asked for at a time.
_PAIRS = 4096


@dataclass(frozen=True)
class MethodResult:
    """What is measured of a method.

    Attributes:
        name: the method.
        accuracy: share of test pairs ranked rightly; a tie is wrong.
        difference: accuracy minus that of the first method, paired; None for the first.
        ties: test pairs whose rewards are equal.
        ece: expected calibration error of P(chosen > rejected), see `ebrm.metrics.calibration`.
        log_loss: mean of -log P(chosen > rejected).
        temperature: rewards are divided by it to make log odds, where the method has no probability of its own: the
            one under which the validation pairs are likeliest.
        gold: mean gold of the best of n, n as `Comparison.n`; None without a pool.
        gain: gold minus that of the first method, paired.
        parameters: numbers the method learned.
        microseconds: a row, when rows are scored together.
        seconds: to fit.
    """

    name: str
    accuracy: Estimate
    difference: Estimate | None
    ties: int
    ece: Estimate
    log_loss: Estimate
    temperature: float | None
    gold: Estimate | None
    gain: Estimate | None
    parameters: int
    microseconds: float
    seconds: float


@dataclass(frozen=True)
class Comparison:
    """Methods in the order asked for, and what they were measured on.

    Attributes:
        methods: one result each.
        pairs, prompts: test pairs and their prompts.
        n: responses of which the best was taken; None without a pool.
        pool_prompts: prompts of the pool.
        left_out: reason to number of prompts of the pool that are in no number.
        random: mean gold of any response; None without a pool.
        bootstrap: of the intervals.
    """

    methods: tuple[MethodResult, ...]
    pairs: int
    prompts: int
    n: int | None
    pool_prompts: int
    left_out: dict[str, int]
    random: float | None
    bootstrap: Bootstrap

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; None for an interval that there is not."""
        found: dict[str, Any] = _finite(asdict(self))
        found |= found.pop("bootstrap")
        return found


def check_names(names: Sequence[str]) -> tuple[str, ...]:
    """The methods, each once; "all" is every one.

    Raises:
        ConfigError: an unknown one, with the nearest and all known names.
    """
    wanted: list[str] = []
    for name in names:
        if name != "all" and name not in METHODS:
            near = difflib.get_close_matches(name, METHODS, n=1)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            raise ConfigError(f"There is no method {name!r}. {hint}Known: {', '.join(METHODS)}; or `all`.")
        wanted += METHODS if name == "all" else [name]
    if not wanted:
        raise ConfigError(f"methods names nothing to compare. Known: {', '.join(METHODS)}; or `all`.")
    return tuple(dict.fromkeys(wanted))


def compare_methods(
    names: Sequence[str],
    problem: Problem,
    features: Features,
    test: PreferencePairs,
    validation: PreferencePairs,
    tokens: np.ndarray | None = None,
    pool: ReadPool | None = None,
    *,
    bootstrap: Bootstrap = Bootstrap(),
) -> Comparison:
    """Fit and measure methods; differences are to the first.

    Args:
        names: of `METHODS`.
        problem: what they are fitted on.
        features: all rows.
        test: pairs that were used for nothing.
        validation: pairs that temperatures are chosen on.
        tokens: length of every row [n], if it is known.
        pool: responses with gold, if best-of-n is to be measured.
        bootstrap: of the intervals, over prompts.

    Raises:
        ConfigError: an unknown method. DataError: no test pairs, or a method lacks what it needs.
    """
    names = check_names(names)
    held, tuned = (_PairRows(features, pairs, tokens) for pairs in (test, validation))
    pool_rows = None if pool is None else Rows(pool.embedding, pool.base, Groups.of(pool.prompt), pool.length)
    fitted, seconds = {}, {}
    tables: dict[str, Floats] = {}
    rewards: dict[str, tuple[Floats, Floats]] = {}
    for name in names:
        started = time.perf_counter()
        fitted[name] = METHODS[name](problem)
        seconds[name] = time.perf_counter() - started
        logger.info("%s: fitted in %.1f s.", name, seconds[name])
        rewards[name] = held.sides(fitted[name])
        if pool is not None and pool_rows is not None:
            tables[name] = pool.table(fitted[name].reward(pool_rows))
    selection = None if pool is None else select(ResponsePools(tables, pool.gold, pool.left_out), bootstrap=bootstrap)
    results = []
    first = names[0]
    for name in names:
        accuracy = paired_accuracy(*rewards[first], *rewards[name], test.prompt_id, bootstrap=bootstrap)
        temperature = None if fitted[name].posterior is not None else tuned.temperature(fitted[name])
        reliability = calibration(held.probability(fitted[name], temperature), test.prompt_id, bootstrap=bootstrap)
        gold = gain = None
        if selection is not None:
            along = selection.along[name]["n"]
            gold, gain = _last(along.gold), None if along.gain is None else _last(along.gain)
        results.append(
            MethodResult(
                name, accuracy.refined, None if name == first else accuracy.difference, accuracy.ties_refined,
                reliability.ece, reliability.log_loss, temperature, gold, gain, fitted[name].parameters,
                held.microseconds(fitted[name]), seconds[name],
            )
        )  # fmt: skip
    return Comparison(
        tuple(results), len(test), len(np.unique(test.prompt_id)),
        None if selection is None else len(selection.along[first]["n"].x),
        0 if selection is None else selection.prompts,
        {} if selection is None else dict(selection.left_out),
        None if selection is None else selection.random[0],
        bootstrap,
    )  # fmt: skip


class _PairRows:
    """The responses of some pairs, each once, with the pairs as places among them."""

    def __init__(self, features: Features, pairs: PreferencePairs, tokens: np.ndarray | None) -> None:
        both = torch.cat([pairs.chosen, pairs.rejected]).numpy()
        items, place = np.unique(both, return_inverse=True)
        self.chosen, self.rejected = (torch.from_numpy(side) for side in np.split(place, 2))
        prompt = np.empty(len(items), dtype=object)
        prompt[place] = np.concatenate([pairs.prompt_id, pairs.prompt_id])
        rows = torch.from_numpy(items)
        length = None if tokens is None else torch.from_numpy(tokens[items]).double()
        self.rows = Rows(features.embedding(rows), features.reward[rows], Groups.of(prompt.tolist()), length)

    def sides(self, method: Fitted) -> tuple[Floats, Floats]:
        """Rewards of the chosen and of the rejected responses."""
        reward = method.reward(self.rows).double()
        return reward[self.chosen].numpy(), reward[self.rejected].numpy()

    def probability(self, method: Fitted, temperature: float | None) -> Floats:
        """P(chosen > rejected) of every pair."""
        if method.posterior is None:
            chosen, rejected = self.sides(method)
            return np.asarray(expit((chosen - rejected) / (temperature or 1.0)))
        rows, parts = self.rows, []
        for a, b in zip(self.chosen.split(_PAIRS), self.rejected.split(_PAIRS), strict=True):
            sides = (rows.embedding[a], rows.embedding[b]), (rows.base[a], rows.base[b])
            parts.append(method.posterior.prefer(*sides))
        return torch.cat(parts).double().clamp(0, 1).numpy()

    def temperature(self, method: Fitted) -> float:
        """The temperature under which these pairs are likeliest, within a factor of e⁸ of the rewards' own spread."""
        chosen, rejected = self.sides(method)
        ahead = chosen - rejected
        unit = float(np.sqrt(np.mean(ahead**2))) if len(ahead) else 1.0
        if not (unit > 0 and np.isfinite(unit)) or not len(ahead):
            return 1.0

        def loss(log_scale: float) -> float:
            return float(np.logaddexp(0.0, -np.exp(log_scale) * ahead / unit).mean())

        return unit / float(np.exp(minimize_scalar(loss, bounds=(-8.0, 8.0), method="bounded").x))

    def microseconds(self, method: Fitted) -> float:
        """Least time a row of several goes."""
        few = torch.arange(min(_TIMED_ROWS, len(self.rows.base)))
        some = Rows(
            self.rows.embedding[few], self.rows.base[few], Groups.of(self.rows.groups.index[few]),
            None if self.rows.length is None else self.rows.length[few],
        )  # fmt: skip
        times = []
        for _ in range(_TIMES):
            started = time.perf_counter()
            method.reward(some)
            times.append(time.perf_counter() - started)
        return 1e6 * min(times) / len(few)


def _last(curve: Any) -> Estimate:
    return Estimate(float(curve.value[-1]), float(curve.low[-1]), float(curve.high[-1]))


def _finite(value: Any) -> Any:
    """NaN as None, at any depth."""
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
