"""`ebrm curate DATA --step NAME --out DIR`: steps of curation on a file of preference pairs."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Annotated, Literal

from cyclopts import Parameter

from ebrm.backbone import BackboneConfig
from ebrm.cli.common import out_folder
from ebrm.cli.console import Console
from ebrm.cli.parser import Chosen, Command, Part
from ebrm.curate import CurateConfig
from ebrm.data import PreferenceConfig, TextConfig
from ebrm.errors import ConfigError

#: How the names of a step's options begin.
_STEP_OF = {
    "flip_": "flip", "soft_": "soft-labels", "consensus_": "consensus", "dual_": "dual-consistency",
    "hard_": "hard-subset", "least_gap": "best-worst",
}  # fmt: skip


@dataclass(frozen=True)
class CurateJob:
    """Where rewards come from, and where curated pairs go.

    Attributes:
        out: folder for the pairs (pairs.jsonl), report.txt and results.json.
        features: folder of features of these pairs, made of the same file; their base rewards are the first reward.
        format: of the pairs.
        overwrite: replace files of these names that something else wrote, or that were changed.
    """

    out: str
    features: str | None = None
    format: Literal["jsonl", "csv", "parquet"] = "jsonl"
    overwrite: bool = False


def curate(
    console: Console,
    chosen: Chosen,
    source: Annotated[
        str,
        Parameter(
            name="DATA",
            help="Preference pairs, one a row (.jsonl, .json, .csv, .tsv, .parquet). For best-worst: prompt and "
            "response, or prompt and a list of responses, with rewards.",
        ),
    ],
) -> None:
    """Filter, flip, relabel or choose preference pairs by rewards, and write them for `ebrm fit`, with a report.

    Rewards come from features (--features), from a reward model (--backbone), or from columns of the file
    (--column-rewards), such as `ebrm score` writes. Rows keep all their columns; where sides are exchanged, so is what
    belongs to them. What the reward model read is kept in the folder, and a run that was stopped goes on there.
    """
    job, config = chosen.of(CurateJob), chosen.of(CurateConfig)
    for name in chosen.given(CurateConfig):
        step = next((step for prefix, step in _STEP_OF.items() if name.startswith(prefix)), None)
        if step is not None and step not in config.steps:
            raise ConfigError(
                f"`{name}` belongs to the step {step}, which is not among `steps` ({', '.join(config.steps)}). Leave "
                "it out, or add the step."
            )
    data, given = chosen.of(PreferenceConfig), chosen.given(BackboneConfig)
    out = out_folder(job.out)
    backbone = chosen.of(BackboneConfig) if "backbone" in given else None
    from ebrm.curating import curate_file

    if backbone is not None:
        console.kept = "What the reward model read is kept; run the same command again to go on."
    found = curate_file(
        source, out, config, data, features=job.features, backbone=backbone, text=chosen.of(TextConfig),
        format=job.format, overwrite=job.overwrite,
    )  # fmt: skip
    facts = [(step["step"], step["sentence"]) for step in found["steps"]]
    if found["skipped"]:
        facts.append(("left out", ", ".join(f"{count:,} {kind}" for kind, count in found["skipped"].items())))
    pairs = out / f"pairs.{job.format}"
    facts += [("pairs", f"{found['pairs']:,} of {found['pairs_read']:,}"), ("written", str(pairs))]
    if found["disputed"]:
        facts.append(("disputed", f"{found['disputed']:,} pairs, in {out / f'disputed.{job.format}'}"))
    columns = "".join(f" --column {shlex.quote(f'{ours}={theirs}')}" for ours, theirs in found["columns"].items())
    named = "RM" if backbone is None else shlex.quote(backbone.backbone)
    facts += [
        ("report", str(out / "report.txt")),
        ("to fit", f"ebrm fit --backbone {named} --data {shlex.quote(str(pairs))}{columns} --out MODEL"),
    ]
    console.facts(facts)
    console.result({"out": str(out), **found})


_READING = (
    "backbone",
    "revision",
    "base",
    "head",
    "device",
    "dtype",
    "attention",
    "trust_remote_code",
    "token_budget",
    "server",
)
command = Command(
    "curate",
    curate,
    {
        "curation": Part(CurateConfig),
        "job": Part(CurateJob),
        "data": Part(PreferenceConfig),
        "reward_model": Part(BackboneConfig, _READING, unless="--features or --column-rewards"),
        "text": Part(TextConfig),
    },
)
