from __future__ import annotations

import subprocess
import sys
from typing import get_args

import pytest

from ebrm.errors import ConfigError
from ebrm.heads import HEADS, HeadConfig, HeadKind


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kind", "tree"), ("l2", 0.0), ("hidden", 0), ("learning_rate", 0.0), ("weight_decay", -1.0),
        ("batch_pairs", 0),
        ("epochs", 0), ("patience", -1), ("smoothing", 0.6), ("centering", -0.1), ("heads", 0), ("pessimism", -1.0),
        ("attribute_weights", (float("nan"),)), ("anchor", -1.0), ("prototypes", 0), ("dimension", 0),
        ("extrapolation", float("inf")),
        ("seed", -1),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"setting {name} is"):
        HeadConfig(**{name: value})  # type: ignore[arg-type]


def test_every_kind_is_described() -> None:
    assert set(get_args(HeadKind)) == set(HEADS)


def test_settings_need_no_torch() -> None:
    code = "import sys, ebrm.heads.head_config; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
