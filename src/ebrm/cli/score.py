"""`ebrm score MODEL IN --out OUT`: refined rewards for every row of a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from ebrm.backbone import BackboneConfig
from ebrm.cli.common import Model
from ebrm.cli.console import Console
from ebrm.cli.parser import Chosen, Command, Part
from ebrm.data import TextConfig
from ebrm.heads import InferenceConfig
from ebrm.scoring import ScoreConfig


@dataclass(frozen=True)
class Output:
    """Where scored rows go.

    Attributes:
        out: File to write: .jsonl, .parquet or .csv. Rows come out in the order they came in.
    """

    out: str


def score(
    console: Console,
    chosen: Chosen,
    model: Model,
    source: Annotated[
        str,
        Parameter(
            name="IN",
            help="Rows to score (.jsonl, .json, .csv, .tsv, .parquet): prompt and response, or prompt and a list of "
            "responses, or messages that end in the assistant's, or preference pairs. Or a features folder, which "
            "needs no reward model.",
        ),
    ],
) -> None:
    """Score a file: every row comes out with its refined reward, base reward and uncertainty.

    The rows keep their columns and order. A run that is stopped, by Ctrl-C or by force, goes on where it was when
    the same command is given again, and ends with the same bytes. Settings of inference and of the reward model
    that are not given are those the model was saved with.
    """
    from ebrm.metrics import FEW
    from ebrm.model import EnergyRewardModel
    from ebrm.scoring import file_kind, score_file

    config, out = chosen.of(ScoreConfig), chosen.of(Output).out
    file_kind(Path(out))
    loaded = EnergyRewardModel.from_pretrained(model).with_inference(**chosen.given(InferenceConfig))

    def scored(done: int, rows: int) -> None:
        if done:
            console.kept = "The rows scored so far are kept; run the same command again to go on."

    how = chosen.given(BackboneConfig) | chosen.given(TextConfig)
    found = score_file(loaded, source, out, config, backbone=how, on_progress=scored)
    if found["errors"]:
        console.note(
            f"{found['errors']:,} of {found['rows']:,} rows could not be scored; the reason stands in their column "
            f"{config.prefix}error."
        )
    if found["empty"]:
        console.note(f"{found['empty']:,} responses are empty; they are scored like any other.")
    facts = [("rows", f"{found['rows']:,}, {found['scored']:,} scored"), ("prompts fitted on", fitted_words(found))]
    if found.get("truncated"):
        facts.append(("prompts cut", f"in {found['truncated']:,} rows (column {config.prefix}truncated: tokens)"))
    for name, words in (("", ""), ("training_", "training rows: ")):
        if found.get(f"{name}mean_reward") is not None:
            facts += [
                (
                    f"{words}mean reward",
                    f"{found[f'{name}mean_reward']:.4g} (base {found[f'{name}mean_base_reward']:.4g})",
                ),
                (f"{words}mean std", f"{found[f'{name}mean_std']:.4g}"),
                (f"{words}mean change", f"{found[f'{name}mean_abs_delta']:.4g} up or down"),
            ]
        if found.get(f"{name}accuracy") is not None:
            share = f"{found[f'{name}accuracy']:.1%} (base {found[f'{name}base_accuracy']:.1%})"
            pairs = found[f"{name}pairs"]
            share += f" of {pairs:,} pairs{', too few to tell' if pairs < FEW else ''}"
            facts.append((f"{words}chosen first", f"{share}, which says nothing of others" if name else share))
    console.facts([*facts, ("written", out)])
    console.result({"out": out, **found})


def fitted_words(found: dict[str, Any]) -> str:
    """How many rows have prompts that the model was fitted on."""
    count = found["fitted_on"]
    if count is None:
        return "not known (the model does not say, or the rows' prompts have no ids to compare)"
    return f"those of {count:,} of {found['rows']:,} rows" if count else "none of them"


# What a stored model leaves open: where and how fast its reward model runs, and where to find it.
_RUNNING = (
    "backbone",
    "revision",
    "base",
    "device",
    "dtype",
    "attention",
    "trust_remote_code",
    "token_budget",
    "server",
)
command = Command(
    "score",
    score,
    {
        "output": Part(Output),
        "scoring": Part(ScoreConfig),
        "inference": Part(InferenceConfig, saved=True),
        "text": Part(TextConfig, ("truncation", "rendered"), saved=True),
        "reward_model": Part(BackboneConfig, _RUNNING, saved=True),
    },
)
