"""Configs of heads: one frozen dataclass a head and an objective; a knob that a head does not have is refused."""

from __future__ import annotations

import math
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any, ClassVar, Literal

from ebrm.errors import ConfigError
from ebrm.utils.neutral import shorten_line

#: Whether a reward model was trained on the pairs it is adapted to.
PairsSeen = Literal["no", "yes", "unknown"]

#: Widths of (reward branch, joint layers): ours (docs/evidence.md), and the paper's two networks.
SIZES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "slim": ((16, 32), (128,)),
    "small": ((16, 32, 64), (1024, 512)),
    "large": ((64, 128, 256), (8192, 4096, 2048)),
}


_TYPES: dict[Any, tuple[type, str]] = {
    bool: (bool, "True or False"), int: (Integral, "a whole number"), float: (Real, "a number"),
}  # fmt: skip


def _fits(value: Any, hint: Any) -> bool:
    kind, inside = typing.get_origin(hint), typing.get_args(hint)
    if kind is Literal:
        return value in inside
    if kind is tuple:
        hints = inside[:1] * len(value) if isinstance(value, tuple) and inside[-1] is Ellipsis else inside
        return isinstance(value, tuple) and len(value) == len(hints) and all(map(_fits, value, hints))
    if inside:  # a union
        return any(_fits(value, one) for one in inside)
    return isinstance(value, _TYPES.get(hint, (hint,))[0]) and (hint is bool or not isinstance(value, bool))


def _words(hint: Any) -> str:
    kind, inside = typing.get_origin(hint), typing.get_args(hint)
    if kind is Literal:
        return f"{', '.join(inside[:-1])} or {inside[-1]}"
    if kind is tuple:
        many = "one or more" if inside[-1] is Ellipsis else "two"
        return f"{many} {'whole numbers' if inside[0] is int else 'numbers'}"
    if inside:
        return " or ".join("unset" if one is type(None) else _words(one) for one in inside)
    return _TYPES[hint][1] if hint in _TYPES else f"of the class {hint.__name__}"


def _shown(value: Any) -> str:
    return shorten_line(repr(value), 80)


Limit = tuple[Callable[[Any], bool], str]


def _least(bound: float) -> Limit:
    return lambda value: value >= bound, f"{bound:g} or more"


def _above(bound: float) -> Limit:
    return lambda value: value > bound, f"above {bound:g}"


def _within(low: int, high: int) -> Limit:
    return lambda value: low <= value <= high, f"from {low:,} to {high:,}"


def _between(low: float, high: float) -> Limit:
    return lambda value: low < value < high, f"between {low:g} and {high:g}"


_WIDTHS: Limit = (
    lambda widths: widths is None or (len(widths) > 0 and all(width > 0 for width in widths)),
    "one or more positive whole numbers",
)
_ANY: Limit = (lambda value: True, "")
_RANGE: Limit = (lambda pair: pair[0] < pair[1], "two numbers, the lower first")
#: What values of a field must be, in every config that has it; `Config.field` where one has another limit.
_LIMITS: dict[str, Limit] = {
    "dropout": (lambda value: 0.0 <= value < 1.0, "at least 0 and below 1"),
    "label_noise": (lambda value: 0.0 <= value < 0.5, "at least 0 and below 0.5"),
    "label_smoothing": (lambda value: 0.0 <= value <= 0.5, "between 0 and 0.5"),
    "noise_scales": (lambda scales: len(scales) > 0 and all(s > 0 for s in scales), "one or more positive numbers"),
    "epochs": (lambda value: value is None or value >= 1, "1 or more, or unset"),
    "ridge": (lambda value: value is None or value > 0, "above 0, or unset"),
    "MinNormConfig.ridge": _least(0),
    "weights": (lambda weights: all(math.isfinite(weight) for weight in weights), "finite numbers"),
    "extrapolation": (math.isfinite, "a number"),
    "nodes": _within(8, 2**16),
    "InferenceConfig.nodes": _within(9, 2**16),
    "folds": _least(2),
    "base_weight": (lambda value: value is None or value > 0, "above 0, or unset"),
    **dict.fromkeys(("reward_widths", "joint_widths"), _WIDTHS),
    **dict.fromkeys(("window", "fallback"), _RANGE),
    "clip_norm": (lambda value: value is None or value > 0, "above 0, or unset"),
    **dict.fromkeys(["reward_noise", "reward_scale", "learning_rate", "step_size", "step_stop"], _above(0)),
    **dict.fromkeys(
        ["reward_weight", "beta", "regularization", "weight_decay", "patience", "steps", "seed"], _least(0)
    ),
    **dict.fromkeys(("centering", "pessimism", "anchor"), _least(0)),
    **dict.fromkeys(
        ["negatives", "batch_rows", "batch_pairs", "hidden", "heads", "prototypes", "dimension"], _least(1)
    ),
    **dict.fromkeys(("step_decay", "coverage"), _between(0, 1)),
    **dict.fromkeys(("validation_fraction", "test_fraction"), _between(0, 0.5)),
}


class _Config:
    """Base of all configs: values out of `_LIMITS`, or of no choice of a `Literal`, are refused by the field's name."""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for name in (field.name for field in fields(self)):  # type: ignore[arg-type]
            value, hint = getattr(self, name), hints[name]
            # Lists become tuples, and NumPy's numbers Python's.
            value = tuple(value) if isinstance(value, list) else value.item() if hasattr(value, "item") else value
            object.__setattr__(self, name, value)
            holds, expected = _LIMITS.get(f"{type(self).__name__}.{name}") or _LIMITS.get(name, _ANY)
            if not _fits(value, hint):
                raise ConfigError(f"The setting {name} is {_shown(value)}; it must be {_words(hint)}.")
            if not holds(value):
                raise ConfigError(f"The setting {name} is {_shown(value)}; it must be {expected}.")


# -- the energy ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NetworkConfig(_Config):
    """The energy network f(e, r) (EBRM, arXiv 2504.13134, appendix; sizes as published).

    Attributes:
        size: widths: slim (reward branch 16-32, one joint layer of 128); as published: small (16-32-64, 1024-512) for
            RMs up to about 1.3B, large (64-128-256, 8192-4096-2048) for 8B.
        reward_widths: widths of the reward branch, instead of those of `size`.
        joint_widths: widths of the joint layers, instead of those of `size`.
        dropout: dropout probability after each joint layer in training; one mask a row (joint objective: a pair).
        standardize_embedding: standardize each dimension of the embedding on the training rows.
    """

    size: Literal["slim", "small", "large"] = "slim"
    reward_widths: tuple[int, ...] | None = None
    joint_widths: tuple[int, ...] | None = None
    dropout: float = 0.5
    standardize_embedding: bool = True

    @property
    def widths(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(reward branch, joint) widths after the overrides."""
        reward, joint = SIZES[self.size]
        return tuple(self.reward_widths or reward), tuple(self.joint_widths or joint)


@dataclass(frozen=True)
class JointConfig(_Config):
    """Joint likelihood of the pairs' labels and the base rewards (ours).

    Attributes:
        label_noise: share of wrong labels that is assumed, from 0 to below 0.5.
        reward_weight: weight of the base reward against the label.
        reward_noise: assumed standard deviation of the base reward's error, in standard deviations of the reward.
        nodes: quadrature nodes, shifted at random each step.
    """

    kind: ClassVar[str] = "joint"
    label_noise: float = 0.1
    reward_weight: float = 0.1
    reward_noise: float = 2.0
    nodes: int = 32


@dataclass(frozen=True)
class LikelihoodConfig(_Config):
    """Exact likelihood of the base reward alone: log Z by quadrature on nodes shared by the batch.

    Attributes:
        noise_scales: standard deviations of the noise mixture, in standard deviations of the reward (paper: 3.5 / 4).
        beta: label noise: the positive is moved by noise of beta times those widths; more widens the densities.
        nodes: quadrature nodes, shifted at random each step; more, up to 256, are used where a cell would be wider than
            the noise on the positive, whose likelihood would be biased (Jensen).
    """

    kind: ClassVar[str] = "likelihood"
    noise_scales: tuple[float, ...] = (0.875,)
    beta: float = 0.1
    nodes: int = 32


@dataclass(frozen=True)
class NCEConfig(_Config):
    """Label-noise-aware NCE+ on the base reward alone, with sampled noise (EBRM, arXiv 2504.13134, eq. 5).

    Attributes:
        noise_scales: standard deviations of the noise mixture, in standard deviations of the reward (paper: 3.5 / 4).
        beta: label noise: the positive is moved by noise of beta times those widths.
        negatives: noise samples a row (M).
    """

    kind: ClassVar[str] = "nce"
    noise_scales: tuple[float, ...] = (0.875,)
    beta: float = 0.1
    negatives: int = 768


Objective = JointConfig | LikelihoodConfig | NCEConfig
#: Objective by kind.
OBJECTIVES: dict[str, type[Objective]] = {c.kind: c for c in (JointConfig, LikelihoodConfig, NCEConfig)}


@dataclass(frozen=True)
class TrainingConfig(_Config):
    """Optimization of the energy by AdamW.

    Attributes:
        reward_scale: standard deviation of the rewards inside the model (paper: 4 for large RMs).
        regularization: weight of the mean squared energy (lambda), which fixes the constant that is free in f.
        learning_rate: AdamW learning rate.
        weight_decay: AdamW weight decay.
        batch_rows: rows (responses) a step; the joint objective takes half as many pairs.
        epochs: passes over the training rows. Unset: 3 under the joint objective and 5 else, or as many as make 200 and
            1,000 optimizer steps on little data.
        patience: stop after this many epochs without a better validation result; 0: never.
        clip_norm: largest norm of the gradient; larger ones are scaled. None: none is.
    """

    reward_scale: float = 1.0
    regularization: float = 1e-3
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    batch_rows: int = 128
    epochs: int | None = None
    patience: int = 5
    clip_norm: float | None = 1.0


@dataclass(frozen=True)
class InferenceConfig(_Config):
    """Estimate of the refined reward from p(r | e). Steps and windows are in the model's internal reward units.

    Attributes:
        estimate: mean: of the density; mode: its highest point; ascent: gradient ascent from the start (the paper).
        start: where the ascent starts. base: the base reward, clamped to the range seen in training; paper: the base
            reward inside `window`, a random draw outside; zero; random.
        window: start paper: base rewards inside it are kept.
        fallback: start paper and random: range of the uniform draw.
        steps: ascent steps, at most (T).
        step_size: first step size.
        step_decay: factor on the step size after a rejected step.
        step_stop: a row stops when its step size falls below this.
        nodes: quadrature nodes for mean, std, quantiles, probabilities and log Z.
        coverage: probability inside the reported interval.
        seed: seed of random starts.
    """

    estimate: Literal["ascent", "mode", "mean"] = "mean"
    start: Literal["base", "paper", "zero", "random"] = "base"
    window: tuple[float, float] = (-2.0, 2.0)
    fallback: tuple[float, float] = (-4.0, 4.0)
    steps: int = 50
    step_size: float = 0.5
    step_decay: float = 0.1
    step_stop: float = 1e-6
    nodes: int = 129
    coverage: float = 0.9
    seed: int = 0


@dataclass(frozen=True)
class EstimateConfig(_Config):
    """Estimate of the reward from a distribution in closed form.

    Attributes:
        estimate: mean: of the distribution; mode: its highest point.
        coverage: probability inside the reported interval.
    """

    estimate: Literal["mean", "mode"] = "mean"
    coverage: float = 0.9


# -- heads -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class HeadConfig(_Config):
    """Base of the heads' configs; `HEADS` has them by kind.

    Attributes:
        inference: how rewards are read off the head.
    """

    kind: ClassVar[str]
    #: What the head is, in a few words.
    title: ClassVar[str]

    inference: InferenceConfig | EstimateConfig = EstimateConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        own = type(type(self).inference)  # the default
        if not isinstance(self.inference, own) or isinstance(self.inference, InferenceConfig) != (
            own is InferenceConfig
        ):
            raise ConfigError(f"The setting inference is {self.inference!r}; it must be of the class {own.__name__}.")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; :func:`head_config` reads them back."""
        return _to_dict(self)


@dataclass(frozen=True, kw_only=True)
class ResidualConfig(HeadConfig):
    """Base reward plus a linear correction, r = α r0 + u·x, averaged over ridge penalties (ours; docs/evidence.md).

    Attributes:
        base_weight: α, in logits for each standard deviation of the base reward. Unset: by `pairs_seen`.
        label_smoothing: a in (1 - a) · label + a · (1 - label), 0 to 0.5.
    """

    kind: ClassVar[str] = "residual"
    title: ClassVar[str] = "base reward plus a linear correction, averaged over penalties"
    base_weight: float | None = None
    label_smoothing: float = 0.0


@dataclass(frozen=True, kw_only=True)
class AutoConfig(HeadConfig):
    """The head that these pairs favor: base reward, residual, linear, SiLU and energy, cross-validated by prompt.

    The simplest, in this order, that is within one standard error of the best. Unless the reward model has not seen the
    pairs (`pairs_seen="no"`), its own accuracy on them tells nothing, and the residual head comes first.

    Attributes:
        folds: parts that the prompts are divided into.
    """

    kind: ClassVar[str] = "auto"
    title: ClassVar[str] = "chosen by cross-validation on the pairs"
    folds: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inference != EstimateConfig():  # the heads differ in theirs, and are compared by their defaults
            raise ConfigError(
                "The head auto compares heads as they are by default, so inference settings would have no effect. Name "
                "the head that they are for."
            )


@dataclass(frozen=True, kw_only=True)
class EnergyConfig(HeadConfig):
    """The energy model: a density p(r | e) = exp f(e, r) / Z(e) (EBRM, arXiv 2504.13134).

    Attributes:
        network: the network f.
        objective: what is minimized: JointConfig, LikelihoodConfig or NCEConfig.
        training: how.
        inference: how rewards are read off the density.
    """

    kind: ClassVar[str] = "energy"
    title: ClassVar[str] = "density p(r | e) of an energy-based model (EBRM)"
    network: NetworkConfig = NetworkConfig()
    objective: Objective = JointConfig()
    training: TrainingConfig = TrainingConfig()
    inference: InferenceConfig = InferenceConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        least = 2 if self.objective.kind == "joint" else 1
        if self.training.batch_rows < least:
            raise ConfigError(f"The setting batch_rows is {self.training.batch_rows}; it must be {least} or more.")

    def planned_epochs(self, steps: int) -> int:
        """How many passes of `steps` optimizer steps each are made, unless patience ends before."""
        if self.training.epochs is not None:
            return self.training.epochs
        passes, least = (3, 200) if self.objective.kind == "joint" else (5, 1000)
        return max(passes, math.ceil(least / steps))

    @classmethod
    def paper(cls, size: Literal["small", "large"] = "small") -> EnergyConfig:
        """The paper's network, training and hybrid-start inference; fit it with `FitConfig(filter_conflicts=True)`.

        Where it differs from the paper: docs/evidence.md, "The paper's settings". The paper scales rewards to deviation
        4 for 8B and not at all for small RMs; here they are standardized first.
        """
        return cls(
            network=NetworkConfig(size=size, standardize_embedding=False),
            objective=NCEConfig(beta=0.1),
            training=TrainingConfig(
                reward_scale=4.0 if size == "large" else 1.0,
                regularization=0.05,
                learning_rate=9e-5,
                batch_rows=256,
                epochs=5,
                patience=0,
                clip_norm=None,
            ),
            inference=InferenceConfig(estimate="ascent", start="paper"),
        )


@dataclass(frozen=True, kw_only=True)
class _RidgeConfig(HeadConfig):
    """Linear heads: a mean loss plus half of `ridge` times the squared weights.

    Attributes:
        ridge: weight of the penalty. Unset: that with the lowest held-out loss; 0.1 where none are held out.
    """

    ridge: float | None = None


@dataclass(frozen=True, kw_only=True)
class LinearConfig(_RidgeConfig):
    """Linear Bradley-Terry head.

    Attributes:
        label_smoothing: a in (1 - a) · label + a · (1 - label), 0 to 0.5.
        centering: weight of the penalty (r_c + r_r)² (arXiv 2502.10391).
    """

    kind: ClassVar[str] = "linear"
    title: ClassVar[str] = "Bradley-Terry, linear"
    label_smoothing: float = 0.0
    centering: float = 0.0


@dataclass(frozen=True, kw_only=True)
class BayesianConfig(LinearConfig):
    """Linear Bradley-Terry head with a Gaussian posterior over its weights (Laplace's approximation).

    Attributes:
        pessimism: standard deviations taken off the reward.
    """

    kind: ClassVar[str] = "bayesian"
    title: ClassVar[str] = "Bradley-Terry, linear, with a Bayesian last layer (Laplace) and pessimism"
    pessimism: float = 0.0


@dataclass(frozen=True, kw_only=True)
class GaussianConfig(_RidgeConfig):
    """Ensemble of Gaussian heads with deviations of their own (BRME, arXiv 2409.15360).

    Attributes:
        heads: number of heads.
        label_smoothing: a in (1 - a) · label + a · (1 - label), 0 to 0.5.
        pessimism: standard deviations taken off the reward.
    """

    kind: ClassVar[str] = "gaussian"
    title: ClassVar[str] = "Gaussian heads with their own deviations (BRME)"
    heads: int = 5
    label_smoothing: float = 0.0
    pessimism: float = 0.0


@dataclass(frozen=True, kw_only=True)
class AttributesConfig(_RidgeConfig):
    """Linear regression of rated attributes, weighted (HelpSteer2, arXiv 2406.08673).

    Attributes:
        weights: weight of each attribute in the reward. None given: equal weights.
    """

    kind: ClassVar[str] = "attributes"
    title: ClassVar[str] = "linear regression of rated attributes, weighted (HelpSteer2)"
    weights: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class BinaryConfig(_RidgeConfig):
    """Linear head for thumbs up and down, by a shifted binary cross-entropy (BCO, arXiv 2404.04656)."""

    kind: ClassVar[str] = "binary"
    title: ClassVar[str] = "unpaired thumbs, shifted binary cross-entropy (BCO)"


@dataclass(frozen=True, kw_only=True)
class AnchoredConfig(_RidgeConfig):
    """Linear Bradley-Terry head held near the base reward (ReMoDetect, arXiv 2405.17382).

    Attributes:
        anchor: weight of the mean squared distance to the base reward.
        label_smoothing: a in (1 - a) · label + a · (1 - label), 0 to 0.5.
    """

    kind: ClassVar[str] = "anchored"
    title: ClassVar[str] = "linear correction of the base reward, anchored to it (ReMoDetect)"
    anchor: float = 0.01
    label_smoothing: float = 0.0


@dataclass(frozen=True, kw_only=True)
class MinNormConfig(HeadConfig):
    """Linear Bradley-Terry head, the pairs' sources balanced by the min-norm direction (MORE, arXiv 2312.07401).

    Attributes:
        ridge: weight of half the squared weights, 0 or more.
        label_smoothing: a in (1 - a) · label + a · (1 - label), 0 to 0.5.
    """

    kind: ClassVar[str] = "min_norm"
    title: ClassVar[str] = "Bradley-Terry, linear, objectives balanced by the min-norm direction (MORE)"
    ridge: float = 0.0
    label_smoothing: float = 0.0


@dataclass(frozen=True, kw_only=True)
class _TwoLayerConfig(HeadConfig):
    """Heads with one hidden SiLU layer, trained by AdamW; the pass with the lowest held-out loss is kept.

    Attributes:
        hidden: width of the hidden layer.
        learning_rate: AdamW learning rate.
        weight_decay: AdamW weight decay.
        batch_pairs: pairs a step.
        epochs: passes over the pairs, at most.
        patience: stop after this many passes without a better held-out loss; 0: never.
    """

    hidden: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    batch_pairs: int = 128
    epochs: int = 20
    patience: int = 3


@dataclass(frozen=True, kw_only=True)
class SiLUConfig(_TwoLayerConfig):
    """Two-layer SiLU head fitted by Bradley-Terry (BaseReward, arXiv 2509.16127).

    Attributes:
        label_smoothing: a in (1 - a) · label + a · (1 - label), 0 to 0.5.
        centering: weight of the penalty (r_c + r_r)² (arXiv 2502.10391; arXiv 2509.16127 found that it hurts).
    """

    kind: ClassVar[str] = "silu"
    title: ClassVar[str] = "Bradley-Terry, two layers with SiLU (BaseReward)"
    label_smoothing: float = 0.0
    centering: float = 0.0


@dataclass(frozen=True, kw_only=True)
class DirectionalConfig(SiLUConfig):
    """Two-layer SiLU head, corrected along the direction that raises its rewards most (after arXiv 2512.24146).

    Attributes:
        extrapolation: w in h(e - b) + w (h(e + b) - h(e - b)).
    """

    kind: ClassVar[str] = "directional"
    title: ClassVar[str] = "two-layer SiLU head, its favorite direction made unprofitable (D2-Align)"
    extrapolation: float = 1.5


@dataclass(frozen=True, kw_only=True)
class PrototypesConfig(_TwoLayerConfig):
    """Ideal points of users (the pairs' sources) as mixtures of prototypes (PAL, arXiv 2406.08469).

    Attributes:
        prototypes: number of prototypes.
        dimension: dimension of the ideal points.
        similarity: how near a response is to an ideal point. distance: Euclidean, with a hinge loss (PAL-A); angle:
            the cosine times a fitted scale, with the cross-entropy of pairs (PAL-B).
    """

    kind: ClassVar[str] = "prototypes"
    title: ClassVar[str] = "ideal points of users as mixtures of prototypes (PAL)"
    prototypes: int = 2
    dimension: int = 16
    similarity: Literal["distance", "angle"] = "distance"


#: Kind to config, the default first.
HEADS: dict[str, type[HeadConfig]] = {
    config.kind: config
    for config in (
        ResidualConfig, EnergyConfig, LinearConfig, SiLUConfig, GaussianConfig, BayesianConfig, AttributesConfig,
        BinaryConfig, AnchoredConfig, MinNormConfig, PrototypesConfig, DirectionalConfig,
    )
}  # fmt: skip


# -- the same for every head -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FitConfig(_Config):
    """Splits, conflict filter, weights and seed of a fit, whatever the head.

    Attributes:
        validation_fraction: share of prompts held out to choose the epoch or penalty, if the data name no such split.
        test_fraction: share of prompts held out to measure the result, if the data name no such split.
        filter_conflicts: keep only the training pairs whose label the base RM agrees with (the paper). The energy's
            joint objective allows for wrong labels by itself.
        pairs_seen: whether the reward model was trained on these pairs: no, yes, or unknown. Unless it was not,
            the residual head chooses nothing by how well the reward model fits their labels.
        strength: how annotators' strength of preference enters the loss. weight: multiplies it, scaled to mean 1 over
            the pairs that have one (arXiv 2410.01257); margin: is added to the margin; off: not at all.
        seed: seed of initial weights, shuffling, resampling, noise and dropout, and of the split.
    """

    validation_fraction: float = 0.1
    test_fraction: float = 0.2
    filter_conflicts: bool = False
    pairs_seen: PairsSeen = "unknown"
    strength: Literal["weight", "margin", "off"] = "weight"
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return _to_dict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FitConfig:
        """The config whose :meth:`to_dict` these values are; an unknown field is a ConfigError."""
        return _read(cls, values)


def head_config(values: Mapping[str, Any]) -> HeadConfig:
    """The config whose :meth:`HeadConfig.to_dict` these values are; an unknown kind or field is a ConfigError."""
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in HEADS:
        raise ConfigError(f"There is no head of kind {_shown(kind)}; the kinds are {', '.join(HEADS)}.")
    return _read(HEADS[kind], values)


def _to_dict(config: Any) -> dict[str, Any]:
    kind = {"kind": config.kind} if hasattr(config, "kind") else {}
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    return kind | {name: _to_dict(v) if isinstance(v, _Config) else v for name, v in values.items()}


def _read(config: Any, values: Mapping[str, Any]) -> Any:
    """A config of this class; JSON's lists become tuples."""
    known = {field.name: field for field in fields(config)}
    unknown = set(values) - set(known) - {"kind"}
    if unknown:
        raise ConfigError(
            f"{config.__name__} has no field {shorten_line(', '.join(sorted(unknown)), 200)}; it has "
            f"{', '.join(known) or 'none'}."
        )
    read: dict[str, Any] = {}
    for name, value in values.items():
        if name == "kind":
            continue
        if isinstance(value, Mapping):
            inner: Any = OBJECTIVES.get(str(value.get("kind"))) if name == "objective" else type(known[name].default)
            if inner is None:
                raise ConfigError(
                    f"There is no objective {_shown(value.get('kind'))}; there are {', '.join(OBJECTIVES)}."
                )
            if not issubclass(inner, _Config):
                raise ConfigError(f"The setting {name} holds settings of its own; it is one value.")
            value = _read(inner, value)
        read[name] = tuple(value) if isinstance(value, list) else value
    return config(**read)
