from __future__ import annotations

import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from tests.features.fakes import contents

from ebrm.errors import FeaturesError
from ebrm.features import FeatureConfig, import_features, open_features

GENERATOR = np.random.default_rng(0)
EMBEDDING = GENERATOR.normal(size=(10, 4)).astype(np.float32)
WEIGHT = GENERATOR.normal(size=4).astype(np.float32)
REWARD = EMBEDDING @ WEIGHT + np.float32(0.5)
SMALL = FeatureConfig(shard_rows=4)


def save_npz(path, **changes):
    arrays = {"embedding": EMBEDDING, "reward": REWARD, "chosen": np.array([1, 2, 8]), "rejected": np.array([0, 3, 2])}
    np.savez(path, **{name: value for name, value in (arrays | changes).items() if value is not None})
    return path


def test_rows_and_pairs_are_as_in_the_files(tmp_path):
    made = import_features(save_npz(tmp_path / "x.npz"), tmp_path / "f", SMALL, backbone_name="a/rm")
    assert torch.equal(made.embedding(slice(None)), torch.from_numpy(EMBEDDING))
    assert torch.equal(made.reward, torch.from_numpy(REWARD))
    assert made.pairs.chosen.tolist() == [1, 2, 8] and made.pairs.rejected.tolist() == [0, 3, 2]
    assert made.manifest["backbone"] == {"name": "a/rm"} and made.manifest["text"] is None
    assert made.manifest["origin"] == "imported" and "by the row numbers" in made.manifest["pairing"]
    assert (made.manifest["items"], made.manifest["pairs"], made.manifest["tokens"]) == (10, 3, None)
    assert open_features(tmp_path / "f").manifest == made.manifest


def test_every_format_gives_the_same_features(tmp_path):
    chosen = np.arange(10) % 2
    (tmp_path / "npy").mkdir()
    arrays = {"embedding": EMBEDDING, "reward": REWARD, "pair_id": np.arange(10) // 2, "is_chosen": chosen}
    for name, value in arrays.items():
        np.save(tmp_path / "npy" / f"{name}.npy", value)
    np.savez(tmp_path / "x.npz", **arrays)
    save_file({name: torch.from_numpy(value) for name, value in arrays.items()}, tmp_path / "x.safetensors")
    columns = arrays | {"embedding": EMBEDDING.tolist()}
    (tmp_path / "parquet").mkdir()
    for number, (start, stop) in enumerate(((0, 3), (3, 10))):
        part = pa.table({name: value[start:stop] for name, value in columns.items()})
        pq.write_table(part, tmp_path / "parquet" / f"{number}.parquet")
    for number, source in enumerate(("npy", "x.npz", "x.safetensors", "parquet")):
        made = import_features(tmp_path / source, tmp_path / f"f{number}", SMALL)
        assert made.pairs.chosen.tolist() == [1, 3, 5, 7, 9] and made.pairs.rejected.tolist() == [0, 2, 4, 6, 8]
        names = ["items.parquet", "pairs.parquet", *(f"shard-0000{n}.safetensors" for n in range(3))]
        found = contents(tmp_path / f"f{number}")
        assert {name: found[name] for name in names} == {name: contents(tmp_path / "f0")[name] for name in names}


def test_columns_may_have_other_names_and_others_are_left(tmp_path, caplog):
    np.savez(tmp_path / "x.npz", hidden=EMBEDDING, score=REWARD[:, None], embedding=np.zeros(3), logits=np.zeros(10))
    with caplog.at_level(logging.INFO):
        made = import_features(tmp_path / "x.npz", tmp_path / "f", columns={"embedding": "hidden", "reward": "score"})
    assert torch.equal(made.embedding(slice(None)), torch.from_numpy(EMBEDDING)) and made.reward.shape == (10,)
    assert "Not imported: embedding, logits" in caplog.text
    assert "rows taken as chosen, rejected" in made.manifest["pairing"]


def test_double_precision_becomes_single(tmp_path):
    save_npz(tmp_path / "x.npz", embedding=EMBEDDING.astype(np.float64), reward=REWARD.astype(np.float64))
    made = import_features(tmp_path / "x.npz", tmp_path / "f")
    assert torch.equal(made.embedding(slice(None)), torch.from_numpy(EMBEDDING))


def test_an_import_is_returned_or_continued_if_the_files_are_the_same(tmp_path):
    source = save_npz(tmp_path / "x.npz")
    import_features(source, tmp_path / "f", SMALL)
    before = contents(tmp_path / "f")
    (tmp_path / "f" / "shard-00001.safetensors").unlink()
    source.rename(tmp_path / "y.npz")
    import_features(tmp_path / "y.npz", tmp_path / "f", SMALL)
    assert contents(tmp_path / "f") == before
    save_npz(tmp_path / "y.npz", reward=REWARD + 1)
    with pytest.raises(FeaturesError, match="data.fingerprint is .* for what is there and .* for this run"):
        import_features(tmp_path / "y.npz", tmp_path / "f", SMALL)
    with pytest.raises(FeaturesError, match='backbone.name is "imported" for what is there and "b/rm" for this run'):
        import_features(save_npz(tmp_path / "y.npz"), tmp_path / "f", SMALL, backbone_name="b/rm")
    assert contents(tmp_path / "f") == before


@pytest.mark.parametrize("where", ["argument", "file"])
def test_rewards_of_the_head_pass(tmp_path, where):
    if where == "file":
        save_npz(tmp_path / "x.npz", head_weight=WEIGHT[None], head_bias=np.array([0.5]))
        import_features(tmp_path / "x.npz", tmp_path / "f", SMALL)
    else:
        save_npz(tmp_path / "x.npz")
        import_features(tmp_path / "x.npz", tmp_path / "f", SMALL, head_weight=WEIGHT, head_bias=0.5)


def test_numbers_after_the_heads_input_are_free(tmp_path):
    longer = np.concatenate([EMBEDDING, GENERATOR.normal(size=(10, 3)).astype(np.float32)], axis=1)
    source = save_npz(tmp_path / "x.npz", embedding=longer)
    made = import_features(source, tmp_path / "f", SMALL, head_weight=WEIGHT, head_bias=0.5)
    assert torch.equal(made.embedding(slice(None)), torch.from_numpy(longer))
    with pytest.raises(FeaturesError, match=r"The reward of row \d is"):
        import_features(
            save_npz(tmp_path / "y.npz", embedding=np.roll(longer, 3, axis=1)), tmp_path / "g", SMALL,
            head_weight=WEIGHT, head_bias=0.5,
        )  # fmt: skip
    with pytest.raises(FeaturesError, match=r"The reward of row \d is"):  # a part of a head is not the head
        import_features(source, tmp_path / "h", SMALL, head_weight=WEIGHT[:3], head_bias=0.5)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_rounding_of_embedding_and_reward_passes(tmp_path, kind):
    tensors = {"embedding": torch.from_numpy(EMBEDDING).to(kind), "reward": torch.from_numpy(REWARD).bfloat16()}
    save_file(tensors, tmp_path / "x.safetensors")
    import_features(tmp_path / "x.safetensors", tmp_path / "f", head_weight=WEIGHT, head_bias=0.5)


@pytest.mark.parametrize(
    "change",
    [lambda r: r + 0.1, lambda r: -r, lambda r: np.roll(r, 1), lambda r: np.clip(r, -0.5, 0.5), lambda r: 2 * r],
)
def test_rewards_that_are_not_the_heads_are_refused(tmp_path, change):
    source = save_npz(tmp_path / "x.npz", reward=change(REWARD).astype(np.float32))
    with pytest.raises(FeaturesError, match=r"The reward of row \d is .*, but head_weight · embedding \+ head_bias is"):
        import_features(source, tmp_path / "f", head_weight=WEIGHT, head_bias=0.5)


def test_the_row_is_counted_over_all_shards(tmp_path):
    wrong = REWARD.copy()
    wrong[9] += 3
    with pytest.raises(FeaturesError, match="The reward of row 9 .*1 of 2 rows from 8 on differ"):
        import_features(
            save_npz(tmp_path / "x.npz", reward=wrong), tmp_path / "f", SMALL, head_weight=WEIGHT, head_bias=0.5
        )


@pytest.mark.parametrize("name", ["embedding", "reward"])
def test_a_number_that_is_not_finite_is_named_by_its_row(tmp_path, name):
    wrong = {"embedding": EMBEDDING.copy(), "reward": REWARD.copy()}
    wrong[name][6] = np.inf
    with pytest.raises(FeaturesError, match=f"The {name} of row 6 is NaN or infinite"):
        import_features(save_npz(tmp_path / "x.npz", **wrong), tmp_path / "f", SMALL)


@pytest.mark.parametrize(
    ("changes", "options", "said"),
    [
        ({"reward": None}, {}, "no array `reward` to import as `reward`; the files hold chosen, embedding, rejected"),
        ({}, {"columns": {"source": "src"}}, "no array `src` to import as `source`"),
        ({}, {"columns": {"sauce": "src"}}, "There is no column 'sauce' to map"),
        ({"reward": REWARD[:9]}, {}, r"`embedding` has shape \[10, 4\] and `reward` \[9\]"),
        ({"embedding": REWARD}, {}, r"`embedding` has shape \[10\]"),
        ({"reward": EMBEDDING}, {}, r"`reward` \[10, 4\]"),
        ({}, {"head_weight": np.ones(5, np.float32)}, "`head_weight` has 5 entries and .*; expected at most 4"),
        ({}, {"head_weight": WEIGHT[:0]}, "`head_weight` has 0 entries"),
        ({}, {"head_bias": 1.0}, "`head_bias` but no `head_weight`"),
        ({"chosen": np.array([99, 0, 0])}, {}, "Entry 0 of `chosen` is 99"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path, changes, options, said):
    source = save_npz(tmp_path / "x.npz", **changes)
    with pytest.raises(FeaturesError, match=said):
        import_features(source, tmp_path / "f", **options)
    assert not (tmp_path / "f").exists()


def test_row_numbers_in_several_files_are_refused(tmp_path):
    with pytest.raises(FeaturesError, match="`chosen` is in 2 files"):
        import_features([save_npz(tmp_path / "x.npz"), save_npz(tmp_path / "y.npz")], tmp_path / "f")


def test_no_rows_are_no_pairs(tmp_path):
    source = save_npz(tmp_path / "x.npz", embedding=EMBEDDING[:0], reward=REWARD[:0], chosen=None, rejected=None)
    with pytest.raises(FeaturesError, match="The import holds no pair"):
        import_features(source, tmp_path / "f")


def test_words_where_numbers_should_be_are_refused(tmp_path):
    with pytest.raises(FeaturesError, match="x.npz: `reward` holds <U1; expected numbers"):
        import_features(save_npz(tmp_path / "x.npz", reward=np.array(list("abcdefghij"))), tmp_path / "f")


def test_double_precision_that_does_not_fit_is_refused(tmp_path):
    source = save_npz(tmp_path / "x.npz", reward=np.where(np.arange(10) == 3, 1e300, REWARD.astype(np.float64)))
    with pytest.raises(FeaturesError, match="The reward of row 3 is NaN or infinite"):
        import_features(source, tmp_path / "f")
