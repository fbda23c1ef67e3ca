"""Evaluation from end to end: benchmarks, models, their scores, and the comparison."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ebrm.benchmarks import NAMES, Benchmark, available, open_benchmark, sample_prompts
from ebrm.data import PreferenceConfig, TextConfig, load_preferences, part_of
from ebrm.errors import ConfigError
from ebrm.evaluation.comparison import evaluate_scores
from ebrm.evaluation.config import BenchmarkConfig
from ebrm.evaluation.fitted import versions
from ebrm.evaluation.results import Evaluation, ScoredBenchmark, TrainingItems
from ebrm.evaluation.score_models import BenchmarkTexts, RewardModel, open_energies, open_models, short_names
from ebrm.evaluation.training_items import FITTED_ON, find_training_items
from ebrm.features import MANIFEST, FeatureConfig, open_features
from ebrm.metrics import Bootstrap
from ebrm.model import EnergyRewardModel
from ebrm.utils import files

logger = logging.getLogger(__name__)

ALL = "all"
SEEN = "prompt seen in training"
NOT_SAMPLED = "not sampled"


@dataclass(frozen=True)
class Evaluated:
    """An evaluation with the rewards behind it, and how many texts had to be read for it."""

    evaluation: Evaluation
    scored: tuple[ScoredBenchmark, ...]
    texts_read: int


def evaluate(
    models: str | Path | Sequence[str | Path],
    config: str | Sequence[str] | BenchmarkConfig,
    *,
    backbone: Mapping[str, Any] | None = None,
    text: TextConfig = TextConfig(),
    features: FeatureConfig = FeatureConfig(shard_rows=1024),
) -> Evaluated:
    """Evaluate models on benchmarks, with intervals and significance tests of their differences.

    Base and refined rewards come from the same reading of the texts, which is cached. Items with prompts that one of
    the models was fitted on are left out for all (`BenchmarkConfig.training_items`) and counted.

    Args:
        models: models that `ebrm.fit` made or reward models (folder or Hub name), or features folders; one or more.
        config: benchmarks by name or file, or all settings.
        backbone: fields of `BackboneConfig` for how reward models run.
        text: text settings of plain reward models; energy models bring their own.
        features: how new features are kept.

    Returns:
        The evaluation and the scores behind it; `ebrm.report` makes tables, files and a page of them.

    Raises:
        EBRMError: a benchmark or model that cannot be used; nothing is lost that was read before.
    """
    given = models if isinstance(models, list | tuple) else [models]
    others = [type(model).__name__ for model in given if not isinstance(model, str | Path)]
    if others:
        raise ConfigError(
            f"`models` holds a {others[0]}; names or folders were expected. Save a model first "
            "(save_pretrained); for scores by a function see ebrm.evaluation.score_function."
        )
    names = [str(model) for model in given]
    if not names:
        raise ConfigError("`models` is empty; name at least one model.")
    if not isinstance(config, BenchmarkConfig):
        config = BenchmarkConfig((config,) if isinstance(config, str) else tuple(config))
    seconds: dict[str, float] = {}
    started = time.monotonic()

    def lap(stage: str) -> None:
        nonlocal started
        now = time.monotonic()
        seconds[stage] = seconds.get(stage, 0.0) + now - started
        started = now

    seen, energies, called = seen_prompts(config.seen), open_energies(names), short_names(names)
    fitted = {called[name]: energy for name, energy in energies.items()}
    chosen = [choose_items(benchmark, config, seen, fitted) for benchmark in open_benchmarks(config)]
    texts = [BenchmarkTexts.of(one.benchmark) for one in chosen]
    lap("benchmarks")
    count = 0

    def read(model: RewardModel) -> None:
        nonlocal count
        count += model.read(texts, features)

    opened = open_models(names, cache_folder(config), dict(backbone or {}), text, read, energies)
    lap("reading")
    scored = []
    for benchmark, one in zip(texts, chosen, strict=True):
        scores = [score for model in opened for score in model.scores(benchmark)]
        scored.append(ScoredBenchmark(one.benchmark, scores, one.excluded, one.training))
    lap("refining")
    about = {model.name: model.about for model in opened}
    for model in opened:
        about |= {name: _about(energy) for name, energy in model.energies.items()}
    reference = config.reference or opened[0].name
    evaluation = evaluate_scores(
        scored,
        reference,
        bootstrap=Bootstrap(config.resamples, seed=config.seed),
        permutations=config.permutations,
        about=about,
        versions=versions(),
        seconds=seconds,
    )
    return Evaluated(evaluation, tuple(scored), count)


def open_benchmarks(settings: BenchmarkConfig) -> list[Benchmark]:
    """The benchmarks asked for, each once, in the order given."""
    folder = settings.data or os.environ.get("EBRM_DATA")
    data = Path(folder) if folder else None
    names: list[str] = []
    for name in settings.benchmark:
        if name == ALL and data is None:
            raise ConfigError("`all` means every benchmark of a folder, and there is none: name it with `data`.")
        names += available(data) if name == ALL and data is not None else [name]
    if not names:
        raise ConfigError(f"There is no benchmark in {data}. Name the files or another folder.")
    given = "columns" if settings.columns else "label_map" if settings.label_map else None
    if given is not None and all(name in NAMES for name in names):
        raise ConfigError(
            f"`{given}` is for files of your own, and none is among the benchmarks: public benchmarks have columns of "
            "their own. Leave it out, or name a file."
        )
    return [open_benchmark(name, data, settings.columns, settings.label_map) for name in dict.fromkeys(names)]


@dataclass(frozen=True)
class ChosenItems:
    """The items of a benchmark that are to be scored, and how many were left out by reason."""

    benchmark: Benchmark
    excluded: dict[str, int]
    training: TrainingItems


def choose_items(
    benchmark: Benchmark,
    settings: BenchmarkConfig,
    seen: frozenset[str] | set[str] = frozenset(),
    models: Mapping[str, EnergyRewardModel] = MappingProxyType({}),
) -> ChosenItems:
    """Leave out items whose prompt was seen in training or fitted on by one of the models, then sample prompts.

    Raises:
        DataError: the models were fitted on the prompts of all items.
    """
    excluded = {}
    if seen:
        index = [place for place, item in enumerate(benchmark.items) if item.prompt_id not in seen]
        if len(index) < len(benchmark):
            excluded[SEEN] = len(benchmark) - len(index)
            benchmark = benchmark.take(index)
    before = len(benchmark)
    benchmark, training = find_training_items(benchmark, models, settings.training_items)
    if len(benchmark) < before:
        excluded[FITTED_ON] = before - len(benchmark)
    if settings.limit is not None:
        sampled = sample_prompts(benchmark, settings.limit, settings.seed)
        if len(sampled) < len(benchmark):
            excluded[NOT_SAMPLED] = len(benchmark) - len(sampled)
            benchmark = sampled
    return ChosenItems(benchmark, excluded, training)


def seen_prompts(sources: Sequence[str]) -> set[str]:
    """Ids of the prompts in preference data and features folders, those of a test split (`part_of`) aside."""
    seen: set[str] = set()
    for source in sources:
        if (Path(source) / MANIFEST).is_file():
            pairs = open_features(source, verify=False).pairs
            found = list(zip(pairs.prompt_id.tolist(), pairs.split, strict=True))
        else:
            found = [(row.prompt_id, row.split) for row in load_preferences(source, PreferenceConfig())]
        seen.update(name for name, split in found if part_of(split) != "test")
    return seen


def cache_folder(settings: BenchmarkConfig) -> Path:
    """Folder of the caches of reward models."""
    return Path(settings.cache) if settings.cache else files.cache_folder()


def _about(energy: Any) -> dict[str, Any]:
    record = energy.record.to_dict()
    names = ("network", "training", "head", "inference", "data")
    return {
        "kind": "energy model" if energy.record.head is None else f"head {energy.record.head.kind}",
        "reward_model": record["backbone"],
        "fingerprint": energy.fingerprint(),
        **{name: record[name] for name in names if name in record},
    }
