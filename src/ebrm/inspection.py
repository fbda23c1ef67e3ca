"""Inspection of preference pairs: how they are read, and as which tokens, before anything is fitted."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ebrm.backbone import BackboneConfig, TextReader, load_text_reader
from ebrm.data import (
    Preference,
    PreferenceConfig,
    PreferenceReport,
    Preferences,
    TextConfig,
    TokenizedText,
    conversation,
    load_preferences,
    message_words,
)
from ebrm.errors import ConfigError, TextError, TextTooLongError
from ebrm.utils.progress_bar import progress

_LONGEST = 400  # characters of a text that are shown, half of them from its end


@dataclass(frozen=True)
class TokenCounts:
    """The tokens of all pairs under a reward model's text rule.

    Attributes:
        reward_model: its name.
        template: "plain format" or "chat template".
        max_length: longest text, in tokens.
        tokens: least, median and most tokens of a text, cut ones as cut; None where none can be read.
        truncated: texts whose prompt is cut.
        too_long: texts that are longer than `max_length` and not cut.
        refused: texts that cannot be written, by reason.
        equal: pairs whose two sides are the same tokens: the reward model cannot tell them apart.
        rendered: texts that hold special tokens of the reward model: are they rendered already?
    """

    reward_model: str
    template: str
    max_length: int
    tokens: tuple[int, int, int] | None
    truncated: int
    too_long: int
    refused: dict[str, int]
    equal: int
    rendered: int


@dataclass(frozen=True)
class PairView:
    """One pair as it was read.

    Attributes:
        where: its place in the data.
        split: the name of its split, "" for none.
        prompt, chosen, rejected: its texts, cut in the middle.
        decoded: the tokens of both sides as text, special tokens shown; of the rejected side from where it differs.
        tokens: how many each side has.
        problem: why a side has no tokens.
    """

    where: str
    split: str
    prompt: str
    chosen: str
    rejected: str
    decoded: tuple[str, ...] = ()
    tokens: tuple[int, ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class Inspection:
    """How preference pairs are read: the report, prompts, tokens, and some pairs in full. Prints as a page of text.

    Attributes:
        report: of the reading.
        prompts: different prompts.
        shared: prompts that stand in several splits.
        texts: tokens of a reward model, where one was given.
        pairs: some pairs, spread over the data.
    """

    report: PreferenceReport
    prompts: int
    shared: int
    texts: TokenCounts | None
    pairs: tuple[PairView, ...]

    def to_dict(self) -> dict[str, Any]:
        """The inspection as JSON values."""
        texts = self.texts and asdict(self.texts)
        return {
            "report": self.report.to_dict(), "prompts": self.prompts, "shared_prompts": self.shared,
            "texts": texts, "pairs": [asdict(pair) for pair in self.pairs],
        }  # fmt: skip

    def facts(self) -> list[tuple[str, str]]:
        """(name, value) lines on all of the data."""
        report = self.report
        facts = [("data", report.origin), ("pairs", f"{report.kept:,} of {report.read:,} rows, {report.format}")]
        if report.pairs not in (None, report.read):
            facts[-1] = ("pairs", f"{report.kept:,} of {report.pairs:,} in {report.read:,} rows, {report.format}")
        if report.layout:
            facts.append(("read as", report.layout))
        if report.labels is not None:
            facts.append(("labels", str(report.labels)))
        if set(report.splits) - {""}:
            facts.append(("splits", _counts({name or "none": count for name, count in report.splits.items()})))
        shared = f", {self.shared:,} of them in several splits" if self.shared else ""
        facts.append(("prompts", f"{self.prompts:,} different{shared}"))
        if report.duplicates:
            facts.append(("repeats", f"{report.duplicates:,} pairs repeat an earlier one exactly"))
        if report.lengths:
            lengths = (f"{name} {_three(three)}" for name, three in report.lengths.items())
            facts.append(("characters", f"{'; '.join(lengths)} (least / median / most)"))
        not_read = {"columns not read": report.unread_columns, "keys not read": report.unread_keys}
        facts += [(name, _counts(counts)) for name, counts in not_read.items() if counts]
        if report.unread_files:
            facts.append(("files not read", ", ".join(report.unread_files)))
        left_out = {**report.skipped, **({"ties": report.ties} if report.ties else {})}
        if report.limited:
            left_out["beyond the limit"] = report.limited
        if left_out:
            facts.append(("left out", _counts(left_out)))
        facts += [("odd values", f"{what} in {count:,} rows (left out)") for what, count in report.odd.items()]
        for row in report.examples:
            facts.append(("for example", str(row)))
        if (texts := self.texts) is None:
            return facts
        facts.append(("reward model", f"{texts.reward_model}, {texts.template}, at most {texts.max_length:,} tokens"))
        if texts.tokens is not None:
            facts.append(("tokens", f"{_three(texts.tokens)} a text (least / median / most)"))
        if texts.truncated:
            facts.append(("cut", f"the prompts of {texts.truncated:,} texts"))
        if texts.too_long:
            facts.append(("too long", f"{texts.too_long:,} texts"))
        facts += [("refused", f"{count:,} texts: {reason}") for reason, count in texts.refused.items()]
        if texts.equal:
            said = f"{texts.equal:,} of {report.kept:,} pairs are the same text to this reward model on both sides"
            facts.append(("equal sides", said))
        if texts.rendered:
            said = f"{texts.rendered:,} texts hold special tokens of this reward model: are they rendered already?"
            facts.append(("special tokens", said))
        return facts

    def pages(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """(place, lines) of each pair shown."""
        found = []
        for pair in self.pairs:
            lines = [("prompt", pair.prompt), ("chosen", pair.chosen), ("rejected", pair.rejected)]
            for side, count, text in zip(("chosen", "rejected"), pair.tokens, pair.decoded, strict=False):
                lines.append((f"{side}, {count:,} tokens", text))
            lines += [("no tokens", pair.problem)] * bool(pair.problem)
            found.append((f"{pair.where}{f' ({pair.split})' if pair.split else ''}", lines))
        return found

    def __str__(self) -> str:
        """All facts, then the pairs."""
        lines = [f"{name}: {value}" for name, value in self.facts()]
        for place, texts in self.pages():
            lines += ["", place, *(f"  {name}: {text}" for name, text in texts)]
        return "\n".join(lines)


def inspect_data(
    data: Any,
    backbone: BackboneConfig | str | None = None,
    *,
    config: PreferenceConfig = PreferenceConfig(),  # noqa: B008 - frozen
    text: TextConfig = TextConfig(),  # noqa: B008 - frozen
    rows: int = 3,
) -> Inspection:
    """Look at preference pairs as `fit` would read them: layout, labels, what is left out, and the texts themselves.

    Args:
        data: what :func:`ebrm.load_preferences` reads, or its result.
        backbone: a reward model, whose tokens are then counted and shown; its weights are not loaded, unless a
            registered family loads it.
        config, text: as of a fit.
        rows: how many pairs to show.

    Raises:
        DataError: as :func:`ebrm.load_preferences`. BackboneError: no reward model, or none with a tokenizer.
        ConfigError: a number of rows below 0.
    """
    if rows < 0:
        raise ConfigError(f"rows is {rows}; it must be 0 or more.")
    preferences = data if isinstance(data, Preferences) else load_preferences(data, config)
    reader = None if backbone is None else load_text_reader(backbone, text)
    splits: defaultdict[str, set[str | None]] = defaultdict(set)
    for pair in preferences:
        splits[pair.prompt_id].add(pair.split)
    shown = np.unique(np.linspace(0, len(preferences) - 1, min(rows, len(preferences))).round().astype(int))
    texts = None if reader is None else _count(preferences, reader)
    shared = sum(len(names) > 1 for names in splits.values())
    pairs = tuple(_view(preferences[int(place)], reader) for place in shown)
    return Inspection(preferences.report, len(splits), shared, texts, pairs)


def _sides(pair: Preference, reader: TextReader) -> list[TokenizedText | TextError]:
    """The tokens of both sides, or why there are none."""
    found: list[TokenizedText | TextError] = []
    for reply in (pair.chosen, pair.rejected):
        try:
            tokens = reader.tokenize(pair.asked, reply)
            longest = f"The text has more than the {reader.text_rule.max_length} tokens of the limit."
            found.append(TextTooLongError(longest) if tokens is None else tokens)
        except TextError as error:
            found.append(error)
    return found


def _count(preferences: Preferences, reader: TextReader) -> TokenCounts:
    lengths: list[int] = []
    refused: Counter[str] = Counter()
    truncated = too_long = equal = rendered = 0
    with progress("tokenizing", len(preferences), "pairs") as bar:
        for pair in preferences:
            sides = _sides(pair, reader)
            for tokens in sides:
                if isinstance(tokens, TextTooLongError):
                    too_long += 1
                elif isinstance(tokens, TextError):
                    refused[tokens.fact] += 1
                else:
                    lengths.append(len(tokens.ids))
                    truncated += tokens.truncated > 0
                    rendered += tokens.marker is not None
            ids = [tokens.ids for tokens in sides if isinstance(tokens, TokenizedText)]
            equal += len(ids) == 2 and ids[0] == ids[1]
            bar.advance(1)
    rule = reader.text_rule
    return TokenCounts(
        reader.name, "plain format" if rule.template == "plain" else "chat template", rule.max_length,
        (min(lengths), int(np.median(lengths)), max(lengths)) if lengths else None,
        truncated, too_long, dict(refused.most_common()), equal, rendered,
    )  # fmt: skip


def _view(pair: Preference, reader: TextReader | None) -> PairView:
    prompt, chosen_text, rejected_text = (
        conversation(pair.prompt),
        message_words(pair.chosen),
        message_words(pair.rejected),
    )
    view = PairView(pair.row, pair.split or "", _short(prompt), _short(chosen_text), _short(rejected_text))
    if reader is None:
        return view
    chosen, rejected = (reader.look_at(pair.asked, reply) for reply in (pair.chosen, pair.rejected))
    problem = next((look.error for look in (chosen, rejected) if look.error is not None), None)
    if problem is not None:
        return replace(view, problem=problem)
    ids = chosen.ids, rejected.ids
    same = next((i for i, (a, b) in enumerate(zip(*ids, strict=False)) if a != b), min(map(len, ids)))
    other = "the same tokens: this reward model sees no difference"
    if ids[0] != ids[1]:
        other = ("… " if same else "") + _short(reader.decode(rejected.ids[same:]))
    return replace(view, decoded=(_short(chosen.decoded, 2 * _LONGEST), other), tokens=(len(ids[0]), len(ids[1])))


def _short(text: str, longest: int = _LONGEST) -> str:
    if len(text) <= longest:
        return text
    left_out = len(text) - longest
    return f"{text[: longest // 2]} […{left_out:,} characters…] {text[-longest // 2 :]}"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({count:,})" for name, count in counts.items())


def _three(values: Sequence[int]) -> str:
    return " / ".join(f"{value:,}" for value in values)
