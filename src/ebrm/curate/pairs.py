"""Preference pairs and what each step of curation has done to them."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ebrm.errors import DataError
from ebrm.utils.validation import check_finite


class Done(enum.IntFlag):
    """What a step did to a pair beside keeping it."""

    MADE = 1
    FLIPPED = 2
    LABELED = 4
    WEIGHTED = 8
    MARGIN = 16


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of rows (responses), one statement each: the first is the better one, with probability `label`.

    The columns are those of one pair loss, for d = r(chosen) - r(rejected):

        weight · [-label · log σ(d - margin) - (1 - label) · log σ(-d - margin)]

    Made by `Pairs.of`; changed by steps `(Pairs, …) -> (Pairs, Report)`, each of which leaves the pairs it was given as
    they are. Every pair knows the pair it comes from (`origin`) and what each step did to it (`done`, in words
    `history`).

    Attributes:
        chosen, rejected: rows of both sides, int64 [p].
        weight: what each pair counts in a loss, at least 0, float64 [p].
        label: the probability that `chosen` is better, from 0 to 1; 0.5 is a tie, float64 [p].
        margin: the difference that a loss asks for, in the reward's unit; may be negative, float64 [p].
        origin: place among the pairs that the first step made, int64 [p].
        steps: names of the steps so far, in order [s].
        done: what each step did to each pair, flags of `Done`, uint8 [p, s]. A pair is here because every one kept it.
    """

    chosen: Tensor
    rejected: Tensor
    weight: Tensor
    label: Tensor
    margin: Tensor
    origin: Tensor
    steps: tuple[str, ...]
    done: Tensor

    @classmethod
    def of(
        cls,
        chosen: Tensor,  # [p]
        rejected: Tensor,  # [p]
        weight: Tensor | None = None,  # [p]
        label: Tensor | None = None,  # [p]
        margin: Tensor | None = None,  # [p]
        step: str = "given",
    ) -> Pairs:
        """Pairs of these rows; without more, of weight 1, label 1 and margin 0.

        Raises:
            DataError: a weight, label or margin that is not finite or out of range, a row below 0, or a pair of a row
                with itself.
            ValueError: rows that are not whole numbers, or shapes other than [p].
        """
        for name, rows in (("chosen", chosen), ("rejected", rejected)):
            if rows.dim() != 1 or len(rows) != len(chosen) or rows.is_floating_point() or rows.dtype == torch.bool:
                raise ValueError(f"{name}: expected row numbers [p], got {tuple(rows.shape)} of {rows.dtype}")
        chosen, rejected = chosen.long(), rejected.long()
        _refuse((chosen < 0) | (rejected < 0), "pairs have a row below 0")
        _refuse(chosen == rejected, "pairs are of a row with itself")
        ones = torch.ones(len(chosen), dtype=torch.float64)
        pairs = cls(
            chosen,
            rejected,
            ones,
            ones,
            torch.zeros_like(ones),
            torch.arange(len(chosen)),
            (step,),
            torch.full((len(chosen), 1), int(Done.MADE), dtype=torch.uint8),
        )
        columns = pairs._columns(weight=weight, label=label, margin=margin)
        return replace(pairs, weight=columns["weight"], label=columns["label"], margin=columns["margin"])

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.chosen)

    def difference(self, reward: Tensor) -> Tensor:  # [n] -> [p], or [k, n] -> [k, p]
        """r(chosen) - r(rejected) by rewards of the rows, float64; by each of k models where they are [k, n].

        Raises:
            DataError: rewards that are not finite, or fewer than the rows that pairs are of.
        """
        known = check_finite(reward, "reward", 2 if reward.dim() == 2 else 1)
        self.check_rows(known.shape[-1])
        return known[..., self.chosen] - known[..., self.rejected]

    def check_rows(self, count: int) -> None:
        """Raise DataError unless all rows are among `count`."""
        _refuse(
            torch.maximum(self.chosen, self.rejected) >= count, f"pairs have rows beyond the {count} that there are"
        )

    def select(self, which: Tensor) -> Pairs:
        """Some of the pairs (bool [p], or their places), with all that is known of them."""
        columns = ("chosen", "rejected", "weight", "label", "margin", "origin", "done")
        return replace(self, **{name: getattr(self, name)[which] for name in columns})

    def history(self, place: int) -> list[str]:
        """What each step did to the pair at `place`, in words: `["given: made", "flip: flipped", "filter: kept"]`."""
        words = []
        for step, flags in zip(self.steps, self.done[place].tolist(), strict=True):
            names = [flag.name.lower() for flag in Done if flag & flags and flag.name]
            words.append(f"{step}: {', '.join(names) or 'kept'}")
        return words

    def after(
        self,
        step: str,
        keep: Tensor | None = None,  # [p]
        flip: Tensor | None = None,  # [p]
        weight: Tensor | None = None,  # [p]
        label: Tensor | None = None,  # [p]
        margin: Tensor | None = None,  # [p]
        numbers: dict[str, float] | None = None,
    ) -> tuple[Pairs, Report]:
        """The pairs after a step, and its report: the one way in which steps change pairs.

        To flip is to turn the statement around: chosen and rejected change places, and weight, label and margin stay,
        so that now the other side is the better one with that probability and by that margin.

        Args:
            step: the step's name.
            keep: which pairs stay, bool; None: all.
            flip: which pairs are flipped, bool; None: none.
            weight, label, margin: new columns, of the pairs as flipped; None: as they are.
            numbers: more to report, name to number.
        """
        everything = torch.ones(len(self), dtype=torch.bool)
        keep = everything if keep is None else self._mask(keep, "keep")
        flip = ~everything if flip is None else self._mask(flip, "flip")
        columns = self._columns(weight=weight, label=label, margin=margin)
        flags = flip * int(Done.FLIPPED)
        for name, flag in (("weight", Done.WEIGHTED), ("label", Done.LABELED), ("margin", Done.MARGIN)):
            if columns[name] is not getattr(self, name):
                flags = flags + (columns[name] != getattr(self, name)) * int(flag)
        changed = replace(
            self,
            chosen=torch.where(flip, self.rejected, self.chosen),
            rejected=torch.where(flip, self.chosen, self.rejected),
            steps=(*self.steps, step),
            done=torch.cat([self.done, flags.to(torch.uint8)[:, None]], 1),
            **columns,
        ).select(keep)
        return changed, changed.report(given=len(self), numbers=numbers)

    def derived(self, step: str, parent: Tensor, chosen: Tensor, rejected: Tensor, made: Tensor | None = None) -> Pairs:
        """New pairs of these rows [q], each with the columns, origin and history of the pair at `parent` [q].

        `made`: which of them the step made (bool); the others it kept. None: all.
        """
        made = torch.ones(len(parent), dtype=torch.bool) if made is None else made
        flags = (made * int(Done.MADE)).to(torch.uint8)[:, None]
        of = self.select(parent)
        return replace(
            of, chosen=chosen, rejected=rejected, steps=(*self.steps, step), done=torch.cat([of.done, flags], 1)
        )

    def report(self, given: int, numbers: dict[str, float] | None = None) -> Report:
        """What the last step did, from its flags; `given`: number of pairs before it."""
        counts = {flag: int(((self.done[:, -1] & int(flag)) > 0).sum()) for flag in Done}
        return Report(
            step=self.steps[-1],
            given=given,
            kept=len(self) - counts[Done.MADE],
            made=counts[Done.MADE],
            flipped=counts[Done.FLIPPED],
            relabelled=counts[Done.LABELED],
            reweighted=counts[Done.WEIGHTED],
            new_margins=counts[Done.MARGIN],
            numbers=dict(numbers or {}),
        )

    def _columns(self, **given: Tensor | None) -> dict[str, Tensor]:
        columns = {}
        for name, values in given.items():
            if values is None:
                columns[name] = getattr(self, name)
                continue
            column = check_finite(values, name)
            if len(column) != len(self):
                raise ValueError(f"{name}: {len(column)} were given for {len(self)} pairs")
            if name == "weight":
                _refuse(column < 0, "weights of pairs are below 0")
            if name == "label":
                _refuse((column < 0) | (column > 1), "labels of pairs are not probabilities")
            columns[name] = column
        return columns

    def _mask(self, mask: Tensor, name: str) -> Tensor:
        if mask.dtype != torch.bool or mask.shape != self.chosen.shape:
            raise ValueError(f"{name}: expected bool [{len(self)}], got {tuple(mask.shape)} of {mask.dtype}")
        return mask


@dataclass(frozen=True)
class Report:
    """What a step did to the pairs it was given; counts are of the pairs after it.

    Attributes:
        step: its name.
        given: pairs before it.
        kept: pairs that it left, changed or not.
        made: pairs that it made.
        flipped, relabelled, reweighted, new_margins: pairs whose sides it exchanged, whose label, weight, margin it
            changed.
        numbers: what else it has to say, name to number.
    """

    step: str
    given: int
    kept: int
    made: int = 0
    flipped: int = 0
    relabelled: int = 0
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
            (self.relabelled, "changed the label of"),
            (self.reweighted, "changed the weight of"),
            (self.new_margins, "changed the margin of"),
        ):
            if count:
                parts.append(f"{words} {count:,}")
        more = "".join(f"; {name} {number:.4g}" for name, number in self.numbers.items())
        return f"{self.step[:1].upper()}{self.step[1:]}: {', '.join(parts) or 'no pairs'}{more}."


#: A head's reward of embeddings [m, d] -> [m].
Head = Callable[[Tensor], Tensor]
#: Fits a head on pairs of the rows of embeddings [n, d].
Fit = Callable[[Tensor, Pairs], Head]


def head_difference(head: Head, embedding: Tensor, pairs: Pairs) -> Tensor:  # [n, d] -> [p]
    """A head's r(chosen) - r(rejected), float64, without gradient; it reads only the rows that pairs are of."""
    pairs.check_rows(len(embedding))
    rows, place = torch.unique(torch.cat([pairs.chosen, pairs.rejected]), return_inverse=True)
    with torch.no_grad():
        reward = check_finite(head(embedding[rows]), "reward by a fitted head")
    if len(reward) != len(rows):
        raise ValueError(f"a fitted head gave {len(reward)} rewards for {len(rows)} embeddings")
    return reward[place[: len(pairs)]] - reward[place[len(pairs) :]]


def _refuse(bad: Tensor, what: str) -> None:
    if bool(bad.any()):
        raise DataError(
            f"{int(bad.sum())} of {len(bad)} {what}, the first at index {int(bad.nonzero()[0, 0])}. Correct or leave "
            "out those pairs."
        )
