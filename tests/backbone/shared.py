"""What the tests of the backbone share: texts as token ids, loading, and comparing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ebrm.backbone import Backbone, BackboneConfig, load_backbone
from ebrm.data import TextConfig
from ebrm.errors import BackboneError

IDS = [[9, 8, 7, 6], [5, 150], [100, 101, 102, 103, 104, 2]]


def load(folder: Path | str, text: TextConfig | None = None, **settings: Any) -> Backbone:
    """A reward model on the CPU."""
    return load_backbone(BackboneConfig(str(folder), device="cpu", **settings), text)


def refuses(said: str) -> Any:
    """A BackboneError of this pattern."""
    return pytest.raises(BackboneError, match=said)


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    """Equal up to rounding."""
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


def edit_weights(folder: Path, **changes: Tensor | None) -> None:
    """Change tensors of a saved model (`score__weight` for score.weight); None removes one."""
    path = folder / "model.safetensors"
    tensors = {**load_file(path), **{name.replace("__", "."): value for name, value in changes.items()}}
    save_file({k: v for k, v in tensors.items() if v is not None}, path, metadata={"format": "pt"})
