from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tests.features.fakes import contents

from ebrm.errors import FeaturesError
from ebrm.features import FeatureConfig, Features, open_features, read_items, save_features
from ebrm.features.store import ITEM_SCHEMA, PAIR_SCHEMA, item_bytes, pair_bytes, read_pairs, table_bytes
from ebrm.pairs import PreferencePairs
from ebrm.utils.files import write_json


def made(n: int = 6, d: int = 3, **identity) -> Features:
    generator = torch.Generator().manual_seed(0)
    pairs = PreferencePairs.of(
        [0, 2, 4], [1, 3, 0], prompt_id=["p", "q", "p"], source=["s", None, "t"], strength=[None, 1.0, 2.0]
    )
    return Features.from_tensors(
        torch.randn(n, d, generator=generator), torch.randn(n, generator=generator), pairs, **identity
    )


def same_pairs(ours: PreferencePairs, theirs: PreferencePairs) -> None:
    for name in vars(theirs):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)


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
        (torch.zeros(2, 2), torch.zeros(2), ([0, 1], [1, 2]), "1 of 2 pairs have rows beyond the 2 .* at index 1"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(embedding, reward, pairs, said):
    with pytest.raises(FeaturesError, match=said):
        Features.from_tensors(embedding, reward, PreferencePairs.of(*pairs))


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
    features.check(RM | {"layers": [9]}, TEXT)  # nothing is known of the layers that something else read
    with pytest.raises(FeaturesError, match='name is "a/rm" for these features and "b/rm"'):
        features.check(RM | {"name": "b/rm"}, TEXT)
    with pytest.raises(FeaturesError, match=r"layers is \[2\] for these features and \[\] for what"):
        made(backbone=RM | {"layers": [2]}).check(RM, TEXT)


@pytest.fixture
def folder(tmp_path):
    save_features(made(), tmp_path / "f", FeatureConfig(shard_rows=2))
    return tmp_path / "f"


@pytest.mark.parametrize("verify", [True, False])
def test_what_was_written_is_read(folder, verify):
    features, known = open_features(folder, verify=verify), made()
    assert torch.equal(features.embedding(slice(None)), known.embedding(slice(None)))
    assert torch.equal(features.reward, known.reward)
    same_pairs(features.pairs, known.pairs)
    assert features.pairs.prompt_id.dtype.kind == "U"
    assert features.path == folder and features.embedding_size == 3 and len(features) == 6


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
    if name != "items.parquet":  # which is not read here
        (folder / name).write_bytes(b"x" * len(content))
        with pytest.raises(FeaturesError, match=name):
            open_features(folder, verify=False)


def test_all_faults_are_told_at_once(folder):
    (folder / "shard-00000.safetensors").unlink()
    (folder / "shard-00002.safetensors").write_bytes(b"")
    with pytest.raises(FeaturesError, match="shard-00002.* is damaged.*") as told:
        open_features(folder)
    assert "shard-00000.safetensors is missing" in str(told.value) and "shard-00001" not in str(told.value)


def test_pairs_that_point_nowhere_are_refused(folder):
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["items"], manifest["files"] = 4, {k: v for k, v in manifest["files"].items() if "00002" not in k}
    write_json(folder / "manifest.json", manifest)
    with pytest.raises(
        FeaturesError, match="pairs.parquet does not fit the 4 items: 1 of 3 pairs have rows beyond .* index 2"
    ):
        open_features(folder)
    write_json(folder / "manifest.json", manifest | {"pairs": 2})
    with pytest.raises(FeaturesError, match="has 3 pairs, but the manifest has 2"):
        open_features(folder)


def test_a_folder_may_hold_other_files_and_be_moved(folder, tmp_path):
    with pytest.raises(FeaturesError, match="there is no manifest.json"):
        open_features(tmp_path)
    text = (folder / "manifest.json").read_text()
    assert json.loads(text)["format"] == "ebrm-features" and "\n  " in text  # for people to read
    (folder / "README.md").write_text("Made by hand.")
    folder.rename(tmp_path / "elsewhere")
    assert len(open_features(tmp_path / "elsewhere")) == 6
    with pytest.raises(FeaturesError, match="There is no folder"):
        open_features(folder)


def test_what_curation_gave_pairs_is_stored_only_where_it_is_given(tmp_path):
    known = made()
    given = {"label": [0.5, 1, 0], "weight": [2, 0.25, 1], "margin": [0.0, -0.5, 1 / 3]}
    pairs = PreferencePairs.of([0, 2, 4], [1, 3, 0], **given, strength=[None, 0.5, 3])
    save_features(known.with_pairs(pairs), tmp_path / "f")
    features = open_features(tmp_path / "f")
    same_pairs(features.pairs, pairs)
    assert torch.equal(features.reward, known.reward)
    assert pq.read_schema(tmp_path / "f" / "pairs.parquet").names == [*PAIR_SCHEMA.names, "label", "weight", "margin"]
    save_features(known, tmp_path / "g")
    assert pq.read_schema(tmp_path / "g" / "pairs.parquet").names == PAIR_SCHEMA.names
    with pytest.raises(FeaturesError, match="data.fingerprint is"):  # other pairs are other features
        save_features(known.with_pairs(pairs.select([0, 1])), tmp_path / "f")


def test_other_pairs_keep_what_is_known_of_the_items(folder, tmp_path):
    features = open_features(folder)
    curated, _ = features.pairs.after("flip", flip=[True, False, False], keep=[True, False, True], weight=[1, 1, 3])
    save_features(features.with_pairs(curated), tmp_path / "curated")
    back = open_features(tmp_path / "curated")
    assert read_items(tmp_path / "curated" / "items.parquet") == read_items(folder / "items.parquet")
    assert (back.pairs.chosen.tolist(), back.pairs.rejected.tolist(), back.pairs.weight.tolist()) == (
        [1, 4], [0, 0], [1, 3],
    )  # fmt: skip
    with pytest.raises(FeaturesError, match="do not fit these features: 1 of 1 pairs have rows beyond the 6"):
        features.with_pairs(PreferencePairs.of([0], [6]))


@pytest.mark.parametrize("pairs", [([0, 2], [1, 3]), ([], [])])
def test_ratings_of_items_are_stored_with_and_without_pairs(tmp_path, pairs):
    ratings = torch.tensor([[1.0, torch.nan], [torch.nan, torch.nan], [0.0, -2.5], [4, 5], [6, 7], [8, 9]])
    known = made().with_pairs(PreferencePairs.of(*pairs, ratings=ratings))
    save_features(known, tmp_path / "f", FeatureConfig(shard_rows=2))
    back = open_features(tmp_path / "f")
    same_pairs(back.pairs, known.pairs)
    assert back.manifest["ratings"] == ["rating_0", "rating_1"]
    assert read_items(tmp_path / "f" / "items.parquet")["prompt_id"] is not None
    before = contents(tmp_path / "f")
    save_features(back, tmp_path / "g", FeatureConfig(shard_rows=2))
    assert contents(tmp_path / "g") == before
    with pytest.raises(FeaturesError, match=r"ratings have shape \[5, 2\] for 6 items"):
        made().with_pairs(PreferencePairs.of([0], [1], ratings=ratings[:5]))


PAIRS = {
    "chosen": np.array([0, 2]),
    "rejected": np.array([1, 3]),
    "prompt_id": ["a", "b\0🙂"],
    "source": np.array(["s", None], dtype=object),
    "category": [None, None],
    "strength": np.array([np.nan, 0.25], dtype=np.float32),
    "split": ["train", "test"],
    "where": [None, "x:1"],
    "rm_training": np.array([True, False]),
}


def test_pairs_come_back_as_they_were(tmp_path):
    path = tmp_path / "key=value" / "pairs.parquet"  # a folder name that looks like a partition
    path.parent.mkdir()
    path.write_bytes(pair_bytes(PAIRS))
    back = read_pairs(path)
    assert back["chosen"].dtype == np.int64
    assert {name: values.tolist() for name, values in back.items() if name != "strength"} == {
        name: list(values) for name, values in PAIRS.items() if name != "strength"
    }
    assert back["strength"].dtype == np.float32 and np.array_equal(back["strength"], PAIRS["strength"], equal_nan=True)


def test_equal_names_of_many_pairs_are_one_object(tmp_path):
    few = {name: list(values) * 50 for name, values in PAIRS.items()} | {"split": ["tr" + "ain", None] * 50}
    (tmp_path / "p").write_bytes(pair_bytes(few))
    back = read_pairs(tmp_path / "p")
    for name in ("source", "split"):
        assert back[name].dtype == object and len({id(value) for value in back[name]}) == 2


def test_items_come_back_as_they_were_also_without_ids_of_texts(tmp_path):
    items = {"prompt_id": ["a", None], "tokens": np.array([3, 4]), "truncated": [None, 0], "text_id": ["x", None]}
    (tmp_path / "i").write_bytes(item_bytes(items, None))
    assert read_items(tmp_path / "i") == items | {"tokens": [3, 4]}
    schema = pa.schema([field for field in ITEM_SCHEMA if field.name != "text_id"])
    (tmp_path / "i").write_bytes(table_bytes(items, schema))  # as written before texts had ids
    assert read_items(tmp_path / "i")["text_id"] == [None, None]


def test_equal_tables_are_equal_bytes_and_what_cannot_be_stored_is_named():
    assert pair_bytes(PAIRS) == pair_bytes(dict(reversed(PAIRS.items())))
    with pytest.raises(FeaturesError, match="Column source"):
        pair_bytes(PAIRS | {"source": ["\ud83d", None]})


@pytest.mark.parametrize("content", [b"", b"PAR1 and then nothing", None])
def test_a_file_that_is_not_the_table_is_refused(tmp_path, content):
    path = tmp_path / "pairs.parquet"
    if content is None:
        pq.write_table(pa.table({"chosen": [1]}), path)
    else:
        path.write_bytes(content)
    with pytest.raises(FeaturesError, match="pairs.parquet cannot be read"):
        read_pairs(path)
