"""transformers' Auto classes know ebrm models, whichever of the two is imported first."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.linear import QUICK, TINY, linear_features
from tests.terminal import child_environment

from ebrm.fitting import fit


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("registered") / "m"
    fit(features=linear_features(60), network=TINY, training=QUICK).model.save_pretrained(folder)
    return folder


def run(code: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
        capture_output=True, text=True, timeout=120, env=child_environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


ORDERS = {
    "from within ebrm": "import ebrm.backbone.load, transformers",
    "ebrm first, and again": "import ebrm, importlib, transformers\nimportlib.reload(ebrm)",
    "one registry first": "import transformers\ntransformers.AutoConfig\nimport ebrm",
    "both registries first": (
        "import transformers\ntransformers.AutoConfig, transformers.AutoModelForSequenceClassification\nimport ebrm"
    ),
}


@pytest.mark.parametrize("order", ORDERS)
def test_models_are_known_in_either_order(folder: Path, order: str) -> None:
    code = f"""
{ORDERS[order]}
import sys
config = transformers.AutoConfig.from_pretrained(sys.argv[1])
assert type(config).__name__ == "EBRMConfig", type(config)
try:
    transformers.AutoModelForSequenceClassification.from_pretrained(sys.argv[1])
except ebrm.EBRMError as error:
    assert "features made elsewhere" in str(error), error
import importlib.util
module = sys.modules["transformers.models.auto.configuration_auto"]
assert type(module.__loader__).__module__ != "ebrm.integrations.auto_classes", module.__loader__
assert module.__spec__.loader is module.__loader__
print("good")
"""
    assert run(code, folder).endswith("good\n")


def test_importing_transformers_stays_as_light_as_it_is(folder: Path) -> None:
    code = "import {}, sys, json; print(json.dumps(sorted(n for n in sys.modules if n.split('.')[0] != 'ebrm')))"
    alone, together = (set(json.loads(run(code.format(names)))) for names in ("transformers", "ebrm, transformers"))
    assert not {name for name in together - alone if name.startswith(("torch", "transformers"))}


def test_an_error_of_ours_never_breaks_transformers() -> None:
    code = """
import logging, sys
logging.basicConfig()
import ebrm
sys.modules["ebrm.integrations.config"] = None  # importing it fails
import transformers
from transformers import AutoConfig
assert "llama" in transformers.CONFIG_MAPPING
print("good")
"""
    said = run(code)
    assert said.startswith("good\n")
    assert said.count("ebrm models could not be made known to transformers' Auto classes") == 1


def test_without_transformers_nothing_happens() -> None:
    code = """
import sys
sys.modules["transformers"] = None
import ebrm
try:
    import transformers
except ImportError:
    print("good")
"""
    assert run(code) == "good\n"
