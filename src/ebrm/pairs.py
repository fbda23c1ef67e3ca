"""Preference pairs over rows of features: what curation changes, heads are fitted on, and features hold."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebrm.utils.validation import ArrayLike, as_tensor, check_finite, refuse

_TEXTS = ("source", "category", "split", "where")
_NUMBERS = ("weight", "label", "margin", "strength")
#: A base reward that ranks this share of at least so many pairs as labeled, or less, is said.
SWAPPED = 0.3
_SWAPPED_PAIRS = 20
_COLUMNS = ("chosen", "rejected", "prompt_id", *_TEXTS, *_NUMBERS, "rm_training", "origin", "done")


class Done(enum.IntFlag):
    """Changes that a step of curation made to a pair."""

    MADE = 1
    FLIPPED = 2
    LABELED = 4
    WEIGHTED = 8
    MARGIN = 16


@dataclass(frozen=True, eq=False)
class PreferencePairs:
    """Preference pairs over rows (responses), with the columns of one pair loss.

    With d = r(chosen) - r(rejected), the loss of a pair is

        weight · [-label · log σ(d - margin) - (1 - label) · log σ(-d - margin)]

    Made by `PreferencePairs.of`. Steps of curation return new pairs and a `CurationReport`, and leave the pairs they
    are given as they are; every pair knows the pair it comes from (`origin`) and what each step did to it (`done`).
    Numbers are tensors on one device, text columns NumPy arrays.

    Attributes:
        chosen, rejected: rows of both sides, int64 [p].
        prompt_id: the prompt, of dtype str [p]; splits and bootstrap resampling go by it.
        source, category, split: object arrays of str or None [p].
        where: where it was read ("file.jsonl:12"), object array of str or None [p].
        rm_training: whether the reward model was trained on it, bool [p]; False where not known.
        weight: factor of its loss, at least 0, float64 [p].
        label: probability that `chosen` is better, in [0, 1]; 0.5 is a tie, float64 [p].
        margin: difference that the loss asks for, in reward units; may be negative, float64 [p].
        strength: how strongly annotators prefer `chosen`, in their unit; NaN where not given, float64 [p].
        ratings: ratings of rows, not of pairs, float64 [rows, a], NaN where none (thumbs: one column of 0 and 1); or
            None. There may be ratings and no pair.
        origin: position among the pairs of the first step, int64 [p].
        steps: names of the steps so far [s].
        done: flags of `Done`, by step, uint8 [p, s].
    """

    chosen: Tensor
    rejected: Tensor
    prompt_id: np.ndarray
    source: np.ndarray
    category: np.ndarray
    split: np.ndarray
    where: np.ndarray
    rm_training: Tensor
    weight: Tensor
    label: Tensor
    margin: Tensor
    strength: Tensor
    ratings: Tensor | None
    origin: Tensor
    steps: tuple[str, ...]
    done: Tensor

    @classmethod
    def of(
        cls,
        chosen: ArrayLike,  # [p]
        rejected: ArrayLike,  # [p]
        *,
        prompt_id: Sequence[str | int] | np.ndarray | Tensor | None = None,
        source: Sequence[str | None] | np.ndarray | None = None,
        category: Sequence[str | None] | np.ndarray | None = None,
        split: Sequence[str | None] | np.ndarray | None = None,
        where: Sequence[str | None] | np.ndarray | None = None,
        rm_training: ArrayLike | None = None,
        label: ArrayLike | None = None,
        weight: ArrayLike | None = None,
        margin: ArrayLike | None = None,
        strength: ArrayLike | None = None,
        ratings: ArrayLike | None = None,
        step: str = "given",
    ) -> PreferencePairs:
        """Pairs of these rows, on the device of `chosen`.

        All columns are tensors, NumPy arrays or lists of length p (`ratings`: of rows, [rows] or [rows, a]). Left out:
        each pair its own prompt, no texts, weight 1, label 1, margin 0, no strength (None or NaN where one is missing).

        Raises:
            DataError: a row below 0 or beyond the ratings, a pair of a row with itself, or a number that is not finite
                or out of range; the first index is named.
            TypeError: rows that are not whole numbers, or a column of another type than its own.
            ValueError: a column of another length.
        """
        sides: dict[str, Tensor] = {}
        for name, given in (("chosen", chosen), ("rejected", rejected)):
            device = None if name == "chosen" else sides["chosen"].device
            rows = as_tensor(given, name, device)
            if not rows.numel() and not isinstance(given, Tensor):
                rows = rows.long()
            if rows.is_floating_point() or rows.dtype == torch.bool:
                raise TypeError(f"{name}: expected row numbers [p], got {tuple(rows.shape)} of {rows.dtype}")
            if rows.dim() != 1 or len(rows) != len(sides.get("chosen", rows)):
                raise ValueError(f"{name}: expected row numbers [p], one for each pair, got {tuple(rows.shape)}")
            sides[name] = rows.long()
        first, second = sides["chosen"], sides["rejected"]
        refuse((first < 0) | (second < 0), "pairs have a row below 0")
        refuse(first == second, "pairs are of a row with itself")
        count, device = len(first), first.device
        ones = torch.ones(count, dtype=torch.float64, device=device)
        pairs = cls(
            chosen=first,
            rejected=second,
            prompt_id=_prompts(prompt_id, count),
            source=_texts(source, "source", count),
            category=_texts(category, "category", count),
            split=_texts(split, "split", count),
            where=_texts(where, "where", count),
            rm_training=_flags(rm_training, count, device),
            weight=ones,
            label=ones,
            margin=torch.zeros_like(ones),
            strength=torch.full_like(ones, torch.nan),
            ratings=None if ratings is None else _ratings(ratings, device),
            origin=torch.arange(count, device=device),
            steps=(step,),
            done=torch.full((count, 1), int(Done.MADE), dtype=torch.uint8, device=device),
        )
        if pairs.ratings is not None:
            pairs.check_rows(len(pairs.ratings))
        return replace(pairs, **pairs._columns(weight=weight, label=label, margin=margin, strength=strength))

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.chosen)

    @property
    def device(self) -> torch.device:
        """The device of all tensors."""
        return self.chosen.device

    def to(self, device: torch.device | str) -> PreferencePairs:
        """The same pairs with their tensors on `device`."""
        moved: dict[str, Any] = {n: v.to(device) for n, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)

    def difference(self, reward: ArrayLike) -> Tensor:  # [n] -> [p], or [k, n] -> [k, p]
        """r(chosen) - r(rejected) by rewards of the rows, float64; by each of k models where they are [k, n]."""
        known = as_tensor(reward, "reward", self.device)
        known = check_finite(known, "reward", 2 if known.dim() == 2 else 1)
        self.check_rows(known.shape[-1])
        return known[..., self.chosen] - known[..., self.rejected]

    def check_rows(self, count: int) -> None:
        """Raise DataError unless all rows are among `count`."""
        refuse(torch.maximum(self.chosen, self.rejected) >= count, f"pairs have rows beyond the {count} that there are")

    def select(self, which: ArrayLike | slice) -> PreferencePairs:
        """The pairs at `which` (bool mask [p], positions in any order, or a slice); rows keep their numbers."""
        if isinstance(which, slice):
            which = torch.arange(len(self), device=self.device)[which]
        index = as_tensor(which, "which", self.device)
        if not index.numel() and index.dtype != torch.bool:
            index = index.long()
        if index.is_floating_point() or index.dim() != 1 or (index.dtype == torch.bool and len(index) != len(self)):
            raise ValueError(
                f"which: expected a bool mask [{len(self)}] or positions, got {tuple(index.shape)} of {index.dtype}"
            )
        places = index.cpu().numpy()
        taken = {name: getattr(self, name) for name in _COLUMNS}
        return replace(self, **{n: v[index if isinstance(v, Tensor) else places] for n, v in taken.items()})

    def history(self, place: int) -> list[str]:
        """Steps that the pair at `place` went through: `["given: made", "flip: flipped", "filter: kept"]`."""
        words = []
        for step, flags in zip(self.steps, self.done[place].tolist(), strict=True):
            names = [flag.name.lower() for flag in Done if flag & flags and flag.name]
            words.append(f"{step}: {', '.join(names) or 'kept'}")
        return words

    def after(
        self,
        step: str,
        *,
        keep: ArrayLike | None = None,  # [p]
        flip: ArrayLike | None = None,  # [p]
        weight: ArrayLike | None = None,  # [p]
        label: ArrayLike | None = None,  # [p]
        margin: ArrayLike | None = None,  # [p]
        numbers: dict[str, float] | None = None,
    ) -> tuple[PreferencePairs, CurationReport]:
        """The pairs after a step, and its report: the one way in which steps change pairs.

        A flip (bool, as `keep`) exchanges chosen and rejected; weight, label, margin and strength stay, so that now the
        other side is the better one with that probability and by that margin. New columns are of the pairs as flipped;
        None: as they are. `numbers`: more to report.
        """
        everything = torch.ones_like(self.chosen, dtype=torch.bool)
        kept = everything if keep is None else self._mask(keep, "keep")
        turned = ~everything if flip is None else self._mask(flip, "flip")
        columns = self._columns(weight=weight, label=label, margin=margin)
        flags = turned * int(Done.FLIPPED)
        for name, flag in (("weight", Done.WEIGHTED), ("label", Done.LABELED), ("margin", Done.MARGIN)):
            if name in columns:
                flags = flags + (columns[name] != getattr(self, name)) * int(flag)
        changed = replace(
            self,
            chosen=torch.where(turned, self.rejected, self.chosen),
            rejected=torch.where(turned, self.chosen, self.rejected),
            steps=(*self.steps, step),
            done=torch.cat([self.done, flags.to(torch.uint8)[:, None]], 1),
            **columns,
        ).select(kept)
        return changed, changed.report(given=len(self), numbers=numbers)

    def derived(
        self, step: str, parent: Tensor, chosen: Tensor, rejected: Tensor, made: Tensor | None = None
    ) -> PreferencePairs:
        """New pairs of these rows [q], each with the columns, origin and history of the pair at `parent` [q].

        `made`: which of them the step made (bool); the others it kept. None: all.
        """
        of = self.select(parent)
        made = torch.ones_like(of.chosen, dtype=torch.bool) if made is None else made
        flags = (made * int(Done.MADE)).to(torch.uint8)[:, None]
        return replace(
            of, chosen=chosen, rejected=rejected, steps=(*self.steps, step), done=torch.cat([of.done, flags], 1)
        )

    def report(self, given: int, numbers: dict[str, float] | None = None) -> CurationReport:
        """Report of the last step, from its flags; `given`: number of pairs before it."""
        counts = {flag: int(((self.done[:, -1] & int(flag)) > 0).sum()) for flag in Done}
        return CurationReport(
            step=self.steps[-1],
            given=given,
            kept=len(self) - counts[Done.MADE],
            made=counts[Done.MADE],
            flipped=counts[Done.FLIPPED],
            relabeled=counts[Done.LABELED],
            reweighted=counts[Done.WEIGHTED],
            new_margins=counts[Done.MARGIN],
            numbers=dict(numbers or {}),
        )

    def _columns(self, **given: ArrayLike | None) -> dict[str, Any]:
        """The columns that are given, checked: float64 [p] on the device of the pairs."""
        columns = {}
        for name, values in given.items():
            if values is None:
                continue
            if name == "strength":
                column = _with_gaps(values, name, self.device)
            else:
                column = check_finite(as_tensor(values, name, self.device), name)
            if column.shape != self.chosen.shape:
                raise ValueError(f"{name}: {len(column)} were given for {len(self)} pairs")
            if name == "weight":
                refuse(column < 0, "weights of pairs are below 0")
            if name == "label":
                refuse((column < 0) | (column > 1), "labels of pairs are not probabilities")
            columns[name] = column
        return columns

    def _mask(self, mask: ArrayLike, name: str) -> Tensor:
        known = as_tensor(mask, name, self.device)
        if known.dtype != torch.bool or known.shape != self.chosen.shape:
            raise ValueError(f"{name}: expected bool [{len(self)}], got {tuple(known.shape)} of {known.dtype}")
        return known


@dataclass(frozen=True)
class CurationReport:
    """Report of a step of curation; counts are of the pairs after it.

    Attributes:
        step, given: its name, and the pairs before it.
        kept, made: pairs that it left, changed or not, and that it made.
        flipped, relabeled, reweighted, new_margins: pairs whose sides it exchanged, whose label, weight, margin it
            changed.
        numbers: what else there is to report, name to number.
    """

    step: str
    given: int
    kept: int
    made: int = 0
    flipped: int = 0
    relabeled: int = 0
    reweighted: int = 0
    new_margins: int = 0
    numbers: dict[str, float] = field(default_factory=dict)

    @property
    def dropped(self) -> int:
        """Pairs given that are not kept."""
        return self.given - self.kept

    @property
    def kept_fraction(self) -> float:
        """Kept pairs over all that were given; 0 where none were."""
        return self.kept / max(self.given, 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        return {**vars(self), "dropped": self.dropped, "kept_fraction": self.kept_fraction}

    def summary(self) -> str:
        """One sentence for people."""
        parts = [f"made {self.made:,} pairs"] if self.made else []
        if self.given and not (self.made and not self.kept):
            parts.append(f"kept {self.kept:,} of {self.given:,} pairs ({100 * self.kept_fraction:.1f}%)")
        elif self.given:
            parts[-1] += f" from {self.given:,}"
        if self.dropped and self.kept:
            parts.append(f"dropped {self.dropped:,}")
        for count, words in (
            (self.flipped, "flipped"),
            (self.relabeled, "changed the label of"),
            (self.reweighted, "changed the weight of"),
            (self.new_margins, "changed the margin of"),
        ):
            if count:
                parts.append(f"{words} {count:,}")
        more = "".join(f"; {name} {number:.4g}" for name, number in self.numbers.items())
        return f"{self.step[:1].upper()}{self.step[1:]}: {', '.join(parts) or 'no pairs'}{more}."


def swapped_sides(right: int, decided: int, what: str) -> str | None:
    """The question whether chosen and rejected are swapped, where a base reward ranks few pairs as labeled.

    Args:
        right: pairs ranked as labeled.
        decided: pairs that have a label and no tie of rewards.
        what: the pairs, in words.
    """
    if decided < _SWAPPED_PAIRS or right > SWAPPED * decided:
        return None
    return (
        f"The reward model ranks {right:,} of {decided:,} {what} as labeled ({right / decided:.0%}), far fewer than by "
        "chance: are chosen and rejected swapped?"
    )


def _prompts(given: Any, count: int) -> np.ndarray:
    if given is None:
        return np.array([f"pair-{row:06d}" for row in range(count)], dtype=np.str_)
    if isinstance(given, np.ndarray) and given.dtype.kind == "U" and given.shape == (count,):
        return given.copy()
    values = _list(
        given, "prompt_id", count, lambda v: isinstance(v, str | int | np.integer), "strings or whole numbers"
    )
    return np.array([str(value) for value in values], dtype=np.str_)


def _texts(given: Any, name: str, count: int) -> np.ndarray:
    column = np.full(count, None, dtype=object)
    if given is not None:
        column[:] = _list(given, name, count, lambda v: v is None or isinstance(v, str), "strings or None")
    return column


def _list(given: Any, name: str, count: int, fits: Callable[[Any], bool], expected: str) -> list[Any]:
    if isinstance(given, str | bytes) or not hasattr(given, "__len__") or not hasattr(given, "__iter__"):
        raise TypeError(f"{name}: expected a list or array with an entry for each of {count} pairs, got {given!r}")
    values = given.tolist() if isinstance(given, Tensor | np.ndarray) else list(given)
    if len(values) != count:
        raise ValueError(f"{name}: {len(values)} were given for {count} pairs")
    wrong = next((i for i, value in enumerate(values) if not fits(value)), None)
    if wrong is not None:
        raise TypeError(f"{name}: expected {expected}, got {values[wrong]!r} at index {wrong}")
    return values


def _flags(given: Any, count: int, device: torch.device) -> Tensor:
    if given is None:
        return torch.zeros(count, dtype=torch.bool, device=device)
    if isinstance(given, Tensor | np.ndarray) and given.shape == (count,) and given.dtype in (torch.bool, np.bool_):
        return torch.as_tensor(given, device=device).clone()
    values = _list(given, "rm_training", count, lambda v: v in (None, False, True), "True or False")
    return torch.tensor([bool(value) for value in values], dtype=torch.bool, device=device)


def _ratings(given: ArrayLike, device: torch.device) -> Tensor:
    known = _with_gaps(given, "ratings", device)
    known = known[:, None] if known.dim() == 1 else known
    if known.dim() != 2:
        raise ValueError(f"ratings: expected [rows] or [rows, a], got {tuple(known.shape)}")
    return known


def _with_gaps(given: ArrayLike, name: str, device: torch.device) -> Tensor:
    """Numbers in float64, NaN (in lists also None) where there is none; no infinity."""
    if isinstance(given, list | tuple) or (isinstance(given, np.ndarray) and given.dtype == object):
        given = np.array([_gap(value) for value in given], dtype=np.float64)
    known = as_tensor(given, name, device).double()
    refuse(known.isinf(), f"numbers ({name}) are infinite")
    return known


def _gap(value: Any) -> Any:
    return [_gap(v) for v in value] if isinstance(value, list | tuple) else np.nan if value is None else value
