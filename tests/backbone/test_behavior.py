"""What an RM computes is its identity: whatever changes its rewards is refused by name, and nothing else is."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tests.backbone.shared import IDS, load, refuses
from tests.tiny import build_model, edit_config, save_rm, tokenizer_for

from ebrm.backbone import Backbone, BackboneIdentity, reload_backbone
from ebrm.errors import BackboneError, ModelError


@pytest.fixture(scope="module")
def rm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_rm(tmp_path_factory.mktemp("rm") / "rm", "llama")


@pytest.fixture(scope="module")
def read(rm: Path) -> Backbone:
    return load(rm)


@pytest.fixture(scope="module")
def adapted(rm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapted") / "adapter"
    config = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft's, of transformers' names
        get_peft_model(build_model("llama"), config).save_pretrained(folder)
    edit_json(folder / "adapter_config.json", base_model_name_or_path=str(rm))
    return folder


@pytest.fixture
def copy(rm: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(rm, tmp_path / "rm"))


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def in_tokenizer(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    values = json.loads((folder / "tokenizer.json").read_text())
    change(values)
    (folder / "tokenizer.json").write_text(json.dumps(values))


def merged_no_more(values: dict[str, Any]) -> None:
    values["model"]["merges"].pop()


CHANGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "rotary base": (
        lambda f: edit_config(f, rope_theta=123.0, rope_parameters={"rope_theta": 123.0, "rope_type": "default"}),
        r"the configuration differs \(.*rope_theta is \S+ in the fitted model and 123.0 now",
    ),
    "activation": (lambda f: edit_config(f, hidden_act="gelu"), 'hidden_act is "silu" in the fitted .* and "gelu" now'),
    "epsilon": (lambda f: edit_config(f, rms_norm_eps=0.5), "rms_norm_eps is 1e-06 in the fitted model and 0.5 now"),
    "padding": (lambda f: edit_config(f, pad_token_id=None), "pad_token_id is 1 in the fitted model and absent now"),
    "unknown field": (lambda f: edit_config(f, own_scale=2), "own_scale is absent in the fitted model and 2 now"),
    "merges": (lambda f: in_tokenizer(f, merged_no_more), r"the tokenizer differs \(tokenizer.json\)"),
    "special tokens": (
        lambda f: edit_json(f / "tokenizer_config.json", eos_token="<|end|>"),
        r"the tokenizer differs \(tokenizer_config.json\)",
    ),
    "added tokens": (lambda f: (f / "added_tokens.json").write_text("{}"), r"tokenizer differs \(added_tokens.json\)"),
    "sentencepiece": (lambda f: (f / "spiece.model").write_bytes(b"x"), r"the tokenizer differs \(spiece.model\)"),
    "template": (
        lambda f: (f / "chat_template.jinja").write_text("{{ messages[0]['content'] }}"), "the chat template differs"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_a_reward_model_changed_after_a_fit_is_refused_with_the_part_that_differs(read, copy, what):
    change, said = CHANGES[what]
    change(copy)
    stored = read.identity.to_dict(), read.text_rule.identity()
    with pytest.raises(ModelError, match=said):
        reload_backbone(*stored, {"backbone": str(copy)})


def test_what_no_reward_depends_on_does_not_count(read, copy):
    edit_config(copy, transformers_version="0", _name_or_path="else", use_cache=False, id2label={"0": "good"},
                label2id={"good": 0}, architectures=None, torch_dtype="float32", dtype=None)  # fmt: skip
    edit_json(copy / "tokenizer_config.json", name_or_path="elsewhere")
    (copy / "generation_config.json").write_text('{"temperature": 0.1}')
    (copy / "README.md").write_text("A reward model.")
    tokenizer_for("llama").save_pretrained(copy, save_jinja_files=False)  # the same template, elsewhere
    (copy / "chat_template.jinja").unlink(missing_ok=True)
    again = reload_backbone(read.identity.to_dict(), read.text_rule.identity(), {"backbone": str(copy)})
    assert torch.equal(again.read(IDS).reward, read.read(IDS).reward)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lora_alpha": 80}, "lora_alpha is 8 in .* and 80 now"),
        ({"use_rslora": True}, "use_rslora is false .* true"),
    ],
)
def test_an_adapters_settings_count_and_their_order_does_not(adapted, tmp_path, changes, said):
    made = load(adapted)
    copy = Path(shutil.copytree(adapted, tmp_path / "adapter"))
    stored = made.identity.to_dict(), made.text_rule.identity()
    edit_json(copy / "adapter_config.json", target_modules=["v_proj", "q_proj"], lora_dropout=0.5, inference_mode=False)
    reload_backbone(*stored, {"backbone": str(copy)})
    edit_json(copy / "adapter_config.json", **changes)
    with pytest.raises(ModelError, match=f"the adapter's configuration differs .{said}"):
        reload_backbone(*stored, {"backbone": str(copy)})


def test_a_pickled_adapter_is_refused_also_beside_a_head(adapted, tmp_path):
    copy = Path(shutil.copytree(adapted, tmp_path / "adapter"))
    torch.save(load_file(copy / "adapter_model.safetensors"), copy / "adapter_model.bin")
    (copy / "adapter_model.safetensors").unlink()
    save_file({"score.weight": torch.ones(1, 32)}, copy / "value_head.safetensors")
    with refuses(r"only as pickles \(adapter_model.bin\).*Convert once, in that folder: python -c"):
        load(copy)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.ckpt", "model.pth"])
def test_a_pickled_model_is_refused_with_a_conversion_that_works(rm, copy, name, monkeypatch):
    tensors = load_file(copy / "model.safetensors")
    torch.save({"state_dict": tensors} if name.endswith("ckpt") else tensors, copy / name)
    torch.save({"lr": 1}, copy / "training_args.bin")
    (copy / "model.safetensors").unlink()
    save_file({"score.weight": torch.ones(1, 32)}, copy / "value_head.safetensors")
    with refuses(rf"only as pickles \({name}\)") as caught:
        load(copy)
    (copy / "value_head.safetensors").unlink()
    code = str(caught.value).split("python -c '")[1].split("'")[0]
    monkeypatch.chdir(copy)
    exec(code, {})
    assert torch.equal(load(copy).read(IDS).reward, load(rm).read(IDS).reward)


def test_other_rewards_from_the_same_files_are_refused(read, copy):
    stored = read.probed().to_dict(), read.text_rule.identity()
    assert len(stored[0]["probe"]) == 4
    again = reload_backbone(*stored, {"backbone": str(copy)})
    assert again.probed().probe == pytest.approx(read.probed().probe, abs=1e-5)
    again._probe = None
    with torch.no_grad():
        again.model.model.layers[0].mlp.down_proj.weight.mul_(1.5)  # as a library or the memory might
    with pytest.raises(ModelError, match=r"the probe differs \(fixed text \d of 4 has the reward .* up to .* rounding"):
        again.check(*stored)


def test_half_precision_and_another_attention_are_rounding(read, rm):
    stored = read.probed().to_dict(), read.text_rule.identity()
    for changes in ({"dtype": "bfloat16"}, {"attention": "eager"}, {"token_budget": 1}):
        load(rm, **changes).check(*stored)


def test_an_identity_of_an_earlier_version_is_refused(read):
    old = {name: value for name, value in read.identity.to_dict().items() if name not in ("config", "tokenizer")}
    with pytest.raises(BackboneError, match="lacks config, tokenizer .* made by an earlier version"):
        BackboneIdentity.from_dict(old)


def test_code_that_may_run_counts(tmp_path):
    from tests.backbone.test_load import TestRemoteCode

    folder = TestRemoteCode().save(tmp_path / "own", "AutoModel")
    one = load(folder, trust_remote_code=True).identity
    (folder / "own_code.py").write_text((folder / "own_code.py").read_text() + "\n# changed\n")
    two = load(folder, trust_remote_code=True).identity
    assert "the model's own code differs (own_code.py)" in (one.mismatch(two) or "")
