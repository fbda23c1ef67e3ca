"""`ebrm fit`: from a reward model and preference pairs to a saved model, its report and its numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from ebrm.backbone import BackboneConfig
from ebrm.cli.common import one_or_several, out_folder, show_accuracy, written_facts
from ebrm.cli.console import Console
from ebrm.cli.heads import HeadChoice, chosen_head, head_parts, refuse
from ebrm.cli.parser import Chosen, Command, Part
from ebrm.cli.work import (
    FREE,
    check_out,
    differences,
    finished,
    forget,
    fresh_model,
    model_place,
    place,
    put_in_place,
    work_folder,
    work_of,
)
from ebrm.data import PreferenceConfig, TextConfig
from ebrm.errors import ConfigError, DataError, ModelError
from ebrm.features import FeatureConfig
from ebrm.heads import FitConfig
from ebrm.hub import read_config
from ebrm.utils.outputs import contents, refuse_replacing
from ebrm.utils.stored import read_json


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


#: Groups of settings that say where something is, and not what.
_PLACES = ("source", "anchors")
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
    out_folder(job.out)
    flag, rm = partial(_flag, chosen), settings.get("backbone", {})
    inputs = {"`data`": job.data, "`features`": job.features, "`keep`": job.keep}
    inputs |= {f"`{name}`": rm.get(name) for name in ("backbone", "base")}
    with model_place(job.out) as (out, ended):
        groups = _groups(job, settings, rm, out)
        unlike = _unlike_model(out, groups, reading, flag)
        if unlike == [] and (ended or not job.overwrite):
            forget(work_of(out), groups)
            console.note(f"{job.out} is complete already: the same data and settings. --overwrite fits it again.")
            _show_model(console, Path(job.out))
            return
        if job.overwrite:
            refuse_replacing(out, inputs)
        check_out(out, job.overwrite, unlike or ())
        _refuse_mixed_features(job, out)
        with work_folder(out, groups, job.restart, flag, console) as work:
            if not finished(work):
                _fit(job, chosen, head, config, reading, groups, work, out)
            moved = put_in_place(work, out, job.overwrite)
    if moved:
        count = "1 file or folder" if len(moved) == 1 else f"{len(moved):,} files and folders"
        console.note(f"{count} of yours in {job.out} stayed there: {', '.join(moved[:5])}{', …' if moved[5:] else ''}.")
    _show_model(console, Path(job.out))


def _fit(
    job: FitJob, chosen: Chosen, head: Any, config: FitConfig, reading: dict[str, Any], groups: dict[str, Any],
    work: Path, out: Path,
) -> None:  # fmt: skip
    """Fit and write the model into the work."""
    import ebrm
    from ebrm.fitting import tracked

    source = job.features or reading["backbone"].backbone
    device = chosen.given(BackboneConfig).get("device", "auto")
    logged = groups["reading"] | {"head": groups["head"], "fit": groups["fit"]}
    given: dict[str, Any] = {"keep": job.keep, "head": head, "config": config, "work": work, "device": device}
    with tracked(job.trackers, out.with_name(out.name + "-logs"), logged) as log:
        result = ebrm.fit(source, one_or_several(job.data), on_epoch=log, **given, **reading)
    _promise(result, job.risk)
    result.model.record.data["settings"] = _stored(groups, reading)
    made = fresh_model(work)
    result.save(made)
    if job.keep_features:
        (work / "features").rename(made / "features")


def _show_model(console: Console, out: Path) -> None:
    """What a finished model's folder says."""
    from ebrm.model import EnergyRewardModel

    again = "Fit again with --overwrite to have it written anew."
    metrics = read_json(out / "metrics.json", "FitMetrics", error=ModelError, do=again)
    _show(console, metrics, out)
    for rule in EnergyRewardModel.from_pretrained(out).record.abstention:
        console.print(rule.sentence())
    console.result({"out": str(out), "metrics": metrics})


def _unlike_model(
    out: Path, groups: Mapping[str, Any], reading: Mapping[str, Any], flag: Callable[[str], str]
) -> list[str] | None:
    """In which settings the model at `out` differs from those asked for; None where it does not say, or is damaged."""
    try:
        then = read_config(out)["data"]["settings"]
        known = {name: _defaults(type(value)) | then["reading"].get(name, {}) for name, value in reading.items()}
        then = then | {"reading": then["reading"] | known, "fit": _defaults(FitConfig) | then["fit"]}
        now = {name: value for name, value in groups.items() if name not in _PLACES}
        return differences(then, now, flag) if (out / "metrics.json").is_file() else None
    except (ModelError, KeyError, TypeError, AttributeError):
        return None


def _refuse_mixed_features(job: FitJob, out: Path) -> None:
    """DataError where features that are to be kept would take the place of something else."""
    from ebrm.features import is_features

    there = out / "features"
    if job.keep_features and there.exists() and not is_features(there):
        raise DataError(f"{there} holds no features, so --keep-features does not replace it. Choose another --out.")


def _stored(groups: Mapping[str, Any], reading: Mapping[str, Any]) -> dict[str, Any]:
    """What a model says of how it was made: settings other than the defaults, and digests of what was read."""
    stored = {name: value for name, value in groups.items() if name not in _PLACES}
    stored["reading"] = {name: _not_default(groups["reading"][name], type(value)) for name, value in reading.items()}
    stored["fit"] = _not_default(groups["fit"], FitConfig)
    found: dict[str, Any] = json.loads(json.dumps(stored))
    return found


def _not_default(values: Mapping[str, Any], config: type) -> dict[str, Any]:
    default = _defaults(config)
    return {name: value for name, value in values.items() if value != default[name] and name not in FREE}


def _defaults(config: type) -> dict[str, Any]:
    return {
        one.name: None if one.default is one.default_factory is MISSING
        else one.default if one.default_factory is MISSING else one.default_factory()
        for one in fields(config)
    }  # fmt: skip


def _groups(job: FitJob, settings: Mapping[str, Any], rm: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """The settings of a fit by what depends on them: what is read and how, the anchors, the head and its fit."""
    return {
        "source": {"data": [place(one) for one in job.data], "features": place(job.features)},
        "reading": {name: settings[name] for name in settings if name not in ("head", "fit")},
        "anchors": {"keep": place(job.keep)},
        "head": settings["head"],
        "fit": settings["fit"],
        "result": {"risk": job.risk, "keep_features": job.keep_features},
        "contents": {
            "data": [contents(one, out) for one in job.data],
            **{name: contents(getattr(job, name), out) for name in ("features", "keep")},
            **{name: contents(rm.get(name), out, whole=False) for name in ("backbone", "base")},
        },
    }


def _flag(chosen: Chosen, name: str) -> str:
    """The option that a setting of `_groups` came from."""
    path = name.removesuffix(".kind").split(".")
    group, field = path[1:3] if path[0] == "reading" else (["", *path][-2], path[-1])
    group = {"backbone": "reward_model", "features": "storage"}.get(group, group)
    known = {option.group: option.flag for option in chosen.options if option.field == field}
    return known.get(group) or next(iter(known.values()), "--" + field.replace("_", "-"))


def _promise(result: Any, risk: float | None) -> None:
    """Find what can be promised at a risk, by the test pairs; the thresholds go into the model."""
    if risk is None:
        return
    import numpy as np

    from ebrm.confidence import abstain

    held = result.pairs.select(result.splits.test)
    generator = np.random.default_rng(result.model.record.fit.seed)
    model, *_ = abstain(result.model, result.features, held, risk, generator=generator)
    result.model.record = model.record


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
