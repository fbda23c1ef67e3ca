"""License and base models of a reward model, as its own folder says, for the cards of what builds on it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ebrm.errors import BackboneError
from ebrm.utils.stored import read_json

# Files that have to go with a reward model's weights.
_LICENSE_FILES = re.compile(r"(?:licen[cs]e|notice|copying|use[_-]policy|acceptable[_-]use)[\w.\- ]*", re.IGNORECASE)
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
# How the text of a license begins, and its identifier on the Hub.
_TEXTS = (
    (r"Apache License\s+Version 2\.0", "apache-2.0"),
    (r"\bMIT License\b|Permission is hereby granted, free of charge, to any person obtaining a copy", "mit"),
    (r"\bLLAMA 3\.3 COMMUNITY LICENSE", "llama3.3"),
    (r"\bLLAMA 3\.2 COMMUNITY LICENSE", "llama3.2"),
    (r"\bLLAMA 3\.1 COMMUNITY LICENSE", "llama3.1"),
    (r"\bMETA LLAMA 3 COMMUNITY LICENSE", "llama3"),
    (r"\bLLAMA 2 COMMUNITY LICENSE", "llama2"),
    (r"\bGemma Terms of Use", "gemma"),
    (r"Creative Commons Attribution-NonCommercial 4\.0", "cc-by-nc-4.0"),
    (r"Creative Commons Attribution 4\.0", "cc-by-4.0"),
    (r"Redistribution and use in source and binary forms.*Neither the name", "bsd-3-clause"),
    (r"GNU GENERAL PUBLIC LICENSE\s+Version 3", "gpl-3.0"),
)
UNKNOWN = "unknown"
_DEMO = {"base_model": ["sentence-transformers/all-MiniLM-L6-v2"], "license": "apache-2.0"}


def provenance(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Hub names and license of a reward model, as its own card and license files say.

    Args:
        identity: of a reward model (`BackboneIdentity.to_dict()`); {} for embeddings made elsewhere.

    Returns:
        `base_model`, its name on the Hub, or those it says it was made from; `license`, an identifier of the Hub's, of
        an adapter and its base model both; for "other" `license_name` ("unknown" where nothing says it) and, if known,
        `license_link`.
    """
    name, revision = str(identity.get("name") or ""), identity.get("revision")
    if name == "demo":
        return dict(_DEMO)
    folders = _folders(identity)
    cards = [_front_matter(folder) for folder in folders]
    base = [name] if _on_hub(name, revision) else []
    if not base and cards:
        base = _hub_names(cards[0].get("base_model")) or (_hub_names(_adapter_base(folders[0])) if folders else [])
    found: dict[str, dict[str, Any]] = {}
    for folder, card in zip(folders, cards, strict=True):
        license = _license(folder, card)
        if license is not None:
            found.setdefault(str(license.get("license_name") or license["license"]), license)
    if len(found) == 1:
        license = next(iter(found.values()))
    elif found:
        license = {"license": "other", "license_name": "-and-".join(found)}
    else:
        license = {"license": "other", "license_name": UNKNOWN}
    if license["license"] == "other" and _on_hub(name, revision):
        link = license.get("license_link")
        page = f"https://huggingface.co/{name}"
        if not link:
            license["license_link"] = page
        elif "://" not in link:
            license["license_link"] = f"{page}/blob/main/{link}"
    return {"base_model": base, **license}


def license_files(identity: Mapping[str, Any]) -> dict[str, Path]:
    """The license files that lie beside a reward model's weights, by the names to copy them under."""
    found: dict[str, Path] = {}
    for folder in _folders(identity):
        for path in sorted(folder.iterdir()):
            if path.is_file() and _LICENSE_FILES.fullmatch(path.name):
                name = path.name if path.name not in found else f"{path.stem}-base{path.suffix}"
                found[name] = path
    return found


def _on_hub(name: str, revision: Any) -> bool:
    return bool(revision) and _HUB_NAME.fullmatch(name) is not None


def _hub_names(value: Any) -> list[str]:
    """Names on the Hub among one or several; paths are left out."""
    given = [value] if isinstance(value, str) else value if isinstance(value, Iterable) else []
    return [name for name in given if isinstance(name, str) and _HUB_NAME.fullmatch(name) and not Path(name).exists()]


def _folders(identity: Mapping[str, Any]) -> list[Path]:
    """Folders of a reward model and, for an adapter, of its base model, as far as they are on this machine."""
    folder = _folder(str(identity.get("name") or ""), identity.get("revision"))
    if folder is None:
        return []
    named = identity.get("base") or _adapter_base(folder)
    if not named:
        return [folder]
    beside = folder / str(named)
    base = beside if beside.is_dir() else _folder(str(named), None)
    return [folder] if base is None else [folder, base]


def _folder(name: str, revision: str | None) -> Path | None:
    if name and Path(name).is_dir():
        return Path(name)
    if _HUB_NAME.fullmatch(name) is None:
        return None
    from huggingface_hub import try_to_load_from_cache

    for file in ("config.json", "adapter_config.json"):
        found = try_to_load_from_cache(name, file, revision=revision)
        if isinstance(found, str):
            return Path(found).parent
    return None


def _adapter_base(folder: Path) -> str | None:
    path = folder / "adapter_config.json"
    if not path.is_file():
        return None
    try:
        value = read_json(path, "Adapter", error=BackboneError, do="", foreign=True)
    except BackboneError:
        return None
    return value.get("base_model_name_or_path")


def _front_matter(folder: Path) -> dict[str, Any]:
    """The metadata of a folder's card; {} where there is none that can be read."""
    import yaml  # not before: `ebrm --help` needs none

    try:
        text = (folder / "README.md").read_text(encoding="utf-8")
        found = re.match(r"\A\ufeff?---\s*\n(.*?)\n---\s*(?:\n|\Z)", text, re.DOTALL)
        value = yaml.safe_load(found[1]) if found else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return value if isinstance(value, dict) else {}


def _license(folder: Path, card: Mapping[str, Any]) -> dict[str, Any] | None:
    stated = card.get("license")
    stated = stated[0] if isinstance(stated, list) and len(stated) == 1 else stated
    if isinstance(stated, str) and stated.strip() and stated != UNKNOWN:
        names = ("license_name", "license_link")
        more = {name: str(card[name]) for name in names if card.get(name) and stated == "other"}
        if stated != "other" or more:
            return {"license": stated, **more}
    for path in sorted(folder.iterdir()):
        if path.is_file() and re.match(r"licen[cs]e|copying", path.name, re.IGNORECASE):
            text = path.read_text(encoding="utf-8", errors="replace")[:20_000]
            known = next((name for pattern, name in _TEXTS if re.search(pattern, text, re.DOTALL)), None)
            if known is not None:
                return {"license": known}
            return {"license": "other", "license_name": "license-of-the-reward-model", "license_link": path.name}
    return None
