"""A model's folder: energy.safetensors, config.json and the model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ebrm._version import __version__
from ebrm.card import model_card
from ebrm.errors import ModelError
from ebrm.utils.files import atomic_path, read_json, sha256_file, write_json, write_text

FORMAT = "ebrm-model-3"
_WEIGHTS, _CONFIG, _CARD = "energy.safetensors", "config.json", "README.md"
# What transformers' Auto classes go by (ebrm.connect).
_FOR_TRANSFORMERS = {"model_type": "ebrm", "architectures": ["EBRMForSequenceClassification"]}
# What a model is made of; a config that transformers wrote says more.
_RECORD = (
    "head", "fit", "backbone", "text_rule", "data", "filter", "history", "best_epoch", "metrics", "trust",
)  # fmt: skip


def write_model(folder: Path, record: dict[str, Any], tensors: dict[str, Tensor], own_tokenizer: bool = False) -> None:
    """Write weights, card and, last, the config with the weights' SHA-256.

    Args:
        folder: made where it is not there.
        record: what `config.json` holds.
        tensors: the energy's weights.
        own_tokenizer: say that the folder has a tokenizer that writes texts as ebrm does.
    """
    header = write_energy(folder, tensors)
    write_card(folder, record)
    more = {"own_tokenizer": True} if own_tokenizer else {}
    write_json(folder / _CONFIG, header | _FOR_TRANSFORMERS | more | record)


def write_energy(folder: Path, tensors: dict[str, Tensor]) -> dict[str, str]:
    """Write `energy.safetensors`; gives what `config.json` has to say of it (format, version, SHA-256)."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with atomic_path(folder / _WEIGHTS) as partial:
        save_file(weights, partial, metadata={"format": FORMAT})
    return {"format": FORMAT, "ebrm_version": __version__, "weights_sha256": sha256_file(folder / _WEIGHTS)}


def write_card(folder: Path, record: dict[str, Any], standalone: bool = False) -> None:
    """Write the model card, `README.md`."""
    write_text(folder / _CARD, model_card(record, standalone))


def read_model(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read and check a folder: (record values, tensors).

    Raises:
        ModelError: a missing, unreadable or altered file, named.
    """
    for name in (_CONFIG, _WEIGHTS):
        if not (folder / name).is_file():
            raise ModelError(
                f"{folder} holds no {name}, so it is not a complete ebrm model. Give the folder that `ebrm fit --out` "
                "or save_pretrained wrote."
            )
    try:
        config = read_json(folder / _CONFIG)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{folder / _CONFIG} is not readable JSON ({error}). Save the model again.") from error
    found_format = config.pop("format", None) if isinstance(config, dict) else None
    if found_format in ("ebrm-model-1", "ebrm-model-2"):
        raise ModelError(
            f"The model in {folder} was saved by an earlier ebrm ({found_format}), which this one does not read. "
            "Fit it again; features made then can be used."
        )
    if found_format != FORMAT:
        raise ModelError(
            f"{folder / _CONFIG} does not say format {FORMAT!r}, so this is not an ebrm model (perhaps a plain reward "
            "model: give that as --backbone) or one of an unknown version."
        )
    expected, found = config.pop("weights_sha256", None), sha256_file(folder / _WEIGHTS)
    if expected != found:
        raise ModelError(
            f"{folder / _WEIGHTS} is damaged or belongs to another config: its SHA-256 is {found}, config.json says "
            f"{expected}. Copy or download the folder again."
        )
    if "transformers_version" in config:
        config = {name: config[name] for name in _RECORD if name in config}
    # `trust` is for readers of the config: the weights hold it.
    for name in ("ebrm_version", "own_tokenizer", "trust", *_FOR_TRANSFORMERS):
        config.pop(name, None)
    try:
        return config, load_file(folder / _WEIGHTS)
    except SafetensorError as error:
        raise ModelError(f"{folder / _WEIGHTS} is not a readable safetensors file ({error}).") from error


def download_model(
    name: str | Path, revision: str | None, cache_dir: str | Path | None, token: str | bool | None, local_only: bool
) -> Path:
    """The local folder of a model: `name` itself if it is a folder, else a snapshot from the Hub."""
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(
            snapshot_download(
                str(name),
                revision=revision,
                cache_dir=cache_dir,
                token=token,
                local_files_only=local_only,
                allow_patterns=[_WEIGHTS, _CONFIG, _CARD],
            )
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"{name} is neither a folder here nor a model that could be had from the Hub ({reason}). Check the name, "
            "or give the folder that `ebrm fit --out` wrote."
        ) from error
