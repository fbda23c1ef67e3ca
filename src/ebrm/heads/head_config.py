"""Settings of the heads beside the energy model."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from ebrm.heads.old_config import require

HeadKind = Literal[
    "linear",
    "silu",
    "gaussian",
    "bayesian",
    "attributes",
    "binary",
    "anchored",
    "min_norm",
    "prototypes",
    "directional",
]
#: What each kind is, in a few words.
HEADS: dict[str, str] = {
    "linear": "Bradley-Terry, linear",
    "silu": "Bradley-Terry, two layers with SiLU (BaseReward)",
    "gaussian": "Gaussian heads with their own deviations (BRME)",
    "bayesian": "Bradley-Terry, linear, with a Bayesian last layer (Laplace) and pessimism",
    "attributes": "linear regression of rated attributes, weighted (HelpSteer2)",
    "binary": "unpaired thumbs, shifted binary cross-entropy (BCO)",
    "anchored": "linear correction of the base reward, anchored to it (ReMoDetect)",
    "min_norm": "Bradley-Terry, linear, objectives balanced by the min-norm direction (MORE)",
    "prototypes": "ideal points of users as mixtures of prototypes (PAL)",
    "directional": "two-layer SiLU head, its favorite direction made unprofitable (D2-Align)",
}


@dataclass(frozen=True)
class HeadConfig:
    """One head over frozen embeddings and how it is fitted; a setting that the kind does not use is ignored."""

    kind: HeadKind = field(default="linear", metadata={"help": "Which head.", "choices": tuple(HEADS)})
    l2: float | None = field(
        default=None,
        metadata={
            "help": "Half of this times the squared weights is added to the mean loss of linear heads. Unset: the "
            "value of a grid under which held-out pairs are likeliest; 0.1 where none are held out."
        },
    )
    hidden: int = field(
        default=128, metadata={"help": "Width of the hidden layer; kinds silu, directional, prototypes."}
    )
    learning_rate: float = field(default=1e-3, metadata={"help": "AdamW learning rate; kinds with a hidden layer."})
    weight_decay: float = field(default=1e-2, metadata={"help": "AdamW weight decay; kinds with a hidden layer."})
    batch_pairs: int = field(default=128, metadata={"help": "Pairs a step; kinds with a hidden layer."})
    epochs: int = field(default=20, metadata={"help": "Most passes over the pairs; kinds with a hidden layer."})
    patience: int = field(
        default=3, metadata={"help": "Stop after this many passes without a better held-out loss; 0: never."}
    )
    smoothing: float = field(default=0.0, metadata={"help": "Label smoothing, 0 to 0.5; kinds fitted on pairs."})
    centering: float = field(
        default=0.0, metadata={"help": "Weight of the penalty (r_c + r_r)^2; kinds linear, silu and directional."}
    )
    heads: int = field(default=5, metadata={"help": "How many Gaussian heads; kind gaussian."})
    pessimism: float = field(
        default=0.0,
        metadata={"help": "Standard deviations taken off the reward; kinds gaussian and bayesian, where they differ."},
    )
    attribute_weights: tuple[float, ...] = field(
        default=(), metadata={"help": "Weight of each attribute in the reward; kind attributes. None: equal weights."}
    )
    anchor: float = field(
        default=0.01, metadata={"help": "Weight of the squared distance to the base reward; kind anchored."}
    )
    prototypes: int = field(default=2, metadata={"help": "How many prototypes; kind prototypes."})
    dimension: int = field(default=16, metadata={"help": "Dimension of the ideal points; kind prototypes."})
    extrapolation: float = field(
        default=1.5, metadata={"help": "How far beyond the moved embedding rewards are read, w; kind directional."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of initial weights, shuffling and resampling."})

    def __post_init__(self) -> None:
        require(self.kind in HEADS, "kind", self.kind, f"one of {', '.join(HEADS)}")
        require(self.l2 is None or self.l2 > 0, "l2", self.l2, "above 0, or unset")
        for name in ("hidden", "batch_pairs", "epochs", "heads", "prototypes", "dimension"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        require(self.learning_rate > 0, "learning_rate", self.learning_rate, "above 0")
        for name in ("weight_decay", "patience", "centering", "pessimism", "anchor", "seed"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        require(0 <= self.smoothing <= 0.5, "smoothing", self.smoothing, "between 0 and 0.5")
        require(math.isfinite(self.extrapolation), "extrapolation", self.extrapolation, "a number")
        finite = all(math.isfinite(w) for w in self.attribute_weights)
        require(finite, "attribute_weights", self.attribute_weights, "finite numbers")
