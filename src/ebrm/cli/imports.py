"""`ebrm import --arrays FILES --out DIR`: features made elsewhere, as a features folder."""

from __future__ import annotations

from dataclasses import dataclass, field

from ebrm.cli.common import out_folder
from ebrm.cli.console import Console
from ebrm.cli.parser import Chosen, Command, Part
from ebrm.features import FeatureConfig


@dataclass(frozen=True)
class ImportJob:
    """What is imported and where it goes.

    Attributes:
        arrays: npz, safetensors or Parquet files, npy files named by array, or a folder of them; several with
            commas. Needed: embedding [n, d] and reward [n]; chosen and rejected say which rows are pairs,
            otherwise rows alternate chosen, rejected.
        out: folder to write. An unfinished import of the same files is continued.
        backbone_name: the reward model that these come from.
        columns: where an array has another name: ours = theirs (reward=score).
    """

    arrays: tuple[str, ...]
    out: str
    backbone_name: str | None = None
    columns: dict[str, str] = field(default_factory=dict)


def import_(console: Console, chosen: Chosen) -> None:
    """Import embeddings and rewards made elsewhere, to fit and score without texts and without a reward model."""
    job = chosen.of(ImportJob)
    out_folder(job.out)
    from ebrm.features import import_features

    storage, arrays = chosen.of(FeatureConfig), list(job.arrays)
    made = import_features(arrays, job.out, storage, columns=job.columns, backbone_name=job.backbone_name).manifest
    console.facts(
        [
            ("rows", f"{made['items']:,}, {made['pairs']:,} pairs ({made['pairing']})"),
            ("embedding", f"{made['embedding_size']} dimensions, {made['embedding_dtype']}"),
            ("written", job.out),
        ]
    )
    names = ("items", "pairs", "pairing", "embedding_size", "embedding_dtype")
    console.result({"out": job.out, **{name: made[name] for name in names}})


command = Command("import", import_, {"job": Part(ImportJob), "storage": Part(FeatureConfig)})
