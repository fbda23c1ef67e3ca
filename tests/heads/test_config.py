from __future__ import annotations

import dataclasses
import math

import pytest

from ebrm.errors import ConfigError
from ebrm.heads import FitConfig, InferenceConfig, NetworkConfig, paper_settings
from ebrm.heads.old_config import SIZES

STAGES = [NetworkConfig, FitConfig, InferenceConfig]


@pytest.mark.parametrize(
    ("stage", "name", "value"),
    [
        (NetworkConfig, "size", "medium"),
        (NetworkConfig, "dropout", 1.0),
        (NetworkConfig, "dropout", -0.1),
        (NetworkConfig, "reward_widths", ()),
        (NetworkConfig, "joint_widths", (64, 0)),
        (FitConfig, "objective", "mse"),
        (FitConfig, "label_noise", 0.5),
        (FitConfig, "label_noise", -0.01),
        (FitConfig, "label_noise", math.nan),
        (FitConfig, "reward_weight", -0.1),
        (FitConfig, "reward_noise", 0.0),
        (FitConfig, "reward_noise", math.nan),
        (FitConfig, "noise_scales", ()),
        (FitConfig, "noise_scales", (0.5, 0.0)),
        (FitConfig, "beta", -0.1),
        (FitConfig, "negatives", 0),
        (FitConfig, "nodes", 7),
        (FitConfig, "reward_scale", 0.0),
        (FitConfig, "regularization", -1e-9),
        (FitConfig, "learning_rate", 0.0),
        (FitConfig, "learning_rate", math.nan),
        (FitConfig, "weight_decay", -1.0),
        (FitConfig, "batch_rows", 1),
        (FitConfig, "epochs", 0),
        (FitConfig, "patience", -1),
        (FitConfig, "clip_norm", 0.0),
        (FitConfig, "validation_fraction", 0.0),
        (FitConfig, "validation_fraction", 1.0),
        (FitConfig, "seed", -1),
        (InferenceConfig, "estimate", "median"),
        (InferenceConfig, "start", "best"),
        (InferenceConfig, "window", (2.0, -2.0)),
        (InferenceConfig, "fallback", (1.0, 1.0)),
        (InferenceConfig, "steps", -1),
        (InferenceConfig, "step_size", 0.0),
        (InferenceConfig, "step_decay", 1.0),
        (InferenceConfig, "step_decay", 0.0),
        (InferenceConfig, "step_stop", 0.0),
        (InferenceConfig, "nodes", 8),
        (InferenceConfig, "coverage", 1.0),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(stage, name, value):
    with pytest.raises(ConfigError, match=rf"The setting {name} is .*; it must be "):
        stage(**{name: value})


@pytest.mark.parametrize(
    ("stage", "values"),
    [
        (NetworkConfig, {"dropout": 0.0, "reward_widths": (1,), "joint_widths": (1,)}),
        (FitConfig, {"beta": 0.0, "regularization": 0.0, "weight_decay": 0.0, "patience": 0, "epochs": 1}),
        (FitConfig, {"label_noise": 0.0, "reward_weight": 0.0, "batch_rows": 2}),
        (FitConfig, {"objective": "likelihood", "batch_rows": 1}),
        (FitConfig, {"objective": "nce", "negatives": 1, "nodes": 8, "batch_rows": 1, "noise_scales": (0.1, 1.0)}),
        (InferenceConfig, {"steps": 0, "nodes": 9}),
    ],
)
def test_values_on_the_edge_are_taken(stage, values):
    assert {name: getattr(stage(**values), name) for name in values} == values


@pytest.mark.parametrize("stage", STAGES)
def test_every_setting_has_a_default_a_help_and_its_choices(stage):
    for field in dataclasses.fields(stage):
        assert field.default is not dataclasses.MISSING, field.name
        assert field.metadata["help"].endswith("."), field.name
        if "Literal" in str(field.type):
            for choice in field.metadata["choices"]:
                stage(**{field.name: choice})
            assert field.default in field.metadata["choices"]


@pytest.mark.parametrize("stage", STAGES)
def test_settings_cannot_be_changed_afterwards(stage):
    settings = stage()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(settings, dataclasses.fields(stage)[0].name, None)


def test_a_step_of_the_joint_objective_takes_at_least_one_pair():
    with pytest.raises(ConfigError, match="The setting batch_rows is 1; it must be 2 or more"):
        FitConfig(objective="joint", batch_rows=1)
    for objective in ("likelihood", "nce"):
        with pytest.raises(ConfigError, match="The setting batch_rows is 0; it must be 1 or more"):
            FitConfig(objective=objective, batch_rows=0)


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
    ("objective", "passes", "least"), [("joint", 3, 200), ("likelihood", 5, 1000), ("nce", 5, 1000)]
)
def test_little_data_gets_more_epochs_unless_they_are_given(objective, passes, least):
    training = FitConfig(objective=objective)
    assert training.epochs is None
    assert training.planned_epochs(1) == least
    assert training.planned_epochs(2) == least // 2
    assert training.planned_epochs(37) == math.ceil(least / 37)  # no step short of them
    enough = least // passes
    assert training.planned_epochs(enough - 1) > training.planned_epochs(enough + 1) == passes
    assert training.planned_epochs(10**7) == passes
    assert FitConfig(objective=objective, epochs=2).planned_epochs(1) == 2


# Every field of the paper's three stages. What it does not fix is what none of its settings depend on.
PAPER_NETWORK = {
    "size": "small",
    "reward_widths": None,
    "joint_widths": None,
    "dropout": 0.5,
    "standardize_embedding": False,
}
PAPER_FIT = {
    "objective": "nce",
    "filter_conflicts": True,
    "noise_scales": (3.5 / 4,),  # K = 1; 3.5 where rewards have standard deviation 4
    "beta": 0.1,
    "negatives": 768,
    "reward_scale": 1.0,
    "regularization": 0.05,
    "learning_rate": 9e-5,
    "weight_decay": 1e-2,
    "batch_rows": 256,
    "epochs": 5,
    "patience": 0,
    "clip_norm": 1.0,
    "seed": 0,
}
PAPER_INFERENCE = {
    "estimate": "ascent",
    "start": "paper",
    "window": (-2.0, 2.0),
    "fallback": (-4.0, 4.0),
    "steps": 50,
    "step_size": 0.5,
    "step_decay": 0.1,
    "step_stop": 1e-6,
    "seed": 0,
}
#: Objective joint or likelihood only, how the data are divided, and how much is reported.
NOT_THE_PAPERS = {
    "label_noise", "reward_weight", "reward_noise", "nodes", "validation_fraction", "test_fraction", "coverage",
}  # fmt: skip


def test_the_paper_settings_are_the_papers():
    network, training, inference = paper_settings()
    for stage, expected in ((network, PAPER_NETWORK), (training, PAPER_FIT), (inference, PAPER_INFERENCE)):
        assert {k: v for k, v in dataclasses.asdict(stage).items() if k not in NOT_THE_PAPERS} == expected
    assert network.widths == ((16, 32, 64), (1024, 512))


def test_the_papers_large_network_sees_rewards_of_standard_deviation_four():
    network, training, inference = paper_settings("large")
    assert (network.size, training.reward_scale) == ("large", 4.0)
    assert network.widths == ((64, 128, 256), (8192, 4096, 2048))
    assert [scale * training.reward_scale for scale in training.noise_scales] == [3.5]
    assert (dataclasses.replace(network, size="small"), dataclasses.replace(training, reward_scale=1.0), inference) == (
        paper_settings()
    )
