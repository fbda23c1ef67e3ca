"""Texts for which a reward model gives NaN or infinity: named as such, row by row, in the first batch too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.backbone.shared import IDS, close, load, refuses
from tests.terminal import preference_rows
from tests.tiny import build_model, byte_tokenizer
from transformers import PreTrainedModel

from ebrm.backbone import Backbone
from ebrm.data import PreferenceConfig, load_preferences
from ebrm.errors import DataError, FeaturesError, TextError
from ebrm.features import extract_features
from ebrm.fitting import fit
from ebrm.pairs import PreferencePairs
from ebrm.scoring import ScoreConfig, score_file

HAUNTED = 200  # the token id whose texts are not finite


def save(folder: Path, model: PreTrainedModel) -> Path:
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def haunted(folder: Path, value: float = float("nan"), token: int = HAUNTED, family: str = "llama") -> Backbone:
    """A reward model with an embedding of one token that is not finite."""
    model = build_model(family)
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = value
    return load(save(folder, model))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_one_text_that_is_not_finite_leaves_the_others(tmp_path: Path, value: float, family: str) -> None:
    backbone = haunted(tmp_path, value, family=family)
    ids = [IDS[0], [9, HAUNTED, 8], *IDS[1:]]
    reading = backbone.read(ids, on_error="nan")
    assert reading.embedding[1].isnan().all() and reading.reward[1].isnan()
    good = [0, 2, 3]
    close(reading.reward[good], backbone.read([ids[row] for row in good]).reward)
    with refuses(
        r"1 of 4 texts an embedding or reward .* not a finite number, first row 1 \(3 tokens\). In float32 this "
    ):
        backbone.read(ids)


def test_texts_are_marked_one_by_one(tmp_path: Path) -> None:
    backbone = haunted(tmp_path, token=byte_tokenizer().convert_tokens_to_ids("~"))
    reading, errors = backbone.read_texts(["a"] * 3, ["b", "c~", "d"], on_error="nan")
    assert [error is None for error in errors] == [True, False, True] and reading.reward[[0, 2]].isfinite().all()
    assert "not a finite number. In float32 this is hardly overflow: the model's weights" in str(errors[1])
    with pytest.raises(TextError, match="^Text 1: .* not a finite number"):
        backbone.read_texts(["a"] * 3, ["b", "c~", "d"])


def test_a_first_batch_without_a_finite_row_is_not_the_head_s_fault_and_checks_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = haunted(tmp_path)
    checked: list[bool] = []
    embed = type(backbone.forward).embed
    monkeypatch.setattr(
        type(backbone.forward),
        "embed",
        lambda self, rows, check=False: (checked.append(check), embed(self, rows, check))[1],
    )
    with refuses("gives 1 of 1 texts an embedding"):
        backbone.read([[HAUNTED, 5]])
    backbone.read(IDS)
    backbone.read(IDS)
    assert checked == [True, True, False]


@pytest.mark.parametrize(
    ("dtype", "said"), [("float16", r"overflow, as a rule .*`dtype=\"bfloat16\"` or "), ("float32", "")]
)
def test_overflow_is_called_overflow(tmp_path: Path, dtype: str, said: str) -> None:
    model = build_model("llama")
    with torch.no_grad():
        model.model.norm.weight.fill_(60_000.0)  # what is left of the norm is above the largest number of float16
    backbone = load(save(tmp_path, model), dtype=dtype)
    if not said:
        assert backbone.read(IDS).reward.isfinite().all()
        return
    with refuses(rf"gives 3 of 3 texts an embedding or reward .* not a finite number.*{said}") as caught:
        backbone.read(IDS)
    assert "head" not in str(caught.value)


def test_a_head_that_overflows_in_float16_alone_is_no_wrong_head(tmp_path: Path) -> None:
    model = build_model("llama")
    with torch.no_grad():
        model.score.weight.fill_(60_000.0)
    exact, half = load(save(tmp_path, model)), load(tmp_path, dtype="float16")
    wanted = exact.read(IDS).reward
    assert float(wanted.abs().max()) > 65_504
    torch.testing.assert_close(half.read(IDS).reward, wanted, rtol=0.05, atol=2000.0)


def test_padding_that_is_not_finite_is_padding_s_fault(tmp_path: Path) -> None:
    backbone = haunted(tmp_path, token=1)  # the padding token
    with refuses("has another embedding when it is padded"):
        backbone.read(IDS)


def test_a_reward_that_is_not_finite_after_a_finite_embedding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = load(save(tmp_path, build_model("llama")))
    forward = backbone.model.forward

    def spoiled(**inputs: Any) -> Any:
        output = forward(**inputs)
        output.logits = output.logits / 0
        return output

    monkeypatch.setattr(backbone.model, "forward", spoiled)
    with refuses("the model reports -?inf .*The embedding is finite, so something after the head is not"):
        backbone.read(IDS)


def test_a_fit_and_a_file_of_texts_lose_only_those(tmp_path: Path) -> None:
    tilde = byte_tokenizer().convert_tokens_to_ids("~")
    folder = haunted(tmp_path / "rm", token=tilde).identity.name
    rows = preference_rows(30)
    rows[5] = {**rows[5], "rejected": rows[5]["rejected"] + "~"}
    rows[9] = {**rows[9], "chosen": "~" + rows[9]["chosen"]}
    with refuses(r"rows\[(5|9)\], (chosen|rejected): .* not a finite number.* with 2 of the \d+ texts .*`bad_rows="):
        fit(folder, rows, device="cpu")
    result = fit(folder, rows, device="cpu", data=PreferenceConfig(bad_rows="skip"))
    assert len(result.pairs) == 28 and result.features.manifest["bad_rows"] == {
        "NaN or infinite for the reward model": 2
    }
    texts = [{"prompt": f"Say {k}.", "response": "al~pha" if k == 3 else "alpha"} for k in range(6)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    result.model.save_pretrained(tmp_path / "m")
    options: dict[str, Any] = {"backbone": {"device": "cpu"}}
    with pytest.raises(DataError, match="not a finite number"):
        score_file(tmp_path / "m", tmp_path / "texts.jsonl", tmp_path / "o.jsonl", **options)
    marking = ScoreConfig(bad_rows="mark")
    score_file(tmp_path / "m", tmp_path / "texts.jsonl", tmp_path / "o.jsonl", marking, **options)
    scored = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [row["error"] is None for row in scored] == [True] * 3 + [False] + [True] * 2
    assert "not a finite number" in scored[3]["error"] and scored[3]["reward"] is None


@pytest.mark.parametrize("own", [True, False])
def test_pairs_of_texts_that_were_not_read_are_refused(tmp_path: Path, own: bool) -> None:
    backbone = haunted(tmp_path / "rm", token=byte_tokenizer().convert_tokens_to_ids("~"))
    rows = [*preference_rows(20), {"prompt": "x", "chosen": "a~", "rejected": "b"}]
    made = extract_features(backbone, load_preferences(rows), tmp_path / "f", bad_rows="skip")
    assert made.unread is not None
    bad = PreferencePairs.of([int(made.unread.nonzero()[0])], [0])
    with pytest.raises(
        FeaturesError, match="1 of 1 pairs have an item for which the reward model gave NaN or infinity"
    ):
        made.with_pairs(bad) if own else fit(made, bad)
