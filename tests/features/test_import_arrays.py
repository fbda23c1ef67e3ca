from __future__ import annotations

import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from tests.features.fakes import contents

from ebrm.errors import FeaturesError
from ebrm.features import FeatureConfig, import_features, open_features
from ebrm.features.import_arrays import list_files, make_pairs, read_columns

GENERATOR = np.random.default_rng(0)
EMBEDDING = GENERATOR.normal(size=(10, 4)).astype(np.float32)
WEIGHT = GENERATOR.normal(size=4).astype(np.float32)
REWARD = EMBEDDING @ WEIGHT + np.float32(0.5)
SMALL = FeatureConfig(shard_rows=4)
HEAD = {"head_weight": WEIGHT, "head_bias": 0.5}


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
    np.savez(
        tmp_path / "double.npz", **arrays | {"embedding": EMBEDDING.astype(np.float64), "reward": REWARD.astype(float)}
    )
    columns = arrays | {"embedding": EMBEDDING.tolist()}
    (tmp_path / "parquet").mkdir()
    for number, (start, stop) in enumerate(((0, 3), (3, 10))):
        part = pa.table({name: value[start:stop] for name, value in columns.items()})
        pq.write_table(part, tmp_path / "parquet" / f"{number}.parquet")
    kinds = {"list": pa.list_(pa.float32()), "large": pa.large_list(pa.float64()), "fixed": pa.list_(pa.float32(), 4)}
    for name, kind in kinds.items():
        parquet(tmp_path / f"{name}.parquet", **arrays | {"embedding": pa.array(EMBEDDING.tolist(), kind)})
    sources = ("npy", "x.npz", "x.safetensors", "parquet", "double.npz", *(f"{name}.parquet" for name in kinds))
    for number, source in enumerate(sources):
        made = import_features(tmp_path / source, tmp_path / f"f{number}", SMALL)
        assert made.pairs.chosen.tolist() == [1, 3, 5, 7, 9] and made.pairs.rejected.tolist() == [0, 2, 4, 6, 8]
        names = ["items.parquet", "pairs.parquet", *(f"shard-0000{n}.safetensors" for n in range(3))]
        found = contents(tmp_path / f"f{number}")
        assert {name: found[name] for name in names} == {name: contents(tmp_path / "f0")[name] for name in names}


def test_columns_may_have_other_names_and_others_are_left(tmp_path, caplog):
    np.savez(tmp_path / "x.npz", hidden=EMBEDDING, score=REWARD[:, None], embedding=np.zeros(3), logits=np.zeros(10))
    with caplog.at_level(logging.WARNING):
        made = import_features(tmp_path / "x.npz", tmp_path / "f", columns={"embedding": "hidden", "reward": "score"})
    assert torch.equal(made.embedding(slice(None)), torch.from_numpy(EMBEDDING)) and made.reward.shape == (10,)
    assert "Not imported: embedding, logits" in caplog.text
    assert "rows taken as chosen, rejected" in made.manifest["pairing"]


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


def test_rewards_of_the_head_pass(tmp_path):
    save_npz(tmp_path / "x.npz", head_weight=WEIGHT[None], head_bias=np.array([0.5]))
    import_features(tmp_path / "x.npz", tmp_path / "f", SMALL)
    import_features(save_npz(tmp_path / "y.npz"), tmp_path / "g", SMALL, **HEAD)


def test_numbers_after_the_heads_input_are_free(tmp_path):
    longer = np.concatenate([EMBEDDING, GENERATOR.normal(size=(10, 3)).astype(np.float32)], axis=1)
    source = save_npz(tmp_path / "x.npz", embedding=longer)
    made = import_features(source, tmp_path / "f", SMALL, **HEAD)
    assert torch.equal(made.embedding(slice(None)), torch.from_numpy(longer))
    part = HEAD | {"head_weight": WEIGHT[:3]}  # a part of a head is not the head
    for out, embedding, head in (("g", np.roll(longer, 3, axis=1), HEAD), ("h", longer, part)):
        with pytest.raises(FeaturesError, match=r"The reward of row \d is"):
            import_features(save_npz(tmp_path / "y.npz", embedding=embedding), tmp_path / out, SMALL, **head)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_rounding_of_embedding_and_reward_passes(tmp_path, kind):
    tensors = {"embedding": torch.from_numpy(EMBEDDING).to(kind), "reward": torch.from_numpy(REWARD).bfloat16()}
    save_file(tensors, tmp_path / "x.safetensors")
    import_features(tmp_path / "x.safetensors", tmp_path / "f", head_weight=WEIGHT, head_bias=0.5)


def with_one(values: np.ndarray, row: int, value: float) -> np.ndarray:
    changed = values.astype(np.float64)
    changed[row] = value
    return changed


NO_RATINGS = [
    ("rating", np.ones(9), r"`rating` has shape \[9\]; expected \[10\] \(one entry a row\)"),
    ("ratings", np.ones((9, 2)), r"`ratings` has shape \[9, 2\]; expected \[10, attributes\]"),
    ("rating", np.full(10, np.inf), "Row 0 has an infinite `rating`"),
    ("rating", np.array(list("abcdefghij")), "`rating` holds object; expected numbers"),
    ("label", np.array([0.5, 1.5, 1]), "cannot be used: 1 of 3 labels of pairs are not prob.* first at index 1"),
    ("weight", np.array([1, 1, -1]), "1 of 3 weights of pairs are below 0, the first at index 2"),
    ("margin", np.array([1, np.nan, 0]), "Pair 1 has margin = nan; expected a number"),
]
NOT_THE_HEADS = r"The reward of row \d is .*, but head_weight · embedding \+ head_bias is"


@pytest.mark.parametrize(
    ("changes", "options", "said"),
    [
        *(({"reward": reward.astype(np.float32)}, HEAD, NOT_THE_HEADS) for reward in (
            REWARD + 0.1, -REWARD, np.roll(REWARD, 1), np.clip(REWARD, -0.5, 0.5), 2 * REWARD,
        )),
        ({"reward": with_one(REWARD, 9, REWARD[9] + 3)}, HEAD, "The reward of row 9 .*1 of 2 rows from 8 on differ"),
        ({"embedding": with_one(EMBEDDING, 6, np.inf)}, {}, "The embedding of row 6 is NaN or infinite"),
        ({"reward": with_one(REWARD, 6, np.inf)}, {}, "The reward of row 6 is NaN or infinite"),
        ({"reward": with_one(REWARD, 3, 1e300)}, {}, "The reward of row 3 is NaN or infinite"),
    ],
)  # fmt: skip
def test_numbers_that_cannot_be_are_named_by_their_row_over_all_shards(tmp_path, changes, options, said):
    with pytest.raises(FeaturesError, match=said):
        import_features(save_npz(tmp_path / "x.npz", **changes), tmp_path / "f", SMALL, **options)


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
        ({"rating": REWARD, "ratings_a": REWARD}, {}, "Ratings are in rating and in ratings_NAME; give one"),
        ({"chosen": np.array([99, 0, 0])}, {}, "Entry 0 of `chosen` is 99"),
        ({"reward": np.array(list("abcdefghij"))}, {}, "x.npz: `reward` holds <U1; expected numbers"),
        (
            {"embedding": EMBEDDING[:0], "reward": REWARD[:0], "chosen": None, "rejected": None},
            {},
            "The import holds no pair",
        ),
        *(({name: value}, {}, said) for name, value, said in NO_RATINGS),
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


# Files and arrays


MATRIX = np.arange(12, dtype=np.float32).reshape(4, 3)
NAMES = ["a", "b\0", "🙂", ""]


def parquet(path, **columns):
    pq.write_table(pa.table(columns), path, row_group_size=3)
    return path


def test_text_columns_become_str(tmp_path):
    np.savez(tmp_path / "z.npz", t=np.array(NAMES), b=np.array([b"x", b"yy", b"", b"z"]))
    parquet(tmp_path / "p.parquet", t=["a", None, "🙂", ""], k=[True, False, True, True])
    columns = read_columns([tmp_path / "z.npz"])
    assert columns["t"].values().tolist() == [name.rstrip("\0") for name in NAMES]
    assert columns["b"].values().tolist() == ["x", "yy", "", "z"]
    columns = read_columns([tmp_path / "p.parquet"])
    assert columns["t"].values().tolist() == ["a", None, "🙂", ""]
    assert columns["k"].values().tolist() == [True, False, True, True]


def test_parts_in_several_files_follow_one_another(tmp_path):
    parts = [MATRIX[:1], MATRIX[1:1], MATRIX[1:]]
    for number, part in enumerate(parts):
        np.savez(tmp_path / f"{number}.npz", m=part, n=np.arange(len(part)))
    column = read_columns(list_files(tmp_path))["m"]
    assert len(column) == 4
    for start in range(5):
        for stop in range(start, 5):
            assert column.tensor(start, stop).tolist() == MATRIX[start:stop].tolist()


def test_half_precision_is_read_and_large_arrays_stay_on_disk(tmp_path):
    halves = {"m": torch.from_numpy(MATRIX).bfloat16(), "h": torch.from_numpy(MATRIX).half()}
    save_file(halves, tmp_path / "s.safetensors")
    columns = read_columns([tmp_path / "s.safetensors"])
    assert columns["m"].tensor(0, 4).tolist() == columns["h"].tensor(0, 4).tolist() == MATRIX.tolist()
    assert columns["m"].values().tolist() == MATRIX.tolist()
    np.save(tmp_path / "m.npy", MATRIX)
    assert isinstance(read_columns([tmp_path / "m.npy"])["m"].parts[0], np.memmap)


def test_files_are_found_by_name_and_in_order(tmp_path):
    for name in ("b.npy", "a.npy", "notes.txt"):
        (tmp_path / name).write_text("")
    assert [file.name for file in list_files(tmp_path)] == ["a.npy", "b.npy"]
    assert [file.name for file in list_files([tmp_path / "b.npy", str(tmp_path / "a.npy")])] == ["b.npy", "a.npy"]
    (tmp_path / "empty").mkdir()
    refused = {
        "none.npz": "There is no file",
        "empty": "holds no .npy, .npz, .safetensors, .parquet",
        "notes.txt": "notes.txt is not a format that is imported",
    }
    for name, said in refused.items():
        with pytest.raises(FeaturesError, match=said):
            list_files(tmp_path / name)


@pytest.mark.parametrize("suffix", ["npy", "npz", "safetensors", "parquet"])
@pytest.mark.parametrize("content", [b"", b"nothing of the kind", b"\x93NUMPY\x01\x00"])
def test_damaged_files_are_refused(tmp_path, suffix, content):
    (tmp_path / f"x.{suffix}").write_bytes(content)
    with pytest.raises(FeaturesError, match=f"x.{suffix} cannot be read as {suffix}"):
        read_columns([tmp_path / f"x.{suffix}"])


def test_nothing_pickled_is_read(tmp_path):
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(FeaturesError, match="Save text as a str array"):
        read_columns([tmp_path / "x.npy"])
    np.savez(tmp_path / "x.npz", a=np.array(["t", None], dtype=object))
    with pytest.raises(FeaturesError, match="Save text as a str array"):
        read_columns([tmp_path / "x.npz"])


def test_arrays_that_do_not_fit_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", m=MATRIX)
    np.savez(tmp_path / "b.npz", m=MATRIX[:, :2])
    with pytest.raises(FeaturesError, match=r"has shape \[4, 3\] in .*a.npz and \[4, 2\] in .*b.npz"):
        read_columns([tmp_path / "a.npz", tmp_path / "b.npz"])
    np.save(tmp_path / "s.npy", np.float32(3))
    with pytest.raises(FeaturesError, match="`s` is a single value"):
        read_columns([tmp_path / "s.npy"])


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.large_list(pa.float32()), pa.list_(pa.float32(), 1)])
@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([[1.0], [3.0, 4.0]], "row 1: `m` holds 2 entries, and row 0 holds 1 entries"),
        ([[1.0], [2.0], None], "row 2: `m` holds nothing, and row 0 holds 1 entries"),
        ([None, [1.0]], "row 0: `m` holds nothing"),
        ([None, None], "row 0: `m` holds nothing"),
        ([[1.0], [None]], "`m` has missing entries inside"),
    ],
)
def test_rows_of_different_lengths_are_refused(tmp_path, rows, kind, said):
    if pa.types.is_fixed_size_list(kind) and any(row and len(row) == 2 for row in rows):
        pytest.skip("lists of a fixed size cannot differ in size")
    parquet(tmp_path / "p.parquet", m=pa.array(rows, kind))
    with pytest.raises(FeaturesError, match=f"p.parquet.* {said}"):
        read_columns([tmp_path / "p.parquet"])
    parquet(tmp_path / "p.parquet", m=pa.array([], kind))
    assert len(read_columns([tmp_path / "p.parquet"])["m"]) == 0


# Pairs


def arrays(**columns):
    return {
        name: np.array(values, dtype=object if any(v is None or isinstance(v, str) for v in values) else None)
        for name, values in columns.items()
    }


def sides(pairs):
    return list(zip(pairs.chosen.tolist(), pairs.rejected.tolist(), strict=True))


def test_without_columns_rows_alternate_and_that_is_said(caplog):
    with caplog.at_level(logging.INFO):
        pairs, how = make_pairs({}, 6)
    assert sides(pairs) == [(0, 1), (2, 3), (4, 5)] and len(set(pairs.prompt_id)) == 3
    assert how == "rows taken as chosen, rejected, chosen, …" and how in caplog.text
    assert pairs.where.tolist() == ["rows 0, 1", "rows 2, 3", "rows 4, 5"]
    with pytest.raises(FeaturesError, match="number is odd .7."):
        make_pairs({}, 7)


def test_by_row_numbers():
    pairs, _ = make_pairs(arrays(chosen=[4, 0, 1, 5], rejected=[3, 1, 2, 6]), 7)
    assert sides(pairs) == [(4, 3), (0, 1), (1, 2), (5, 6)]
    # Rows 0, 1 and 2 answer one prompt; a split must not take them apart.
    assert pairs.prompt_id.tolist() == ["row-000003", "row-000000", "row-000000", "row-000005"]


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)).filter(lambda p: p[0] != p[1]), min_size=1, max_size=12)
)
def test_pairs_share_a_prompt_exactly_if_rows_connect_them(edges):
    pairs, _ = make_pairs({"chosen": np.array([a for a, _ in edges]), "rejected": np.array([b for _, b in edges])}, 10)
    groups: list[set[int]] = []
    for edge in edges:
        joined = set(edge).union(*(group for group in groups if group & set(edge)))
        groups = [group for group in groups if not group & joined] + [joined]
    for i, a in enumerate(edges):
        for j, b in enumerate(edges):
            together = any(a[0] in group and b[0] in group for group in groups)
            assert (pairs.prompt_id[i] == pairs.prompt_id[j]) == together


def test_by_pair_ids_in_order_of_first_appearance():
    pairs, _ = make_pairs(arrays(pair_id=["x", "y", "y", "x"], is_chosen=[0, 1, 0, 1]), 4)
    assert sides(pairs) == [(3, 0), (1, 2)] and pairs.prompt_id.tolist() == ["x", "y"]
    pairs, _ = make_pairs(arrays(pair_id=[7, 7], is_chosen=[False, True]), 2)
    assert sides(pairs) == [(1, 0)] and pairs.prompt_id.tolist() == ["7"]


@pytest.mark.parametrize(("order", "values"), [("rank", [2, 1, 3, 1, 2, 1]), ("gold", [0.5, 0.9, -1, 3, 2, 3])])
def test_the_best_of_a_group_against_every_worse_one(order, values):
    pairs, how = make_pairs(arrays(group_id=["a", "a", "a", "b", "b", "b"], **{order: values}), 6)
    assert sides(pairs) == [(1, 0), (1, 2), (3, 4)]
    assert pairs.prompt_id.tolist() == ["a", "a", "b"]
    assert order in how and "1 tied" in how
    pairs, _ = make_pairs(arrays(group_id=[1, 2, 1, 2], gold=[0, 5, 1, 4]), 4)  # groups need not lie together
    assert sides(pairs) == [(2, 0), (1, 3)]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=2, max_size=20))
def test_rank_is_gold_upside_down_and_every_pair_is_right(rows):
    group, gold = np.array(rows).T
    try:
        pairs, _ = make_pairs({"group_id": group, "gold": gold}, len(rows))
    except FeaturesError:
        assert all(len({v for g, v in rows if g == k}) <= 1 for k in range(4))
        return
    by_rank, _ = make_pairs({"group_id": group, "rank": -gold}, len(rows))
    assert sides(by_rank) == sides(pairs)
    assert (group[pairs.chosen.numpy()] == group[pairs.rejected.numpy()]).all()
    assert (gold[pairs.chosen.numpy()] > gold[pairs.rejected.numpy()]).all()
    assert all(gold[c] == gold[group == group[c]].max() for c in pairs.chosen.tolist())


def test_other_columns_are_the_chosen_rows():
    columns = arrays(
        pair_id=[0, 0, 1, 1], is_chosen=[0, 1, 1, 0], prompt_id=["p", "p", "q", "q"], source=["a", "b", "c", None],
        category=["1", "2", None, "4"], strength=[1.0, 2.0, 3.0, 4.0], split=["test", "train", "test", "train"],
        rm_training=[False, True, False, True], where=["w0", "w1", "w2", "w3"],
    )  # fmt: skip
    pairs, _ = make_pairs(columns, 4)
    assert pairs.prompt_id.tolist() == ["p", "q"] and pairs.source.tolist() == ["b", "c"]
    assert pairs.category.tolist() == ["2", None] and pairs.strength.tolist() == [2.0, 3.0]
    assert pairs.split.tolist() == ["train", "test"] and pairs.rm_training.tolist() == [True, False]
    assert pairs.where.tolist() == ["w1", "w2"]


@pytest.mark.parametrize("missing", [None, np.nan])
def test_what_is_not_known_of_a_pair_may_be_missing(missing):
    pairs, _ = make_pairs(arrays(strength=[missing, 1.0, 2.0, 3.0], rm_training=[missing, 1, 1, 1]), 4)
    assert pairs.strength[0].isnan() and pairs.strength[1] == 2 and pairs.rm_training.tolist() == [False, True]


def test_with_row_numbers_other_columns_may_be_the_pairs():
    columns = arrays(chosen=[0, 1, 2], rejected=[1, 2, 3], prompt_id=["p", "p", "p"], source=["a", "b", "c", "d"])
    pairs, _ = make_pairs(columns, 4)
    assert pairs.source.tolist() == ["a", "b", "c"] and set(pairs.prompt_id) == {"p"}
    pairs, _ = make_pairs(arrays(chosen=[0, 3], rejected=[1, 2], source=["a", "b"], category=["0", "1", "2", "3"]), 4)
    assert pairs.source.tolist() == ["a", "b"] and pairs.category.tolist() == ["0", "3"]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"chosen": [0]}, "`rejected` is missing"),
        ({"is_chosen": [0, 1, 0, 1]}, "`pair_id` is missing"),
        ({"chosen": [0, 1], "rejected": [2]}, "`chosen` has 2 entries and `rejected` 1"),
        ({"chosen": [0, 4], "rejected": [1, 2]}, r"Entry 1 of `chosen` is 4, but there are 4 rows \(0 to 3\)"),
        ({"chosen": [0], "rejected": [-1]}, "Entry 0 of `rejected` is -1"),
        ({"chosen": [0.5], "rejected": [1]}, "type float64; expected row numbers"),
        ({"chosen": [0, 2], "rejected": [1, 2]}, "Pair 1 has row 2 as both"),
        ({"pair_id": [0, 0, 1, 1], "is_chosen": [1, 0, 1, 1]}, "1 of 2 pair ids .* first is 1, with 2 chosen and 0"),
        ({"pair_id": [0, 0, 0, 1], "is_chosen": [1, 0, 0, 1]}, "2 of 2 pair ids .* first is 0, with 1 chosen and 2"),
        ({"pair_id": [0, 0, 1, 1], "is_chosen": [1, 0, 2, 0]}, "Row 2 has is_chosen = 2"),
        ({"pair_id": ["a", None, "b", "b"], "is_chosen": [1, 0, 1, 0]}, "Row 1 has no `pair_id`"),
        ({"pair_id": [0, 0], "is_chosen": [1, 0, 1, 0]}, r"`pair_id` has shape \[2\]; expected \[4\]"),
        ({"group_id": [0, 0, 1, 1]}, "needs one of `rank` .* there are neither"),
        ({"group_id": [0, 0, 1, 1], "rank": [1, 2, 1, 2], "gold": [1, 2, 1, 2]}, "there are both"),
        ({"group_id": [0, 0, 1, 1], "gold": [1, np.nan, 1, 2]}, "Row 1 has no `gold`"),
        ({"group_id": [0, 0, 1, 1], "gold": [1, 1, 2, 2]}, "holds no pair"),
        ({"prompt_id": ["a", "b", "c", "c"]}, "Pair 0 .rows 0 and 1. has the prompt ids 'a' and 'b'"),
        ({"strength": [1.0, 2.0, "high", 1.0]}, "Pair 1 has strength = 'high'; expected a number, or nothing"),
        ({"rm_training": ["False", "", "", ""]}, "Pair 0 has rm_training = 'False'; expected true or false"),
        ({"source": ["a", "b"]}, r"`source` has shape \[2\]; expected \[4\]"),
        ({"chosen": [0], "rejected": [1], "source": ["a", "b"]}, r"expected \[4\] .* or \[1\] \(one a pair\)"),
    ],
)
def test_columns_that_contradict_each_other_are_refused(columns, said):
    with pytest.raises(FeaturesError, match=said):
        make_pairs(arrays(**columns), 4)


def test_soft_labels_weights_and_margins_reach_the_pairs(tmp_path):
    given = {"label": np.array([0.9, 0.5, 0]), "weight": np.array([1, 2, 0.5]), "margin": np.array([0, -1, 2.5])}
    save_npz(tmp_path / "x.npz", **given, strength=np.array([1, 2, 3]))
    made = import_features(tmp_path / "x.npz", tmp_path / "f", SMALL)
    for pairs in (made.pairs, open_features(tmp_path / "f").pairs):
        assert {name: getattr(pairs, name).tolist() for name in given} == {n: v.tolist() for n, v in given.items()}
        assert pairs.strength.tolist() == [1, 2, 3] and pairs.ratings is None
    pairs, _ = make_pairs(arrays(label=[0.9, 0.1, 0.8, 0.2], weight=[1, 2, 3, 4]), 4)  # the chosen rows'
    assert (pairs.label.tolist(), pairs.weight.tolist()) == ([0.9, 0.8], [1, 3])


RATINGS = np.stack([np.arange(10.0), np.where(np.arange(10) % 3 == 0, np.nan, 1)], 1)


@pytest.mark.parametrize(
    ("columns", "names", "expected"),
    [
        ({"rating": RATINGS[:, 1]}, ["rating"], RATINGS[:, 1:]),
        ({"ratings": RATINGS}, ["rating_0", "rating_1"], RATINGS),
        ({"ratings_help": RATINGS[:, 0], "ratings_safe": RATINGS[:, 1]}, ["help", "safe"], RATINGS),
    ],
)
def test_ratings_of_rows_need_no_pairs(tmp_path, columns, names, expected):
    for number, chosen in enumerate((None, np.array([1, 2, 8]))):
        source = save_npz(tmp_path / "x.npz", **columns, **({"chosen": None, "rejected": None} if number == 0 else {}))
        made = import_features(source, tmp_path / f"f{number}", SMALL)
        for found in (made, open_features(tmp_path / f"f{number}")):
            np.testing.assert_array_equal(found.pairs.ratings, expected)
            assert len(found.pairs) == (0 if chosen is None else 3) and found.manifest["ratings"] == names
    assert "ratings only" in open_features(tmp_path / "f0").manifest["pairing"]


def test_a_rating_that_is_missing_in_a_table_is_nan_and_one_may_have_another_name(tmp_path):
    table = {"embedding": EMBEDDING.tolist(), "reward": REWARD, "thumb": [1, None, 0, *[None] * 7]}
    pq.write_table(pa.table(table), tmp_path / "x.parquet")
    made = import_features(tmp_path / "x.parquet", tmp_path / "f", columns={"ratings_thumb": "thumb"})
    np.testing.assert_array_equal(made.pairs.ratings[:, 0], [1, np.nan, 0, *[np.nan] * 7])
    assert made.manifest["ratings"] == ["thumb"]


def test_an_archive_that_cannot_be_unpacked_is_refused_by_name(tmp_path):
    path = tmp_path / "x.npz"
    whole = save_npz(path).read_bytes()
    local, listed = b"PK\x03\x04-\x00", b"PK\x01\x02-\x03-\x00"  # then two bytes of flags and two of the compression
    assert whole.count(local) == whole.count(listed) == 4
    damaged = {
        "cut": whole[: len(whole) // 2], "empty": b"",
        "method": whole.replace(local + bytes(4), local + b"\0\0\x63\0").replace(
            listed + bytes(4), listed + b"\0\0\x63\0"
        ),
        "encrypted": whole.replace(listed + bytes(2), listed + b"\1\0"),
    }  # fmt: skip
    for how, data in damaged.items():
        assert data != whole, how
        path.write_bytes(data)
        with pytest.raises(FeaturesError, match=r"x\.npz cannot be read as npz: .*Copy it again"):
            read_columns([path])
    np.savez(path, embedding=np.array([{"a": 1}], dtype=object))
    with pytest.raises(FeaturesError, match="Save text as a str array"):
        read_columns([path])
    raw = pa.StringArray.from_buffers(2, pa.py_buffer(np.array([0, 1, 2], np.int32)), pa.py_buffer(b"a\xff"))
    pq.write_table(pa.table({"prompt_id": raw}), tmp_path / "x.parquet")
    with pytest.raises(FeaturesError, match=r"x\.parquet cannot be read as parquet: 'utf-8'"):
        read_columns([tmp_path / "x.parquet"])
