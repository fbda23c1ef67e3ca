"""LoRA adapters: find their base model, resize its vocabulary to theirs, and merge them into it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ebrm.backbone.checkpoint import HEAD_FILE, Checkpoint, open_checkpoint
from ebrm.backbone.families import plain_name
from ebrm.errors import BackboneError, setting

_COPY = re.compile(r"\.(?:modules_to_save|original_module)\.")
# What peft puts around an embedding that it changes.
_WRAPPED = re.compile(r"\.(?:token_adapter\.)?(?:base_layer|original_module)\.")


def open_base(adapter: Checkpoint, with_code: bool = False, name: str | None = None) -> Checkpoint:
    """Open the base model of an adapter: `name`, or the one that the adapter's configuration names.

    Raises:
        BackboneError: it names none, the base cannot be opened, or is an adapter itself.
    """
    config = adapter.adapter or {}
    stated, revision = config.get("base_model_name_or_path"), None
    if name is None:
        name, revision = stated, config.get("revision")
        if not name:
            raise BackboneError(
                f"The adapter {adapter.name} does not name its base model (base_model_name_or_path in "
                f"adapter_config.json). Name it with {setting('base', 'owner/name')} (a folder or Hub name)."
            )
        # A relative folder is first looked for beside the adapter, so that both can be moved together.
        beside = adapter.folder / str(name)
        name = str(beside) if beside.is_dir() else str(name)
    try:
        base = open_checkpoint(name, revision, with_code)
    except BackboneError as error:
        here = "" if name != str(stated) else f" If it lies elsewhere now, name it with {setting('base', 'FOLDER')}."
        raise BackboneError(
            f"{adapter.name} is an adapter on {name}, which could not be opened. {error}{here}"
        ) from error
    if base.adapter is not None:
        raise BackboneError(
            f"The base model {name} of the adapter {adapter.name} is an adapter itself. Merge it into its own base "
            f"model first (peft's `merge_and_unload`), save that, and name it with {setting('base', 'FOLDER')}."
        )
    return base


def merge_adapter(model: nn.Module, adapter: Checkpoint) -> tuple[nn.Module, set[str]]:
    """Add an adapter's trained parts to a loaded base model and merge them into its weights.

    The vocabulary of the base model is made as large as the adapter's first, where that has its own embeddings.

    Returns:
        The merged model, and the adapter's tensors that it has no place for.
    """
    dtype = next(model.parameters()).dtype
    if (adapter.adapter or {}).get("layer_replication"):
        raise BackboneError(
            f"The adapter {adapter.name} repeats blocks of its base model (layer_replication in adapter_config.json), "
            "which is not read here. Merge it (peft's `merge_and_unload`), save the merged model, and give that."
        )
    try:
        rows = None
        rows = _resize(model, adapter)
        attached: Any = attach_adapter(model, adapter.folder)
        left = _left_over(attached, adapter)
        merged: Any = attached.merge_and_unload(safe_merge=True)
        if rows is not None and not bool(merged.get_input_embeddings().weight[rows:].isfinite().all()):
            raise ValueError("NaNs in the embeddings of the new tokens")
    except BackboneError:
        raise
    except Exception as error:  # noqa: BLE001 - what peft raises on configurations that do not fit is no list
        base, said = (adapter.adapter or {}).get("base_model_name_or_path"), " ".join(str(error).split())[:300]
        if rows is not None and "NaN" in said:
            raise BackboneError(
                f"The adapter {adapter.name} was trained with more tokens than its base model {base} has ({rows}), and "
                "does not hold the embeddings of all of them: they would be random numbers. Save it again with its "
                "embeddings (`save_pretrained(…, save_embedding_layers=True)`, or the embedding in modules_to_save)."
            ) from error
        raise BackboneError(
            f"The adapter {adapter.name} does not fit its base model {base} ({type(model).__name__}): "
            f"{said}. Use the base model it was trained on, or merge it yourself and give the merged folder."
        ) from error
    return merged.to(dtype), left


def adapter_vocabulary(adapter: Checkpoint, path: str) -> int | None:
    """Rows that an adapter needs in the embedding at `path` of its base model, None where it has none of its own.

    The whole embedding, a low-rank change of it (its number of columns), or some tokens' rows (the last one's number).
    """
    config = adapter.adapter or {}
    own = path.rpartition(".")[2]
    indices = config.get("trainable_token_indices")
    if isinstance(indices, Mapping):  # by module
        indices = next((tokens for name, tokens in indices.items() if str(name).rpartition(".")[2] == own), None)
    for full, info in adapter.tensors.items():
        name = _WRAPPED.sub(".", plain_name(full))
        place, _, kind = name.rpartition(".")
        if kind == "weight" and _ends_alike(place, path):
            return info.shape[0]
        if kind == "lora_embedding_A" and _ends_alike(place, path):
            return info.shape[1]
    return max(indices) + 1 if indices else None


def _ends_alike(one: str, other: str) -> bool:
    """Whether one path is the other, or its end."""
    return one == other or one.endswith("." + other) or other.endswith("." + one)


def _resize(model: nn.Module, adapter: Checkpoint) -> int | None:
    """Resize the vocabulary to the adapter's; the number of rows before if it grew, else None. New rows are NaN."""
    whole: Any = model
    try:
        table = whole.get_input_embeddings()
    except (AttributeError, NotImplementedError):  # code of its own; its vocabulary stays
        return None
    path = next((name for name, module in model.named_modules() if module is table), "")
    wanted = adapter_vocabulary(adapter, path)
    before = int(table.weight.shape[0])
    trained = isinstance(wanted, int) and (adapter.adapter or {}).get("trainable_token_indices")
    if wanted is None or wanted == before or (trained and wanted < before):
        return None
    whole.resize_token_embeddings(wanted, mean_resizing=False)
    if wanted < before:
        return None
    with torch.no_grad():  # what the adapter does not bring must not be read
        whole.get_input_embeddings().weight[before:] = torch.nan
    return before


def attach_adapter(model: nn.Module, folder: Path) -> nn.Module:
    """Put an adapter on a model without merging it (peft's own view of base + adapter)."""
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


def _left_over(attached: nn.Module, adapter: Checkpoint) -> set[str]:
    """Names of the adapter's tensors that the model did not take; `from_pretrained` does not say."""
    from peft import set_peft_model_state_dict
    from peft.utils.save_and_load import load_peft_weights

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        result: Any = set_peft_model_state_dict(attached, load_peft_weights(str(adapter.folder), device="cpu"))
    # A module that was trained whole is in the file up to three times; the copy under its own name is the one taken.
    copies = {name for name in result.unexpected_keys if _COPY.sub(".", name) in adapter.tensors.keys() - {name}}
    return {re.sub(r"\.default(?=\.|$)", "", plain_name(name)) for name in set(result.unexpected_keys) - copies}


def brought(adapter: Checkpoint) -> set[str]:
    """Names in the model of the tensors that peft loads of an adapter; a head saved beside it is not one of them."""
    return {plain_name(name) for name, info in adapter.tensors.items() if info.file.name != HEAD_FILE}
