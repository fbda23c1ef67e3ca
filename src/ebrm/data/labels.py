"""Labels that say which of two replies, a or b, is better: the rule that reads them, and the count of every value.

Nothing is guessed: words that name a side (`A>B`, `model_a`) are understood, numbers and other words only by a map,
which comes from the user or from a known layout.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ebrm.data.schema import LabelCounts, RowProblem, shorten
from ebrm.errors import ConfigError, DataError, setting

Outcome = Literal["a", "b", "tie"]
OUTCOMES: tuple[Outcome, ...] = ("a", "b", "tie")

_SIDE = re.compile(
    r"(?:(?:model|response|answer|completion|output|assistant|conversation|reply|candidate)[ _-]?)?([ab])"
)
_ORDER = re.compile(r"([ab])\s*(>{1,3}|<{1,3}|=)\s*([ab])")
_TIES = frozenset(("tie", "ties", "tied", "tiebothbad", "bothbad", "draw"))  # letters alone: "tie (both_bad)"
_COMPARED = re.compile(r"([<>])\s*(-?\d+(?:\.\d+)?)")
# A scale is shown value by value up to so many different ones, and by rule beyond.
_SHOWN = 24


@dataclass(frozen=True)
class LabelRule:
    """What the values of a label mean.

    Attributes:
        values: value, as :func:`label_word` writes it → the better side, or "tie".
        compared: ("<" or ">", number, outcome), for values that are numbers and not among `values`.
        words: whether words that name a side are understood.
        limits: numbers outside these are not values of the scale.
        source: where the rule comes from: "label_map", the name of a layout, or "" for words alone.
    """

    values: Mapping[str, Outcome] = field(default_factory=dict)
    compared: tuple[tuple[str, float, Outcome], ...] = ()
    words: bool = True
    limits: tuple[float, float] | None = None
    source: str = ""

    def outcome(self, word: str) -> Outcome | None:
        """Which side a label prefers; None for a value outside the rule."""
        if word in self.values:
            return self.values[word]
        number = _number(word)
        if number is not None:
            if self.limits is not None and not self.limits[0] <= number <= self.limits[1]:
                return None
            for sign, bound, outcome in self.compared:
                if _is(number, sign, bound):
                    return outcome
            return None
        return _meant_by(word) if self.words else None

    def term(self, word: str) -> str:
        """The part of the rule by which a value is read: itself, or a comparison."""
        number = _number(word)
        if word in self.values or number is None:
            return word
        return next((f"{sign}{bound:g}" for sign, bound, _ in self.compared if _is(number, sign, bound)), word)


def label_word(value: Any) -> str | None:
    """A label as the word by which it is looked up, in lower case; `1`, `1.0` and `"1"` are one. None for no label."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)) and math.isfinite(value):
        return f"{int(value)}" if value == int(value) else f"{value!r}"
    if not isinstance(value, str):
        return None
    word = " ".join(value.strip().strip("[]").split()).lower()
    number = _number(word)
    return label_word(number) if number is not None else word


def _is(number: float, sign: str, bound: float) -> bool:
    return number > bound if sign == ">" else number < bound


def _number(word: str) -> float | None:
    try:
        number = float(word)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _meant_by(word: str) -> Outcome | None:
    if "".join(letter for letter in word if letter.isalpha()) in _TIES:
        return "tie"
    if side := _SIDE.fullmatch(word):
        return "a" if side[1] == "a" else "b"
    if (order := _ORDER.fullmatch(word)) and order[1] != order[3]:
        if order[2] == "=":
            return "tie"
        return "a" if (order[1] == "a") == order[2].startswith(">") else "b"
    return None


def parse_label_map(given: Mapping[str, str]) -> LabelRule:
    """`{"1": "a", "0": "b"}`, or for scales `{"<0": "a", ">0": "b", "0": "tie"}`, as a rule.

    Raises:
        ConfigError: a meaning other than a, b and tie, or a comparison that cannot be read.
    """
    values: dict[str, Outcome] = {}
    compared: list[tuple[str, float, Outcome]] = []
    for key, meaning in given.items():
        outcome = next((outcome for outcome in OUTCOMES if outcome == str(meaning).strip().lower()), None)
        if outcome is None:
            raise ConfigError(
                f"label_map has {key}={meaning}; the value of a label comes first and its meaning second: a (the first "
                f"reply is better), b (the second) or tie, as in {setting('label_map', {'1': 'a', '0': 'b'})}, or "
                f"{setting('label_map', {'<0': 'a', '>0': 'b', '0': 'tie'})} for a scale."
            )
        text = str(key).strip()
        if text[:1] in ("<", ">"):
            found = _COMPARED.fullmatch(text)
            if found is None:
                raise ConfigError(
                    f"label_map has {key}={meaning}; after {text[0]} comes a number, as in "
                    f"{setting('label_map', {'<0': 'a', '>0': 'b', '0': 'tie'})}."
                )
            compared.append((found[1], float(found[2]), outcome))
        else:
            values[label_word(text) or text] = outcome
    return LabelRule(values, tuple(compared), words=False, source="label_map")


class Labels:
    """Reads the labels of one data set by a rule, and counts their values."""

    def __init__(self, rule: LabelRule, column: str, sides: tuple[str, str]) -> None:
        self.rule, self.column, self.sides = rule, column, sides
        self.counts: Counter[str] = Counter()
        self.unknown: Counter[str] = Counter()

    def read(self, value: Any) -> Outcome:
        """The better side; RowProblem for none given, and for a value outside the rule (counted in `unknown`)."""
        if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
            raise RowProblem("missing", self.column, None)
        word = label_word(value)
        outcome = None if word is None else self._named(word) or self.rule.outcome(word)
        if word is None or outcome is None:
            self.unknown[shorten(value)] += 1
            raise RowProblem("label not understood", self.column, value)
        self.counts[word] += 1
        return outcome

    def _named(self, word: str) -> Outcome | None:
        """A label that is the very name of a side's column."""
        if self.rule.source == "label_map":
            return None
        return next((o for o, name in zip(OUTCOMES, self.sides, strict=False) if name.lower() == word), None)

    def report(self) -> LabelCounts:
        """The rule and the counts: value by value, or by comparison where a scale has many different values."""
        counts = self.counts
        if len(counts) > _SHOWN:
            terms: Counter[str] = Counter()
            for word, count in counts.items():
                terms[self.rule.term(word)] += count
            meaning = {self.rule.term(word): self._meaning(word) for word in counts}
        else:
            terms, meaning = counts, {word: self._meaning(word) for word in counts}
        ordered = dict(sorted(terms.items(), key=lambda item: (-item[1], item[0])))
        return LabelCounts(self.column, self.rule.source, self.sides, {w: meaning[w] for w in ordered}, ordered)

    def _meaning(self, word: str) -> str:
        return self._named(word) or self.rule.outcome(word) or "?"

    def check(self, origin: str) -> None:
        """DataError if a value was outside the rule: what it means is not known, so that no row can be trusted."""
        if not self.unknown:
            return
        shown = ", ".join(f"{word} ({count:,} rows)" for word, count in self.unknown.most_common(8))
        more = f" and {len(self.unknown) - 8:,} more" if len(self.unknown) > 8 else ""
        known = "".join(f"; {w} is read as {self._meaning(w)}" for w in list(self.counts)[:4])
        numbers = [number for word in self.unknown if (number := _number(word.strip("'\""))) is not None]
        scale = bool(numbers) and (min(numbers) < 0 or len(set(numbers)) > 2)
        example = {"<0": "a", ">0": "b", "0": "tie"}
        if not scale:  # a map goes before every other rule, so it has to name the values that are known, too
            read = {word: self._meaning(word) for word in list(self.counts)[:4]}
            left = [outcome for outcome in OUTCOMES if outcome not in read.values()] or ["a", "b"]
            example = dict(zip([word.strip("'\"") for word in self.unknown][:2], left, strict=False)) | read
        raise DataError(
            f"{origin}: the label {self.column!r} holds {shown}{more}, and what that says is not known{known}. Say "
            f"which reply each value prefers: a ({self.sides[0]}), b ({self.sides[1]}) or tie, as in "
            f"{setting('label_map', example)} (or the other way round: see where the data come from)."
        )
