"""Settings of the energy model, one dataclass a stage: network, training, inference."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from ebrm.errors import ConfigError

#: Widths of (reward branch, joint layers): ours (docs/evidence.md), and the paper's two networks.
SIZES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "slim": ((16, 32), (128,)),
    "small": ((16, 32, 64), (1024, 512)),
    "large": ((64, 128, 256), (8192, 4096, 2048)),
}


def require(condition: bool, name: str, value: object, expected: str) -> None:
    """Raise a ConfigError that says what `name` is and what it must be, unless `condition` holds."""
    if not condition:
        raise ConfigError(f"The setting {name} is {value!r}; it must be {expected}.")


@dataclass(frozen=True)
class NetworkConfig:
    """The energy network f(e, r) (arXiv 2504.13134, appendix; sizes as published)."""

    size: Literal["slim", "small", "large"] = field(
        default="slim",
        metadata={
            "help": "Widths: slim (reward branch 16-32, one joint layer of 128); as published: small (16-32-64, "
            "1024-512) for RMs up to about 1.3B, large (64-128-256, 8192-4096-2048) for 8B.",
            "choices": ("slim", "small", "large"),
        },
    )
    reward_widths: tuple[int, ...] | None = field(
        default=None, metadata={"help": "Widths of the reward branch, instead of those of `size`."}
    )
    joint_widths: tuple[int, ...] | None = field(
        default=None, metadata={"help": "Widths of the joint layers, instead of those of `size`."}
    )
    dropout: float = field(
        default=0.5,
        metadata={
            "help": "Dropout probability after each joint layer in training. One mask a row, shared by all rewards it "
            "is evaluated at; one a pair under the joint objective."
        },
    )
    standardize_embedding: bool = field(
        default=True,
        metadata={
            "help": "Bring each number of the embedding to mean 0 and standard deviation 1 on the training rows."
        },
    )

    def __post_init__(self) -> None:
        require(self.size in SIZES, "size", self.size, "slim, small or large")
        require(0.0 <= self.dropout < 1.0, "dropout", self.dropout, "at least 0 and below 1")
        for name, widths in (("reward_widths", self.reward_widths), ("joint_widths", self.joint_widths)):
            if widths is not None:
                require(
                    len(widths) > 0 and all(w > 0 for w in widths),
                    name,
                    widths,
                    "one or more positive whole numbers",
                )

    @property
    def widths(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(reward branch, joint) widths after the overrides."""
        reward, joint = SIZES[self.size]
        return tuple(self.reward_widths or reward), tuple(self.joint_widths or joint)


@dataclass(frozen=True)
class FitConfig:
    """How the energy is fitted. Noise widths are relative to the standard deviation of the training rewards."""

    objective: Literal["joint", "likelihood", "nce"] = field(
        default="joint",
        metadata={
            "help": "joint: the pairs' labels and the base reward; likelihood: the base reward alone, exact, log Z by "
            "quadrature on shared nodes; nce: the base reward alone, NCE+ with sampled noise (the paper).",
            "choices": ("joint", "likelihood", "nce"),
        },
    )
    filter_conflicts: bool = field(
        default=False,
        metadata={
            "help": "Keep only the training pairs whose label the base RM agrees with (the paper). The joint objective "
            "allows for wrong labels by itself."
        },
    )
    label_noise: float = field(
        default=0.1, metadata={"help": "Share of wrong labels the joint objective reckons with, 0 to 0.5."}
    )
    reward_weight: float = field(
        default=0.1, metadata={"help": "Weight of the base reward against the label; objective joint only."}
    )
    reward_noise: float = field(
        default=2.0,
        metadata={
            "help": "How far the base reward is taken to be from the true one, in standard deviations of the reward; "
            "objective joint only."
        },
    )
    noise_scales: tuple[float, ...] = field(
        default=(0.875,),
        metadata={
            "help": "Standard deviations of the noise mixture, in standard deviations of the reward (paper: 3.5 / 4); "
            "objectives likelihood and nce."
        },
    )
    beta: float = field(
        default=0.1,
        metadata={
            "help": "Label noise: the positive is moved by noise of beta times those widths. Larger values widen the "
            "densities (recipes/label_noise.py); objectives likelihood and nce."
        },
    )
    negatives: int = field(default=768, metadata={"help": "Noise samples a row (M); objective nce only."})
    nodes: int = field(
        default=32,
        metadata={"help": "Quadrature nodes, shifted at random each step; objectives joint and likelihood."},
    )
    reward_scale: float = field(
        default=1.0,
        metadata={"help": "Standard deviation of the rewards inside the model (paper: 4 for large RMs)."},
    )
    regularization: float = field(
        default=1e-3,
        metadata={
            "help": "Weight of the mean squared energy (lambda): it fixes the constant that p(r | e) leaves free in f."
        },
    )
    learning_rate: float = field(default=1e-3, metadata={"help": "AdamW learning rate."})
    weight_decay: float = field(default=1e-2, metadata={"help": "AdamW weight decay."})
    batch_rows: int = field(
        default=128, metadata={"help": "Rows (responses) a step; the joint objective takes half as many pairs."}
    )
    epochs: int | None = field(
        default=None,
        metadata={
            "help": "Passes over the training rows. Unset: 3 under the joint objective and 5 else, or as many as make "
            "200 and 1,000 optimizer steps on little data."
        },
    )
    patience: int = field(
        default=5,
        metadata={
            "help": "Stop after this many epochs without a better validation result (joint: label likelihood; else "
            "accuracy); 0: never."
        },
    )
    clip_norm: float = field(default=1.0, metadata={"help": "Largest norm of the gradient; larger ones are scaled."})
    validation_fraction: float = field(
        default=0.1,
        metadata={"help": "Share of the prompts held out to choose the epoch, where the data name no such split."},
    )
    test_fraction: float = field(
        default=0.2,
        metadata={"help": "Share of the prompts held out to measure the result, where the data name no such split."},
    )
    seed: int = field(default=0, metadata={"help": "Seed of initial weights, shuffling, noise and dropout."})

    def __post_init__(self) -> None:
        require(
            self.objective in ("joint", "likelihood", "nce"), "objective", self.objective, "joint, likelihood or nce"
        )
        require(0.0 <= self.label_noise < 0.5, "label_noise", self.label_noise, "at least 0 and below 0.5")
        require(
            len(self.noise_scales) > 0 and all(s > 0 for s in self.noise_scales),
            "noise_scales", self.noise_scales, "one or more positive numbers",
        )  # fmt: skip
        for name in ("reward_scale", "reward_noise", "learning_rate", "clip_norm"):
            require(getattr(self, name) > 0, name, getattr(self, name), "above 0")
        for name in ("beta", "reward_weight", "regularization", "weight_decay", "patience", "seed"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        require(self.negatives >= 1, "negatives", self.negatives, "1 or more")
        least = 2 if self.objective == "joint" else 1
        require(self.batch_rows >= least, "batch_rows", self.batch_rows, f"{least} or more")
        require(self.epochs is None or self.epochs >= 1, "epochs", self.epochs, "1 or more, or unset")
        require(self.nodes >= 8, "nodes", self.nodes, "8 or more")
        for name in ("validation_fraction", "test_fraction"):
            require(0.0 < getattr(self, name) < 0.5, name, getattr(self, name), "between 0 and 0.5")

    def planned_epochs(self, steps: int) -> int:
        """How many passes of `steps` optimizer steps each are made, unless patience ends before."""
        if self.epochs is not None:
            return self.epochs
        passes, least = (3, 200) if self.objective == "joint" else (5, 1000)
        return max(passes, math.ceil(least / steps))


@dataclass(frozen=True)
class InferenceConfig:
    """How a refined reward is read off p(r | e). Steps and windows are in the model's internal reward units."""

    estimate: Literal["ascent", "mode", "mean"] = field(
        default="mean",
        metadata={
            "help": "mean: of the density; mode: its highest point; ascent: gradient ascent on it from the start (the "
            "paper).",
            "choices": ("ascent", "mode", "mean"),
        },
    )
    start: Literal["base", "paper", "zero", "random"] = field(
        default="base",
        metadata={
            "help": "Where the ascent starts. base: the base reward, clamped to the range seen in training; paper: the "
            "base reward inside `window`, a random draw outside; zero; random.",
            "choices": ("base", "paper", "zero", "random"),
        },
    )
    window: tuple[float, float] = field(
        default=(-2.0, 2.0), metadata={"help": "start paper: base rewards inside it are kept."}
    )
    fallback: tuple[float, float] = field(
        default=(-4.0, 4.0), metadata={"help": "start paper and random: range of the uniform draw."}
    )
    steps: int = field(default=50, metadata={"help": "Ascent steps, at most (T)."})
    step_size: float = field(default=0.5, metadata={"help": "First step size."})
    step_decay: float = field(default=0.1, metadata={"help": "Factor on the step size after a rejected step."})
    step_stop: float = field(default=1e-6, metadata={"help": "A row stops when its step size falls below this."})
    nodes: int = field(default=129, metadata={"help": "Quadrature nodes for mean, std, quantiles and log Z."})
    coverage: float = field(default=0.9, metadata={"help": "Probability inside the reported interval."})
    seed: int = field(default=0, metadata={"help": "Seed of random starts."})

    def __post_init__(self) -> None:
        require(self.estimate in ("ascent", "mode", "mean"), "estimate", self.estimate, "ascent, mode or mean")
        require(
            self.start in ("base", "paper", "zero", "random"),
            "start",
            self.start,
            "base, paper, zero or random",
        )
        for name in ("window", "fallback"):
            low, high = getattr(self, name)
            require(low < high, name, (low, high), "two numbers, the lower first")
        require(self.steps >= 0, "steps", self.steps, "0 or more")
        require(self.step_size > 0, "step_size", self.step_size, "above 0")
        require(0.0 < self.step_decay < 1.0, "step_decay", self.step_decay, "between 0 and 1")
        require(self.step_stop > 0, "step_stop", self.step_stop, "above 0")
        require(self.nodes >= 9, "nodes", self.nodes, "9 or more")
        require(0.0 < self.coverage < 1.0, "coverage", self.coverage, "between 0 and 1")


def paper_settings(
    size: Literal["small", "large"] = "small",
) -> tuple[NetworkConfig, FitConfig, InferenceConfig]:
    """The paper's settings (arXiv 2504.13134): network, training and hybrid-start inference.

    The 8B network sees rewards scaled to standard deviation 4, the small one unscaled rewards; here rewards are always
    standardized first, so that the same settings mean the same for every RM.
    """
    scale = 4.0 if size == "large" else 1.0
    return (
        NetworkConfig(size=size, standardize_embedding=False),
        FitConfig(
            objective="nce",
            filter_conflicts=True,
            beta=0.1,
            reward_scale=scale,
            regularization=0.05,
            learning_rate=9e-5,
            batch_rows=256,
            epochs=5,
            patience=0,
        ),
        InferenceConfig(estimate="ascent", start="paper"),
    )
