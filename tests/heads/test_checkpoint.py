from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ebrm.errors import ModelError
from ebrm.heads import Epoch
from ebrm.heads.training import load_checkpoint, save_checkpoint

RUN = {"seed": 0, "network.joint_widths": (8, 4), "rewards": "0f"}
HISTORY = [Epoch(1, 2.5, 0.5, 1.25, 0.68, 0.1), Epoch(2, 2.0, math.nan, math.nan, math.nan, 0.2)]


class State:
    """A model, its optimizer after a few steps, and a generator: all that the next epoch depends on."""

    def __init__(self, seed: int, steps: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.model = torch.nn.Linear(3, 2)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=self.generator))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        self.step(steps)

    def step(self, steps: int) -> None:
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.model(torch.randn(4, 3, generator=self.generator)).square().sum().backward()
            self.optimizer.step()

    def weights(self) -> list[float]:
        return [float(value) for parameter in self.model.parameters() for value in parameter.detach().flatten()]


@pytest.fixture
def written(tmp_path) -> tuple[Path, State]:
    state, file = State(1, steps=3), tmp_path / "fit.safetensors"
    best = {name: value + 1 for name, value in state.model.state_dict().items()}
    save_checkpoint(file, RUN, HISTORY, best, state.model, state.optimizer, state.generator)
    return file, state


def load(file: Path, into: State, run: dict | None = None):
    return load_checkpoint(file, RUN if run is None else run, into.model, into.optimizer, into.generator)


def test_a_loaded_state_goes_on_as_the_saved_one(written):
    file, state = written
    other = State(99, steps=1)
    history, best = load(file, other)
    assert history[0] == HISTORY[0] and history[1].seconds == 0.2
    assert math.isnan(history[1].validation_accuracy) and math.isnan(history[1].validation_label_loss)
    assert all(torch.equal(best[name], value + 1) for name, value in state.model.state_dict().items())
    assert other.weights() == state.weights()
    state.step(2)
    other.step(2)
    assert other.weights() == state.weights()


def test_saving_leaves_one_file_and_writes_over_an_older_one(written):
    file, state = written
    state.step(1)
    save_checkpoint(file, RUN, HISTORY[:1], state.model.state_dict(), state.model, state.optimizer, state.generator)
    assert [path.name for path in file.parent.iterdir()] == ["fit.safetensors"]
    other = State(0, steps=0)
    assert load(file, other)[0] == HISTORY[:1]
    assert other.weights() == state.weights()


def test_a_fresh_optimizer_can_be_saved(tmp_path):
    state, file = State(1, steps=0), tmp_path / "fit.safetensors"
    save_checkpoint(file, RUN, [], state.model.state_dict(), state.model, state.optimizer, state.generator)
    other = State(2, steps=0)
    assert load(file, other)[0] == []
    state.step(1)
    other.step(1)
    assert other.weights() == state.weights()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"seed": 1}, r"its seed is 0, this run's is 1"),
        ({"network.joint_widths": (8, 5)}, r"its network\.joint_widths is \[8, 4\], this run's is \[8, 5\]"),
        ({"rewards": "1f"}, "its rewards is 0f, this run's is 1f"),
        ({"new": 3}, "its new is None, this run's is 3"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_before_anything_is_changed(written, changed, said):
    file, _ = written
    other = State(5, steps=1)
    before = other.weights()
    with pytest.raises(ModelError, match=f"fit.safetensors is of another run: {said}. Delete it"):
        load(file, other, RUN | changed)
    assert other.weights() == before


def truncate(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip_a_bit_of_a_weight(content: bytes) -> bytes:
    return content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]


def change_the_history(content: bytes) -> bytes:
    changed = content.replace(rb"\"loss\": 2.5", rb"\"loss\": 2.4")
    assert changed != content
    return changed


@pytest.mark.parametrize(
    "damage", [lambda _: b"", lambda _: b"not this", truncate, flip_a_bit_of_a_weight, change_the_history]
)
def test_a_damaged_checkpoint_is_refused(written, damage):
    file, _ = written
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ModelError, match=r"The checkpoint .*fit.safetensors is damaged \(.*\)\. Delete it"):
        load(file, State(5, steps=1))


@pytest.mark.parametrize("metadata", [None, {}, {"run": "{}"}])
def test_some_other_safetensors_file_is_refused(tmp_path, metadata):
    file = tmp_path / "other.safetensors"
    save_file({"now.weight": torch.zeros(2, 3)}, file, metadata=metadata)
    with pytest.raises(ModelError, match="is damaged"):
        load(file, State(5, steps=1))


def test_nothing_in_it_is_pickled(written):
    file, _ = written
    with safe_open(file, framework="pt") as handle:
        assert json.loads(handle.metadata()["run"])["seed"] == 0
        assert {name.split(".")[0] for name in handle.keys()} == {"now", "best", "optimizer", "generator"}  # noqa: SIM118
