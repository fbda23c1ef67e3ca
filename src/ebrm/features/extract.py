"""Read the reward model over all texts of a set of preferences, once, into a features folder."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ebrm.errors import BackboneError, FeaturesError
from ebrm.features import manifest as manifests
from ebrm.features.claim import claim, missing_files
from ebrm.features.ranks import Ranks
from ebrm.features.settings import FeatureSettings
from ebrm.features.store import Features, Pairs, open_features
from ebrm.features.write import Plan, write_folder
from ebrm.files import sha256_json
from ebrm.preferences.schema import Preferences

if TYPE_CHECKING:
    from ebrm.backbone.read import Backbone

_DRIFT_ITEMS = 16
_BATCHES_A_READ = 8  # texts handed to the reward model at once, in batches; progress moves after each hand-over


@dataclass(frozen=True)
class Texts:
    """The token ids of every item, and the pairs over them.

    Attributes:
        ids: int32, the token ids of all items, one after the other.
        ends: int64 [n + 1], where each item begins, then the length of `ids`.
        truncated: int32 [n], tokens cut from the prompt.
        prompt_id: The prompt of each item.
        where: Each item's first place in the data and its side there ("train.jsonl:12, chosen").
        pairs: The pairs whose both sides have token ids.
        dropped_pairs: Pairs left out because a side was too long.
        dropped_texts: Different texts that were too long.
    """

    ids: np.ndarray
    ends: np.ndarray
    truncated: np.ndarray
    prompt_id: list[str]
    where: list[str]
    pairs: Pairs
    dropped_pairs: int
    dropped_texts: int

    def item(self, number: int) -> list[int]:
        """Token ids of one item."""
        return self.ids[self.ends[number] : self.ends[number + 1]].tolist()

    def fingerprint(self) -> str:
        """SHA-256 of all token ids and where each item ends."""
        digest = hashlib.sha256(self.ids.astype("<i4").tobytes())
        digest.update(self.ends.astype("<i8").tobytes())
        return digest.hexdigest()

    @property
    def lengths(self) -> np.ndarray:
        """int64 [n], tokens of each item."""
        return np.diff(self.ends)


def extract_features(
    backbone: Backbone,
    preferences: Preferences,
    out: str | Path,
    settings: FeatureSettings | None = None,
    rm_training: Sequence[bool] | np.ndarray | None = None,
) -> Features:
    """Read embedding and reward of every different (prompt, response) of `preferences` into the folder `out`.

    All texts are tokenised before the first forward, so a text that is too long stops the run at its beginning. A
    folder that was left unfinished is continued, however it was stopped: finished shards are kept, and the result is
    byte for byte that of an unbroken run (with the same device, libraries and token budget, and enough memory). A
    finished folder of the same reward model, text rule, data and settings is returned without a forward. Under
    `accelerate launch` all processes must call this; they share the shards.

    Args:
        backbone: The frozen reward model.
        preferences: The pairs.
        out: The folder.
        settings: Number type and shard size.
        rm_training: Whether the reward model was trained on each pair, bool [len(preferences)], if known.

    Raises:
        TextError: A text that is too long under truncation="error"; nothing has been written then.
        FeaturesError: A folder that holds something else (both sides are named), damaged files, a number that is not
            finite or does not fit the number type, a full disk, or no pair left.
        BackboneError: The reward model cannot be read.
    """
    settings, out, ranks = settings or FeatureSettings(), Path(out), Ranks()
    if len(preferences) == 0:
        raise FeaturesError("There are no preference pairs to read: the data has no rows that can be used.")
    if rm_training is not None and len(rm_training) != len(preferences):
        raise FeaturesError(
            f"rm_training has {len(rm_training)} entries for {len(preferences)} pairs; expected one for each pair."
        )
    seen = None if rm_training is None else [bool(value) for value in rm_training]
    manifest = manifests.describe(
        origin="extracted",
        backbone=backbone.identity.to_dict(),
        text=backbone.text_rule.identity(),
        data={
            "fingerprint": preferences.fingerprint,
            "rm_training": None if seen is None else sha256_json(seen),
        },
        embedding_dtype=settings.embedding_dtype,
        embedding_size=backbone.embedding_size,
        shard_rows=settings.shard_rows,
        items=0,
        pairs=0,
        preferences={key: value for key, value in preferences.report.to_dict().items() if key != "examples"},
    )
    with claim(out, manifests.identity(manifest), ranks) as found:
        if found is not None and found["complete"] and not missing_files(out, found):
            return open_features(out, verify=False)  # verified while it was claimed
        texts = tokenize_preferences(backbone, preferences, ranks, seen)
        if len(texts.pairs) == 0:
            raise FeaturesError(
                f"No pair is left: all {texts.dropped_pairs} have a side longer than max_length "
                f"({backbone.text_rule.max_length} tokens). Raise max_length, or cut prompts with "
                "truncation=prompt_left."
            )
        manifest |= {
            "items": len(texts.where),
            "pairs": len(texts.pairs),
            "tokens": len(texts.ids),
            "truncated": int((texts.truncated > 0).sum()),
            "dropped": texts.dropped_pairs,
            "dropped_texts": texts.dropped_texts,
            "content": texts.fingerprint(),
        }
        plan = Plan(
            manifest,
            items={"prompt_id": texts.prompt_id, "tokens": texts.lengths, "truncated": texts.truncated},
            pairs=texts.pairs,
            read=lambda start, stop, advance: _read(backbone, texts, start, stop, advance),
            where=lambda item: texts.where[item],
            amounts=texts.lengths,
            unit="tokens",
            finish=lambda: {"batch_drift": _measure_drift(backbone, texts)},
        )
        return write_folder(out, plan, found, ranks)


def tokenize_preferences(
    backbone: Backbone, preferences: Preferences, ranks: Ranks, rm_training: Sequence[bool] | None = None
) -> Texts:
    """Token ids of every different (prompt, response) that is in a pair with both sides, in order of first appearance.

    Raises:
        TextError: A text that is too long under truncation="error", naming its row.
    """
    found: dict[tuple[str, str], int | None] = {}  # text -> its number among those read so far; None: too long
    ids, ends, truncated = array("i"), [0], []
    about: list[tuple[str, str]] = []  # prompt_id and where
    sides: list[tuple[int, int]] = []
    kept: list[int] = []
    with ranks.progress("tokenising", 2 * len(preferences), "texts") as advance:
        for row, pair in enumerate(preferences):
            prompt_id = pair.prompt_id
            numbers: list[int | None] = []
            for side, response in (("chosen", pair.chosen), ("rejected", pair.rejected)):
                key = (prompt_id, response)
                if key not in found:
                    where = f"{pair.row}, {side}"
                    text = backbone.tokenize(pair.prompt, response, where)
                    found[key] = None if text is None else len(about)
                    if text is not None:
                        ids.extend(text.ids)
                        ends.append(len(ids))
                        truncated.append(text.truncated)
                        about.append((prompt_id, where))
                numbers.append(found[key])
            chosen, rejected = numbers
            if chosen is not None and rejected is not None:
                sides.append((chosen, rejected))
                kept.append(row)
            advance(2)
    numbers_of = np.array(sides, dtype=np.int64).reshape(-1, 2)
    # A text whose only partner was dropped is in no pair, and is not read. `unique` sorts; numbers follow appearance.
    used, renumbered = np.unique(numbers_of, return_inverse=True)
    renumbered = renumbered.reshape(-1, 2)
    all_ids, all_ends = np.array(ids, dtype=np.int32), np.array(ends, dtype=np.int64)
    if len(used) < len(about):
        keep = np.zeros(len(about), dtype=bool)
        keep[used] = True
        lengths = np.diff(all_ends)
        all_ids = all_ids[np.repeat(keep, lengths)]
        all_ends = np.concatenate([[0], np.cumsum(lengths[keep])])
    rows = [preferences[row] for row in kept]
    pairs = Pairs.build(
        renumbered[:, 0],
        renumbered[:, 1],
        [about[chosen][0] for chosen, _ in sides],
        source=[pair.source for pair in rows],
        category=[pair.category for pair in rows],
        strength=[pair.strength for pair in rows],
        split=[pair.split for pair in rows],
        where=[pair.row for pair in rows],
        rm_training=None if rm_training is None else [rm_training[row] for row in kept],
    )
    return Texts(
        all_ids,
        all_ends,
        np.array(truncated, dtype=np.int32)[used],
        [about[number][0] for number in used],
        [about[number][1] for number in used],
        pairs,
        dropped_pairs=len(preferences) - len(kept),
        dropped_texts=sum(number is None for number in found.values()),
    )


def _read(
    backbone: Backbone, texts: Texts, start: int, stop: int, advance: Callable[[int], None]
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


def _name_culprit(backbone: Backbone, texts: Texts, items: list[int], token_ids: list[list[int]]) -> None:
    """Raise for the one text that cannot be read, by its place in the data; return if each alone can be."""
    for item, ids in zip(items, token_ids, strict=True):
        try:
            backbone.read([ids])
        except BackboneError as error:
            raise BackboneError(f"{texts.where[item]}: {error}") from error


def _measure_drift(backbone: Backbone, texts: Texts) -> float:
    """How much a reward depends on the other texts of its batch, over up to 16 items from shortest to longest."""
    order = np.argsort(texts.lengths, kind="stable")
    spread = np.unique(np.linspace(0, len(order) - 1, _DRIFT_ITEMS).round().astype(np.int64))
    return backbone.batch_drift([texts.item(int(number)) for number in order[spread]])
