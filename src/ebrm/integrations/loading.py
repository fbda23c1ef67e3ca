"""What transformers' loading options mean for a base RM that is referred to, which ebrm loads itself."""

from __future__ import annotations

from typing import Any

import torch

from ebrm.errors import ModelError

#: Where and as whom to look on the Hub: the options that both sides have.
HUB = ("revision", "cache_dir", "token", "local_files_only")
# What transformers' loading understands and a model that is referred to has no use for.
_IGNORED = (
    "low_cpu_mem_usage",
    "use_safetensors",
    "force_download",
    "num_labels",
    "adapter_kwargs",
    "_from_auto",
    "_commit_hash",
)


def backbone_changes(options: dict[str, Any]) -> dict[str, Any]:
    """Fields of `BackboneConfig` from the keyword arguments of a transformers `from_pretrained`.

    Raises:
        ModelError: an option that ebrm's loading does not have, or several devices.
    """
    options = {key: value for key, value in options.items() if key not in (*HUB, *_IGNORED) and value not in (None, {})}
    changes: dict[str, Any] = {"device": _single_device(options.pop("device_map", "cpu"))}
    dtype = options.pop("dtype", options.pop("torch_dtype", None))
    if dtype is not None:
        changes["dtype"] = str(dtype).removeprefix("torch.")
    if "attn_implementation" in options:
        changes["attention"] = options.pop("attn_implementation")
    changes["trust_remote_code"] = bool(options.pop("trust_remote_code", False))
    if options:
        raise ModelError(
            f"{', '.join(sorted(options))} cannot be used where the folder refers to its base RM. Export the model "
            "first (`ebrm export MODEL --out FOLDER --standalone`) and load that."
        )
    return changes


def _single_device(device_map: Any) -> str:
    if isinstance(device_map, dict) and set(device_map) == {""}:
        device_map = device_map[""]
    if isinstance(device_map, int):
        return f"cuda:{device_map}"
    if isinstance(device_map, str | torch.device):
        return str(device_map)
    raise ModelError(
        f"device_map is {device_map!r}, but a base RM that is referred to is loaded on one device. Name one, or export "
        "the model first (`ebrm export MODEL --out FOLDER --standalone`) and load that."
    )
