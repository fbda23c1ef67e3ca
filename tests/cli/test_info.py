from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from tests.terminal import child_environment, ebrm, refused

from ebrm.card import trust_in_words


def test_a_model(model: Path, rm: Path) -> None:
    ran = ebrm("info", model)
    assert ran.code == 0, ran.err
    for said in (
        str(rm),
        "LlamaForSequenceClassification",
        "chat template, at most 128 tokens",
        "the base RM contradicts",
        "(all were used)",
        "epochs",
        "held-out pairs",
        "base RM",
    ):
        assert said in ran.out, said
    assert "filter" not in ran.out.replace("filter_conflicts", "")
    found = ebrm("info", model, "--json").value
    assert found["kind"] == "model"
    assert found["model"]["best_epoch"] >= 1


def test_what_is_trusted_and_what_was_left_out(model: Path, tmp_path: Path) -> None:
    def shown(**changes: object) -> str:
        kept = shutil.copytree(model, tmp_path / "m", dirs_exist_ok=True)
        config = json.loads((model / "config.json").read_text()) | changes
        (kept / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
        ran = ebrm("info", kept)
        assert ran.code == 0, ran.err
        return " ".join(ran.out.split())

    assert f"trust {trust_in_words(json.loads((model / 'config.json').read_text())['trust'])}" in shown()
    trust = {"power": 0.5, "base_noise": None}
    assert "trust base reward given no weight; density to the power 0.5" in shown(trust=trust)
    assert "to the power" not in shown(trust=None)  # written before it was said
    counts = {"kept": 1400, "dropped": 2, "tied": 1}
    assert "labels the base RM contradicts 2 of 1,403 training pairs (all were used)" in shown(
        filter={**counts, "used": False}
    )
    assert "conflict filter kept 1,400 of 1,403 training pairs" in shown(filter={**counts, "used": True})


def test_features(features: Path) -> None:
    ran = ebrm("info", features)
    assert ran.code == 0, ran.err
    assert "60 pairs" in ran.out.replace("\n", " ")
    assert ebrm("info", features, "--json").value["features"]["pairs"] == 60


def test_what_an_embedding_holds(model: Path, features: Path, tmp_path: Path) -> None:
    def embedding(shown: str) -> str:
        return " ".join(
            word for line in shown.splitlines() if line.startswith("embedding") for word in line.split()[1:]
        )

    def with_layers(folder: Path, file: str, layers: list[int] | None) -> str:
        values = json.loads((folder / file).read_text())
        values["backbone"] = {name: value for name, value in values["backbone"].items() if name != "layers"}
        if layers is not None:
            values["backbone"]["layers"] = layers
        (folder / file).write_text(json.dumps(values))
        ran = ebrm("info", folder)
        assert ran.code == 0, ran.err
        return embedding(ran.out)

    kept, read = shutil.copytree(model, tmp_path / "m"), shutil.copytree(features, tmp_path / "f")
    for layers, said in (
        (None, "pooled position"),
        ([], "pooled position"),
        ([2], "pooled position + mean of block 2"),
        ([2, 4], "pooled position + mean of blocks 2 and 4"),
        ([1, 3, 12], "pooled position + mean of blocks 1, 3 and 12"),
    ):
        assert with_layers(kept, "config.json", layers) == said
        assert with_layers(read, "manifest.json", layers) == f"{said} (64 numbers, float32)"
    assert json.loads((features / "manifest.json").read_text())["backbone"]["layers"] == [1]

    for folder, file in ((kept, "config.json"), (read, "manifest.json")):  # features made elsewhere
        values = json.loads((folder / file).read_text()) | {"backbone": {"name": "imported"}}
        (folder / file).write_text(json.dumps(values))
    assert embedding(ebrm("info", kept).out) == ""
    assert embedding(ebrm("info", read).out) == "64 numbers, float32"


def test_neither_needs_torch(model: Path, features: Path) -> None:
    script = (
        "import sys\nfrom ebrm.cli.main import main\n"
        "assert main(['info', sys.argv[1], '-q']) == 0 and main(['info', sys.argv[2], '-q']) == 0\n"
        "heavy = ('torch', 'transformers', 'numpy', 'pyarrow')\n"
        "print([name for name in heavy if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, model, features],
        capture_output=True, text=True, timeout=60, env=child_environment(), check=True,
    )  # fmt: skip
    assert done.stderr.strip() == "[]"


def test_what_is_not_whole(model: Path, features: Path, rm: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(model, tmp_path / "m")
    data = bytearray((broken / "energy.safetensors").read_bytes())
    data[-1] ^= 1
    (broken / "energy.safetensors").write_bytes(data)
    refused(ebrm("info", broken), "energy.safetensors is damaged")
    (broken / "energy.safetensors").unlink()
    refused(ebrm("info", broken), "energy.safetensors is missing")
    (broken / "config.json").write_text("{")
    refused(ebrm("info", broken), "config.json", "cannot be read")
    half = shutil.copytree(features, tmp_path / "f")
    (half / "shard-00001.safetensors").unlink()
    (half / "pairs.parquet").write_bytes(b"PAR1")
    refused(ebrm("info", half), "shard-00001.safetensors is missing", "pairs.parquet is damaged")
    refused(ebrm("info", rm), "not of an ebrm model", "--backbone")
    refused(ebrm("info", tmp_path), "neither a model nor a features folder")
    refused(ebrm("info", "no/model"), "no/model")
    manifest = json.loads((half / "manifest.json").read_text())
    (half / "manifest.json").write_text(json.dumps({**manifest, "complete": False}))
    refused(ebrm("info", half), "unfinished")


def test_what_is_wrong_is_said_to_machines_too(model: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(model, tmp_path / "m")
    (broken / "energy.safetensors").unlink()
    ran = ebrm("info", broken, "--json")
    assert ran.code == 2
    assert "missing" in json.loads(ran.out)["error"]["message"]
