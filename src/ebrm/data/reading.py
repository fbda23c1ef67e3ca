"""Rows of one data set as preference pairs: what is read of each row by its layout, and the counts of what is not."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ebrm.data.formats import Extras, Sides, Value, as_list, read_sides
from ebrm.data.labels import Labels, Outcome
from ebrm.data.layouts import ENTRY_TEXTS, Layout
from ebrm.data.messages import check_messages, is_message, messages_in, refuse_media
from ebrm.data.schema import Message, Preference, RowProblem, is_missing, name_of, number_of
from ebrm.data.splits import part_of

_FLAG = re.compile(r"^(?:is|in)[ _-]", re.IGNORECASE)
_FEW = 8  # different values at most of a column that looks like one of splits
# Optional columns: under which names each is looked for when it is not mapped.
OPTIONAL = {
    "strength": ("strength", "margin"),
    **{name: (name,) for name in ("source", "category", "split", "soft_label", "pair_weight", "reward_margin")},
}
# Numbers of a pair's loss, with what they may be: a row with another cannot be used.
_OF_LOSS = {"soft_label": (0.0, 1.0), "pair_weight": (0.0, math.inf), "reward_margin": (-math.inf, math.inf)}


@dataclass(frozen=True)
class Pair:
    """A pair that a row holds, and in words how it was written."""

    preference: Preference
    shape: str


class Reader:
    """Reads the rows of one data set by its layout, and counts what they hold.

    Attributes:
        labels: the label's values; None without one.
        ties: rows that prefer no reply.
        compared, disagreed: rows with a label and scores beside it, and those of them that prefer different replies.
        odd: optional values that were left out: what was odd → rows.
        unread_columns: columns that are not read → rows in which they hold something.
        unread_texts: those of them that hold texts.
        wordy: unread columns → rows in which they hold several words, or a list of objects.
        unread_keys: keys of messages and responses that are not read → how often they hold something.
        list_texts: column of a side → rows in which it is a text that reads as a list of texts.
        lists: rows in which the rejected side is a list of replies.
    """

    def __init__(self, layout: Layout, columns: Mapping[str, str]) -> None:
        self.layout, self.columns = layout, dict(columns)
        fields = layout.fields
        self.labels: Labels | None = None
        if layout.kind == "labeled":
            names = [fields[ours] for ours in ("label", "label_b", "label_tie") if ours in fields]
            self.labels = Labels(layout.rule, ", ".join(names), (fields["a"], fields["b"]))
        self.ties = self.compared = self.disagreed = self.lists = 0
        self.list_texts: Counter[str] = Counter()
        self.odd: Counter[str] = Counter()
        self.unread_columns: Counter[str] = Counter()
        self.unread_keys: Counter[str] = Counter()
        self.unread_texts: set[str] = set()
        self.wordy: Counter[str] = Counter()
        self._words: dict[str, set[str]] = {}  # values of unread columns, while they are few
        self._plans: dict[tuple[str, ...], tuple[dict[str, str], list[str]]] = {}
        self._has_splits = False

    def pairs(self, row: Mapping[str, Any], where: str) -> Iterator[Pair | RowProblem]:
        """The pairs of a row, none for a tie; instead of one that cannot be used, what is wrong with it."""
        self.count_unread(row)
        try:
            extras = self.extras(row)
            refuse_media(row, [*self.layout.fields.values(), *self._plan(row)[0].values()])
            for sides in self._sides(row):
                try:
                    yield Pair(*read_sides(sides, where, extras, self.unread_keys))
                except RowProblem as problem:
                    yield problem
        except RowProblem as problem:
            yield problem

    def extras(self, row: Mapping[str, Any]) -> Extras:
        """What is kept beside a pair; a strength, source, category or split that is none is left out and counted.

        RowProblem for a number of the loss that is out of its range.
        """
        found: dict[str, Any] = {}
        optional, _ = self._plan(row)
        for ours, name in optional.items():
            if is_missing(row[name]):
                continue
            if ours in _OF_LOSS:
                found[ours], (low, high) = number_of(row[name], name), _OF_LOSS[ours]
                if not low <= found[ours] <= high:
                    raise RowProblem("not a probability" if high == 1 else "below 0", name, row[name])
                continue
            try:
                found[ours] = number_of(row[name], name) if ours == "strength" else name_of(row[name], name)
            except RowProblem as problem:
                if ours == "split":  # an odd name may hold rows out: one that is not understood stops a fit
                    found[ours] = ascii(row[name])[:100]
                else:
                    self.odd[f"{name} {problem.kind}"] += 1
        if "strength" in found and self.labels is not None and optional["strength"] == self.labels.column:
            found["strength"] = abs(found["strength"])  # of a scale, the sign is the label
        return Extras(**found)

    def _plan(self, row: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
        """The optional columns that rows of these columns have, and those that are not read."""
        key = tuple(row)
        if key not in self._plans:
            optional: dict[str, str] = {}
            for ours, names in OPTIONAL.items():
                names = (self.columns[ours],) if ours in self.columns else names
                if (name := next((name for name in names if name and name in row), None)) is not None:
                    optional[ours] = name
            read = {*self.layout.fields.values(), *optional.values()}
            self._plans[key] = optional, [name for name in row if name not in read]
            self._has_splits |= "split" in optional
        return self._plans[key]

    def count_unread(self, row: Mapping[str, Any]) -> None:
        """Count the columns of a row that are not read (`pairs` does it for its row)."""
        for name in self._plan(row)[1]:
            value = row[name]
            missing = is_missing(value)
            self.unread_columns[str(name)] += not missing
            if not missing and isinstance(value, str):
                self.unread_texts.add(str(name))
            if len(value.split(None, 1)) > 1 if isinstance(value, str) else _holds_objects(value):
                self.wordy[str(name)] += 1
            words = self._words.setdefault(str(name), set())
            if len(words) <= _FEW and not missing:
                words.add(_word(value))

    def split_like(self) -> dict[str, set[str]]:
        """Unread columns whose values name two parts of a fit or more; none where splits are read, or not wanted."""
        if "split" in self.columns or self._has_splits:
            return {}
        found = {name: {part_of(word) for word in words} for name, words in self._words.items() if len(words) <= _FEW}
        return {name: self._words[name] for name, parts in found.items() if len(parts) > 1 and None not in parts}

    def split_flags(self) -> dict[str, str]:
        """Unread columns that say by their name and yes or no which part a row is of (`is_test`), and that part."""
        if "split" in self.columns or self._has_splits:
            return {}
        flags = {name: part_of(_FLAG.sub("", name)) for name, words in self._words.items() if _is_yes_or_no(words)}
        return {name: part for name, part in flags.items() if part is not None}

    def _value(self, ours: str, row: Mapping[str, Any]) -> Value:
        """The value of a field, None for NaN, and its column's name."""
        name = self.layout.fields[ours]
        value = row.get(name)
        return (None if isinstance(value, float) and math.isnan(value) else value), name

    def _sides(self, row: Mapping[str, Any]) -> Iterator[Sides]:
        fields, kind = self.layout.fields, self.layout.kind
        before = tuple(self._before(row))
        tools = self._value("tools", row) if "tools" in fields else None
        prompt = self._prompt(row) if "prompt" in fields else None
        if self.layout.implicit and self.columns.get("prompt") != "" and not is_missing(row.get("prompt")):
            raise RowProblem("prompt in some rows only", "prompt", row["prompt"])
        both: list[tuple[Value, Value]] = []  # (chosen, rejected)
        if kind == "pair":
            chosen, rejected = self._value("chosen", row), self._value("rejected", row)
            for value, name in (chosen, rejected):
                self.list_texts[name] += isinstance(value, str) and _all_texts(as_list(value))
            wrongs = _several(rejected)
            self.lists += wrongs != [rejected]
            both = [(right, wrong) for right in _several(chosen) for wrong in wrongs]
        elif kind == "conversation":
            both = self._conversation(row)
        elif kind == "labeled":
            better = self._label(row)
            if better != "tie":
                if "label_b" in fields:
                    row, prompt = self._turns(row), None
                a, b = self._value("a", row), self._value("b", row)
                both = [(a, b) if better == "a" else (b, a)]
        else:
            best, *worse = self._scored(row) if kind == "scored" else self._ordered(row)
            both = [(best, other) for other in worse]
        self.ties += not both
        for chosen, rejected in both:
            yield Sides(prompt, chosen, rejected, before, tools)

    # ---- prompts ----

    def _prompt(self, row: Mapping[str, Any]) -> Value:
        value, name = self._value("prompt", row)
        if isinstance(value, Mapping) and isinstance(value.get("full_text"), str):  # WebGPT's questions
            self.unread_keys.update(f"{name}.{key}" for key, more in value.items() if key != "full_text" and more)
            value = value["full_text"]
        if "input" in self.layout.fields:
            more, field = self._value("input", row)
            if more is not None and not isinstance(more, str):
                raise RowProblem("not a string", field, more)
            if more and isinstance(value, str):
                value = f"{value}\n{more}" if value else more
        return value, name

    def _before(self, row: Mapping[str, Any]) -> Iterator[Message]:
        fields = self.layout.fields
        if "system" in fields:
            system, name = self._value("system", row)
            if system is not None and not isinstance(system, str):
                raise RowProblem("not a string", name, system)
            if system:
                yield {"role": "system", "content": system}
        if "history" in fields:
            history, name = self._value("history", row)
            turns = [] if is_missing(history) else as_list(history)
            for turn in turns if turns is not None else [history]:
                said = as_list(turn)
                if said is None or len(said) != 2 or not _all_texts(said):
                    raise RowProblem("not a list of questions and answers", name, history)
                yield from (
                    {"role": role, "content": text} for role, text in zip(("user", "assistant"), said, strict=True)
                )

    # ---- what is better ----

    def _label(self, row: Mapping[str, Any]) -> Outcome:
        assert self.labels is not None
        value, name = self._value("label", row)
        if "label_b" in self.layout.fields:
            names = ("a", "b", "tie")
            given = [
                self._value(ours, row)[0] for ours in ("label", "label_b", "label_tie") if ours in self.layout.fields
            ]
            won = [x for x, one in zip(names, given, strict=False) if str(one).strip().lower() in ("1", "1.0", "true")]
            lost = [one for one in given if str(one).strip().lower() in ("0", "0.0", "false")]
            value = won[0] if len(won) == 1 and len(lost) == len(given) - 1 else " ".join(map(str, given))
            value = f"model_{value}" if value in ("a", "b") else value
        outcome = self.labels.read(value)
        if {"score_a", "score_b"} <= self.layout.fields.keys() and outcome != "tie":
            a, b = (_score(self._value(ours, row)[0]) for ours in ("score_a", "score_b"))
            if a is not None and b is not None and a != b:
                self.compared += 1
                self.disagreed += (a > b) != (outcome == "a")
        return outcome

    def _turns(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Kaggle's battles: the prompt and both sides are lists of turns, as JSON; made conversations of."""
        prompt, name = self._value("prompt", row)
        asked = as_list(prompt)
        asked = [prompt] if asked is None or not _all_texts(asked) else asked
        made = dict(row)
        for ours in "ab":
            value, side = self._value(ours, row)
            said = as_list(value)
            said = [value] if said is None or len(said) != len(asked) else said
            if is_missing(value) or len(said) != len(asked):
                raise RowProblem("not as many turns as the prompt", side, value)
            if any(one is None for one in (*said, *asked)):
                raise RowProblem("missing", side if None in said else name, value)
            made[side] = [
                {"role": role, "content": text}
                for turn in zip(asked, said, strict=True)
                for role, text in zip(("user", "assistant"), turn, strict=True)
            ]
        return made

    def _conversation(self, row: Mapping[str, Any]) -> list[tuple[Value, Value]]:
        """ms-swift: a conversation that ends in the chosen reply, and the rejected reply or conversation."""
        whole, name = self._value("conversation", row)
        rejected, side = self._value("rejected", row)
        messages = check_messages(whole, name, strict=False)
        if messages[-1]["role"] != "assistant":
            raise RowProblem("does not end in an assistant message", name, messages[-1])
        both: list[tuple[Value, Value]] = []
        for one, field in _several((rejected, side)):
            if side == "rejected_response":
                text = isinstance(one, str) and messages_in(one, field) is None
                more = [{"role": "assistant", "content": one}] if text else check_messages(one, field, self.unread_keys)
                one = [*messages[:-1], *more]
            both.append(((whole, name), (one, field)))
        return both

    def _scored(self, row: Mapping[str, Any]) -> list[Value]:
        scores = {}
        for ours in "ab":
            value, name = self._value(f"score_{ours}", row)
            if (number := _score(value)) is None:
                raise RowProblem("not a number" if not is_missing(value) else "missing", name, value)
            scores[ours] = number
        better, worse = ("a", "b") if scores["a"] >= scores["b"] else ("b", "a")
        found = [self._value(better, row), self._value(worse, row)]
        return found if scores["a"] != scores["b"] else found[:1]

    def _ordered(self, row: Mapping[str, Any]) -> list[Value]:
        """The best of the responses (the first of several), and all that are worse."""
        value, name = self._value("responses", row)
        responses = as_list(value)
        if responses is None:
            raise RowProblem("missing" if value is None else "not a list", name, value)
        if self.layout.entries is not None:
            order = self.layout.entries[1]
            texts, scores = self._entries(responses, name)
        else:
            ours = "ranks" if "ranks" in self.layout.fields else "scores"
            given, order = self._value(ours, row)
            found = as_list(given)
            if found is None:
                raise RowProblem("missing" if given is None else "not a list", order, given)
            if len(found) != len(responses):
                raise RowProblem(f"not as many as {name}", order, given)
            scores = found
            texts = [self._text(one, f"{name}[{i}]")[0] for i, one in enumerate(responses)]
        known = [(score, i) for i, one in enumerate(scores) if (score := _score(one)) is not None]
        if len(known) < len(scores):
            self.odd[f"{name} without {order}"] += 1
        if len(known) < 2:
            raise RowProblem("fewer than two responses with a score", name, value)
        sign = 1 if self.layout.ascending else -1
        best = min(known, key=lambda one: (sign * one[0], one[1]))
        places = [best[1], *(i for score, i in known if sign * score > sign * best[0])]
        return [(texts[i], f"{name}[{i}]") for i in places]

    def _entries(self, responses: Sequence[Any], name: str) -> tuple[list[Any], list[Any]]:
        assert self.layout.entries is not None
        text, order = self.layout.entries
        texts, scores = [], []
        for i, entry in enumerate(responses):
            if not isinstance(entry, Mapping):
                raise RowProblem("not an object", f"{name}[{i}]", entry)
            told, used = self._text(entry, f"{name}[{i}]", text)
            texts.append(told)
            scores.append(entry.get(order))
            read = {used, order, *(("role",) if used == "content" else ())}
            self.unread_keys.update(f"{name}[].{key}" for key, more in entry.items() if key not in read and more)
        return texts, scores

    def _text(self, entry: Any, at: str, key: str | None = None) -> tuple[Any, str]:
        """The reply of one entry of a list, and the key it was under."""
        if not isinstance(entry, Mapping) or (key is None and is_message(entry)):
            return entry, ""
        used = key if key in entry else next((name for name in ENTRY_TEXTS if name in entry), None)
        if used is None:
            raise RowProblem("no text", at, entry)
        if used == "content" and is_message(entry):
            return entry, used
        return entry[used], used


def _several(side: Value) -> list[Value]:
    """A side that holds a list of replies as each of them; any other as it is."""
    value, name = side
    found = as_list(value) if not isinstance(value, str) else None
    if found and all(isinstance(one, Sequence) or one is None for one in found):  # messages are mappings
        return [(one, f"{name}[{i}]") for i, one in enumerate(found)]
    return [side]


def _holds_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)


def _word(value: Any) -> str:
    """A short value of an unread column, to compare with names of splits; "" for any other."""
    if isinstance(value, bool) or (isinstance(value, (int, float)) and value in (0, 1)):
        return str(bool(value))
    return value if isinstance(value, str) and len(value) < 40 else ""


def _is_yes_or_no(words: set[str]) -> bool:
    return {word.strip().lower() for word in words} in ({"true", "false"}, {"0", "1"}, {"yes", "no"})


def _all_texts(found: Sequence[Any] | None) -> bool:
    return bool(found) and all(isinstance(one, str) for one in found or ())


def _score(value: Any) -> float | None:
    """A score as a number; None for what is none."""
    try:
        number = float(value) if isinstance(value, (int, float, str)) else math.nan
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
