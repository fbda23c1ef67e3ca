"""Rewards of the reference policy's responses: of texts in a column, of numbers in one, or of a file made before."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ebrm.data import RowProblem, check_messages, read_rows
from ebrm.errors import ConfigError, DataError
from ebrm.integrations.reward_sources import Source
from ebrm.integrations.rollouts import Rollouts, StepScores

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ReferenceRewards:
    """Rewards of the reference policy's responses by prompt, made once: what `ebrm score` wrote of them.

    Attributes:
        rewards: the rewards of each prompt's references, by the key of the prompt.
        origin: where they are from, for messages.
    """

    rewards: Mapping[str, tuple[float, ...]]
    origin: str = "the reference rewards"

    @classmethod
    def read(cls, path: str | Path, prompt: str = "prompt", reward: str = "reward") -> ReferenceRewards:
        """Read a file of scored responses; rows without a reward are left out, counted and logged.

        A row is one response with its reward, or several to one prompt with a list of rewards. Rewards have to be of
        the same model and mode as those that they are compared with.

        Args:
            path: .jsonl, .json, .csv, .tsv or .parquet, as `ebrm.score_file` writes it.
            prompt: column of the prompt, a string or a list of messages; equal ones are one prompt.
            reward: column of the reward, or rewards.

        Raises:
            DataError: a missing column, something other than a number, or no reward at all.
        """
        found: dict[str, list[float]] = {}
        without = 0
        for where, row in read_rows(str(path)):
            for column in (prompt, reward):
                if column not in row:
                    raise DataError(
                        f"{where} has no column {column!r}; it has {', '.join(map(str, row))}. Name those of prompt "
                        "and reward (`prompt`, `reward`)."
                    )
            cell = row[reward]
            if isinstance(cell, str) and cell[:1] == "[":  # a list in CSV
                cell = _json(cell)
            for one in cell if isinstance(cell, list | tuple) else [cell]:
                value = _reward(one)
                if value is None:
                    raise DataError(f"{where}: {reward} is {one!r:.60}; a number or a list of numbers was expected.")
                if math.isnan(value):
                    without += 1
                else:
                    found.setdefault(_key(row[prompt]), []).append(value)
        if without:
            logger.warning("%s: %d references have no reward and are left out.", path, without)
        if not found:
            raise DataError(
                f"{path} has no reward in its column {reward!r}. Score the references first (`ebrm score`)."
            )
        return cls({key: tuple(values) for key, values in found.items()}, str(path))

    def of(self, prompts: Sequence[Any]) -> list[list[float] | str]:
        """The rewards for each prompt, or why there are none."""
        found = (self.rewards.get(_key(prompt)) for prompt in prompts)
        return [f"Its prompt is not in {self.origin}." if one is None else list(one) for one in found]


def score_references(
    source: Source, rollouts: Rollouts, reference: str | ReferenceRewards, sharing: bool
) -> tuple[Tensor, list[str | None]]:
    """Rewards of each row's references [n, m], NaN beyond its last, and why a row has none [n].

    Args:
        source: what scores references that are texts.
        rollouts: rows.
        reference: a column of texts or numbers, one or a list a row; or rewards made before.
        sharing: whether several sources need references, so that numbers would be in the units of one of them only.

    Raises:
        ConfigError: no such column; numbers for several sources.
    """
    if isinstance(reference, ReferenceRewards):
        found = reference.of(rollouts.prompts)
    else:
        cells = rollouts.column(reference, "`reference`")
        given = [_listed(cell, reference) for cell in cells]
        if sharing and any(isinstance(one, float) for cell in given if not isinstance(cell, str) for one in cell):
            raise ConfigError(
                f"The column {reference!r} holds numbers, and several sources are shaped against references: rewards "
                "of one are no measure of another. Give the references as texts, which every source scores."
            )
        found = _score_texts(source, rollouts, given)
    width = max((len(one) for one in found if isinstance(one, list)), default=0)
    table = torch.full((len(found), width), torch.nan, dtype=torch.float64)
    for row, one in enumerate(found):
        if isinstance(one, list):
            table[row, : len(one)] = torch.tensor(one, dtype=torch.float64)
    return table, [one if isinstance(one, str) else None for one in found]


def _score_texts(source: Source, rollouts: Rollouts, given: Sequence[list[Any] | str]) -> list[list[float] | str]:
    """The cells with texts scored, each text after a prompt once."""
    numbers: dict[Any, int] = {}
    rows: list[int] = []
    texts: list[Any] = []
    places: list[list[float | int]] = []
    for row, cell in enumerate(given):
        here: list[float | int] = []
        for one in cell if isinstance(cell, list) and rollouts.errors[row] is None else []:
            if isinstance(one, float):
                here.append(one)
                continue
            group = row if source.reads_columns else int(rollouts.groups.index[row])
            place = numbers.setdefault((group, json.dumps(one, sort_keys=True, default=str)), len(numbers))
            if place == len(rows):
                rows.append(row)
                texts.append(one)
            here.append(place)
        places.append(here)
    part = source(rollouts.with_responses(rows, texts)) if rows else None
    if part is not None and isinstance(part.reward, StepScores):
        raise ConfigError("References are compared by one reward each, and their source gives scores of steps.")
    found: list[list[float] | str] = []
    for row, (cell, here) in enumerate(zip(given, places, strict=True)):
        if isinstance(cell, str) or rollouts.errors[row] is not None:
            found.append(cell if isinstance(cell, str) else "The row cannot be read.")
            continue
        why = next((part.errors[one] for one in here if part and isinstance(one, int) and part.errors[one]), None)
        if why is not None:
            found.append(f"One of its references has no reward: {why}")
        else:
            found.append([one if isinstance(one, float) else float(part.reward[one]) for one in here])  # type: ignore[index,union-attr]
    return found


def _listed(cell: Any, column: str) -> list[Any] | str:
    """References of one row: floats, texts and messages; or why there are none."""
    if hasattr(cell, "tolist"):
        cell = cell.tolist()
    if cell is None or cell == []:
        return f"Its column {column!r} has no reference."
    entries = [cell] if isinstance(cell, str | int | float | dict) or _is_turns(cell) else list(cell)
    for one in entries:
        if not isinstance(one, str | int | float | dict | list) or (isinstance(one, float) and not math.isfinite(one)):
            return f"Its column {column!r} has {one!r:.40} as a reference; a text or a reward was expected."
    return [float(one) if isinstance(one, int | float) else [one] if isinstance(one, dict) else one for one in entries]


def _is_turns(cell: Any) -> bool:
    """Whether a list is one completion in messages, rather than several references."""
    return isinstance(cell, list) and bool(cell) and isinstance(cell[0], dict)


def _key(prompt: Any) -> str:
    """A prompt's messages as JSON; a string is one user turn."""
    try:
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else check_messages(prompt, "prompt")
    except RowProblem:
        return json.dumps(prompt, sort_keys=True, default=str)
    return json.dumps(turns, sort_keys=True, ensure_ascii=False, default=str)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _reward(value: Any) -> float | None:
    """A number, NaN where there is none; None for anything else."""
    if value is None or value == "":
        return math.nan
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return None if math.isinf(number) or isinstance(value, bool) else number
