"""`ebrm features --backbone RM --data DATA --out DIR`: read every text once and keep embeddings and rewards."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ebrm.backbone import BackboneConfig
from ebrm.cli.common import one_or_several, out_folder
from ebrm.cli.console import Console
from ebrm.cli.parser import Chosen, Command, Part
from ebrm.data import PreferenceConfig, TextConfig
from ebrm.features import EngineConfig, FeatureConfig

_LEFT_OUT = {
    "dropped": "pairs dropped because a text is too long",
    "truncated": "texts with their prompt cut from the left",
}


@dataclass(frozen=True)
class FeaturesJob:
    """What is read and where it goes.

    Attributes:
        data: preference pairs: a file, folder or pattern (.jsonl, .json, .csv, .tsv, .parquet), or a Hub data set
            (owner/name[:config][@revision]); give it several times for several.
        out: folder to write. An unfinished one of the same data and model is continued.
    """

    data: tuple[str, ...] = field(metadata={"repeat": True})
    out: str


def features(console: Console, chosen: Chosen) -> None:
    """Read preference pairs with a reward model and keep embeddings and rewards on disk.

    Fits and scores can then be made from the folder, without texts and without the reward model. A run that is
    stopped goes on when the same command is given again. On several GPUs of one machine: `accelerate launch -m
    ebrm features` with the same options; on several machines: `--engine ray`.
    """
    job, here, machines = chosen.of(FeaturesJob), chosen.of(BackboneConfig), chosen.of(EngineConfig)
    data, text, storage = chosen.of(PreferenceConfig), chosen.of(TextConfig), chosen.of(FeatureConfig)
    out_folder(job.out)
    engine = None
    if machines.engine == "ray":
        from ebrm.features import ray_engine

        engine = ray_engine(here, text, machines)
        here = replace(here, device="cpu")  # this process only tokenizes; the GPUs are for the actors
    from ebrm.backbone import load_backbone
    from ebrm.data import load_preferences
    from ebrm.features import extract_features

    preferences = load_preferences(one_or_several(job.data), data)  # logs its report
    console.kept = "Finished shards are kept; run the same command again to go on."
    backbone = load_backbone(here, text)
    made = extract_features(backbone, preferences, job.out, storage, engine=engine, bad_rows=data.bad_rows).manifest
    texts = f"{made['items']:,} different, {made['pairs']:,} pairs"
    for name, words in _LEFT_OUT.items():
        texts += f"; {made[name]:,} {words}" if made.get(name) else ""
    drift = made.get("batch_drift")
    console.facts(
        [
            ("data", preferences.report.summary()),
            ("texts", texts),
            ("embedding", f"{made['embedding_size']} dimensions, {made['embedding_dtype']}"),
            ("batching error", "not measured" if drift is None else f"{drift:.2g} (largest difference of a reward)"),
            ("written", job.out),
        ]
    )
    names = ("items", "pairs", "embedding_size", "embedding_dtype", "truncated", "dropped", "bad_rows", "batch_drift")
    data_report = {"out": job.out, "data": preferences.report.to_dict()}
    console.result(data_report | {name: made.get(name) for name in names})


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
