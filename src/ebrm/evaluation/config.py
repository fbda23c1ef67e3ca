"""Config of an evaluation on benchmarks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from ebrm.data import parse_label_map
from ebrm.errors import ConfigError

#: Items whose prompts a model was fitted on: left out, or counted under the name of training pairs.
TrainingRule = Literal["skip", "label"]


@dataclass(frozen=True)
class BenchmarkConfig:
    """Benchmarks that models are evaluated on, and settings of the statistics.

    Attributes:
        benchmark: rewardbench, rewardbench-legacy, rewardbench2, rmb, rm-bench, judgebench, llmbar, xstest, hhh,
            ifbench, rewardmath; files of your own (pairs, best-of-n, pools with graded answers); or `all` in `data`.
        data: folder with the benchmarks' files: clones of their repositories, or prepared Parquet files. Unset:
            EBRM_DATA if it is set, else the Hub.
        limit: sample so many prompts of each benchmark. Unset: all of them.
        seen: preference data or features folders that the models were trained on: items with a prompt of theirs are
            left out and counted. Rows of a `test` split do not count as seen.
        training_items: items with prompts that one of the models was fitted on: `skip` leaves them out for all models
            and counts them; `label` keeps them, and calls the numbers "training pairs".
        reference: the scorer that differences are taken to, by its name. Unset: the first reward model.
        resamples: bootstrap resamples of the prompts.
        permutations: random sign flips of the permutation test, where not all can be tried.
        seed: seed of sampling, bootstrap and permutation test.
        cache: folder that keeps base rewards and embeddings of texts. Unset: EBRM_CACHE, else ebrm in the user's cache.
        columns: where a column of your own files has another name: our name = its name (prompt=question). Our names:
            prompt, chosen, rejected, a, b, label, best, losers, responses, gold, id, category, split.
        label_map: what the values of a label in your own files say, as for `PreferenceConfig` (1=a, 0=b).
    """

    benchmark: tuple[str, ...]
    data: str | None = None
    limit: int | None = None
    seen: tuple[str, ...] = ()
    training_items: TrainingRule = "skip"
    reference: str | None = None
    resamples: int = 2000
    permutations: int = 9999
    seed: int = 0
    cache: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    label_map: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.benchmark or not all(name.strip() for name in self.benchmark):
            raise ConfigError("benchmark names nothing to evaluate on; name benchmarks or files, or `all`.")
        check_training_rule(self.training_items)
        parse_label_map(self.label_map)
        for name, least in (("limit", 1), ("resamples", 100), ("permutations", 99), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} is {value}; it must be at least {least}.")


def check_training_rule(rule: str) -> None:
    """ConfigError for any other value of `training_items`."""
    if rule not in get_args(TrainingRule):
        raise ConfigError(f"training_items is {rule!r}; it must be one of {', '.join(get_args(TrainingRule))}.")
