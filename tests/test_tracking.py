"""Epochs reach a tracker once each, and the tracker is closed whatever happens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from accelerate.tracking import GeneralTracker

from ebrm.errors import ConfigError
from ebrm.fitting import tracked
from ebrm.heads import Epoch


class Recorder(GeneralTracker):
    name = "recorder"
    requires_logging_directory = False

    def __init__(self) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {}
        self.logged: list[tuple[int | None, dict[str, Any]]] = []
        self.closed = False

    @property
    def tracker(self) -> None:
        return None

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.settings = values

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.closed = True


def test_every_epoch_is_logged_once_and_what_was_not_measured_is_left_out(tmp_path: Path) -> None:
    recorder = Recorder()
    with tracked([recorder], tmp_path, {"training": {"epochs": 2, "scales": (1.0, 2.0)}}) as log:
        log(Epoch(1, 0.5, 0.7, 1.1, 0.6, 3.0))
        log(Epoch(2, 0.4, float("nan"), float("nan"), float("nan"), 3.0))
    assert recorder.settings == {"training.epochs": "2", "training.scales": "(1.0, 2.0)"}
    assert [step for step, _ in recorder.logged] == [1, 2]
    assert recorder.logged[0][1] == {
        "loss": 0.5,
        "validation_accuracy": 0.7,
        "validation_nll": 1.1,
        "validation_label_loss": 0.6,
        "seconds": 3.0,
    }
    assert recorder.logged[1][1] == {"loss": 0.4, "seconds": 3.0}
    assert recorder.closed


def test_an_interrupted_fit_closes_its_tracker(tmp_path: Path) -> None:
    recorder = Recorder()
    with pytest.raises(KeyboardInterrupt), tracked([recorder], tmp_path, {}):
        raise KeyboardInterrupt
    assert recorder.closed


def test_unknown_and_missing_trackers_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no tracker 'exel'"), tracked(["exel"], tmp_path, {}):
        pass
    monkeypatch.setattr("ebrm.fitting.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="tracker wandb is not installed"), tracked(["wandb"], tmp_path, {}):
        pass


def test_without_trackers_nothing_is_loaded(tmp_path: Path) -> None:
    with tracked([], tmp_path, {}) as log:
        log(Epoch(1, 0.5, 0.7, 1.1, 0.6, 3.0))
    assert not list(tmp_path.iterdir())
