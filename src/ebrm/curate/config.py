"""Configuration of curating a file of preference pairs: the steps in their order, and the numbers of each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from ebrm.errors import ConfigError, setting

Step = Literal[
    "filter-conflicts", "flip", "soft-labels", "consensus", "best-worst", "hard-subset", "dual-consistency", "margin"
]
#: The steps that there are.
STEPS: tuple[str, ...] = get_args(Step)

_SHARES = {
    "flip_fraction": (0, 1), "soft_smoothing": (0, 0.5), "soft_strongest": (0, 1), "consensus_confidence": (0.5, 1),
    "dual_threshold": (0.5, 1),
}  # fmt: skip


@dataclass(frozen=True)
class CurateConfig:
    """Curation of a file: steps, where rewards come from, and the numbers of each step.

    Attributes:
        steps: Steps in their order, given once each: filter-conflicts (drop pairs that the reward contradicts), flip
            (exchange the sides of the weakest), soft-labels (smooth the labels of weak and of the strongest pairs),
            consensus (keep and orient what all rewards agree on), best-worst (one pair a prompt of scored responses;
            the first step), hard-subset (the prompts with the lowest rewards), dual-consistency (keep or flip what two
            rewards agree on), margin (the rewards' difference as the margin of the loss).
        column_rewards: Columns of rewards: NAME stands for chosen_NAME and rejected_NAME, which `ebrm score` writes as
            `reward`; with {side} in it for other names (x_{side}_reward). In files of responses, the column NAME.
            Several, with commas, are the votes of several models or judges. Steps that take one reward take the first,
            which is the reward model's where there is one.
        flip_fraction: Share of the pairs that flip exchanges, the weakest first.
        flip_below: Only pairs whose mean difference of rewards is below this are flipped; 0 spares all that the rewards
            agree with. Unset: no bound.
        soft_smoothing: How far a label is smoothed, 0 to 0.5, where it says nothing.
        soft_weak: Pairs whose mean difference of rewards is below this are smoothed.
        soft_strongest: Share of the pairs, the strongest first, that are smoothed too.
        consensus_confidence: Least probability that each reward gives the preferred side, 0.5 to 1.
        consensus_soft: Whether the label becomes the mean probability.
        dual_threshold: A reward agrees with a pair from above this probability on, 0.5 to below 1.
        hard_count: How many prompts hard-subset keeps, those whose chosen responses have the lowest mean reward.
        least_gap: Least difference of rewards between the best and the worst response of a prompt.

    Raises:
        ConfigError: no step, one that there is not or twice, or a number out of its range.
    """

    steps: tuple[Step, ...] = field(default=(), metadata={"repeat": True})
    column_rewards: tuple[str, ...] = ()
    flip_fraction: float = 0.2
    flip_below: float | None = None
    soft_smoothing: float | None = None
    soft_weak: float = 0.0
    soft_strongest: float = 0.1
    consensus_confidence: float = 0.5
    consensus_soft: bool = False
    dual_threshold: float = 0.5
    hard_count: int | None = None
    least_gap: float = 0.0

    def __post_init__(self) -> None:
        if not self.steps:
            raise ConfigError(f"`steps` is empty; name at least one, in order. There are {', '.join(STEPS)}.")
        for step in self.steps:
            if step not in STEPS:
                raise ConfigError(f"`steps` has {step}; there are {', '.join(STEPS)}.")
        if len(set(self.steps)) < len(self.steps):
            raise ConfigError(f"`steps` is {', '.join(self.steps)}; each can be given once.")
        if "best-worst" in self.steps[1:]:
            raise ConfigError("`steps` has best-worst, which makes pairs of responses, behind another; give it first.")
        for name, (low, high) in _SHARES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ConfigError(f"{name} is {value:g}; it must be from {low:g} to {high:g}.")
        if self.least_gap < 0:
            raise ConfigError(f"least_gap is {self.least_gap:g}; it must be 0 or more.")
        if self.hard_count is not None and self.hard_count < 1:
            raise ConfigError(f"hard_count is {self.hard_count}; it must be at least 1.")
        for step, name, example in (("soft-labels", "soft_smoothing", 0.1), ("hard-subset", "hard_count", 1000)):
            if step in self.steps and getattr(self, name) is None:
                raise ConfigError(f"`steps` has {step}, which needs {setting(name, example)}.")
