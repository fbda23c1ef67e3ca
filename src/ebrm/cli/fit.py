"""`ebrm fit`: from a reward model and preference pairs to a saved model, its report and its numbers."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ebrm.backbone import BackboneConfig
from ebrm.cli.common import one_or_several, out_folder, show_accuracy, written_facts
from ebrm.cli.console import Console
from ebrm.cli.heads import HeadChoice, chosen_head, head_parts, refuse
from ebrm.cli.parser import Chosen, Command, Part
from ebrm.cli.work import check_out, place, work_folder
from ebrm.data import PreferenceConfig, TextConfig
from ebrm.errors import ConfigError
from ebrm.features import FeatureConfig
from ebrm.heads import FitConfig


@dataclass(frozen=True)
class FitJob:
    """What is fitted on what, and where the model goes.

    Attributes:
        out: folder to write: the model, metrics.json and report.html. An interrupted fit is continued.
        data: preference pairs: a file, folder or pattern (.jsonl, .json, .csv, .tsv, .parquet), or a Hub data set
            (owner/name[:config][@revision]); give it several times for several. With --features: the data that these
            were made from, for the texts in the report.
        features: features folder that `ebrm features` wrote, instead of --backbone and the options of reading.
        keep: anchors, texts whose reward should not move: preference pairs or rows of prompt and response, as for
            --data (labels are not fitted on), or a features folder of the same reward model.
        risk: find the confidence above which pairs can be decided with this share of wrong decisions, on the test
            pairs, and store it in the model.
        keep_features: keep the features read in this run in OUT/features, for other fits.
        trackers: also log the curves with these: tensorboard (to OUT-logs), wandb, trackio (extra `trackers`).
        overwrite: replace a model that is there already.
        restart: discard an unfinished fit that would write to the same place, and begin anew; a finished model stays.
    """

    out: str
    data: tuple[str, ...] = field(default=(), metadata={"repeat": True})
    features: str | None = None
    keep: str | None = None
    risk: float | None = None
    keep_features: bool = False
    trackers: tuple[str, ...] = ()
    overwrite: bool = False
    restart: bool = False


#: What decides how features are made, and nothing after that.
_READING = (BackboneConfig, PreferenceConfig, TextConfig, FeatureConfig)


def fit(console: Console, chosen: Chosen) -> None:
    """Refine a reward model with preference pairs: read, fit, measure, save, report.

    Give --backbone and --data, or --features. Pairs are divided by prompt into those fitted on, those that choose
    the epoch, and those that measure the result. A fit that is stopped goes on when the same command is given
    again. --head chooses what is fitted, and which options there are for it.
    """
    job, head = chosen.of(FitJob), chosen_head(chosen)
    if job.risk is not None:  # before anything is read
        from ebrm.utils.validation import check_setting  # not before: it loads torch

        check_setting("risk", job.risk, above=0, below=1)
    config = chosen.of(FitConfig(filter_conflicts=chosen.of(HeadChoice).paper is not None))
    if job.features is not None:
        from ebrm.features import is_features, read_manifest  # not before: they load torch

        if not is_features(job.features):
            read_manifest(Path(job.features))  # says what is there instead
    reading = _reading(job, chosen)
    settings = {name: asdict(value) for name, value in reading.items()}
    settings |= {"head": head.to_dict(), "fit": asdict(config)}
    out = out_folder(job.out)
    check_out(out, job.overwrite)
    with work_folder(out, _groups(job, settings), job.restart, partial(_flag, chosen), console) as work:
        import ebrm
        from ebrm.fitting import tracked

        source = job.features or reading["backbone"].backbone
        device = chosen.given(BackboneConfig).get("device", "auto")
        given: dict[str, Any] = {"keep": job.keep, "head": head, "config": config, "work": work, "device": device}
        with tracked(job.trackers, out.with_name(out.name + "-logs"), settings) as log:
            result = ebrm.fit(source, one_or_several(job.data), on_epoch=log, **given, **reading)
        promises = _promises(result, job.risk)
        made = work / "model"
        shutil.rmtree(made, ignore_errors=True)
        metrics = result.save(made).metrics
        if job.keep_features:
            (work / "features").rename(made / "features")
        shutil.rmtree(work / "old", ignore_errors=True)
        if out.exists():  # what was there goes only now that the model is complete
            out.rename(work / "old")
        made.rename(out)
        shutil.rmtree(work)
    _show(console, metrics, out)
    for sentence in promises:
        console.print(sentence)
    console.result({"out": str(out), "metrics": metrics})


def _groups(job: FitJob, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a fit by what depends on them: what is read and how, the anchors, the head and its fit."""
    return {
        "source": {"data": [place(one) for one in job.data], "features": place(job.features)},
        "reading": {name: settings[name] for name in settings if name not in ("head", "fit")},
        "anchors": {"keep": place(job.keep)},
        "head": settings["head"],
        "fit": settings["fit"],
    }


def _flag(chosen: Chosen, name: str) -> str:
    """The option that a setting of `_groups` came from."""
    path = name.removesuffix(".kind").split(".")
    group, field = path[1:3] if path[0] == "reading" else (["", *path][-2], path[-1])
    group = {"backbone": "reward_model", "features": "storage"}.get(group, group)
    known = {option.group: option.flag for option in chosen.options if option.field == field}
    return known.get(group) or next(iter(known.values()), "--" + field.replace("_", "-"))


def _promises(result: Any, risk: float | None) -> list[str]:
    """What is promised at a risk, by the test pairs; the thresholds go into the model."""
    if risk is None:
        return []
    import numpy as np

    from ebrm.confidence import abstain

    held = result.pairs.select(result.splits.test)
    generator = np.random.default_rng(result.model.record.fit.seed)
    model, *rules = abstain(result.model, result.features, held, risk, generator=generator)
    result.model.record = model.record
    return [rule.sentence() for rule in rules]


def _reading(job: FitJob, chosen: Chosen) -> dict[str, Any]:
    """How preferences are read; nothing where features are given.

    Raises:
        ConfigError: neither is given, or options that have no effect on features.
    """
    if job.features is None:
        if not job.data:
            raise ConfigError("Nothing to fit on: give --backbone and --data, or --features.")
        configs = {"backbone": BackboneConfig, "data": PreferenceConfig, "text": TextConfig, "features": FeatureConfig}
        return {name: chosen.of(config) for name, config in configs.items()}
    unused = ["--keep-features"] * job.keep_features
    # The device is also where the head is fitted, and to restart is of the whole fit.
    given = chosen.flags(*(kind for kind in _READING if kind is not PreferenceConfig or not job.data))
    unused += [flag for flag in given if flag not in ("--device", "--restart")]
    if unused:
        raise ConfigError(
            f"--features was given together with {', '.join(unused)} (typed or in the --config file). Features hold "
            "embeddings and rewards as they were read then: give either --features, or --backbone and --data with the "
            "options of reading."
        )
    return {"data": chosen.of(PreferenceConfig)} if job.data else {}


def _show(console: Console, metrics: dict[str, Any], out: Path) -> None:
    show_accuracy(console, metrics)
    used = "all were used"
    if (kept := metrics["kept_fraction"]) < 1:
        used = f"the conflict filter kept {kept:.1%}"
    labels = f"the base RM contradicts {metrics['contradicted_fraction']:.1%} of the training pairs ({used})"
    facts = [("labels", labels), *written_facts(metrics, out, out)]
    console.facts(facts if metrics["pairs"] else facts[:-1])  # nothing measured, no report


def _parts(choice: Mapping[str, Any]) -> dict[str, Part]:
    return {
        "job": Part(FitJob),
        "reward_model": Part(BackboneConfig, unless="--features"),
        "data": Part(PreferenceConfig),
        "text": Part(TextConfig),
        **head_parts(choice),
        "fit": Part(FitConfig(filter_conflicts=choice["paper"] is not None)),
        "storage": Part(FeatureConfig),
    }


command = Command("fit", fit, _parts, {"head": "head", "objective": "head", "paper": "head"}, refuse)
