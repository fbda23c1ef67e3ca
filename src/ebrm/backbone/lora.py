"""Reward models trained with LoRA: a base model, an adapter, and the head that was trained with it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from torch import nn

from ebrm.backbone.checkpoint import Checkpoint, open_checkpoint
from ebrm.errors import BackboneError


def open_base(adapter: Checkpoint, with_code: bool = False) -> Checkpoint:
    """Find the base model that an adapter's configuration names.

    Raises:
        BackboneError: it names none, or that model is not there.
    """
    config = adapter.adapter or {}
    name = config.get("base_model_name_or_path")
    if not name:
        raise BackboneError(
            f"The adapter {adapter.name} does not name its base model (base_model_name_or_path in "
            "adapter_config.json). Write the base model's name or folder there."
        )
    # A relative folder is first looked for beside the adapter, so that both can be moved together.
    beside = adapter.folder / str(name)
    try:
        return open_checkpoint(str(beside) if beside.is_dir() else str(name), config.get("revision"), with_code)
    except BackboneError as error:
        raise BackboneError(f"{adapter.name} is an adapter on {name}, which could not be opened. {error}") from error


def merge_adapter(model: nn.Module, adapter: Checkpoint) -> nn.Module:
    """Add an adapter's trained parts to a loaded base model and merge them into its weights.

    The merged model computes what base + adapter compute, up to rounding in the base model's precision, and runs at the
    speed of the base.

    Raises:
        BackboneError: peft is not installed, or the adapter does not fit the base model.
    """
    dtype = next(model.parameters()).dtype
    try:
        attached: Any = attach_adapter(model, adapter.folder)
        merged: nn.Module = attached.merge_and_unload(safe_merge=True)
    except (ValueError, RuntimeError, KeyError, AttributeError, TypeError, UserWarning) as error:
        base = (adapter.adapter or {}).get("base_model_name_or_path")
        raise BackboneError(
            f"The adapter {adapter.name} does not fit its base model {base} ({type(model).__name__}): "
            f"{' '.join(str(error).split())[:300]}. Use the base model it was trained on, or merge it yourself and "
            "give the merged folder."
        ) from error
    return merged.to(dtype)


def attach_adapter(model: nn.Module, folder: Path) -> nn.Module:
    """Put an adapter on a model without merging it (peft's own view of base + adapter).

    Raises:
        BackboneError: peft is not installed.
    """
    try:
        from peft import PeftConfig, PeftModel
    except ImportError as error:
        raise BackboneError(
            f"{folder} is a LoRA adapter, and reading it needs peft, which is not installed: pip install peft"
        ) from error
    config = PeftConfig.from_pretrained(str(folder))
    config.inference_mode = True
    if config.task_type != "SEQ_CLS":
        # peft's wrapper for other tasks expects methods that a sequence classifier lacks; the weights are the same.
        config.task_type = None
    with warnings.catch_warnings():
        # What peft and transformers have to tell each other about names that will change is not the user's concern,
        # nor that the base model is not where the adapter was trained: it has been found.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", message="Could not find a config file")
        # A tensor that the adapter should bring and does not would stay random: peft only warns.
        warnings.filterwarnings("error", message=".*missing adapter keys.*")
        return PeftModel.from_pretrained(model, str(folder), config=config, torch_device="cpu")
