from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from ebrm.errors import FeaturesError
from ebrm.features.arrays import list_files, read_columns

MATRIX = np.arange(12, dtype=np.float32).reshape(4, 3)
NAMES = ["a", "b\0", "🙂", ""]


def parquet(path, **columns):
    pq.write_table(pa.table(columns), path, row_group_size=3)
    return path


def test_every_format_gives_the_same_arrays(tmp_path):
    np.save(tmp_path / "m.npy", MATRIX)
    np.save(tmp_path / "n.npy", np.array([1, 2, 3, 4]))
    np.savez(tmp_path / "z.npz", m=MATRIX, n=np.array([1, 2, 3, 4]))
    save_file({"m": torch.from_numpy(MATRIX), "n": torch.tensor([1, 2, 3, 4])}, tmp_path / "s.safetensors")
    for name, kind in (
        ("l", pa.list_(pa.float32())),
        ("g", pa.large_list(pa.float64())),
        ("f", pa.list_(pa.float32(), 3)),
    ):
        parquet(tmp_path / f"{name}.parquet", m=pa.array(MATRIX.tolist(), kind), n=[1, 2, 3, 4])
    sources = [[tmp_path / "m.npy", tmp_path / "n.npy"]]
    sources += [[tmp_path / name] for name in ("z.npz", "s.safetensors", "l.parquet", "g.parquet", "f.parquet")]
    for files in sources:
        columns = read_columns(files)
        assert columns["m"].shape == (4, 3) and columns["n"].shape == (4,)
        assert columns["m"].tensor(1, 3).tolist() == MATRIX[1:3].tolist()
        assert columns["m"].tensor(1, 3).dtype == torch.float32
        assert columns["n"].values().tolist() == [1, 2, 3, 4]


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


def test_half_precision_is_read(tmp_path):
    save_file(
        {"m": torch.from_numpy(MATRIX).bfloat16(), "h": torch.from_numpy(MATRIX).half()}, tmp_path / "s.safetensors"
    )
    columns = read_columns([tmp_path / "s.safetensors"])
    assert columns["m"].tensor(0, 4).tolist() == columns["h"].tensor(0, 4).tolist() == MATRIX.tolist()
    assert columns["m"].values().tolist() == MATRIX.tolist()


def test_large_arrays_stay_on_disk(tmp_path):
    np.save(tmp_path / "m.npy", MATRIX)
    assert isinstance(read_columns([tmp_path / "m.npy"])["m"].parts[0], np.memmap)


def test_files_are_found_by_name_and_in_order(tmp_path):
    for name in ("b.npy", "a.npy", "notes.txt"):
        (tmp_path / name).write_text("")
    assert [file.name for file in list_files(tmp_path)] == ["a.npy", "b.npy"]
    assert [file.name for file in list_files([tmp_path / "b.npy", str(tmp_path / "a.npy")])] == ["b.npy", "a.npy"]


def test_sources_that_are_none_are_refused(tmp_path):
    with pytest.raises(FeaturesError, match="There is no file"):
        list_files(tmp_path / "none.npz")
    with pytest.raises(FeaturesError, match="holds no .npy, .npz, .safetensors, .parquet"):
        list_files(tmp_path)
    (tmp_path / "x.csv").write_text("")
    with pytest.raises(FeaturesError, match="x.csv is not a format that is imported"):
        list_files(tmp_path / "x.csv")


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
    ],
)
def test_rows_of_different_lengths_are_refused(tmp_path, rows, kind, said):
    if pa.types.is_fixed_size_list(kind) and any(row and len(row) == 2 for row in rows):
        pytest.skip("lists of a fixed size cannot differ in size")
    parquet(tmp_path / "p.parquet", m=pa.array(rows, kind))
    with pytest.raises(FeaturesError, match=f"p.parquet, {said}"):
        read_columns([tmp_path / "p.parquet"])


def test_a_file_without_rows_has_empty_arrays(tmp_path):
    parquet(tmp_path / "p.parquet", m=pa.array([], pa.list_(pa.float32())))
    assert read_columns([tmp_path / "p.parquet"])["m"].shape == (0, 0)


def test_missing_entries_are_refused(tmp_path):
    parquet(tmp_path / "p.parquet", m=pa.array([[1.0, None]], pa.list_(pa.float32())))
    with pytest.raises(FeaturesError, match="`m` has missing entries inside"):
        read_columns([tmp_path / "p.parquet"])
