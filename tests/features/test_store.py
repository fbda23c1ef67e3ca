from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from ebrm.errors import FeaturesError
from ebrm.features import FeatureConfig, Features, Pairs, open_features, save_features
from ebrm.utils.files import read_json, write_json


def made(n: int = 6, d: int = 3, **identity) -> Features:
    generator = torch.Generator().manual_seed(0)
    pairs = Pairs.build([0, 2, 4], [1, 3, 0], ["p", "q", "p"], source=["s", None, "t"], strength=[None, 1.0, 2.0])
    return Features.from_tensors(
        torch.randn(n, d, generator=generator), torch.randn(n, generator=generator), pairs, **identity
    )


def test_pairs_left_bare_are_prompts_of_their_own_with_nothing_known():
    pairs = Pairs.build([0, 1], [2, 3])
    assert len(pairs) == 2 and len(set(pairs.prompt_id)) == 2
    for name in ("source", "category", "split", "where"):
        assert getattr(pairs, name).tolist() == [None, None]
    assert np.isnan(pairs.strength).all() and not pairs.rm_training.any()
    types = (pairs.chosen.dtype, pairs.rejected.dtype, pairs.strength.dtype, pairs.rm_training.dtype)
    assert types == (np.int64, np.int64, np.float32, np.bool_)


def test_take_keeps_every_column_together():
    pairs = Pairs.build(
        [0, 1, 2], [3, 4, 5], ["a", "b", "c"], source="xyz", category="uvw", strength=[1, 2, 3], split="rst",
        where="lmn", rm_training=[True, False, True],
    )  # fmt: skip
    for index in ([2, 0], np.array([True, False, True]), [], np.array([1, 1])):
        expected = np.arange(3)[np.asarray(index, dtype=None if len(index) else int)]
        taken = pairs.take(index)
        assert len(taken) == len(expected)
        for name in vars(pairs):
            assert getattr(taken, name).tolist() == getattr(pairs, name)[expected].tolist()


def test_pair_columns_of_other_lengths_or_names_are_defects():
    with pytest.raises(ValueError, match="rejected"):
        Pairs.build([0, 1], [2])
    with pytest.raises(TypeError, match="color"):
        Pairs.build([0], [1], color=["red"])


def test_features_in_memory():
    features = made()
    assert (len(features), features.embedding_size, features.path) == (6, 3, None)
    index = torch.tensor([5, 0, 5])
    assert torch.equal(features.embedding(index), features.embeddings[:][index])
    assert features.manifest["complete"] and features.manifest["pairs"] == 3


@pytest.mark.parametrize(
    ("embedding", "reward", "pairs", "said"),
    [
        (torch.zeros(3), torch.zeros(3), ([0], [1]), r"expected \[n, d\] and \[n\]"),
        (torch.zeros(3, 2), torch.zeros(2), ([0], [1]), r"\[3, 2\] and the reward \[2\]"),
        (torch.tensor([[0.0], [torch.nan]]), torch.zeros(2), ([0], [1]), "embedding of item 1 is NaN"),
        (torch.zeros(2, 2), torch.tensor([torch.inf, 0]), ([0], [1]), "reward of item 0 is NaN or infinite"),
        (torch.zeros(2, 2), torch.zeros(2), ([0, 1], [1, 2]), "Pair 1 has rejected = 2, but items are numbered 0 to 1"),
        (torch.zeros(2, 2), torch.zeros(2), ([-1], [1]), "Pair 0 has chosen = -1"),
        (torch.zeros(2, 2), torch.zeros(2), ([0, 1], [1, 1]), "Pair 1 has item 1 as both"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(embedding, reward, pairs, said):
    with pytest.raises(FeaturesError, match=said):
        Features.from_tensors(embedding, reward, Pairs.build(*pairs))


RM = {"name": "a/rm", "revision": "main", "weights_fingerprint": "1" * 64, "head_module": "score", "dtype": "bfloat16"}
TEXT = {"template": "plain", "template_sha256": "2" * 64, "max_length": 100}


def test_check_accepts_the_same_model_and_text_rule_under_any_name():
    features = made(backbone=RM, text=TEXT)
    features.check(RM, TEXT)
    features.check(None, None)
    features.check(RM | {"name": "/models/rm", "revision": None, "dtype": "float32"}, None)


@pytest.mark.parametrize(
    ("backbone", "text", "said"),
    [
        (
            RM | {"weights_fingerprint": "3" * 64},
            TEXT,
            r"The reward model does not fit: weights_fingerprint is .1{64}. for these features and .3{64}. for what",
        ),
        (RM | {"layers": [9, 19]}, None, r"layers is \[\] for these features and \[9, 19\] for what they are to be"),
        (RM | {"head_module": "v_head"}, None, 'head_module is "score" for these features and "v_head"'),
        (None, TEXT | {"max_length": 99}, "The text rule does not fit: max_length is 100 for these features and 99"),
        (RM, TEXT | {"template_sha256": "4" * 64}, "template_sha256 is"),
    ],
)
def test_check_refuses_others_naming_both_sides(backbone, text, said):
    with pytest.raises(FeaturesError, match=said):
        made(backbone=RM, text=TEXT).check(backbone, text)


def test_imported_features_are_checked_by_what_they_state():
    features = made(backbone={"name": "a/rm"})
    features.check(RM, TEXT)
    with pytest.raises(FeaturesError, match='name is "a/rm" for these features and "b/rm"'):
        features.check(RM | {"name": "b/rm"}, TEXT)


@pytest.fixture
def folder(tmp_path):
    save_features(made(), tmp_path / "f", FeatureConfig(shard_rows=2))
    return tmp_path / "f"


@pytest.mark.parametrize("verify", [True, False])
def test_what_was_written_is_read(folder, verify):
    features, known = open_features(folder, verify=verify), made()
    assert torch.equal(features.embedding(slice(None)), known.embedding(slice(None)))
    assert torch.equal(features.reward, known.reward)
    for name in vars(known.pairs):
        np.testing.assert_array_equal(getattr(features.pairs, name), getattr(known.pairs, name))
    assert features.pairs.prompt_id.dtype.kind == "U"
    assert features.path == folder and features.embedding_size == 3 and len(features) == 6


def test_no_folder_and_no_features(tmp_path):
    with pytest.raises(FeaturesError, match="There is no folder"):
        open_features(tmp_path / "none")
    with pytest.raises(FeaturesError, match="there is no manifest.json"):
        open_features(tmp_path)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("name", ["shard-00001.safetensors", "pairs.parquet", "items.parquet"])
def test_missing_and_shortened_files_are_always_named(folder, name, verify):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-1])
    with pytest.raises(FeaturesError, match=rf"{name} is damaged: it has \d+ bytes, expected {len(content)}"):
        open_features(folder, verify=verify)
    (folder / name).unlink()
    with pytest.raises(FeaturesError, match=f"{name} is missing"):
        open_features(folder, verify=verify)


@pytest.mark.parametrize("name", ["shard-00002.safetensors", "pairs.parquet", "items.parquet"])
def test_changed_bytes_are_found_by_their_checksum(folder, name):
    content = bytearray((folder / name).read_bytes())
    content[-20] ^= 4
    (folder / name).write_bytes(content)
    with pytest.raises(FeaturesError, match=f"{name} is damaged: its SHA-256"):
        open_features(folder)


def test_all_faults_are_told_at_once(folder):
    (folder / "shard-00000.safetensors").unlink()
    (folder / "shard-00002.safetensors").write_bytes(b"")
    with pytest.raises(FeaturesError, match="shard-00002.* is damaged.*") as told:
        open_features(folder)
    assert "shard-00000.safetensors is missing" in str(told.value) and "shard-00001" not in str(told.value)


@pytest.mark.parametrize("name", ["shard-00001.safetensors", "pairs.parquet"])
def test_a_file_that_is_vouched_for_but_not_what_it_should_be(folder, name):
    content = b"x" * (folder / name).stat().st_size
    (folder / name).write_bytes(content)
    with pytest.raises(FeaturesError, match=name):
        open_features(folder, verify=False)


def test_pairs_that_point_nowhere_are_refused(folder):
    manifest = read_json(folder / "manifest.json")
    manifest["items"], manifest["files"] = 4, {k: v for k, v in manifest["files"].items() if "00002" not in k}
    write_json(folder / "manifest.json", manifest)
    with pytest.raises(FeaturesError, match="Pair 2 has chosen = 4, but items are numbered 0 to 3"):
        open_features(folder)
    write_json(folder / "manifest.json", manifest | {"pairs": 2})
    with pytest.raises(FeaturesError, match="has 3 pairs, but the manifest has 2"):
        open_features(folder)


def test_a_folder_may_hold_other_files_and_be_moved(folder, tmp_path):
    (folder / "README.md").write_text("Made by hand.")
    folder.rename(tmp_path / "elsewhere")
    assert len(open_features(tmp_path / "elsewhere")) == 6


def test_the_manifest_is_json_that_people_can_read(folder):
    text = (folder / "manifest.json").read_text()
    assert json.loads(text)["format"] == "ebrm-features" and "\n  " in text
