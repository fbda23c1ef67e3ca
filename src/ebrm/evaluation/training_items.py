"""Items of a benchmark whose prompts a model was fitted on: left out for all models, or counted under that name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ebrm.benchmarks import Benchmark
from ebrm.errors import DataError, setting
from ebrm.evaluation.config import TrainingRule
from ebrm.evaluation.results import TrainingItems, prompt_ids
from ebrm.model import EnergyRewardModel

#: Why items are left out before scoring.
FITTED_ON = "prompt that a model was fitted on"


def find_training_items(
    benchmark: Benchmark, models: Mapping[str, EnergyRewardModel], rule: TrainingRule
) -> tuple[Benchmark, TrainingItems]:
    """Find the items with prompts that one of the models was fitted on, and leave them out or say so in the title.

    All models are compared on the same items, so that differences stay paired.

    Args:
        benchmark: items that are to be scored.
        models: fitted models by the name of their scores.
        rule: "skip" leaves these items out; "label" keeps them and calls the benchmark's numbers "training pairs".

    Raises:
        DataError: no item would be left.
    """
    ids = prompt_ids(benchmark.items)
    found = {name: model.fitted_on(ids) for name, model in models.items()}
    known = {name: mask for name, mask in found.items() if mask is not None}
    fitted = np.logical_or.reduce(list(known.values())) if known else np.zeros(len(ids), dtype=bool)
    training = TrainingItems(
        len(ids), int(fitted.sum()), {name: int(mask.sum()) for name, mask in known.items()},
        tuple(name for name in found if name not in known), rule,
    )  # fmt: skip
    if not fitted.any():
        return benchmark, training
    if rule == "label":
        share = "training pairs" if fitted.all() else f"training pairs: {training.fitted:,} of {len(ids):,} items"
        return replace(benchmark, title=f"{benchmark.title} ({share})"), training
    if fitted.all():
        by = " or ".join(name for name, count in training.of.items() if count)
        raise DataError(
            f"Every one of the {len(ids):,} items of {benchmark.title} has a prompt that {by} was fitted on, so they "
            "cannot say how good its rewards are on others. Give pairs with other prompts (what the fit measured on "
            "those it held out is in its metrics.json), or count these under the name of training pairs with "
            f"{setting('training_items', 'label')}."
        )
    return benchmark.take(np.flatnonzero(~fitted)), training
