"""A model's folder: energy.safetensors, config.json and the model card; found here or on the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ebrm._version import __version__
from ebrm.card import model_card
from ebrm.errors import ConfigError, ModelError
from ebrm.heads import FitConfig, head_config
from ebrm.utils.files import atomic_path, sha256_file, write_json, write_text
from ebrm.utils.hub_names import download, shown_place, why_no_hub_name
from ebrm.utils.stored import checked, load_json

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "ebrm-model-3"
_WEIGHTS, _CONFIG, _CARD = "energy.safetensors", "config.json", "README.md"
# By these, transformers' pipelines and sentence-transformers' CrossEncoder give rewards as they are, without a sigmoid.
AS_IT_IS: dict[str, Any] = {
    "problem_type": "regression",
    "sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"},
}
# What transformers' Auto classes go by (ebrm.integrations).
_FOR_TRANSFORMERS = {"model_type": "ebrm", "architectures": ["EBRMForSequenceClassification"], **AS_IT_IS}
# What the config says of its own file, and what a model is made of; a config that transformers wrote says more.
_OWN = ("format", "ebrm_version", "weights_sha256", "own_tokenizer", "sha256")
_RECORD = (
    "head", "fit", "backbone", "text_rule", "data", "filter", "history", "best_epoch", "metrics", "calibration",
    "abstention", "provenance", "fusion",
)  # fmt: skip
_AGAIN = "Copy or download the folder again, or fit the model again."


def is_model(folder: Path) -> bool:
    """Whether a folder holds a model that a fit or `save_pretrained` wrote, of any version; not an export."""
    config = _config_of(folder)
    return str(config.get("format")).startswith("ebrm-model-") and not {"own_tokenizer", "transformers_version"} & {
        *config
    }


def _config_of(folder: Path) -> dict[str, Any]:
    try:
        config = load_json(folder / _CONFIG, error=ModelError, do="", foreign=True)
    except ModelError:
        return {}
    return config if isinstance(config, dict) else {}


def write_model(
    folder: Path, record: dict[str, Any], tensors: dict[str, Tensor], tokenizer: dict[str, str] | None = None
) -> None:
    """Write weights, card and, last, the config with the weights' SHA-256.

    Args:
        folder: where to; made if it is not there.
        record: the model's.
        tensors: the head's.
        tokenizer: SHA-256 of the files of a tokenizer in the folder, which is to be used instead of the RM's.

    Raises:
        ModelError: the folder holds the config of another model, such as the reward model's.
    """
    if (folder / _CONFIG).exists() and not str(_config_of(folder).get("format")).startswith("ebrm-model-"):
        raise ModelError(
            f"{folder} holds another model's {_CONFIG}, which would be overwritten; nothing was changed in it. Choose "
            "another folder."
        )
    header = write_energy(folder, tensors)
    write_card(folder, record)
    more = {"own_tokenizer": True, "sha256": tokenizer} if tokenizer else {}
    write_json(folder / _CONFIG, header | _FOR_TRANSFORMERS | more | record)


def write_energy(folder: Path, tensors: dict[str, Tensor]) -> dict[str, str]:
    """Write `energy.safetensors`; gives what `config.json` has to say of it (format, version, SHA-256)."""
    from safetensors.torch import save_file  # not before: the card alone needs no torch

    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with atomic_path(folder / _WEIGHTS) as partial:
        save_file(weights, partial, metadata={"format": FORMAT})
    return {"format": FORMAT, "ebrm_version": __version__, "weights_sha256": sha256_file(folder / _WEIGHTS)}


def write_card(folder: Path, record: dict[str, Any], standalone: bool = False) -> None:
    """Write the model card, `README.md`."""
    write_text(folder / _CARD, model_card(record, standalone))


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a folder whose weights are whole, checked; without what transformers added to it.

    Raises:
        ModelError: a missing, unreadable or altered file, or a field of another type, named.
    """

    def must_be_there(name: str) -> None:
        if not (folder / name).is_file():
            raise ModelError(
                f"{folder} holds no {name}, so it is not a complete ebrm model. Give the folder that a fit or "
                "save_pretrained wrote."
            )

    must_be_there(_CONFIG)
    config = load_json(folder / _CONFIG, error=ModelError, do=_AGAIN)
    found_format = config.get("format") if isinstance(config, dict) else None
    if found_format in ("ebrm-model-1", "ebrm-model-2"):
        raise ModelError(
            f"The model in {folder} was saved by an earlier ebrm ({found_format}), which this one does not read. "
            "Fit it again; features made then can be used."
        )
    if found_format != FORMAT:
        raise ModelError(
            f"{folder / _CONFIG} does not say format {FORMAT!r}, so this is not an ebrm model (perhaps a plain reward "
            "model, on which one can be fitted) or one of an unknown version."
        )
    if "transformers_version" in config:
        config = {name: config[name] for name in (*_OWN, *_FOR_TRANSFORMERS, *_RECORD) if name in config}
    checked(config, "ModelConfig", str(folder / _CONFIG), error=ModelError, do=_AGAIN)
    try:
        head_config(config["head"]), FitConfig.from_dict(config["fit"])
    except ConfigError as error:
        raise ModelError(
            f"The model in {folder} cannot be put together: {str(error).removesuffix('.')}. Its config.json is damaged "
            "or was written by another version; copy or download the folder again, or fit the model again."
        ) from error
    must_be_there(_WEIGHTS)
    expected, found = config["weights_sha256"], sha256_file(folder / _WEIGHTS)
    if expected != found:
        raise ModelError(
            f"{folder / _WEIGHTS} is damaged or belongs to another config: its SHA-256 is {found}, config.json says "
            f"{expected}. Copy or download the folder again."
        )
    return dict(config)


def read_model(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read and check a folder: (record values, tensors).

    Raises:
        ModelError: a missing, unreadable or altered file, named.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = read_config(folder)
    # `fusion` is for readers of the config: the weights hold it.
    record = {name: config[name] for name in _RECORD if name in config and name != "fusion"}
    try:
        return record, load_file(folder / _WEIGHTS)
    except SafetensorError as error:
        raise ModelError(f"{folder / _WEIGHTS} is not a readable safetensors file ({error}). {_AGAIN}") from error


def download_model(
    name: str | Path,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    local_only: bool = False,
) -> Path:
    """The local folder of a model: `name` itself if it is a folder, else a snapshot from the Hub."""
    if Path(name).expanduser().is_dir():
        return Path(name).expanduser()
    if why := why_no_hub_name(str(name), revision):
        raise ModelError(
            f"{name} is neither a folder here nor a model that could be had from the Hub ({why}). Looked for "
            f"{shown_place(str(name))}. Check the path, or give the folder that a fit wrote."
        )
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return download(
            str(name), revision, cache_dir=cache_dir, token=token, local_files_only=local_only,
            allow_patterns=[_WEIGHTS, _CONFIG, _CARD],
        )  # fmt: skip
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"{name} is neither a folder here nor a model that could be had from the Hub ({reason}). Check the name, "
            "or give the folder that a fit wrote."
        ) from error
