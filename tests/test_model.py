"""The model people hold: score, rank, prefer, refine, save, load."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.linear import ONE_EPOCH, QUICK, linear_features
from tests.tiny import save_rm

import ebrm
import ebrm.backbone.load
from ebrm.backbone import BackboneConfig, load_backbone
from ebrm.data import TextConfig, load_preferences
from ebrm.data.text import render
from ebrm.errors import BackboneError, ConfigError, FeaturesError, ModelError, TextError, TextTooLongError
from ebrm.features import FeatureConfig, extract_features, open_features, save_features
from ebrm.fitting import fit
from ebrm.heads import Fusion
from ebrm.heads.fusion import BASE_NOISE
from ebrm.model import EnergyRewardModel, ModelRecord

WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
ROWS = [
    {"prompt": f"Say {word}", "chosen": f"{word}, with pleasure", "rejected": "no" * (1 + i % 3)}
    for i, word in enumerate(WORDS * 3)
]


@pytest.fixture(scope="module")
def rm_folder(tmp_path_factory):
    return save_rm(tmp_path_factory.mktemp("rm"), "qwen3")


@pytest.fixture(scope="module")
def model(rm_folder):
    rows = [row | {"prompt": f"{row['prompt']} {i}"} for i, row in enumerate(ROWS)]
    return fit(str(rm_folder), rows, head=QUICK).model


@pytest.fixture(scope="module")
def feature_model():
    return fit(linear_features(), head=QUICK).model


def test_the_base_reward_is_the_reward_model_s_own(model, rm_folder):
    scored = model.score(["Say hello", "Say bye"], ["hello", "goodbye then"])
    backbone = load_backbone(BackboneConfig(backbone=str(rm_folder)), TextConfig())
    ids = [backbone.tokenize("Say hello", "hello").ids, backbone.tokenize("Say bye", "goodbye then").ids]
    assert torch.allclose(scored.base_reward, backbone.read(ids).reward, atol=1e-6)
    assert torch.equal(scored.delta, scored.reward - scored.base_reward)
    assert (scored.interval[:, 0] <= scored.interval[:, 1]).all() and (scored.std > 0).all()


def test_pairs_that_are_too_long_are_counted_aloud(rm_folder, caplog):
    rows = [row | {"prompt": f"{row['prompt']} {i}"} for i, row in enumerate(ROWS)]
    rows[3]["chosen"] = "long " * 100
    fitted = fit(str(rm_folder), rows, text=TextConfig(truncation="drop"), head=ONE_EPOCH)
    assert "1 pairs are left out because a text has more than 128 tokens" in caplog.text
    assert fitted.model.record.data["pairs_dropped_as_too_long"] == 1
    assert fitted.model.record.data["pairs"] == len(rows) - 1


def test_a_score_does_not_depend_on_what_is_scored_beside_it(model):
    texts = ["short", "a much longer answer that goes on for a while", "ü 😀", ""]
    together = model.score(["Tell me"] * 4, texts)
    for i, text in enumerate(texts):
        alone = model.score(["Tell me"], [text])
        assert torch.allclose(alone.reward[0], together.reward[i], atol=1e-5)
        assert torch.allclose(alone.base_reward[0], together.base_reward[i], atol=1e-5)


def test_a_string_prompt_is_one_user_turn(model):
    a = model.score(["Hi"], ["there"])
    b = model.score([[{"role": "user", "content": "Hi"}]], ["there"])
    assert torch.equal(a.reward, b.reward)


def test_nothing_in_nothing_out(model):
    scored = model.score([], [])
    assert len(scored) == 0 and scored.interval.shape == (0, 2) and scored.to_rows() == []
    assert model.rank("Hi", []) == []


def test_rank_is_by_refined_reward_best_first(model):
    responses = ["no", "yes, with pleasure", "perhaps", "nono"]
    ranked = model.rank("Say it", responses)
    scored = model.score(["Say it"] * 4, responses)
    assert [r.reward for r in ranked] == sorted((r.reward for r in ranked), reverse=True)
    for row in ranked:
        assert row.response == responses[row.index]
        assert row.reward == pytest.approx(float(scored.reward[row.index]), abs=1e-5)
        assert row.base_reward == pytest.approx(float(scored.base_reward[row.index]), abs=1e-5)
        assert row.std == pytest.approx(float(scored.std[row.index]), abs=1e-5)


def test_a_ranking_says_how_likely_each_is_the_best(model):
    a, b = model.rank("Say it", ["no", "yes, with pleasure"])
    assert a.p_best == pytest.approx(model.prefer("Say it", a.response, b.response), abs=1e-5)
    assert sum(row.p_best for row in model.rank("Say it", ["no", "yes", "perhaps"])) == pytest.approx(1, abs=1e-6)
    assert [row.p_best for row in model.rank("Say it", ["no"])] == [1.0]
    coarse = model.with_inference(nodes=65).rank("Say it", ["no", "yes, with pleasure"])
    reading, _ = model.backbone.read_texts("Say it", ["no", "yes, with pleasure"])
    expected = model.head.p_best(reading.embedding, reading.reward, 65)
    assert {row.index: row.p_best for row in coarse} == pytest.approx(dict(enumerate(expected.tolist())), abs=1e-6)


def test_prefer_is_a_probability_and_complements(model):
    p, q = model.prefer("Say it", "yes", "no"), model.prefer("Say it", "no", "yes")
    assert 0 <= p <= 1 and p + q == pytest.approx(1, abs=1e-6)
    assert model.prefer("Say it", "no", "no") == pytest.approx(0.5, abs=1e-6)


TURN = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("prompts", "responses", "same"),
    [
        ("Hi", "abc", (["Hi"], ["abc"])),
        (TURN, "abc", (["Hi"], ["abc"])),
        ("Hi", ["a", "bc"], (["Hi", "Hi"], ["a", "bc"])),
        (TURN, ("a", "bc"), (["Hi", "Hi"], ["a", "bc"])),
        ((text for text in ["Hi", "Ho"]), np.array(["a", "b"]), (["Hi", "Ho"], ["a", "b"])),
        ("Hi", [], ([], [])),
    ],
)
def test_one_pair_is_one_row_and_one_prompt_stands_for_all(model, prompts, responses, same):
    scored, expected = model.score(prompts, responses), model.score(*same)
    assert torch.equal(scored.reward, expected.reward) and len(scored) == len(same[1])
    assert scored.errors == (None,) * len(same[1])


@pytest.mark.parametrize(
    ("prompts", "responses", "message"),
    [
        (["a", "b"], ["c"], "2 prompts but 1 responses"),
        (["a", "b"], "cd", "2 prompts in a list, but one response"),
        ([], ["c"], "0 prompts but 1 responses"),
        ("a", None, "`responses` is a NoneType"),
        (b"a", ["b"], "`prompts` is a bytes"),
        (["a", None], ["b", "c"], "Text 1: The prompt is a NoneType"),
        (["a", "b"], ["c", 7], "Text 1: The response is a int"),
        ({"a", "b"}, ["c", "d"], "`prompts` is a set"),  # which has no order
        (["a"], np.array("b"), r"`responses` is one string; give a list, one response a row"),
        ([["a"]], ["b"], r"Text 0: prompt\[0\] cannot be read: not a message"),
        ([b"a"], ["b"], "Text 0: The prompt is a bytes"),
    ],
)
def test_texts_that_do_not_match_are_refused(model, prompts, responses, message):
    with pytest.raises(TextError, match=message):
        model.score(prompts, responses)


@pytest.mark.parametrize(
    ("prompt", "responses", "message"),
    [
        ("hi", "abc", "`responses` is one string"),
        (["hi", "ho"], ["a", "b"], "`prompt` is a list"),
        ([], ["a"], "is a list"),
    ],
)
def test_ranking_splits_no_string_and_takes_one_prompt(model, prompt, responses, message):
    with pytest.raises(TextError, match=message):
        model.rank(prompt, responses)


@pytest.mark.parametrize(
    ("ids", "row"), [([5, 6], 0), ([[5, 6], [5.5, 6]], 1), (["56"], 0), ([[5], [True]], 1), ([[5], [None]], 1)]
)
def test_token_ids_are_lists_of_whole_numbers(model, ids, row):
    with pytest.raises(BackboneError, match=f"Row {row} is .*; a list of token ids, whole numbers, was expected"):
        model.score_ids(ids)
    expected = model.score_ids([[5, 6]]).reward
    for same in (torch.tensor([[5, 6]]), np.array([[5, 6]]), iter([(np.int64(5), 6)])):
        assert torch.equal(model.score_ids(same).reward, expected)


def test_preferring_takes_one_prompt_and_two_strings(model):
    with pytest.raises(TextError, match="`prompt` is a list"):
        model.prefer(["a", "b"], "c", "d")
    with pytest.raises(TextError, match=r"Text 1: response\[0\] cannot be read"):
        model.prefer("a", "c", ["d"])


def test_rows_without_a_reward_say_why_and_leave_the_others_alone(model):
    prompts, responses = ["Hi", None, "Hi", "Hi", "Hi"], ["fine", "a", "long " * 100, 3, "also fine"]
    found = model.score(prompts, responses, on_error="nan")
    assert [error is None for error in found.errors] == [True, False, False, False, True]
    for row, reason in ((1, "prompt is a NoneType"), (2, "tokens, and the limit is 128"), (3, "response is a int")):
        assert reason in str(found.errors[row])
    alone = model.score("Hi", ["fine", "also fine"])
    for name in ("reward", "base_reward", "std", "interval", "log_density", "delta"):
        values = getattr(found, name)
        assert torch.equal(values[[0, 4]], getattr(alone, name)) and values[1:4].isnan().all()
    with pytest.raises(TextTooLongError, match="Text 2: The text has"):
        model.score("Hi", ["a", "b", "long " * 100])
    rendered = model.score_rendered([7, "Hi"], on_error="nan")
    assert "text is a int" in str(rendered.errors[0]) and rendered.errors[1] is None and rendered.reward[0].isnan()
    nothing = model.score(["Hi"], [None], on_error="nan")
    assert nothing.reward.isnan().all() and nothing.errors[0]
    with pytest.raises(ConfigError, match="`on_error` is 'skip'; it must be one of raise, nan"):
        model.score("Hi", "a", on_error="skip")


@pytest.mark.parametrize("where", ["embedding", "refined"])
def test_rewards_that_are_not_finite_are_rows_without_one(model, monkeypatch, where):
    owner, name = (type(model.backbone), "_embed") if where == "embedding" else (type(model.head), "refine")
    real = getattr(owner, name)

    def broken(*args: Any) -> Any:
        found = real(*args)
        (found if where == "embedding" else found.std)[1:2] = torch.nan
        return found

    monkeypatch.setattr(owner, name, broken)
    found = model.score("Hi", ["a", "b", "c"], on_error="nan")
    assert found.reward.isfinite().tolist() == [True, False, True] and found.interval[1].isnan().all()
    assert "not a finite number" in str(found.errors[1]) and found.errors[::2] == (None, None)
    with pytest.raises(TextError, match="Text 1: .*not a finite number"):
        model.score("Hi", ["a", "b", "c"])


def test_rendered_texts_and_token_ids_score_as_the_texts_they_are(model):
    expected = model.score("Say it", ["yes", "no"])
    backbone = model.backbone
    turns = [[{"role": "user", "content": "Say it"}, {"role": "assistant", "content": text}] for text in ("yes", "no")]
    written = [render(backbone.text_rule, backbone.tokenizer, conversation) for conversation in turns]
    assert torch.equal(model.score_rendered(written).reward, expected.reward)
    assert torch.equal(model.score_rendered(written[0]).reward, model.score("Say it", "yes").reward)
    ids = [backbone.tokenize("Say it", response).ids for response in ("yes", "no")]
    assert torch.equal(model.score_ids(ids).reward, expected.reward)
    assert len(model.score_ids([])) == 0


def test_many_threads_score_as_one_and_load_the_reward_model_once(model, tmp_path, loads):
    model.save_pretrained(tmp_path / "m")
    loaded = EnergyRewardModel.from_pretrained(tmp_path / "m")
    copies = [loaded, loaded.with_inference(estimate="mode").with_inference(estimate="mean"), copy.deepcopy(loaded)]
    texts = [[f"answer {i} {j} " * (1 + (i + j) % 5) for j in range(6)] for i in range(24)]
    expected = [model.score("Hi", some) for some in texts]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: copies[i % 3].score("Hi", texts[i]), range(len(texts))))
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.reward, other.reward) and torch.equal(one.std, other.std)
    assert len(loads) == 1 and len({id(each.backbone) for each in copies}) == 1


@pytest.fixture
def loads(monkeypatch):
    """The names of reward models as they are loaded."""
    seen: list[str] = []
    load = ebrm.backbone.load.load_backbone

    def counted(config: BackboneConfig, *args: object, **kwargs: object) -> object:
        seen.append(config.backbone)
        return load(config, *args, **kwargs)

    monkeypatch.setattr("ebrm.backbone.load.load_backbone", counted)
    return seen


def test_saved_and_loaded_it_scores_the_same_and_reloads_its_backbone(model, tmp_path, loads):
    model.save_pretrained(tmp_path / "m")
    loaded = EnergyRewardModel.from_pretrained(tmp_path / "m")
    assert loads == []  # only a text makes it load
    a, b = model.score(["Hi"], ["there"]), loaded.score(["Hi"], ["there"])
    assert torch.equal(a.reward, b.reward) and torch.equal(a.std, b.std)
    assert loaded.record == model.record


def test_how_far_the_base_reward_is_trusted_is_saved_with_the_model(feature_model, tmp_path):
    features = linear_features()
    embedding, reward = features.embedding(slice(0, 20)), features.reward[:20]
    fitted = feature_model.head.fusion
    assert fitted.base_noise < BASE_NOISE[-1]  # labels follow the base reward here, so that it is heard
    feature_model.save_pretrained(tmp_path / "m")
    loaded = EnergyRewardModel.from_pretrained(tmp_path / "m")
    assert loaded.head.fusion == fitted
    before = loaded.refine(embedding, reward).reward
    assert torch.equal(before, feature_model.refine(embedding, reward).reward)
    loaded.head.fusion = Fusion()
    assert not torch.allclose(loaded.refine(embedding, reward).reward, before, atol=1e-3)


def test_another_reward_model_or_text_rule_is_refused(model, rm_folder, tmp_path):
    model.save_pretrained(tmp_path / "m")
    for folder, text, said in (
        (
            save_rm(tmp_path / "other", "qwen3", seed=7),
            {},
            "not the reward model that the energy .*weights_fingerprint",
        ),
        (rm_folder, {"template": "plain"}, "not be comparable.*template_sha256"),
    ):
        other = load_backbone(BackboneConfig(backbone=str(folder)), TextConfig(**text))
        with pytest.raises(ModelError, match=said):
            EnergyRewardModel.from_pretrained(tmp_path / "m", backbone=other)


@pytest.mark.parametrize(("layers", "blocks"), [((), ()), ((1.0,), (2,))])
def test_a_model_reads_the_layers_it_was_fitted_on(rm_folder, tmp_path, layers, blocks):
    rows = [row | {"prompt": f"{row['prompt']} {i}"} for i, row in enumerate(ROWS)]
    settings = BackboneConfig(backbone=str(rm_folder), layers=layers)
    fitted = fit(str(rm_folder), rows, head=ONE_EPOCH, backbone=settings, work=tmp_path / "work").model
    fitted.save_pretrained(tmp_path / "m")
    loaded = EnergyRewardModel.from_pretrained(tmp_path / "m")
    reading, _ = loaded.backbone.read_texts("Hi", "a")
    assert loaded.backbone.identity.layers == blocks and reading.embedding.shape == (1, 32 * len(blocks) + 32)
    assert torch.equal(fitted.score(["Hi"], ["there"]).reward, loaded.score(["Hi"], ["there"]).reward)
    assert loaded.with_backbone(token_budget=50).backbone.identity.layers == blocks
    other = load_backbone(BackboneConfig(backbone=str(rm_folder)), TextConfig())  # block 1
    said = f"the embedding differs.*layers is {blocks[0] if blocks else 'none'} in the fitted model and 1 now"
    with pytest.raises(ModelError, match=said):
        EnergyRewardModel.from_pretrained(tmp_path / "m", backbone=other)
    with pytest.raises(ModelError, match=said):
        loaded.with_backbone(layers=(0.5,))
    open_features(tmp_path / "work" / "features").check(loaded.record.backbone, loaded.record.text_rule)
    features = extract_features(other, load_preferences(rows), tmp_path / "other")
    with pytest.raises(FeaturesError, match="layers is 1 for the features in .* and (2|none) for what they are"):
        features.check(loaded.record.backbone, loaded.record.text_rule)


def test_other_inference_settings_are_a_copy(feature_model):
    features = linear_features()
    mode = feature_model.with_inference(estimate="mode")
    assert feature_model.inference.estimate == "mean" and mode.inference.estimate == "mode"
    a = feature_model.refine(features.embedding(slice(0, 20)), features.reward[:20])
    b = mode.refine(features.embedding(slice(0, 20)), features.reward[:20])
    assert not torch.equal(a.reward, b.reward) and torch.equal(a.std, b.std)


def test_refine_works_in_inference_mode_and_leaves_no_gradient(feature_model):
    features = linear_features()
    with torch.inference_mode():
        inside = feature_model.refine(features.embedding(slice(0, 9)), features.reward[:9])
    outside = feature_model.refine(features.embedding(slice(0, 9)), features.reward[:9])
    assert torch.equal(inside.reward, outside.reward)
    assert all(p.grad is None for p in feature_model.head.parameters())


def test_refine_names_the_row_that_is_not_finite_and_refuses_another_model_s_features(feature_model):
    embedding, reward = torch.randn(4, 8), torch.randn(4)
    embedding[2, 3] = torch.nan
    with pytest.raises(ModelError, match="embedding of row 2 is not finite"):
        feature_model.refine(embedding, reward)
    with pytest.raises(ModelError, match="base reward of row 1 is not finite"):
        feature_model.refine(torch.randn(4, 8), torch.tensor([0.0, torch.inf, 0.0, 0.0]))
    with pytest.raises(ModelError, match=r"refines embeddings \[n, 8\].*given \[4, 9\]"):
        feature_model.refine(torch.randn(4, 9), torch.randn(4))


def test_features_of_any_use_are_tensors_of_the_model_s_shapes_and_finite(feature_model):
    def prefer(embedding: Any, reward: Any) -> Any:
        return feature_model.prefer_rows((embedding, embedding), (reward, reward))

    good, bad = torch.randn(4, 8), torch.full((4, 8), torch.nan)
    for use in (feature_model.refine, feature_model.density, feature_model.p_best, prefer):
        for embedding, reward, said in (
            (torch.randn(4, 9), torch.randn(4), "another reward model's features"),
            (good, torch.randn(3), "another reward model's features"),
            (bad, torch.randn(4), "embedding of row 0 is not finite"),
            (good.numpy(), torch.randn(4), "as ndarray and Tensor; tensors were expected"),
            (good, [0.0] * 4, "as Tensor and list; tensors were expected"),
        ):
            with pytest.raises(ModelError, match=said):
                use(embedding, reward)
    with pytest.raises(ModelError, match="`nodes` is 2"):
        feature_model.density(good, torch.randn(4), 2)


def test_a_model_of_features_made_elsewhere_says_it_cannot_read_text(feature_model):
    with pytest.raises(ModelError, match="features made elsewhere"):
        feature_model.score(["a"], ["b"])


def test_the_density_is_in_base_units(feature_model):
    features = linear_features()
    nodes, density = feature_model.density(features.embedding(slice(0, 5)), features.reward[:5])
    assert torch.allclose(torch.trapezoid(density, nodes), torch.ones(5), atol=1e-4)
    mean = torch.trapezoid(density * nodes, nodes)
    expected = feature_model.with_inference(estimate="mean").refine(
        features.embedding(slice(0, 5)), features.reward[:5]
    )
    assert torch.allclose(mean, expected.reward, atol=1e-3)


def test_the_record_survives_json(feature_model):
    values = json.loads(json.dumps(feature_model.record.to_dict()))
    assert ModelRecord.from_dict(values) == feature_model.record


def test_push_to_hub_uploads_the_saved_folder(feature_model, monkeypatch):
    sent: dict[str, object] = {}

    class Hub:
        def __init__(self, *args: object, **kwargs: object) -> None: ...
        def create_repo(self, **kwargs: object) -> SimpleNamespace:
            return SimpleNamespace(repo_id=kwargs["repo_id"])

        def upload_folder(self, **kwargs: object) -> str:
            folder = Path(str(kwargs["folder_path"]))
            sent.update(kwargs, files=sorted(path.name for path in folder.iterdir()))
            return "https://hub/commit"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Hub)
    feature_model.push_to_hub("me/refined")
    assert sent["repo_id"] == "me/refined"
    assert sent["files"] == ["README.md", "config.json", "energy.safetensors"]


def test_rewards_are_refined_from_disk_as_from_memory(feature_model, tmp_path):
    features = save_features(linear_features(), tmp_path, FeatureConfig(shard_rows=37))
    one = feature_model.refine(features.embeddings, features.reward)
    other = feature_model.refine(features.embedding(slice(None)), features.reward)
    assert torch.equal(one.reward, other.reward) and torch.equal(one.interval, other.interval)


def test_features_are_fitted_and_refined_without_the_libraries_of_the_reward_model(tmp_path):
    save_features(linear_features(), tmp_path / "features")
    script = """
import sys
from ebrm import EnergyRewardModel, open_features
from ebrm.fitting import fit
from ebrm.heads import EnergyConfig, NetworkConfig, TrainingConfig

features = open_features("features")
network = NetworkConfig(reward_widths=(4,), joint_widths=(8,))
fit(features, head=EnergyConfig(network=network, training=TrainingConfig(epochs=1))).model.save_pretrained("model")
EnergyRewardModel.from_pretrained("model").refine(features.embeddings, features.reward)
print([name for name in ("accelerate", "datasets", "peft", "tokenizers", "transformers") if name in sys.modules])
"""
    ran = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout.strip()) == (0, "[]"), ran.stderr
