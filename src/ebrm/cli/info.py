"""`ebrm info PATH`: what a saved model or a features folder is, from its JSON alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from ebrm.cli.common import accuracy_rows
from ebrm.cli.console import Console
from ebrm.cli.parser import Chosen, Command
from ebrm.errors import DataError, EBRMError, FeaturesError, ModelError
from ebrm.hub import fusion_in_words
from ebrm.utils.files import read_json, sha256_file


def info(
    console: Console,
    chosen: Chosen,
    path: Annotated[
        str,
        Parameter(name="PATH", help="A model that `ebrm fit` wrote (or its Hub name), or a features folder."),
    ],
) -> None:
    """Show a model or a features folder: its reward model, data, settings and measured numbers."""
    kind, values, faults = read(path)
    if faults:
        error = FeaturesError if kind == "features" else ModelError
        raise error(f"{path} is not whole: {'; '.join(faults)}. Copy or make it again.")
    show_features(console, path, values) if kind == "features" else show_model(console, path, values)
    console.result({"path": path, "kind": kind, kind: values})


def read(path: str) -> tuple[str, dict[str, Any], list[str]]:
    """("model" or "features", its JSON, what is wrong with its files).

    Raises:
        DataError, ModelError, FeaturesError: neither of the two, or unreadable.
    """
    folder = Path(path)
    if (folder / "manifest.json").is_file():
        manifest = _json(folder / "manifest.json", FeaturesError)
        if manifest.get("format") != "ebrm-features":
            raise FeaturesError(f"{folder / 'manifest.json'} is not the manifest of an ebrm features folder.")
        return "features", manifest, _feature_faults(folder, manifest)
    if (folder / "config.json").is_file():
        config = _json(folder / "config.json", ModelError)
        if not str(config.get("format", "")).startswith("ebrm-model"):
            raise ModelError(
                f"{folder / 'config.json'} is not of an ebrm model. A plain reward model is what "
                "`ebrm fit --backbone` takes."
            )
        return "model", config, _model_faults(folder, config)
    if folder.exists():
        raise DataError(
            f"{path} is neither a model nor a features folder: it holds no config.json or manifest.json. Give the "
            "folder that `ebrm fit --out` or `ebrm features --out` wrote."
        )
    return "model", _from_hub(path), []


def _from_hub(name: str) -> dict[str, Any]:
    from huggingface_hub import hf_hub_download

    try:
        return _json(Path(hf_hub_download(name, "config.json")), ModelError)
    except EBRMError:
        raise
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"There is no folder {name}, and it could not be had from the Hub either ({reason}). Check the name."
        ) from None


def _json(path: Path, kind: type[EBRMError]) -> dict[str, Any]:
    try:
        value = read_json(path)
    except (ValueError, OSError) as error:
        raise kind(f"{path} cannot be read ({error}). Copy the folder again.") from None
    if not isinstance(value, dict):
        raise kind(f"{path} does not hold a JSON object. Copy the folder again.")
    return value


def _model_faults(folder: Path, config: dict[str, Any]) -> list[str]:
    weights = folder / "energy.safetensors"
    if not weights.is_file():
        return ["energy.safetensors is missing"]
    return [] if sha256_file(weights) == config.get("weights_sha256") else ["energy.safetensors is damaged"]


def _feature_faults(folder: Path, manifest: dict[str, Any]) -> list[str]:
    """By size only: the bytes are checked when the features are used."""
    if not manifest.get("complete"):
        return ["the features are unfinished"]
    faults = []
    for name, entry in sorted(manifest.get("files", {}).items()):
        if not (folder / name).is_file():
            faults.append(f"{name} is missing")
        elif (folder / name).stat().st_size != entry.get("bytes"):
            faults.append(f"{name} is damaged")
    return faults


def show_model(console: Console, path: str, config: dict[str, Any]) -> None:
    """The facts of a model for people."""
    facts = [("model", path), ("reward model", _backbone(config.get("backbone")))]
    if config.get("text_rule"):
        facts.append(("text", _text(config["text_rule"])))
    if parts := _embedding(config.get("backbone")):
        facts.append(("embedding", parts))
    data, conflicts = config.get("data") or {}, config.get("filter") or {}
    if data:
        parts = " / ".join(f"{data.get(name, 0):,}" for name in ("train", "validation", "test"))
        if isinstance(data.get("origin"), str):
            facts.append(("data", data["origin"]))
        facts.append(("pairs", f"{parts} (train / validation / test)"))
    if "kept" in conflicts:
        total = sum(conflicts.get(name, 0) for name in ("kept", "dropped", "tied"))
        if conflicts.get("used", True):
            facts.append(("conflict filter", f"kept {conflicts['kept']:,} of {total:,} training pairs"))
        else:
            contradicted = f"the base RM contradicts {conflicts.get('dropped', 0):,} of {total:,} training pairs"
            facts.append(("labels", f"{contradicted} (all were used)"))
    head = config.get("head") or {}
    facts.append(("head", _settings(head)))
    facts += [(name, _settings(values)) for name, values in head.items() if isinstance(values, dict)]
    facts.append(("fit", _settings(config.get("fit") or {})))
    if config.get("history"):
        facts.append(("epochs", f"{len(config['history'])}, the best was {config.get('best_epoch')}"))
    if config.get("fusion"):
        facts.append(("fusion", fusion_in_words(config["fusion"])))
    metrics = config.get("metrics") or {}
    if metrics.get("pairs"):
        facts.append(("measured on", f"{metrics['pairs']:,} held-out pairs, {metrics['prompts']:,} prompts"))
        facts += [(what, f"{value} ({interval})") for what, value, interval in accuracy_rows(metrics)]
    console.facts([*facts, ("written by", f"ebrm {config.get('ebrm_version', '?')}")])


def show_features(console: Console, path: str, manifest: dict[str, Any]) -> None:
    """The facts of a features folder for people."""
    facts = [("features", path), ("reward model", _backbone(manifest.get("backbone")))]
    if manifest.get("text"):
        facts.append(("text", _text(manifest["text"])))
    size = f"{manifest.get('embedding_size')} dimensions, {manifest.get('embedding_dtype')}"
    parts = _embedding(manifest.get("backbone"))
    facts += [
        ("embedding", f"{parts} ({size})" if parts else size),
        ("made", str(manifest.get("origin"))),
        ("texts", f"{manifest.get('items', 0):,} different, in {manifest.get('pairs', 0):,} pairs"),
    ]
    for name in ("truncated", "dropped", "batch_drift"):
        if manifest.get(name):
            facts.append((name.replace("_", " "), _number(manifest[name])))
    console.facts(
        [*facts, ("bytes", f"{sum(entry.get('bytes', 0) for entry in manifest.get('files', {}).values()):,}")]
    )


def _backbone(identity: dict[str, Any] | None) -> str:
    if not identity:
        return "not known (features made elsewhere)"
    words = [str(identity.get("name"))]
    if identity.get("revision"):
        words.append(f"revision {identity['revision']}")
    words += [str(identity[key]) for key in ("architecture", "dtype") if identity.get(key)]
    if identity.get("weights_fingerprint"):
        words.append(f"weights {str(identity['weights_fingerprint'])[:12]}")
    return ", ".join(words)


def _embedding(identity: dict[str, Any] | None) -> str | None:
    """What an embedding holds, None where nobody knows: "pooled position + mean of blocks 2 and 4"."""
    if not identity or "weights_fingerprint" not in identity:
        return None
    blocks = [str(block) for block in identity.get("layers") or ()]
    if not blocks:
        return "pooled position"
    first = f"{', '.join(blocks[:-1])} and " if len(blocks) > 1 else ""
    return f"pooled position + mean of block{'s' * (len(blocks) > 1)} {first}{blocks[-1]}"


def _text(rule: dict[str, Any]) -> str:
    template = "plain format" if rule.get("template") == "plain" else "chat template"
    limit, truncation = rule.get("max_length"), rule.get("truncation")
    return f"{template}, at most {limit:,} tokens, longer: {truncation}" if isinstance(limit, int) else template


def _settings(values: dict[str, Any]) -> str:
    """`linear, ridge 0.5`: the kind, then the settings that are not in groups of their own."""
    plain = {name: value for name, value in values.items() if value is not None and not isinstance(value, dict)}
    kind = [str(plain.pop("kind"))] if "kind" in plain else []
    return ", ".join([*kind, *(f"{name} {_number(value)}" for name, value in plain.items())])


def _number(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return f"[{', '.join(map(_number, value))}]"
    return f"{value:,}" if isinstance(value, int) else str(value)


command = Command("info", info, {})
