from __future__ import annotations

import gc
import json
import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.linear import linear_features
from tests.terminal import ebrm, write_lines
from tests.tiny import save_rm

from ebrm.backbone import Backbone, load_backbone
from ebrm.benchmarks import Benchmark, Item, Score, Terms, open_file
from ebrm.data import TextConfig
from ebrm.errors import DataError, FeaturesError, ModelError
from ebrm.evaluation import BenchmarkTexts, TextCache, read_pool, score_function, tokens_of
from ebrm.evaluation import score_models as models
from ebrm.evaluation.score_models import NOT_READ, open_models
from ebrm.features import FeatureConfig, open_features
from ebrm.fitting import fit
from ebrm.heads import EnergyConfig, LinearConfig, NetworkConfig, TrainingConfig
from ebrm.model import EnergyRewardModel


def item(name: str, prompt: str, *responses: str) -> Item:
    gold = tuple(float(place == 0) for place in range(len(responses)))
    return Item(name, ({"role": "user", "content": prompt},), responses, gold, "", f"made:{name}")


def no_terms(items, rewards, ties):
    return Terms((), np.empty(0, int), np.empty(0, int), np.empty(0))


def made(*items: Item) -> Benchmark:
    return Benchmark("made", "Made", "made in code", items, (Score("overall", "overall", {}),), no_terms)


ITEMS = made(item("1", "Say alpha.", "alpha", "beta", "gamma delta"), item("2", "Say zeta.", "zeta", "eta"))


def opened(names, cache, benchmark=ITEMS, **more):
    texts = BenchmarkTexts.of(benchmark)
    found = open_models(
        [str(name) for name in names], cache, more.pop("reward_model", {}), TextConfig(**more),
        lambda model: model.read([texts], FeatureConfig()),
    )  # fmt: skip
    return found, [score for model in found for score in model.scores(texts)]


def test_base_and_refined_come_from_one_reading(model: Path, tmp_path: Path):
    found, scores = opened([model], tmp_path)
    assert [(score.name, score.base) for score in scores] == [("tiny", None), ("m", "tiny")]
    expected = EnergyRewardModel.from_pretrained(model).score(
        [item.prompt for item in ITEMS.items for _ in item.responses],
        [r for item in ITEMS.items for r in item.responses],
    )
    for score, values in zip(scores, (expected.base_reward, expected.reward), strict=True):
        assert score.reward.shape == (2, 3) and np.isnan(score.reward[1, 2]) and not score.unscored
        np.testing.assert_allclose(score.reward[~np.isnan(score.reward)], values, atol=1e-4)
    np.testing.assert_allclose(scores[1].std[~np.isnan(scores[1].std)], expected.std, atol=1e-4)
    assert scores[1].interval.shape == (2, 3, 2) and scores[1].interval_level == 0.9
    wins = scores[1].probability(np.array([0, 1]), np.array([0, 0]), np.array([2, 1]))
    energy = EnergyRewardModel.from_pretrained(model)
    assert wins[0] == pytest.approx(energy.prefer(ITEMS.items[0].prompt, "alpha", "gamma delta"), abs=1e-4)
    assert found[0].load is None  # the reward model was let go


def test_a_second_run_loads_no_reward_model(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    _, first = opened([model], tmp_path)
    monkeypatch.setattr("ebrm.backbone.load.load_backbone", lambda *_: pytest.fail("the reward model was loaded"))
    _, again = opened([model], tmp_path)
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.reward, other.reward)


@pytest.mark.parametrize("changed", ["config.json", "tokenizer.json", "model.safetensors"])
def test_kept_rewards_of_a_reward_model_that_has_changed_are_not_used(
    rm: Path, pairs: Path, tmp_path: Path, changed: str
):
    moved = Path(shutil.copytree(rm, tmp_path / "rm"))
    model = tmp_path / "m"
    fit(str(moved), str(pairs), head=LinearConfig()).model.save_pretrained(model)
    opened([model], tmp_path / "cache")
    if changed == "config.json":
        config = json.loads((moved / changed).read_text())
        (moved / changed).write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    elif changed == "tokenizer.json":
        (moved / changed).write_text((moved / changed).read_text() + "\n")
    else:
        save_rm(moved, "llama", seed=9)
    with pytest.raises(ModelError, match="has changed since rewards were read from it: the reward model differs"):
        opened([model], tmp_path / "cache")
    shutil.rmtree(moved)
    opened([model], tmp_path / "cache")  # nothing is there that could differ


def test_models_on_one_reward_model_share_it(rm: Path, model: Path, features: Path, tmp_path: Path):
    other = tmp_path / "other" / "model"
    shutil.copytree(model, other)
    found, scores = opened([rm, model, features, other], tmp_path / "cache")
    assert len(found) == 1 and len(list((tmp_path / "cache").iterdir())) == 1
    assert [score.name for score in scores] == ["tiny", "m", "other/model"]
    assert found[0].texts.parts[0].path == features


def layers_of(found) -> list[list[int] | None]:
    return [model.about["reward_model"].get("layers") for model in found]


def fitted_with(layers: str, rm: Path, pairs: Path, folder: Path) -> Path:
    """A features folder read with some layers, and a model fitted on it at `folder` / "m"."""
    ran = ebrm("features", "--backbone", rm, "--data", pairs, "--out", folder / "f", "--layers", layers, "-q")
    assert ran.code == 0, ran.err
    head = EnergyConfig(network=NetworkConfig(joint_widths=(6,)), training=TrainingConfig(epochs=1))
    fit(folder / "f", head=head).model.save_pretrained(folder / "m")
    return folder / "m"


@pytest.fixture(scope="module")
def bare(rm: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model on the pooled position alone, its features beside it; by default block 1 of the two is read as well."""
    return fitted_with("none", rm, pairs, tmp_path_factory.mktemp("none"))


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The layers of each reward model that is loaded, by name or for an energy model; never two at a time."""
    made: list[tuple[int, ...]] = []
    alive: list[weakref.ref] = []

    def load(*arguments, **more):
        gc.collect()
        assert not any(reference() for reference in alive), "two reward models in memory"
        backbone = load_backbone(*arguments, **more)
        made.append(backbone.identity.layers)
        alive.append(weakref.ref(backbone))
        return backbone

    monkeypatch.setattr(models, "load_backbone", load)
    monkeypatch.setattr("ebrm.backbone.load.load_backbone", load)
    return made


@pytest.mark.parametrize(
    ("layers", "stored", "loaded"),
    [("none", None, [(1,), ()]), ("0.5,1", [1, 2], [(1,), (1, 2)]), ("0.5", [1], [(1,)])],
)
def test_a_reward_model_is_read_once_with_the_layers_of_its_energy_model(
    layers: str, stored: list[int] | None, loaded: list[tuple[int, ...]], rm: Path, pairs: Path, tmp_path: Path, loads
):
    fitted = fitted_with(layers, rm, pairs, tmp_path)
    loads.clear()  # of the fit's own
    for names in ([rm, fitted], [fitted, rm]):
        cache = tmp_path / f"cache of {names[0].name} first"
        found, scores = opened(names, cache)
        assert loads == loaded
        loads.clear()
        assert len(found) == 1 and len(list(cache.iterdir())) == 1 and len(list(cache.glob("*/texts/*"))) == 1
        assert layers_of(found) == [stored]
        assert [(score.name, score.base) for score in scores] == [("tiny", None), ("m", "tiny")]
        assert len(found[0].texts.reward) == 5  # every text, once
    _, (alone,) = opened([rm], tmp_path / "alone")
    np.testing.assert_allclose(scores[0].reward, alone.reward, atol=1e-5)  # whatever else is read, rewards are these
    _, (_, energy) = opened([fitted], tmp_path / "energy alone")
    np.testing.assert_allclose(scores[1].reward, energy.reward, atol=1e-5)
    loads.clear()
    found, _ = opened([rm, fitted], cache)
    assert found[0].texts.unread(BenchmarkTexts.of(ITEMS).texts) == []
    assert len(list(cache.glob("*/texts/*"))) == 1  # nothing was read again


def test_a_reward_model_alone_is_read_with_the_layers_that_fits_read(rm: Path, tmp_path: Path, loads):
    found, _ = opened([rm], tmp_path)
    assert layers_of(found) == [[1]] and loads == [(1,)]
    found, _ = opened([rm], tmp_path / "other", reward_model={"layers": ()})
    assert layers_of(found) == [None]


def test_a_copy_of_the_reward_model_is_the_same(rm: Path, bare: Path, tmp_path: Path, loads):
    copy = shutil.copytree(rm, tmp_path / "copy")
    found, _ = opened([bare, copy], tmp_path / "cache")
    assert len(found) == 1 and loads == [(1,), ()]


def test_a_reward_model_joins_features_with_other_layers(rm: Path, bare: Path, tmp_path: Path):
    found, (score,) = opened([rm, bare.parent / "f"], tmp_path / "cache")
    assert layers_of(found) == [None] and found[0].texts.parts[0].path == bare.parent / "f"
    assert np.isfinite(score.reward[0]).all() and not score.unscored  # the benchmark is not in the features


@pytest.mark.parametrize("unlike", ["text rule", "dtype", "weights"])
def test_another_reading_keeps_its_own_layers(unlike: str, rm: Path, bare: Path, tmp_path: Path, loads):
    more = {
        "text rule": {"truncation": "prompt_left"},
        "dtype": {"reward_model": {"dtype": "bfloat16"}},
        "weights": {},
    }[unlike]
    other = save_rm(tmp_path / "other", "llama", seed=1) if unlike == "weights" else rm
    found, _ = opened([bare, other], tmp_path / "cache", **more)
    assert layers_of(found) == [None, [1]] and loads == [(1,), ()]


def test_energy_models_with_other_layers_are_read_apart(rm: Path, pairs: Path, bare: Path, tmp_path: Path, loads):
    deep = fitted_with("1", rm, pairs, tmp_path / "deep")
    loads.clear()  # of the fit's own
    found, scores = opened([rm, bare, deep], tmp_path / "cache")
    assert layers_of(found) == [None, [2]] and loads == [(1,), (), (2,)]
    assert [(score.name, score.base) for score in scores] == [
        ("tiny", None), (f"{bare.parent.name}/m", "tiny"), ("tiny (2)", None), ("deep/m", "tiny (2)"),
    ]  # fmt: skip
    np.testing.assert_allclose(scores[0].reward, scores[2].reward, atol=1e-5)


def test_imported_features_are_of_no_known_reward_model(rm: Path, features: Path, tmp_path: Path):
    bare = shutil.copytree(features, tmp_path / "f")
    manifest = json.loads((bare / "manifest.json").read_text())
    (bare / "manifest.json").write_text(json.dumps(manifest | {"backbone": {"name": str(rm)}, "text": None}))
    texts = BenchmarkTexts.of(ITEMS)
    found = open_models([str(bare), str(rm)], tmp_path / "cache", {}, TextConfig(),
                        lambda model: model.read([texts], FeatureConfig()))  # fmt: skip
    assert len(found) == 2 and len(found[1].scores(texts)) == 1


def test_different_reward_models_keep_the_order_given(rm: Path, model: Path, tmp_path: Path):
    second = save_rm(tmp_path / "second", "bert")
    found, scores = opened([second, model], tmp_path / "cache")
    assert [score.name for score in scores] == ["second", "tiny", "m"]
    assert isinstance(found[0].texts, TextCache) and found[0].texts.path != found[1].texts.path


def test_a_base_called_like_its_energy_model_is_told_apart(rm: Path, model: Path, tmp_path: Path):
    twin = tmp_path / "tiny"
    shutil.copytree(model, twin)
    _, scores = opened([twin], tmp_path / "cache")
    assert [score.name for score in scores] == ["tiny (base)", "tiny"]
    assert scores[1].base == "tiny (base)"


def test_one_reward_model_under_two_text_rules_has_two_names(rm: Path, model: Path, tmp_path: Path):
    _, scores = opened([model, rm], tmp_path, truncation="prompt_left")
    assert [(score.name, score.base) for score in scores] == [("tiny", None), ("m", "tiny"), ("tiny (2)", None)]


def test_texts_that_are_too_long_are_unscored_with_the_reason(rm: Path, tmp_path: Path):
    long = "word " * 200
    benchmark = made(*ITEMS.items, item("3", "Say all.", long, "none"), item("4", "Say some.", "some", long))
    _, (score,) = opened([rm], tmp_path, benchmark)
    assert score.unscored == dict.fromkeys((2, 3), "longer than the 128 tokens that the RM reads")
    assert np.isnan(score.reward[2, 0]) and np.isfinite(score.reward[2, 1])


def test_a_features_folder_serves_what_it_holds(features: Path, pairs: Path, tmp_path: Path):
    from ebrm.data import load_preferences

    rows = list(load_preferences(str(pairs)))[:5]
    items = [
        Item(str(n), row.prompt, (row.chosen, row.rejected), (1.0, 0.0), "", row.row) for n, row in enumerate(rows)
    ]
    _, (score,) = opened([features], tmp_path, made(*items, *ITEMS.items))
    assert score.unscored == {5: "not in the features given", 6: "not in the features given"}
    assert np.isfinite(score.reward[:5, :2]).all()
    with pytest.raises(FeaturesError, match="hold none of the 5 texts of Made"):
        opened([features], tmp_path)


def test_a_model_of_imported_features_asks_for_features(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    energy = EnergyRewardModel.from_pretrained(model)
    values = energy.record.to_dict() | {"text_rule": None, "backbone": {"name": "imported"}}
    bare = EnergyRewardModel(energy.head, type(energy.record).from_dict(values))
    bare.save_pretrained(tmp_path / "bare")
    with pytest.raises(ModelError, match="fitted on features made elsewhere"):
        opened([tmp_path / "bare"], tmp_path / "cache")


def test_names_on_the_hub_are_asked_for(monkeypatch: pytest.MonkeyPatch):
    asked = []

    def file_exists(name: str, file: str) -> bool:
        asked.append((name, file))
        return name == "owner/energy"

    monkeypatch.setattr(models, "file_exists", file_exists)
    assert models._is_energy("owner/energy") and not models._is_energy("owner/plain") and not models._is_energy("demo")
    assert asked == [("owner/energy", "energy.safetensors"), ("owner/plain", "energy.safetensors")]

    class AnyLibrarysError(Exception):
        """What the network libraries raise is of no common class."""

    def refuse(name: str, file: str) -> bool:
        raise AnyLibrarysError("offline")

    monkeypatch.setattr(models, "file_exists", refuse)
    assert not models._is_energy("owner/energy")
    monkeypatch.setattr(models, "try_to_load_from_cache", lambda name, file: f"/cache/{name}/{file}")
    assert models._is_energy("owner/energy")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a/m", "b/n"], ["m", "n"]),
        (["a/m", "b/m"], ["a/m", "b/m"]),
        (["out/model", "owner/rm-1"], ["out/model", "rm-1"]),
        (["model", "demo"], ["model", "demo"]),
        (["a/b/m/", "./c/m"], ["b/m", "c/m"]),
    ],
)
def test_names_are_as_short_as_they_can_be(names, expected):
    assert list(models.short_names(names).values()) == expected


def test_any_function_of_prompt_and_response_is_a_scorer():
    scores = score_function("length", lambda prompts, responses: [float(len(r)) for r in responses], ITEMS)
    np.testing.assert_array_equal(scores.reward, [[5, 4, 11], [4, 3, np.nan]])
    with_none = score_function("none", lambda prompts, responses: [None, *[1.0] * 4], ITEMS)
    assert np.isnan(with_none.reward[0, 0])
    with pytest.raises(ModelError, match="gave 1 rewards for 5 texts"):
        score_function("short", lambda prompts, responses: [1.0], ITEMS)


@pytest.fixture
def graded_pool(tmp_path: Path) -> Benchmark:
    rows = [
        {
            "prompt": f"How much is {n}?",
            "responses": [f"{n}", f"{n + 1}", "some"][: 2 + n % 2],
            "gold": [1.0, 0.25, 0][: 2 + n % 2],
        }
        for n in range(6)
    ]
    rows[4]["responses"] = ["word " * 300, "no"]
    return open_file(write_lines(tmp_path / "pool.jsonl", rows))


def test_responses_are_read_as_the_features_were(
    features: Path, model: Path, graded_pool: Benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = read_pool(open_features(features), graded_pool, tmp_path / "cache", {})
    assert found.left_out == {NOT_READ: 1} and found.gold.shape == (5, 3) and found.count == 15
    assert found.prompt.tolist() == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 4, 4, 4]
    texts = [(item.prompt, text) for k, item in enumerate(graded_pool.items) if k != 4 for text in item.responses]
    reading, _ = EnergyRewardModel.from_pretrained(model).backbone.read_texts(*zip(*texts, strict=True))
    torch.testing.assert_close(found.base, reading.reward, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.embedding, reading.embedding, atol=2e-3, rtol=2e-3)  # kept in half precision
    assert bool((found.length > 3).all())
    table = found.table(found.base)
    np.testing.assert_array_equal(np.isfinite(table), np.isfinite(found.gold))
    assert table[1, 2] == pytest.approx(float(found.base[4]))

    monkeypatch.setattr(Backbone, "read", lambda *_: pytest.fail("a text was read again"))
    again = read_pool(open_features(features), graded_pool, tmp_path / "cache", {})
    assert again.count == 0 and torch.equal(again.embedding, found.embedding)


def test_imported_features_know_no_reward_model(graded_pool: Benchmark, tmp_path: Path) -> None:
    imported = linear_features(4)
    with pytest.raises(DataError, match="made elsewhere"):
        read_pool(imported, graded_pool, tmp_path, {})
    assert tokens_of(imported) is None


def test_lengths_of_features(features: Path) -> None:
    opened = open_features(features)
    tokens = tokens_of(opened)
    assert tokens is not None and tokens.shape == (len(opened),) and tokens.min() > 0
