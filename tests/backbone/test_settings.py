from __future__ import annotations

import subprocess
import sys
from dataclasses import fields

import pytest

from ebrm.backbone.settings import BackboneSettings
from ebrm.errors import SettingsError


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"backbone": " "}, "backbone is ' '"),
        ({"dtype": "int8"}, "dtype is 'int8'; it must be one of auto, float32, bfloat16, float16"),
        ({"token_budget": 0}, "token_budget is 0 tokens"),
    ],
)
def test_refuses_values_outside_their_range(changes: dict[str, object], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        BackboneSettings(**{"backbone": "demo", **changes})  # type: ignore[arg-type]


def test_every_field_has_help() -> None:
    assert all(field.metadata["help"] for field in fields(BackboneSettings))


def test_needs_no_torch() -> None:
    code = "import sys, ebrm.backbone.settings; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
