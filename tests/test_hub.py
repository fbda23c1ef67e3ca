"""A model's folder: complete, checked, never half-written."""

from __future__ import annotations

import json
import math

import pytest
from tests.linear import QUICK, linear_features

from ebrm.card import fusion_in_words, model_card
from ebrm.errors import ModelError
from ebrm.fitting import fit
from ebrm.heads import EnergyConfig, Fusion
from ebrm.hub import download_model, read_model
from ebrm.model import EnergyRewardModel, ModelRecord


@pytest.fixture
def folder(tmp_path):
    fit(linear_features(60), head=QUICK).model.save_pretrained(tmp_path / "m")
    return tmp_path / "m"


def test_a_head_without_weights_of_its_own_is_not_said_to_have_a_density() -> None:
    assert fusion_in_words({"power": 1.0, "base_noise": None}).startswith("what the head fitted, alone")
    assert "density to the power 0.5" in fusion_in_words({"power": 0.5, "base_noise": None})


def test_only_safetensors_json_and_the_card_are_written(folder):
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "config.json", "energy.safetensors"]


@pytest.mark.parametrize("name", ["config.json", "energy.safetensors"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(ModelError, match=f"holds no {name}"):
        EnergyRewardModel.from_pretrained(folder)


def test_one_altered_byte_of_the_weights_is_noticed(folder):
    path = folder / "energy.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ModelError, match="energy.safetensors is damaged.*SHA-256"):
        read_model(folder)


OLD = "saved by an earlier ebrm.*Fit it again.*features made then"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("{", "cannot be read: it is not JSON"),
        ('{"architectures": ["LlamaForSequenceClassification"]}', "perhaps a plain reward model"),
        *((f'{{"format": "ebrm-model-{number}", "head": {{}}}}', OLD) for number in (1, 2)),
    ],
)
def test_a_config_that_is_not_this_format_s_says_what_it_is(folder, config, said):
    (folder / "config.json").write_text(config)
    with pytest.raises(ModelError, match=said):
        read_model(folder)


def test_an_unknown_setting_in_the_config_is_an_error_not_ignored(folder):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["head"]["network"]["color"] = "red"
    path.write_text(json.dumps(config))
    with pytest.raises(ModelError, match="cannot be put together.*color"):
        EnergyRewardModel.from_pretrained(folder)


def test_what_is_trusted_stands_in_the_config_but_the_weights_decide(folder):
    path = folder / "config.json"
    model = EnergyRewardModel.from_pretrained(folder)
    trusted = model.head.fusion
    assert json.loads(path.read_text())["fusion"] == trusted.to_dict()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fusion": {"power": 0.0, "base_noise": 9.0}}))
    assert EnergyRewardModel.from_pretrained(folder).head.fusion == trusted
    model.head.fusion = Fusion(0.5, math.inf)
    model.save_pretrained(folder)
    assert json.loads(path.read_text())["fusion"] == {"power": 0.5, "base_noise": None}
    assert "base reward given no weight; density to the power 0.5" in (folder / "README.md").read_text()
    assert EnergyRewardModel.from_pretrained(folder).head.fusion == Fusion(0.5, math.inf)


def test_a_config_that_does_not_say_what_is_trusted_can_be_read(folder):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    del config["fusion"]
    path.write_text(json.dumps(config))
    EnergyRewardModel.from_pretrained(folder)


def test_neither_folder_nor_hub_name():
    with pytest.raises(ModelError, match="no-such/model is neither a folder here nor"):
        download_model("no-such/model", None, None, None, True)


def test_saving_over_a_model_replaces_it(folder):
    before = (folder / "energy.safetensors").read_bytes()
    fit(linear_features(60, seed=5), head=QUICK).model.save_pretrained(folder)
    assert (folder / "energy.safetensors").read_bytes() != before
    EnergyRewardModel.from_pretrained(folder)
    assert not list(folder.glob(".*"))


METRICS = {
    "base": {"accuracy": 0.512, "low": 0.5, "high": 0.53},
    "refined": {"accuracy": 0.634, "low": 0.6, "high": 0.66},
    "difference": {"value": 0.122, "low": 0.1, "high": 0.15},
    "pairs": 1234,
}


def card(trust: dict[str, float | None] | None = None, **changes: object) -> str:
    values = {
        "head": EnergyConfig(),
        "backbone": {"name": "owner/rm", "revision": "abc"},
        "data": {"origin": "pairs|of.jsonl", "pairs": 10, "sources": {"x": 7, "y": 3}},
        "filter": {"kept": 7, "dropped": 2, "tied": 1, "used": True},
        "history": ({"epoch": 1}, {"epoch": 2}),
        "best_epoch": 2,
        "metrics": METRICS,
    }
    record = ModelRecord(**{**values, **changes})  # type: ignore[arg-type]
    return model_card(record.to_dict() | ({} if trust is None else {"fusion": trust}))


def test_measured_numbers_stand_in_percent_with_intervals():
    text = card()
    assert "| base | 51.2 | 50.0 to 53.0 |" in text
    assert "| refined | 63.4 | 60.0 to 66.0 |" in text
    assert "| difference | 12.2 | 10.0 to 15.0 |" in text
    assert "1,234 held-out pairs" in text


def test_without_a_measurement_it_says_so():
    assert "Nothing was measured" in card(metrics={})
    assert "Nothing was measured" in card(metrics={"pairs": 0, "base": None, "refined": None, "difference": None})


def test_data_filter_and_settings_stand_there():
    text = card()
    assert (
        "The backbone contradicts the labels of 2 of 10 training pairs and ties on 1. The conflict filter left these "
        "out and kept 7.\n"
    ) in text
    assert "| x | 7 |" in text
    assert "| training.learning\\_rate | 0.001 |" in text
    assert "Epochs run: 2; kept: 2." in text


def test_with_the_filter_off_no_pair_is_said_to_be_left_out():
    text = card(filter={"kept": 7, "dropped": 2, "tied": 1, "used": False})
    assert "labels of 2 of 10 training pairs and ties on 1. All were used.\n" in text
    assert "left" not in text and "kept 7" not in text
    assert "contradicts" not in card(filter={})


@pytest.mark.parametrize(
    ("noise", "power", "said"),
    [
        (2.0, 1.0, "base reward trusted to within 2 standard deviations; density to the power 1"),
        (1.0, 0.125, "base reward trusted to within 1 standard deviation; density to the power 0.125"),
        (0.25, 0.0, "base reward trusted to within 0.25 standard deviations; density given no weight"),
        (None, 0.5, "base reward given no weight; density to the power 0.5"),
    ],
)
def test_what_is_trusted_is_said_in_words(noise, power, said):
    trust = {"power": power, "base_noise": noise}
    assert fusion_in_words(trust) == said
    text = card(trust=trust)
    assert said in text and ("standard deviation is that of the training rewards" in text) == (noise is not None)


def test_it_begins_with_hub_metadata_escapes_bars_and_needs_no_fusion():
    assert card().startswith("---\nlibrary_name: ebrm\n") and "pairs\\|of.jsonl" in card()
    assert "goes by" not in card() and "to the power" not in card()
