"""`ebrm fit`: from a reward model and preference pairs to a saved model, its report and its numbers."""

from __future__ import annotations

import logging
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ebrm.backbone import BackboneConfig
from ebrm.card import trust_in_words
from ebrm.cli.common import show_accuracy
from ebrm.cli.console import Console
from ebrm.cli.features import DATA_HELP
from ebrm.cli.heads import ObjectiveOptions, energy_config
from ebrm.cli.parser import Chosen, Command, Part
from ebrm.data import PreferenceConfig, TextConfig
from ebrm.errors import ConfigError, DataError
from ebrm.features import FeatureConfig
from ebrm.heads import FitConfig, InferenceConfig, NetworkConfig, TrainingConfig
from ebrm.utils.files import read_json, sha256_json, write_json

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitJob:
    """What is fitted on what, and where the model goes."""

    out: str = field(
        metadata={"help": "Folder to write: the model, metrics.json and report.html. An interrupted fit is continued."}
    )
    data: str | None = field(default=None, metadata={"help": DATA_HELP})
    features: str | None = field(
        default=None,
        metadata={
            "help": "Features folder that `ebrm features` wrote, instead of --backbone, --data and the options of "
            "reading."
        },
    )
    keep_features: bool = field(
        default=False, metadata={"help": "Keep the features read in this run in OUT/features, for other fits."}
    )
    trackers: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "Also log the curves with these: tensorboard (to OUT-logs), wandb, trackio (extra `trackers`)."
        },
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace a model that is there already."})


_CONFIGS = {
    "job": FitJob,
    "reward_model": BackboneConfig,
    "data": PreferenceConfig,
    "text": TextConfig,
    "fit": FitConfig,
    "objective": ObjectiveOptions,
    "network": NetworkConfig,
    "training": TrainingConfig,
    "inference": InferenceConfig,
    "storage": FeatureConfig,
}
#: The stages of the energy's config.
_HEAD = (NetworkConfig, ObjectiveOptions, TrainingConfig, InferenceConfig)
#: What decides how features are made, and nothing after that.
_READING = (BackboneConfig, PreferenceConfig, TextConfig, FeatureConfig)


def fit(console: Console, chosen: Chosen) -> None:
    """Refine a reward model with preference pairs: read, fit, measure, save, report.

    Give --backbone and --data, or --features. Pairs are divided by prompt into those fitted on, those that choose
    the epoch, and those that measure the result. A fit that is stopped goes on when the same command is given
    again.
    """
    job = chosen.of(FitJob)
    from_text = job.features is None
    if from_text and job.data is None:
        raise ConfigError("Nothing to fit on: give --backbone and --data, or --features.")
    if not from_text:
        _refuse_unused(job, chosen)
    reward_model = chosen.of(BackboneConfig) if from_text else None
    stages: dict[type, Any] = {
        kind: chosen.of(kind) for kind in _CONFIGS.values() if kind not in (FitJob, BackboneConfig)
    }
    out = Path(job.out)
    work = _claim(out, job, [asdict(value) for value in (reward_model, *stages.values()) if value is not None])
    console.kept = "What is finished is kept; run the same command again to go on."
    from ebrm.fitting import fit, tracked

    settings = {name: asdict(stages[kind]) for name, kind in _CONFIGS.items() if kind in stages}
    with tracked(job.trackers, out.with_name(out.name + "-logs"), settings) as log:
        reading: dict[str, Any] = {}
        if reward_model is not None:
            reading = {
                "backbone": reward_model,
                "data": stages[PreferenceConfig],
                "text": stages[TextConfig],
                "features": stages[FeatureConfig],
            }
        fitted = fit(
            job.features or (reward_model.backbone if reward_model is not None else ""),
            job.data,
            head=energy_config(*(stages[kind] for kind in _HEAD)),
            config=stages[FitConfig],
            work=work,
            device=str(chosen.given(BackboneConfig).get("device", "auto")),
            on_epoch=log,
            **reading,
        )
    made = work / "model"
    shutil.rmtree(made, ignore_errors=True)
    metrics = fitted.save(made).metrics
    if job.keep_features and from_text:
        (work / "features").rename(made / "features")
    _put_in_place(made, out, work)
    _show(console, metrics, out)
    console.result({"out": str(out), "metrics": metrics})


def _refuse_unused(job: FitJob, chosen: Chosen) -> None:
    """Raise ConfigError if something was given that features leave no room for."""
    unused = ["--data"] * (job.data is not None) + ["--keep-features"] * job.keep_features
    # The device is also where the energy is fitted.
    unused += [
        o.flag for o in chosen.options if o.key in chosen.values and o.key != "device" and {*o.configs} & {*_READING}
    ]
    if unused:
        raise ConfigError(
            f"--features was given together with {', '.join(unused)} (typed or in the --config file). Features hold "
            "what the reward model said of the data, as it was read then: give either --features, or --backbone and "
            "--data with the options of reading."
        )


def _claim(out: Path, job: FitJob, settings: list[dict[str, Any]]) -> Path:
    """The folder beside `out` where the fit works until it is complete.

    Raises:
        DataError: something is at `out`, or another fit is unfinished there, without --overwrite.
    """
    if not job.overwrite:
        if out.is_dir() and any(out.iterdir()):
            raise DataError(
                f"--out {out} exists already and is not empty; it was left as it is. Choose another name, or "
                "--overwrite to replace it."
            )
        if out.exists() and not out.is_dir():
            raise DataError(f"--out {out} is a file; it was left as it is. Name a folder that does not exist yet.")
    elif out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / "config.json").is_file()):
        raise DataError(f"--out {out} does not hold a model, so --overwrite does not replace it. Choose another name.")
    work = out.with_name(f".{out.name}.work")
    mark = {"job": sha256_json([job.data, job.features, settings])}
    stored: Any = None
    if (work / "job.json").is_file():
        try:
            stored = read_json(work / "job.json")
        except ValueError:
            stored = "unreadable"
    if stored is not None and stored != mark:
        if not job.overwrite:
            raise DataError(
                f"{work} holds an unfinished fit with other data or settings. Give the command that began it to finish "
                "it, or --overwrite to discard it and start anew."
            )
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    write_json(work / "job.json", mark)
    return work


def _put_in_place(made: Path, out: Path, work: Path) -> None:
    """Move the complete model to `out`; what was there goes only then."""
    if out.exists():
        old = work / "old"
        shutil.rmtree(old, ignore_errors=True)
        out.rename(old)
    made.rename(out)
    shutil.rmtree(work)


def _show(console: Console, metrics: dict[str, Any], out: Path) -> None:
    show_accuracy(console, metrics)
    kept = metrics["kept_fraction"]
    used = "all were used" if kept == 1 else f"the conflict filter kept {kept:.1%}"
    facts = [
        ("labels", f"the base RM contradicts {metrics['contradicted_fraction']:.1%} of the training pairs ({used})"),
        ("trust", trust_in_words(metrics["trust"])),
        ("model", str(out)),
        ("numbers", str(out / "metrics.json")),
    ]
    if metrics["pairs"]:
        facts.append(("report", str(out / "report.html")))
    console.facts(facts)


command = Command("fit", fit, {name: Part(config) for name, config in _CONFIGS.items()})
