"""Every weight of a checkpoint is used, or known not to matter, or refused by its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tests.backbone.shared import IDS, close, load, refuses
from tests.tiny import edit_config, save_rm

from ebrm.backbone import reload_backbone
from ebrm.backbone.checkpoint import open_checkpoint
from ebrm.backbone.families import stored_head
from ebrm.backbone.weights import Loading, refuse_unfit
from ebrm.errors import BackboneError
from ebrm.integrations.transformers import build_base, describe_base


def change(folder: Path, tensors: dict[str, Any]) -> Path:
    """Change tensors of a saved model; None removes one, a function makes one from all."""
    path = folder / "model.safetensors"
    found = load_file(path)
    made = {name: value(found) if callable(value) else value for name, value in tensors.items()}
    kept = {name: value.clone() for name, value in (found | made).items() if value is not None}
    save_file(kept, path, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(("family", "head"), [("llama", "score"), ("qwen2", "score"), ("gpt2", "score")])
def test_a_bias_of_the_head_is_used_where_the_class_has_none(tmp_path: Path, family: str, head: str) -> None:
    plain = load(save_rm(tmp_path, family)).read(IDS)
    backbone = load(change(tmp_path, {f"{head}.bias": torch.tensor([3.0])}))
    reading = backbone.read(IDS)
    close(reading.reward, plain.reward + 3)
    close(reading.embedding, plain.embedding)
    with torch.no_grad():  # the model itself reports the same
        own = backbone.model(input_ids=torch.tensor([IDS[0]]), attention_mask=torch.ones(1, 4)).logits[0, 0]
    close(own, reading.reward[0])
    description = describe_base(backbone.model, head)
    assert description is not None  # and so does a standalone copy
    built = build_base(description)
    built.load_state_dict(backbone.model.state_dict())
    assert built.get_submodule(head).bias.tolist() == [3.0]


def test_a_bias_of_another_shape_is_refused(tmp_path: Path) -> None:
    with refuses(r"bias score.bias of .* has the shape \[2\]; \[1\] was expected"):
        load(change(save_rm(tmp_path), {"score.bias": torch.zeros(2)}))


ONE = torch.ones(1)
#: Added tensors, changes of the configuration, and what the refusal says.
REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "layers beyond the configuration's": (
        {}, {"num_hidden_layers": 1},
        r"has 9 weights that the model has no place for: model.layers.1.input_layernorm.weight, .* and 4 more. The "
        r"reward would be computed without them. In config.json num_hidden_layers is 1, and the weights have 2 layers",
    ),
    "one more layer": (
        {"model.layers.2.mlp.up_proj.weight": torch.ones(48, 32)}, {},
        r"1 weight that .*: model.layers.2.mlp.up_proj.weight. .* without it. In config.json .* is 2, .* have 3 layers",
    ),
    "a scale of the head": ({"score.scale": ONE}, {}, "1 weight that the model has no place for: score.scale"),
    "a norm before the head": ({"reward_norm.weight": torch.ones(32)}, {}, "no place for: reward_norm.weight"),
    "biases of a layer": (
        {"model.layers.0.mlp.up_proj.bias": torch.ones(48), "model.layers.0.self_attn.q_norm.weight": ONE}, {},
        "2 weights .*: model.layers.0.mlp.up_proj.bias, model.layers.0.self_attn.q_norm.weight",
    ),
    "unmerged adapters": (
        {"model.layers.0.self_attn.q_proj.lora_A.default.weight": ONE}, {}, "no place for: .*q_proj.lora_A.default",
    ),
    "a second head": ({"v_head.summary.weight": torch.ones(1, 32)}, {}, "more than one .* head: score, and v_head.sum"),
    "a head inside the base model": ({"model.score.weight": torch.ones(1, 32)}, {}, "head: score, and model.score"),
    "a gate": ({"gate.weight": torch.ones(3, 32)}, {}, "no place for: gate.weight"),
    "a head of another width": (
        {"score.weight": torch.ones(1, 64)}, {}, r"another shape .*: score.weight \[1, 64\] instead of \[1, 32\]",
    ),
    "an embedding of another size": (
        {"model.embed_tokens.weight": torch.ones(300, 32)}, {}, r"tokens.weight \[300, 32\] instead of \[267, 32\]",
    ),
    "names with a prefix": (
        {"model.norm.weight": None, "module.model.norm.weight": torch.ones(32)}, {},
        r"lacks weights that the model needs: model.norm.weight. .* has others .* for \(module.model.norm.weight\)",
    ),
    "normalized rewards": ({"normalizer.mean": ONE}, {"do_normalize": True}, "no place for: normalizer.mean"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_be_left_out_is_refused_by_name_and_number(tmp_path: Path, case: str) -> None:
    tensors, config, said = REFUSED[case]
    change(save_rm(tmp_path), tensors)
    edit_config(tmp_path, **config)
    with refuses(said):
        load(tmp_path)


HARMLESS: dict[str, tuple[str, dict[str, Any]]] = {
    "the language model's head": ("llama", {"lm_head.weight": torch.ones(267, 32), "lm_head.bias": torch.ones(267)}),
    "rotary buffers": ("llama", {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}),
    "positions": ("bert", {"bert.embeddings.position_ids": torch.zeros(1, 128)}),
    "heads of pretraining": (
        "bert", {"cls.predictions.bias": ONE, "cls.predictions.decoder.weight": ONE, "cls.seq_relationship.bias": ONE},
    ),
    "a masked language model's": ("roberta", {"lm_head.dense.weight": ONE, "roberta.pooler.dense.weight": ONE}),
    "replaced tokens": ("electra", {"discriminator_predictions.dense.weight": ONE}),
    "masks of attention": (
        "gpt2", {"transformer.h.0.attn.bias": torch.ones(1, 1, 8, 8), "transformer.h.0.attn.masked_bias": ONE},
    ),
    "multi-token prediction": ("qwen3", {"mtp.layers.0.input_proj.weight": ONE}),
    "what is not applied": ("llama", {"normalizer.mean": ONE, "normalizer.count": ONE}),
}  # fmt: skip


@pytest.mark.parametrize("case", HARMLESS)
def test_what_the_reward_does_not_depend_on_may_be_there(tmp_path: Path, case: str) -> None:
    family, tensors = HARMLESS[case]
    before = load(save_rm(tmp_path, family)).read(IDS).reward
    assert torch.equal(load(change(tmp_path, tensors)).read(IDS).reward, before)


def test_a_head_file_beside_a_model_that_has_a_head_is_a_second_one(tmp_path: Path) -> None:
    save_rm(tmp_path)
    save_file({"v_head.summary.weight": torch.ones(1, 32)}, tmp_path / "value_head.safetensors")
    with refuses("more than one reward head: score, and v_head.summary"):
        load(tmp_path)


def test_a_named_head_is_the_one_and_is_found_again(tmp_path: Path) -> None:
    change(save_rm(tmp_path), {"v_head.summary.weight": torch.ones(1, 32), "v_head.summary.bias": ONE})
    backbone = load(tmp_path, head="v_head.summary")
    again = reload_backbone(backbone.identity.to_dict(), backbone.text_rule.identity(), {"device": "cpu"})
    assert again.identity == backbone.identity
    assert torch.equal(again.read(IDS).reward, backbone.read(IDS).reward)
    change(tmp_path, {"gate.weight": ONE})
    with refuses("1 weight that the model has no place for: gate.weight"):  # only heads may lie beside it
        load(tmp_path, head="v_head.summary")


@pytest.mark.parametrize("prefix", ["model", "module", "rm.inner"])
def test_a_head_under_another_prefix_is_pointed_out_and_can_be_named(tmp_path: Path, prefix: str) -> None:
    plain = load(save_rm(tmp_path)).read(IDS).reward
    name = f"{prefix}.score"
    change(tmp_path, {f"{name}.weight": lambda found: found["score.weight"], "score.weight": None})
    with refuses(
        rf"no reward head where it is looked for .*, but {name}.weight \[1, 32\]. .* name it: `head=\"{name}\"`"
    ):
        load(tmp_path)
    close(load(tmp_path, head=name).read(IDS).reward, plain)


def test_a_head_in_a_pickle_is_pointed_out(tmp_path: Path) -> None:
    save_rm(tmp_path, kind="causal")
    (tmp_path / "value_head.bin").write_bytes(b"")
    with refuses(r"no reward head in its weights, but value_head.bin, a pickle.*glob\(\"value_head.bin\"\)"):
        load(tmp_path)


def test_an_attached_head_leaves_nothing_of_the_base_model_out(tmp_path: Path) -> None:
    head: dict[str, Any] = {"score.weight": None, "v_head.weight": torch.ones(1, 32)}
    load(change(save_rm(tmp_path), head))
    change(tmp_path, {"model.layers.5.mlp.up_proj.weight": torch.ones(48, 32)})
    with refuses("1 weight that the model has no place for: model.layers.5"):
        load(tmp_path)


KEPT = st.sampled_from(["model", "layers", "0", "score", "weight", "bias", "norm", "mlp", "gate", "x"])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_rm(tmp_path_factory.mktemp("rm"))


@settings(max_examples=50)
@given(names=st.sets(st.lists(KEPT, min_size=2, max_size=5).map(".".join), min_size=1, max_size=4))
def test_no_unknown_name_goes_unsaid(saved: Path, names: set[str]) -> None:
    checkpoint = open_checkpoint(str(saved))
    head = stored_head(checkpoint, ("score",))
    assert head is not None
    names -= {"score.weight", "score.bias"}
    if names:
        with pytest.raises(BackboneError) as caught:
            refuse_unfit([checkpoint], checkpoint, head, Loading(unexpected=set(names)), None)
        assert all(name in str(caught.value) or name.rpartition(".")[0] in str(caught.value) for name in names)
