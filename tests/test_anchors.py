"""Anchors of a fit: where they come from, how they are divided, and what they do to the result."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from tests.linear import IDENTITY, linear_features
from tests.made import features, pairs, rm
from tests.terminal import preference_rows, write_lines

import ebrm
from ebrm.anchors import HELD_OUT, split_anchors
from ebrm.backbone import Backbone, BackboneConfig, load_backbone
from ebrm.data import PreferenceConfig, TextConfig, load_preferences
from ebrm.errors import ConfigError, DataError, FeaturesError
from ebrm.features import Features, save_features
from ebrm.fitting import fit
from ebrm.heads import HEADS, ResidualHead
from ebrm.model import EnergyRewardModel
from ebrm.pairs import PreferencePairs

__all__ = ["features", "pairs", "rm"]

NONE = PreferencePairs.of([], [])


def other_domain(rows: int = 200, size: int = 8, labeled: bool = True, **manifest: Any) -> Features:
    """Texts far from those of `linear_features`, with base rewards of their own; two rows a prompt."""
    generator = torch.Generator().manual_seed(4)
    embedding = torch.randn(rows, size, generator=generator)
    embedding[:, :4] += 6
    reward = 3 + 2 * torch.randn(rows, generator=generator)
    even = torch.arange(0, rows, 2)
    table = PreferencePairs.of(even, even + 1, prompt_id=[f"a{k}" for k in range(rows // 2)]) if labeled else NONE
    return Features.from_tensors(embedding, reward, table, backbone=manifest.get("backbone", IDENTITY))


def told_apart(seed: int = 0) -> Features:
    """Pairs whose labels follow something else than the base reward."""
    made = linear_features(300, seed=seed)
    e, first = made.embedding(slice(None)), torch.arange(0, 600, 2)
    better = (e[first] - e[first + 1]) @ torch.tensor([2.0, -2.0, 2.0, -2.0, 0.0, 0.0, 0.0, 0.0]) > 0
    chosen, rejected = torch.where(better, first, first + 1), torch.where(better, first + 1, first)
    return replace(made, pairs=PreferencePairs.of(chosen, rejected))


@pytest.fixture(scope="module")
def backbone(rm: Path) -> Backbone:
    return load_backbone(BackboneConfig(backbone=str(rm), device="cpu"), TextConfig(max_length=100))


# -- dividing --------------------------------------------------------------------------------------------------------


@given(st.integers(20, 60), st.integers(0, 5), st.integers(1, 4))
@settings(max_examples=20)
def test_a_prompt_is_fitted_on_or_measured_on_and_never_both(prompts: int, seed: int, each: int) -> None:
    rows = prompts * each
    made = Features.from_tensors(torch.arange(rows * 2.0).view(rows, 2), torch.arange(float(rows)), NONE)
    if each > 1:
        first = torch.arange(0, rows, each)
        table = PreferencePairs.of(first, first + 1, prompt_id=[f"p{k}" for k in range(prompts)])
        made = replace(made, pairs=table)
    split = split_anchors(made, seed)
    held = set(split.rows.tolist())
    assert len(held) + len(split.fitted.reward) == rows == len(held | set(split.fitted.reward.long().tolist()))
    assert not set(split.fitted.prompt_id) & set(split.prompt_id)
    assert len(split.prompt_id) == len(held)
    for pair in zip(split.pairs.chosen.tolist(), split.pairs.rejected.tolist(), strict=True):
        assert set(pair) <= held
    assert torch.equal(split.fitted.embedding[:][:, 0], 2 * split.fitted.reward)


def test_about_a_third_is_held_out_the_same_each_time() -> None:
    made = other_domain(1000)
    split, again, other = (split_anchors(made, seed) for seed in (0, 0, 1))
    assert torch.equal(split.rows, again.rows) and not torch.equal(split.rows, other.rows)
    assert len(split.rows) / 1000 == pytest.approx(HELD_OUT, abs=0.06)
    assert len(split.pairs) == len(split.rows) // 2


def test_rows_of_a_folder_in_no_pair_keep_their_prompts(backbone: Backbone, tmp_path: Path) -> None:
    texts = [{"prompt": f"Question {k // 2}", "response": f"Answer {k}"} for k in range(60)]
    fit(backbone, load_preferences(preference_rows(30)), keep=texts, work=tmp_path)
    split = split_anchors(ebrm.open_features(tmp_path / "anchors"), 0)
    assert len(set(split.prompt_id)) * 2 == len(split.prompt_id)
    assert not set(split.fitted.prompt_id) & set(split.prompt_id)


def test_too_few_prompts_to_divide_are_refused() -> None:
    lone = Features.from_tensors(torch.zeros(2, 3), torch.zeros(2), PreferencePairs.of([0], [1], prompt_id=["p"]))
    with pytest.raises(DataError, match="1 different prompts in 2 rows.*20 prompts or more"):
        split_anchors(lone, 0)
    with pytest.raises(DataError, match="0 different prompts"):
        split_anchors(Features.from_tensors(torch.zeros(0, 3), torch.zeros(0), NONE), 0)


# -- what they do ----------------------------------------------------------------------------------------------------


def test_the_drift_on_anchors_held_out_is_smaller_than_without_anchors() -> None:
    made, kept = told_apart(), other_domain()
    free, held = fit(made), fit(made, keep=kept)
    assert free.anchors is None and held.anchors is not None
    split = split_anchors(kept, 0)
    assert (held.anchors.rows, held.anchors.pairs) == (len(split.rows), len(split.pairs))
    e, r = kept.embedding(split.rows), kept.reward[split.rows]
    order = [float(spearmanr(one.model.refine(e, r).reward, r).statistic) for one in (free, held)]
    assert held.anchors.rank_correlation.value == pytest.approx(order[1], abs=1e-6)
    assert order[1] > 0.99 and order[0] < 0.9
    drift = [float((one.model.refine(e, r).reward - r).abs().mean()) for one in (free, held)]
    assert drift[1] < drift[0]
    assert held.anchors.mean_abs.value == pytest.approx(drift[1] / float(r.double().std(correction=0)), rel=1e-4)
    gain = [one.evaluation.difference for one in (free, held)]
    assert all(one is not None and one.low > 0.1 for one in gain)
    shown = str(held.evaluation)
    assert "what else moves?" in shown and "there are no anchors" not in shown
    assert "there are no anchors" in str(free.evaluation)
    metrics = json.loads(json.dumps(held.evaluation.metrics))
    assert metrics["anchors"]["rows"] == len(split.rows) and free.evaluation.metrics["anchors"] is None


def test_a_fit_with_anchors_is_saved_loaded_and_repeated_to_the_byte(tmp_path: Path) -> None:
    made, kept = told_apart(), other_domain()
    for name in ("a", "b"):
        fit(made, keep=kept).model.save_pretrained(tmp_path / name)
    assert (tmp_path / "a" / "energy.safetensors").read_bytes() == (tmp_path / "b" / "energy.safetensors").read_bytes()
    loaded = EnergyRewardModel.from_pretrained(tmp_path / "a")
    loaded.save_pretrained(tmp_path / "c")
    assert (tmp_path / "c" / "energy.safetensors").read_bytes() == (tmp_path / "a" / "energy.safetensors").read_bytes()


def test_labels_of_anchors_do_not_matter_to_the_fit() -> None:
    made, kept = told_apart(), other_domain()
    turned = PreferencePairs.of(kept.pairs.rejected, kept.pairs.chosen, prompt_id=kept.pairs.prompt_id)
    one, other = (fit(made, keep=replace(kept, pairs=table)).model.head for table in (kept.pairs, turned))
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


# -- where they come from --------------------------------------------------------------------------------------------


def gate(result: Any) -> torch.Tensor:
    head = result.model.head
    assert isinstance(head, ResidualHead)
    return head.gate


def test_features_of_anchors_come_as_an_object_or_a_folder(tmp_path: Path) -> None:
    made, kept = told_apart(), other_domain()
    save_features(kept, tmp_path / "kept")
    gates = [gate(fit(made, keep=keep)) for keep in (kept, tmp_path / "kept", str(tmp_path / "kept"))]
    assert torch.equal(gates[0], gates[1]) and torch.equal(gates[0], gates[2])
    assert bool(gates[0].isfinite().all())


def test_with_a_reward_model_texts_and_pairs_are_read(backbone: Backbone, tmp_path: Path) -> None:
    own = load_preferences(preference_rows(40))
    pairs = preference_rows(30, seed=5, prompt="Other question")
    texts = [{"prompt": row["prompt"], "response": row[side]} for row in pairs for side in ("chosen", "rejected")]
    given: dict[str, Any] = {
        "pairs": pairs,
        "a file of pairs": write_lines(tmp_path / "pairs.jsonl", pairs),
        "preferences": load_preferences(pairs),
        "texts": texts,
        "a file of texts": str(write_lines(tmp_path / "texts.jsonl", texts)),
    }
    found = {name: fit(backbone, own, keep=keep) for name, keep in given.items()}
    for name, result in found.items():
        assert result.anchors is not None and bool(gate(result).isfinite().all()), name
        assert result.anchors.pairs == (0 if "texts" in name else result.anchors.rows // 2), name
        assert result.evaluation.metrics["anchors"]["rows"] == result.anchors.rows  # after the scratch folder is gone
    gates = {name: gate(result) for name, result in found.items()}
    assert torch.equal(gates["pairs"], gates["a file of pairs"]) and torch.equal(gates["pairs"], gates["preferences"])
    assert torch.equal(gates["texts"], gates["a file of texts"])
    messages = [row | {"prompt": [{"role": "user", "content": row["prompt"]}]} for row in texts]
    assert torch.equal(gate(fit(backbone, own, keep=messages)), gates["texts"])
    columns = PreferenceConfig(columns={"prompt": "question"})
    asked = [{**row, "question": row["prompt"]} for row in preference_rows(40)]
    for row in asked:
        del row["prompt"]
    renamed = [{"question": row["prompt"], "response": row["response"]} for row in texts]
    assert torch.equal(gate(fit(backbone, asked, keep=renamed, data=columns)), gates["texts"])


def test_anchors_that_are_too_long_are_left_out_and_counted(
    backbone: Backbone, rm: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = load_preferences(preference_rows(40))
    texts = [
        {"prompt": f"Question {k}", "response": f"Answer {k}" + " and more" * (40 if k < 3 else 0)} for k in range(60)
    ]
    result = fit(backbone, own, keep=texts)
    assert "3 anchors are left out because the reward model cannot read them" in caplog.text
    assert result.anchors is not None and result.anchors.rows < 30
    caplog.clear()
    long = [row | {"chosen": "more " * 60} if k < 2 else row for k, row in enumerate(preference_rows(60, seed=2))]
    dropping = load_backbone(
        BackboneConfig(backbone=str(rm), device="cpu"), TextConfig(max_length=100, truncation="drop")
    )
    fit(dropping, own, keep=long)
    assert "2 pairs of anchors are left out because a text is too long" in caplog.text


@pytest.mark.parametrize("kind", [kind for kind in HEADS if kind != "residual"])
def test_other_heads_refuse_anchors_before_anything_is_read(kind: str) -> None:
    with pytest.raises(ConfigError, match=f"The {kind} head has no use for anchors .*the residual head keeps to them"):
        fit("no-such-model", "no-such-file", keep="no-such-anchors", head=HEADS[kind]())


def test_anchors_of_another_reward_model_or_width_are_refused(tmp_path: Path) -> None:
    made = told_apart()
    with pytest.raises(FeaturesError, match="reward model does not fit"):
        fit(made, keep=other_domain(backbone=IDENTITY | {"weights_fingerprint": "1" * 64, "name": "another"}))
    for wide in (other_domain(size=9), other_domain(size=9, backbone=None)):
        with pytest.raises(DataError, match="embeddings have 9 numbers, the pairs' 8"):
            fit(made, keep=wide)


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        ([{"prompt": "Why?", "response": "So."}], "given as list, and there is no reward model to read texts with"),
        ("texts.jsonl", "given as str, and there is no reward model.*`ebrm features`"),
    ],
)
def test_texts_without_a_reward_model_are_refused(keep: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        fit(told_apart(), keep=keep)


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        ([], "no rows"),
        ([{"prompt": "Why?", "response": "So."}, {"prompt": "Why?", "response": 3}], "anchor cannot be read.*response"),
        ([{"prompt": "Why?", "response": "So."}, {"prompt": 4, "response": "So."}], "anchor cannot be read.*prompt"),
        ([{"prompt": "Why?", "response": "So."}, {"response": "So."}], "anchor cannot be read.*prompt"),
    ],
)
def test_rows_that_are_no_texts_are_refused_by_their_place(backbone: Backbone, keep: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        fit(backbone, load_preferences(preference_rows(40)), keep=keep)
