from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tests.backbone.pooling_server import FakeServer, serving
from tests.backbone.shared import IDS, close, load, refuses
from tests.tiny import build_model, edit_config, save_rm
from torch import nn
from transformers import AutoModelForSequenceClassification

from ebrm.backbone import open_checkpoint
from ebrm.backbone.adapters import attach_adapter
from ebrm.backbone.identity import fingerprint


def test_lists_tensors_without_loading_and_reads_one(tmp_path):
    model = build_model("llama")
    found = open_checkpoint(str(save_rm(tmp_path)))
    assert set(found.tensors) == set(model.state_dict())
    assert found.tensors["score.weight"].shape == (1, 32) and found.tensors["score.weight"].dtype == "F32"
    torch.testing.assert_close(found.read("score.weight"), model.state_dict()["score.weight"])
    assert found.config["model_type"] == "llama" and found.adapter is None and found.revision is None


def test_reads_shards_through_their_index_and_nothing_else(tmp_path):
    build_model("llama").save_pretrained(tmp_path, max_shard_size="20KB")
    save_file({"stray": torch.zeros(1)}, tmp_path / "consolidated.safetensors")
    found = open_checkpoint(str(tmp_path))
    assert len(found.weights) > 1 and "stray" not in found.tensors and "score.weight" in found.tensors
    assert found.read("score.weight").shape == (1, 32)
    found.weights[0].unlink()
    with refuses("lacks weight files that its index lists: model-00001"):
        open_checkpoint(str(tmp_path))


@pytest.mark.parametrize("index", [{}, {"weight_map": []}, {"weight_map": {"score.weight": 1}}, {"weight_map": None}])
def test_an_index_that_names_no_files_is_damaged(tmp_path, index):
    save_rm(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with refuses("index.json: weight_map"):
        open_checkpoint(str(tmp_path))


class TestFilesThatTransformersLoads:
    """The weights that are fingerprinted and searched for the head are those of the model that runs."""

    def check(self, folder: Path, seed: int) -> None:
        save_file({}, folder / "other.safetensors")  # a stray file is nobody's
        backbone = load(folder)
        assert torch.equal(backbone.head.weight, build_model("llama", seed=seed).score.weight)
        own, _ = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
        with torch.no_grad():
            expected = torch.cat([own(input_ids=torch.tensor([ids])).logits[:, 0] for ids in IDS])
        close(backbone.read(IDS).reward, expected)
        assert backbone.identity.weights_fingerprint == fingerprint(
            (file.name, file) for file in open_checkpoint(str(folder)).weights
        )

    def test_one_file_beside_an_index(self, tmp_path, caplog):
        save_rm(tmp_path)
        build_model("llama").save_pretrained(tmp_path, max_shard_size="20KB")
        before = load(tmp_path).identity
        build_model("llama", seed=9).save_pretrained(tmp_path / "one")
        (tmp_path / "one" / "model.safetensors").rename(tmp_path / "model.safetensors")
        self.check(tmp_path, seed=9)
        assert "holds model.safetensors and model.safetensors.index.json. transformers loads the former" in caplog.text
        assert load(tmp_path).identity.mismatch(before) is not None
        next(tmp_path.glob("model-*")).unlink()  # which nobody reads
        self.check(tmp_path, seed=9)

    def test_a_pickle_or_a_variant_beside_them(self, tmp_path):
        save_rm(tmp_path)
        torch.save(build_model("llama", seed=9).state_dict(), tmp_path / "pytorch_model.bin")
        build_model("llama", seed=9).save_pretrained(tmp_path, variant="fp16")
        assert (tmp_path / "model.fp16.safetensors").is_file()
        self.check(tmp_path, seed=0)

    def test_the_file_that_the_configuration_names(self, tmp_path):
        save_rm(tmp_path)
        build_model("llama", seed=9).save_pretrained(tmp_path / "two")
        (tmp_path / "two" / "model.safetensors").rename(tmp_path / "chosen.safetensors")
        edit_config(tmp_path, transformers_weights="chosen.safetensors")
        self.check(tmp_path, seed=9)
        edit_config(tmp_path, transformers_weights="gone.safetensors")
        with refuses("lacks its weight file: config.json names gone.safetensors"):
            open_checkpoint(str(tmp_path))

    def test_none_of_them(self, tmp_path):
        save_rm(tmp_path)
        (tmp_path / "model.safetensors").rename(tmp_path / "model.fp16.safetensors")
        with refuses(r"What is there has other names \(model.fp16.safetensors\): rename it"):
            open_checkpoint(str(tmp_path))
        (tmp_path / "shard-00001-model-00001-of-00002.safetensors").touch()
        with refuses("saved in the parts of a distributed run"):
            open_checkpoint(str(tmp_path))


def test_a_folder_that_is_no_model(tmp_path):
    with refuses("neither config.json nor adapter_config.json"):
        open_checkpoint(str(tmp_path))


@pytest.mark.parametrize("content", ["{not json", "[1]", "\udcff"])
def test_a_damaged_configuration(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with refuses("config.json(:| cannot be read:) (it is not|the file is a list)"):
        open_checkpoint(str(tmp_path))


def test_pickles_are_not_opened(tmp_path):
    save_rm(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with refuses(r"only as pickles \(pytorch_model.bin\).*Convert once, in that folder: python -c .*weights_only=True"):
        open_checkpoint(str(tmp_path))
    (tmp_path / "pytorch_model.bin").unlink()
    with refuses("has no weights in safetensors"):
        open_checkpoint(str(tmp_path))


@pytest.mark.parametrize("keep", [0, 4, 40, -1])
def test_weights_cut_short(tmp_path, keep):
    path = save_rm(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with refuses("model.safetensors (is not a readable safetensors file|has .* it was cut short)"):
        open_checkpoint(str(tmp_path))


class TestHub:
    def hub(self, monkeypatch: pytest.MonkeyPatch, answer: Any) -> dict[str, Any]:
        asked: dict[str, Any] = {}

        def snapshot_download(name: str, **options: Any) -> str:
            asked.update(options, name=name)
            if isinstance(answer, Exception):
                raise answer
            return str(answer)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        return asked

    def test_a_snapshot_carries_its_commit_and_no_pickles_or_code_are_asked_for(self, tmp_path, monkeypatch):
        folder = tmp_path / "models--o--m" / "snapshots" / "abc123"
        save_rm(folder)
        asked = self.hub(monkeypatch, folder)
        found = open_checkpoint("o/m", "main")
        assert found.revision == "abc123" and found.name == "o/m" and "score.weight" in found.tensors
        assert asked["name"] == "o/m" and asked["revision"] == "main"
        assert not {"*.bin", "*.py", "*.pt"} & set(asked["allow_patterns"])
        open_checkpoint("o/m", with_code=True)
        assert "*.py" in asked["allow_patterns"]

    @pytest.mark.parametrize(
        ("error", "said"),
        [
            (errors.RepositoryNotFoundError, r"no reward model o/m: no folder .* no such repository on the Hub"),
            (errors.GatedRepoError, "o/m is on the Hub but gated"),
            (errors.RevisionNotFoundError, "o/m has no revision 'v9'"),
            (errors.LocalEntryNotFoundError, r"There is no reward model o/m: .*the Hub could not be reached"),
            (errors.HFValidationError, r"There is no reward model o/m: .*not a Hub name"),
        ],
    )
    def test_what_is_not_there_is_one_paragraph(self, monkeypatch, error, said):
        self.hub(monkeypatch, error.__new__(error))  # their constructors want HTTP responses
        with refuses(said) as caught:
            open_checkpoint("o/m", "v9")
        assert "\n" not in str(caught.value)


pytestmark = pytest.mark.filterwarnings(
    "ignore:.*gradient_checkpointing.*:FutureWarning"
)  # peft asks transformers by an old name


def save_adapter(folder: Path, base: Path, family: str = "llama", kind: str = "SEQ_CLS", **config: Any) -> Path:
    """Save an adapter with random, non-zero weights on the saved base model."""
    torch.manual_seed(1)
    maker = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    targets = ["query", "value"] if family == "bert" else ["q_proj", "v_proj"]
    modules = config.pop("modules_to_save", ["classifier", "pooler"] if family == "bert" else ["score"])
    model = get_peft_model(
        maker, LoraConfig(task_type=kind, r=4, lora_alpha=8, target_modules=targets, modules_to_save=modules, **config)
    )
    for name, parameter in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("family", "head"), [("llama", "score"), ("bert", "classifier")])
def test_merged_scores_as_base_with_adapter_does(tmp_path, family, head):
    base = save_rm(tmp_path / "base", family, "base")  # no head: the adapter brings it
    adapter = save_adapter(tmp_path / "adapter", base, family)
    backbone = load(adapter)
    assert backbone.identity.head_module == head
    own = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    unmerged = attach_adapter(own, adapter).eval()
    with torch.no_grad():
        expected = torch.cat([unmerged(input_ids=torch.tensor([ids])).logits[:, 0] for ids in IDS])
        states = [unmerged(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states for ids in IDS]
    reading = backbone.read(IDS)
    close(reading.reward, expected)
    means = torch.stack([state[1][0].mean(0) for state in states])  # after the first of two blocks, adapted
    close(reading.embedding[:, 32:], means)


def test_the_merged_model_may_be_in_a_server(tmp_path):
    adapter = save_adapter(tmp_path / "adapter", save_rm(tmp_path / "base", "llama", "base"))
    here = load(adapter, layers=())
    here.model.save_pretrained(tmp_path / "merged")
    with serving(FakeServer(tmp_path / "merged", "sglang", id="adapter")) as fake:
        there = load(adapter, layers=(), server=fake.url)
        assert there.identity == replace(here.identity, attention="server")
        close(there.read(IDS).reward, here.read(IDS).reward, 1e-5)


def test_the_adapter_counts(tmp_path):
    base = save_rm(tmp_path / "base")
    adapter = save_adapter(tmp_path / "adapter", base)
    with_it, without = load(adapter), load(base)
    assert float((with_it.read(IDS).reward - without.read(IDS).reward).abs().max()) > 0.01
    assert with_it.identity.mismatch(without.identity) is not None
    before = with_it.identity.weights_fingerprint
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({name: value * 2 for name, value in tensors.items()}, path)
    assert load(adapter).identity.weights_fingerprint != before


def test_the_tokenizer_is_the_bases_unless_the_adapter_has_one(tmp_path):
    base = save_rm(tmp_path / "base")
    backbone = load(save_adapter(tmp_path / "adapter", base))
    assert backbone.text_rule.template != "plain"  # the base model's tokenizer has a chat template


def test_a_base_that_is_a_whole_reward_model_keeps_its_head(tmp_path):
    base = save_rm(tmp_path / "base")
    adapter = save_adapter(tmp_path / "adapter", base, kind="FEATURE_EXTRACTION", modules_to_save=None)
    backbone = load(adapter)
    torch.testing.assert_close(backbone.head.weight, build_model("llama").score.weight)


@pytest.mark.parametrize("name", ["v_head.summary", "score"])
def test_a_head_that_a_trainer_saved_beside_the_adapter(tmp_path, name):
    base = save_rm(tmp_path / "base", kind="causal")
    adapter = save_adapter(tmp_path / "adapter", base, kind="FEATURE_EXTRACTION", modules_to_save=None)
    edit = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**edit, "task_type": "CAUSAL_LM"}))
    weight = torch.randn(1, 32, generator=torch.Generator().manual_seed(0))
    save_file({f"{name}.weight": weight, f"{name}.bias": torch.ones(1)}, adapter / "value_head.safetensors")
    backbone = load(adapter)
    assert backbone.identity.head_module == name
    own = attach_adapter(AutoModelForSequenceClassification.from_pretrained(base, num_labels=1), adapter).eval()
    with torch.no_grad():
        hidden = torch.cat(
            [own.base_model.model.model(input_ids=torch.tensor([ids])).last_hidden_state[:, -1] for ids in IDS]
        )
    close(backbone.read(IDS).reward, (hidden @ weight.T)[:, 0] + 1)


class TestRefused:
    def test_no_head_anywhere(self, tmp_path):
        base = save_rm(tmp_path / "base", kind="base")
        adapter = save_adapter(tmp_path / "adapter", base, kind="FEATURE_EXTRACTION", modules_to_save=None)
        with refuses(r"holds no reward head \(modules_to_save is None\), and its base model has none"):
            load(adapter)

    def test_a_pooler_that_nobody_trained(self, tmp_path):
        base = save_rm(tmp_path / "base", "bert", "base")
        tensors = {k: v for k, v in load_file(base / "model.safetensors").items() if not k.startswith("pooler.")}
        save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
        adapter = save_adapter(tmp_path / "adapter", base, "bert", modules_to_save=["classifier"])
        with refuses("lacks weights that the model needs: bert.pooler.dense.bias"):
            load(adapter)

    def test_tensors_missing_from_the_adapter(self, tmp_path):
        adapter = save_adapter(tmp_path / "adapter", save_rm(tmp_path / "base"))
        path = adapter / "adapter_model.safetensors"
        tensors = load_file(path)
        lost = next(name for name in tensors if "lora_A" in name)
        save_file({name: value for name, value in tensors.items() if name != lost}, path)
        with refuses("does not fit its base model .*missing adapter keys"):
            load(adapter)

    def test_another_base_model(self, tmp_path):
        adapter = save_adapter(tmp_path / "adapter", save_rm(tmp_path / "base"))
        save_rm(tmp_path / "base", hidden_size=64)
        with refuses("The adapter .* does not fit its base model"):
            load(adapter)

    def test_a_base_model_that_is_gone(self, tmp_path):
        adapter = save_adapter(tmp_path / "adapter", save_rm(tmp_path / "base"))
        (tmp_path / "base").rename(tmp_path / "moved")
        with refuses(r"adapter is an adapter on .*base, which could not be opened. There is no"):
            load(adapter)
        config = json.loads((adapter / "adapter_config.json").read_text())
        (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "../moved"}))
        load(adapter)  # a relative folder counts from the adapter
        (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
        with refuses("does not name its base model"):
            load(adapter)

    def test_without_peft(self, tmp_path, monkeypatch):
        adapter = save_adapter(tmp_path / "adapter", save_rm(tmp_path / "base"))
        monkeypatch.setitem(sys.modules, "peft", None)
        with refuses("needs peft, which is not installed: pip install peft"):
            load(adapter)

    def test_two_labels(self, tmp_path):
        adapter = save_adapter(tmp_path / "adapter", save_rm(tmp_path / "base"))
        path = adapter / "adapter_model.safetensors"
        tensors = load_file(path)
        save_file({n: v if "score" not in n else torch.ones(2, 32) for n, v in tensors.items()}, path)
        with refuses("two-label classifier"):
            load(adapter)


def test_an_adapter_is_a_checkpoint_without_its_own_configuration(tmp_path):
    found = open_checkpoint(str(save_adapter(tmp_path / "adapter", save_rm(tmp_path / "base"))))
    assert found.adapter is not None and found.config == {}
