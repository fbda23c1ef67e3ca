"""The base RM inside a standalone model: what is written down of it, and building it again, without its weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from ebrm.backbone import ValueHeadModel

# Where the base RM came from says nothing about how to build it.
_NOT_NEEDED = ("_name_or_path", "architectures", "auto_map", "transformers_version")


def describe_base(model: nn.Module, head: str) -> dict[str, Any] | None:
    """How to build a base RM again: JSON values, or None where transformers and ebrm alone cannot.

    Args:
        model: transformers' sequence classifier, or a :class:`ValueHeadModel`.
        head: where its last linear map is in it.

    Returns:
        `config`, transformers' configuration; `head`, the head's place in the model; `maps`, for a value head that
        transformers has no class for, the [inputs, outputs, has bias] of its linear maps.
    """
    config = getattr(model, "config", None)
    if config is None or not getattr(config, "model_type", ""):
        return None
    values = {name: value for name, value in config.to_dict().items() if name not in _NOT_NEEDED}
    maps = None
    if isinstance(model, ValueHeadModel):
        parts = [model.head] if isinstance(model.head, nn.Linear) else list(model.head)
        linears = [part for part in parts if isinstance(part, nn.Linear)]
        maps = [[part.in_features, part.out_features, part.bias is not None] for part in linears]
    description = {"config": values, "head": head, "maps": maps}
    return description if _same(model, description) else None


def build_base(description: dict[str, Any], attention: str | None = None) -> nn.Module:
    """Build a base RM from what :func:`describe_base` wrote; its weights are still to be loaded."""
    values = dict(description["config"])
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    config.dtype = torch.get_default_dtype()  # whoever loads the weights has set it
    more = {} if attention is None else {"attn_implementation": attention}
    if description["maps"] is None:
        return AutoModelForSequenceClassification.from_config(config, **more)
    base = AutoModel.from_config(config, **more)
    parts: list[nn.Module] = []
    for inputs, outputs, bias in description["maps"]:
        parts += [nn.ReLU()] if parts else []
        parts.append(nn.Linear(inputs, outputs, bias=bias))
    return ValueHeadModel(base, nn.Sequential(*parts) if len(parts) > 1 else parts[0])  # type: ignore[arg-type]


def _same(model: nn.Module, description: dict[str, Any]) -> bool:
    """True where the description gives the same kind of model with tensors of the same names and shapes."""
    try:
        with torch.device("meta"):
            built = build_base(description)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError):
        return False
    inner = [part.base if isinstance(part, ValueHeadModel) else part for part in (model, built)]
    shapes = [{name: tensor.shape for name, tensor in part.state_dict().items()} for part in (model, built)]
    return type(inner[0]) is type(inner[1]) and shapes[0] == shapes[1]
