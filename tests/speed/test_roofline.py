from __future__ import annotations

from itertools import count

import pytest
import torch
from benchmarks import roofline
from benchmarks.roofline import Rates, Shape, Step, shape_of, steps_table
from benchmarks.rows import made_rows

from ebrm.heads import EnergyConfig, EnergyHead, InferenceConfig, LikelihoodConfig, NetworkConfig, TrainingConfig


def test_what_binds_and_what_is_predicted():
    step = Step("one", operations=4e9, product=1e9, values=1e9, function=0.5e9, bytes=1e9, copy=1e9, measured=12.0)
    assert step.parts == {"product": 4.0, "functions": 2.0, "memory": 1.0}
    assert step.bound == "product" and step.predicted == 6.0
    slow = Step("two", operations=0, product=1, values=1e9, function=0.5e9, bytes=9e9, copy=1e9, measured=18.0)
    assert slow.bound == "memory" and slow.predicted == 9.0
    assert steps_table([step, slow]).splitlines()[2].endswith("| 50% |")


def test_operations_of_a_network():
    assert Shape(512, (1024, 512), 20, 65, 0).head_operations == 2 * (1024 * 512 + 512)
    assert Shape(512, (128,), 20, 65, 0).head_operations == 2 * 128
    assert Shape(512, (128,), 20, 65, 0).network_operations == 20 * 2 * 128
    by_hidden = Shape(512, (1024, 512), 20, 65, 0, hidden=12)
    assert by_hidden.network_operations == 2 * (12 * 1024 * 512 + 12 * 20 * 512 + 20 * 512)
    assert by_hidden.network_values == 12 * 1024 + 20 * 512


def test_sizes_come_from_the_density():
    density = EnergyHead(6, EnergyConfig(network=NetworkConfig(reward_widths=(4,), joint_widths=(8, 7))))
    shape = shape_of(density, 6, InferenceConfig(nodes=33))
    assert (shape.d, shape.joint, shape.grid) == (6, (8, 7), 33)
    assert 1 < shape.nodes <= 33
    assert shape.parameters == (4 + 4) + (6 * 8 + 8 + 4 * 8) + (8 * 7 + 7) + (7 + 1)


def test_every_step_is_timed(monkeypatch):
    ran = []
    monkeypatch.setattr(roofline, "typical", lambda work, repeats=5: (ran.append(work()), 1.0)[1])
    network = NetworkConfig(reward_widths=(4,), joint_widths=(8, 7))
    ours = EnergyConfig(network=network, objective=LikelihoodConfig(), training=TrainingConfig(batch_rows=16))
    monkeypatch.setattr(roofline, "OURS", ours)
    embedding, reward = made_rows(32, 6)
    density = EnergyHead(6, ours)
    density.fit_units(reward, [embedding])
    shape = shape_of(density, 6, InferenceConfig())
    rates = Rates(*([1e9] * 8))
    embedded = density.network.embed(density.standardizer.embed(embedding)).detach()  # training changes the weights
    steps = [
        part
        for make in (roofline.refining_steps, roofline.plain_steps, roofline.training_steps)
        for part in make(density, shape, rates, embedding, reward)
    ]
    first = next(step for step in steps if "first layer" in step.name)
    assert first.operations == 2 * 6 * 8 and first.measured == 1 / 32
    assert torch.equal(ran[1], embedded)
    whole = next(step for step in steps if step.name == "**refine, all of it**")
    nodes = next(step for step in steps if step.name.startswith("network at"))
    assert whole.operations == first.operations + nodes.operations and whole.values == nodes.values
    trained = next(step for step in steps if step.name.startswith("training step"))
    assert trained.operations == 4 * 6 * 8 + 3 * 33 * 2 * (8 * 7 + 7) and trained.measured == pytest.approx(1 / 16)


def test_the_tables_name_rates_and_steps(monkeypatch):
    taken = count(1)
    monkeypatch.setattr(roofline, "typical", lambda work, repeats=5: 1e-3 * next(taken))
    monkeypatch.setattr(roofline, "FLOATS", 6 * 64)
    monkeypatch.setattr(roofline, "made_rows", lambda n, d: made_rows(64, 6))
    text = roofline.roofline(6, "slim")
    assert "| float32 product, first layer |" in text and "| **refine, all of it** |" in text
