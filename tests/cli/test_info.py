from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.terminal import ebrm, ebrm_process, refused

from ebrm.card import fusion_in_words


def shown(folder: Path, file: str = "config.json", **changes: Any) -> str:
    """What is shown after changes to the folder's JSON; None takes a key out."""
    values = json.loads((folder / file).read_text()) | changes
    (folder / file).write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    ran = ebrm("info", folder)
    assert ran.code == 0, ran.err
    return " ".join(ran.out.split())


def test_a_model(model: Path, rm: Path) -> None:
    ran = ebrm("info", model)
    assert ran.code == 0, ran.err
    for words in (
        str(rm), "LlamaForSequenceClassification", "chat template, at most 128 tokens", "the base RM contradicts",
        "(all were used)", "epochs", "held-out pairs", "base RM",
    ):  # fmt: skip
        assert words in " ".join(ran.out.split()), words  # a line may end between two of them
    assert "filter" not in ran.out.replace("filter_conflicts", "")
    found = ebrm("info", model, "--json").value
    assert found["kind"] == "model" and found["model"]["best_epoch"] >= 1


def test_how_base_reward_and_density_are_weighed_and_what_was_left_out(model: Path, tmp_path: Path) -> None:
    kept = shutil.copytree(model, tmp_path / "m")
    assert fusion_in_words(json.loads((model / "config.json").read_text())["fusion"]) in shown(kept)
    fusion = {"power": 0.5, "base_noise": None}
    assert "base reward given no weight; density to the power 0.5" in shown(kept, fusion=fusion)
    assert "to the power" not in shown(kept, fusion=None)
    counts = {"kept": 1400, "dropped": 2, "tied": 1}
    words = "labels the base RM contradicts 2 of 1,403 training pairs (all were used)"
    assert words in shown(kept, filter={**counts, "used": False})
    assert "conflict filter kept 1,400 of 1,403 training pairs" in shown(kept, filter={**counts, "used": True})


def test_features(features: Path) -> None:
    ran = ebrm("info", features)
    assert ran.code == 0 and "60 pairs" in " ".join(ran.out.split()), ran
    assert ebrm("info", features, "--json").value["features"]["pairs"] == 60


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        (None, "pooled position"), ([], "pooled position"), ([2], "pooled position + mean of block 2"),
        ([2, 4], "pooled position + mean of blocks 2 and 4"),
        ([1, 3, 12], "pooled position + mean of blocks 1, 3 and 12"),
    ],
)  # fmt: skip
def test_what_an_embedding_holds(model: Path, features: Path, tmp_path: Path, layers: Any, words: str) -> None:
    for folder, file, size in ((model, "config.json", ""), (features, "manifest.json", " (64 dimensions, float32)")):
        copy = shutil.copytree(folder, tmp_path / folder.name)
        backbone = {k: v for k, v in json.loads((copy / file).read_text())["backbone"].items() if k != "layers"}
        found = shown(copy, file, backbone=backbone | ({} if layers is None else {"layers": layers}))
        assert f"embedding {words}{size} " in found
        elsewhere = shown(copy, file, backbone={"name": "imported"})
        assert ("embedding 64 dimensions, float32 " in elsewhere) if size else (" embedding " not in elsewhere)


def test_neither_needs_torch(model: Path, features: Path) -> None:
    heavy = ("torch", "transformers", "numpy", "pyarrow")
    before = f"import atexit\natexit.register(lambda: print([n for n in {heavy} if n in sys.modules], file=sys.stderr))"
    for path in (model, features):
        ran = ebrm_process("info", path, "-q", before=before)
        assert (ran.code, ran.err) == (0, "[]\n")


def test_what_is_not_whole(model: Path, features: Path, rm: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(model, tmp_path / "m")
    data = bytearray((broken / "energy.safetensors").read_bytes())
    data[-1] ^= 1
    (broken / "energy.safetensors").write_bytes(data)
    refused(ebrm("info", broken), "energy.safetensors is damaged")
    (broken / "energy.safetensors").unlink()
    ran = ebrm("info", broken, "--json")
    refused(ran, "holds no energy.safetensors")
    assert "holds no" in ran.value["error"]["message"]
    (broken / "config.json").write_text("{")
    refused(ebrm("info", broken), "config.json", "it is not JSON")
    half = shutil.copytree(features, tmp_path / "f")
    (half / "shard-00001.safetensors").unlink()
    (half / "pairs.parquet").write_bytes(b"PAR1")
    refused(ebrm("info", half), "shard-00001.safetensors is missing", "pairs.parquet is damaged")
    refused(ebrm("info", rm), "not an ebrm model", "on which one can be fitted")
    refused(ebrm("info", tmp_path), "neither a model nor a features folder")
    refused(ebrm("info", "no/model"), "no/model")
    manifest = json.loads((half / "manifest.json").read_text())
    (half / "manifest.json").write_text(json.dumps({**manifest, "complete": False}))
    refused(ebrm("info", half), "unfinished")
