from __future__ import annotations

import pytest

from ebrm.backbone import BackboneConfig
from ebrm.errors import ConfigError


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"backbone": " "}, "backbone is ' '"),
        ({"dtype": "int8"}, "dtype is 'int8'; it must be one of auto, float32, bfloat16, float16"),
        ({"token_budget": 0}, "token_budget is 0 tokens"),
        ({"layers": (0.0, 0.5)}, r"layers is \(0.0, 0.5\); give depths above 0 and up to 1"),
        ({"layers": (0.5, 1.001)}, "layers is .* to read the input of the reward head only"),
        ({"layers": (-0.5,)}, "layers is"),
        ({"layers": (12,)}, "layers is"),
        ({"layers": (float("nan"),)}, "layers is"),
        ({"layers": (True,)}, "layers is"),
        ({"layers": ("0.5",)}, "layers is"),
        ({"layers": 0.5}, "layers is 0.5; give depths"),
        ({"layers": "none"}, "layers is 'none'"),
        ({"layers": None}, "layers is None"),
        ({"server": "127.0.0.1:8000"}, "server is '127.0.0.1:8000'; give the URL of a running pooling server"),
        ({"server": "ftp://here"}, "server is 'ftp://here'"),
        ({"server": "http://"}, "server is 'http://'"),
        ({"server": ""}, "server is ''"),
        ({"server": "http://h", "attention": "eager"}, "attention is 'eager', but the reward model runs in the server"),
    ],
)
def test_refuses_values_outside_their_range(changes, said):
    with pytest.raises(ConfigError, match=said):
        BackboneConfig(**{"backbone": "demo", **changes})  # type: ignore[arg-type]


def test_depths_are_floats_of_any_list():
    assert BackboneConfig("demo").layers == (1 / 3, 2 / 3)
    assert BackboneConfig("demo", layers=[1, 0.25]).layers == (1.0, 0.25)  # type: ignore[arg-type]
    assert BackboneConfig("demo", layers=()).layers == ()
    assert BackboneConfig("demo", layers=(1e-9, 1.0)).layers == (1e-9, 1.0)
