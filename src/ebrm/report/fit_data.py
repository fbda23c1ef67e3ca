"""What the fit report shows, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import ArrayLike

from ebrm.metrics import PairedAccuracy


@dataclass(frozen=True)
class ChangedExample:
    """A response whose reward moved.

    Attributes:
        prompt: the prompt's text; None where only features are at hand.
        response: the response's text, or None.
        label: which side of its pair it is, "chosen" or "rejected".
        base_reward: what the frozen RM says.
        refined_reward: what the energy model says, in the same units.
        std: standard deviation of its density.
        interval: ends of its central interval.
        density_nodes: rewards at which the density is known [g], rising.
        density: p(reward | response) at the nodes [g], per unit of reward.
    """

    prompt: str | None
    response: str | None
    label: str
    base_reward: float
    refined_reward: float
    std: float
    interval: tuple[float, float]
    density_nodes: ArrayLike
    density: ArrayLike


@dataclass(frozen=True)
class LiveScore:
    """Responses to one prompt, scored through the reward model: rewards and std one a response."""

    prompt: str
    responses: Sequence[str]
    base: Sequence[float]
    refined: Sequence[float]
    std: Sequence[float]


@dataclass(frozen=True)
class ReportData:
    """Everything the report shows. Only title and overall accuracy must be there; what is left out, the page says.

    Attributes:
        title: title of the page, naming the model and the data.
        overall: accuracy of base and refined on the held-out pairs.
        by_category: the same within each category.
        base_reward: base rewards of the held-out pairs [p, 2], columns chosen and rejected.
        refined_reward: refined rewards [p, 2], in the same units.
        probability: P(chosen > rejected) under the two densities [p].
        std: standard deviations of the two densities [p, 2].
        prompt_id: the pairs' prompts [p], the unit resampled for intervals; None takes each pair as its own.
        examples: the responses that moved most, in the order they should be shown.
        filter_report: `ConflictReport.to_dict()` of the training pairs.
        filtered: whether the filter was applied, or only reported.
        history: one entry an epoch: epoch, loss, validation_accuracy, validation_nll, seconds; a missing or NaN
            number was not measured.
        best_epoch: the epoch whose weights were kept.
        trust: `Fusion.to_dict()` of the fitted density.
        live: responses scored for this report.
        settings: stage to its settings, or plain name to value; nested mappings are flattened.
        versions: package to version.
        notes: where the data come from and under which licence, one sentence each.
        interval_level: coverage of the densities' intervals.
    """

    title: str
    overall: PairedAccuracy
    by_category: Mapping[str, PairedAccuracy] = field(default_factory=dict)
    base_reward: ArrayLike | None = None
    refined_reward: ArrayLike | None = None
    probability: ArrayLike | None = None
    std: ArrayLike | None = None
    prompt_id: ArrayLike | None = None
    examples: Sequence[ChangedExample] = ()
    filter_report: Mapping[str, Any] | None = None
    filtered: bool = True
    history: Sequence[Mapping[str, Any]] = ()
    best_epoch: int | None = None
    trust: Mapping[str, float | None] | None = None
    live: Sequence[LiveScore] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    interval_level: float = 0.9
