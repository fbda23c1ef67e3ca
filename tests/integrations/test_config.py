from __future__ import annotations

from pathlib import Path

from tests.linear import QUICK, TINY, linear_features

from ebrm.fitting import fit
from ebrm.integrations import EBRMConfig
from ebrm.model import ModelRecord


def test_it_holds_the_model_s_record(tmp_path: Path) -> None:
    model = fit(features=linear_features(60), network=TINY, training=QUICK).model
    model.save_pretrained(tmp_path)
    config = EBRMConfig.from_pretrained(tmp_path)
    assert config.num_labels == 1 and config.base is None and not config.own_tokenizer
    assert config.architectures == ["EBRMForSequenceClassification"]
    record = config.record()
    assert record.pop("trust") == model.density_model.trust.to_dict()
    assert ModelRecord.from_dict(record) == model.record
    config.save_pretrained(tmp_path / "again")
    again = EBRMConfig.from_pretrained(tmp_path / "again")
    assert again.record() == config.record() and again.weights_sha256 == config.weights_sha256
