"""Configs: ranges, what a head or objective does not have, JSON and back, the paper's settings."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from ebrm.errors import ConfigError
from ebrm.heads import (
    HEADS,
    OBJECTIVES,
    AnchoredConfig,
    AttributesConfig,
    DirectionalConfig,
    EnergyConfig,
    EstimateConfig,
    FitConfig,
    GaussianConfig,
    InferenceConfig,
    JointConfig,
    LikelihoodConfig,
    LinearConfig,
    MinNormConfig,
    NCEConfig,
    NetworkConfig,
    PrototypesConfig,
    SiLUConfig,
    TrainingConfig,
    head_config,
)
from ebrm.heads.config import SIZES

CONFIGS: list[Any] = [
    NetworkConfig, TrainingConfig, InferenceConfig, EstimateConfig, FitConfig, *OBJECTIVES.values(), *HEADS.values(),
]  # fmt: skip


@pytest.mark.parametrize(
    ("config", "name", "value"),
    [
        (NetworkConfig, "size", "medium"),
        (NetworkConfig, "dropout", 1.0),
        (NetworkConfig, "dropout", -0.1),
        (NetworkConfig, "reward_widths", ()),
        (NetworkConfig, "joint_widths", (64, 0)),
        *((JointConfig, "label_noise", value) for value in (0.5, -0.01, math.nan)),
        (JointConfig, "reward_weight", -0.1),
        *((JointConfig, "reward_noise", value) for value in (0.0, math.nan)),
        (JointConfig, "nodes", 7),
        (LikelihoodConfig, "nodes", 7),
        *((config, "noise_scales", v) for config in (LikelihoodConfig, NCEConfig) for v in ((), (0.5, 0.0))),
        *((config, "beta", -0.1) for config in (LikelihoodConfig, NCEConfig)),
        (NCEConfig, "negatives", 0),
        (TrainingConfig, "reward_scale", 0.0),
        (TrainingConfig, "regularization", -1e-9),
        *((TrainingConfig, "learning_rate", value) for value in (0.0, math.nan)),
        (TrainingConfig, "weight_decay", -1.0),
        (TrainingConfig, "batch_rows", 0),
        (TrainingConfig, "epochs", 0),
        (TrainingConfig, "patience", -1),
        (TrainingConfig, "clip_norm", 0.0),
        *((FitConfig, "validation_fraction", value) for value in (0.0, 1.0)),
        (FitConfig, "strength", "loud"),
        (FitConfig, "seed", -1),
        (InferenceConfig, "estimate", "median"),
        (InferenceConfig, "start", "best"),
        (InferenceConfig, "window", (2.0, -2.0)),
        (InferenceConfig, "fallback", (1.0, 1.0)),
        (InferenceConfig, "steps", -1),
        (InferenceConfig, "step_size", 0.0),
        *((InferenceConfig, "step_decay", value) for value in (1.0, 0.0)),
        (InferenceConfig, "step_stop", 0.0),
        (InferenceConfig, "nodes", 8),
        (InferenceConfig, "coverage", 1.0),
        (EstimateConfig, "estimate", "ascent"),
        (EstimateConfig, "coverage", 0.0),
        (LinearConfig, "ridge", 0.0),
        (MinNormConfig, "ridge", -1.0),
        *((config, "label_smoothing", 0.6) for config in (LinearConfig, GaussianConfig, SiLUConfig, MinNormConfig)),
        *((config, "label_smoothing", -0.1) for config in (AnchoredConfig, SiLUConfig)),
        (LinearConfig, "centering", -0.1),
        (GaussianConfig, "heads", 0),
        (GaussianConfig, "pessimism", -1.0),
        (AttributesConfig, "weights", (math.nan,)),
        (AnchoredConfig, "anchor", -1.0),
        *((SiLUConfig, name, 0) for name in ("hidden", "batch_pairs", "epochs")),
        (SiLUConfig, "learning_rate", 0.0),
        (SiLUConfig, "weight_decay", -1.0),
        (SiLUConfig, "patience", -1),
        (DirectionalConfig, "extrapolation", math.inf),
        *((PrototypesConfig, name, 0) for name in ("prototypes", "dimension")),
        # Of another type.
        *((NetworkConfig, "joint_widths", value) for value in ("12", 12, (1.5,), (True,))),
        *((NetworkConfig, "standardize_embedding", value) for value in ("no", 1, None)),
        (NetworkConfig, "dropout", "0.5"),
        *((TrainingConfig, "epochs", value) for value in (2.5, "2", math.inf, True)),
        *((InferenceConfig, "window", value) for value in ((1.0,), 5, (0.0, "1"))),
        *((FitConfig, name, "no") for name in ("filter_conflicts", "test_fraction")),
        *((FitConfig, "seed", value) for value in (None, 1.5)),
        *((LinearConfig, "ridge", value) for value in ("1", True, (1.0,))),
        *((SiLUConfig, "hidden", value) for value in (3.5, "3", math.nan)),
        *((AttributesConfig, "weights", value) for value in ("12", 1.0)),
        *((EnergyConfig, name, "small") for name in ("network", "objective", "training", "inference")),
        (EnergyConfig, "inference", EstimateConfig()),
        *((LinearConfig, "inference", value) for value in (InferenceConfig(), {"coverage": 0.5})),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(config, name, value):
    with pytest.raises(ConfigError, match=rf"The setting {name} is .*; it must be "):
        config(**{name: value})


@pytest.mark.parametrize(
    ("config", "values"),
    [
        (NetworkConfig, {"dropout": 0.0, "reward_widths": (1,), "joint_widths": (1,)}),
        (LikelihoodConfig, {"beta": 0.0, "nodes": 8}),
        (NCEConfig, {"negatives": 1, "noise_scales": (0.1, 1.0)}),
        (JointConfig, {"label_noise": 0.0, "reward_weight": 0.0}),
        (TrainingConfig, {"regularization": 0.0, "weight_decay": 0.0, "patience": 0, "epochs": 1, "batch_rows": 1}),
        (InferenceConfig, {"steps": 0, "nodes": 9}),
        (SiLUConfig, {"label_smoothing": 0.5, "patience": 0, "hidden": 1}),
        (MinNormConfig, {"ridge": 0.0}),
    ],
)
def test_values_on_the_edge_are_taken(config, values):
    assert {name: getattr(config(**values), name) for name in values} == values


def test_lists_and_numbers_of_numpy_become_what_json_gives_back():
    config = EnergyConfig(
        network=NetworkConfig(joint_widths=[12, 6]),
        training=TrainingConfig(learning_rate=np.float32(0.5), batch_rows=np.int64(8)),
    )
    assert head_config(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("config", CONFIGS)
def test_every_field_has_a_default_and_is_documented(config):
    texts = " ".join(inspect.getdoc(base) or "" for base in config.__mro__)
    for field in dataclasses.fields(config):
        assert field.default is not dataclasses.MISSING, field.name
        assert f" {field.name}: " in " ".join(texts.split()), field.name
    made = config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(made, dataclasses.fields(config)[0].name, None)


@pytest.mark.parametrize("kind", HEADS)
def test_a_knob_of_another_head_or_objective_does_not_exist(kind):
    own = {field.name for field in dataclasses.fields(HEADS[kind])}
    others = {field.name for config in HEADS.values() for field in dataclasses.fields(config)} - own
    for name in others:
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
            HEADS[kind](**{name: 1})
    with pytest.raises(TypeError, match="negatives"):
        JointConfig(negatives=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="label_noise"):
        NCEConfig(label_noise=0.1)  # type: ignore[call-arg]


OTHER: dict[str, Any] = {
    "energy": EnergyConfig(network=NetworkConfig(joint_widths=(9, 8)), objective=NCEConfig(noise_scales=(0.5, 1.0))),
    "attributes": AttributesConfig(weights=(1.0, -0.5), inference=EstimateConfig(coverage=0.5)),
    "silu": SiLUConfig(hidden=3, learning_rate=0.1),
}


@pytest.mark.parametrize("kind", HEADS)
def test_a_config_comes_back_from_json_and_an_unknown_field_does_not(kind):
    for config in (HEADS[kind](), OTHER.get(kind, HEADS[kind]())):
        written = json.loads(json.dumps(config.to_dict()))
        assert written["kind"] == kind and head_config(written) == config
        with pytest.raises(ConfigError, match=f"{HEADS[kind].__name__} has no field nonsense; it has"):
            head_config(written | {"nonsense": 1})
        with pytest.raises(ConfigError, match="has no field loudness"):
            head_config(written | {"inference": written["inference"] | {"loudness": 1}})
    assert FitConfig.from_dict(json.loads(json.dumps(FitConfig(seed=4).to_dict()))) == FitConfig(seed=4)


def test_an_unknown_head_or_objective_is_refused_with_those_that_there_are():
    with pytest.raises(ConfigError, match="no head of kind 'tree'; the kinds are residual, energy, linear"):
        head_config({"kind": "tree"})
    with pytest.raises(ConfigError, match="no head of kind None"):
        head_config({})
    with pytest.raises(ConfigError, match="no objective 'mse'; there are joint, likelihood, nce"):
        head_config({"kind": "energy", "objective": {"kind": "mse"}})


def test_configs_need_no_torch():
    code = "import sys, ebrm.heads.config; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_a_step_of_the_joint_objective_takes_at_least_one_pair():
    one = TrainingConfig(batch_rows=1)
    with pytest.raises(ConfigError, match="The setting batch_rows is 1; it must be 2 or more"):
        EnergyConfig(training=one)
    for objective in (LikelihoodConfig(), NCEConfig()):
        assert EnergyConfig(objective=objective, training=one).training.batch_rows == 1


def test_widths_are_those_of_the_size_unless_overridden():
    assert SIZES["slim"] == ((16, 32), (128,))
    assert SIZES["small"] == ((16, 32, 64), (1024, 512))
    assert SIZES["large"] == ((64, 128, 256), (8192, 4096, 2048))
    assert NetworkConfig().widths == SIZES["slim"]
    for size, widths in SIZES.items():
        assert NetworkConfig(size=size).widths == widths
    assert NetworkConfig(joint_widths=(9, 8)).widths == ((16, 32), (9, 8))
    assert NetworkConfig(size="large", reward_widths=(3,)).widths == ((3,), (8192, 4096, 2048))


@pytest.mark.parametrize(
    ("objective", "passes", "least"), [(JointConfig(), 3, 200), (LikelihoodConfig(), 5, 1000), (NCEConfig(), 5, 1000)]
)
def test_little_data_gets_more_epochs_unless_they_are_given(objective, passes, least):
    config = EnergyConfig(objective=objective)
    assert config.training.epochs is None
    assert config.planned_epochs(1) == least
    assert config.planned_epochs(2) == least // 2
    assert config.planned_epochs(37) == math.ceil(least / 37)  # no step short of them
    enough = least // passes
    assert config.planned_epochs(enough - 1) > config.planned_epochs(enough + 1) == passes
    assert config.planned_epochs(10**7) == passes
    assert EnergyConfig(objective=objective, training=TrainingConfig(epochs=2)).planned_epochs(1) == 2


#: Every field of the paper's settings, but for how many nodes are used and how much is reported.
PAPER = {
    "kind": "energy",
    "network": {
        "size": "small", "reward_widths": None, "joint_widths": None, "dropout": 0.5, "standardize_embedding": False,
    },
    "objective": {"kind": "nce", "noise_scales": (3.5 / 4,), "beta": 0.1, "negatives": 768},  # K = 1; 3.5 at std 4
    "training": {
        "reward_scale": 1.0, "regularization": 0.05, "learning_rate": 9e-5, "weight_decay": 1e-2, "batch_rows": 256,
        "epochs": 5, "patience": 0, "clip_norm": None,
    },
    "inference": {
        "estimate": "ascent", "start": "paper", "window": (-2.0, 2.0), "fallback": (-4.0, 4.0), "steps": 50,
        "step_size": 0.5, "step_decay": 0.1, "step_stop": 1e-6, "nodes": 129, "coverage": 0.9, "seed": 0,
    },
}  # fmt: skip


def test_the_paper_s_settings_are_the_paper_s():
    assert EnergyConfig.paper().to_dict() == PAPER == EnergyConfig.paper("small").to_dict()
    assert EnergyConfig.paper().network.widths == ((16, 32, 64), (1024, 512))


def test_the_paper_s_large_network_sees_rewards_of_standard_deviation_four():
    large = EnergyConfig.paper("large")
    assert large.network.widths == ((64, 128, 256), (8192, 4096, 2048))
    assert isinstance(large.objective, NCEConfig)
    assert [scale * large.training.reward_scale for scale in large.objective.noise_scales] == [3.5]
    values = large.to_dict()
    values["network"]["size"], values["training"]["reward_scale"] = "small", 1.0
    assert values == PAPER
