"""The model card says what the record says."""

from __future__ import annotations

import pytest

from ebrm.card import model_card, trust_in_words
from ebrm.model import ModelRecord

METRICS = {
    "base": {"accuracy": 0.512, "low": 0.5, "high": 0.53},
    "refined": {"accuracy": 0.634, "low": 0.6, "high": 0.66},
    "difference": {"value": 0.122, "low": 0.1, "high": 0.15},
    "pairs": 1234,
}


def card(trust: dict[str, float | None] | None = None, **changes: object) -> str:
    values = {
        "backbone": {"name": "owner/rm", "revision": "abc"},
        "data": {"origin": "pairs|of.jsonl", "pairs": 10, "sources": {"x": 7, "y": 3}},
        "filter": {"kept": 7, "dropped": 2, "tied": 1, "used": True},
        "history": ({"epoch": 1}, {"epoch": 2}),
        "best_epoch": 2,
        "metrics": METRICS,
    }
    record = ModelRecord(**{**values, **changes})  # type: ignore[arg-type]
    return model_card(record.to_dict() | ({} if trust is None else {"trust": trust}))


def test_measured_numbers_stand_in_percent_with_intervals() -> None:
    text = card()
    assert "| base | 51.2 | 50.0 to 53.0 |" in text
    assert "| refined | 63.4 | 60.0 to 66.0 |" in text
    assert "| difference | 12.2 | 10.0 to 15.0 |" in text
    assert "1,234 held-out pairs" in text


def test_without_a_measurement_it_says_so() -> None:
    assert "Nothing was measured" in card(metrics={})
    assert "Nothing was measured" in card(metrics={"pairs": 0, "base": None, "refined": None, "difference": None})


def test_data_filter_and_settings_stand_there() -> None:
    text = card()
    assert (
        "The backbone contradicts the labels of 2 of 10 training pairs and ties on 1. The conflict filter left these "
        "out and kept 7.\n"
    ) in text
    assert "| x | 7 |" in text
    assert "| training.learning_rate | 0.001 |" in text
    assert "Epochs run: 2; kept: 2." in text


def test_with_the_filter_off_no_pair_is_said_to_be_left_out() -> None:
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
def test_what_is_trusted_is_said_in_words(noise: float | None, power: float, said: str) -> None:
    trust = {"power": power, "base_noise": noise}
    assert trust_in_words(trust) == said
    text = card(trust=trust)
    assert said in text and ("standard deviation is that of the training rewards" in text) == (noise is not None)


def test_a_record_without_trust_has_a_card_too() -> None:
    assert "goes by" not in card() and "to the power" not in card()


def test_a_bar_in_a_name_does_not_break_the_table() -> None:
    assert "pairs\\|of.jsonl" in card()


def test_it_begins_with_hub_metadata() -> None:
    assert card().startswith("---\nlibrary_name: ebrm\n")
