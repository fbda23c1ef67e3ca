"""`ebrm info PATH`: what a saved model or a features folder is, from its JSON alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from ebrm.card import fusion_in_words
from ebrm.cli.common import accuracy_rows
from ebrm.cli.console import Console
from ebrm.cli.parser import Chosen, Command
from ebrm.errors import DataError
from ebrm.features import MANIFEST, read_finished
from ebrm.hub import download_model, read_config


def info(
    console: Console,
    chosen: Chosen,
    path: Annotated[
        str,
        Parameter(name="PATH", help="A model that `ebrm fit` wrote (or its Hub name), or a features folder."),
    ],
) -> None:
    """Show a model or a features folder: its reward model, data, settings and measured numbers."""
    kind, values = read(path)
    console.facts(features_facts(path, values) if kind == "features" else model_facts(path, values))
    console.result({"path": path, "kind": kind, kind: values})


def read(path: str) -> tuple[str, dict[str, Any]]:
    """("model" or "features", its JSON) where its files are whole; of features only the sizes are checked.

    Raises:
        DataError, ModelError, FeaturesError: neither of the two, or not whole.
    """
    folder = Path(path)
    if (folder / MANIFEST).is_file():
        return "features", read_finished(folder, verify=False)
    if folder.exists() and not (folder / "config.json").is_file():
        raise DataError(
            f"{path} is neither a model nor a features folder: it holds no config.json or {MANIFEST}. Give the folder "
            "that `ebrm fit --out` or `ebrm features --out` wrote."
        )
    return "model", read_config(download_model(path))


def model_facts(path: str, config: dict[str, Any]) -> list[tuple[str, str]]:
    """A model's facts for people."""
    facts = [("model", path), *_read_with(config["backbone"], config["text_rule"])]
    if parts := _embedding(config["backbone"]):
        facts.append(("embedding", parts))
    data, conflicts, head = config["data"], config["filter"], config["head"]
    if isinstance(data.get("origin"), str):
        facts.append(("data", data["origin"]))
    if data:
        parts = " / ".join(f"{data.get(name, 0):,}" for name in ("train", "validation", "test"))
        facts.append(("pairs", f"{parts} (train / validation / test)"))
        facts.append(("prompts fitted on", _number(data.get("prompts_fitted_on", "not known"))))
    if conflicts:
        total = sum(conflicts[name] for name in ("kept", "dropped", "tied"))
        if conflicts["used"]:
            facts.append(("conflict filter", f"kept {conflicts['kept']:,} of {total:,} training pairs"))
        else:
            contradicted = f"the base RM contradicts {conflicts['dropped']:,} of {total:,} training pairs"
            facts.append(("labels", f"{contradicted} (all were used)"))
    facts += [("head", _settings(head)), *((k, _settings(v)) for k, v in head.items() if isinstance(v, dict))]
    facts.append(("fit", _settings(config["fit"])))
    if config["history"]:
        facts.append(("epochs", f"{len(config['history'])}, the best was {config['best_epoch']}"))
    if config.get("fusion"):
        facts.append(("fusion", fusion_in_words(config["fusion"])))
    if (metrics := config["metrics"]).get("pairs"):
        facts.append(("measured on", f"{metrics['pairs']:,} held-out pairs, {metrics['prompts']:,} prompts"))
        facts += [(what, f"{value} ({interval})") for what, value, interval in accuracy_rows(metrics)]
    return [*facts, ("written by", f"ebrm {config['ebrm_version']}")]


def features_facts(path: str, manifest: dict[str, Any]) -> list[tuple[str, str]]:
    """A features folder's facts for people."""
    size = f"{manifest['embedding_size']} dimensions, {manifest['embedding_dtype']}"
    parts = _embedding(manifest["backbone"])
    return [
        ("features", path),
        *_read_with(manifest["backbone"], manifest["text"]),
        ("embedding", f"{parts} ({size})" if parts else size),
        ("made", str(manifest["origin"])),
        ("texts", f"{manifest['items']:,} different, in {manifest['pairs']:,} pairs"),
        *((k.replace("_", " "), _number(manifest[k])) for k in ("truncated", "dropped", "batch_drift") if manifest[k]),
        ("bytes", f"{sum(entry['bytes'] for entry in manifest['files'].values()):,}"),
    ]


def _read_with(identity: dict[str, Any] | None, rule: dict[str, Any] | None) -> list[tuple[str, str]]:
    """The reward model and how texts are written for it."""
    return [("reward model", _backbone(identity)), *([("text", _text(rule))] if rule else [])]


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
