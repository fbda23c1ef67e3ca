"""`ebrm export MODEL --out FOLDER`: a folder that transformers loads."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from ebrm.backbone import BackboneConfig
from ebrm.cli.console import Screen
from ebrm.cli.options import Chosen, command


@dataclass(frozen=True)
class ExportJob:
    """Where the model goes and what goes with it."""

    out: str = field(metadata={"help": "Folder to write; it must not exist yet, or be empty."})
    standalone: bool = field(
        default=False,
        metadata={
            "help": "Write the reward model's weights, too. Otherwise the folder is small and refers to the reward "
            "model by name, revision and fingerprint: it loads only where that can be had."
        },
    )


# Where to find the reward model, and in which precision its weights are written.
_ONLY = {"reward_model": ("backbone", "revision", "device", "dtype", "trust_remote_code")}


def register(app: typer.Typer) -> None:
    """Add the command."""

    @command(app, "export", {"job": ExportJob, "reward_model": BackboneConfig}, _ONLY, saved=("reward_model",))
    def export(
        screen: Screen,
        chosen: Chosen,
        model: Annotated[str, typer.Argument(help="Folder that `ebrm fit` wrote, or a Hub name.")],
    ) -> None:
        """Export a model for transformers, with a tokenizer that writes texts as ebrm does.

        After `ebrm.register()`, AutoModelForSequenceClassification.from_pretrained(FOLDER) loads it, and TRL's trainers
        take FOLDER as a reward model. Settings of the reward model that are not given are those of the fit.
        """
        _export(screen, chosen, model)


def _export(screen: Screen, chosen: Chosen, name: str) -> None:
    job = chosen.of(ExportJob)
    out = Path(job.out)
    from ebrm.integrations import export, refuse_used
    from ebrm.model import EnergyRewardModel

    refuse_used(out)  # before minutes of loading, not after
    model = EnergyRewardModel.from_pretrained(name)
    changes = chosen.given(BackboneConfig)
    if model.record.text_rule is not None:
        # On the CPU unless told otherwise: nothing is computed here.
        model = model.with_backbone(**{"device": "cpu"} | changes)
    export(model, out, job.standalone)
    size = sum(path.stat().st_size for path in out.iterdir())
    kind = "standalone" if job.standalone else f"refers to {model.record.backbone.get('name')}"
    screen.facts([("model", str(out)), ("kind", kind), ("bytes", f"{size:,}")])
    screen.result({"out": str(out), "standalone": job.standalone, "bytes": size})
