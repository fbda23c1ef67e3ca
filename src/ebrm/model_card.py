"""The README.md that is written beside a saved model."""

from __future__ import annotations

from typing import Any

_HEAD = """---
library_name: ebrm
license: apache-2.0
tags:
- reward-model
- energy-based-model
- ebrm
---
"""


def model_card(record: dict[str, Any]) -> str:
    """A model card in Markdown from a model's record (`ModelRecord.to_dict()`): what, numbers, data, settings, use."""
    backbone, data, metrics = record["backbone"], record["data"], record["metrics"]
    name = backbone.get("name", "imported features")
    sections = [
        _HEAD,
        f"# Energy-based refinement of {name}\n",
        "A density p(r | e) over the rewards of a frozen reward model, fitted on preference pairs (Energy-Based Reward "
        "Models, arXiv 2504.13134). It holds no language model: the backbone is referred to by name and fingerprint.\n",
        "## Measured\n",
        _measured(metrics),
        "## Backbone\n",
        _table({k: v for k, v in backbone.items() if v is not None}),
        "## Data\n",
        _table({k: v for k, v in data.items() if k != "sources"}),
        _sources(data.get("sources", {})),
        _filter(record["filter"]),
        "## Settings\n",
        _table(
            {
                f"{stage}.{key}": value
                for stage in ("network", "training", "inference")
                for key, value in record[stage].items()
            }
        ),
        f"Epochs run: {len(record['history'])}; kept: {record['best_epoch']}.\n",
        "## Use\n",
        "```python\nfrom ebrm import EnergyRewardModel\n\n"
        'model = EnergyRewardModel.from_pretrained("THIS_FOLDER_OR_REPOSITORY")\n'
        'scored = model.score(["What is 2 + 2?"], ["4"])\n'
        "scored.reward, scored.base_reward, scored.std\n```\n",
        "Rewards are in the backbone's own units, so clip ranges and KL coefficients tuned for it still hold. Only "
        "differences between responses to the same prompt mean something. The refined model inherits the backbone's "
        "blind spots; its std says how spread the fitted density is, not that the backbone is right.\n",
    ]
    return "\n".join(section for section in sections if section)


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


def _filter(report: dict[str, Any]) -> str:
    if not report:
        return ""
    verb = "kept" if report["used"] else "would have kept, but was off: all were used;"
    return (
        f"The conflict filter {verb} {report['kept']:,} of {report['kept'] + report['dropped'] + report['tied']:,} "
        f"training pairs ({report['dropped']:,} contradict the backbone, {report['tied']:,} are ties).\n"
    )


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
