"""Checksums of an exported folder: all in it that decides rewards, compared before anything of it is used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file

from ebrm.backbone.identity import config_behavior, tokenizer_files
from ebrm.errors import ModelError
from ebrm.utils.files import sha256_file, sha256_json

_AGAIN = "Copy or download the folder again, or export the model again."
#: What the description of the base RM, which stands in `config.json`, is called among the files.
_BASE = "config.base"
_TEMPLATE = "chat_template.jinja"
#: Compared by `config.json` already.
_ENERGY = "energy.safetensors"
#: What transformers would load on top of, or instead of, the weights.
_INSTEAD = ("adapter_config.json",)


def folder_checksums(folder: Path, base: Mapping[str, Any] | None, tokenizer: bool) -> dict[str, str]:
    """SHA-256 of what a folder holds of a base RM: description, weights and, if asked for, the tokenizer's files."""
    found = {} if base is None else {_BASE: _described(base)} | {p.name: sha256_file(p) for p in _weights(folder)}
    return found | (_tokenizer(folder) if tokenizer else {})


def check_checksums(name: str, stated: Any, base: Any, hub: Mapping[str, Any]) -> None:
    """Compare a folder or Hub repository with the checksums in its `config.json`.

    Args:
        name: the folder, or the name on the Hub.
        stated: the checksums.
        base: the description of the base RM in `config.json`, None where it is referred to.
        hub: options for the Hub.

    Raises:
        ModelError: a file that is missing, differs or should not be there, named; no checksums.
    """
    if not isinstance(stated, Mapping) or not stated or (base is not None and _BASE not in stated):
        raise ModelError(f"config.json of {name} states no checksums of what was exported (`sha256`). {_AGAIN}")
    if base is not None and _described(base) != stated[_BASE]:
        raise ModelError(
            f"The base RM that config.json of {name} describes (`base`) is not the one that was exported: it was "
            f"edited or damaged. {_AGAIN}"
        )
    places = {file: _place(name, file, hub) for file in stated if file != _BASE}
    missing = sorted(file for file, place in places.items() if place is None)
    if missing:
        raise ModelError(f"{name} lacks {', '.join(missing)}, which was exported with it. {_AGAIN}")
    for folder in {place.parent for place in places.values() if place is not None}:
        found = folder_checksums(folder, base, tokenizer=bool({"tokenizer_config.json", "tokenizer.json"} & {*stated}))
        found.pop(_BASE, None)
        surplus = sorted({*found} - {*stated}) + [file for file in _INSTEAD if (folder / file).exists()]
        if surplus:
            raise ModelError(
                f"{name} holds {', '.join(surplus)}, which was not exported with it and would change its rewards. Move "
                "it to another place."
            )
        different = sorted(file for file, digest in found.items() if stated[file] != digest)
        if different:
            raise ModelError(
                f"{', '.join(different)} of {name} is damaged or was edited: its SHA-256 is not the one in "
                f"config.json. {_AGAIN}"
            )


def _described(base: Any) -> str:
    """SHA-256 of a base RM's description without what no reward depends on; of anything else no digest."""
    if not isinstance(base, Mapping) or not isinstance(base.get("config"), Mapping):
        return ""
    return sha256_json({**base, "config": config_behavior(base["config"])})


def _weights(folder: Path) -> list[Path]:
    found = [*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")]
    return sorted(path for path in found if path.name != _ENERGY and not path.name.startswith("."))


def _tokenizer(folder: Path) -> dict[str, str]:
    template = folder / _TEMPLATE
    return tokenizer_files(folder) | ({_TEMPLATE: sha256_file(template)} if template.is_file() else {})


def _place(name: str, file: str, hub: Mapping[str, Any]) -> Path | None:
    """Where a file lies on this machine; names with a folder in them are none of ours."""
    if Path(file).name != file:
        return None
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder / file if (folder / file).is_file() else None
    found = cached_file(name, file, _raise_exceptions_for_missing_entries=False, **hub)
    return None if found is None else Path(found)
