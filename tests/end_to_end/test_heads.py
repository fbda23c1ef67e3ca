"""A head in the energy's place: fitted, saved, and scored alike offline, by the server and by transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from starlette.testclient import TestClient
from tests.terminal import ebrm, read_lines, write_lines
from transformers import AutoModelForSequenceClassification

from ebrm import register
from ebrm.fitting import fit
from ebrm.heads import AnchoredConfig, GaussianConfig, HeadConfig, SiLUConfig
from ebrm.model import EnergyRewardModel
from ebrm.serve.app import create_app

ROWS = [{"prompt": "Say hello.", "response": "Hello!"}, {"prompt": "Say hello.", "response": "No."}]


@pytest.mark.parametrize("head", [SiLUConfig(epochs=3), GaussianConfig(), AnchoredConfig()], ids=lambda head: head.kind)
def test_a_head_is_used_like_the_energy_model(features: Path, tmp_path: Path, head: HeadConfig) -> None:
    fit(features, head=head).model.save_pretrained(tmp_path / "head")
    model = EnergyRewardModel.from_pretrained(tmp_path / "head")
    offline = model.score([row["prompt"] for row in ROWS], [row["response"] for row in ROWS])
    assert bool((offline.std > 0).all()) and offline.reward[0] != offline.reward[1]

    source = write_lines(tmp_path / "in.jsonl", ROWS)
    assert ebrm("score", tmp_path / "head", source, "--out", tmp_path / "out.jsonl").code == 0
    scored = torch.tensor([row["reward"] for row in read_lines(tmp_path / "out.jsonl")])
    torch.testing.assert_close(scored, offline.reward, rtol=0, atol=1e-5)

    with TestClient(create_app(model)) as client:
        asked = {"prompt": ROWS[0]["prompt"], "responses": [row["response"] for row in ROWS], "density": 33}
        answer = client.post("/v1/rank", json=asked)
    assert answer.status_code == 200, answer.text
    served = {row["index"]: row for row in answer.json()["results"]}
    assert served[0]["reward"] == pytest.approx(float(offline.reward[0]), abs=1e-5)
    assert sum(row["p_best"] for row in served.values()) == pytest.approx(1, abs=1e-6)
    assert served[0]["p_best"] == pytest.approx(model.prefer("Say hello.", "Hello!", "No."), abs=1e-3)

    register()
    auto = AutoModelForSequenceClassification.from_pretrained(tmp_path / "head")
    tokens = model.backbone.tokenize("Say hello.", "Hello!")
    assert tokens is not None
    with torch.inference_mode():
        logits = auto(input_ids=torch.tensor([tokens.ids])).logits
    assert float(logits[0, 0]) == pytest.approx(float(offline.reward[0]), abs=1e-5)
