"""Extraction of features: token ids of every different text, and one forward over each, into a features folder."""

from __future__ import annotations

import hashlib
import logging
import os
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ebrm.backbone import BackboneIdentity
from ebrm.data import (
    EXAMPLES,
    BadRows,
    Message,
    Preference,
    Preferences,
    Prompt,
    RatedResponse,
    Ratings,
    Reply,
    TokenizedText,
    count_kinds,
    message_words,
    part_of,
    rendered_already,
    repeats,
    reply_key,
    tokenize,
)
from ebrm.errors import BackboneError, FeaturesError, TextError, TextTooLongError, setting
from ebrm.features import manifest as manifests
from ebrm.features.config import FeatureConfig
from ebrm.features.distributed import World
from ebrm.features.store import Features
from ebrm.features.writer import ItemReader, Plan, write_features
from ebrm.pairs import PreferencePairs, swapped_sides
from ebrm.utils.files import sha256_json

if TYPE_CHECKING:
    from ebrm.backbone import Backbone

logger = logging.getLogger(__name__)

#: Writes shards of texts in other processes: texts, then the arguments of a `Writer`.
Engine = Callable[["TokenizedTexts", Path, dict[str, Any], Sequence[int], Callable[[int], None]], dict[str, Any]]

_DRIFT_ITEMS = 16
_NOT_FINITE = "not a finite number"
_BATCHES_A_READ = 8  # texts handed to the reward model at once, in batches; progress moves after each hand-over


class Text(NamedTuple):
    """A prompt with a response, the prompt's id, and their place in the data ("train.jsonl:12, chosen")."""

    prompt_id: str
    prompt: Prompt
    response: Reply
    where: str

    @property
    def id(self) -> str:
        """The first 16 hexadecimal digits of a SHA-256 over prompt id and response."""
        return text_id(self.prompt_id, self.response)


@dataclass(frozen=True)
class TokenizedTexts:
    """The token ids of n different texts.

    Attributes:
        ids: int32, the token ids of all texts, one after the other.
        ends: int64 [n + 1], where each text begins, then the length of `ids`.
        truncated: int32 [n], tokens cut from the prompt.
        prompt_id, text_id, where: of each text its prompt, its `Text.id` and its first place in the data.
        tolerant: a text whose numbers are not finite is left out, and stops nothing.
    """

    ids: np.ndarray
    ends: np.ndarray
    truncated: np.ndarray
    prompt_id: list[str]
    text_id: list[str]
    where: list[str]
    tolerant: bool = False

    def __len__(self) -> int:
        return len(self.where)

    def item(self, number: int) -> list[int]:
        """Token ids of one text."""
        return self.ids[self.ends[number] : self.ends[number + 1]].tolist()

    def fingerprint(self) -> str:
        """SHA-256 of all token ids and where each text ends."""
        return hashlib.sha256(self.ids.astype("<i4").tobytes() + self.ends.astype("<i8").tobytes()).hexdigest()

    @property
    def lengths(self) -> np.ndarray:
        """int64 [n], tokens of each text."""
        return np.diff(self.ends)

    def take(self, used: np.ndarray) -> TokenizedTexts:
        """The texts at `used` (ascending, without repeats)."""
        if len(used) == len(self):
            return self
        keep = np.zeros(len(self), dtype=bool)
        keep[used] = True
        lengths = self.lengths
        columns = (self.prompt_id, self.text_id, self.where)
        prompt_id, text_id, where = ([column[number] for number in used] for column in columns)
        ends = np.concatenate([[0], np.cumsum(lengths[keep])])
        ids = self.ids[np.repeat(keep, lengths)]
        return TokenizedTexts(ids, ends, self.truncated[used], prompt_id, text_id, where, self.tolerant)


def text_id(prompt_id: str, response: Reply) -> str:
    """Key of a response to a prompt: 16 hexadecimal digits of a SHA-256."""
    return hashlib.sha256(f"{prompt_id}\n{reply_key(response)}".encode("utf-8", "surrogatepass")).hexdigest()[:16]


def extract_features(
    backbone: Backbone, preferences: Preferences, out: str | Path, config: FeatureConfig | None = None,
    rm_training: Sequence[bool] | np.ndarray | None = None, engine: Engine | None = None,
    bad_rows: BadRows = "stop",
) -> Features:  # fmt: skip
    """Embedding and reward of every different (prompt, response) of `preferences`, in the folder `out`.

    All texts are tokenized before the first forward. A folder that was left unfinished is continued, byte for byte as
    in an unbroken run (same device, libraries and token budget); a finished one of the same reward model, text rule,
    data and config is returned without a forward. Under `accelerate launch` all processes call this.

    Args:
        backbone: The frozen reward model.
        preferences: The pairs.
        out: The folder.
        config: Number type and shard size.
        rm_training: Whether the reward model was trained on each pair, bool [len(preferences)], if known.
        engine: Reads the texts in other processes (:func:`ray_engine`), with the same result.
        bad_rows: Pairs with a text that the chat template refuses, that is too long under truncation="error", or for
            which the reward model gives NaN or infinity: "stop", or "skip", which leaves them out and counts them in
            the manifest (`bad_rows`).

    Raises:
        TextError: With bad_rows="stop", such pairs; all are counted and the first named. Nothing has been written then.
            (Numbers that are not finite are a BackboneError: they are seen while texts are read.)
        FeaturesError: A folder with something else, damage, numbers that are not finite, a full disk, no pair left, or
            most pairs the same text on both sides once they are token ids.
        BackboneError: The reward model cannot be read.
    """
    world = World()
    if len(preferences) == 0:
        raise FeaturesError("There are no preference pairs to read: the data has no rows that can be used.")
    if rm_training is not None and len(rm_training) != len(preferences):
        raise FeaturesError(
            f"rm_training has {len(rm_training)} entries for {len(preferences)} pairs; expected one for each pair."
        )
    if engine is not None and world.size > 1:
        raise FeaturesError(
            f"{world.size} processes were launched (WORLD_SIZE), and an engine shares the work out by itself. Run it "
            "without `accelerate launch`."
        )
    seen = None if rm_training is None else [bool(value) for value in rm_training]
    adopt_date(backbone, out)
    data = {"fingerprint": preferences.fingerprint, "rm_training": None if seen is None else sha256_json(seen)}
    report = {key: value for key, value in preferences.report.to_dict().items() if key != "examples"}
    manifest = _manifest(backbone, data, config, preferences=report)

    def plan() -> Plan:
        _refuse_other_rewards(backbone, Path(out))
        texts, pairs, notes = tokenize_preferences(backbone, preferences, world, seen, bad_rows)
        return _plan(backbone, replace(texts, tolerant=bad_rows == "skip"), pairs, manifest | notes, engine)

    found = write_features(Path(out), manifest, plan, world, config is not None and config.restart)
    _refuse_other_rewards(backbone, Path(out))
    if len(found.pairs) == 0:
        raise FeaturesError(f"No pair is left: {what_was_noticed(found.manifest)[0]}")
    if world.main:
        for said in what_was_noticed(found.manifest):
            logger.warning("%s", said)
        likelier = torch.where(found.pairs.label < 0.5, -1.0, 1.0) * (found.pairs.label != 0.5)
        right = likelier * (found.reward[found.pairs.chosen] - found.reward[found.pairs.rejected])
        if swapped := swapped_sides(int((right > 0).sum()), int((right != 0).sum()), "pairs"):
            logger.warning("%s", swapped)
    return found


def adopt_date(backbone: Backbone, out: str | Path) -> None:
    """Take over the date of features that were begun in `out` on another day, unless a date was given."""
    rule = backbone.text_rule
    if getattr(rule, "date", None) is None or rule.date_given:
        return
    try:
        stored = manifests.read_manifest(Path(out)).get("text") or {}
    except FeaturesError:
        return
    dated = replace(rule, date=stored.get("date"))
    if stored.get("date") not in (None, rule.date) and dated.identity() == stored:
        logger.info("%s was begun on %s, which stays the date in its texts.", out, stored["date"])
        backbone.text_rule = dated


def what_was_noticed(manifest: dict[str, Any]) -> list[str]:
    """Sentences for people about the texts of a features folder: left out, the same on both sides, rendered before."""
    said = []
    if bad := manifest.get("bad_rows"):
        said.append(f"{sum(bad.values()):,} pairs are left out: {count_kinds(bad)}.")
    if same := manifest.get("same_sides"):
        said.append(
            f"{same:,} of {manifest['pairs']:,} pairs are the same text to this reward model on both sides: its chat "
            "template leaves out what differs. They teach nothing."
        )
    if marked := manifest.get("rendered"):
        count = " and ".join(f"{marked[what]:,} {what}" for what in ("prompts", "replies") if marked[what])
        said.append(rendered_already(marked["marker"], f"{count} hold"))
    if repeated := manifest.get("repeated_prompts"):
        said.append(
            f"{repeated:,} of {manifest['pairs']:,} pairs repeat the prompt at the start of both replies, where it is "
            f"read again; {setting('rendered', 'parse')} takes it off."
        )
    return said


def extract_texts(
    backbone: Backbone, texts: Sequence[Text], out: str | Path, config: FeatureConfig | None = None
) -> Features:
    """Embedding and reward of every different text, in the folder `out`; features without pairs.

    As :func:`extract_features`, but a text that the text rule refuses (too long, turns the chat template does not
    take), or whose numbers are not finite, stops nothing: the manifest has the reason of each under `refused`, by text
    id; the reward of the latter is NaN.

    Raises:
        FeaturesError, BackboneError: As `extract_features`, but for the pairs.
    """
    world = World()
    manifest = _manifest(backbone, {"fingerprint": sha256_json([text.id for text in texts])}, config)

    def plan() -> Plan:
        _refuse_other_rewards(backbone, Path(out))
        made, _, errors, _ = tokenize_texts(backbone, texts, len(texts), world)
        longest = f"longer than the {backbone.text_rule.max_length} tokens that the RM reads"
        refused = {
            texts[number].id: longest if error is None or error.kind == TextTooLongError.kind else error.fact
            for number, error in errors.items()
        }
        more = {"dropped_texts": len(refused), "refused": refused}
        return _plan(backbone, replace(made, tolerant=True), PreferencePairs.of([], []), manifest | more)

    found = write_features(Path(out), manifest, plan, world, config is not None and config.restart)
    _refuse_other_rewards(backbone, Path(out))
    return found


def _refuse_other_rewards(backbone: Backbone, out: Path) -> None:
    """FeaturesError where features in `out` are of the same files, which gave other rewards then."""
    if not (out / manifests.MANIFEST).exists():
        return
    stored = BackboneIdentity.from_dict(manifests.read_manifest(out)["backbone"] or {})
    difference = backbone.probe_difference(stored, then=f"for the features in {out}", now="now")
    if difference is not None:
        raise FeaturesError(
            f"The reward model gives other rewards than when {out} was made or begun, though its files are the same: "
            f"{difference}. Another version of a library, another device or a server with another model does that; "
            "use those of then, or choose another folder to make the features again."
        )


def extract_ratings(
    backbone: Backbone,
    ratings: Ratings,
    out: str | Path,
    config: FeatureConfig | None = None,
    bad_rows: BadRows = "stop",
) -> Features:
    """Embedding, reward and ratings of every different rated response, in the folder `out`.

    A response that is rated several times has the mean of its ratings. The pairs of the features are those of a
    prompt's responses of which the first attribute says which is better (for thumbs, each up against each down): heads
    for ratings are not fitted on them, but measured by them. A response in no pair loses its ratings where its split,
    or another response to its prompt, is or may be held out: no head is fitted on it.

    Args and errors as of :func:`extract_features`.
    """
    world = World()
    adopt_date(backbone, out)
    report = {key: value for key, value in ratings.report.to_dict().items() if key != "examples"}
    data = {"fingerprint": ratings.fingerprint}
    manifest = _manifest(backbone, data, config, preferences=report, ratings=list(ratings.attributes))

    def plan() -> Plan:
        given = (Text(row.prompt_id, row.asked, row.response, row.row) for row in ratings)
        texts, numbers, errors, rendered = tokenize_texts(backbone, given, len(ratings), world)
        bad = {place: error for place, error in errors.items() if error is not None}
        kinds = Counter(error.kind for error in bad.values())
        if bad and (bad_rows == "stop" or not len(texts)):
            rows = [(ratings.rows[place].row, ratings.rows[place].prompt, error) for place, error in bad.items()]
            raise _explain_bad_rows(backbone, rows, kinds, f"{len(ratings):,} rated responses", len(texts) > 0)
        if not len(texts):
            raise FeaturesError(
                f"No response is left: all {len(ratings):,} have more tokens than `max_length` "
                f"({backbone.text_rule.max_length}). Raise it, or cut prompts with "
                f"{setting('truncation', 'prompt_left')}."
            )
        kept = [(number, row) for number, row in zip(numbers, ratings, strict=True) if number is not None]
        pairs, unrated = _rated_pairs(kept, texts, len(ratings.attributes))
        noticed = {"bad_rows": dict(kinds), "unrated": unrated}
        notes = {"dropped_texts": len(errors) - len(bad), **{k: v for k, v in noticed.items() if v}, **rendered.notes()}
        return _plan(backbone, replace(texts, tolerant=bad_rows == "skip"), pairs, manifest | notes)

    found = write_features(Path(out), manifest, plan, world, config is not None and config.restart)
    if world.main and found.manifest.get("unrated"):
        logger.warning(
            "%d rated responses are not used: their split or prompt is, or may be, held out, and they are rated "
            "neither better nor worse than another response to the prompt.", found.manifest["unrated"],
        )  # fmt: skip
    return found


def _rated_pairs(
    rows: Sequence[tuple[int, RatedResponse]], texts: TokenizedTexts, attributes: int
) -> tuple[PreferencePairs, int]:
    """Pairs within prompts by the first attribute, with the mean ratings of all texts; and how many were taken out."""
    values = np.array([row.ratings for _, row in rows], dtype=np.float64).reshape(-1, attributes)
    place = np.array([number for number, _ in rows])
    known = ~np.isnan(values)
    total, count = np.zeros((len(texts), attributes)), np.zeros((len(texts), attributes))
    np.add.at(total, place, np.where(known, values, 0.0))
    np.add.at(count, place, known)
    rating = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    of_text = {number: row for number, row in reversed(rows)}  # the first of equal texts
    of_prompt: defaultdict[str, list[int]] = defaultdict(list)
    for number, prompt in enumerate(texts.prompt_id):
        of_prompt[prompt].append(number)
    both = [
        (first, second)
        for numbers in of_prompt.values()
        for first in numbers
        for second in numbers
        if rating[first, 0] > rating[second, 0]
    ]
    sides = np.array(both, dtype=np.int64).reshape(-1, 2)
    split = {prompt: _strictest([of_text[number].split for number in numbers]) for prompt, numbers in of_prompt.items()}
    paired = np.zeros(len(texts), dtype=bool)
    paired[sides] = True
    measured = {texts.prompt_id[first] for first, _ in both}
    held = np.array([p in measured or part_of(split[p] or "train") != "train" for p in texts.prompt_id], dtype=bool)
    unrated = held & ~paired
    rating[unrated] = np.nan
    columns: dict[str, Any] = {
        name: [getattr(of_text[first], name) for first, _ in both] for name in ("source", "category")
    }
    columns["split"] = [split[texts.prompt_id[first]] for first, _ in both]
    return PreferencePairs.of(
        *sides.T, prompt_id=[texts.prompt_id[first] for first, _ in both], ratings=rating,
        where=[of_text[first].row for first, _ in both], **columns,
    ), int(unrated.sum())  # fmt: skip


def _strictest(splits: Sequence[str | None]) -> str | None:
    """The split of a prompt's responses: one that is held out, if any is."""
    named = [split for split in splits if split is not None]
    return next((split for split in named if part_of(split) != "train"), named[0] if named else None)


def _manifest(backbone: Backbone, data: dict[str, Any], config: FeatureConfig | None, **more: Any) -> dict[str, Any]:
    config = config or FeatureConfig()
    return manifests.describe(
        origin="extracted", backbone=backbone.probed().to_dict(), text=backbone.text_rule.identity(), data=data,
        embedding_dtype=config.embedding_dtype, embedding_size=backbone.embedding_size, shard_rows=config.shard_rows,
        **more,
    )  # fmt: skip


def _plan(
    backbone: Backbone, texts: TokenizedTexts, pairs: PreferencePairs, manifest: dict[str, Any],
    engine: Engine | None = None,
) -> Plan:  # fmt: skip
    """The content of a folder of texts and their pairs."""
    known = {
        "items": len(texts), "pairs": len(pairs), "tokens": len(texts.ids),
        "truncated": int((texts.truncated > 0).sum()), "content": texts.fingerprint(),
    }  # fmt: skip
    items = {name: getattr(texts, name) for name in ("prompt_id", "truncated", "text_id")} | {"tokens": texts.lengths}
    writer = None if engine is None or not len(texts) else partial(engine, texts)
    return Plan(manifest | known, items, pairs, text_reader(backbone, texts), texts.lengths, "tokens", writer)


def text_reader(backbone: Backbone, texts: TokenizedTexts) -> ItemReader:
    """Embeddings and rewards as the reward model reads them from texts."""
    return ItemReader(
        partial(_read, backbone, texts),
        texts.where.__getitem__,
        lambda: {"batch_drift": _measure_drift(backbone, texts) if len(texts) else None},
        texts.tolerant,
    )


def tokenize_texts(
    backbone: Backbone, texts: Iterable[Text], count: int, world: World
) -> tuple[TokenizedTexts, list[int | None], dict[int, TextError | None], Rendered]:
    """The different texts, and of those given: the number of each among them, and why some have none.

    Returns:
        the texts; the number of each given one (None if there are no token ids); why, by its place (None: too long,
        and the text rule drops such texts); and which hold a template's markers.
    """
    found: dict[tuple[str, str], int | TextError | None] = {}
    ids, ends, truncated = array("i"), [0], []
    about: tuple[list[str], list[str], list[str]] = ([], [], [])
    numbers: list[int | None] = []
    errors: dict[int, TextError | None] = {}
    rendered = Rendered()
    with world.progress("tokenizing", count, "texts") as advance:
        for place, text in enumerate(texts):
            key = (text.prompt_id, reply_key(text.response))
            if key not in found:
                try:
                    tokens = backbone.tokenize(text.prompt, text.response)
                except TextError as error:
                    found[key] = error
                else:
                    found[key] = None if tokens is None else len(about[0])
                    if tokens is not None:
                        ids.extend(tokens.ids)
                        ends.append(len(ids))
                        truncated.append(tokens.truncated)
                        rendered.note(text.prompt_id, tokens)
                        for column, value in zip(about, (text.prompt_id, text.id, text.where), strict=True):
                            column.append(value)
            known = found[key]
            if isinstance(known, int):
                numbers.append(known)
            else:
                numbers.append(None)
                errors[place] = known
            advance(1)
    cut = np.array(truncated, dtype=np.int32)
    made = TokenizedTexts(np.array(ids, dtype=np.int32), np.array(ends, dtype=np.int64), cut, *about)
    return made, numbers, errors, rendered


@dataclass
class Rendered:
    """Texts that hold a chat template's markers: ids of such prompts, how many replies, and the first marker."""

    prompts: set[str] = field(default_factory=set)
    replies: int = 0
    marker: str = ""

    def note(self, prompt_id: str, tokens: TokenizedText) -> None:
        """Count a text."""
        if tokens.marker is None:
            return
        self.marker = self.marker or tokens.marker
        if tokens.marked_prompt:
            self.prompts.add(prompt_id)
        else:
            self.replies += 1

    def notes(self) -> dict[str, Any]:
        """An entry of the manifest, if there is something to say."""
        if not self.marker:
            return {}
        return {"rendered": {"prompts": len(self.prompts), "replies": self.replies, "marker": self.marker}}


def tokenize_preferences(
    backbone: Backbone, preferences: Preferences, world: World, rm_training: Sequence[bool] | None = None,
    bad_rows: BadRows = "stop",
) -> tuple[TokenizedTexts, PreferencePairs, dict[str, Any]]:  # fmt: skip
    """Every different text that is in a pair with both sides, those pairs, and what the manifest says of the others.

    Raises:
        TextError, FeaturesError: as `extract_features`.
    """
    both = (
        Text(prompt_id, pair.asked, response, f"{pair.row}, {side}")
        for pair in preferences
        for prompt_id in (pair.prompt_id,)
        for side, response in (("chosen", pair.chosen), ("rejected", pair.rejected))
    )
    texts, numbers, errors, rendered = tokenize_texts(backbone, both, 2 * len(preferences), world)
    bad: dict[int, tuple[str, TextError]] = {}  # row -> side and error
    for place, error in errors.items():
        if error is not None:
            bad.setdefault(place // 2, (("chosen", "rejected")[place % 2], error))
    kinds = Counter(error.kind for _, error in bad.values())
    told = [(f"{preferences[row].row}, {side}", preferences[row].prompt, error) for row, (side, error) in bad.items()]
    of = f"{len(preferences):,} pairs"
    if bad and bad_rows == "stop":
        raise _explain_bad_rows(backbone, told, kinds, of, sum(kinds.values()) < len(preferences))
    sides = list(zip(numbers[::2], numbers[1::2], strict=True))
    kept = [row for row, pair in enumerate(sides) if None not in pair]
    if not kept:
        longest = f"longer than max_length ({backbone.text_rule.max_length} tokens)"
        if not bad:
            raise FeaturesError(
                f"No pair is left: all {len(sides):,} have a side {longest}. Raise `max_length`, or cut prompts with "
                f"{setting('truncation', 'prompt_left')}."
            )
        more = {longest: len(sides) - len(bad)} if len(sides) > len(bad) else {}
        raise _explain_bad_rows(backbone, told, kinds + Counter(more), of, False)
    # A text whose only partner was dropped is in no pair, and is not read. `unique` sorts; numbers follow appearance.
    used, renumbered = np.unique(np.array([sides[row] for row in kept], dtype=np.int64), return_inverse=True)
    renumbered = renumbered.reshape(-1, 2)
    texts = texts.take(used)
    rows = [preferences[row] for row in kept]
    same = _same_sides(backbone, texts, renumbered, rows)
    columns = ("source", "category", "strength", "split")
    known: dict[str, Any] = {name: [getattr(pair, name) for pair in rows] for name in columns}
    for name, ours, usual in (
        ("label", "soft_label", 1.0),
        ("weight", "pair_weight", 1.0),
        ("margin", "reward_margin", 0.0),
    ):
        given = [getattr(pair, ours) for pair in rows]
        known[name] = [usual if value is None else value for value in given]
    pairs = PreferencePairs.of(
        *renumbered.T, prompt_id=[texts.prompt_id[number] for number in renumbered[:, 0]], **known,
        where=[pair.row for pair in rows],
        rm_training=None if rm_training is None else [rm_training[row] for row in kept],
    )  # fmt: skip
    notes: dict[str, Any] = {
        "dropped": len(preferences) - len(pairs) - len(bad),
        "dropped_texts": len({_key(preferences, place) for place, error in errors.items() if error is None}),
    }
    noticed = {"bad_rows": dict(kinds), "same_sides": same}
    if getattr(backbone.text_rule, "rendered", "keep") == "warn":
        noticed["repeated_prompts"] = _repeated_prompts(rows)
    return texts, pairs, notes | {name: value for name, value in noticed.items() if value} | rendered.notes()


def _key(preferences: Preferences, place: int) -> tuple[str, str]:
    pair = preferences[place // 2]
    return pair.prompt_id, reply_key(pair.rejected if place % 2 else pair.chosen)


def _explain_bad_rows(
    backbone: Backbone, bad: Sequence[tuple[str, Sequence[Message], TextError]], kinds: Counter[str], of: str,
    rest: bool,
) -> TextError:  # fmt: skip
    """The error for texts (place, prompt, error) that cannot be read: all counted, the first named, the ways out."""
    first = bad[:EXAMPLES]
    listed = "".join(f"\n  {place}: {error.fact}" for place, _, error in first)
    advice = list(dict.fromkeys(error.advice for _, _, error in bad if error.advice))
    if TextTooLongError.kind in kinds:
        advice.append("Raise `max_length` if the model takes longer texts.")
    if any(_folds(backbone, prompt) for _, prompt, _ in bad):
        advice.append(f"{setting('system', 'fold')} puts system texts before the user's turn that follows.")
    kind = TextTooLongError if set(kinds) == {TextTooLongError.kind} else TextError
    count = sum(kinds.values())
    if not rest:
        way_out = f"No {'pair' if of.endswith('pairs') else 'response'} is left to use."
    else:
        way_out = f"Correct them, or leave them out and have them counted with {setting('bad_rows', 'skip')}."
    return kind(
        f"{count:,} of {of} cannot be read by the reward model ({count_kinds(kinds)}). "
        f"{'The first:' if count > len(first) else 'They are:'}{listed}\n{way_out}",
        " ".join(advice),
    )


def _folds(backbone: Backbone, prompt: Sequence[Message]) -> bool:
    """Whether a prompt is refused for its system turn alone."""
    rule, tokenizer = backbone.text_rule, getattr(backbone, "tokenizer", None)
    if tokenizer is None or not any(message["role"] in ("system", "developer") for message in prompt):
        return False
    try:
        tokenize(replace(rule, system="fold", truncation="drop"), tokenizer, prompt, "Yes")
    except TextError:
        return False
    return True


def _same_sides(backbone: Backbone, texts: TokenizedTexts, sides: np.ndarray, rows: Sequence[Preference]) -> int:
    """How many pairs have two sides of equal token ids; FeaturesError if they are most."""
    lengths = texts.lengths
    same = [
        row for row, (a, b) in enumerate(sides.tolist()) if lengths[a] == lengths[b] and texts.item(a) == texts.item(b)
    ]
    if 2 * len(same) > len(rows):
        pair = rows[same[0]]
        chosen, rejected = (" ".join(message_words(side).split()) for side in (pair.chosen, pair.rejected))
        start = max(0, len(os.path.commonprefix([chosen, rejected])) - 10)
        raise FeaturesError(
            f"{len(same):,} of {len(rows):,} pairs are the same text to this reward model: its chat template leaves "
            f"out what differs. In {pair.row}, chosen has {chosen[start : start + 40]!r} where rejected has "
            f"{rejected[start : start + 40]!r}, and both become the same {lengths[sides[same[0]][0]]} tokens. Give a "
            "chat template that writes it (`template`), or data that differs in what the reward model reads."
        )
    return len(same)


def _repeated_prompts(rows: Sequence[Preference]) -> int:
    """How many pairs repeat the last turn of the prompt at the start of both replies."""
    count = 0
    for pair in rows:
        asked = pair.prompt[-1]["content"]
        replies = [side for side in (pair.chosen, pair.rejected) if isinstance(side, str)]
        count += len(replies) == 2 and all(repeats(asked, reply) for reply in replies)
    return count


def _read(
    backbone: Backbone, texts: TokenizedTexts, start: int, stop: int, advance: Callable[[int], None]
) -> tuple[Tensor, Tensor]:
    """Embedding [m, d] and reward [m] of items start..stop; which texts share a batch depends on these items only."""
    embedding = torch.empty(stop - start, backbone.embedding_size)
    reward = torch.empty(stop - start)
    lengths = texts.lengths[start:stop]
    queue = np.argsort(-lengths, kind="stable")
    while len(queue):
        # The longest first, so that too little memory shows itself at once, and as many whole batches as fit.
        batch = max(1, backbone.token_budget // int(lengths[queue[0]]))
        rows, queue = queue[: batch * _BATCHES_A_READ], queue[batch * _BATCHES_A_READ :]
        items = (start + rows).tolist()
        token_ids = [texts.item(item) for item in items]
        try:
            reading = backbone.read(token_ids, on_error="nan") if texts.tolerant else backbone.read(token_ids)
        except BackboneError:
            _name_culprit(backbone, texts, items, token_ids)
            raise
        index = torch.from_numpy(rows)
        embedding[index], reward[index] = reading.embedding, reading.reward
        if texts.tolerant:
            embedding[index[reading.reward.isnan()]] = 0  # known by its reward; whoever reads all rows may add them up
        advance(int(lengths[rows].sum()))
    return embedding, reward


def _name_culprit(backbone: Backbone, texts: TokenizedTexts, items: list[int], token_ids: list[list[int]]) -> None:
    """Raise for the first text that cannot be read, by its place in the data; return if each alone can be."""
    first: tuple[int, BackboneError] | None = None
    count = 0
    for item, ids in zip(items, token_ids, strict=True):
        try:
            backbone.read([ids])
        except BackboneError as error:
            first = first or (item, error)
            count += 1
            if _NOT_FINITE not in str(error):
                break
    if first is None:
        return
    item, why = first
    more = ""
    if _NOT_FINITE in str(why):
        so = f"So it is with {count:,} of the {len(items):,} texts that were read together. " if count > 1 else ""
        more = f" {so}Pairs with such texts can be left out, and are counted, with {setting('bad_rows', 'skip')}."
    raise BackboneError(f"{texts.where[item]}: {why}{more}") from why


def _measure_drift(backbone: Backbone, texts: TokenizedTexts) -> float:
    """How much a reward depends on the other texts of its batch, over up to 16 items from shortest to longest."""
    order = np.argsort(texts.lengths, kind="stable")
    spread = np.unique(np.linspace(0, len(order) - 1, _DRIFT_ITEMS).round().astype(np.int64))
    return backbone.batch_drift([texts.item(int(number)) for number in order[spread]])
