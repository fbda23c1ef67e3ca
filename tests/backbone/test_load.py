from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tests.backbone.shared import close, edit_weights, load, refuses
from tests.tiny import CHAT_TEMPLATE, build_model, byte_tokenizer, edit_config, save_rm
from torch import Tensor

from ebrm.backbone import BackboneConfig, load_backbone, model_limit, open_checkpoint, reload_backbone
from ebrm.backbone.build import choose_device, warn_of_attention
from ebrm.backbone.identity import config_behavior, fingerprint, tokenizer_files
from ebrm.data import TextConfig, template
from ebrm.errors import ConfigError, ModelError
from ebrm.utils.files import sha256_json


class TestLoaded:
    def test_says_which_model_it_is(self, tmp_path):
        backbone = load(save_rm(tmp_path / "rm"))
        weights = tmp_path / "rm" / "model.safetensors"
        assert backbone.identity.to_dict() == {
            "name": str((tmp_path / "rm").resolve()), "revision": None,
            "weights_fingerprint": fingerprint([("model.safetensors", weights)]),
            "architecture": "LlamaForSequenceClassification", "head_module": "score", "dtype": "float32",
            "attention": "sdpa", "layers": [1],
            "config": config_behavior(json.loads((tmp_path / "rm" / "config.json").read_text())),
            "tokenizer": tokenizer_files(tmp_path / "rm"), "template": sha256_json(CHAT_TEMPLATE),
        }  # fmt: skip
        assert backbone.embedding_size == 64 and backbone.limit == backbone.text_rule.max_length == 128
        assert backbone.text_rule.template == CHAT_TEMPLATE and backbone.token_budget == 1024  # 16,384 but for the CPU

    def test_other_weights_have_another_fingerprint(self, tmp_path):
        one, two = load(save_rm(tmp_path / "one")), load(save_rm(tmp_path / "two", seed=1))
        again = load(save_rm(tmp_path / "three"))
        assert one.identity.mismatch(again.identity) is None
        assert "weights_fingerprint" in (one.identity.mismatch(two.identity) or "")

    def test_keeps_the_checkpoints_precision_unless_told(self, tmp_path):
        build_model("llama").bfloat16().save_pretrained(tmp_path)
        byte_tokenizer().save_pretrained(tmp_path)
        assert load(tmp_path).identity.dtype == "bfloat16"
        assert load(tmp_path, dtype="float32").identity.dtype == "float32"

    def test_attention_is_the_users_choice(self, tmp_path):
        save_rm(tmp_path)
        assert load(tmp_path, attention="eager").identity.attention == "eager"

    def test_text_settings_reach_the_rule(self, tmp_path):
        save_rm(tmp_path)
        rule = load(tmp_path, TextConfig(template="plain", max_length=50, truncation="drop")).text_rule
        assert (rule.template, rule.max_length, rule.truncation) == ("plain", 50, "drop")
        with pytest.raises(ConfigError, match="max_length is 129 tokens, but the model takes at most 128"):
            load(tmp_path, TextConfig(max_length=129))

    def test_transformers_verbosity_is_as_before(self, tmp_path):
        before = transformers.utils.logging.get_verbosity()
        load(save_rm(tmp_path))
        assert transformers.utils.logging.get_verbosity() == before

    def test_gemma_2_without_soft_capping_is_warned_of(self, tmp_path, caplog):
        identity = load(save_rm(tmp_path, "gemma2"), attention="eager").identity
        with caplog.at_level(logging.WARNING):
            warn_of_attention(identity, "gemma2")
            warn_of_attention(replace(identity, attention="flash_attention_2"), "gemma2")
            warn_of_attention(replace(identity, attention="sdpa"), "gemma3")
            assert not caplog.records
            warn_of_attention(replace(identity, attention="sdpa"), "gemma2")
        assert "scores need attention soft-capping; sdpa attention leaves it out" in caplog.text


def renamed(names: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
    return {name.replace(".", "__"): value for name, value in names.items()}


ONES, SEVERAL = torch.ones(1, 32), torch.ones(19, 32)
#: (family, keywords of save_rm, changed tensors, changed configuration, what the refusal holds)
REFUSED: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any], str]] = {
    "no head": ("llama", {}, {"score.weight": None}, {}, r"no reward head in its weights \(looked for score, .*random"),
    "no bias of the head": ("bert", {}, {"classifier.bias": None}, {}, "weights that the model needs: classifier.bias"),
    "no pooler": ("bert", {}, {"bert.pooler.dense.weight": None}, {}, "model needs: bert.pooler.dense.weight"),
    "no norm under an attached head": (
        "llama", {}, {"score.weight": None, "v_head.weight": ONES, "model.norm.weight": None}, {},
        "lacks weights that the model needs: model.norm.weight",
    ),
    "two labels": ("llama", {"num_labels": 2}, {}, {}, "a two-label classifier: its head score gives 2"),
    "five labels": ("llama", {"num_labels": 5}, {}, {}, "with 5 outputs"),
    "two labels of an encoder": (
        "roberta", {"num_labels": 2}, {}, {}, "a two-label classifier: its head classifier.out_proj gives 2 numbers",
    ),
    "causal": (
        "llama", {"kind": "causal"}, {}, {}, r"is a causal language model \(LlamaForCausalLM\) without a reward head",
    ),
    "pairwise": ("deberta-v2", {}, {}, {"architectures": ["PairRM"]}, r"a pairwise model \(PairRM\): it compares two"),
    "pairwise deberta": ("deberta-v2", {}, {}, {"architectures": ["DebertaV2PairRM"]}, "model .DebertaV2PairRM."),
    "several objectives": (
        "llama", {}, {"regression_layer.weight": SEVERAL, "gating.weight": SEVERAL + 1}, {},
        r"scores several objectives and mixes them \(gating.weight",
    ),
    "int8 head": ("llama", {}, {"score.weight": ONES.to(torch.int8)}, {}, "The head score of .* is quantized"),
    "uint8 head": ("llama", {}, {"score.weight": ONES.to(torch.uint8)}, {}, "The head score of .* is quantized"),
    "float8 head": ("llama", {}, {"score.weight": ONES.to(torch.float8_e4m3fn)}, {}, "head score of .* is quantized"),
    "text for a number": ("llama", {}, {}, {"hidden_size": "many"}, r"\(model_type 'llama'\): .*damaged, get it again"),
    "heads that do not divide": ("llama", {}, {}, {"num_attention_heads": 5}, "edited or damaged, get it again"),
    "unknown type": (
        "llama", {}, {}, {"model_type": "llama99"},
        r"cannot read .*config.json \(model_type 'llama99'\).*register_family",
    ),
    "code of its own": (
        "llama", {}, {},
        {"model_type": "llama99", "auto_map": {"AutoConfig": "code.C", "AutoModelForSequenceClassification": "code.M"}},
        "brings its own code: read it, then allow it with `trust_remote_code=true`",
    ),
    "another size": (
        "llama", {}, {}, {"intermediate_size": 64},
        r"another shape than its config.json .*mlp.down_proj.weight \[32, 48\] instead of \[32, 64\].* and 1 more",
    ),
}  # fmt: skip


class TestRefused:
    @pytest.mark.parametrize("case", REFUSED)
    def test_what_is_no_reward_model_or_incomplete(self, tmp_path, case):
        family, made, tensors, config, said = REFUSED[case]
        save_rm(tmp_path, family, **made)
        if tensors:
            edit_weights(tmp_path, **renamed(tensors))
        edit_config(tmp_path, **config)
        with refuses(said):
            load(tmp_path)

    def test_unknown_name(self):
        with refuses("There is no reward model nobody/no-such-model: no folder") as caught:
            load("nobody/no-such-model")
        assert "\n" not in str(caught.value)

    def test_no_tokenizer(self, tmp_path):
        build_model("llama").save_pretrained(tmp_path)
        with refuses("The tokenizer of .* cannot be loaded"):
            load(tmp_path)

    @pytest.mark.parametrize("device", ["cuda:7", "nonsense"])
    def test_a_device_that_is_not_there_before_anything_is_loaded(self, device):
        with refuses(f"The device '{device}' cannot be used here"):
            load_backbone(BackboneConfig("nobody/no-such-model", device=device))


class TestRemoteCode:
    CODE = """
import torch
from transformers import LlamaConfig, LlamaModel, PreTrainedModel
class Config(LlamaConfig):
    model_type = "llama99"
class Model(PreTrainedModel):
    config_class = Config
    base_model_prefix = "body"
    def __init__(self, config):
        super().__init__(config)
        self.body = LlamaModel(config)
        self.v_head = torch.nn.Linear(config.hidden_size, 1, bias=False)
        self.post_init()
    def forward(self, input_ids, attention_mask):
        return {wrap}(self.v_head(self.body(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state))
"""

    def save(self, folder: Path, auto: str, wrap: str = "") -> Path:
        save_rm(folder)
        tensors = load_file(folder / "model.safetensors")
        renamed = {("body" + k[5:] if k.startswith("model.") else "v_head.weight"): v for k, v in tensors.items()}
        save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "own_code.py").write_text(self.CODE.replace("{wrap}", wrap))
        edit_config(folder, model_type="llama99", auto_map={"AutoConfig": "own_code.Config", auto: "own_code.Model"})
        return folder

    @pytest.mark.parametrize("auto", ["AutoModel", "AutoModelForSequenceClassification"])
    def test_runs_when_allowed_and_scores_alike(self, tmp_path, auto):
        ids = [[9, 8, 7], [5, 6]]
        own = load(self.save(tmp_path / "own", auto), trust_remote_code=True)
        assert own.identity.architecture == "Model" and own.identity.head_module == "v_head"
        plain = load(save_rm(tmp_path / "plain"))
        close(own.read(ids).reward, plain.read(ids).reward, 1e-5)

    def test_its_post_processing_is_seen(self, tmp_path):
        backbone = load(self.save(tmp_path, "AutoModel", "torch.sigmoid"), trust_remote_code=True)
        with refuses("the model applies a sigmoid after its head"):
            backbone.read([[9, 8, 7], [5, 6]])


@pytest.mark.parametrize(("family", "limit"), [("llama", 128), ("bert", 128), ("roberta", 126), ("deberta-v2", 128)])
def test_the_limit_leaves_out_positions_no_token_gets(family, limit):
    model = build_model(family)
    assert model_limit(model) == limit
    # Known answer: the model runs at its limit. Past it, tables of positions have no row.
    last = torch.full((1, limit), 7)
    model(input_ids=last)
    if family in ("bert", "roberta"):
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, limit + 1), 7))


def test_a_model_that_states_no_limit():
    model = build_model("llama")
    model.config.max_position_embeddings = -1
    assert model_limit(model) is None


def test_the_tokenizers_limit_counts_too(tmp_path):
    save_rm(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": 77}))
    backbone = load(tmp_path)
    assert backbone.text_rule.max_length == 77 and backbone.limit == 128


def test_each_process_takes_its_own_gpu(monkeypatch):
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert choose_device("auto") == torch.device("cuda", 3)


def test_a_hub_snapshot_is_named_by_its_hub_name(tmp_path, monkeypatch):
    save_rm(tmp_path)
    found = replace(open_checkpoint(str(tmp_path)), name="owner/rm", revision="c0ffee")
    monkeypatch.setattr("ebrm.backbone.load.open_checkpoint", lambda *_: found)
    identity = load("owner/rm").identity
    assert identity.name == "owner/rm" and identity.revision == "c0ffee"


class TestReloaded:
    def test_keeps_the_date_of_its_texts_and_takes_other_truncation(self, tmp_path):
        folder = save_rm(tmp_path / "rm")
        byte_tokenizer("{{ strftime_now('%d %b %Y') }}" + CHAT_TEMPLATE).save_pretrained(folder)
        made = load_backbone(str(folder), TextConfig(date="2026-09-01"))
        stored = made.identity.to_dict(), made.text_rule.identity()
        assert "01 Sep 2026" in made.tokenizer.decode(made.tokenize("Hi", "Yes").ids)
        again = reload_backbone(*stored)
        assert again.tokenize("Hi", "Yes") == made.tokenize("Hi", "Yes") and again.text_rule == made.text_rule
        cut = reload_backbone(*stored, {"truncation": "prompt_left_or_drop"})
        assert cut.text_rule == replace(made.text_rule, truncation="prompt_left_or_drop")
        with pytest.raises(ModelError, match="truncation is 'error' in the fitted model and 'drop' now"):
            load_backbone(str(folder), TextConfig(date="2026-09-01", truncation="drop")).check(*stored)

    def test_of_before_dates_were_kept_has_each_days_own_which_is_said(self, tmp_path, caplog):
        template.warn_once.cache_clear()
        folder = save_rm(tmp_path / "rm")
        byte_tokenizer("{{ strftime_now('%d %b %Y') }}" + CHAT_TEMPLATE).save_pretrained(folder)
        made = load_backbone(str(folder), TextConfig(date="today"))
        with caplog.at_level(logging.WARNING):
            assert reload_backbone(made.identity.to_dict(), made.text_rule.identity()).text_rule.date is None
        template.warn_once.cache_clear()
        assert "date" not in made.text_rule.identity()
