"""The state of a fit in one safetensors file, so that a stopped fit goes on where it was."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ebrm.errors import ModelError
from ebrm.utils.files import atomic_path

if TYPE_CHECKING:
    from ebrm.heads.energy_training import Epoch


def save_checkpoint(
    path: Path,
    run: dict[str, Any],
    history: list[Epoch],
    best: dict[str, Tensor],
    density: nn.Module,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> None:
    """Write everything the next epoch depends on, atomically."""
    tensors = {f"now.{k}": v for k, v in density.state_dict().items()}
    tensors |= {f"best.{k}": v for k, v in best.items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": torch.as_tensor(v) for k, v in state.items()}
    tensors["generator"] = generator.get_state()
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    metadata = {"run": json.dumps(run, sort_keys=True), "history": json.dumps([vars(e) for e in history])}
    metadata["sha256"] = _digest(metadata, tensors)
    with atomic_path(path) as partial:
        save_file(tensors, partial, metadata=metadata)


def load_checkpoint(
    path: Path,
    run: dict[str, Any],
    density: nn.Module,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> tuple[list[Epoch], dict[str, Tensor]]:
    """Put the state back into `density`, `optimizer` and `generator`; return the history and the best weights.

    Raises:
        ModelError: a damaged file, or one of another run (other settings, rows or rewards), naming what differs.
    """
    from ebrm.heads.energy_training import Epoch

    try:
        with safe_open(path, framework="pt") as handle:
            metadata = handle.metadata()
            tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118 - not a mapping
        if metadata.pop("sha256") != _digest(metadata, tensors):
            raise ValueError("its contents do not have the SHA-256 written with them")
        written, history = json.loads(metadata["run"]), [Epoch(**e) for e in json.loads(metadata["history"])]
    except (SafetensorError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"The checkpoint {path} is damaged ({error}). Delete it to fit from the start.") from error
    expected = json.loads(json.dumps(run))
    differing = [key for key in expected if written.get(key) != expected[key]]
    if differing:
        key = differing[0]
        raise ModelError(
            f"The checkpoint {path} is of another run: its {key} is {written.get(key)}, this run's is {expected[key]}. "
            "Delete it to fit from the start, or give the settings and data it was made with."
        )
    density.load_state_dict(_part(tensors, "now."))
    state = optimizer.state_dict()
    state["state"] = {
        index: _part(tensors, f"optimizer.{index}.") for index in range(len(state["param_groups"][0]["params"]))
    }
    optimizer.load_state_dict(state)
    generator.set_state(tensors["generator"])
    return history, _part(tensors, "best.")


def _digest(metadata: dict[str, str], tensors: dict[str, Tensor]) -> str:
    """SHA-256 over all that a checkpoint holds: a flipped bit in a weight would otherwise go unnoticed."""
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
