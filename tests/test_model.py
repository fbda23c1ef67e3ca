"""The model people hold: score, rank, prefer, refine, save, load."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests.linear import QUICK, TINY, linear_features
from tests.tiny import save_rm

import ebrm
from ebrm.backbone import BackboneConfig, load_backbone
from ebrm.data import TextConfig, load_preferences
from ebrm.errors import FeaturesError, ModelError, TextError
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
def rm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_rm(tmp_path_factory.mktemp("rm"), "qwen3")


@pytest.fixture(scope="module")
def model(rm_folder: Path) -> EnergyRewardModel:
    rows = [row | {"prompt": f"{row['prompt']} {i}"} for i, row in enumerate(ROWS)]
    training = ebrm.FitConfig(**{**vars(QUICK), "filter_conflicts": False})
    return EnergyRewardModel.fit(str(rm_folder), rows, network=TINY, training=training)


@pytest.fixture(scope="module")
def feature_model() -> EnergyRewardModel:
    return fit(features=linear_features(), network=TINY, training=QUICK).model


def test_the_base_reward_is_the_reward_model_s_own(model: EnergyRewardModel, rm_folder: Path) -> None:
    scored = model.score(["Say hello", "Say bye"], ["hello", "goodbye then"])
    backbone = load_backbone(BackboneConfig(backbone=str(rm_folder)), TextConfig())
    ids = [backbone.tokenize("Say hello", "hello").ids, backbone.tokenize("Say bye", "goodbye then").ids]
    assert torch.allclose(scored.base_reward, backbone.read(ids).reward, atol=1e-6)
    assert torch.equal(scored.delta, scored.reward - scored.base_reward)
    assert (scored.interval[:, 0] <= scored.interval[:, 1]).all() and (scored.std > 0).all()


def test_pairs_that_are_too_long_are_counted_aloud(rm_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [row | {"prompt": f"{row['prompt']} {i}"} for i, row in enumerate(ROWS)]
    rows[3]["chosen"] = "long " * 100
    training = ebrm.FitConfig(epochs=1, filter_conflicts=False)
    fitted = fit(str(rm_folder), rows, text=TextConfig(truncation="drop"), network=TINY, training=training)
    assert "1 pairs are left out because a text has more than 128 tokens" in caplog.text
    assert fitted.model.record.data["pairs_dropped_as_too_long"] == 1
    assert fitted.model.record.data["pairs"] == len(rows) - 1


def test_a_score_does_not_depend_on_what_is_scored_beside_it(model: EnergyRewardModel) -> None:
    texts = ["short", "a much longer answer that goes on for a while", "ü 😀", ""]
    together = model.score(["Tell me"] * 4, texts)
    for i, text in enumerate(texts):
        alone = model.score(["Tell me"], [text])
        assert torch.allclose(alone.reward[0], together.reward[i], atol=1e-5)
        assert torch.allclose(alone.base_reward[0], together.base_reward[i], atol=1e-5)


def test_a_string_prompt_is_one_user_turn(model: EnergyRewardModel) -> None:
    a = model.score(["Hi"], ["there"])
    b = model.score([[{"role": "user", "content": "Hi"}]], ["there"])
    assert torch.equal(a.reward, b.reward)


def test_nothing_in_nothing_out(model: EnergyRewardModel) -> None:
    scored = model.score([], [])
    assert len(scored) == 0 and scored.interval.shape == (0, 2) and scored.to_rows() == []
    assert model.rank("Hi", []) == []


def test_rank_is_by_refined_reward_best_first(model: EnergyRewardModel) -> None:
    responses = ["no", "yes, with pleasure", "perhaps", "nono"]
    ranked = model.rank("Say it", responses)
    scored = model.score(["Say it"] * 4, responses)
    assert [r.reward for r in ranked] == sorted((r.reward for r in ranked), reverse=True)
    for row in ranked:
        assert row.response == responses[row.index]
        assert row.reward == pytest.approx(float(scored.reward[row.index]), abs=1e-5)
        assert row.base_reward == pytest.approx(float(scored.base_reward[row.index]), abs=1e-5)
        assert row.std == pytest.approx(float(scored.std[row.index]), abs=1e-5)


def test_a_ranking_says_how_likely_each_is_the_best(model: EnergyRewardModel) -> None:
    a, b = model.rank("Say it", ["no", "yes, with pleasure"])
    assert a.p_best == pytest.approx(model.prefer("Say it", a.response, b.response), abs=1e-5)
    assert sum(row.p_best for row in model.rank("Say it", ["no", "yes", "perhaps"])) == pytest.approx(1, abs=1e-6)
    assert [row.p_best for row in model.rank("Say it", ["no"])] == [1.0]
    coarse = model.with_inference(nodes=65).rank("Say it", ["no", "yes, with pleasure"])
    embedding, reward = model.read(["Say it"] * 2, ["no", "yes, with pleasure"])
    expected = model.density_model.p_best(embedding, reward, 65)
    assert {row.index: row.p_best for row in coarse} == pytest.approx(dict(enumerate(expected.tolist())), abs=1e-6)


def test_prefer_is_a_probability_and_complements(model: EnergyRewardModel) -> None:
    p, q = model.prefer("Say it", "yes", "no"), model.prefer("Say it", "no", "yes")
    assert 0 <= p <= 1 and p + q == pytest.approx(1, abs=1e-6)
    assert model.prefer("Say it", "no", "no") == pytest.approx(0.5, abs=1e-6)


def test_prompts_and_responses_must_match(model: EnergyRewardModel) -> None:
    with pytest.raises(TextError, match="2 prompts but 1 responses"):
        model.score(["a", "b"], ["c"])


def test_saved_and_loaded_it_scores_the_same_and_reloads_its_backbone(model: EnergyRewardModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "m")
    loaded = EnergyRewardModel.from_pretrained(tmp_path / "m")
    assert loaded._backbone is None  # only a text makes it load
    a, b = model.score(["Hi"], ["there"]), loaded.score(["Hi"], ["there"])
    assert torch.equal(a.reward, b.reward) and torch.equal(a.std, b.std)
    assert loaded.record == model.record


def test_how_far_the_base_reward_is_trusted_is_saved_with_the_model(
    feature_model: EnergyRewardModel, tmp_path: Path
) -> None:
    features = linear_features()
    embedding, reward = features.embedding(slice(0, 20)), features.reward[:20]
    fitted = feature_model.density_model.trust
    assert fitted.base_noise < BASE_NOISE[-1]  # labels follow the base reward here, so that it is heard
    feature_model.save_pretrained(tmp_path / "m")
    loaded = EnergyRewardModel.from_pretrained(tmp_path / "m")
    assert loaded.density_model.trust == fitted
    before = loaded.refine(embedding, reward).reward
    assert torch.equal(before, feature_model.refine(embedding, reward).reward)
    loaded.density_model.trust = Fusion()
    assert not torch.allclose(loaded.refine(embedding, reward).reward, before, atol=1e-3)


def test_another_reward_model_under_the_same_path_is_refused(model: EnergyRewardModel, tmp_path: Path) -> None:
    other = load_backbone(BackboneConfig(backbone=str(save_rm(tmp_path / "other", "qwen3", seed=7))), TextConfig())
    model.save_pretrained(tmp_path / "m")
    with pytest.raises(ModelError, match="not the reward model that the energy was fitted on.*weights_fingerprint"):
        EnergyRewardModel.from_pretrained(tmp_path / "m", backbone=other)


@pytest.mark.parametrize(("layers", "blocks"), [((), ()), ((1.0,), (2,))])
def test_a_model_reads_the_layers_it_was_fitted_on(
    rm_folder: Path, tmp_path: Path, layers: tuple[float, ...], blocks: tuple[int, ...]
) -> None:
    rows = [row | {"prompt": f"{row['prompt']} {i}"} for i, row in enumerate(ROWS)]
    training = ebrm.FitConfig(**{**vars(QUICK), "epochs": 1, "filter_conflicts": False})
    settings = BackboneConfig(backbone=str(rm_folder), layers=layers)
    fitted = EnergyRewardModel.fit(
        str(rm_folder), rows, network=TINY, training=training, backbone_settings=settings, work=tmp_path / "work"
    )
    fitted.save_pretrained(tmp_path / "m")
    loaded = EnergyRewardModel.from_pretrained(tmp_path / "m")
    assert loaded.backbone.identity.layers == blocks and loaded.read(["Hi"], ["a"])[0].shape == (
        1,
        32 * len(blocks) + 32,
    )
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
    with pytest.raises(FeaturesError, match=r"layers is \[1\] for the features in .* and \[2?\] for what they are"):
        features.check(loaded.record.backbone, loaded.record.text_rule)


def test_another_text_rule_is_refused(model: EnergyRewardModel, rm_folder: Path, tmp_path: Path) -> None:
    other = load_backbone(BackboneConfig(backbone=str(rm_folder)), TextConfig(template="plain"))
    model.save_pretrained(tmp_path / "m")
    with pytest.raises(ModelError, match="not be comparable.*template_sha256"):
        EnergyRewardModel.from_pretrained(tmp_path / "m", backbone=other)


def test_other_inference_settings_are_a_copy(feature_model: EnergyRewardModel) -> None:
    features = linear_features()
    mode = feature_model.with_inference(estimate="mode")
    assert feature_model.inference.estimate == "mean" and mode.inference.estimate == "mode"
    a = feature_model.refine(features.embedding(slice(0, 20)), features.reward[:20])
    b = mode.refine(features.embedding(slice(0, 20)), features.reward[:20])
    assert not torch.equal(a.reward, b.reward) and torch.equal(a.std, b.std)


def test_refine_works_in_inference_mode_and_leaves_no_gradient(feature_model: EnergyRewardModel) -> None:
    features = linear_features()
    with torch.inference_mode():
        inside = feature_model.refine(features.embedding(slice(0, 9)), features.reward[:9])
    outside = feature_model.refine(features.embedding(slice(0, 9)), features.reward[:9])
    assert torch.equal(inside.reward, outside.reward)
    assert all(p.grad is None for p in feature_model.density_model.parameters())


def test_refine_names_the_row_that_is_not_finite(feature_model: EnergyRewardModel) -> None:
    embedding, reward = torch.randn(4, 8), torch.randn(4)
    embedding[2, 3] = torch.nan
    with pytest.raises(ModelError, match="embedding of row 2 is not finite"):
        feature_model.refine(embedding, reward)
    with pytest.raises(ModelError, match="base reward of row 1 is not finite"):
        feature_model.refine(torch.randn(4, 8), torch.tensor([0.0, torch.inf, 0.0, 0.0]))


def test_refine_refuses_another_model_s_features(feature_model: EnergyRewardModel) -> None:
    with pytest.raises(ModelError, match=r"refines embeddings \[n, 8\].*given \[4, 9\]"):
        feature_model.refine(torch.randn(4, 9), torch.randn(4))


def test_a_model_of_features_made_elsewhere_says_it_cannot_read_text(feature_model: EnergyRewardModel) -> None:
    with pytest.raises(ModelError, match="features made elsewhere"):
        feature_model.score(["a"], ["b"])


def test_the_density_is_in_base_units(feature_model: EnergyRewardModel) -> None:
    features = linear_features()
    nodes, density = feature_model.density(features.embedding(slice(0, 5)), features.reward[:5])
    assert torch.allclose(torch.trapezoid(density, nodes), torch.ones(5), atol=1e-4)
    mean = torch.trapezoid(density * nodes, nodes)
    expected = feature_model.with_inference(estimate="mean").refine(
        features.embedding(slice(0, 5)), features.reward[:5]
    )
    assert torch.allclose(mean, expected.reward, atol=1e-3)


def test_the_record_survives_json(feature_model: EnergyRewardModel) -> None:
    values = json.loads(json.dumps(feature_model.record.to_dict()))
    assert ModelRecord.from_dict(values) == feature_model.record


def test_push_to_hub_uploads_the_saved_folder(
    feature_model: EnergyRewardModel, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_rewards_are_refined_from_disk_as_from_memory(feature_model: EnergyRewardModel, tmp_path: Path) -> None:
    features = save_features(linear_features(), tmp_path, FeatureConfig(shard_rows=37))
    one = feature_model.refine(features.embeddings, features.reward)
    other = feature_model.refine(features.embedding(slice(None)), features.reward)
    assert torch.equal(one.reward, other.reward) and torch.equal(one.interval, other.interval)


def test_features_are_fitted_and_refined_without_the_libraries_of_the_reward_model(tmp_path: Path) -> None:
    save_features(linear_features(), tmp_path / "features")
    script = """
import sys
from ebrm import EnergyRewardModel, open_features
from ebrm.fitting import FitConfig, NetworkConfig, fit

features = open_features("features")
network = NetworkConfig(reward_widths=(4,), joint_widths=(8,))
fit(features=features, network=network, training=FitConfig(epochs=1)).model.save_pretrained("model")
EnergyRewardModel.from_pretrained("model").refine(features.embeddings, features.reward)
print([name for name in ("accelerate", "datasets", "peft", "tokenizers", "transformers") if name in sys.modules])
"""
    ran = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout.strip()) == (0, "[]"), ran.stderr
