"""Fitting: preferences → features → splits → head → model, measured on held-out pairs; with experiment trackers."""

from __future__ import annotations

import logging
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ebrm.anchors import AnchorSplit, open_anchors, read_anchors, split_anchors
from ebrm.backbone import BackboneConfig
from ebrm.backbone.provenance import provenance
from ebrm.curate import ConflictReport, filter_conflicts
from ebrm.data import (
    BadRows,
    PreferenceConfig,
    Preferences,
    Ratings,
    TextConfig,
    holds_thumbs,
    load_preferences,
    load_ratings,
    parts_of,
    split_by_prompt,
)
from ebrm.errors import ConfigError, DataError, ModelError, setting
from ebrm.features import (
    FeatureConfig,
    Features,
    ShardedEmbeddings,
    Text,
    extract_features,
    extract_ratings,
    open_features,
    read_items,
)
from ebrm.fitted_prompts import FittedPrompts
from ebrm.heads import (
    HEADS,
    Anchors,
    AttributesConfig,
    AutoConfig,
    BinaryConfig,
    Epoch,
    FitConfig,
    FittedHead,
    HeadConfig,
    ResidualConfig,
    ResidualHead,
    fit_head,
)
from ebrm.model import EnergyRewardModel, ModelRecord
from ebrm.pairs import PreferencePairs, swapped_sides
from ebrm.utils.extras import install_hint
from ebrm.utils.files import TIMING, write_json
from ebrm.utils.outliers import OUTLYING, outlying, outlying_embeddings

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

    from ebrm.backbone import Backbone
    from ebrm.evaluation import AnchorDrift, FitEvaluation, HeadChoice, LearningCurve, Memorization

logger = logging.getLogger(__name__)

TRACKERS = ("tensorboard", "wandb", "trackio")
#: A correction with less than this share of the base reward's standard deviation is said to be almost none.
LITTLE = 0.2


@dataclass(frozen=True)
class Splits:
    """Rows of the pair table (ascending int64 indices) in each prompt-disjoint part, and how they were chosen."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    how: str


@dataclass(frozen=True)
class FitResult:
    """A fitted model with what it was fitted on.

    Attributes:
        model: the reward model.
        features: embeddings and rewards of every item.
        pairs: the preference pairs over these, the likelier side chosen (a pair of label below 0.5 is turned around).
        splits: which pairs were used for what; the test pairs were used for nothing.
        conflicts: the filter's report on the training pairs, also where the filter is off.
        history: one entry an epoch; empty for a head other than the energy.
        preferences: the texts, where there are any.
        seconds: wall time of the stages.
        anchors: drift of the refined reward on anchors held out, where there are any.
        memorization: whether the reward model seems to have been trained on these pairs, where that was checked.
        curve: accuracy by the number of training pairs, where that was measured.
        notes: what there is to know about this result, one sentence each, such as why it is the base reward.
        warnings: what may be wrong with the pairs, one sentence each: swapped sides, rewards that overflowed.
    """

    model: EnergyRewardModel
    features: Features
    pairs: PreferencePairs
    splits: Splits
    conflicts: ConflictReport
    history: tuple[Epoch, ...] = ()
    preferences: Preferences | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    anchors: AnchorDrift | None = None
    memorization: Memorization | None = None
    curve: LearningCurve | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @cached_property
    def evaluation(self) -> FitEvaluation:
        """Base against refined rewards on the test pairs, computed when first asked for."""
        from ebrm.evaluation import measure_fit  # not before: it loads SciPy and scikit-learn

        return measure_fit(self)

    def save(self, folder: str | Path, evaluation: FitEvaluation | None = None) -> FitEvaluation:
        """Write the model with its card, `metrics.json` and `report.html` (where pairs were held out) into a folder.

        The same fit gives the same bytes, but for `timing.json`, which has the seconds of every stage and epoch.

        Args:
            folder: made where it is not there; files of the same names are replaced.
            evaluation: instead of :attr:`evaluation`, e.g. with another title (:func:`ebrm.evaluation.measure_fit`).

        Returns:
            the evaluation written.
        """
        from ebrm.report import write_report

        folder, measured = Path(folder), self.evaluation if evaluation is None else evaluation
        if measured.report is not None:
            self.model.record = replace(self.model.record, metrics=measured.metrics)
        self.model.save_pretrained(folder)
        write_json(folder / "metrics.json", measured.metrics)
        epochs = [epoch.seconds for epoch in self.history]
        write_json(folder / TIMING, {"seconds": dict(measured.seconds), "epochs": epochs})
        if measured.report is None:
            logger.warning(
                "No pairs were held out to measure the result on, so there is no report; see `test_fraction`."
            )
        else:
            write_report(folder / "report.html", measured.report)
        return measured


def fit(
    source: str | Path | Backbone | Features,
    preferences: Any = None,
    *,
    keep: Any = None,
    head: HeadConfig = ResidualConfig(),  # noqa: B008 - frozen
    config: FitConfig = FitConfig(),  # noqa: B008 - frozen
    data: PreferenceConfig = PreferenceConfig(),  # noqa: B008 - frozen
    text: TextConfig = TextConfig(),  # noqa: B008 - frozen
    backbone: BackboneConfig | None = None,
    features: FeatureConfig = FeatureConfig(),  # noqa: B008 - frozen
    work: str | Path | None = None,
    device: str = "auto",
    on_epoch: Callable[[Epoch], None] | None = None,
) -> FitResult:
    """Fit a head on a frozen reward model's embeddings of preference pairs (EBRM, arXiv 2504.13134).

    Args:
        source: the reward model (a name, a folder, "demo", or one loaded), or features of one
            (:func:`ebrm.extract_features`, :func:`ebrm.import_features`; their folder or the object).
        preferences: with a reward model, what :func:`ebrm.load_preferences` reads, or its result; for the heads binary
            and attributes what :func:`ebrm.data.load_ratings` reads (thumbs, ratings), or its result. With features,
            nothing (the features' own pairs), :class:`ebrm.PreferencePairs` over their items, or the preferences that
            they were made from, for the texts in the report.
        keep: anchors, texts whose reward should not move, such as the domain that the reward model knows: features of
            the same reward model or their folder; with a reward model also preference pairs (their labels are not
            fitted on) or rows of prompt and response. A part of them is held out to measure the drift on.
        head: which head, and how it is fitted; the residual head by default.
        config: how pairs are divided, filtered and weighted, and the seed.
        data, text, backbone, features: how preferences are read, texts tokenized, a reward model loaded and features
            stored; not with what is read or loaded already.
        work: folder for features and checkpoint, so that a stopped run goes on; a temporary one if not given.
        device: where the head is fitted, and a reward model loaded unless `backbone` is given: "auto" (a GPU if there
            is one), "cpu", "cuda", …
        on_epoch: called after every epoch of the energy.

    Raises:
        EBRMError: anything about the inputs that the user can mend.
    """
    for name, given, kind in (("head", head, HeadConfig), ("config", config, FitConfig)):
        if not isinstance(given, kind):
            example = "ebrm.LinearConfig()" if name == "head" else "ebrm.FitConfig()"
            raise ConfigError(f"`{name}` is {given!r}; a config was expected, such as {example}.")
    if keep is not None and not isinstance(head, ResidualConfig | AutoConfig):  # before anything is read
        raise ConfigError(f"The {head.kind} head has no use for anchors (`keep`); the residual head keeps to them.")
    where = _device(device)
    with tempfile.TemporaryDirectory(prefix="ebrm-") as scratch:
        folder = Path(work) if work is not None else Path(scratch)
        seconds: dict[str, float] = {}
        reading = {"data": data, "text": text, "backbone": backbone, "features": features}
        if isinstance(source, str | Path) and (Path(source) / "manifest.json").is_file():
            source = open_features(source)
        if isinstance(source, Features):
            pairs, texts = preferences, None
            if preferences is not None and not isinstance(preferences, PreferencePairs):
                pairs, texts = None, _texts_of(source, preferences, data)
                reading["data"] = PreferenceConfig()
            _refuse_unused(reading, tuple(reading), "features, which are read already")
            opened = None if keep is None else open_anchors(keep, data, backbone=False)
            anchors = _anchors(opened, source, None, folder, config, features)
            return _fit_features(
                source, pairs, head, config, where, folder, on_epoch, seconds, anchors, preferences=texts
            )
        if preferences is None:
            raise DataError(f"There are no preferences to fit on: {source} is not a features folder, so give some.")
        from ebrm.backbone import Backbone, load_backbone  # not before: features need no transformers

        if isinstance(source, Backbone):
            _refuse_unused(reading, ("text", "backbone"), "a reward model that is loaded already")
            loaded = source
        else:
            if not isinstance(source, str | Path):
                raise ConfigError(
                    f"`source` is a {type(source).__name__}; a reward model's name or folder, a loaded one, or "
                    "features were expected. A BackboneConfig goes with the name, as `backbone`."
                )
            settings = backbone or BackboneConfig(backbone=str(source), device=device)
            loaded = load_backbone(replace(settings, backbone=str(source)), text)
        if isinstance(preferences, Preferences | Ratings):
            _refuse_unused(reading, ("data",), "preferences that are read already")
        prefs = _texts_to_fit(preferences, data, head)
        parts_of(pair.split for pair in prefs)  # a mistake in them should not wait until all is read
        opened = None if keep is None else open_anchors(keep, data, backbone=True)
        started = time.monotonic()
        if isinstance(prefs, Ratings):
            read = extract_ratings(loaded, prefs, folder / "features", features, data.bad_rows)
        else:
            read = extract_features(loaded, prefs, folder / "features", features, bad_rows=data.bad_rows)
        seconds["features"] = time.monotonic() - started
        counted = {
            "%d pairs are left out because a text has more than %d tokens.": "dropped",
            "%d texts had their prompt's beginning cut to %d tokens.": "truncated",
        }
        for message, name in counted.items():
            if read.manifest.get(name):
                logger.warning(message, read.manifest[name], loaded.text_rule.max_length)
        if work is None:  # the scratch folder goes; what it knows of prompts in no pair is needed before
            everything = ShardedEmbeddings([read.embedding(slice(None))], read.embedding_size)
            read = replace(read, path=read.path if isinstance(prefs, Ratings) else None, embeddings=everything)
        anchors = _anchors(opened, read, loaded, folder, config, features, data.bad_rows)
        if anchors is not None and work is None:  # the scratch folder goes
            everything = ShardedEmbeddings([anchors.features.embedding(slice(None))], read.embedding_size)
            anchors = replace(anchors, features=replace(anchors.features, path=None, embeddings=everything))
        texts, origin = prefs if isinstance(prefs, Preferences) else None, prefs.report.origin
        fitted = _fit_features(
            read, None, head, config, where, folder, on_epoch, seconds, anchors, loaded, texts, origin
        )  # fmt: skip
        return replace(fitted, features=replace(read, path=None)) if work is None else fitted


def _texts_to_fit(given: Any, data: PreferenceConfig, head: HeadConfig) -> Preferences | Ratings:
    """The pairs, or for heads that are fitted on them the rated responses, that a source holds."""
    if isinstance(given, Ratings) and not isinstance(head, AttributesConfig | BinaryConfig):
        raise ConfigError(
            f"The {head.kind} head is fitted on pairs, and rated responses are given. Choose the head binary (for "
            "thumbs) or attributes, or give pairs."
        )
    if isinstance(given, Preferences | Ratings):
        return given
    if isinstance(head, AttributesConfig) or (isinstance(head, BinaryConfig) and holds_thumbs(given, data)):
        return load_ratings(given, data)
    return load_preferences(given, data)


def _texts_of(features: Features, preferences: Any, data: PreferenceConfig) -> Preferences:
    """The preferences that features were made from, for the texts in the report.

    Raises:
        DataError: they are others.
    """
    texts = preferences if isinstance(preferences, Preferences) else load_preferences(preferences, data)
    stored = (features.manifest["data"] or {}).get("fingerprint")
    if stored != texts.fingerprint:
        raise DataError(
            f"The features were not made from these preferences ({texts.report.origin}): the fingerprint of theirs is "
            f"{str(stored)[:12]}, that of these {texts.fingerprint[:12]}. Give the data that the features were made "
            "from, read in the same way (split, columns, limit), or leave the texts out; to fit on other pairs, a "
            "reward model has to read them."
        )
    return texts


def _anchors(
    opened: Features | Preferences | list[Text] | None, features: Features, backbone: Backbone | None, folder: Path,
    config: FitConfig, storage: FeatureConfig, bad_rows: BadRows = "stop",
) -> AnchorSplit | None:  # fmt: skip
    if opened is None:
        return None
    read = read_anchors(opened, features, backbone, folder / "anchors", storage, bad_rows)
    split = split_anchors(read, config.seed)
    logger.info("Anchors: %d texts to keep to, %d to measure the drift on.", len(split.fitted.reward), len(split.rows))
    return split


def _without_outlying(anchors: AnchorSplit) -> tuple[AnchorSplit, tuple[str, ...]]:
    """The anchors without outliers, and the sentence that says so: one of them would be all of the drift."""
    features, held, fitted = anchors.features, anchors.rows, anchors.fitted
    reward = torch.cat([fitted.reward, features.reward[held]])
    embedding = torch.cat([fitted.embedding[:], features.embedding(held)])
    out = outlying(reward) | outlying_embeddings(lambda rows: embedding[rows], torch.arange(len(reward)))
    if not bool(out.any()):
        return anchors, ()
    warning = (
        f"{int(out.sum()):,} of {len(out):,} anchors are left out, because their base reward or embedding is an "
        f"outlier: the first has the base reward {float(reward[out][0]):g}; the median is "
        f"{float(reward.median()):.3g}. Numbers that overflowed look like this; find out where they come from."
    )
    logger.warning("%s", warning)
    keep, kept = (~out).split([len(fitted.reward), len(held)])
    gone = held[~kept]
    pairs = anchors.pairs
    whole = ~(torch.isin(pairs.chosen, gone) | torch.isin(pairs.rejected, gone))
    names = [name for name, stays in zip(fitted.prompt_id, keep.tolist(), strict=True) if stays]
    prompts = [name for name, stays in zip(anchors.prompt_id, kept.tolist(), strict=True) if stays]
    found = replace(
        anchors, fitted=Anchors(fitted.embedding[:][keep], fitted.reward[keep], names), rows=held[kept],
        prompt_id=prompts, pairs=pairs.select(whole),
    )  # fmt: skip
    return found, (warning,)


def _refuse_unused(reading: Mapping[str, Any], names: Sequence[str], what: str) -> None:
    defaults = {"data": PreferenceConfig(), "text": TextConfig(), "backbone": None, "features": FeatureConfig()}
    unused = [name for name in names if reading[name] != defaults[name]]
    if unused:
        raise ConfigError(f"`{unused[0]}` has no effect on {what}. Leave it out.")


def _fit_features(
    features: Features,
    given: PreferencePairs | None,
    head: HeadConfig,
    config: FitConfig,
    device: torch.device,
    work: Path,
    on_epoch: Callable[[Epoch], None] | None,
    seconds: dict[str, float],
    anchors: AnchorSplit | None = None,
    backbone: Backbone | None = None,
    preferences: Preferences | None = None,
    origin: str | None = None,
) -> FitResult:
    prepared = prepare_fit(features, given, config)
    config = prepared.config
    if anchors is not None:
        anchors, said = _without_outlying(anchors)
        prepared = replace(prepared, warnings=(*prepared.warnings, *said))
    splits = prepared.splits
    logger.info(
        "Pairs: %d to train on, %d to choose the epoch, %d to measure (%s).",
        len(splits.train), len(splits.validation), len(splits.test), splits.how,
    )  # fmt: skip
    seconds["filter"] = prepared.seconds
    started = time.monotonic()
    held = None if anchors is None else anchors.fitted
    choice: HeadChoice | None = None
    if isinstance(head, AutoConfig):
        head, choice = _choose(head, features, prepared, held, device)
    fitted = fit_head(
        head, features.embeddings, features.reward, prepared.train, prepared.pairs.select(splits.validation),
        device=device, checkpoint=work / "checkpoint.safetensors", on_epoch=on_epoch,
        strength=config.strength, pairs_seen=config.pairs_seen, anchors=held, seed=config.seed,
    )  # fmt: skip
    chosen_base = choice is not None and choice.chosen == "base"
    if chosen_base and isinstance(fitted.head, ResidualHead):
        fitted = replace(fitted, head=fitted.head.unmoved())
    seconds["fit"] = time.monotonic() - started
    result = prepared.result(fitted, backbone, preferences, seconds, origin)
    result = replace(result, **_checks(result, anchors, chosen_base))
    if choice is None:
        return result
    result.model.record.data["head_choice"] = choice.to_dict()
    return replace(result, notes=(str(choice), *result.notes))


def _swapped(conflicts: ConflictReport) -> tuple[str, ...]:
    """The question whether chosen and rejected are swapped, where the base reward contradicts most labels."""
    overall = conflicts.overall
    said = swapped_sides(overall.kept, overall.kept + overall.dropped, "training pairs")
    return () if said is None else (f"{said} If they are, what is fitted is wrong, however good the numbers look.",)


def _choose(
    auto: AutoConfig, features: Features, prepared: PreparedFit, anchors: Anchors | None, device: torch.device
) -> tuple[HeadConfig, HeadChoice]:
    """The head that the training pairs favor; the base reward is a residual head without its correction."""
    from ebrm.evaluation import choose_head  # not before: it loads SciPy and scikit-learn

    choice = choose_head(
        features.embeddings, features.reward, prepared.train, prepared.config, folds=auto.folds, anchors=anchors,
        device=device,
    )  # fmt: skip
    return HEADS.get(choice.chosen, ResidualConfig)(), choice


def _checks(result: FitResult, anchors: AnchorSplit | None, chosen_base: bool) -> dict[str, Any]:
    """What the report says beside accuracy: drift on anchors held out, pairs known by heart, a head that stays put."""
    from ebrm.evaluation import measure_anchors, memorization  # not before: it loads SciPy and scikit-learn

    found: dict[str, Any] = {}
    if anchors is not None:
        found["anchors"] = measure_anchors(
            result.model, anchors.features, anchors.rows, anchors.pairs, prompt_id=anchors.prompt_id
        )
    if result.model.record.fit.pairs_seen == "unknown" and len(result.splits.train):
        seen = memorization(
            result.features.embeddings, result.features.reward, result.pairs.select(result.splits.train)
        )
        found["memorization"] = seen
        if seen is not None and seen.suspected:
            logger.warning("%s", seen)
    head = result.model.head
    if isinstance(head, ResidualHead) and not chosen_base:
        train = result.pairs.select(result.splits.train)
        rows = torch.unique(torch.cat([train.chosen, train.rejected]))
        some = rows[:: 1 + len(rows) // 4000]
        added, kept = float(head.correction(result.features.embedding(some)).std(correction=0)), float(head.base_weight)
        if added < LITTLE * kept:
            how = "" if added == 0 else f"nearly (what is added has {added / kept:.1%} of its standard deviation) "
            found["notes"] = (
                f"The refined reward is {how}the base reward: with each prompt left out, no correction predicts the "
                "labels of these pairs clearly better than none.",
            )
    return found


@dataclass(frozen=True, eq=False)
class PreparedFit:
    """Training pairs of a head: pairs over features, their splits, and what the conflict filter left of them."""

    features: Features
    pairs: PreferencePairs
    config: FitConfig
    splits: Splits
    train: PreferencePairs
    conflicts: ConflictReport
    seconds: float
    warnings: tuple[str, ...] = ()

    def result(
        self,
        fitted: FittedHead,
        backbone: Backbone | None = None,
        preferences: Preferences | None = None,
        seconds: Mapping[str, float] | None = None,
        origin: str | None = None,
    ) -> FitResult:
        """The result of a fit on these pairs; `origin` is the name of the data, unless the preferences say it."""
        features, pairs, splits, prompts = self.features, self.pairs, self.splits, self._prompts(fitted.head.rated)
        folder = "/".join(features.path.absolute().parts[-2:]) if features.path is not None else "features in memory"
        record = ModelRecord(
            head=fitted.head.config,
            fit=self.config,
            backbone=features.manifest["backbone"] or {},
            text_rule=features.manifest["text"],
            data={
                "origin": (origin or folder) if preferences is None else preferences.report.origin,
                "fingerprint": (features.manifest["data"] or {}).get("fingerprint"),
                "pairs": len(pairs),
                "pairs_dropped_as_too_long": features.manifest.get("dropped") or 0,
                "texts_with_prompt_cut": features.manifest.get("truncated") or 0,
                "train": len(splits.train),
                "validation": len(splits.validation),
                "test": len(splits.test),
                "split": splits.how,
                "pairs_seen": self.config.pairs_seen,
                "prompts_fitted_on": "not known" if prompts is None else len(prompts),
                "sources": dict(sorted(Counter(str(name or "-") for name in pairs.source).items())),
            },
            filter=self.conflicts.to_dict() | {"used": self.config.filter_conflicts},
            history=tuple(epoch.measured() for epoch in fitted.history),
            best_epoch=fitted.best_epoch,
            provenance=provenance(features.manifest["backbone"] or {}),
        )
        model = EnergyRewardModel(fitted.head, record, backbone, prompts=prompts)
        return FitResult(
            model, features, pairs, splits, self.conflicts, fitted.history, preferences, dict(seconds or {}),
            warnings=self.warnings,
        )  # fmt: skip

    def _prompts(self, rated: bool) -> FittedPrompts | None:
        """The prompts of training and validation pairs, and of rated rows; None where one has no id that names it."""
        pairs, splits, ratings = self.pairs, self.splits, self.train.ratings
        ids = pairs.prompt_id[np.concatenate([splits.train, splits.validation])].tolist()
        if rated and ratings is not None:
            known = dict(
                zip(torch.cat([pairs.chosen, pairs.rejected]).tolist(), 2 * pairs.prompt_id.tolist(), strict=True)
            )
            if self.features.path is not None:
                names = read_items(self.features.path / "items.parquet")["prompt_id"]
                known |= {row: name for row, name in enumerate(names) if name is not None}
            of_rated = [known.get(row) for row in (~ratings.isnan()).any(dim=1).nonzero().squeeze(1).tolist()]
            if None in of_rated:
                return None
            ids += of_rated
        return FittedPrompts.of(ids)


def prepare_fit(features: Features, given: PreferencePairs | None, config: FitConfig) -> PreparedFit:
    """Divide and filter the pairs (None: the features' own) as `fit` does."""
    pairs = likelier_first((features.pairs if given is None else given).to("cpu"))
    pairs.check_rows(len(features))
    features.refuse_unread(pairs)
    pairs, splits, warnings = _without_outliers(pairs, choose_splits(pairs, config), features)
    started = time.monotonic()
    train, conflicts = _training_pairs(pairs, splits, features, config)
    if config.pairs_seen == "unknown" and bool(train.rm_training.any()):  # the data say so
        config = replace(config, pairs_seen="yes")
    warnings = (*warnings, *_swapped(conflicts))
    for warning in warnings:
        logger.warning("%s", warning)
    return PreparedFit(features, pairs, config, splits, train, conflicts, time.monotonic() - started, warnings)


def _without_outliers(
    pairs: PreferencePairs, splits: Splits, features: Features
) -> tuple[PreferencePairs, Splits, tuple[str, ...]]:
    """Pairs and splits without outliers among the base rewards and embeddings fitted on, and the sentence that says so.

    One reward of 65,504 (float16's largest number) would set the units of the others, and the base weight. Pairs held
    out to measure stay: they are ranked, whatever their rewards.
    """
    named = [torch.cat([pairs.chosen, pairs.rejected])]
    named += [] if pairs.ratings is None else [(~pairs.ratings.isnan()).any(1).nonzero().squeeze(1)]
    rows = torch.unique(torch.cat(named))
    reward = features.reward[rows].double()
    far, strange = outlying(reward), outlying_embeddings(features.embedding, rows)
    outliers = rows[far | strange]
    if not len(outliers):
        return pairs, splits, ()
    hit = (torch.isin(pairs.chosen, outliers) | torch.isin(pairs.rejected, outliers)).numpy()
    train, validation = (part[~hit[part]] for part in (splits.train, splits.validation))
    left = np.sort(np.concatenate([part[hit[part]] for part in (splits.train, splits.validation)]))
    measured = int(hit[splits.test].sum())
    if pairs.ratings is not None:
        ratings = pairs.ratings.clone()
        ratings[outliers] = torch.nan
        pairs = replace(pairs, ratings=ratings)
    if len(splits.train) and not len(train):
        return pairs, splits, ()
    said = []
    for kind, texts in (("base reward", rows[far]), ("embedding", rows[strange & ~far])):
        if len(texts):
            said.append(
                f"{len(texts):,} with {kind}s unlike all others, the first {_first(pairs, texts, features, kind)}"
            )
    also = f" {measured:,} of the pairs held out to measure have one, too; they count as they are ranked." * bool(
        measured
    )
    warning = (
        f"{len(left):,} pairs are not fitted on, because of outliers among their texts: {'; '.join(said)}. (The median "
        f"base reward is {float(reward.median()):.3g}; outliers lie more than {OUTLYING:g} standard deviations from "
        f"the others.) Numbers that overflowed look like this; find out where they come from.{also}"
    )
    return pairs, replace(splits, train=train, validation=validation), (warning,)


def _first(pairs: PreferencePairs, texts: Tensor, features: Features, kind: str) -> str:
    """Where the first of these texts stands, and its number."""
    place = (torch.isin(pairs.chosen, texts) | torch.isin(pairs.rejected, texts)).nonzero()
    if not len(place):
        row, where = int(texts[0]), f"row {int(texts[0])} of the features"
    else:
        first = int(place[0])
        side = "chosen" if bool(torch.isin(pairs.chosen[first], texts)) else "rejected"
        row, where = int(getattr(pairs, side)[first]), f"is {pairs.where[first] or f'pair {first}'}, {side},"
    number = (
        float(features.reward[row])
        if kind == "base reward"
        else float(features.embedding(slice(row, row + 1)).abs().max())
    )
    return f"{where} with {number:g}" + ("" if kind == "base reward" else " as its largest number")


def likelier_first(pairs: PreferencePairs) -> PreferencePairs:
    """The same pairs with label 0.5 or more: those below are turned around, which changes no loss."""
    turn = pairs.label < 0.5
    chosen, rejected = torch.where(turn, pairs.rejected, pairs.chosen), torch.where(turn, pairs.chosen, pairs.rejected)
    return replace(pairs, chosen=chosen, rejected=rejected, label=torch.where(turn, 1 - pairs.label, pairs.label))


def _training_pairs(
    pairs: PreferencePairs, splits: Splits, features: Features, config: FitConfig
) -> tuple[PreferencePairs, ConflictReport]:
    """Training pairs after the conflict filter, and its report; pairs of label 0.5 conflict with nothing."""
    train = pairs.select(splits.train)
    decided = (train.label != 0.5).nonzero().squeeze(1)
    _, conflicts = filter_conflicts(train.select(decided), features.reward)
    logger.info(conflicts.summary(config.filter_conflicts))
    if config.filter_conflicts:
        keep = torch.ones(len(train), dtype=torch.bool)
        keep[decided] = conflicts.keep
        if len(train) and not bool(keep.any()):
            raise ModelError(
                f"Nothing is left to fit on: of {len(conflicts.keep)} training pairs the conflict filter kept none "
                f"({conflicts.overall.dropped} contradict the base RM, {conflicts.overall.tied} are ties). Check that "
                "chosen and rejected are not swapped and that the reward model is the right one; with "
                f"{setting('filter_conflicts', False)} all pairs are fitted on."
            )
        train, _ = train.after("conflict filter", keep=keep)
    if train.ratings is not None:  # ratings are of all rows, and heads train on rows that are in no held-out pair
        test = pairs.select(splits.test)
        ratings = train.ratings.clone()
        ratings[torch.cat([test.chosen, test.rejected])] = torch.nan
        train = replace(train, ratings=ratings)
    return train, conflicts


def choose_splits(
    pairs: PreferencePairs,
    config: FitConfig = FitConfig(),  # noqa: B008 - frozen
) -> Splits:
    """Divide pairs into train / validation / test, never with a prompt in two of them.

    Where the pairs have splits (`ebrm.data.part_of`), they are followed: pairs of a held-out split are never trained
    on, training pairs of held-out prompts are left out, and a missing part is cut from the prompts that are not held
    out. Else all are cut by a hash of the prompt.

    Raises:
        DataError: a split of a name that is not known, nothing but held-out splits, or no training pairs left.
    """
    if len(pairs) == 0 and pairs.ratings is not None:  # a head for ratings
        none = np.empty(0, dtype=np.int64)
        return Splits(none, none, none, "ratings without pairs")
    named = np.array([part or "" for part in parts_of(pairs.split)], dtype=object)
    wanted = {"validation": config.validation_fraction, "test": config.test_fraction}
    parts = {name: np.flatnonzero(named == name) for name in wanted if (named == name).any()}
    rest = np.flatnonzero((named == "train") | (named == ""))
    how = "the data's own splits" if parts else f"by prompt, seed {config.seed}"
    missing = {name: share for name, share in wanted.items() if name not in parts}
    cut = split_by_prompt(pairs.prompt_id[rest].tolist(), missing | {"train": 1 - sum(missing.values())}, config.seed)
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
    if len(clean) == 0 and pairs.ratings is None:
        raise DataError(
            f"Of {len(pairs)} pairs with {len(set(pairs.prompt_id.tolist()))} different prompts, none is left to train "
            "on after holding out prompts to choose the epoch and to measure the result. Give more pairs."
        )
    return Splits(np.sort(clean), np.sort(validation), np.sort(parts["test"]), how)


def _device(device: str) -> torch.device:
    try:
        found = (
            torch.device("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else torch.device(device)
        )
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ConfigError(
            f"`device` is {device!r}, which cannot be used here ({str(error).splitlines()[0]:.100}). Choose auto, cpu, "
            "or a device that this machine has (cuda, cuda:1, …)."
        ) from error
    return found


@contextmanager
def tracked(
    trackers: Sequence[str | GeneralTracker], folder: Path, settings: Mapping[str, Any]
) -> Iterator[Callable[[Epoch], None]]:
    """Open trackers and yield what logs an epoch to them; they are closed at the end, also after an error.

    Args:
        trackers: names out of `TRACKERS`, or accelerate's own tracker objects.
        folder: where trackers that write files (TensorBoard) put them.
        settings: stage to its settings, logged once; nested values are flattened to `stage.name`.

    Raises:
        ConfigError: an unknown name, or a tracker whose package is not installed.
    """
    for name in trackers:
        if isinstance(name, str) and name not in TRACKERS:
            raise ConfigError(f"There is no tracker {name!r}; choose among {', '.join(TRACKERS)}.")
        if isinstance(name, str) and find_spec(name) is None:
            raise ConfigError(
                f"The tracker {name} is not installed: pip install {name}, or "
                f"for all of them {install_hint('trackers')}."
            )
    if not trackers:
        yield lambda epoch: None
        return
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, log_with=list(trackers), project_dir=folder)
    flat = {f"{stage}.{key}": str(value) for stage, values in settings.items() for key, value in values.items()}
    accelerator.init_trackers("ebrm", config=flat)

    def log(epoch: Epoch) -> None:
        values = {key: value for key, value in epoch.to_dict().items() if key != "epoch" and value is not None}
        accelerator.log(values, step=epoch.epoch)

    try:
        yield log
    finally:
        accelerator.end_training()
