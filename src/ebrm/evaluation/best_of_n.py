"""Best-of-n and KL-regularized selection on pools of responses: gold along n and along KL.

Both are exact (:mod:`ebrm.optimize`): intervals are of the prompts alone. All rewards select among the same prompts,
and differences are paired.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ebrm.benchmarks import Floats, padded, renamed
from ebrm.data import as_list, check_columns, read_rows
from ebrm.errors import DataError, setting
from ebrm.evaluation.config import TrainingRule
from ebrm.metrics import Bootstrap, MeanCurve, Peak, curve_peak, mean_curve, smallest_mean
from ebrm.optimize import best_of_n_gold, best_of_n_kl, tilt_to_kl

#: Columns that are taken where none are named: what `ebrm score` writes, and what the prompt is called in files.
REWARDS = ("base_reward", "reward")
PROMPTS = ("prompt_id", "prompt")
#: Our names for columns that may have others.
COLUMNS = ("prompt", "gold", "reward", "base_reward", "fitted_on")
_WORDS = {"true": 1.0, "false": 0.0}
INCOMPLETE = "a response without one of the numbers"
FITTED_PROMPT = "a model was fitted on it"
#: Column that `ebrm score` writes beside its rewards, with the same prefix.
_FITTED_ON = "fitted_on"


@dataclass(frozen=True, eq=False)
class ResponsePools:
    """Responses to q prompts with several rewards and gold of each."""

    reward: Mapping[str, Floats]  # name to rewards [q, m], NaN beyond a prompt's last response
    gold: Floats  # worth of the responses [q, m], NaN in the same places
    left_out: Mapping[str, int]  # reason to number of prompts left out
    fitted_on: NDArray[np.bool_] | None = (
        None  # whether a model was fitted on the prompt [q]; None: on none, or unknown
    )

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Number of responses of each prompt [q]."""
        return np.isfinite(self.gold).sum(axis=1)

    def take(self, rows: NDArray[Any]) -> ResponsePools:
        """The prompts at `rows` (a mask or places)."""
        reward = {name: table[rows] for name, table in self.reward.items()}
        return replace(
            self,
            reward=reward,
            gold=self.gold[rows],
            fitted_on=None if self.fitted_on is None else self.fitted_on[rows],
        )


def read_pools(
    source: str,
    reward: Sequence[str] = (),
    gold: str = "gold",
    prompt_column: str | None = None,
    training_items: TrainingRule = "skip",
    columns: Mapping[str, str] = MappingProxyType({}),
) -> ResponsePools:
    """Read pools from rows of responses: .jsonl, .json, .csv, .tsv or .parquet.

    A row is one response, with numbers, or several to one prompt, with lists of numbers (as JSON in CSV): what
    :func:`ebrm.score_file` writes for a list `responses`. A prompt with a response that lacks a number (missing, empty
    or NaN) is left out whole and counted; so is one that a model was fitted on, by the column `fitted_on` that
    :func:`ebrm.score_file` writes beside its rewards.

    Args:
        source: the file.
        reward: columns with rewards, in the order shown; none: those of `REWARDS` that there are.
        gold: column with the worth of a response, in any unit; true and false are 1 and 0.
        prompt_column: column that rows of one prompt share, of any type; None: the first of `PROMPTS`.
        training_items: prompts that a model was fitted on: "skip" leaves them out, "label" keeps them.
        columns: where a column has another name, our name (one of `COLUMNS`) → the file's.

    Raises:
        DataError: no rows, a missing column, a cell that is no finite number, or no prompt left.
        ConfigError: `columns` has a name that is not ours.
    """
    names: tuple[str, ...] = tuple(dict.fromkeys(reward))
    key = prompt_column or ("prompt" if "prompt" in columns else None)
    numbers: dict[str, int] = {}
    pools: list[list[list[float]]] = []  # by prompt and response: gold, then the rewards
    fitted: set[int] = set()  # numbers of the prompts that a model was fitted on
    for where, given in read_rows(source):
        if not pools:
            check_columns(columns, COLUMNS, [*given], source)
        row = renamed(given, columns)
        if key is None:
            key = next((name for name in PROMPTS if name in row), PROMPTS[0])
        if not names:
            names = tuple(name for name in REWARDS if name in row) or REWARDS[-1:]
        for name in (key, gold, *names):
            if name not in row:
                raise DataError(
                    f"{where} has no column {name!r}; it has {', '.join(map(str, given))}. Every response needs its "
                    "prompt (`prompt_column`), its gold (`gold`) and every reward that is compared (`reward`); name "
                    "the columns they are in."
                )
        values = _responses({name: row[name] for name in (gold, *names)}, where)
        known = row[key] if isinstance(row[key], str) else json.dumps(row[key], sort_keys=True, default=str)
        place = numbers.setdefault(known, len(numbers))
        if place == len(pools):
            pools.append([])
        pools[place] += values
        beside = (
            name.removesuffix("reward").removesuffix("base_") + _FITTED_ON for name in names if name.endswith("reward")
        )
        if any(str(row.get(name)).strip().lower() in ("true", "1") for name in beside):
            fitted.add(place)
    if not pools:
        raise DataError(f"{source} holds no rows. Give a file with one row a response.")
    whole = [pool for pool in pools if np.isfinite(np.array(pool)).all()]
    if not whole:
        raise DataError(
            f"Each of the {len(pools):,} prompts in {source} has a response without one of "
            f"{', '.join((gold, *names))}. Prompts count whole: fill in the numbers, or leave those responses out."
        )
    on = np.array([number in fitted for number, pool in enumerate(pools) if np.isfinite(np.array(pool)).all()])
    tables = [padded([[response[k] for response in pool] for pool in whole]) for k in range(1 + len(names))]
    incomplete = len(pools) - len(whole)
    left_out = {INCOMPLETE: incomplete} if incomplete else {}
    found = ResponsePools(dict(zip(names, tables[1:], strict=True)), tables[0], left_out, on if on.any() else None)
    if training_items == "label" or not on.any():
        return found
    if on.all():
        raise DataError(
            f"A model was fitted on each of the {len(on):,} prompts in {source} (column {_FITTED_ON!r}), so that they "
            "cannot say what its rewards are worth on others. Give a pool with other prompts, or count these under the "
            f"name of training prompts with {setting('training_items', 'label')}."
        )
    left_out[FITTED_PROMPT] = int(on.sum())
    return replace(found.take(~on), left_out=left_out, fitted_on=None)


def _responses(cells: Mapping[str, Any], where: str) -> list[list[float]]:
    """Gold and rewards of each response of a row: one number a cell, or lists of one length."""
    lists = {name: cell for name, value in cells.items() if (cell := as_list(value)) is not None}
    if not lists:
        return [[_number(value, name, where) for name, value in cells.items()]]
    length = len(next(iter(lists.values())))
    columns = []
    for name, value in cells.items():
        cell = lists.get(name)
        if cell is None and math.isnan(_number(value, name, where)):
            cell = [None] * length  # a row that could not be scored
        if cell is None or len(cell) != length:
            first = next(iter(lists))
            found = "one number" if cell is None else f"a list of {len(cell)}"
            raise DataError(
                f"{where}: {first} is a list of {length} and {name} {found}. Of several responses in a row, each needs "
                "every number."
            )
        columns.append([_number(one, f"{name}[{k}]", where) for k, one in enumerate(cell)])
    return [list(response) for response in zip(*columns, strict=True)]


def _number(value: Any, column: str, where: str) -> float:
    if value is None or (isinstance(value, str) and not value.strip()):
        return math.nan
    word = value.strip().lower() if isinstance(value, str) else None
    try:
        number = _WORDS[word] if word in _WORDS else float(value)
    except (TypeError, ValueError):
        raise DataError(f"{where}: {column} is {str(value)[:40]!r}; expected a number.") from None
    if math.isinf(number):
        raise DataError(f"{where}: {column} is {number}; expected a finite number. Find out why, or leave it out.")
    return number


Axis = Literal["n", "kl"]
#: Points on the axis of KL, from 0 to what the smallest pool allows.
KL_POINTS = 21
#: Unless told otherwise, curves go as far as all but one in so many prompts have responses.
ONE_IN = 10


@dataclass(frozen=True, eq=False)
class Along:
    """Mean gold along an axis when one reward selects.

    Attributes:
        x: n, or KL in nats [k].
        gold: mean over the prompts [k].
        above_random: mean of gold minus that of any response, paired.
        gain: mean of gold minus that of the first reward at the same place, paired; None for the first itself.
        peak: where gold is highest, and what is lost from there to the end.
    """

    x: Floats
    gold: MeanCurve
    above_random: MeanCurve
    gain: MeanCurve | None
    peak: Peak


@dataclass(frozen=True, eq=False)
class Selection:
    """Gold under selection by each of several rewards: curves, peaks, paired differences.

    Attributes:
        along: reward to axis to curve, in the order the rewards were given.
        oracle: axis to mean gold when gold itself selects: what a perfect reward would give.
        prompts, responses: how many there are in the curves.
        left_out: reason to number of prompts that are in no curve.
        bootstrap: of the intervals.
        training_prompts: prompts in the curves that a model was fitted on.
        smallest: reward to the smallest difference in gold of the best of all n that so many prompts show with a
            probability of 80%, to the first reward (of the first: to any response); None: none at all.
    """

    along: Mapping[str, Mapping[Axis, Along]]
    oracle: Mapping[Axis, MeanCurve]
    prompts: int
    responses: int
    left_out: Mapping[str, int]
    bootstrap: Bootstrap
    training_prompts: int = 0
    smallest: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def random(self) -> tuple[float, float, float]:
        """Mean gold of any response, with its interval: where every curve starts."""
        start = self.oracle["n"]
        return float(start.value[0]), float(start.low[0]), float(start.high[0])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; None for an interval that there is not."""
        return {
            "prompts": self.prompts,
            "responses": self.responses,
            "left_out": dict(self.left_out),
            "training_prompts": self.training_prompts,
            "smallest": dict(self.smallest),
            **asdict(self.bootstrap),
            "random": _plain(np.array(self.random)),
            "oracle": {axis: _curve(curve) for axis, curve in self.oracle.items()},
            "rewards": {
                name: {axis: _along(axis, found) for axis, found in axes.items()} for name, axes in self.along.items()
            },
        }


def longest_axis(sizes: NDArray[np.int64]) -> int:
    """The most responses that all but one in `ONE_IN` prompts have, from their numbers of responses [q]."""
    return int(np.sort(sizes)[len(sizes) // ONE_IN])


def selection_axes(smallest: int, kl: Sequence[float] | None = None) -> dict[Axis, Floats]:
    """Every n up to the size of the smallest pool, and KL, evenly from 0 to the log of that size unless given."""
    return {
        "n": np.arange(1.0, smallest + 1),
        "kl": np.linspace(0, np.log(smallest), KL_POINTS) if kl is None else np.asarray(kl, dtype=np.float64),
    }


def gold_curves(reward: Floats, gold: Floats, axes: Mapping[Axis, Floats]) -> dict[Axis, Floats]:
    """Gold by prompt along both axes [q, k], for rewards and gold [q, m] with NaN beyond a pool's end."""
    return {"n": best_of_n_gold(reward, gold)[:, : len(axes["n"])], "kl": tilt_to_kl(reward, gold, axes["kl"]).gold}


def select(pools: ResponsePools, least: int | None = None, *, bootstrap: Bootstrap = Bootstrap()) -> Selection:
    """Curves of every reward along n and KL, with paired intervals over prompts; differences are to the first reward.

    Args:
        pools: rewards and gold of the responses.
        least: prompts with fewer responses are left out and counted; curves end at the smallest pool that stays. None:
            `longest_axis`, and at least 2.
        bootstrap: of the intervals, over prompts.

    Raises:
        DataError: no prompt has two responses, or `least` of them.
    """
    few = max(2, longest_axis(pools.sizes)) if least is None else max(2, least)
    keep = pools.sizes >= few
    if not keep.any():
        raise DataError(
            f"No prompt has {few} responses or more; the most are {pools.sizes.max(initial=0)}. Selection needs "
            "several responses to one prompt: check the column with the prompt, or lower `least`."
        )
    left_out = dict(pools.left_out)
    if not keep.all():
        left_out[f"fewer than {few} responses"] = int((~keep).sum())
    kept = pools.take(keep)
    axes = selection_axes(int(kept.sizes.min()))
    by_reward = {name: gold_curves(table, kept.gold, axes) for name, table in kept.reward.items()}
    first = next(iter(by_reward))
    along = {
        name: {
            axis: Along(
                x,
                mean_curve(found[axis], bootstrap=bootstrap),
                mean_curve(found[axis] - found[axis][:, :1], bootstrap=bootstrap),
                None if name == first else mean_curve(found[axis] - by_reward[first][axis], bootstrap=bootstrap),
                curve_peak(found[axis], x, bootstrap=bootstrap),
            )
            for axis, x in axes.items()
        }
        for name, found in by_reward.items()
    }
    oracle = {
        axis: mean_curve(curve, bootstrap=bootstrap) for axis, curve in gold_curves(kept.gold, kept.gold, axes).items()
    }
    training = 0 if kept.fitted_on is None else int(kept.fitted_on.sum())
    smallest: dict[str, float | None] = {}
    for name, found in by_reward.items():
        other = found["n"][:, 0] if name == first else by_reward[first]["n"][:, -1]
        least_seen = smallest_mean(found["n"][:, -1] - other, level=bootstrap.level)
        smallest[name] = None if math.isnan(least_seen) else least_seen
    return Selection(along, oracle, len(kept.gold), int(kept.sizes.sum()), left_out, bootstrap, training, smallest)


def _along(axis: Axis, found: Along) -> dict[str, Any]:
    extra = {"kl_bound": _plain(best_of_n_kl(found.x))} if axis == "n" else {}
    return {
        "x": _plain(found.x),
        **extra,
        "gold": _curve(found.gold),
        "above_random": _curve(found.above_random),
        "gain": None if found.gain is None else _curve(found.gain),
        "peak": {
            name: dict(zip(("value", "low", "high"), _plain(np.array([i.value, i.low, i.high])), strict=True))
            for name, i in vars(found.peak).items()
        },
    }


def _curve(curve: MeanCurve) -> dict[str, Any]:
    return {name: _plain(values) for name, values in vars(curve).items()}


def _plain(values: Floats) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]
