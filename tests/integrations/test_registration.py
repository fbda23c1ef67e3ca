"""transformers' Auto classes load ebrm models once registered, and `import ebrm` does nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.linear import QUICK, linear_features
from tests.terminal import child_environment

from ebrm.fitting import fit
from ebrm.integrations import EBRMConfig
from ebrm.model import ModelRecord


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("registered") / "m"
    fit(linear_features(60), head=QUICK).model.save_pretrained(folder)
    return folder


def run(code: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
        capture_output=True, text=True, timeout=120, env=child_environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


ORDERS = {
    "transformers first": "import transformers, ebrm",
    "both registries first": (
        "import transformers\ntransformers.AutoConfig, transformers.AutoModelForSequenceClassification\nimport ebrm"
    ),
    "explicitly, twice": "import ebrm\nebrm.register()\nimport transformers\nebrm.register()",
    "our configuration": "import ebrm\nebrm.EBRMConfig\nimport transformers",
    "our model, then again": "import ebrm\nebrm.EBRMForSequenceClassification\nebrm.register()\nimport transformers",
}


#: The two that differ most run always; each is a process that imports torch and transformers.
FEW = ("transformers first", "our model, then again")


@pytest.mark.parametrize(
    "order", [order if order in FEW else pytest.param(order, marks=pytest.mark.slow) for order in ORDERS]
)
def test_models_are_known_in_either_order(folder: Path, order: str) -> None:
    code = f"""
{ORDERS[order]}
import sys
config = transformers.AutoConfig.from_pretrained(sys.argv[1])
assert type(config) is ebrm.EBRMConfig, type(config)
try:
    transformers.AutoModelForSequenceClassification.from_pretrained(sys.argv[1])
except ebrm.EBRMError as error:
    assert "features made elsewhere" in str(error), error
print("good")
"""
    assert run(code, folder) == "good\n"


def test_importing_ebrm_changes_nothing_of_the_process_and_registering_loads_no_modeling_code() -> None:
    code = """
import os, sys
finders, hooks, mask = list(sys.meta_path), list(sys.path_hooks), os.umask(0o077)
import ebrm
assert sys.meta_path == finders and sys.path_hooks == hooks and os.umask(mask) == 0o077
import transformers
assert not {name for name in sys.modules if name.startswith("ebrm.integrations")}
assert "ebrm" not in transformers.CONFIG_MAPPING
ebrm.register()
assert "ebrm" in transformers.CONFIG_MAPPING and "transformers.modeling_utils" not in sys.modules
print("good")
"""
    assert run(code) == "good\n"


def test_a_transformers_that_cannot_be_used_never_breaks_import_ebrm() -> None:
    code = "import sys, types; sys.modules['transformers'] = {}; import ebrm; print('good')"
    assert run(code.format("None")) == "good\n"
    said = run(code.format("types.ModuleType('transformers')"))
    assert "good\n" in said and said.count("ebrm models are unknown to transformers' Auto classes") == 1


def test_a_configuration_holds_the_model_s_record(tmp_path: Path) -> None:
    model = fit(linear_features(60), head=QUICK).model
    model.save_pretrained(tmp_path)
    config = EBRMConfig.from_pretrained(tmp_path)
    assert config.num_labels == 1 and config.base is None and not config.own_tokenizer
    assert config.architectures == ["EBRMForSequenceClassification"]
    record = config.record()
    assert record.pop("fusion") == model.head.fusion.to_dict()
    assert ModelRecord.from_dict(record) == model.record
    config.save_pretrained(tmp_path / "again")
    again = EBRMConfig.from_pretrained(tmp_path / "again")
    assert again.record() == config.record() and again.weights_sha256 == config.weights_sha256
