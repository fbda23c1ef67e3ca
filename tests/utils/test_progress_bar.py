"""Progress counts, and says where it is when there is no terminal."""

from __future__ import annotations

import logging

import pytest

from ebrm.utils import progress_bar as module
from ebrm.utils.progress_bar import progress


def test_lines_say_how_much_at_what_rate_and_how_long(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 20.0, 21.0, 40.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with caplog.at_level(logging.INFO), progress("read", total=100, unit="rows") as bar:
        bar.advance(40, loss=0.5)
        bar.advance(1)  # a second later: too soon for another line
        bar.advance(39)
    assert caplog.messages == [
        "read: 40 of 100 rows, 2 rows/s  loss 0.5, 30 s left",
        "read: 80 of 100 rows, 2 rows/s, 10 s left",
    ]
    assert bar.done == 80
