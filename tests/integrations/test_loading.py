from __future__ import annotations

from typing import Any

import pytest
import torch

from ebrm.errors import ModelError
from ebrm.integrations.loading import backbone_changes


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ({}, {"device": "cpu"}),
        ({"revision": "main", "token": None, "num_labels": 1, "low_cpu_mem_usage": True}, {"device": "cpu"}),
        ({"dtype": torch.bfloat16, "device_map": 1}, {"device": "cuda:1", "dtype": "bfloat16"}),
        ({"torch_dtype": "auto", "device_map": {"": torch.device("cpu")}}, {"device": "cpu", "dtype": "auto"}),
        ({"attn_implementation": "eager", "device_map": "auto"}, {"device": "auto", "attention": "eager"}),
    ],
)
def test_options_become_settings(options: dict[str, Any], changes: dict[str, Any]) -> None:
    assert backbone_changes(options) == {"trust_remote_code": False} | changes


def test_code_is_run_only_when_asked() -> None:
    assert backbone_changes({"trust_remote_code": True})["trust_remote_code"] is True


@pytest.mark.parametrize("options", [{"load_in_8bit": True}, {"device_map": {"a": 0, "b": 1}}])
def test_what_only_a_standalone_folder_can_do_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="--standalone"):
        backbone_changes(options)
