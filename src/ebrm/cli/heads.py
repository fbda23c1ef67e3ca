"""Options of heads and objectives, until each head brings its own to the command line."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from ebrm.errors import ConfigError
from ebrm.heads import HEADS, OBJECTIVES, EnergyConfig, HeadConfig, InferenceConfig, NetworkConfig, TrainingConfig


@dataclass(frozen=True)
class ObjectiveOptions:
    """Settings of the energy's objective.

    Attributes:
        objective: joint: the pairs' labels and the base reward; likelihood: the base reward alone, exact, log Z by
            quadrature on shared nodes; nce: the base reward alone, NCE+ with sampled noise (the paper).
        label_noise: share of wrong labels that is assumed, 0 to 0.5; objective joint.
        reward_weight: weight of the base reward against the label; objective joint.
        reward_noise: assumed standard deviation of the base reward's error, in standard deviations of the reward;
            objective joint.
        noise_scales: standard deviations of the noise mixture, in standard deviations of the reward (paper: 3.5 / 4);
            objectives likelihood and nce.
        beta: label noise: the positive is moved by noise of beta times those widths; objectives likelihood and nce.
        negatives: noise samples a row (M); objective nce.
        nodes: quadrature nodes, shifted at random each step; objectives joint and likelihood.
    """

    objective: Literal["joint", "likelihood", "nce"] = "joint"
    label_noise: float | None = None
    reward_weight: float | None = None
    reward_noise: float | None = None
    noise_scales: tuple[float, ...] | None = None
    beta: float | None = None
    negatives: int | None = None
    nodes: int | None = None


@dataclass(frozen=True)
class HeadOptions:
    """Settings of heads beside the energy, for all that are compared.

    Attributes:
        ridge: half of this times the squared weights is added to the mean loss of linear heads. Unset: the value of a
            grid with the lowest held-out loss; 0.1 where none are held out.
        hidden: width of the hidden layer; heads silu, directional, prototypes.
        learning_rate: AdamW learning rate; heads with a hidden layer.
        weight_decay: AdamW weight decay; heads with a hidden layer.
        batch_pairs: pairs a step; heads with a hidden layer.
        epochs: most passes over the pairs; heads with a hidden layer.
        patience: stop after this many passes without a better held-out loss; 0: never.
        label_smoothing: label smoothing, 0 to 0.5; heads fitted on pairs.
        centering: weight of the penalty (r_c + r_r)^2; heads linear, silu, bayesian and directional.
        heads: number of Gaussian heads; head gaussian.
        pessimism: standard deviations taken off the reward; heads gaussian and bayesian.
        anchor: weight of the squared distance to the base reward; head anchored.
        prototypes: number of prototypes; head prototypes.
        dimension: dimension of the ideal points; head prototypes.
        extrapolation: how far beyond the moved embedding rewards are read, w; head directional.
    """

    ridge: float | None = None
    hidden: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    batch_pairs: int = 128
    epochs: int = 20
    patience: int = 3
    label_smoothing: float = 0.0
    centering: float = 0.0
    heads: int = 5
    pessimism: float = 0.0
    anchor: float = 0.01
    prototypes: int = 2
    dimension: int = 16
    extrapolation: float = 1.5


def energy_config(
    network: NetworkConfig, objective: ObjectiveOptions, training: TrainingConfig, inference: InferenceConfig
) -> EnergyConfig:
    """The energy's config; an option that the objective does not have is refused."""
    given = {name: value for name, value in vars(objective).items() if name != "objective" and value is not None}
    kind = OBJECTIVES[objective.objective]
    unused = [name for name in given if name not in {field.name for field in fields(kind)}]
    if unused:
        raise ConfigError(f"`{unused[0]}` has no effect under the objective {objective.objective}. Leave it out.")
    return EnergyConfig(network=network, objective=kind(**given), training=training, inference=inference)


def head_configs(options: HeadOptions) -> dict[str, HeadConfig]:
    """Each head's config with those of the options that it has."""
    configs: dict[str, HeadConfig] = {}
    for kind, config in HEADS.items():
        names = {field.name for field in fields(config)}
        values = {name: value for name, value in vars(options).items() if name in names and value is not None}
        configs[kind] = config() if kind == "energy" else config(**values)
    return configs
