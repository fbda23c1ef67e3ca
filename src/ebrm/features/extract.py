"""Read the reward model over all texts of a set of preferences, once, into a features folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ebrm.data import Preferences
from ebrm.errors import BackboneError, FeaturesError
from ebrm.features import manifest as manifests
from ebrm.features.config import FeatureConfig
from ebrm.features.distributed import Ranks
from ebrm.features.lock import claim, missing_files
from ebrm.features.store import Features, Pairs, open_features
from ebrm.features.tokens import Text, Texts, tokenize_texts
from ebrm.features.writer import Plan, Source, write_folder
from ebrm.utils.files import sha256_json

if TYPE_CHECKING:
    from ebrm.backbone import Backbone

#: Makes shards of texts in other processes: texts, then what a `Writer` is given.
Engine = Callable[[Texts, Path, dict[str, Any], Sequence[int], Callable[[int], None]], dict[str, Any]]

_DRIFT_ITEMS = 16
_BATCHES_A_READ = 8  # texts handed to the reward model at once, in batches; progress moves after each hand-over


def extract_features(
    backbone: Backbone,
    preferences: Preferences,
    out: str | Path,
    settings: FeatureConfig | None = None,
    rm_training: Sequence[bool] | np.ndarray | None = None,
    engine: Engine | None = None,
) -> Features:
    """Read embedding and reward of every different (prompt, response) of `preferences` into the folder `out`.

    All texts are tokenized before the first forward, so a text that is too long stops the run at its beginning. A
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
        engine: Reads the texts in other processes (see `ebrm.features.ray`), with the same result; `backbone` then
            only tokenizes.

    Raises:
        TextError: A text that is too long under truncation="error"; nothing has been written then.
        FeaturesError: A folder that holds something else (both sides are named), damaged files, a number that is not
            finite or does not fit the number type, a full disk, or no pair left.
        BackboneError: The reward model cannot be read.
    """
    settings, out, ranks = settings or FeatureConfig(), Path(out), Ranks()
    if len(preferences) == 0:
        raise FeaturesError("There are no preference pairs to read: the data has no rows that can be used.")
    if rm_training is not None and len(rm_training) != len(preferences):
        raise FeaturesError(
            f"rm_training has {len(rm_training)} entries for {len(preferences)} pairs; expected one for each pair."
        )
    if engine is not None and ranks.count > 1:
        raise FeaturesError(
            f"{ranks.count} processes were launched (WORLD_SIZE), and an engine shares the work out by itself. Run it "
            "without `accelerate launch`."
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
        texts, pairs, refused = tokenize_preferences(backbone, preferences, ranks, seen)
        dropped = len(preferences) - len(pairs)
        if len(pairs) == 0:
            raise FeaturesError(
                f"No pair is left: all {dropped} have a side longer than max_length "
                f"({backbone.text_rule.max_length} tokens). Raise max_length, or cut prompts with "
                "truncation=prompt_left."
            )
        manifest |= {"dropped": dropped, "dropped_texts": refused}
        return write_folder(out, _plan(backbone, texts, pairs, manifest, engine), found, ranks)


def extract_texts(
    backbone: Backbone, texts: Sequence[Text], out: str | Path, settings: FeatureConfig | None = None
) -> Features:
    """Read embedding and reward of every different text into the folder `out`; features without pairs.

    As :func:`extract_features`, but a text that the text rule refuses (too long, turns the chat template does not
    take) stops nothing: the manifest has the reason of each under `refused`, by text id.

    Args:
        backbone: The frozen reward model.
        texts: Prompts with a response each; repeats are read once.
        out: The folder.
        settings: Number type and shard size.

    Raises:
        FeaturesError: As `extract_features`, but for the pairs.
        BackboneError: The reward model cannot be read.
    """
    settings, out, ranks = settings or FeatureConfig(), Path(out), Ranks()
    manifest = manifests.describe(
        origin="extracted",
        backbone=backbone.identity.to_dict(),
        text=backbone.text_rule.identity(),
        data={"fingerprint": sha256_json([text.id for text in texts])},
        embedding_dtype=settings.embedding_dtype,
        embedding_size=backbone.embedding_size,
        shard_rows=settings.shard_rows,
        items=0,
        pairs=0,
    )
    with claim(out, manifests.identity(manifest), ranks) as found:
        if found is not None and found["complete"] and not missing_files(out, found):
            return open_features(out, verify=False)  # verified while it was claimed
        made, _, refused = tokenize_texts(backbone, texts, len(texts), ranks, tolerant=True)
        manifest |= {"dropped_texts": len(refused), "refused": refused}
        return write_folder(out, _plan(backbone, made, Pairs.build([], []), manifest), found, ranks)


def _plan(
    backbone: Backbone, texts: Texts, pairs: Pairs, manifest: dict[str, Any], engine: Engine | None = None
) -> Plan:
    """What is to be written of texts and their pairs."""
    known = {
        "items": len(texts),
        "pairs": len(pairs),
        "tokens": len(texts.ids),
        "truncated": int((texts.truncated > 0).sum()),
        "content": texts.fingerprint(),
    }
    return Plan(
        manifest | known,
        items={
            "prompt_id": texts.prompt_id,
            "tokens": texts.lengths,
            "truncated": texts.truncated,
            "text_id": texts.text_id,
        },
        pairs=pairs,
        source=text_source(backbone, texts),
        amounts=texts.lengths,
        unit="tokens",
        writer=None if engine is None or not len(texts) else partial(engine, texts),
    )


def text_source(backbone: Backbone, texts: Texts) -> Source:
    """Embeddings and rewards as the reward model reads them from texts."""
    return Source(
        read=lambda start, stop, advance: _read(backbone, texts, start, stop, advance),
        where=lambda item: texts.where[item],
        measure=lambda: {"batch_drift": _measure_drift(backbone, texts) if len(texts) else None},
    )


def tokenize_preferences(
    backbone: Backbone, preferences: Preferences, ranks: Ranks, rm_training: Sequence[bool] | None = None
) -> tuple[Texts, Pairs, int]:
    """Every different text that is in a pair with both sides, those pairs, and how many texts were too long.

    Raises:
        TextError: A text that is too long under truncation="error", naming its row.
    """
    both = (
        Text(prompt_id, pair.prompt, response, f"{pair.row}, {side}")
        for pair in preferences
        for prompt_id in (pair.prompt_id,)
        for side, response in (("chosen", pair.chosen), ("rejected", pair.rejected))
    )
    texts, numbers, refused = tokenize_texts(backbone, both, 2 * len(preferences), ranks)
    sides = list(zip(numbers[::2], numbers[1::2], strict=True))
    kept = [row for row, pair in enumerate(sides) if None not in pair]
    # A text whose only partner was dropped is in no pair, and is not read. `unique` sorts; numbers follow appearance.
    used, renumbered = np.unique(np.array([sides[row] for row in kept], dtype=np.int64), return_inverse=True)
    renumbered = renumbered.reshape(-1, 2)
    texts = texts.take(used)
    rows = [preferences[row] for row in kept]
    pairs = Pairs.build(
        renumbered[:, 0],
        renumbered[:, 1],
        [texts.prompt_id[number] for number in renumbered[:, 0]],
        source=[pair.source for pair in rows],
        category=[pair.category for pair in rows],
        strength=[pair.strength for pair in rows],
        split=[pair.split for pair in rows],
        where=[pair.row for pair in rows],
        rm_training=None if rm_training is None else [rm_training[row] for row in kept],
    )
    return texts, pairs, len(refused)


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
