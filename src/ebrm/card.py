"""The model card, `README.md`: metadata for the Hub, and what `config.json` holds in words and tables."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from ebrm.backbone.provenance import UNKNOWN, provenance
from ebrm.heads import HEADS
from ebrm.utils.neutral import clean, escape_markdown

_TAGS = ["reward-model", "energy-based-model", "ebrm"]
_NO_NAME = "imported features"
_PAIRS = "preference-pairs"  # in place of a data set's name on the Hub
_HUB_DATA = re.compile(r"Hub data set (?P<name>[\w.-]+/[\w.-]+)")
# Paths that can be told from names of the form owner/name.
_PATH = re.compile(r"(?:[/~]|\.{1,2}[/\\]|[A-Za-z]:[/\\]|\\\\)|.*[/\\].*[/\\]")
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


def model_card(record: Mapping[str, Any], standalone: bool = False) -> str:
    """A model card in Markdown from what `config.json` holds of a model: what, numbers, data, settings, use.

    Its metadata name the reward model's license and base models, data sets of the Hub, and what was measured. Nothing
    says where files lay on this machine.
    """
    backbone, data, metrics = record["backbone"], record["data"], record["metrics"]
    known = record.get("provenance") or provenance(backbone)
    about = {key: value for key, value in backbone.items() if key != "probe" and not isinstance(value, dict)}
    about |= {key: _without_folders(backbone[key]) for key in ("name", "base") if backbone.get(key)}
    sections = [
        _front_matter(record, known, standalone),
        f"# {_title(record)}\n",
        f"{_what(record)} {_BASE_WEIGHTS[standalone]}\n",
        "## Measured\n",
        _measured(metrics),
        _confidence(record),
        "## Backbone\n",
        _table({k: v for k, v in about.items() if v is not None}),
        "## License\n",
        _license(known, standalone),
        "## Data\n",
        _table({k: _origin(str(v)) if k == "origin" else v for k, v in data.items() if k != "sources"}),
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


def _front_matter(record: Mapping[str, Any], known: Mapping[str, Any], standalone: bool) -> str:
    """The card's metadata, as the Hub reads them."""
    values: dict[str, Any] = {"library_name": "ebrm", "pipeline_tag": "text-classification"}
    values |= {key: known[key] for key in ("license", "license_name", "license_link") if known.get(key)}
    if values.get("license_link") and "://" not in values["license_link"] and not standalone:
        del values["license_link"]  # a file that is not copied
    if known.get("base_model"):
        values["base_model"] = known["base_model"]
        values["base_model_relation"] = "finetune" if standalone else "adapter"
    if datasets := _hub_datasets(record["data"]):
        values["datasets"] = datasets
    values["tags"] = _TAGS
    if results := _results(record):
        values["model-index"] = [{"name": _title(record, plain=True), "results": [results]}]
    import yaml  # not before: `ebrm --help` needs none

    return f"---\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000)}---\n"


def _results(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """What was measured, as an entry of the Hub's model-index; None for nothing."""
    metrics = record["metrics"]
    if not metrics.get("pairs"):
        return None
    names = {
        "refined": ("accuracy", "Accuracy of the refined reward"), "base": ("accuracy", "Accuracy of the base reward"),
        "difference": ("value", "Difference of the accuracies"),
    }  # fmt: skip
    found = [
        {"type": "accuracy", "name": name, "value": round(float(metrics[part][key]), 4)}
        for part, (key, name) in names.items()
        if isinstance(metrics.get(part), Mapping) and _is_number(metrics[part].get(key))
    ]
    if not found:
        return None
    datasets = _hub_datasets(record["data"])
    name = f"{metrics['pairs']} held-out pairs of {_origin(str(record['data'].get('origin', _NO_NAME)))}"
    return {
        "task": {"type": "text-classification", "name": "Choosing the preferred of two responses"},
        "dataset": {"name": name, "type": datasets[0] if len(datasets) == 1 else _PAIRS},
        "metrics": found,
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _license(known: Mapping[str, Any], standalone: bool) -> str:
    names = ", ".join(escape_markdown(name) for name in known.get("base_model") or ())
    made = f" It goes back to {names}." if names else ""
    if known.get("license_name") == UNKNOWN or not known.get("license"):
        return f"Nothing beside the reward model says which license it has; look that up before you pass it on.{made}\n"
    called = escape_markdown(str(known.get("license_name") or known["license"]))
    copied = " Its license files are copied into this folder." if standalone and known.get("files") else ""
    return f"That of the reward model, as its own card or license file says: {called}.{copied}{made}\n"


def _hub_datasets(data: Mapping[str, Any]) -> list[str]:
    """The data sets of the Hub among the origins of the pairs."""
    return list(dict.fromkeys(match["name"] for match in _HUB_DATA.finditer(str(data.get("origin") or ""))))


def _origin(text: str) -> str:
    """Where pairs came from, files and folders by their last names."""
    sources = re.split(r"; (?=Hub data set )|(?<=\w); ", text)
    return "; ".join(
        source if source.startswith("Hub data set ") else ", ".join(_last(part) for part in source.split(", "))
        for source in sources
    )


def _last(text: str) -> str:
    return re.split(r"[/\\]", text.rstrip("/\\"))[-1]


def _without_folders(text: Any) -> str:
    """A path by its last name; a name of the form owner/name stays."""
    return _last(str(text)) if _PATH.match(str(text)) else str(text)


def _flat(name: str, values: dict[str, Any]) -> dict[str, Any]:
    """Nested settings as `stage.name`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(key, value) if isinstance(value, dict) else {f"{name}.{key}": value}
    return flat


def _title(record: Mapping[str, Any], plain: bool = False) -> str:
    energy = record["head"]["kind"] == "energy"
    name = _without_folders(record["backbone"].get("name") or _NO_NAME)
    what = "Energy-based refinement of" if energy else "A head over the embeddings of"
    return f"{what} {clean(name) if plain else escape_markdown(name)}"


def _what(record: Mapping[str, Any]) -> str:
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

    lines = [f"**Warning:** {said}\n" for said in metrics.get("warnings", ())] + [
        f"Accuracy on {metrics['pairs']:,} held-out pairs, in percent, with 95% intervals (paired bootstrap over "
        "prompts):\n",
        "| | value | interval |",
        "| --- | --- | --- |",
        row("base", base, "accuracy"),
        row("refined", refined, "accuracy"),
        row("difference", difference, "value"),
    ]
    return "\n".join(lines) + "\n"


def _confidence(record: Mapping[str, Any]) -> str:
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
    rows = [
        f"| {_cell(_without_folders(name))} | {count:,} |"
        for name, count in sorted(sources.items(), key=lambda item: -item[1])
    ]
    return "\n".join(["| source | pairs |", "| --- | --- |", *rows]) + "\n"


def _table(values: dict[str, Any]) -> str:
    rows = [f"| {_cell(key)} | {_cell(value)} |" for key, value in values.items()]
    return "\n".join(["| | |", "| --- | --- |", *rows]) + "\n"


def _cell(value: Any) -> str:
    """Text safe inside a Markdown table."""
    return escape_markdown(str(value))
