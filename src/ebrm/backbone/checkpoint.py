"""Checkpoints: find a model's files (folder or Hub), read its tensors by name."""

from __future__ import annotations

import fnmatch
import glob
import logging
import re
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from ebrm.errors import BackboneError, setting
from ebrm.utils.hub_names import download, shown_place, why_no_hub_name
from ebrm.utils.stored import fits, parse_json, read_json

logger = logging.getLogger(__name__)

# Only JSON, text and safetensors leave the Hub: pickles are never fetched, let alone opened.
_PATTERNS = [
    "*.json",
    "*.safetensors",
    "*.txt",
    "*.model",
    "*.jinja",
    "*.tiktoken",
    "README.md",
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
]
_SINGLE, _INDEX, _ADAPTER = "model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors"
# Parts as torch.distributed writes them; transformers takes these before all others.
_PARTS = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
# Pickles of a training run beside a model: they hold no weights of it, and nothing loads them.
_OF_TRAINING = re.compile(r"(?:training_args|optimizer|scheduler|rng_state|scaler|trainer_state)[\w.-]*")
# What transformers reads beside the weights, and in its own words of faults leaves the file unnamed.
_BESIDE = ("tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "added_tokens.json")
_AGAIN = "The file is damaged: fetch the model again, or save it again with `save_pretrained`."
# A reward head that some trainers save beside the model (LLaMA-Factory).
HEAD_FILE = "value_head.safetensors"
# Converts pickled tensors, all of them under their own names, without running what else is in the files. Some trainers
# put them into an entry of their own.
_CONVERT = (
    "python -c 'import glob, torch; from safetensors.torch import save_file; read = lambda f: torch.load(f, "
    'map_location="cpu", weights_only=True); save_file({{k: v.contiguous().clone() for f in glob.glob("{pickles}") for '
    'd in [read(f)] for k, v in d.get("state_dict", d).items()}}, "{out}", {{"format": "pt"}})\''
)


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


def open_checkpoint(
    name: str, revision: str | None = None, with_code: bool = False, what: str = "reward model"
) -> Checkpoint:
    """A model by folder or Hub name (fetched into the Hub's cache; with Python files if `with_code`).

    `what` it is called in messages.

    Raises:
        BackboneError: no such folder or repository, no `config.json`, weights missing, damaged or only as pickles.
    """
    folder = Path(name).expanduser()
    commit = None
    if not folder.is_dir():
        folder, commit = _fetch(name, revision, _PATTERNS, with_code, what)
    config = _json(folder / "config.json", "Checkpoint")
    adapter = _json(folder / "adapter_config.json", "Adapter")
    for beside in _BESIDE:
        _json(folder / beside, "Settings")
    if config is None and adapter is None:
        raise BackboneError(
            f"{name} holds neither config.json nor adapter_config.json, so it is not a saved model. Give the folder "
            f"that `save_pretrained` wrote, or the Hub name of a {what}."
        )
    weights = _weight_files(name, folder, config or {}, adapter is not None)
    tensors: dict[str, TensorInfo] = {}
    for path in weights:
        tensors.update(_header(path))
    return Checkpoint(name, folder, commit, config or {}, adapter, weights, tensors)


def open_tokenizer(name: str, revision: str | None = None, with_code: bool = False) -> Checkpoint:
    """A model's folder, or what its repository on the Hub holds besides weights: enough for its tokenizer.

    Raises:
        BackboneError: no such folder or repository.
    """
    folder, commit = Path(name).expanduser(), None
    if not folder.is_dir():
        patterns = [pattern for pattern in _PATTERNS if not pattern.endswith("safetensors")]
        folder, commit = _fetch(name, revision, patterns, with_code, "language model")
    return Checkpoint(name, folder, commit, {}, None, (), {})


def _fetch(name: str, revision: str | None, files: list[str], with_code: bool, what: str) -> tuple[Path, str | None]:
    if why := why_no_hub_name(name, revision):
        raise BackboneError(
            f"There is no {what} {name}: no folder of that name here (looked for {shown_place(name)}), and {why}."
            f" Check the path, or give a Hub name; {setting('revision', 'main')} asks the Hub in any case."
        )
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    patterns = [*files, "*.py"] if with_code else files
    try:
        folder = download(name, revision, allow_patterns=patterns, ignore_patterns=["*/*"])
    except GatedRepoError as error:
        raise BackboneError(
            f"The {what} {name} is on the Hub but gated: accept its terms on its page, then log in with "
            "`hf auth login`."
        ) from error
    except RevisionNotFoundError as error:
        raise BackboneError(
            f"The {what} {name} has no revision {revision!r}. Give a branch, tag or commit that it has, or leave "
            "revision unset."
        ) from error
    except RepositoryNotFoundError as error:
        raise BackboneError(
            f"There is no {what} {name}: no folder of that name here, and no such repository on the Hub (or it "
            "is private). Check the spelling; for a private one, log in with `hf auth login`."
        ) from error
    except HFValidationError as error:
        raise BackboneError(
            f"There is no {what} {name}: no folder of that name here, and it is not a Hub name (owner/name). "
            "Check the path."
        ) from error
    except OSError as error:
        raise BackboneError(
            f"There is no {what} {name}: no folder of that name here, it is not in the Hub's cache, and the Hub "
            f"could not be reached ({type(error).__name__}). Check the spelling and the network, or give a folder."
        ) from error
    # A snapshot's folder is named by its commit.
    return folder, folder.name if folder.parent.name == "snapshots" else None


def _json(path: Path, schema: str) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    found: dict[str, Any] = read_json(path, schema, error=BackboneError, do=_AGAIN, foreign=True)
    return found


def pickles(folder: Path) -> list[str]:
    """Names of the pickle files in a folder that may hold weights."""
    names = {file.name for pattern in _PICKLES for file in folder.glob(pattern)}
    return sorted(name for name in names if not _OF_TRAINING.fullmatch(name))


def _weight_files(name: str, folder: Path, config: dict[str, Any], is_adapter: bool) -> tuple[Path, ...]:
    """The files that peft loads of an adapter and transformers of a model, in its order, and a head beside them."""
    files = _adapter_files(name, folder) if is_adapter else _model_files(name, folder, config)
    if files:  # a head alone is no model: peft and transformers would look for the rest, and open a pickle
        return (*files, folder / HEAD_FILE) if (folder / HEAD_FILE).is_file() else tuple(files)
    found = pickles(folder)
    if found:
        raise BackboneError(
            f"{name} has its weights only as pickles ({', '.join(found[:3])}), which can run code when opened; ebrm "
            f"reads safetensors. Convert once, in that folder: {conversion(found, is_adapter)}"
        )
    others = sorted(file.name for file in folder.glob("*.safetensors"))
    seen = f" What is there has other names ({', '.join(others[:3])}): rename it, or save the model again." * bool(
        others
    )
    wanted = _ADAPTER if is_adapter else f"{_SINGLE}, or {_INDEX} with its shards"
    raise BackboneError(
        f"{name} has no weights in safetensors ({wanted}).{seen} Give the folder that `save_pretrained` wrote. A Hub "
        "repository whose weights are only .bin files has to be downloaded and converted first."
    )


def _adapter_files(name: str, folder: Path) -> list[Path]:
    whole = [file for file in (_SINGLE, _INDEX) if (folder / file).is_file()]
    if whole:
        raise BackboneError(
            f"{name} holds an adapter (adapter_config.json) and a whole model ({whole[0]}), and it cannot be told "
            "whether the adapter is merged into it. Move one of the two to another folder, and give the one you mean."
        )
    return [folder / _ADAPTER] if (folder / _ADAPTER).is_file() else []


def _model_files(name: str, folder: Path, config: dict[str, Any]) -> list[Path]:
    if any(_PARTS.fullmatch(file.name) for file in folder.iterdir()):
        raise BackboneError(
            f"{name} is saved in the parts of a distributed run (shard-….safetensors). Load it with transformers and "
            "`save_pretrained(…)` it to a new folder."
        )
    stated = config.get("transformers_weights")
    chosen = next((file for file in (stated, _SINGLE, _INDEX) if file and (folder / str(file)).is_file()), None)
    if chosen == _SINGLE and (folder / _INDEX).is_file():
        logger.warning(
            "%s holds %s and %s. transformers loads the former alone, and so is it read here; other programs (vLLM) "
            "load the shards. Delete the one that is not meant.", name, _SINGLE, _INDEX,
        )  # fmt: skip
    if stated and chosen != stated:
        raise BackboneError(f"{name} lacks its weight file: config.json names {stated} (transformers_weights).")
    if chosen is None or not chosen.endswith(".json"):
        return [] if chosen is None else [folder / chosen]
    listed = (_json(folder / chosen, "WeightIndex") or {})["weight_map"]
    files = [folder / file for file in sorted(set(listed.values()))]
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise BackboneError(
            f"{name} lacks weight files that its index lists: {', '.join(absent)}. The copy is incomplete; fetch it "
            "again."
        )
    return files


def conversion(found: list[str], is_adapter: bool) -> str:
    """How to convert pickles of these names: commands that keep the tensors' own names."""
    out = _ADAPTER if is_adapter else _SINGLE
    whole = ("adapter_model*.bin" if is_adapter else "pytorch_model*.bin", out)
    known = [(old, new) for old, new in (whole, ("value_head.bin", HEAD_FILE)) if fnmatch.filter(found, old)]
    others = [name for name in found if not any(fnmatch.fnmatch(name, old) for old, _ in known)]
    if known:
        return " and ".join(_CONVERT.format(pickles=old, out=new) for old, new in known)
    if len(others) == 1:
        return (
            f"{_CONVERT.format(pickles=glob.escape(others[0]), out=out)} (if these are the weights under the names "
            "that transformers gives them; else load them with the program that wrote them and `save_pretrained(…)`)"
        )
    return (
        "load it with the program that wrote it, from a source you trust, and `save_pretrained(…)` it to a new folder."
    )


def _header(path: Path) -> dict[str, TensorInfo]:
    try:
        with open(path, "rb") as handle:
            (size,) = struct.unpack("<Q", handle.read(8))
            if size > 200_000_000:  # no header is that long: the first bytes are something else
                raise ValueError("header too long")
            header = parse_json(handle.read(size), foreign=True)
        if isinstance(header, dict):
            header.pop("__metadata__", None)
        if not fits(header, "TensorHeader"):
            raise ValueError("not the header of a safetensors file")
    except (struct.error, ValueError, MemoryError) as error:
        raise BackboneError(f"{path} is not a readable safetensors file. It is damaged; fetch it again.") from error
    found = {name: TensorInfo(tuple(x["shape"]), x["dtype"], path) for name, x in header.items()}
    end = 8 + size + max((x["data_offsets"][1] for x in header.values()), default=0)
    if path.stat().st_size < end:
        raise BackboneError(
            f"{path} has {path.stat().st_size} bytes and should have {end}: it was cut short. Fetch it again."
        )
    return found
