from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ebrm.evaluation import Selection, select
from ebrm.evaluation.pools import ResponsePools
from ebrm.metrics import Bootstrap
from ebrm.report import write_selection_figure
from ebrm.report.selection_figures import LOOKS, look_of, selection_figure


def found(rewards: int, prompts: int = 12) -> Selection:
    draws = np.random.default_rng(1)
    gold = draws.normal(size=(prompts, 5))
    return select(
        ResponsePools({f"$r_{k}": gold + draws.normal(size=gold.shape) for k in range(rewards)}, gold, {}),
        bootstrap=Bootstrap(100),
    )


@pytest.mark.parametrize("rewards", [1, 2, 9])
def test_one_line_a_reward_with_its_peak(rewards: int) -> None:
    selection = found(rewards)
    figure = selection_figure(selection, "worth")
    panels = figure.axes
    assert len(panels) == (2 if rewards == 1 else 4)
    assert panels[0].get_ylabel() == "mean worth"
    for axes, axis in zip(panels[:2], ("n", "kl"), strict=True):
        lines = {line.get_label(): line for line in axes.get_lines()}
        marks = [(float(m.get_xdata()[0]), float(m.get_ydata()[0])) for m in axes.get_lines() if m.get_marker() == "o"]
        for name, along in selection.along.items():
            curve = along[axis]  # type: ignore[index]
            np.testing.assert_allclose(lines[name].get_ydata(), curve.gold.value)
            assert (curve.peak.x.value, curve.peak.gold.value) in marks
        assert len(axes.collections) == (rewards if rewards <= 3 else 0)
    assert {text.get_text() for text in figure.legends[0].texts} == {*selection.along, "any response", "highest"}


def test_looks_differ() -> None:
    assert len({color for color, _ in LOOKS}) == len(LOOKS)
    assert len({look_of(number) for number in range(2 * len(LOOKS))}) == 2 * len(LOOKS)


def test_the_file_is_a_picture_and_the_same_twice(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_selection_figure(tmp_path / f"{name}.png", found(2))
    with Image.open(tmp_path / "a.png") as image:
        assert image.width == 1600 and image.getpixel((2, 2))[:3] == (255, 255, 255)  # type: ignore[index]
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_one_prompt_can_be_drawn(tmp_path: Path) -> None:
    write_selection_figure(tmp_path / "one.png", found(2, prompts=1))
    assert (tmp_path / "one.png").stat().st_size > 1000
