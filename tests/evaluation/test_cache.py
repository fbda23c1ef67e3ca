from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from tests.features.fakes import FakeBackbone, ask, some_preferences

from ebrm.data import prompt_id
from ebrm.errors import FeaturesError
from ebrm.evaluation import TextCache
from ebrm.evaluation import cache as module
from ebrm.evaluation.cache import ReadTexts, RefinedTexts
from ebrm.features import FeatureConfig, Features, Text, extract_features, open_features, save_features
from ebrm.model import EnergyRewardModel
from ebrm.pairs import PreferencePairs
from ebrm.utils.tensors import sealed


def texts(*given: tuple[str, str]) -> list[Text]:
    return [Text(prompt_id(ask(p)), ask(p), r, f"bench:{n}") for n, (p, r) in enumerate(given)]


def cache_of(backbone: FakeBackbone, root: Path, *others: Features) -> TextCache:
    return TextCache(root, backbone.identity.to_dict(), backbone.text_rule.identity(), others)


def test_a_text_is_read_once_whoever_asks(tmp_path):
    backbone = FakeBackbone(max_length=12)
    loads = []

    def load() -> FakeBackbone:
        loads.append(1)
        return backbone

    first = texts(("p", "a"), ("p", "b"), ("p", "far too long a text"))
    cache = cache_of(backbone, tmp_path)
    assert cache.read(first, load) == 3 and cache.read(first, load) == 0
    assert list(cache.rows([text.id for text in first])) == [0, 1, -1]
    assert cache.why_not(first[2].id) == "longer than the 12 tokens that the RM reads"
    assert cache.why_not("another") == "not in the features given"
    later = cache_of(backbone, tmp_path)
    more = [*first[:1], *texts(("q", "a"))]
    assert later.read(more, load) == 1  # refused texts are not tried again either
    assert later.read(first, load) == 0 and len(loads) == 2
    for text in [*first[:2], more[1]]:
        alone = backbone.embed(backbone.tokenize(text.prompt, text.response).ids) @ torch.arange(1.0, 6.0)
        assert later.reward[later.rows([text.id])[0]] == pytest.approx(float(alone), rel=1e-3, abs=1e-3)


def test_another_model_or_text_rule_has_another_cache_and_another_name_the_same(tmp_path):
    backbone = FakeBackbone()
    one = cache_of(backbone, tmp_path)
    assert cache_of(FakeBackbone(fingerprint="b" * 64), tmp_path).path != one.path
    assert cache_of(FakeBackbone(max_length=399), tmp_path).path != one.path
    renamed = backbone.identity.to_dict() | {"name": "elsewhere/rm", "revision": None}
    assert TextCache(tmp_path, renamed, backbone.text_rule.identity()).path == one.path
    assert one.path.name.startswith("rm-")


def test_features_at_hand_are_looked_into_first(tmp_path):
    backbone, data = FakeBackbone(), some_preferences(4)
    made = extract_features(backbone, data, tmp_path / "f")
    asked = [Text(row.prompt_id, row.prompt, row.chosen, row.row) for row in data]
    cache = cache_of(backbone, tmp_path / "cache", made)
    assert cache.read(asked, lambda: pytest.fail("nothing is left to read")) == 0
    torch.testing.assert_close(
        torch.from_numpy(cache.reward[cache.rows([text.id for text in asked])]), made.reward[made.pairs.chosen].double()
    )
    with pytest.raises(FeaturesError, match="does not fit"):
        cache_of(FakeBackbone(fingerprint="b" * 64), tmp_path / "cache", made)


def test_an_unfinished_run_is_continued(tmp_path):
    asked = texts(*((f"p{n}", "a" * n) for n in range(1, 9)))
    settings = FeatureConfig(shard_rows=2)

    def stop(read: int) -> None:
        if read == 3:
            raise KeyboardInterrupt

    broken = FakeBackbone(on_read=stop)
    with pytest.raises(KeyboardInterrupt):
        cache_of(broken, tmp_path).read(asked, lambda: broken, settings)
    whole = FakeBackbone()
    cache = cache_of(whole, tmp_path)
    assert len(cache.reward) == 0
    assert cache.read(asked, lambda: whole, settings) == 8
    assert sum(len(ids) for ids in whole.reads if len(ids) <= 2) < 8 + 2 * 8  # two of four shards, and the drift
    shards = sorted(cache.path.glob("texts/*/shard-*"))
    assert len(shards) == 4


def test_features_that_do_not_know_their_texts_are_refused(tmp_path):
    features = Features.from_tensors(torch.zeros(2, 3), torch.zeros(2), PreferencePairs.of([0], [1]))
    with pytest.raises(FeaturesError, match="have no text ids"):
        ReadTexts([save_features(features, tmp_path / "f")])


@pytest.mark.parametrize(
    ("file", "damage", "said"),
    [
        ("shard-00000.safetensors", lambda data: data[:-1] + bytes([data[-1] ^ 64]), "its SHA-256 is not the one"),
        ("shard-00000.safetensors", lambda data: data[:-1], "expected"),
        ("items.parquet", lambda data: b"", "it has 0 bytes"),
        ("manifest.json", lambda data: data[:50], "cannot be read"),
        ("manifest.json", lambda data: data.replace(b"a" * 64, b"b" * 64), "does not fit"),
    ],
)
def test_damaged_texts_are_read_again_and_it_is_said(tmp_path, caplog, file, damage, said):
    backbone, asked = FakeBackbone(), texts(("p", "a"), ("p", "b"))
    cache = cache_of(backbone, tmp_path)
    cache.read(asked, lambda: backbone)
    (path,) = cache.path.glob(f"texts/*/{file}")
    path.write_bytes(damage(path.read_bytes()))
    again = cache_of(backbone, tmp_path)
    assert "its texts are read again" in caplog.text and said in caplog.text
    assert again.read(asked, lambda: backbone) == 2
    np.testing.assert_array_equal(again.reward, cache.reward)
    assert cache_of(backbone, tmp_path).read(asked, lambda: backbone) == 0


@pytest.fixture(scope="module")
def energy(model: Path) -> EnergyRewardModel:
    return EnergyRewardModel.from_pretrained(model)


@pytest.fixture(scope="module")
def read_texts(features: Path) -> ReadTexts:
    return ReadTexts([open_features(features)])


def refine(energy: EnergyRewardModel, read_texts: ReadTexts, folder: Path | None) -> RefinedTexts:
    found = RefinedTexts(energy, read_texts, folder, "m")
    found.refine(np.arange(len(read_texts.reward)))
    return found


def test_only_the_folders_asked_for_are_refined(energy: EnergyRewardModel, features: Path, tmp_path: Path):
    part = open_features(features)
    both = ReadTexts([part, part])
    found = RefinedTexts(energy, both, None, "m")
    assert np.isnan(found.reward).all()
    found.refine(np.array([len(part) + 3, len(part)]))
    assert np.isnan(found.reward[: len(part)]).all() and np.isfinite(found.reward[len(part) :]).all()
    found.refine(np.array([0, len(part) - 1]))
    np.testing.assert_allclose(found.reward[: len(part)], found.reward[len(part) :])


def test_rewards_are_the_models_own(energy: EnergyRewardModel, read_texts: ReadTexts, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_ROWS", 7)  # several chunks, and one that is not full
    found = refine(energy, read_texts, None)
    part = read_texts.parts[0]
    expected = energy.refine(part.embedding(slice(0, len(part))), part.reward)
    np.testing.assert_allclose(found.reward, expected.reward, atol=1e-5)
    np.testing.assert_allclose(found.std, expected.std, atol=1e-5)
    np.testing.assert_allclose(found.interval, expected.interval, atol=1e-5)


def test_preferences_are_those_of_the_densities(energy, read_texts, monkeypatch):
    monkeypatch.setattr(module, "_PAIRS", 5)
    found = refine(energy, read_texts, None)
    a, b = np.arange(12), np.arange(12)[::-1].copy()
    embedding, reward = read_texts.parts[0].embedding(slice(0, 12)), read_texts.parts[0].reward[:12]
    expected = energy.head.prefer((embedding, embedding.flip(0)), (reward, reward.flip(0)), energy.inference.nodes)
    np.testing.assert_allclose(found.prefer(a, b), expected, atol=1e-5)
    np.testing.assert_allclose(found.prefer(a, b) + found.prefer(b, a), 1, atol=1e-12)
    assert len(found.prefer(a[:0], b[:0])) == 0


def test_kept_results_are_used_and_damaged_ones_made_again(energy, read_texts, tmp_path, monkeypatch):
    first = refine(energy, read_texts, tmp_path)
    (kept,) = tmp_path.rglob("*.safetensors")
    assert kept.parent.name == energy.fingerprint()[:16]
    with monkeypatch.context() as patched:
        patched.setattr(EnergyRewardModel, "refine", lambda *_: pytest.fail("kept results were not used"))
        again = refine(energy, read_texts, tmp_path)
    assert np.array_equal(again.reward, first.reward)
    other = energy.with_inference(estimate="mode")
    assert not np.allclose(refine(other, read_texts, tmp_path).reward, first.reward, atol=1e-6)


def test_what_a_killed_run_left_half_refined_goes_with_the_next(energy, read_texts, tmp_path):
    refine(energy, read_texts, tmp_path)
    (kept,) = tmp_path.rglob("*.safetensors")
    half = kept.with_name(f".{kept.name}.4194305.partial")
    kept.rename(half)
    refine(energy, read_texts, tmp_path)
    assert [path.name for path in kept.parent.iterdir()] == [kept.name]


def test_damaged_refined_rewards_are_not_taken(energy, read_texts, tmp_path, caplog):
    first = refine(energy, read_texts, tmp_path)
    (kept,) = tmp_path.rglob("*.safetensors")
    data, tensors = kept.read_bytes(), load_file(kept)
    with safe_open(kept, framework="pt") as handle:
        of = {name: value for name, value in handle.metadata().items() if name != "sha256"}
    some = {name: tensor[:3] for name, tensor in tensors.items()}
    infinite, whole = tensors | {"std": tensors["std"] / 0}, tensors | {"reward": tensors["reward"].long()}
    damaged = [
        b"",
        data[:100],
        data[:-1] + bytes([data[-1] ^ 64]),
        save(tensors),
        save(some, sealed(some, of)),
        save({}),
    ]
    damaged += [save(made, sealed(made, of)) for made in (infinite, whole)]
    # Whole, but of other texts or another model.
    damaged += [save(tensors, sealed(tensors, of | {name: "0" * 64})) for name in ("texts", "model")]
    for times, content in enumerate(damaged, 1):
        kept.write_bytes(content)
        assert np.array_equal(refine(energy, read_texts, tmp_path).reward, first.reward)
        assert caplog.text.count("texts are refined again") == times
        assert torch.equal(load_file(kept)["reward"].double(), torch.from_numpy(first.reward))


def test_texts_that_lost_their_manifest_are_read_again_and_it_is_said(tmp_path, caplog):
    backbone, asked = FakeBackbone(), texts(("p", "a"), ("p", "b"))
    cache_of(backbone, tmp_path).read(asked, lambda: backbone)
    (manifest,) = tmp_path.rglob("manifest.json")
    manifest.unlink()
    again = cache_of(backbone, tmp_path)
    assert again.read(asked, lambda: backbone) == 2 and "its texts are read again" in caplog.text
    assert list(again.rows([text.id for text in asked])) == [0, 1]


def test_unfinished_texts_of_other_settings_are_not_in_the_way(tmp_path):
    backbone, asked = FakeBackbone(), texts(*((f"p{n}", "a" * n) for n in range(1, 9)))
    for dtype in ("float16", "float32"):
        cache = cache_of(backbone, tmp_path)
        assert cache.read(asked, lambda: backbone, FeatureConfig(shard_rows=2, embedding_dtype=dtype)) == 8
        (manifest,) = [path for part in cache.parts if part.path for path in part.path.glob("manifest.json")]
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"complete": False}))


def test_no_texts_at_all(energy):
    found = refine(energy, ReadTexts([]), None)
    assert found.reward.shape == (0,) and found.interval.shape == (0, 2)
