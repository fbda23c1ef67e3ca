"""Files of tensors that are trusted only whole: safetensors with a SHA-256 of what they hold in their header."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ebrm.utils.files import atomic_path


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors and texts beside them, with their SHA-256, atomically."""
    kept = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with atomic_path(path) as partial:
        save_file(kept, partial, metadata=sealed(kept, metadata))


def load_tensors(path: Path, of: Mapping[str, str] | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What :func:`save_tensors` wrote; ValueError with the reason where it is not that, or cannot be read.

    `of` are texts that count in the SHA-256 and do not stand in the file.
    """
    try:
        with safe_open(path, framework="pt") as handle:
            metadata = dict(handle.metadata() or {})
            tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"it cannot be read: {' '.join(str(error).split())[:200]}") from error
    found = metadata.pop("sha256", None)
    if found != sealed(tensors, {**metadata, **(of or {})})["sha256"]:
        raise ValueError("its contents do not have the SHA-256 written with them")
    return tensors, metadata


def sealed(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> dict[str, str]:
    """The texts of a safetensors header with the SHA-256 of these texts and tensors (contiguous, on the CPU)."""
    texts = dict(metadata or {})
    digest = hashlib.sha256(json.dumps(texts, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode("utf-8", "surrogatepass"))
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return texts | {"sha256": digest.hexdigest()}
