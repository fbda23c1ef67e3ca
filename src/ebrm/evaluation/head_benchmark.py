"""Heads, ensembles and shapings on the same features and the same split, measured alike: one row of numbers a method.

A method is fitted on the pairs of a :class:`HeadBenchmark` and gives rewards for :class:`Rows`; add one to `METHODS`.
"""

from __future__ import annotations

import difflib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import expit
from torch import Tensor

from ebrm.aggregate import (
    centered,
    ensemble_mean,
    ensemble_median,
    log_sigmoid_sum,
    mean_minus_std,
    neighbor_fusion,
    nominal_worst_case,
    uncertainty_weighted,
    worst_case,
)
from ebrm.benchmarks import Floats
from ebrm.errors import ConfigError, DataError
from ebrm.evaluation.best_of_n import ResponsePools, select
from ebrm.evaluation.score_models import ReadPool, tokens_of
from ebrm.features import Features, open_features
from ebrm.fitting import PreparedFit, prepare_fit
from ebrm.groups import Groups
from ebrm.heads import HEADS, ClosedFormHead, FitConfig, FittedHead, GaussianHead, HeadConfig, RewardHead, fit_head
from ebrm.metrics import Bootstrap, Estimate, calibration, paired_accuracy
from ebrm.pairs import PreferencePairs
from ebrm.shape import (
    RunningStatistics,
    length_penalty,
    log_sigmoid_centered,
    preference_as_reward,
    relative_length_penalty,
    running_clipped,
    running_min_max,
    running_standardized,
)

logger = logging.getLogger(__name__)

#: Rows whose scoring is timed, and how often.
_TIMED_ROWS, _TIMES = 2048, 3
#: Pairs whose probability is asked for at a time.
_PAIRS = 4096
#: Parts of a head's state that are no parameters of its reward.
_UNITS = ("standardizer.", "support", "trusted", "offset", "gain", "gate", "groups", "residual", "share", "names")
#: From this share of the training responses' rewards on, a response counts as good.
_GOOD = 0.85


@dataclass(frozen=True, eq=False)
class Rows:
    """Responses to be scored."""

    embedding: Tensor  # [n, d]
    base: Tensor  # base rewards [n]
    groups: Groups  # by prompt
    length: Tensor | None = None  # tokens of prompt and response together [n]; None where unknown


@dataclass(frozen=True)
class FittedMethod:
    """A fitted method."""

    reward: Callable[[Rows], Tensor]  # from n rows to their rewards [n]
    parameters: int = 0  # numbers it learned
    fitted: FittedHead | None = None  # head with its history; None for ensembles and shaped rewards

    @property
    def head(self) -> RewardHead | None:
        """The head, with P(a above b) of two rows."""
        return None if self.fitted is None else self.fitted.head


@dataclass(frozen=True, eq=False)
class HeadBenchmark:
    """Data and settings that methods are fitted with.

    Attributes:
        features: embeddings and base rewards of all rows.
        train, validation: prompt-disjoint pairs of rows; sources are users (prototypes) and objectives (min_norm).
        members: two-layer heads in an ensemble, with the seeds from `config.seed` on.
        heads: configs by kind, in place of the defaults.
        config: seed, and how the pairs' strength enters.
        device: where heads are fitted.
    """

    features: Features
    train: PreferencePairs
    validation: PreferencePairs
    members: int = 5
    heads: Mapping[str, HeadConfig] = field(default_factory=dict)
    config: FitConfig = FitConfig()
    device: str = "cpu"

    @cached_property
    def rows(self) -> Tensor:
        """The responses of the training pairs, each once [m]."""
        return torch.unique(torch.cat([self.train.chosen, self.train.rejected]))

    @cached_property
    def statistics(self) -> RunningStatistics:
        """Of the training responses' base rewards."""
        return RunningStatistics().updated(self.features.reward[self.rows])

    @cached_property
    def good(self) -> Tensor:
        """The base reward from which on a response counts as good []."""
        return torch.quantile(self.features.reward[self.rows].double(), _GOOD)

    @cached_property
    def ensemble(self) -> tuple[ClosedFormHead, ...]:
        """Two-layer heads that differ in their seed."""
        return tuple(self.fit("silu", member).head for member in range(self.members))  # type: ignore[misc]

    @cached_property
    def gaussian(self) -> FittedHead:
        """Gaussian heads."""
        return self.fit("gaussian")

    def fit(self, kind: str, member: int = 0) -> FittedHead:
        """Fit the head of a kind; `member` is added to the seed."""
        return fit_head(
            self.heads.get(kind, HEADS[kind]()), self.features.embeddings, self.features.reward,
            self.train, self.validation, device=self.device,
            strength=self.config.strength, pairs_seen=self.config.pairs_seen, seed=self.config.seed + member,
        )  # fmt: skip


Method = Callable[[HeadBenchmark], FittedMethod]


def head(benchmark: HeadBenchmark, kind: str) -> FittedMethod:
    """A head; the energy among them."""
    fitted = benchmark.gaussian if kind == "gaussian" else benchmark.fit(kind)
    one = fitted.head
    return FittedMethod(lambda rows: one.refine(rows.embedding, rows.base).reward, _parameters(one), fitted)


def ensemble(benchmark: HeadBenchmark, combine: Callable[[Tensor, Rows], Tensor]) -> FittedMethod:
    """Two-layer heads with different seeds, combined in units of their deviation on the training responses."""
    heads = benchmark.ensemble

    def reward(rows: Rows) -> Tensor:
        return combine(torch.stack([member.location_scale(rows.embedding)[0] for member in heads]), rows)

    return FittedMethod(reward, sum(map(_parameters, heads)))


def gaussian_worst_case(benchmark: HeadBenchmark) -> FittedMethod:
    """Gaussian heads: half the surest one's reward, half the lowest one's (BRME)."""
    heads = benchmark.gaussian.head
    assert isinstance(heads, GaussianHead)

    def reward(rows: Rows) -> Tensor:
        return nominal_worst_case(*heads.all_heads(heads.standardizer.embed(rows.embedding)))

    return FittedMethod(reward, _parameters(heads))


def base_and_silu(benchmark: HeadBenchmark) -> FittedMethod:
    """Good by the base reward and by the two-layer heads' mean: the sum of their log-sigmoids."""
    heads, good, unit = benchmark.ensemble, benchmark.good, benchmark.statistics.std()

    def learned(embedding: Tensor) -> Tensor:
        return ensemble_mean(torch.stack([member.location_scale(embedding)[0] for member in heads]))

    level = torch.quantile(learned(benchmark.features.embeddings[benchmark.rows]), _GOOD)

    def reward(rows: Rows) -> Tensor:
        both = torch.stack([rows.base.double() / unit, learned(rows.embedding).double()], 1)
        return log_sigmoid_sum(both, torch.stack([good / unit, level.double()]).expand_as(both))

    return FittedMethod(reward, sum(map(_parameters, heads)))


def neighbors(benchmark: HeadBenchmark) -> FittedMethod:
    """The base reward, averaged with those of the nearest training responses (RewardFusion)."""
    bank, rewards = benchmark.features.embeddings[benchmark.rows], benchmark.features.reward[benchmark.rows]
    return FittedMethod(lambda rows: neighbor_fusion(rows.embedding, rows.base, bank, rewards))


def _shaped(shape: Callable[[HeadBenchmark, Rows], Tensor]) -> Method:
    return lambda benchmark: FittedMethod(lambda rows: shape(benchmark, rows))


def _par(benchmark: HeadBenchmark, rows: Rows) -> Tensor:
    reference = torch.full((len(rows.base), 1), benchmark.statistics.mean, dtype=torch.float64)
    return preference_as_reward(rows.base.double(), reference)


def _shorter(benchmark: HeadBenchmark, rows: Rows) -> Tensor:
    return rows.base.double() + benchmark.statistics.std() * relative_length_penalty(_length(rows), rows.groups)


#: Name to method, in the order of the table.
METHODS: dict[str, Method] = {
    "base": lambda benchmark: FittedMethod(lambda rows: rows.base),
    **{kind: partial(head, kind=kind) for kind in HEADS if kind != "attributes"},
    "silu-mean": partial(ensemble, combine=lambda members, rows: ensemble_mean(members)),
    "silu-median": partial(ensemble, combine=lambda members, rows: ensemble_median(members)),
    "silu-worst-case": partial(ensemble, combine=lambda members, rows: worst_case(members)),
    "silu-uwo": partial(ensemble, combine=lambda members, rows: uncertainty_weighted(members)),
    "silu-mean-std": partial(ensemble, combine=lambda members, rows: mean_minus_std(centered(members, rows.groups))),
    "gaussian-worst-case": gaussian_worst_case,
    "base-and-silu": base_and_silu,
    "base-neighbors": neighbors,
    "base-par": _shaped(_par),
    "base-log-sigmoid": _shaped(lambda p, rows: log_sigmoid_centered(rows.base.double(), p.good)),
    "base-standardized": _shaped(lambda p, rows: running_standardized(rows.base.double(), p.statistics)),
    "base-clipped": _shaped(lambda p, rows: running_clipped(rows.base.double(), p.statistics)),
    "base-min-max": _shaped(lambda p, rows: running_min_max(rows.base.double(), p.statistics)),
    "base-length": _shaped(lambda p, rows: rows.base.double() + length_penalty(_length(rows))),
    "base-shorter": _shaped(_shorter),
}


def _parameters(head: RewardHead) -> int:
    """Numbers that were learned, those that only bring embeddings and rewards to common units aside."""
    return sum(tensor.numel() for name, tensor in head.state_dict().items() if not name.startswith(_UNITS))


def _length(rows: Rows) -> Tensor:
    if rows.length is None:
        raise DataError(
            "These features do not say how long their texts are (they were made elsewhere), and a length penalty needs "
            "it. Leave out base-length and base-shorter, or make the features with `ebrm features`."
        )
    return rows.length


@dataclass(frozen=True)
class MethodResult:
    """Measures of one method.

    Attributes:
        name: the method.
        accuracy: share of test pairs ranked rightly; a tie is wrong.
        difference: accuracy minus that of the first method, paired; None for the first.
        ties: test pairs of equal rewards.
        ece: expected calibration error of P(chosen > rejected), see `ebrm.metrics.calibration`.
        log_loss: mean of -log P(chosen > rejected), nats.
        temperature: divides the log odds, see `fit_temperature`; fitted on the validation pairs.
        gold: mean gold of the best of `Comparison.n`; None without a pool.
        gain: gold minus that of the first method, paired.
        parameters: numbers the method learned.
        microseconds: a row, when rows are scored together.
        seconds: to fit.
        smallest: the smallest difference to the first method that the test pairs could show, a share; None for the
            first, or if they are too few for any.
    """

    name: str
    accuracy: Estimate
    difference: Estimate | None
    ties: int
    ece: Estimate
    log_loss: Estimate
    temperature: float
    gold: Estimate | None
    gain: Estimate | None
    parameters: int
    microseconds: float
    seconds: float
    smallest: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Methods in the order asked for, and the data they were measured on.

    Attributes:
        methods: one result each.
        train, validation: pairs to fit on and to choose by.
        pairs, prompts: test pairs and their prompts.
        n: responses of which the best was taken; None without a pool.
        pool_prompts: prompts of the pool.
        left_out: reason to number of prompts of the pool in no number.
        random: mean gold of any response; None without a pool.
        bootstrap: of the intervals.
        saved: methods saved as models.
        warnings: what may be wrong with the pairs, one sentence each (`FitResult.warnings`).
    """

    methods: tuple[MethodResult, ...]
    train: int
    validation: int
    pairs: int
    prompts: int
    n: int | None
    pool_prompts: int
    left_out: dict[str, int]
    random: float | None
    bootstrap: Bootstrap
    saved: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; None for an interval that there is not."""
        found: dict[str, Any] = _finite(asdict(self))
        found |= found.pop("bootstrap")
        return found


def check_names(names: Sequence[str]) -> tuple[str, ...]:
    """Names of methods, each once, "all" spelled out; raises a ConfigError with the nearest and all known names."""
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


def compare_heads(
    features: str | Path | Features,
    methods: Sequence[str] = ("base", "residual", "energy", "linear", "silu"),
    *,
    heads: Mapping[str, HeadConfig] | None = None,
    config: FitConfig = FitConfig(),  # noqa: B008 - frozen
    members: int = 5,
    pool: ReadPool | None = None,
    bootstrap: Bootstrap = Bootstrap(),
    device: str = "cpu",
    save: str | Path | None = None,
) -> Comparison:
    """Fit methods on the same training pairs, measure them on the same held-out pairs; differences to the first.

    Heads are fitted as by :func:`ebrm.fit`. P(chosen > rejected) of every method, from its own probability or reward
    difference, is calibrated alike: one temperature, fitted on the validation pairs, divides the log odds.

    Args:
        features: a features folder, or features, with their pairs.
        methods: names of `METHODS`, or "all".
        heads: configs by kind, in place of the defaults; those of "silu" are for ensembles too.
        config: how pairs are divided, filtered and weighted, and the seed.
        members: two-layer heads in an ensemble; they differ in their seed.
        pool: responses with gold (:func:`read_pool`), if best-of-n is to be measured; prompts that the heads are
            fitted on are left out and counted.
        bootstrap: of the intervals, over prompts.
        device: where heads are fitted.
        save: folder that gets a folder for each head among the methods, as `ebrm.fit(...).save` writes it.

    Raises:
        ConfigError: an unknown method. DataError: no held-out pairs, or a method lacks what it needs.
    """
    names = check_names(methods)
    opened = features if isinstance(features, Features) else open_features(features)
    fit = prepare_fit(opened, None, config)
    test = fit.pairs.select(fit.splits.test)
    test = test.select(test.label != 0.5)
    if not len(test):
        raise DataError(
            f"Of the {len(fit.pairs)} pairs in {opened.path or 'the features'} none is held out to measure methods on. "
            "Give more pairs, or a higher `test_fraction`."
        )
    validation = fit.pairs.select(fit.splits.validation)
    benchmark = HeadBenchmark(opened, fit.train, validation, members, heads or {}, fit.config, device)
    if pool is not None:
        pool = _unseen(pool, fit)
    comparison, fitted = measure_methods(names, benchmark, test, pool=pool, bootstrap=bootstrap)
    saved = []
    if save is not None:
        for name, method in fitted.items():
            if method.fitted is not None:
                fit.result(method.fitted).save(Path(save) / name)
                saved.append(name)
    return replace(comparison, saved=tuple(saved), warnings=fit.warnings)


#: Why prompts of a pool are left out.
IN_TRAINING = "prompt that the heads are fitted on"


def _unseen(pool: ReadPool, fit: PreparedFit) -> ReadPool:
    """The pool without prompts that the heads are fitted on or chosen by."""
    used = np.concatenate([fit.splits.train, fit.splits.validation])
    kept = pool.without(set(fit.pairs.prompt_id[used].tolist()), IN_TRAINING)
    if len(kept.gold):
        return kept
    raise DataError(
        f"Every prompt of the pool ({len(pool.gold):,}) is one of those that the heads are fitted on, so that gold "
        "would be that of training prompts. Give a pool with other prompts, or leave it out."
    )


def measure_methods(
    names: Sequence[str],
    benchmark: HeadBenchmark,
    test: PreferencePairs,
    *,
    pool: ReadPool | None = None,
    bootstrap: Bootstrap = Bootstrap(),
) -> tuple[Comparison, dict[str, FittedMethod]]:
    """Fit and measure methods on test pairs that were used for nothing; see `compare_heads`."""
    features, tokens = benchmark.features, tokens_of(benchmark.features)
    held, tuned = (_PairRows(features, pairs, tokens) for pairs in (test, benchmark.validation))
    pool_rows = None if pool is None else Rows(pool.embedding, pool.base, Groups.of(pool.prompt), pool.length)
    fitted, seconds = {}, {}
    tables: dict[str, Floats] = {}
    rewards: dict[str, tuple[Floats, Floats]] = {}
    for name in names:
        started = time.perf_counter()
        fitted[name] = METHODS[name](benchmark)
        seconds[name] = time.perf_counter() - started
        logger.info("%s: fitted in %.1f s.", name, seconds[name])
        rewards[name] = held.sides(fitted[name])
        if pool is not None and pool_rows is not None:
            tables[name] = pool.table(fitted[name].reward(pool_rows))
    selection = None if pool is None else select(ResponsePools(tables, pool.gold, pool.left_out), bootstrap=bootstrap)
    results = []
    first = names[0]
    for name in names:
        method = fitted[name]
        accuracy = paired_accuracy(*rewards[first], *rewards[name], test.prompt_id, bootstrap=bootstrap)
        temperature = fit_temperature(tuned.log_odds(method))
        probability = np.asarray(expit(held.log_odds(method) / temperature))
        reliability = calibration(probability, test.prompt_id, bootstrap=bootstrap)
        gold = gain = None
        if selection is not None:
            along = selection.along[name]["n"]
            gold, gain = _last(along.gold), None if along.gain is None else _last(along.gain)
        results.append(
            MethodResult(
                name, accuracy.refined, None if name == first else accuracy.difference, accuracy.ties_refined,
                reliability.ece, reliability.log_loss, temperature, gold, gain, method.parameters,
                held.microseconds(method), seconds[name], None if name == first else accuracy.smallest,
            )
        )  # fmt: skip
    comparison = Comparison(
        tuple(results), len(benchmark.train), len(benchmark.validation), len(test), len(np.unique(test.prompt_id)),
        None if selection is None else len(selection.along[first]["n"].x),
        0 if selection is None else selection.prompts,
        {} if selection is None else dict(selection.left_out),
        None if selection is None else selection.random[0],
        bootstrap,
    )  # fmt: skip
    return comparison, fitted


def fit_temperature(log_odds: Floats) -> float:
    """Temperature scaling (Guo et al. 2017, arXiv 1706.04599): least log loss of sigmoid(log odds [p] / temperature).

    Within a factor of e⁸ of the log odds' root mean square; 1 where there is nothing to fit.
    """
    unit = float(np.sqrt(np.mean(log_odds**2))) if len(log_odds) else 0.0
    if not (unit > 0 and np.isfinite(unit)):
        return 1.0

    def loss(log_scale: float) -> float:
        return float(np.logaddexp(0.0, -np.exp(log_scale) * log_odds / unit).mean())

    return unit / float(np.exp(minimize_scalar(loss, bounds=(-8.0, 8.0), method="bounded").x))


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

    def sides(self, method: FittedMethod) -> tuple[Floats, Floats]:
        reward = method.reward(self.rows).double()
        return reward[self.chosen].numpy(), reward[self.rejected].numpy()

    def log_odds(self, method: FittedMethod) -> Floats:
        """Log odds of chosen > rejected [p], from the head's probability or the reward difference."""
        if method.head is None:
            chosen, rejected = self.sides(method)
            return chosen - rejected
        rows, parts = self.rows, []
        for a, b in zip(self.chosen.split(_PAIRS), self.rejected.split(_PAIRS), strict=True):
            sides = (rows.embedding[a], rows.embedding[b]), (rows.base[a], rows.base[b])
            parts.append(method.head.prefer(*sides))
        return torch.logit(torch.cat(parts).double(), eps=1e-7).numpy() if parts else np.empty(0)

    def microseconds(self, method: FittedMethod) -> float:
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
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
