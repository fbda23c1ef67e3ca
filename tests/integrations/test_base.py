"""The base RM of an exported model: built again from its description, or loaded by the options of `from_pretrained`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.tiny import FAMILIES, build_model, save_rm
from torch import nn

from ebrm.backbone import BackboneConfig, ValueHeadModel, load_backbone
from ebrm.backbone.checkpoint import HEAD_FILE
from ebrm.integrations.transformers import backbone_changes, build_base, describe_base


@pytest.mark.parametrize("family", [*FAMILIES, "t5", "bart"])
def test_classifiers_are_built_again(family: str) -> None:
    model = build_model(family)
    path = next(name for name, part in model.named_modules() if isinstance(part, nn.Linear) and part.out_features == 1)
    description = describe_base(model, path)
    assert description is not None and description["head"] == path and description["maps"] is None
    built = build_base(description)
    assert type(built) is type(model)
    built.load_state_dict(model.state_dict())
    ids = torch.tensor([[5, 6, 7, model.config.eos_token_id or 3]])
    torch.testing.assert_close(built.eval()(ids).logits, model(ids).logits)


def test_value_heads_are_built_again(tmp_path: Path) -> None:
    save_rm(tmp_path, kind="base")
    weights = {"v_head.summary.weight": torch.randn(1, 32), "v_head.summary.bias": torch.randn(1)}
    save_file(weights, tmp_path / HEAD_FILE)
    backbone = load_backbone(BackboneConfig(str(tmp_path), device="cpu"))
    path = next(name for name, part in backbone.model.named_modules() if part is backbone.forward.head)
    description = describe_base(backbone.model, path)
    assert description is not None and description["maps"] == [[32, 1, True]]
    built = build_base(description)
    built.load_state_dict(backbone.model.state_dict())
    ids, mask = torch.tensor([[5, 6, 7]]), torch.ones(1, 3, dtype=torch.int64)
    torch.testing.assert_close(built.eval()(ids, mask), backbone.model(ids, mask))


def test_several_maps_keep_their_relu_and_unknown_modules_are_not_described() -> None:
    head = nn.Sequential(nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 1, bias=False))
    model = ValueHeadModel(build_model("llama", "base"), head)
    description = describe_base(model, "head.2")
    assert description is not None and description["maps"] == [[32, 8, True], [8, 1, False]]
    assert str(build_base(description).head) == str(head)
    model.extra = nn.Linear(2, 2)
    assert describe_base(model, "head.2") is None and describe_base(nn.Linear(2, 1), "") is None


def test_a_description_says_nothing_of_where_the_model_was(tmp_path: Path) -> None:
    backbone = load_backbone(BackboneConfig(str(save_rm(tmp_path)), device="cpu"))
    assert str(tmp_path) not in str(describe_base(backbone.model, "score"))


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ({}, {"device": "cpu"}),
        ({"trust_remote_code": True}, {"device": "cpu", "trust_remote_code": True}),
        ({"revision": "main", "token": None, "num_labels": 1, "low_cpu_mem_usage": True}, {"device": "cpu"}),
        ({"dtype": torch.bfloat16, "device_map": 1}, {"device": "cuda:1", "dtype": "bfloat16"}),
        ({"torch_dtype": "auto", "device_map": {"": torch.device("cpu")}}, {"device": "cpu", "dtype": "auto"}),
        ({"attn_implementation": "eager", "device_map": "auto"}, {"device": "auto", "attention": "eager"}),
    ],
)
def test_options_become_settings(options: dict[str, Any], changes: dict[str, Any]) -> None:
    assert backbone_changes(options) == {"trust_remote_code": False} | changes
