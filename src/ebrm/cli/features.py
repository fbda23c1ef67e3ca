"""`ebrm features --backbone RM --data DATA --out DIR`: read every text once and keep embeddings and rewards."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ebrm.backbone import BackboneConfig
from ebrm.cli.common import out_folder
from ebrm.cli.console import Console
from ebrm.cli.parser import Chosen, Command, Part
from ebrm.data import PreferenceConfig, TextConfig
from ebrm.features import EngineConfig, FeatureConfig


@dataclass(frozen=True)
class FeaturesJob:
    """What is read and where it goes.

    Attributes:
        data: preference pairs: a file, folder or pattern (.jsonl, .json, .csv, .tsv, .parquet), or a Hub data set
            (owner/name[:config][@revision]).
        out: folder to write. An unfinished one of the same data and model is continued.
    """

    data: str
    out: str


def features(console: Console, chosen: Chosen) -> None:
    """Read preference pairs with a reward model and keep embeddings and rewards on disk.

    Fits and scores can then be made from the folder, without texts and without the reward model. A run that is
    stopped goes on when the same command is given again. On several GPUs of one machine: `accelerate launch -m
    ebrm features` with the same options; on several machines: `--engine ray`.
    """
    job = chosen.of(FeaturesJob)
    settings = chosen.of(BackboneConfig)
    data, text, storage = chosen.of(PreferenceConfig), chosen.of(TextConfig), chosen.of(FeatureConfig)
    machines = chosen.of(EngineConfig)
    out_folder(job.out)
    engine, here = None, settings
    if machines.engine == "ray":
        from ebrm.features import ray_engine

        engine = ray_engine(settings, text, machines)
        here = replace(settings, device="cpu")  # this process only tokenizes; the GPUs are for the actors
    from ebrm.data import load_preferences

    preferences = load_preferences(job.data, data)  # logs its report
    from ebrm.backbone import load_backbone
    from ebrm.features import extract_features

    console.kept = "Finished shards are kept; run the same command again to go on."
    made = extract_features(load_backbone(here, text), preferences, job.out, storage, engine=engine)
    report, manifest = preferences.report, made.manifest
    error = manifest.get("batch_drift")
    rows = [
        ("data", report.summary()),
        ("texts", f"{manifest['items']:,} different, {manifest['pairs']:,} pairs{_left_out(manifest)}"),
        ("embedding", f"{manifest['embedding_size']} dimensions, {manifest['embedding_dtype']}"),
        ("batching error", "not measured" if error is None else f"{error:.2g} (largest difference of a reward)"),
        ("written", job.out),
    ]
    console.facts(rows)
    names = ("items", "pairs", "embedding_size", "embedding_dtype", "truncated", "dropped", "batch_drift")
    result = {"out": job.out, "data": report.to_dict()}
    console.result(result | {name: manifest.get(name) for name in names})


def _left_out(manifest: dict[str, Any]) -> str:
    parts = (
        ("dropped", "pairs dropped because a text is too long"),
        ("truncated", "texts with their prompt cut from the left"),
    )
    return "".join(f"; {manifest[name]:,} {words}" for name, words in parts if manifest.get(name))


command = Command(
    "features",
    features,
    {
        "job": Part(FeaturesJob),
        "reward_model": Part(BackboneConfig),
        "data": Part(PreferenceConfig),
        "text": Part(TextConfig),
        "storage": Part(FeatureConfig),
        "engine": Part(EngineConfig),
    },
)
