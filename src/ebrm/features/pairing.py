"""From columns that other tools wrote to preference pairs: by index, by pair id, by group, or row after row."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ebrm.errors import FeaturesError
from ebrm.features.store import Pairs

logger = logging.getLogger(__name__)

PAIRING_COLUMNS = ("chosen", "rejected", "pair_id", "is_chosen", "group_id", "rank", "gold")
PAIR_COLUMNS = ("prompt_id", "source", "category", "strength", "split", "rm_training", "where")


def make_pairs(columns: Mapping[str, np.ndarray], items: int) -> tuple[Pairs, str]:
    """Preference pairs over `items` rows, and how they were found, in words.

    The first of these that the columns allow:

    - `chosen` and `rejected`: positions of rows, counted from 0, one entry a pair;
    - `pair_id` and `is_chosen`: two rows a pair, one of them chosen;
    - `group_id` and `rank` (1 is best) or `gold` (more is better): the best row of a group against every row that is
      strictly worse;
    - neither: rows 0, 2, 4, … are chosen and rows 1, 3, 5, … the rejected ones beside them.

    The other columns have one entry a row, and a pair takes the chosen row's; with `chosen` and `rejected` they may
    have one entry a pair. Without `prompt_id`, a group is a prompt, as are pairs that share a row, and else each pair.

    Raises:
        FeaturesError: Columns that contradict each other or do not fit `items`, naming the pair or row.
    """
    if "chosen" in columns or "rejected" in columns:
        _require(columns, "chosen", "rejected")
        chosen, rejected = _index(columns, "chosen"), _index(columns, "rejected")
        if len(chosen) != len(rejected):
            raise FeaturesError(f"`chosen` has {len(chosen)} entries and `rejected` {len(rejected)}; expected as many.")
        for name, side in (("chosen", chosen), ("rejected", rejected)):
            wrong = np.flatnonzero((side < 0) | (side >= items))
            if len(wrong):
                raise FeaturesError(
                    f"Entry {wrong[0]} of `{name}` is {side[wrong[0]]}, but there are {items} rows (0 to {items - 1})."
                )
        prompts, how = _shared_rows(chosen, rejected, items), "by the row numbers in `chosen` and `rejected`"
    elif "pair_id" in columns or "is_chosen" in columns:
        _require(columns, "pair_id", "is_chosen")
        chosen, rejected, prompts = _by_pair_id(columns, items)
        how = "by `pair_id` and `is_chosen`"
    elif "group_id" in columns:
        order = [name for name in ("rank", "gold") if name in columns]
        if len(order) != 1:
            raise FeaturesError(
                f"`group_id` needs one of `rank` (1 is best) and `gold` (more is better) beside it; there are "
                f"{'both' if order else 'neither'}."
            )
        chosen, rejected, prompts, tied = _by_group(columns, order[0], items)
        how = f"best of each `group_id` by `{order[0]}` against every worse one ({tied} tied with the best left out)"
    else:
        if items % 2:
            raise FeaturesError(
                f"There are no columns that say which rows are pairs ({', '.join(PAIRING_COLUMNS)}), so rows are taken "
                f"as chosen, rejected, chosen, rejected, …; but their number is odd ({items}). Add such columns."
            )
        chosen, rejected = np.arange(0, items, 2), np.arange(1, items, 2)
        prompts, how = [f"pair-{row:06d}" for row in range(len(chosen))], "rows taken as chosen, rejected, chosen, …"
    if len(chosen) == 0:
        raise FeaturesError(f"The import holds no pair ({how}).")
    same = np.flatnonzero(chosen == rejected)
    if len(same):
        raise FeaturesError(f"Pair {same[0]} has row {chosen[same[0]]} as both chosen and rejected.")
    logger.info("%d pairs of %d rows: %s", len(chosen), items, how)
    given = {
        name: _of_pairs(name, columns[name], chosen, rejected, items, "chosen" in columns)
        for name in PAIR_COLUMNS
        if name in columns
    }
    prompt_id = [str(value) for value in given.pop("prompt_id", prompts)]
    given.setdefault("where", [f"rows {c}, {r}" for c, r in zip(chosen.tolist(), rejected.tolist(), strict=True)])
    for name in ("source", "category", "split", "where"):
        if name in given:
            given[name] = [None if _missing(value) else str(value) for value in given[name]]
    _check_values("strength", given, lambda value: isinstance(value, (int, float)), "a number")
    _check_values("rm_training", given, lambda value: value in (0, 1), "true or false (1 or 0)")
    if "rm_training" in given:
        given["rm_training"] = [not _missing(value) and bool(value) for value in given["rm_training"]]
    return Pairs.build(chosen, rejected, prompt_id, **given), how


def _check_values(name: str, given: Mapping[str, list[Any]], fits: Callable[[Any], bool], expected: str) -> None:
    for pair, value in enumerate(given.get(name, ())):
        if not _missing(value) and not fits(value):
            raise FeaturesError(f"Pair {pair} has {name} = {value!r}; expected {expected}, or nothing.")


def _by_pair_id(columns: Mapping[str, np.ndarray], items: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    names, pair = _numbered(columns["pair_id"], "pair_id", items)
    flag = _per_item(columns, "is_chosen", items)
    values = np.array([value is not None and bool(value == 1) for value in flag.tolist()])
    wrong = np.flatnonzero([value not in (0, 1) for value in flag.tolist()])
    if len(wrong):
        raise FeaturesError(
            f"Row {wrong[0]} has is_chosen = {flag.tolist()[wrong[0]]!r}; expected true or false (1 or 0)."
        )
    wins, losses = np.bincount(pair[values], minlength=len(names)), np.bincount(pair[~values], minlength=len(names))
    bad = np.flatnonzero((wins != 1) | (losses != 1))
    if len(bad):
        raise FeaturesError(
            f"{len(bad)} of {len(names)} pair ids do not have one chosen and one rejected row; the first is "
            f"{names[bad[0]]!r}, with {wins[bad[0]]} chosen and {losses[bad[0]]} rejected."
        )
    chosen, rejected = np.empty(len(names), np.int64), np.empty(len(names), np.int64)
    rows = np.arange(items)
    chosen[pair[values]], rejected[pair[~values]] = rows[values], rows[~values]
    return chosen, rejected, [str(name) for name in names]


def _by_group(
    columns: Mapping[str, np.ndarray], order: str, items: int
) -> tuple[np.ndarray, np.ndarray, list[str], int]:
    names, group = _numbered(columns["group_id"], "group_id", items)
    merit = _per_item(columns, order, items).astype(np.float64)
    if np.isnan(merit).any():
        raise FeaturesError(f"Row {int(np.flatnonzero(np.isnan(merit))[0])} has no `{order}`; expected a number.")
    merit = -merit if order == "rank" else merit
    best = np.full(len(names), -1, np.int64)
    for row in range(items):  # the first of the best
        if best[group[row]] < 0 or merit[row] > merit[best[group[row]]]:
            best[group[row]] = row
    winner = best[group]
    worse = np.flatnonzero(merit < merit[winner])
    worse = worse[np.argsort(group[worse], kind="stable")]
    tied = items - len(names) - len(worse)
    return winner[worse], worse, [str(names[number]) for number in group[worse]], tied


def _numbered(values: np.ndarray, name: str, items: int) -> tuple[list[Any], np.ndarray]:
    """Different values in order of first appearance, and the number of each row's value."""
    values = _per_item({name: values}, name, items)
    number: dict[Any, int] = {}
    rows = np.empty(items, np.int64)
    for row, value in enumerate(values.tolist()):
        if _missing(value):
            raise FeaturesError(f"Row {row} has no `{name}`.")
        rows[row] = number.setdefault(value, len(number))
    return list(number), rows


def _shared_rows(chosen: np.ndarray, rejected: np.ndarray, items: int) -> list[str]:
    """A prompt for every pair: pairs that share a row, directly or through others, have the same."""
    parent = list(range(items))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for left, right in zip(chosen.tolist(), rejected.tolist(), strict=True):
        a, b = root(left), root(right)
        parent[max(a, b)] = min(a, b)
    return [f"row-{root(row):06d}" for row in chosen.tolist()]


def _of_pairs(
    name: str, values: np.ndarray, chosen: np.ndarray, rejected: np.ndarray, items: int, may_be_per_pair: bool
) -> list[Any]:
    if may_be_per_pair and values.shape == chosen.shape:
        return values.tolist()
    values = _per_item({name: values}, name, items, len(chosen) if may_be_per_pair else None)
    won, lost = values[chosen].tolist(), values[rejected].tolist()
    if name == "prompt_id":
        for pair, (left, right) in enumerate(zip(won, lost, strict=True)):
            if left != right or _missing(left):
                raise FeaturesError(
                    f"Pair {pair} (rows {chosen[pair]} and {rejected[pair]}) has the prompt ids {left!r} and "
                    f"{right!r}; "
                    "expected one prompt for both."
                )
    return won


def _per_item(columns: Mapping[str, np.ndarray], name: str, items: int, pairs: int | None = None) -> np.ndarray:
    values = columns[name]
    if values.shape != (items,):
        also = "" if pairs is None else f" or [{pairs}] (one a pair)"
        raise FeaturesError(f"`{name}` has shape {list(values.shape)}; expected [{items}] (one entry a row){also}.")
    return values


def _index(columns: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    values = columns[name]
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise FeaturesError(
            f"`{name}` has shape {list(values.shape)} and type {values.dtype}; expected row numbers, one whole number "
            "a pair."
        )
    return values.astype(np.int64)


def _require(columns: Mapping[str, np.ndarray], *names: str) -> None:
    missing = [name for name in names if name not in columns]
    if missing:
        raise FeaturesError(f"`{missing[0]}` is missing; {' and '.join(names)} go together.")


def _missing(value: Any) -> bool:
    return value is None or value != value
