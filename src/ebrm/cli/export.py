"""`ebrm export MODEL --out FOLDER`: a folder that transformers loads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ebrm.backbone import BackboneConfig
from ebrm.cli.common import Model
from ebrm.cli.console import Console
from ebrm.cli.parser import Chosen, Command, Part


@dataclass(frozen=True)
class ExportJob:
    """Where the model goes and what goes with it.

    Attributes:
        out: folder to write; it must not exist yet, or be empty.
        standalone: write the reward model's weights, too. Otherwise the folder is small and refers to the
            reward model by name, revision and fingerprint: it loads only where that can be had.
    """

    out: str
    standalone: bool = False


def export(console: Console, chosen: Chosen, model: Model) -> None:
    """Export a model for transformers, with a tokenizer that writes texts as ebrm does.

    After `ebrm.register()`, AutoModelForSequenceClassification.from_pretrained(FOLDER) loads it, and TRL's trainers
    take FOLDER as a reward model. Settings of the reward model that are not given are those of the fit.
    """
    job = chosen.of(ExportJob)
    out = Path(job.out)
    from ebrm import integrations
    from ebrm.model import EnergyRewardModel

    integrations.refuse_used(out)  # before minutes of loading, not after
    loaded = EnergyRewardModel.from_pretrained(model)
    changes = chosen.given(BackboneConfig)
    if loaded.record.text_rule is not None:
        # On the CPU unless told otherwise: nothing is computed here.
        loaded = loaded.with_backbone(**{"device": "cpu"} | changes)
    integrations.export(loaded, out, job.standalone)
    size = sum(path.stat().st_size for path in out.iterdir())
    kind = "standalone" if job.standalone else f"refers to {loaded.record.backbone.get('name')}"
    console.facts([("model", str(out)), ("kind", kind), ("bytes", f"{size:,}")])
    console.result({"out": str(out), "standalone": job.standalone, "bytes": size})


# Where to find the reward model, and in which precision its weights are written.
_PLACE = ("backbone", "revision", "base", "device", "dtype", "trust_remote_code")
command = Command("export", export, {"job": Part(ExportJob), "reward_model": Part(BackboneConfig, _PLACE, saved=True)})
