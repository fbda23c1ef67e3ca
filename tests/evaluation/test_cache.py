from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.features.fakes import FakeBackbone, ask, some_preferences

from ebrm.data import prompt_id
from ebrm.errors import FeaturesError
from ebrm.evaluation import TextCache
from ebrm.evaluation.cache import ReadTexts
from ebrm.features import FeatureConfig, Features, Text, extract_features, save_features
from ebrm.pairs import PreferencePairs
from ebrm.utils.files import read_json, write_json


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
        torch.from_numpy(cache.reward[cache.rows([text.id for text in asked])]),
        made.reward[made.pairs.chosen].double(),
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


def test_damage_is_said(tmp_path):
    backbone = FakeBackbone()
    cache = cache_of(backbone, tmp_path)
    cache.read(texts(("p", "a")), lambda: backbone)
    (manifest,) = cache.path.glob("texts/*/manifest.json")
    next(manifest.parent.glob("shard*")).unlink()
    with pytest.raises(FeaturesError, match="is missing"):
        cache_of(backbone, tmp_path)
    write_json(manifest, read_json(manifest) | {"format": "other"})
    with pytest.raises(FeaturesError, match="not the manifest"):
        cache_of(backbone, tmp_path)
