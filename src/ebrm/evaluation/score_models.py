"""Score benchmarks with models: which reward models read the texts, and which energy models refine their rewards."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import file_exists, try_to_load_from_cache
from numpy.typing import NDArray
from torch import Tensor

from ebrm.backbone import (
    SERVER,
    Backbone,
    BackboneConfig,
    BackboneIdentity,
    check_files,
    load_backbone,
    reload_backbone,
)
from ebrm.benchmarks import Benchmark, Floats, Integers, padded
from ebrm.data import TextConfig, message_words
from ebrm.errors import DataError, EBRMError, FeaturesError, ModelError
from ebrm.evaluation.cache import ReadTexts, RefinedTexts, TextCache
from ebrm.evaluation.results import Scores, prompt_ids
from ebrm.features import MANIFEST, FeatureConfig, Features, Text, open_features, read_items
from ebrm.model import EnergyRewardModel
from ebrm.utils.hub_names import why_no_hub_name

logger = logging.getLogger(__name__)

_WEIGHTS = "energy.safetensors"
_HERE = ("device", "token_budget", "trust_remote_code", "server")
#: Last parts of a path that name nothing.
_PLAIN_NAMES = ("model", "features", "checkpoint", "final", "rm", "ebrm")


@dataclass(frozen=True, eq=False)
class BenchmarkTexts:
    """A benchmark's texts, one a response in the order of items and responses, with their ids."""

    benchmark: Benchmark
    texts: tuple[Text, ...]
    ids: tuple[str, ...]

    @classmethod
    def of(cls, benchmark: Benchmark) -> BenchmarkTexts:
        """Take the texts of a benchmark."""
        texts = []
        for item in benchmark.items:
            name = item.prompt_id
            for number, response in enumerate(item.responses, 1):
                texts.append(Text(name, item.asked, response, f"{item.where}, response {number}"))
        return cls(benchmark, tuple(texts), tuple(text.id for text in texts))

    def table(self, values: Floats | Integers) -> Floats:
        """Values of the texts [m] as a table [n, r], NaN beyond an item's last response."""
        lengths = [len(item.responses) for item in self.benchmark.items]
        return padded(np.split(np.asarray(values, dtype=np.float64), np.cumsum(lengths)[:-1]))  # type: ignore[arg-type]


@dataclass
class RewardModel:
    """One reward model under one text rule, with the energy models on it."""

    name: str  # of its scores
    texts: ReadTexts
    load: Callable[[], Backbone] | None = None  # to read more texts; None with features alone, and once it has read
    energies: dict[str, EnergyRewardModel] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)  # for the results
    _refined: dict[str, RefinedTexts] = field(default_factory=dict)

    def read(self, benchmarks: Sequence[BenchmarkTexts], settings: FeatureConfig) -> int:
        """Read the texts that have not been read, and let the reward model go; returns how many texts they were."""
        if self.load is None or not isinstance(self.texts, TextCache):
            return 0
        loaded = cache(self.load)
        count = 0
        for benchmark in benchmarks:
            if new := len(self.texts.unread(benchmark.texts)):
                logger.info("%s reads %d texts of %s.", self.name, new, benchmark.benchmark.title)
                count += self.texts.read(benchmark.texts, loaded, settings)
        self.load = None
        return count

    def scores(self, benchmark: BenchmarkTexts) -> list[Scores]:
        """Base and refined scores of a benchmark, the base first; a FeaturesError if none of its texts is there."""
        rows = self.texts.rows(benchmark.ids)
        if len(rows) and (rows < 0).all() and not set(benchmark.ids) & self.texts.refused.keys():
            raise FeaturesError(
                f"The features of {self.name} hold none of the {len(rows):,} texts of {benchmark.benchmark.title}. "
                "They were made of other data: make them of the benchmark, or give the reward model itself."
            )
        missing = {}
        start = 0
        for number, item in enumerate(benchmark.benchmark.items):
            stop = start + len(item.responses)
            gone = next((place for place in range(start, stop) if rows[place] < 0), None)
            if gone is not None:
                missing[number] = self.texts.why_not(benchmark.ids[gone])
            start = stop
        found = rows >= 0
        place = np.where(np.isfinite(table := benchmark.table(rows)), table, -1).astype(np.int64)  # [n, r]

        def values(of_texts: Floats) -> Floats:
            taken = np.full(len(rows), np.nan)
            taken[found] = of_texts[rows[found]]
            return benchmark.table(taken)

        made = [Scores(self.name, values(self.texts.reward), unscored=missing)]
        for name, model in self.energies.items():
            if name not in self._refined:
                folder = self.texts.path / "refined" if isinstance(self.texts, TextCache) else None
                self._refined[name] = RefinedTexts(model, self.texts, folder, name)
            refined = self._refined[name]
            refined.refine(rows[found])
            ends = np.stack([values(refined.interval[:, 0]), values(refined.interval[:, 1])], axis=-1)
            made.append(
                Scores(
                    name, values(refined.reward), self.name, values(refined.std), ends, model.inference.coverage,
                    lambda item, a, b, refined=refined: refined.prefer(place[item, a], place[item, b]),  # type: ignore[misc]
                    missing,
                )
            )  # fmt: skip
        return made


def open_models(
    names: Sequence[str],
    cache_folder: Path,
    reward_model: dict[str, Any],
    text: TextConfig,
    read: Callable[[RewardModel], Any],
    energies: Mapping[str, EnergyRewardModel] | None = None,
) -> list[RewardModel]:
    """Open models by name: one entry a reward model, in the order of `names`, each with the energy models on it.

    A features folder also serves the other models on the same reward model and text rule: what it holds is not read
    again. Reward models, with the settings `reward_model`, are in memory one at a time; `read` reads with each.
    `energies`: what `open_energies` gives, where that was called before.
    """
    names = list(dict.fromkeys(names))
    folders = {name: open_features(name) for name in names if _is_features(name)}
    energies = open_energies(names) if energies is None else energies
    called = short_names(names)
    groups: dict[Any, RewardModel] = {}
    opened: dict[str, RewardModel] = {}

    def group(identity: dict[str, Any], rule: dict[str, Any] | None) -> RewardModel:
        matching = [part for part in folders.values() if _fits(part, identity, rule)]
        texts = ReadTexts(matching) if rule is None else TextCache(cache_folder, identity, rule, matching)
        key = texts.path if isinstance(texts, TextCache) else str(identity.get("name"))
        about = {"kind": "reward model", "reward_model": identity, "text_rule": rule}
        return groups.setdefault(key, RewardModel(str(identity.get("name") or "imported"), texts, about=about))

    for name, part in folders.items():
        opened[name] = group(part.manifest.get("backbone") or {}, part.manifest.get("text"))
    for name, energy in energies.items():
        opened[name] = group(_read_there(energy.record.backbone, reward_model), energy.record.text_rule)
        opened[name].energies[called[name]] = energy
        if energy.record.text_rule is not None:
            check_files(energy.record.backbone, {key: reward_model[key] for key in _HERE if key in reward_model})
            opened[name].load = partial(_load_for, energy, reward_model)
        elif not opened[name].texts.parts:
            raise ModelError(
                f"{name} was fitted on features made elsewhere, so it knows no reward model to read benchmarks with. "
                "Give features of the benchmark among `models` too."
            )
    for name in names:
        if name not in opened:
            settings, rule = BackboneConfig(**reward_model | {"backbone": name}), _tolerant(name, text)
            backbone = load_backbone(settings, rule)
            identity = backbone.identity.to_dict()
            # Its rewards do not depend on the layers read: those that an energy model or features need are as good.
            same = next((known for known in groups.values() if _same_rewards(known, backbone)), None)
            layers = BackboneIdentity.from_dict(same.about["reward_model"]).layers if same else backbone.identity.layers
            if layers != backbone.identity.layers:
                del backbone  # memory may hold one of them, but not two
                backbone = load_backbone(settings, rule, blocks=layers)
            opened[name] = same or group(identity, backbone.text_rule.identity())
            opened[name].load = partial(_same, backbone)
            read(opened[name])
            del backbone
    models = list({id(opened[name]): opened[name] for name in names}.values())
    for model in models:
        read(model)
    short = short_names([model.name for model in models])
    refined = {name for model in models for name in model.energies}
    taken = set(refined)
    for model in models:
        name = short[model.name] + (" (base)" if short[model.name] in refined else "")
        # One reward model under two text rules has one name; so have two that were imported without any.
        names_like_it = (f"{name} ({number})" for number in itertools.count(2))
        model.name = next(other for other in itertools.chain([name], names_like_it) if other not in taken)
        taken.add(model.name)
    return models


def open_energies(names: Sequence[str]) -> dict[str, EnergyRewardModel]:
    """The fitted models among `names`, by name, without their reward models."""
    found = [name for name in dict.fromkeys(names) if not _is_features(name) and _is_energy(name)]
    return {name: EnergyRewardModel.from_pretrained(name) for name in found}


def _is_features(name: str) -> bool:
    return (Path(name) / MANIFEST).is_file()


def score_function(
    name: str, reward: Callable[[Sequence[Any], Sequence[str]], Sequence[float]], benchmark: Benchmark
) -> Scores:
    """Score a benchmark with anything that maps prompts and responses to rewards.

    Args:
        name: of the scorer.
        reward: from prompts (lists of messages) and responses, one each, to as many numbers; NaN or None: the item is
            left out and counted.
        benchmark: the items.

    Raises:
        ModelError: another number of rewards than of texts.
    """
    texts = BenchmarkTexts.of(benchmark)
    given = list(
        reward([list(text.prompt) for text in texts.texts], [message_words(text.response) for text in texts.texts])
    )
    if len(given) != len(texts.texts):
        raise ModelError(f"{name} gave {len(given)} rewards for {len(texts.texts)} texts; it must give one for each.")
    return Scores(name, texts.table(np.array([np.nan if value is None else value for value in given], dtype=float)))


def _tolerant(name: str, text: TextConfig) -> TextConfig:
    """The text settings with what "unset" means for the packaged model; elsewhere long texts are left out anyway."""
    return replace(text, truncation="drop") if name == "demo" and text.truncation is None else text


def _same(backbone: Backbone) -> Backbone:
    return backbone


def _same_rewards(known: RewardModel, backbone: Backbone) -> bool:
    if known.about["text_rule"] != backbone.text_rule.identity():
        return False
    read = BackboneIdentity.from_dict(known.about["reward_model"])
    return read.mismatch(replace(backbone.identity, layers=read.layers), exact=True) is None


def _is_energy(name: str) -> bool:
    if Path(name).is_dir():
        return (Path(name) / _WEIGHTS).is_file()
    if why_no_hub_name(name):
        return False
    if isinstance(try_to_load_from_cache(name, _WEIGHTS), str):
        return True  # downloaded before: no network is needed
    try:
        return file_exists(name, _WEIGHTS)
    except Exception:  # noqa: BLE001 - no network, no such name: loading it raises the error
        return False


def _load_for(energy: EnergyRewardModel, settings: dict[str, Any]) -> Backbone:
    return energy.with_backbone(**{name: settings[name] for name in _HERE if name in settings}).backbone


def _read_there(identity: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """The identity under which an energy model's texts are kept: a server's numbers apart from those read here."""
    if not identity or bool(settings.get("server")) == (identity.get("attention") == SERVER):
        return identity
    return identity | {"attention": SERVER if settings.get("server") else "own"}


def _fits(part: Features, identity: dict[str, Any], rule: dict[str, Any] | None) -> bool:
    try:
        part.check(identity, rule)
    except EBRMError:
        return False
    return True


def short_names(names: Sequence[str]) -> dict[str, str]:
    """The shortest ends of paths that still differ and are no common folder names."""
    parts = {name: [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")] for name in names}
    short = {}
    for name, mine in parts.items():
        length = 1
        while length < len(mine) and (
            mine[-length] in _PLAIN_NAMES
            or any(other[-length:] == mine[-length:] for key, other in parts.items() if key != name)
        ):
            length += 1
        short[name] = "/".join(mine[-length:]) or name
    return short


NOT_READ = "a response that the reward model cannot read"


@dataclass(frozen=True, eq=False)
class ReadPool:
    """The responses of q prompts, in the order of prompts and responses [n]."""

    embedding: Tensor  # [n, d]
    base: Tensor  # base rewards [n]
    length: Tensor  # tokens of prompt and response [n]
    gold: Floats  # worth of the responses [q, m], NaN beyond a prompt's last
    left_out: dict[str, int]  # reason to number of prompts left out
    count: int  # texts that had to be read
    prompt_id: tuple[str, ...] = ()  # of the q prompts, where they are known

    @property
    def prompt(self) -> Tensor:
        """The prompt of each response [n]."""
        return torch.from_numpy(np.nonzero(np.isfinite(self.gold))[0])

    def without(self, prompts: AbstractSet[str], reason: str) -> ReadPool:
        """The pool without the prompts of these ids, counted under `reason`; the pool itself if it has none of them."""
        gone = np.array([name in prompts for name in self.prompt_id], dtype=bool)
        if not gone.any():
            return self
        rows = torch.from_numpy(~gone)[self.prompt]
        kept = tuple(name for name in self.prompt_id if name not in prompts)
        gold = self.gold[~gone]
        return ReadPool(
            self.embedding[rows], self.base[rows], self.length[rows], gold[:, np.isfinite(gold).any(axis=0)],
            self.left_out | {reason: int(gone.sum())}, self.count, kept,
        )  # fmt: skip

    def table(self, values: Tensor) -> Floats:
        """Values of the responses [n] as a table [q, m], NaN beyond a prompt's last response."""
        table = np.full(self.gold.shape, np.nan)
        table[np.isfinite(self.gold)] = values.double().numpy()
        return table


def read_pool(features: Features, benchmark: Benchmark, cache: Path, reward_model: dict[str, Any]) -> ReadPool:
    """Read a pool's responses by the reward model that made the features.

    Args:
        features: of that reward model.
        benchmark: items with graded responses.
        cache: folder of all caches.
        reward_model: fields of `BackboneConfig` for where and how fast it runs.

    Raises:
        DataError: the features know no reward model, or none of the prompts can be read whole.
        ModelError: the reward model that is found is another one.
    """
    identity, rule = features.manifest.get("backbone"), features.manifest.get("text")
    if not identity or rule is None:
        raise DataError(
            "These features were made elsewhere, so that nobody knows which reward model reads the pool. Leave out the "
            "pool, or make the features with `ebrm features`."
        )
    texts = BenchmarkTexts.of(benchmark)
    kept = TextCache(cache, identity, rule)
    count = kept.read(
        texts.texts, lambda: reload_backbone(identity, rule, reward_model), FeatureConfig(shard_rows=1024)
    )
    rows = kept.rows(texts.ids)
    sizes = [len(item.responses) for item in benchmark.items]
    whole = np.array([(part >= 0).all() for part in np.split(rows, np.cumsum(sizes)[:-1])], dtype=bool)
    if not whole.any():
        raise DataError(f"The reward model can read no prompt of {benchmark.title} with all its responses.")
    rows = rows[np.repeat(whole, sizes)]
    left_out = {} if whole.all() else {NOT_READ: int((~whole).sum())}
    kept_items = benchmark.take(np.flatnonzero(whole))
    return ReadPool(
        _gather(kept, rows), torch.from_numpy(kept.reward[rows]).float(), _lengths(kept, rows), kept_items.gold(),
        left_out, count, tuple(prompt_ids(kept_items.items)),
    )  # fmt: skip


def tokens_of(features: Features) -> NDArray[np.int64] | None:
    """Tokens of every item [n]; None where the features do not hold them."""
    if features.path is None:
        return None
    tokens = read_items(features.path / "items.parquet")["tokens"]
    return None if any(value is None for value in tokens) else np.array(tokens, dtype=np.int64)


def _gather(texts: TextCache, rows: NDArray[np.int64]) -> Tensor:
    ends = np.cumsum([0, *(len(part) for part in texts.parts)])
    embedding = torch.empty(len(rows), texts.parts[0].embedding_size)
    for part, start, end in zip(texts.parts, ends[:-1], ends[1:], strict=True):
        here = np.flatnonzero((rows >= start) & (rows < end))
        if len(here):
            embedding[torch.from_numpy(here)] = part.embedding(torch.from_numpy(rows[here] - start)).float()
    return embedding


def _lengths(texts: TextCache, rows: NDArray[np.int64]) -> Tensor:
    tokens = [tokens_of(part) for part in texts.parts]
    known = [np.zeros(len(part)) if some is None else some for part, some in zip(texts.parts, tokens, strict=True)]
    return torch.from_numpy(np.concatenate(known)[rows]).double()
