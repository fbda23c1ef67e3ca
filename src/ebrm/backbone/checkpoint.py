"""Checkpoints: find a model's files (folder or Hub), read its tensors by name; LoRA adapters with their base."""

from __future__ import annotations

import json
import struct
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn

from ebrm.errors import BackboneError
from ebrm.utils.files import read_json

# Only JSON, text and safetensors leave the Hub: pickles are never fetched, let alone opened.
_PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
_SINGLE = ("model.safetensors", "adapter_model.safetensors")
# A reward head that some trainers save beside the model (LLaMA-Factory).
HEAD_FILE = "value_head.safetensors"


@dataclass(frozen=True)
class TensorInfo:
    """Shape and stored type ("F32", "BF16", "I8", …) of one tensor of a checkpoint, and the file that holds it."""

    shape: tuple[int, ...]
    dtype: str
    file: Path


@dataclass(frozen=True)
class Checkpoint:
    """A model's folder as it lies on disk; nothing of it is loaded yet.

    Attributes:
        name: the user's name for it.
        folder: where its files are.
        revision: Hub commit, None for a folder the user named.
        config: contents of `config.json` (empty for an adapter without one).
        adapter: contents of `adapter_config.json`, None for a full model.
        weights: its weight files.
        tensors: name → shape, type and file, from the files' headers.
    """

    name: str
    folder: Path
    revision: str | None
    config: dict[str, Any]
    adapter: dict[str, Any] | None
    weights: tuple[Path, ...]
    tensors: dict[str, TensorInfo] = field(repr=False)

    def read(self, tensor: str) -> Tensor:
        """Read one tensor by name, in its stored type."""
        with safe_open(self.tensors[tensor].file, framework="pt") as handle:
            return handle.get_tensor(tensor)


def open_checkpoint(name: str, revision: str | None = None, with_code: bool = False) -> Checkpoint:
    """A model by folder or Hub name (fetched into the Hub's cache; with Python files if `with_code`).

    Raises:
        BackboneError: no such folder or repository, no `config.json`, weights missing, damaged or only as pickles.
    """
    folder = Path(name).expanduser()
    commit = None
    if not folder.is_dir():
        folder, commit = _fetch(name, revision, with_code)
    config, adapter = _json(folder / "config.json"), _json(folder / "adapter_config.json")
    if config is None and adapter is None:
        raise BackboneError(
            f"{name} holds neither config.json nor adapter_config.json, so it is not a saved model. Give the folder "
            "that `save_pretrained` wrote, or the Hub name of a reward model."
        )
    weights = _weight_files(name, folder)
    tensors: dict[str, TensorInfo] = {}
    for path in weights:
        tensors.update(_header(path))
    return Checkpoint(name, folder, commit, config or {}, adapter, weights, tensors)


def open_base(adapter: Checkpoint, with_code: bool = False) -> Checkpoint:
    """Find the base model that an adapter's configuration names."""
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
    """Add an adapter's trained parts to a loaded base model and merge them into its weights."""
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


def _fetch(name: str, revision: str | None, with_code: bool) -> tuple[Path, str | None]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    patterns = [*_PATTERNS, "*.py"] if with_code else _PATTERNS
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"]))
    except GatedRepoError as error:
        raise BackboneError(
            f"The reward model {name} is on the Hub but gated: accept its terms on its page, then log in with "
            "`hf auth login`."
        ) from error
    except RevisionNotFoundError as error:
        raise BackboneError(
            f"The reward model {name} has no revision {revision!r}. Give a branch, tag or commit that it has, or leave "
            "revision unset."
        ) from error
    except RepositoryNotFoundError as error:
        raise BackboneError(
            f"There is no reward model {name}: no folder of that name here, and no such repository on the Hub (or it "
            "is private). Check the spelling; for a private one, log in with `hf auth login`."
        ) from error
    except HFValidationError as error:
        raise BackboneError(
            f"There is no reward model {name}: no folder of that name here, and it is not a Hub name (owner/name). "
            "Check the path."
        ) from error
    except OSError as error:
        raise BackboneError(
            f"There is no reward model {name}: no folder of that name here, it is not in the Hub's cache, and the Hub "
            f"could not be reached ({type(error).__name__}). Check the spelling and the network, or give a folder."
        ) from error
    # A snapshot's folder is named by its commit.
    return folder, folder.name if folder.parent.name == "snapshots" else None


def _json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        value = read_json(path)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BackboneError(
            f"{path} is not valid JSON ({error}). The file is damaged; fetch the model again."
        ) from error
    if not isinstance(value, dict):
        raise BackboneError(f"{path} holds a {type(value).__name__}, not an object. Fetch the model again.")
    return value


def _weight_files(name: str, folder: Path) -> tuple[Path, ...]:
    index = _json(folder / "model.safetensors.index.json")
    if index is not None:
        files = [folder / file for file in sorted(set(index.get("weight_map", {}).values()))]
    else:
        files = [folder / file for file in _SINGLE if (folder / file).is_file()]
    if (folder / HEAD_FILE).is_file():
        files.append(folder / HEAD_FILE)
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise BackboneError(
            f"{name} lacks weight files that its index lists: {', '.join(absent)}. The copy is incomplete; fetch it "
            "again."
        )
    if files:
        return tuple(files)
    pickles = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern))
    if pickles:
        raise BackboneError(
            f"{name} has its weights only as pickles ({', '.join(pickles[:3])}), which can run code when opened; ebrm "
            "reads safetensors. Convert once, from a source you trust: load it with transformers' "
            "`AutoModelForSequenceClassification.from_pretrained(…)` and `save_pretrained(…)` it to a new folder."
        )
    raise BackboneError(
        f"{name} has no weights in safetensors (model.safetensors, or model.safetensors.index.json with its shards). "
        "Give the folder that `save_pretrained` wrote. A Hub repository whose weights are only .bin files has to be "
        "converted first: load it with transformers and `save_pretrained(…)` it to a folder."
    )


def _header(path: Path) -> dict[str, TensorInfo]:
    try:
        with open(path, "rb") as handle:
            (size,) = struct.unpack("<Q", handle.read(8))
            if size > 200_000_000:  # no header is that long: the first bytes are something else
                raise ValueError("header too long")
            header: dict[str, Any] = json.loads(handle.read(size))
        header.pop("__metadata__", None)
        found = {name: TensorInfo(tuple(x["shape"]), x["dtype"], path) for name, x in header.items()}
        end = 8 + size + max((x["data_offsets"][1] for x in header.values()), default=0)
    except (struct.error, ValueError, KeyError, AttributeError, TypeError, MemoryError) as error:
        raise BackboneError(f"{path} is not a readable safetensors file. It is damaged; fetch it again.") from error
    if path.stat().st_size < end:
        raise BackboneError(
            f"{path} has {path.stat().st_size} bytes and should have {end}: it was cut short. Fetch it again."
        )
    return found
