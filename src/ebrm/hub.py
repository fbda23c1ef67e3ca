"""A model's folder: energy.safetensors, config.json and the model card; found here or on the Hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ebrm._version import __version__
from ebrm.errors import ModelError
from ebrm.heads import HEADS
from ebrm.utils.files import atomic_path, read_json, sha256_file, write_json, write_text
from ebrm.utils.hub_names import download, shown_place, why_no_hub_name

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
# What a model is made of; a config that transformers wrote says more.
_RECORD = (
    "head", "fit", "backbone", "text_rule", "data", "filter", "history", "best_epoch", "metrics", "calibration",
    "abstention", "fusion",
)  # fmt: skip

_FRONT_MATTER = """---
library_name: ebrm
license: apache-2.0
tags:
- reward-model
- energy-based-model
- ebrm
---
"""

_BASE_WEIGHTS = {
    False: "It holds no language model: the backbone is referred to by name and fingerprint.",
    True: "The weights of the backbone are part of it.",
}
_FROM_EBRM = """```python
from ebrm import EnergyRewardModel

model = EnergyRewardModel.from_pretrained("THIS_FOLDER_OR_REPOSITORY")
scored = model.score(["What is 2 + 2?"], ["4"])
scored.reward, scored.base_reward, scored.std
```
"""
_FROM_TRANSFORMERS = """
With transformers (`ebrm.register()` makes its Auto classes know the model):

```python
import ebrm
from transformers import AutoModelForSequenceClassification

ebrm.register()
model = AutoModelForSequenceClassification.from_pretrained("THIS_FOLDER_OR_REPOSITORY")
```

`model(input_ids=…, attention_mask=…)` gives the refined rewards as `.logits` [n, 1], beside `.base_reward`, `.std` and
`.interval`.
"""


def write_model(folder: Path, record: dict[str, Any], tensors: dict[str, Tensor], own_tokenizer: bool = False) -> None:
    """Write weights, card and, last, the config with the weights' SHA-256."""
    header = write_energy(folder, tensors)
    write_card(folder, record)
    more = {"own_tokenizer": True} if own_tokenizer else {}
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
    """`config.json` of a folder whose weights are whole.

    Raises:
        ModelError: a missing, unreadable or altered file, named.
    """

    def must_be_there(name: str) -> None:
        if not (folder / name).is_file():
            raise ModelError(
                f"{folder} holds no {name}, so it is not a complete ebrm model. Give the folder that a fit or "
                "save_pretrained wrote."
            )

    must_be_there(_CONFIG)
    try:
        config: dict[str, Any] = read_json(folder / _CONFIG)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{folder / _CONFIG} is not readable JSON ({error}). Save the model again.") from error
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
    must_be_there(_WEIGHTS)
    expected, found = config.get("weights_sha256"), sha256_file(folder / _WEIGHTS)
    if expected != found:
        raise ModelError(
            f"{folder / _WEIGHTS} is damaged or belongs to another config: its SHA-256 is {found}, config.json says "
            f"{expected}. Copy or download the folder again."
        )
    return config


def read_model(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read and check a folder: (record values, tensors).

    Raises:
        ModelError: a missing, unreadable or altered file, named.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = read_config(folder)
    if "transformers_version" in config:
        config = {name: config[name] for name in _RECORD if name in config}
    # `fusion` is for readers of the config: the weights hold it.
    for name in ("format", "weights_sha256", "ebrm_version", "own_tokenizer", "fusion", *_FOR_TRANSFORMERS):
        config.pop(name, None)
    try:
        return config, load_file(folder / _WEIGHTS)
    except SafetensorError as error:
        raise ModelError(f"{folder / _WEIGHTS} is not a readable safetensors file ({error}).") from error


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


def model_card(record: dict[str, Any], standalone: bool = False) -> str:
    """A model card in Markdown from what `config.json` holds of a model: what, numbers, data, settings, use."""
    backbone, data, metrics = record["backbone"], record["data"], record["metrics"]
    name = backbone.get("name", "imported features")
    sections = [
        _FRONT_MATTER,
        f"# {_title(record)} {name}\n",
        f"{_what(record)} {_BASE_WEIGHTS[standalone]}\n",
        "## Measured\n",
        _measured(metrics),
        _confidence(record),
        "## Backbone\n",
        _table({k: v for k, v in backbone.items() if v is not None}),
        "## Data\n",
        _table({k: v for k, v in data.items() if k != "sources"}),
        _sources(data.get("sources", {})),
        _labels(record["filter"]),
        "## Settings\n",
        _table({name: value for stage in ("head", "fit") for name, value in _flat(stage, record[stage]).items()}),
        f"Epochs run: {len(record['history'])}; kept: {record['best_epoch']}.\n" if record["history"] else "",
        fusion_sentence(record["fusion"]) + "\n" if record.get("fusion") else "",
        "## Use\n",
        _FROM_TRANSFORMERS if standalone else _FROM_EBRM + ("" if record["text_rule"] is None else _FROM_TRANSFORMERS),
        "Rewards are in the backbone's own units; under the residual head their mean and spread over the training rows "
        "are the base rewards'. Check clip ranges and KL coefficients that were tuned for the backbone. Only "
        "differences between responses to the same prompt mean something. The refined model inherits the backbone's "
        "blind spots; its std says how spread the fitted density is, not that the backbone is right.\n",
    ]
    return "\n".join(section for section in sections if section)


def _flat(name: str, values: dict[str, Any]) -> dict[str, Any]:
    """Nested settings as `stage.name`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(key, value) if isinstance(value, dict) else {f"{name}.{key}": value}
    return flat


def _title(record: dict[str, Any]) -> str:
    energy = record["head"]["kind"] == "energy"
    return "Energy-based refinement of" if energy else "A head over the embeddings of"


def _what(record: dict[str, Any]) -> str:
    if record["head"]["kind"] != "energy":
        what = HEADS[record["head"]["kind"]].title
        return f"A head over the embeddings of a frozen reward model, fitted on preference pairs: {what}."
    return (
        "A density p(r | e) over the rewards of a frozen reward model, fitted on preference pairs (Energy-Based Reward "
        "Models, arXiv 2504.13134)."
    )


def _measured(metrics: dict[str, Any]) -> str:
    if not metrics.get("pairs"):
        return "Nothing was measured when this model was saved.\n"
    base, refined, difference = metrics["base"], metrics["refined"], metrics["difference"]

    def row(label: str, value: dict[str, float], key: str) -> str:
        interval = "-" if value["low"] is None else f"{100 * value['low']:.1f} to {100 * value['high']:.1f}"
        return f"| {label} | {100 * value[key]:.1f} | {interval} |"

    lines = [
        f"Accuracy on {metrics['pairs']:,} held-out pairs, in percent, with 95% intervals (paired bootstrap over "
        "prompts):\n",
        "| | value | interval |",
        "| --- | --- | --- |",
        row("base", base, "accuracy"),
        row("refined", refined, "accuracy"),
        row("difference", difference, "value"),
    ]
    return "\n".join(lines) + "\n"


def _confidence(record: dict[str, Any]) -> str:
    """How probabilities were calibrated, and from which confidence comparisons are decided."""
    if record.get("calibration") is None:
        return ""
    from ebrm.calibration import Abstention, PreferenceCalibration  # not before: these load torch

    known = PreferenceCalibration.from_dict(record["calibration"])
    rules = [Abstention.from_dict(rule) for rule in record.get("abstention", ())]
    return "\n\n".join([known.sentence(), *(rule.sentence() for rule in rules)]) + "\n"


def _labels(report: dict[str, Any]) -> str:
    if not report:
        return ""
    kept, total = f"{report['kept']:,}", report["kept"] + report["dropped"] + report["tied"]
    outcome = f"The conflict filter left these out and kept {kept}." if report["used"] else "All were used."
    return (
        f"The backbone contradicts the labels of {report['dropped']:,} of {total:,} training pairs and ties on "
        f"{report['tied']:,}. {outcome}\n"
    )


def fusion_in_words(fusion: Mapping[str, Any]) -> str:
    """What `RewardHead.goes_by()` says: how far rewards follow the base reward, and how far the fitted density."""
    if "base_weight" in fusion:
        if not fusion["correction"]:
            return "the base reward, without a correction"
        held = ", which anchors keep to texts like the pairs'" if fusion["anchors"] else ""
        return f"base reward ({fusion['base_weight']:.2g} logits a standard deviation) plus a linear correction{held}"
    noise, power = fusion["base_noise"], fusion["power"]
    if noise is None and power == 1:  # heads without weights of their own
        return "what the head fitted, alone; the base reward has no weight"
    base = "base reward given no weight"
    if noise is not None:
        base = f"base reward trusted to within {noise:g} standard deviation{'' if noise == 1 else 's'}"
    return f"{base}; density {f'to the power {power:g}' if power else 'given no weight'}"


def fusion_sentence(fusion: Mapping[str, Any]) -> str:
    """:func:`fusion_in_words` for readers who do not know what it is about."""
    unit = "" if fusion.get("base_noise") is None else " (the standard deviation is that of the training rewards)"
    return f"What the refined reward goes by: {fusion_in_words(fusion)}{unit}."


def _sources(sources: dict[str, int]) -> str:
    if not sources or set(sources) == {"-"}:
        return ""
    rows = [f"| {_cell(name)} | {count:,} |" for name, count in sorted(sources.items(), key=lambda item: -item[1])]
    return "\n".join(["| source | pairs |", "| --- | --- |", *rows]) + "\n"


def _table(values: dict[str, Any]) -> str:
    rows = [f"| {_cell(key)} | {_cell(value)} |" for key, value in values.items()]
    return "\n".join(["| | |", "| --- | --- |", *rows]) + "\n"


def _cell(value: Any) -> str:
    """Text safe inside a Markdown table."""
    return str(value).replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
