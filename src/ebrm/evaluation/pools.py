"""Pools of responses with rewards and gold, from a file with one row a response."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebrm.benchmarks import Floats, padded
from ebrm.data import read_rows
from ebrm.errors import DataError

#: Columns that are taken where none are named: what `ebrm score` writes, and what the prompt is called in files.
REWARDS = ("base_reward", "reward")
PROMPTS = ("prompt_id", "prompt")
_WORDS = {"true": 1.0, "false": 0.0}
INCOMPLETE = "a response without one of the numbers"


@dataclass(frozen=True, eq=False)
class ResponsePools:
    """The responses to q prompts, with what several rewards and gold say of each.

    Attributes:
        reward: name to the rewards [q, m], NaN where a prompt has fewer than m responses.
        gold: worth of the responses [q, m], NaN in the same places.
        left_out: reason to how many prompts were left out for it.
    """

    reward: Mapping[str, Floats]
    gold: Floats
    left_out: Mapping[str, int]

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Number of responses of each prompt [q]."""
        return np.isfinite(self.gold).sum(axis=1)

    def take(self, rows: NDArray[Any]) -> ResponsePools:
        """The prompts at `rows` (a mask or places)."""
        return ResponsePools({name: table[rows] for name, table in self.reward.items()}, self.gold[rows], self.left_out)


def read_pools(
    source: str, rewards: Sequence[str] = (), gold: str = "gold", prompt: str | None = None
) -> ResponsePools:
    """Read pools from rows of responses: .jsonl, .json, .csv, .tsv or .parquet.

    A prompt with a response that lacks a number (a missing, empty or NaN cell) is left out whole and counted: gold of
    the best of what is left would be of another pool, and all rewards are compared on the same prompts.

    Args:
        source: the file.
        rewards: columns with rewards, in the order they are to be shown; none: those of `REWARDS` that there are.
        gold: column with the worth of a response, in any unit; true and false are 1 and 0.
        prompt: column that rows of one prompt have in common, of any type; None: the first of `PROMPTS` there is.

    Raises:
        DataError: no rows, a column that is not there, a cell that is no finite number, or no prompt left.
    """
    names: tuple[str, ...] = tuple(dict.fromkeys(rewards))
    key = prompt
    numbers: dict[str, int] = {}
    pools: list[list[list[float]]] = []  # by prompt and response: gold, then the rewards
    for where, row in read_rows(source):
        if key is None:
            key = next((name for name in PROMPTS if name in row), PROMPTS[0])
        if not names:
            names = tuple(name for name in REWARDS if name in row) or REWARDS[-1:]
        for name in (key, gold, *names):
            if name not in row:
                raise DataError(
                    f"{where} has no column {name!r}; it has {', '.join(map(str, row))}. Every response needs its "
                    "prompt (--prompt-column), its gold (--gold) and every reward that is compared (--reward); name "
                    "the columns they are in."
                )
        values = [_number(row[name], name, where) for name in (gold, *names)]
        known = row[key] if isinstance(row[key], str) else json.dumps(row[key], sort_keys=True, default=str)
        place = numbers.setdefault(known, len(numbers))
        if place == len(pools):
            pools.append([])
        pools[place].append(values)
    if not pools:
        raise DataError(f"{source} holds no rows. Give a file with one row a response.")
    whole = [pool for pool in pools if np.isfinite(np.array(pool)).all()]
    if not whole:
        raise DataError(
            f"Each of the {len(pools):,} prompts in {source} has a response without one of "
            f"{', '.join((gold, *names))}. Prompts count whole: fill in the numbers, or leave those responses out."
        )
    tables = [padded([[response[k] for response in pool] for pool in whole]) for k in range(1 + len(names))]
    incomplete = len(pools) - len(whole)
    left_out = {INCOMPLETE: incomplete} if incomplete else {}
    return ResponsePools(dict(zip(names, tables[1:], strict=True)), tables[0], left_out)


def _number(value: Any, column: str, where: str) -> float:
    """A cell as a number, NaN where there is none."""
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
