"""The main job in order: preferences → features → splits → density → model."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ebrm.backbone import BackboneConfig
from ebrm.curate import ConflictReport, filter_conflicts
from ebrm.data import PreferenceConfig, Preferences, TextConfig, load_preferences, split_by_prompt
from ebrm.errors import DataError, ModelError
from ebrm.features import FeatureConfig, Features, ShardedEmbeddings, extract_features, open_features
from ebrm.heads import (
    Epoch,
    FitConfig,
    HeadConfig,
    InferenceConfig,
    NetworkConfig,
    PairRows,
    RewardPosterior,
    fit_density,
    fit_head,
    labels_by_source,
)
from ebrm.model import EnergyRewardModel, ModelRecord
from ebrm.pairs import PreferencePairs

if TYPE_CHECKING:
    from ebrm.backbone import Backbone

logger = logging.getLogger(__name__)

#: Names that data sets give to their held-out parts.
_SPLIT_NAMES = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "dev": "validation",
    "test": "test",
}


@dataclass(frozen=True)
class Splits:
    """Rows of the pair table (ascending int64 indices) in each prompt-disjoint part, and how they were chosen."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    how: str


@dataclass(frozen=True)
class Fitted:
    """A fitted model with what it was fitted on, for the report.

    Attributes:
        model: the energy reward model.
        features: embeddings and rewards of every pair.
        splits: which pairs were used for what; the test pairs were used for nothing.
        conflicts: the filter's report on the training pairs, also where the filter is off.
        history: one entry an epoch; empty for a head.
        preferences: the texts, where there are any.
        seconds: wall time of the stages.
    """

    model: EnergyRewardModel
    features: Features
    splits: Splits
    conflicts: ConflictReport
    history: tuple[Epoch, ...]
    preferences: Preferences | None = None
    seconds: dict[str, float] = field(default_factory=dict)


def fit(
    backbone: str | Backbone | None = None,
    preferences: Any = None,
    *,
    features: Features | str | Path | None = None,
    work: str | Path | None = None,
    backbone_settings: BackboneConfig | None = None,
    data: PreferenceConfig = PreferenceConfig(),  # noqa: B008 - frozen
    text: TextConfig = TextConfig(),  # noqa: B008 - frozen
    feature_settings: FeatureConfig = FeatureConfig(),  # noqa: B008 - frozen
    network: NetworkConfig = NetworkConfig(),  # noqa: B008 - frozen
    training: FitConfig = FitConfig(),  # noqa: B008 - frozen
    inference: InferenceConfig = InferenceConfig(),  # noqa: B008 - frozen
    head: HeadConfig | None = None,
    device: str = "auto",
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Fitted:
    """Refine a frozen reward model with preference pairs (EBRM, arXiv 2504.13134).

    Args:
        backbone: name or folder of a reward model, "demo", or one already loaded. Not needed with `features`.
        preferences: a source that :func:`ebrm.load_preferences` reads, or its result. Not needed with `features`.
        features: features read before (`ebrm features`, :func:`ebrm.import_features`), instead of the two above.
        work: folder for features and checkpoint, so that a stopped run goes on; a temporary one if not given.
        backbone_settings, data, text, feature_settings: how to load, read, tokenize and store.
        network, training, inference: the energy, its training and how rewards are read off it.
        head: another head than the energy on the same embeddings (:mod:`ebrm.energy.heads`), fitted on the CPU; a
            pair's source is its user or objective, where the kind has such. Of `training`, only what says how pairs
            are divided and filtered then counts.
        device: where to fit: "auto" (a GPU if there is one), "cpu", "cuda", …
        on_epoch: called after every epoch of the energy.

    Raises:
        EBRMError: anything about the inputs that the user can mend.
    """
    if (features is None) == (backbone is None or preferences is None):
        raise DataError("Give either a backbone and preferences, or features; this call has both or neither.")
    with tempfile.TemporaryDirectory(prefix="ebrm-") as scratch:
        folder = Path(work) if work is not None else Path(scratch)
        seconds: dict[str, float] = {}
        loaded: Backbone | None = None
        prefs: Preferences | None = None
        if features is None:
            from ebrm.backbone import Backbone, load_backbone  # not before: features need no transformers

            assert backbone is not None
            prefs = preferences if isinstance(preferences, Preferences) else load_preferences(preferences, data)
            if isinstance(backbone, Backbone):
                loaded = backbone
            else:
                settings = backbone_settings or BackboneConfig(backbone=backbone)
                loaded = load_backbone(replace(settings, backbone=backbone), text)
            started = time.monotonic()
            read = extract_features(loaded, prefs, folder / "features", feature_settings)
            seconds["features"] = time.monotonic() - started
            _say_what_was_too_long(read, loaded)
            if work is None:
                everything = ShardedEmbeddings([read.embedding(slice(None))], read.embedding_size)
                read = replace(read, path=None, embeddings=everything)
        else:
            read = features if isinstance(features, Features) else open_features(features)
        return _fit_features(
            read, network, training, inference, head, device,
            checkpoint=folder / "checkpoint.safetensors", on_epoch=on_epoch, backbone=loaded, preferences=prefs,
            seconds=seconds,
        )  # fmt: skip


def _fit_features(
    features: Features,
    network: NetworkConfig,
    training: FitConfig,
    inference: InferenceConfig,
    head: HeadConfig | None,
    device: str,
    *,
    checkpoint: Path,
    on_epoch: Callable[[Epoch], None] | None,
    backbone: Backbone | None,
    preferences: Preferences | None,
    seconds: dict[str, float],
) -> Fitted:
    pairs = features.pairs
    splits = choose_splits(pairs, training)
    logger.info(
        "Pairs: %d to train on, %d to choose the epoch, %d to measure (%s).",
        len(splits.train), len(splits.validation), len(splits.test), splits.how,
    )  # fmt: skip
    started = time.monotonic()
    train = pairs.select(splits.train)
    reward = features.reward
    kept, conflicts = filter_conflicts(train, reward)
    logger.info(conflicts.summary(training.filter_conflicts))
    if training.filter_conflicts:
        train = kept
    seconds["filter"] = time.monotonic() - started
    if len(train) == 0:
        raise ModelError(
            f"Nothing is left to fit on: of {len(conflicts.keep)} training pairs the conflict filter kept none "
            f"({conflicts.overall.dropped} contradict the base RM, {conflicts.overall.tied} are ties). Check that "
            "chosen and rejected are not swapped and that the reward model is the right one; without "
            "--filter-conflicts all pairs are fitted on."
        )
    started = time.monotonic()
    held = pairs.select(splits.validation)
    density: RewardPosterior
    history: tuple[Epoch, ...] = ()
    best_epoch = 0
    if head is not None:
        validation, labels = labels_by_source(head.kind, train.source, pair_rows(held), held.source)
        density = fit_head(head.kind, features.embeddings, reward, pair_rows(train), validation, head, labels=labels)
    else:
        fitted = fit_density(
            features.embeddings, reward, pair_rows(train), pair_rows(held),
            network=network, training=training, inference=inference, device=_device(device),
            checkpoint=checkpoint, on_epoch=on_epoch,
        )  # fmt: skip
        density, history, best_epoch = fitted.density, fitted.history, fitted.best_epoch
    seconds["fit"] = time.monotonic() - started
    record = ModelRecord(
        network=network,
        training=training,
        inference=inference,
        head=head,
        backbone=features.manifest["backbone"] or {},
        text_rule=features.manifest["text"],
        data={
            "origin": preferences.report.origin if preferences is not None else _origin(features),
            "fingerprint": (features.manifest["data"] or {}).get("fingerprint"),
            "pairs": len(pairs),
            "pairs_dropped_as_too_long": features.manifest.get("dropped") or 0,
            "texts_with_prompt_cut": features.manifest.get("truncated") or 0,
            "train": len(splits.train),
            "validation": len(splits.validation),
            "test": len(splits.test),
            "split": splits.how,
            "sources": _counts(pairs.source),
        },
        filter=conflicts.to_dict() | {"used": training.filter_conflicts},
        history=tuple(epoch.to_dict() for epoch in history),
        best_epoch=best_epoch,
    )
    model = EnergyRewardModel(density, record, backbone)
    return Fitted(model, features, splits, conflicts, history, preferences, seconds)


def choose_splits(pairs: PreferencePairs, training: FitConfig) -> Splits:
    """Divide pairs into train / validation / test, never with a prompt in two of them.

    Where the data's `split` column names at least two of train, validation and test, it is followed: pairs whose
    prompt also stands in a held-out part are left out of the part that would learn from it, and a missing part is cut
    from the training prompts. Otherwise all three are cut by a hash of the prompt, with the settings' fractions.

    Raises:
        DataError: no training pairs are left.
    """
    named = np.array([_SPLIT_NAMES.get(str(name).lower(), "") for name in pairs.split], dtype=object)
    present = {name for name in named if name}
    wanted = {"validation": training.validation_fraction, "test": training.test_fraction}
    if len(present) >= 2 and "train" in present:
        rest = np.flatnonzero((named == "train") | (named == ""))
        parts = {name: np.flatnonzero(named == name) for name in wanted if name in present}
        how = "the data's own splits"
    else:
        rest, parts, how = np.arange(len(pairs)), {}, f"by prompt, seed {training.seed}"
    missing = {name: share for name, share in wanted.items() if name not in parts}
    cut = split_by_prompt(pairs.prompt_id[rest].tolist(), missing | {"train": 1 - sum(missing.values())}, training.seed)
    for name in missing:
        parts[name] = rest[cut[name]]
    if missing and len(parts) > len(missing):
        how += f", {' and '.join(missing)} cut by prompt"
    train, held = rest[cut["train"]], set(pairs.prompt_id[parts["test"]].tolist())
    validation = parts["validation"][[p not in held for p in pairs.prompt_id[parts["validation"]]]]
    held |= set(pairs.prompt_id[validation].tolist())
    clean = train[[p not in held for p in pairs.prompt_id[train]]]
    if len(clean) < len(train):
        how += f"; {len(train) - len(clean)} training pairs left out because a held-out part has their prompt"
    if len(clean) == 0:
        raise DataError(
            f"Of {len(pairs)} pairs with {len(set(pairs.prompt_id.tolist()))} different prompts, none is left to train "
            "on after holding out prompts to choose the epoch and to measure the result. Give more pairs."
        )
    return Splits(np.sort(clean), np.sort(validation), np.sort(parts["test"]), how)


def _origin(features: Features) -> str:
    """What to call the data of features whose texts are not at hand: the end of their folder's path."""
    return "/".join(features.path.absolute().parts[-2:]) if features.path is not None else "features in memory"


def _say_what_was_too_long(features: Features, backbone: Backbone) -> None:
    """Log how many pairs the text rule dropped and how many prompts it cut, where it did."""
    limit = backbone.text_rule.max_length
    if features.manifest.get("dropped"):
        logger.warning(
            "%d pairs are left out because a text has more than %d tokens.", features.manifest["dropped"], limit
        )
    if features.manifest.get("truncated"):
        logger.warning("%d texts had their prompt's beginning cut to %d tokens.", features.manifest["truncated"], limit)


def pair_rows(pairs: PreferencePairs) -> PairRows:
    """The pairs as rows of the features' items."""
    return PairRows(pairs.chosen, pairs.rejected)


def _counts(names: Sequence[str | None] | np.ndarray) -> dict[str, int]:
    values, counts = np.unique([str(name or "-") for name in names], return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _device(device: str) -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else torch.device(device)
