"""A reward model behind a pooling server is read as the same model here: same numbers, same identity, same commands."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.backbone.pooling_server import FakeServer, serving
from tests.backbone.shared import refuses
from tests.terminal import ebrm, preference_rows, read_lines, refused, write_lines
from tests.tiny import edit_config, save_rm

from ebrm.backbone import BackboneConfig, load_backbone
from ebrm.backbone.families import forget_family, register_family
from ebrm.backbone.server import ServerBackbone
from ebrm.data import TextConfig, load_preferences
from ebrm.errors import ModelError, ServerError
from ebrm.features import extract_features, read_manifest
from ebrm.fitting import fit
from ebrm.heads import EnergyConfig, NetworkConfig, TrainingConfig
from ebrm.model import EnergyRewardModel

IDS = [[5, 6, 7], [8], [9] * 6, [10, 11], [12, 13, 14, 15], [16]]
SMALL: Any = {
    "head": EnergyConfig(network=NetworkConfig(joint_widths=(12, 6)), training=TrainingConfig(epochs=1, batch_rows=16))
}
TINY = ("--head", "energy", "--joint-widths", "12,6", "--epochs", 2, "--batch-rows", 16, "-q")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_rm(tmp_path_factory.mktemp("server") / "tiny", "llama")


@pytest.fixture(scope="module", params=["vllm", "sglang"])
def fake(request, folder):
    with serving(FakeServer(folder, request.param)) as server:
        yield server


@pytest.fixture(scope="module")
def vllm(folder):
    with serving(FakeServer(folder)) as server:
        yield server


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_lines(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", preference_rows(24))


def load(folder: Path, fake: FakeServer | None = None, text: TextConfig | None = None, **settings: Any) -> Any:
    given = {"layers": (), "device": "cpu", **({"server": fake.url} if fake else {})}
    return load_backbone(BackboneConfig(str(folder), **given | settings), text)


def test_reads_what_the_model_here_reads(folder, fake):
    here, there = load(folder), load(folder, fake, token_budget=7)
    assert isinstance(there, ServerBackbone)
    for prompt, response in [("Hi", "Hello"), ("Émoji 😀", "naïve"), ([{"role": "user", "content": "x"}], "")]:
        assert here.tokenize(prompt, response) == there.tokenize(prompt, response)
    assert here.tokenize_rendered("A text.") == there.tokenize_rendered("A text.")
    ours, theirs = here.read(IDS), there.read(IDS)
    assert torch.allclose(ours.embedding, theirs.embedding, atol=1e-5)
    assert torch.allclose(ours.reward, theirs.reward, atol=1e-5)
    assert theirs.reward.std() > 0.1
    assert torch.equal(here.head.weight, there.head.weight)
    assert there.batch_drift(IDS) < 1e-5
    assert (there.embedding_size, there.limit, there.token_budget) == (32, 128, 7)
    empty = there.read([])
    assert (empty.embedding.shape, empty.reward.shape) == ((0, 32), (0,))


def test_is_known_as_the_model_here_is_but_for_where_it_ran(folder, fake):
    here, there = load(folder), load(folder, fake)
    assert there.identity == replace(here.identity, attention="server")
    assert here.identity.mismatch(there.identity) is None
    assert "attention is " in (here.identity.mismatch(there.identity, exact=True) or "")
    assert here.text_rule == there.text_rule
    assert load(folder, fake, dtype="bfloat16").identity.dtype == "bfloat16"


@pytest.mark.parametrize("family", ["qwen3", "mistral", "gemma", "gpt_neox"])
def test_identities_of_other_decoders(tmp_path, vllm, family):
    other = save_rm(tmp_path / "tiny", family)  # of the same name as what is served
    assert load(other, vllm).identity == replace(load(other).identity, attention="server")


def test_a_head_with_a_name_and_a_bias_of_its_own(tmp_path, folder):
    own = save_rm(tmp_path / "tiny", "llama", "base")
    tensors = load_file(own / "model.safetensors")
    tensors |= {"v_head.summary.weight": torch.randn(1, 32), "v_head.summary.bias": torch.tensor([0.5])}
    save_file(tensors, own / "model.safetensors", {"format": "pt"})
    with serving(FakeServer(folder)) as fake:
        here, there = load(own), load(own, fake)
        assert there.identity == replace(here.identity, attention="server")
        assert (there.identity.architecture, there.identity.head_module) == ("LlamaModel", "v_head.summary")
        assert torch.equal(here.head.weight, there.head.weight)
        assert torch.equal(here.head.bias, there.head.bias)
        tensors["v_head.summary.gate"] = torch.randn(1)
        save_file(tensors, own / "model.safetensors", {"format": "pt"})
        with refuses("has parts that its tensors do not tell"):
            load(own, fake)


def test_only_the_head_is_read_of_the_weights(folder, vllm, monkeypatch):
    from ebrm.backbone.checkpoint import Checkpoint

    read: list[str] = []
    original = Checkpoint.read
    monkeypatch.setattr(Checkpoint, "read", lambda self, name: read.append(name) or original(self, name))
    monkeypatch.setattr(
        "transformers.PreTrainedModel.from_pretrained", lambda *_, **__: pytest.fail("the model was loaded")
    )
    load(folder, vllm).read(IDS)
    assert read == ["score.weight"]


def test_the_probe_runs_once_and_before_any_text(folder):
    with serving(FakeServer(folder)) as fake:
        backbone = load(folder, fake)
        backbone.read([])
        assert [path for path, _ in fake.requests] == ["/v1/models"]
        backbone.read([[5]])
        backbone.read([[6]])
        paths = ["/v1/models", "/v1/embeddings", "/classify", "/v1/embeddings", "/v1/embeddings"]
        assert [path for path, _ in fake.requests] == paths
        assert len(fake.requests[1][1]["input"]) == 6
        assert fake.requests[3][1]["input"] == [[5]]


def test_a_wrong_server_is_refused_on_the_first_read(folder):
    with serving(FakeServer(folder, wrong="normalized")) as fake, pytest.raises(ServerError, match="L2-normalized"):
        load(folder, fake).read([[5]])


def test_unchecked_weights_are_said(folder, caplog):
    for kind, classifies, said in (("vllm", False, True), ("vllm", True, False), ("sglang", False, False)):
        with serving(FakeServer(folder, kind, classifies=classifies)) as fake:
            caplog.clear()
            load(folder, fake).read([[5]])
            assert ("nothing can tell whether its weights are those of" in caplog.text) is said


def test_rows_that_cannot_be_read_are_named(folder):
    with serving(FakeServer(folder, max_model_len=5)) as fake:
        backbone = load(folder, fake)
        with refuses("Row 1 has no tokens"):
            backbone.read([[5], []])
        with refuses("Row 2 has 6 tokens, and .* takes at most 5"):
            backbone.read(IDS)
        with refuses("Row 0 holds the token id 100000"):
            backbone.read([[100000]])
        backbone.read([[5]])
        exact = fake.pooled
        fake.pooled = lambda ids, activation: [float("nan")] * 32 if ids == [7] else exact(ids, activation)  # type: ignore[method-assign]
        with refuses("1 of 3 texts an embedding .* not a finite number, first row 2 .*--dtype bfloat16"):
            backbone.read([[5], [6], [7]])
        fake.pooled = lambda *_: [1.0]  # type: ignore[method-assign]
        with pytest.raises(ServerError, match="scores of a classifier"):  # restarted meanwhile
            backbone.read([[5], [6]])


def test_a_server_with_a_short_limit_is_said(folder, caplog):
    with serving(FakeServer(folder, max_model_len=64)) as fake:
        assert load(folder, fake).text_rule == load(folder).text_rule
        assert "takes 64 tokens, and texts may have 128 (`max_length`)" in caplog.text
        caplog.clear()
        load(folder, fake, TextConfig(max_length=64))
        assert not caplog.text


def test_another_model_is_told_by_its_name(folder, tmp_path):
    for served in ("somebody/tiny", "tiny", str(folder) + "/"):
        with serving(FakeServer(folder, id=served, root="elsewhere")) as fake:
            load(folder, fake)
    link = tmp_path / "another-name"
    link.symlink_to(folder)
    with serving(FakeServer(folder, id="reward", root=str(link))) as fake:
        load(folder, fake)
    said = r"serves reward \(from /models/large\), .* --served-model-name tiny\."
    with serving(FakeServer(folder, id="reward", root="/models/large")) as fake, pytest.raises(ServerError, match=said):
        load(folder, fake)


def test_inner_layers_are_not_to_be_had(folder, vllm, caplog):
    assert load_backbone(BackboneConfig(str(folder), server=vllm.url)).identity.layers == ()
    assert "No inner layers are read: a pooling server" in caplog.text
    caplog.clear()
    load(folder, vllm)
    load_backbone(BackboneConfig(str(folder), server=vllm.url), blocks=())
    assert not caplog.text
    with refuses(r"\(`layers=.0.5.`\), and a pooling server .* Use `layers=..`, or no `server`"):
        load(folder, vllm, layers=(0.5,))
    with refuses("made with inner layers .*blocks 1, 2.* without them, with `layers=..`"):
        load_backbone(BackboneConfig(str(folder), server=vllm.url), blocks=(1, 2))


@pytest.mark.parametrize("family", ["bert", "roberta", "bart"])
def test_heads_of_encoders_are_refused(tmp_path, vllm, family):
    with refuses("does not take the last token's hidden state as it is"):
        load(save_rm(tmp_path / "tiny", family), vllm)


def test_heads_of_several_layers_are_refused(tmp_path, vllm):
    own = save_rm(tmp_path / "tiny", "llama", "base")
    tensors = load_file(own / "model.safetensors")
    tensors |= {"score.0.weight": torch.randn(32, 32), "score.2.weight": torch.randn(1, 32)}
    save_file(tensors, own / "model.safetensors", {"format": "pt"})
    with refuses(r"The head score.2 of .* \(it comes after score.0\)"):
        load(own, vllm)


def test_what_cannot_be_served_is_refused(folder, vllm, tmp_path):
    with refuses("`demo` averages over all tokens"):
        load_backbone(BackboneConfig("demo", server=vllm.url))
    register_family("mine", lambda config: True, lambda *_: pytest.fail("loaded"))
    try:
        with refuses("registered family"):
            load(folder, vllm)
    finally:
        forget_family("mine")
    broken = save_rm(tmp_path / "tiny", "llama")
    edit_config(broken, hidden_size=16)
    with refuses("takes 32 numbers, but its hidden states have 16"):
        load(broken, vllm)


def test_an_energy_model_scores_by_a_server_as_by_itself(folder, vllm, pairs, tmp_path):
    there = load(folder, vllm)
    preferences = load_preferences(str(pairs))
    fitted = fit(there, preferences, **SMALL)
    fitted.model.save_pretrained(tmp_path / "m")
    prompts, responses = ["Say a", "Say b", "Say c"], ["alpha", "", "Zeta é"]
    here = EnergyRewardModel.from_pretrained(tmp_path / "m").score(prompts, responses)
    for model in (
        EnergyRewardModel.from_pretrained(tmp_path / "m", backbone=there),
        EnergyRewardModel.from_pretrained(tmp_path / "m").with_backbone(server=vllm.url),
    ):
        scored = model.score(prompts, responses)
        assert torch.allclose(scored.reward, here.reward, atol=1e-5)
        assert torch.allclose(scored.std, here.std, atol=1e-5)
    other = save_rm(tmp_path / "tiny", "llama", seed=1)
    with pytest.raises(ModelError, match="not the reward model that the energy was fitted on"):
        EnergyRewardModel.from_pretrained(tmp_path / "m", backbone=load(other, vllm))
    with pytest.raises(ModelError, match="weights_fingerprint is"):
        EnergyRewardModel.from_pretrained(tmp_path / "m").with_backbone(server=vllm.url, backbone=str(other))
    layered = fit(str(folder), preferences, **SMALL)
    with refuses("made with inner layers"):
        layered.model.with_backbone(server=vllm.url)


def test_a_server_with_other_weights_than_the_checkpoint_is_known_by_its_rewards(folder, vllm, pairs, tmp_path):
    fitted = fit(load(folder, vllm), load_preferences(str(pairs)), **SMALL)
    fitted.model.save_pretrained(tmp_path / "m")
    other = save_rm(tmp_path / "other", "llama", seed=1)
    with serving(FakeServer(other, id=str(folder), root=str(folder))) as fake:
        model = EnergyRewardModel.from_pretrained(tmp_path / "m")
        said = r"other rewards than when .*the probe differs \(fixed text 1 of 4 has .*start it with the files"
        with pytest.raises(ModelError, match=said):
            model.with_backbone(server=fake.url)


def test_a_server_that_goes_away_stops_a_run_without_blaming_a_text(folder, pairs, tmp_path, monkeypatch):
    monkeypatch.setattr("ebrm.backbone.model_server.time.sleep", lambda _: None)
    preferences = load_preferences(str(pairs))
    with serving(FakeServer(folder)) as fake:
        backbone = load(folder, fake)
        backbone.server._pause = lambda _: None
    with pytest.raises(ServerError, match="^The server http://127.0.0.1:[0-9]+ does not answer"):
        extract_features(backbone, preferences, tmp_path / "f")


def test_the_commands_work_with_a_server(folder, vllm, pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "ebrm.report.write_report", lambda path, data: path.write_text("a report")
    )  # figures take seconds
    server = ("--server", vllm.url)
    ran = ebrm("features", "--backbone", folder, "--data", pairs, "--out", tmp_path / "f", *server)
    assert ran.code == 0, ran.err
    assert "No inner layers are read" in ran.err
    manifest = read_manifest(tmp_path / "f")
    assert (manifest["embedding_size"], manifest["backbone"]["attention"]) == (32, "server")
    assert 0 <= manifest["batch_drift"] < 1e-5
    ran = ebrm("fit", "--backbone", folder, "--data", pairs, "--out", tmp_path / "m", *server, *TINY)
    assert ran.code == 0, ran.err
    assert json.loads((tmp_path / "m" / "config.json").read_text(encoding="utf-8"))["backbone"]["attention"] == "server"
    rows = write_lines(tmp_path / "rows.jsonl", [{"prompt": f"Say {i}", "response": "alpha " * i} for i in range(1, 6)])
    scored = []
    for name, more in (("there", server), ("here", ())):
        asked = len(vllm.requests)
        ran = ebrm("score", tmp_path / "m", rows, "--out", tmp_path / f"{name}.jsonl", *more)
        assert ran.code == 0, ran.err
        assert (len(vllm.requests) > asked) == (name == "there")
        scored.append([[row["reward"], row["base_reward"]] for row in read_lines(tmp_path / f"{name}.jsonl")])
    assert torch.allclose(torch.tensor(scored[0]), torch.tensor(scored[1]), atol=1e-5)
    ran = ebrm("score", tmp_path / "m", tmp_path / "f", "--out", tmp_path / "pairs.jsonl")
    assert ran.code == 0, ran.err


def test_benchmarks_keep_what_a_server_said_apart(folder, vllm, pairs, tmp_path, monkeypatch):
    from ebrm.report import benchmarks as report

    monkeypatch.setenv("EBRM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("EBRM_DATA", raising=False)
    monkeypatch.setattr(report, "write_benchmark_report", lambda path, evaluation: path.write_text("a report"))
    fit(load(folder), load_preferences(str(pairs)), **SMALL).model.save_pretrained(tmp_path / "m")
    said = []
    quick = ("--benchmark", pairs, "--resamples", 100, "--permutations", 99, "--json", "--layers", "none")
    quick += ("--training-items", "label")  # else the pairs fitted on are not read
    for more, read in ((("--server", vllm.url), 48), ((), 48), (("--server", vllm.url), 0)):
        ran = ebrm("eval", tmp_path / "m", folder, "--out", tmp_path / "e", *quick, *more)
        assert ran.code == 0, ran.err
        assert ran.value["texts_read"] == read
        said.append(ran.value["benchmarks"][0]["scorers"])
    assert said[0] == said[2]
    assert len({str(scorers["tiny"]["scores"]["overall"]["value"]) for scorers in said}) == 1
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_mistakes_on_the_command_line_are_one_paragraph(folder, vllm, pairs, tmp_path):
    command = ("features", "--backbone", folder, "--data", pairs, "--out", tmp_path / "f")
    refused(ebrm(*command, "--server", "localhost"), "server is 'localhost'; give the URL")
    refused(ebrm(*command, "--server", vllm.url, "--layers", "0.5"), "Use `--layers none`")
    other = save_rm(tmp_path / "other", "llama")
    refused(ebrm(*command[:2], other, *command[3:], "--server", vllm.url), "serves", "--served-model-name other")
    with serving(FakeServer(folder, vllm.kind, "mean")) as wrong:
        refused(ebrm(*command, "--server", wrong.url), "like a mean over all tokens", "Start it as: ")
    assert not (tmp_path / "f").exists()
