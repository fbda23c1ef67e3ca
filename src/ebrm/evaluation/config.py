"""Settings of an evaluation on benchmarks."""

from __future__ import annotations

from dataclasses import dataclass, field

from ebrm.errors import ConfigError


@dataclass(frozen=True)
class BenchmarkConfig:
    """What is evaluated on, and how its numbers are made sure of.

    Attributes:
        benchmark: names and files, see `ebrm.benchmarks.open_benchmark`; "all" is everything in `data`.
        data: folder with the benchmarks' files; None takes them from the Hub.
        limit: prompts sampled from each benchmark; None takes all.
        seen: preference data or features folders whose prompts are left out (rows of a "test" split aside).
        reference: the scorer that the others are compared with; None is the first reward model.
        resamples: of the bootstrap over prompts.
        permutations: of the permutation test, where it is not exact.
        seed: of sampling, resampling and permutations.
        cache: where what reward models said is kept.
    """

    benchmark: tuple[str, ...] = field(
        metadata={
            "help": "What to evaluate on, with commas between: rewardbench, rewardbench-legacy, rewardbench2, rmb, "
            "rm-bench, judgebench, llmbar, xstest, hhh, ifbench, rewardmath; files of your own (pairs, best-of-n, or "
            "pools with graded answers); or `all`: every benchmark found in --data."
        }
    )
    data: str | None = field(
        default=None,
        metadata={
            "help": "Folder with the benchmarks' files: clones of their repositories, or prepared Parquet files. "
            "Unset: EBRM_DATA if it is set, else the Hub."
        },
    )
    limit: int | None = field(
        default=None, metadata={"help": "Sample so many prompts of each benchmark. Unset: all of them."}
    )
    seen: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "Preference data or features folders that the models were trained on, with commas between: items "
            "with a prompt of theirs are left out and counted. Rows of a `test` split do not count as seen."
        },
    )
    reference: str | None = field(
        default=None,
        metadata={"help": "The scorer that differences are taken to, by its name. Unset: the first reward model."},
    )
    resamples: int = field(default=2000, metadata={"help": "Bootstrap resamples of the prompts."})
    permutations: int = field(
        default=9999, metadata={"help": "Random sign flips of the permutation test, where not all can be tried."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of sampling, bootstrap and permutation test."})
    cache: str | None = field(
        default=None,
        metadata={
            "help": "Folder that keeps what reward models said of texts. Unset: EBRM_CACHE if it is set, else ebrm in "
            "the user's cache folder."
        },
    )

    def __post_init__(self) -> None:
        if not self.benchmark or not all(name.strip() for name in self.benchmark):
            raise ConfigError("benchmark names nothing to evaluate on; give names with commas between, or `all`.")
        for name, least in (("limit", 1), ("resamples", 100), ("permutations", 99), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} is {value}; it must be at least {least}.")
