"""Extraction of features: token ids of every different text, and one forward over each, into a features folder."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ebrm.data import Message, Preferences, Reply, reply_key
from ebrm.errors import BackboneError, FeaturesError, TextError, TextTooLongError, setting
from ebrm.features import manifest as manifests
from ebrm.features.config import FeatureConfig
from ebrm.features.distributed import World
from ebrm.features.store import Features
from ebrm.features.writer import ItemReader, Plan, write_features
from ebrm.pairs import PreferencePairs
from ebrm.utils.files import sha256_json

if TYPE_CHECKING:
    from ebrm.backbone import Backbone

#: Writes shards of texts in other processes: texts, then the arguments of a `Writer`.
Engine = Callable[["TokenizedTexts", Path, dict[str, Any], Sequence[int], Callable[[int], None]], dict[str, Any]]

_DRIFT_ITEMS = 16
_BATCHES_A_READ = 8  # texts handed to the reward model at once, in batches; progress moves after each hand-over


class Text(NamedTuple):
    """A prompt with a response, the prompt's id, and their place in the data ("train.jsonl:12, chosen")."""

    prompt_id: str
    prompt: tuple[Message, ...]
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
    """

    ids: np.ndarray
    ends: np.ndarray
    truncated: np.ndarray
    prompt_id: list[str]
    text_id: list[str]
    where: list[str]

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
        about = ([column[number] for number in used] for column in (self.prompt_id, self.text_id, self.where))
        ends = np.concatenate([[0], np.cumsum(lengths[keep])])
        return TokenizedTexts(self.ids[np.repeat(keep, lengths)], ends, self.truncated[used], *about)


def text_id(prompt_id: str, response: Reply) -> str:
    """Key of a response to a prompt: 16 hexadecimal digits of a SHA-256."""
    return hashlib.sha256(f"{prompt_id}\n{reply_key(response)}".encode("utf-8", "surrogatepass")).hexdigest()[:16]


def extract_features(
    backbone: Backbone, preferences: Preferences, out: str | Path, config: FeatureConfig | None = None,
    rm_training: Sequence[bool] | np.ndarray | None = None, engine: Engine | None = None,
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

    Raises:
        TextError: A text that is too long under truncation="error"; nothing has been written then.
        FeaturesError: A folder with something else, damage, numbers that are not finite, a full disk, or no pair left.
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
    data = {"fingerprint": preferences.fingerprint, "rm_training": None if seen is None else sha256_json(seen)}
    report = {key: value for key, value in preferences.report.to_dict().items() if key != "examples"}
    manifest = _manifest(backbone, data, config, preferences=report)

    def plan() -> Plan:
        texts, pairs, refused = tokenize_preferences(backbone, preferences, world, seen)
        dropped = len(preferences) - len(pairs)
        if len(pairs) == 0:
            raise FeaturesError(
                f"No pair is left: all {dropped} have a side longer than max_length "
                f"({backbone.text_rule.max_length} tokens). Raise `max_length`, or cut prompts with "
                f"{setting('truncation', 'prompt_left')}."
            )
        more = {"dropped": dropped, "dropped_texts": refused}
        return _plan(backbone, texts, pairs, manifest | more, engine)

    return write_features(Path(out), manifest, plan, world, config is not None and config.restart)


def extract_texts(
    backbone: Backbone, texts: Sequence[Text], out: str | Path, config: FeatureConfig | None = None
) -> Features:
    """Embedding and reward of every different text, in the folder `out`; features without pairs.

    As :func:`extract_features`, but a text that the text rule refuses (too long, turns the chat template does not
    take) stops nothing: the manifest has the reason of each under `refused`, by text id.

    Raises:
        FeaturesError, BackboneError: As `extract_features`, but for the pairs.
    """
    world = World()
    manifest = _manifest(backbone, {"fingerprint": sha256_json([text.id for text in texts])}, config)

    def plan() -> Plan:
        made, _, refused = tokenize_texts(backbone, texts, len(texts), world, tolerant=True)
        more = {"dropped_texts": len(refused), "refused": refused}
        return _plan(backbone, made, PreferencePairs.of([], []), manifest | more)

    return write_features(Path(out), manifest, plan, world, config is not None and config.restart)


def _manifest(backbone: Backbone, data: dict[str, Any], config: FeatureConfig | None, **more: Any) -> dict[str, Any]:
    config = config or FeatureConfig()
    return manifests.describe(
        origin="extracted", backbone=backbone.identity.to_dict(), text=backbone.text_rule.identity(), data=data,
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
    )


def tokenize_texts(
    backbone: Backbone, texts: Iterable[Text], count: int, world: World, tolerant: bool = False
) -> tuple[TokenizedTexts, list[int | None], dict[str, str]]:
    """The different texts, the number of each given one among them (None if refused), and reasons by text id."""
    found: dict[tuple[str, str], int | None] = {}
    ids, ends, truncated = array("i"), [0], []
    about: tuple[list[str], list[str], list[str]] = ([], [], [])
    numbers: list[int | None] = []
    refused: dict[str, str] = {}
    with world.progress("tokenizing", count, "texts") as advance:
        for text in texts:
            key = (text.prompt_id, reply_key(text.response))
            if key not in found:
                tokens, reason = None, f"longer than the {backbone.text_rule.max_length} tokens that the RM reads"
                try:
                    tokens = backbone.tokenize(text.prompt, text.response, text.where)
                except TextError as error:
                    if not tolerant:
                        raise
                    if not isinstance(error, TextTooLongError):
                        reason = str(error).removeprefix(f"{text.where}: ")
                if tokens is None:
                    refused[text.id] = reason
                found[key] = None if tokens is None else len(about[0])
                if tokens is not None:
                    ids.extend(tokens.ids)
                    ends.append(len(ids))
                    truncated.append(tokens.truncated)
                    for column, value in zip(about, (text.prompt_id, text.id, text.where), strict=True):
                        column.append(value)
            numbers.append(found[key])
            advance(1)
    cut = np.array(truncated, dtype=np.int32)
    made = TokenizedTexts(np.array(ids, dtype=np.int32), np.array(ends, dtype=np.int64), cut, *about)
    return made, numbers, refused


def tokenize_preferences(
    backbone: Backbone, preferences: Preferences, world: World, rm_training: Sequence[bool] | None = None
) -> tuple[TokenizedTexts, PreferencePairs, int]:
    """Every different text that is in a pair with both sides, those pairs, and how many texts were too long."""
    both = (
        Text(prompt_id, pair.prompt, response, f"{pair.row}, {side}")
        for pair in preferences
        for prompt_id in (pair.prompt_id,)
        for side, response in (("chosen", pair.chosen), ("rejected", pair.rejected))
    )
    texts, numbers, refused = tokenize_texts(backbone, both, 2 * len(preferences), world)
    sides = list(zip(numbers[::2], numbers[1::2], strict=True))
    kept = [row for row, pair in enumerate(sides) if None not in pair]
    # A text whose only partner was dropped is in no pair, and is not read. `unique` sorts; numbers follow appearance.
    used, renumbered = np.unique(np.array([sides[row] for row in kept], dtype=np.int64), return_inverse=True)
    renumbered = renumbered.reshape(-1, 2)
    texts = texts.take(used)
    rows = [preferences[row] for row in kept]
    columns = ("source", "category", "strength", "split")
    known: dict[str, Any] = {name: [getattr(pair, name) for pair in rows] for name in columns}
    pairs = PreferencePairs.of(
        *renumbered.T, prompt_id=[texts.prompt_id[number] for number in renumbered[:, 0]], **known,
        where=[pair.row for pair in rows],
        rm_training=None if rm_training is None else [rm_training[row] for row in kept],
    )  # fmt: skip
    return texts, pairs, len(refused)


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
            reading = backbone.read(token_ids)
        except BackboneError:
            _name_culprit(backbone, texts, items, token_ids)
            raise
        index = torch.from_numpy(rows)
        embedding[index], reward[index] = reading.embedding, reading.reward
        advance(int(lengths[rows].sum()))
    return embedding, reward


def _name_culprit(backbone: Backbone, texts: TokenizedTexts, items: list[int], token_ids: list[list[int]]) -> None:
    """Raise for the one text that cannot be read, by its place in the data; return if each alone can be."""
    for item, ids in zip(items, token_ids, strict=True):
        try:
            backbone.read([ids])
        except BackboneError as error:
            raise BackboneError(f"{texts.where[item]}: {error}") from error


def _measure_drift(backbone: Backbone, texts: TokenizedTexts) -> float:
    """How much a reward depends on the other texts of its batch, over up to 16 items from shortest to longest."""
    order = np.argsort(texts.lengths, kind="stable")
    spread = np.unique(np.linspace(0, len(order) - 1, _DRIFT_ITEMS).round().astype(np.int64))
    return backbone.batch_drift([texts.item(int(number)) for number in order[spread]])
