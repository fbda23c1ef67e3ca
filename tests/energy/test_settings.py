from __future__ import annotations

import dataclasses
import math

import pytest

from ebrm.energy.settings import SIZES, FitSettings, InferenceSettings, NetworkSettings, paper_settings
from ebrm.errors import SettingsError

STAGES = [NetworkSettings, FitSettings, InferenceSettings]


@pytest.mark.parametrize(
    ("stage", "name", "value"),
    [
        (NetworkSettings, "size", "medium"),
        (NetworkSettings, "dropout", 1.0),
        (NetworkSettings, "dropout", -0.1),
        (NetworkSettings, "reward_widths", ()),
        (NetworkSettings, "joint_widths", (64, 0)),
        (FitSettings, "objective", "mse"),
        (FitSettings, "label_flips", 0.5),
        (FitSettings, "label_flips", -0.01),
        (FitSettings, "label_flips", math.nan),
        (FitSettings, "reward_weight", -0.1),
        (FitSettings, "reward_noise", 0.0),
        (FitSettings, "reward_noise", math.nan),
        (FitSettings, "noise_scales", ()),
        (FitSettings, "noise_scales", (0.5, 0.0)),
        (FitSettings, "beta", -0.1),
        (FitSettings, "negatives", 0),
        (FitSettings, "nodes", 7),
        (FitSettings, "reward_scale", 0.0),
        (FitSettings, "regularization", -1e-9),
        (FitSettings, "learning_rate", 0.0),
        (FitSettings, "learning_rate", math.nan),
        (FitSettings, "weight_decay", -1.0),
        (FitSettings, "batch_rows", 1),
        (FitSettings, "epochs", 0),
        (FitSettings, "patience", -1),
        (FitSettings, "clip_norm", 0.0),
        (FitSettings, "validation_fraction", 0.0),
        (FitSettings, "validation_fraction", 1.0),
        (FitSettings, "seed", -1),
        (InferenceSettings, "estimate", "median"),
        (InferenceSettings, "start", "best"),
        (InferenceSettings, "window", (2.0, -2.0)),
        (InferenceSettings, "fallback", (1.0, 1.0)),
        (InferenceSettings, "steps", -1),
        (InferenceSettings, "step_size", 0.0),
        (InferenceSettings, "step_decay", 1.0),
        (InferenceSettings, "step_decay", 0.0),
        (InferenceSettings, "step_stop", 0.0),
        (InferenceSettings, "nodes", 8),
        (InferenceSettings, "coverage", 1.0),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(stage, name, value):
    with pytest.raises(SettingsError, match=rf"The setting {name} is .*; it must be "):
        stage(**{name: value})


@pytest.mark.parametrize(
    ("stage", "values"),
    [
        (NetworkSettings, {"dropout": 0.0, "reward_widths": (1,), "joint_widths": (1,)}),
        (FitSettings, {"beta": 0.0, "regularization": 0.0, "weight_decay": 0.0, "patience": 0, "epochs": 1}),
        (FitSettings, {"label_flips": 0.0, "reward_weight": 0.0, "batch_rows": 2}),
        (FitSettings, {"objective": "likelihood", "batch_rows": 1}),
        (FitSettings, {"objective": "nce", "negatives": 1, "nodes": 8, "batch_rows": 1, "noise_scales": (0.1, 1.0)}),
        (InferenceSettings, {"steps": 0, "nodes": 9}),
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
    with pytest.raises(SettingsError, match="The setting batch_rows is 1; it must be 2 or more"):
        FitSettings(objective="joint", batch_rows=1)
    for objective in ("likelihood", "nce"):
        with pytest.raises(SettingsError, match="The setting batch_rows is 0; it must be 1 or more"):
            FitSettings(objective=objective, batch_rows=0)


def test_widths_are_those_of_the_size_unless_overridden():
    assert SIZES["slim"] == ((16, 32), (128,))
    assert SIZES["small"] == ((16, 32, 64), (1024, 512))
    assert SIZES["large"] == ((64, 128, 256), (8192, 4096, 2048))
    assert NetworkSettings().widths == SIZES["slim"]
    for size, widths in SIZES.items():
        assert NetworkSettings(size=size).widths == widths
    assert NetworkSettings(joint_widths=(9, 8)).widths == ((16, 32), (9, 8))
    assert NetworkSettings(size="large", reward_widths=(3,)).widths == ((3,), (8192, 4096, 2048))


@pytest.mark.parametrize(
    ("objective", "passes", "least"), [("joint", 3, 200), ("likelihood", 5, 1000), ("nce", 5, 1000)]
)
def test_little_data_gets_more_epochs_unless_they_are_given(objective, passes, least):
    training = FitSettings(objective=objective)
    assert training.epochs is None
    assert training.planned_epochs(1) == least
    assert training.planned_epochs(2) == least // 2
    assert training.planned_epochs(37) == math.ceil(least / 37)  # no step short of them
    enough = least // passes
    assert training.planned_epochs(enough - 1) > training.planned_epochs(enough + 1) == passes
    assert training.planned_epochs(10**7) == passes
    assert FitSettings(objective=objective, epochs=2).planned_epochs(1) == 2


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
    "label_flips", "reward_weight", "reward_noise", "nodes", "validation_fraction", "test_fraction", "coverage",
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
