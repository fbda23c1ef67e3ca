"""`ebrm best-of-n POOL --out DIR`: what selecting responses by a reward is worth, along n and along KL."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ebrm.cli.common import at_least, out_folder, show_summary
from ebrm.cli.console import Console
from ebrm.cli.parser import Chosen, Command, Part
from ebrm.errors import DataError
from ebrm.evaluation import TrainingRule, check_training_rule
from ebrm.utils.outputs import results_folder
from ebrm.utils.stored import read_json


@dataclass(frozen=True)
class PoolConfig:
    """Which columns are what, and where the results go.

    Attributes:
        out: folder for curves.png, curves.csv and results.json; those of an earlier run are replaced.
        reward: columns with rewards, with commas between; differences are to the first. Unset: base_reward and
            reward, as `ebrm score` writes them, those of them that there are.
        gold: column with the worth of a response; higher is better.
        prompt_column: column that the responses to one prompt have in common. Unset: prompt_id, else prompt.
        columns: where a column has another name in the data: our name = its name (prompt=question). Our names:
            prompt, gold, reward, base_reward, fitted_on.
        training_items: prompts that a model was fitted on, by the column fitted_on that `ebrm score` writes: `skip`
            leaves them out and counts them; `label` keeps them, and calls the numbers those of training prompts.
        least: leave out prompts with fewer responses; curves end at the smallest pool that stays. Unset: as
            many as nine in ten prompts have.
        resamples: bootstrap resamples of the prompts.
        seed: seed of the bootstrap.
        overwrite: replace files of these names that something else wrote, or that were changed.
    """

    out: str
    reward: tuple[str, ...] = ()
    gold: str = "gold"
    prompt_column: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    training_items: TrainingRule = "skip"
    least: int | None = None
    resamples: int = 2000
    seed: int = 0
    overwrite: bool = False

    def __post_init__(self) -> None:
        check_training_rule(self.training_items)
        at_least(self, least=2, resamples=100, seed=0)


def best_of_n(
    console: Console,
    chosen: Chosen,
    pool: Annotated[
        str,
        Parameter(
            name="POOL",
            help="Responses, one a row or a list of them (.jsonl, .json, .csv, .tsv, .parquet): the prompt or its id, "
            "one or more rewards, and gold. `ebrm score` adds the rewards to such a file.",
        ),
    ],
) -> None:
    """Draw gold against n and against KL when a reward selects among the responses to a prompt.

    Gold of the best of n is the exact mean over all sets of n of a prompt's responses. KL is that of the policy
    that maximizes the reward under a KL penalty, from choosing at random among the responses. Intervals are over
    prompts; differences between rewards are paired.
    """
    settings = chosen.of(PoolConfig)
    out = out_folder(settings.out)
    from ebrm.evaluation import read_pools, select
    from ebrm.metrics import Bootstrap
    from ebrm.report import selection_summary, write_selection

    names = ("curves.png", "curves.csv", "results.json")
    with results_folder(out, "best-of-n", names, {"POOL": pool}, settings.overwrite) as new:
        pools = read_pools(
            pool, settings.reward, settings.gold, settings.prompt_column, settings.training_items, settings.columns
        )
        selection = select(pools, settings.least, bootstrap=Bootstrap(settings.resamples, seed=settings.seed))
        write_selection(new, selection, settings.gold, {"pool": Path(pool).name})
    show_summary(console, selection_summary(selection, settings.gold))
    console.facts([("picture", out / "curves.png"), ("numbers", out / "results.json"), ("table", out / "curves.csv")])
    found = read_json(out / "results.json", "Results", error=DataError, do="Run it again with --overwrite.")
    console.result({"out": str(out), **found})


command = Command("best-of-n", best_of_n, {"selection": Part(PoolConfig)})
