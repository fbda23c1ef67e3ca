"""Checkpoints of a fit: it goes on to the same weights, and what is not its own is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save
from tests.heads.toys import TINY, data, fit, pairs_of, quick_fit, same_weights, scripted, untimed

import ebrm.heads.training as fit_module
from ebrm.errors import ModelError
from ebrm.heads import Epoch, InferenceConfig
from ebrm.pairs import PreferencePairs
from ebrm.utils.tensors import load_tensors, save_tensors

OBJECTIVES = ["joint", "likelihood", "nce"]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_an_interrupted_fit_goes_on_to_the_same_weights(objective, tmp_path):
    class Interrupted(KeyboardInterrupt):
        pass

    def stop_after_two(epoch: Epoch) -> None:
        if epoch.epoch == 2:
            raise Interrupted

    whole = quick_fit(objective=objective)
    file = tmp_path / "fit.safetensors"
    with pytest.raises(Interrupted):
        quick_fit(objective=objective, checkpoint=file, on_epoch=stop_after_two)
    seen: list[int] = []
    resumed = quick_fit(objective=objective, checkpoint=file, on_epoch=lambda epoch: seen.append(epoch.epoch))
    assert seen == [3, 4]
    assert same_weights(whole.head, resumed.head)
    assert resumed.best_epoch == whole.best_epoch
    assert resumed.head.fusion == whole.head.fusion
    assert untimed(resumed) == untimed(whole)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_finished_fit_is_not_done_again_and_can_be_continued(objective, tmp_path):
    file = tmp_path / "fit.safetensors"
    first = quick_fit(objective=objective, checkpoint=file, epochs=2)
    seen: list[int] = []
    again = quick_fit(objective=objective, checkpoint=file, epochs=2, on_epoch=lambda epoch: seen.append(epoch.epoch))
    assert seen == [] and same_weights(first.head, again.head)  # the fusion is among them
    assert [epoch.seconds for epoch in again.history] == [epoch.seconds for epoch in first.history]
    longer = quick_fit(objective=objective, checkpoint=file, epochs=4)
    assert same_weights(longer.head, quick_fit(objective=objective, epochs=4).head)


def test_a_checkpoint_with_other_settings_or_data_is_refused_naming_them(tmp_path):
    file = tmp_path / "fit.safetensors"
    quick_fit(checkpoint=file)
    embedding, reward = data()
    train, validation = pairs_of(50), pairs_of(30, first=50)

    def resume(embedding=embedding, reward=reward, train=train, validation=validation, **settings):
        fit(embedding, reward, train, validation, checkpoint=file, **settings)

    resume()
    swapped = reward.clone()
    swapped[[0, 1]] = reward[[1, 0]]  # the same sums
    other = {
        r"network\.dropout is 0\.5, this run's is 0\.25": {"network": replace(TINY, dropout=0.25)},
        r"training\.learning_rate is 0\.01, this run's is 0\.02": {"learning_rate": 0.02},
        r"seed is 0, this run's is 7": {"seed": 7},
        r"objective\.kind is joint, this run's is likelihood": {"objective": "likelihood"},
        r"objective\.label_noise is 0\.1, this run's is 0\.2": {"label_noise": 0.2},
        r"inference\.estimate is mean, this run's is mode": {"inference": InferenceConfig(estimate="mode")},
        r"embedding_shape is \[80, 3\], this run's is \[80, 2\]": {"embedding": embedding[:, :2]},
        "embeddings is": {"embedding": embedding + 1},
        "rewards is": {"reward": swapped},
        "training_pairs is": {"train": PreferencePairs.of(train.chosen, train.rejected, weight=[1.0] * 24 + [2.0])},
        "validation_pairs is": {"validation": PreferencePairs.of(validation.rejected, validation.chosen)},
    }
    for said, changed in other.items():
        with pytest.raises(ModelError, match=f"is of another run: its {said}.*Delete it"):
            resume(**changed)


def test_the_kept_epoch_and_numbers_that_were_not_measured_come_back(tmp_path, monkeypatch):
    file = tmp_path / "fit.safetensors"
    unmeasured = quick_fit(rows=50, held_out=0, checkpoint=file, epochs=1)
    (epoch,) = quick_fit(rows=50, held_out=0, checkpoint=file, epochs=1).history
    assert math.isnan(epoch.validation_accuracy) and math.isnan(epoch.validation_label_loss)
    assert epoch.loss == unmeasured.history[0].loss
    file.unlink()
    scripted(monkeypatch, [(0.5, 1.0, 0.5), (0.5, 1.0, 0.6)])
    first, again = (quick_fit(checkpoint=file, epochs=2) for _ in range(2))
    assert first.best_epoch == again.best_epoch == 1 and same_weights(first.head, again.head)


def test_a_setting_that_a_checkpoint_does_not_know_is_refused(tmp_path, monkeypatch):
    file, known = tmp_path / "fit.safetensors", fit_module._run_identity
    quick_fit(checkpoint=file, epochs=1)
    monkeypatch.setattr(fit_module, "_run_identity", lambda *of: known(*of) | {"new": 3})
    with pytest.raises(ModelError, match="its new is None, this run's is 3"):
        quick_fit(checkpoint=file, epochs=1)


def other_file(metadata: dict[str, str] | None) -> Callable[[bytes], bytes]:
    return lambda _: save({"now.weight": torch.zeros(2, 3)}, metadata)


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda _: b"not this",
        lambda content: content[: len(content) // 2],
        lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],  # a bit of a number
        lambda content: content.replace(rb"\"epoch\": 1", rb"\"epoch\": 2"),
        *map(other_file, (None, {}, {"run": "{}"})),
    ],
)
def test_a_damaged_checkpoint_or_some_other_file_is_refused(damage, tmp_path):
    file = tmp_path / "fit.safetensors"
    quick_fit(checkpoint=file, epochs=1)
    content = file.read_bytes()
    file.write_bytes(damage(content))
    assert file.read_bytes() != content
    with pytest.raises(ModelError, match=r"The checkpoint .*fit.safetensors is damaged \(.*\)\. Delete it"):
        quick_fit(checkpoint=file, epochs=1)


def test_another_heads_tensors_are_refused_whatever_vouches_for_them(tmp_path):
    file = tmp_path / "fit.safetensors"
    quick_fit(checkpoint=file, epochs=1)
    tensors, texts = load_tensors(file)
    some = {name: tensor[..., :1] for name, tensor in tensors.items() if tensor.ndim == 2}
    for others in (some, tensors | some, {"generator": tensors["generator"]}):
        save_tensors(file, others, texts)
        with pytest.raises(ModelError, match=r"The checkpoint .*fit.safetensors is damaged \(.*\)\. Delete it"):
            quick_fit(checkpoint=file, epochs=1)


def test_nothing_in_it_is_pickled(tmp_path):
    file = tmp_path / "fit.safetensors"
    quick_fit(checkpoint=file, epochs=1)
    with safe_open(file, framework="pt") as handle:
        assert json.loads(handle.metadata()["run"])["seed"] == 0
        assert {name.split(".")[0] for name in handle.keys()} == {"now", "best", "optimizer", "generator"}  # noqa: SIM118
