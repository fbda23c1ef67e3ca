"""What the run was: the report's sections on single examples, the labels, training, settings and versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ebrm.card import trust_sentence
from ebrm.report import figures
from ebrm.report.fit_data import ChangedExample, LiveScore
from ebrm.report.page import Card, Figure, Passage, Section, Table
from ebrm.report.words import count, decimal, group_name, interval, percent, setting_rows

_EXAMPLES = 24


def delta_section(examples: Sequence[ChangedExample], level: float, digits: int) -> Section:
    """The responses whose reward moved most, with their densities."""
    cards = []
    for number, example in enumerate(examples[:_EXAMPLES], start=1):
        low, high = example.interval
        moved = example.refined_reward - example.base_reward
        numbers = (
            f"Base reward {decimal(example.base_reward, digits)}, refined {decimal(example.refined_reward, digits)} "
            f"({decimal(moved, digits, sign=True)}); std {decimal(example.std, digits)}, {100 * level:g}% interval "
            f"{interval(low, high, digits)}."
        )
        passages = []
        if example.prompt is not None:
            passages.append(Passage("Prompt", example.prompt))
        if example.response is not None:
            passages.append(Passage("Response", example.response))
        text = [] if passages else ["The text is not at hand: this model was fitted on features."]
        figure = Figure(
            "Its density",
            figures.density_curve(
                f"density{number}",
                f"Density of the reward of example {number}. {numbers}",
                np.asarray(example.density_nodes, dtype=np.float64),
                np.asarray(example.density, dtype=np.float64),
                example.base_reward,
                example.refined_reward,
                (low, high),
            ),
            f"Higher means more plausible as this response's reward; the shaded part holds {100 * level:g}%.",
        )
        direction = "up" if moved > 0 else "down"
        title = f"{number}. A {example.label} response, moved {direction} by {decimal(abs(moved), digits)}"
        cards.append(Card(title, passages, [*text, numbers], figure))
    notes = []
    if len(examples) > _EXAMPLES:
        notes.append(f"The first {_EXAMPLES} of {len(examples)} examples are shown.")
    return Section(
        "delta",
        "What moved most",
        text=[
            "Responses of held-out pairs whose refined reward is farthest from the base reward. They are picked "
            "for having moved, not for having moved rightly: a chosen response should go up, a rejected one down.",
        ],
        notes=notes,
        cards=cards,
    )


def live_section(scores: Sequence[LiveScore], digits: int) -> Section:
    """Texts scored through the reward model for this report."""
    cards = []
    for number, score in enumerate(scores, start=1):
        if not len(score.responses) == len(score.base) == len(score.refined) == len(score.std):
            raise ValueError(
                f"live score {number} has {len(score.responses)} responses but other numbers of rewards or stds"
            )
        ranks = np.argsort(np.argsort(-np.asarray(score.base), kind="stable"), kind="stable") + 1
        rows = [
            [
                " ".join(score.responses[i].split()) or "(empty)",
                decimal(score.refined[i], digits),
                decimal(score.std[i], digits),
                decimal(score.base[i], digits),
                str(ranks[i]),
            ]
            for i in np.argsort(-np.asarray(score.refined), kind="stable")
        ]
        columns = ("response", "refined", "std", "base", "base rank")
        table = Table("Responses, best first", columns, rows)
        cards.append(Card(f"Prompt {number}", [Passage("", score.prompt)], table=table))
    return Section(
        "live",
        "Scored live",
        text=[
            "Texts that went through the reward model and the energy model in this run, sorted by refined reward. Only "
            "differences between responses to the same prompt mean something."
        ],
        cards=cards,
    )


def filter_section(report: Mapping[str, Any], filtered: bool, digits: int) -> Section:
    """How many labels of the training pairs the base reward contradicts, and whether those pairs were left out."""
    total = report["kept"] + report["dropped"] + report["tied"]

    def row(name: str, part: Mapping[str, Any]) -> list[str]:
        pairs = part["kept"] + part["dropped"] + part["tied"]
        counts = (pairs, part["kept"], part["dropped"], part["tied"])
        margin = (decimal(part.get("kept_margin"), digits), decimal(part.get("dropped_margin"), digits))
        return [name, *(f"{c:,}" for c in counts), decimal(100 * part["kept"] / max(pairs, 1), 1), *margin]

    agree, against = ("kept", "dropped") if filtered else ("agree", "contradict")
    columns = ("pairs", agree, against, "tied", f"{agree}, %", f"margin, {agree}", f"margin, {against}")
    tables = [Table("All training pairs", ("group", *columns), [row("all pairs", report)])]
    for noun in ("source", "category"):
        groups = report.get(f"by_{noun}") or {}
        if len(groups) > 1:
            rows = [row(group_name(name, noun), part) for name, part in groups.items()]
            tables.append(Table(f"Training pairs by {noun}", (noun, *columns), rows))
    return Section(
        "filter",
        "Conflict filter" if filtered else "Labels and base reward",
        text=[
            f"Of {count(total, 'training pair')} the base reward agrees with the label of {report['kept']:,} "
            f"({percent(report['kept'] / max(total, 1))}), contradicts that of {report['dropped']:,} and ties on "
            f"{report['tied']:,}. " + ("Only the first were fitted." if filtered else "All of them were fitted."),
        ],
        tables=tables,
        notes=["Margin: the mean size of the base reward's difference between the two responses, in its own units."],
    )


def training_section(
    history: Sequence[Mapping[str, Any]], best_epoch: int | None, trust: Mapping[str, float | None] | None = None
) -> Section:
    """Loss and validation accuracy over the epochs, and what refined rewards trust after them."""
    drawn = []
    kinds = (
        (
            "loss",
            "Training loss",
            "loss",
            False,
            "Falling and levelling off is healthy; rising means the fit diverges.",
        ),
        (
            "validation_accuracy",
            "Validation accuracy",
            "pairs ranked correctly",
            True,
            "The share of validation pairs ranked correctly after each epoch, before it is chosen how far the base "
            "reward is trusted: higher is better.",
        ),
        (
            "validation_nll",
            "Validation loss",
            "\u2212log p, nats",
            False,
            "How much the validation rewards surprise the density: rising while the training loss falls means "
            "overfitting.",
        ),
    )
    absent = []
    for key, name, what, is_percent, caption in kinds:
        points = [(int(e["epoch"]), float(e[key])) for e in history if e.get(key) is not None and np.isfinite(e[key])]
        if not points:
            absent.append(f"{name}: not measured in this run.")
            continue
        epochs, values = zip(*points, strict=True)
        first, last = decimal(values[0], 3), decimal(values[-1], 3)
        title = f"{name}: {first} after epoch {epochs[0]}, {last} after epoch {epochs[-1]}."
        svg = figures.training_curve(key, title, epochs, values, what, is_percent, best_epoch)
        drawn.append(Figure(name, svg, caption))
    text = f"{count(len(history), 'epoch')}"
    seconds = [e["seconds"] for e in history if e.get("seconds") is not None]
    if seconds:
        text += f" in {decimal(sum(seconds), 1)} seconds"
    if best_epoch is not None:
        text += f"; the weights of epoch {best_epoch} were kept (dashed line)"
    texts = [text + "."]
    if trust is not None:
        texts.append(trust_sentence(trust))
    return Section("training", "Training", text=texts, figures=drawn, notes=absent)


def settings_section(settings: Mapping[str, Any], versions: Mapping[str, str]) -> Section:
    """Every setting and version, so that the run can be repeated."""
    plain = {key: value for key, value in settings.items() if not isinstance(value, Mapping)}
    stages = {key: value for key, value in settings.items() if isinstance(value, Mapping)}
    tables = []
    for stage, part in (({"settings": plain} if plain else {}) | stages).items():
        tables.append(Table(stage.capitalize(), ("setting", "value"), setting_rows(part), text=True))
    if versions:
        rows = [[name, str(versions[name])] for name in sorted(versions)]
        tables.append(Table("Versions", ("package", "version"), rows, text=True))
    return Section("settings", "Settings and versions", tables=tables)
