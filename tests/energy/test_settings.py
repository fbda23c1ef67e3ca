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
        (FitSettings, "batch_rows", 0),
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
        (FitSettings, {"negatives": 1, "nodes": 8, "batch_rows": 1, "noise_scales": (0.1, 1.0)}),
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


def test_widths_are_the_published_ones_unless_overridden():
    assert SIZES["small"] == ((16, 32, 64), (1024, 512))
    assert SIZES["large"] == ((64, 128, 256), (8192, 4096, 2048))
    assert NetworkSettings().widths == SIZES["small"]
    assert NetworkSettings(size="large").widths == SIZES["large"]
    assert NetworkSettings(joint_widths=(9, 8)).widths == ((16, 32, 64), (9, 8))
    assert NetworkSettings(size="large", reward_widths=(3,)).widths == ((3,), (8192, 4096, 2048))


def test_little_data_gets_more_epochs_unless_they_are_given():
    training = FitSettings(batch_rows=64)
    assert training.epochs is None
    assert training.planned_epochs(64) == 1000  # one step an epoch
    assert training.planned_epochs(65) == 500
    assert training.planned_epochs(64 * 199) == math.ceil(1000 / 199) == 6
    assert training.planned_epochs(64 * 200) == training.planned_epochs(10**7) == 5
    assert FitSettings(batch_rows=64, epochs=3).planned_epochs(64) == 3


def test_the_paper_settings_are_the_papers():
    network, training, inference = paper_settings("large")
    assert (network.size, network.dropout, network.standardize_embedding) == ("large", 0.5, False)
    assert training.objective == "nce"
    assert training.reward_scale == 4.0
    assert [scale * training.reward_scale for scale in training.noise_scales] == [3.5]  # K = 1
    assert (training.beta, training.negatives) == (0.1, 768)
    assert (training.learning_rate, training.weight_decay, training.regularization) == (9e-5, 1e-2, 0.05)
    assert (training.batch_rows, training.epochs, training.patience) == (256, 5, 0)
    assert training.filter_conflicts
    assert (inference.estimate, inference.start) == ("ascent", "paper")
    assert (inference.steps, inference.step_size, inference.step_decay) == (50, 0.5, 0.1)
    assert inference.step_stop == 1e-6
    assert (inference.window, inference.fallback) == ((-2.0, 2.0), (-4.0, 4.0))


def test_the_papers_small_network_sees_rewards_of_unit_scale():
    network, training, inference = paper_settings()
    assert (network.size, training.reward_scale) == ("small", 1.0)
    assert (training, inference) == (dataclasses.replace(paper_settings("large")[1], reward_scale=1.0), inference)
