from __future__ import annotations

import struct
from io import FileIO
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ebrm.errors import FeaturesError
from ebrm.features import ShardedEmbeddings, shards
from ebrm.features.manifest import shard_name
from ebrm.features.shards import DTYPES, Shard, shard_bytes, shard_size


def make(
    folder: Path, sizes: list[int], width: int = 3, dtype: str = "float32"
) -> tuple[ShardedEmbeddings, torch.Tensor]:
    """Shards of the given sizes on disk as one matrix, and that matrix in memory."""
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(sum(sizes), width, generator=generator).to(DTYPES[dtype])
    mapped, start = [], 0
    for number, size in enumerate(sizes):
        path = folder / shard_name(number)
        path.write_bytes(shard_bytes(whole[start : start + size], torch.arange(start, start + size).float()))
        mapped.append(Shard(path, size, width, dtype))
        start += size
    return ShardedEmbeddings(mapped, width), whole.float()


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    return make(tmp_path_factory.mktemp("uneven"), [4, 4, 1, 4, 2])


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_a_shard_reads_back_what_was_written_and_other_tools_can_read_it(tmp_path, dtype):
    embedding, reward = torch.randn(7, 4).to(DTYPES[dtype]), torch.randn(7)
    path = tmp_path / "s.safetensors"
    path.write_bytes(shard_bytes(embedding, reward))
    shard = Shard(path, 7, 4, dtype)
    assert torch.equal(shard.reward(), reward)
    assert torch.equal(load_file(path)["embedding"], embedding)
    assert 0 < path.stat().st_size - shard_size(7, 4, dtype) < 400


@given(st.lists(st.integers(-15, 14), max_size=40))
def test_rows_come_in_the_order_of_the_index(uneven, index):
    rows, whole = uneven
    index = torch.tensor(index, dtype=torch.int64)
    assert torch.equal(rows[index], whole[index])


@given(st.slices(15))
def test_slices_mean_what_they_mean_for_a_list(uneven, cut):
    rows, whole = uneven
    assert torch.equal(rows[cut], whole[list(range(15))[cut]])


def test_shape_length_and_types(tmp_path):
    rows, whole = make(tmp_path, [3, 2], dtype="bfloat16")
    assert (len(rows), rows.shape, rows.dtype, rows.stored_dtype) == (5, (5, 3), torch.float32, torch.bfloat16)
    got = rows[torch.tensor([4, 0])]
    assert got.dtype == torch.float32 and torch.equal(got, whole[[4, 0]])
    assert ShardedEmbeddings([torch.empty(9, 4096)], 4096).block * 4096 * 4 == 8 * 2**20
    assert ShardedEmbeddings([], 10**7).block == 1


def test_what_is_given_is_a_copy(uneven):
    rows, whole = uneven
    rows[0:3].zero_()
    rows[torch.tensor([1])].zero_()
    assert torch.equal(rows[:], whole)
    with torch.inference_mode():
        assert torch.equal(rows[torch.tensor([14, 3])], whole[[14, 3]])


@pytest.mark.parametrize("index", [[15], [-16], [0, 99], [[0]], [0.5], 1, [True] * 15])
def test_an_index_out_of_range_or_of_another_kind_is_refused(uneven, index):
    wanted = torch.tensor(index)
    fits = wanted.dim() == 1 and wanted.dtype == torch.int64
    with pytest.raises(IndexError if fits else TypeError, match="15 rows" if fits else "LongTensor"):
        uneven[0][wanted]


def resident() -> int:
    """Bytes of this process's memory that are its own, and that are pages of files."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return sum(int(lines[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile", "RssShmem"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is measured through /proc")
@pytest.mark.parametrize("order", ["sequential", "random"])
def test_memory_stays_flat_while_everything_is_read(tmp_path, monkeypatch, order):
    rows, _ = make(tmp_path, [1024] * 12, width=1024)  # 48 MiB
    positions = torch.arange(len(rows))
    if order == "random":
        positions = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    rows[positions[:64]]
    before, most = resident(), 0
    for chunk in positions.split(64):
        rows[chunk] if order == "random" else rows[int(chunk[0]) : int(chunk[-1]) + 1]
        most = max(most, resident() - before)
    assert most < 16 * 2**20


def header(text: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"\0" * 7, b"\xff" * 64),
        *(header(text) for text in (b"not json", b"[]", b"{}")),
        header(b'{"embedding": 3, "reward": 4}'),
        struct.pack("<Q", 10**12) + b"{}",
        header(
            b'{"embedding":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},'
            b'"reward":{"dtype":"F32","shape":[2],"data_offsets":[24,99]}}',
            b"\0" * 99,
        ),
    ],
)
def test_what_is_no_shard_is_refused(tmp_path, content):
    path = tmp_path / "s"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="safetensors|does not fit|bytes"):
        Shard(path, 2, 3, "float32")


def test_a_shard_cut_short_or_with_other_shapes_is_refused(tmp_path):
    path = tmp_path / "s"
    whole = shard_bytes(torch.zeros(4, 3), torch.zeros(4))
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="bytes"):
        Shard(path, 4, 3, "float32")
    path.write_bytes(whole + b"\0")
    with pytest.raises(ValueError, match="expected"):
        Shard(path, 4, 3, "float32")
    path.write_bytes(whole)
    for rows, width, dtype in ((3, 3, "float32"), (4, 2, "float32"), (4, 3, "bfloat16")):
        with pytest.raises(ValueError, match="its `embedding` is"):
            Shard(path, rows, width, dtype)
    save_file({"embedding": torch.zeros(4, 3), "reward": torch.zeros(4, 1)}, path)
    with pytest.raises(ValueError, match="its `reward` is"):
        Shard(path, 4, 3, "float32")


def test_scattered_rows_of_more_shards_than_files_are_opened_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_OPEN_FILES", 3)
    rows, whole = make(tmp_path, [2] * 10)
    most, opened = 0, []

    def watch(*arguments, **options):
        nonlocal most
        opened.append(open(*arguments, **options))  # noqa: SIM115 - the code under test closes it
        most = max(most, sum(not file.closed for file in opened))
        return opened[-1]

    monkeypatch.setattr(shards, "open", watch, raising=False)
    index = torch.randperm(20, generator=torch.Generator().manual_seed(3))
    assert torch.equal(rows[index], whole[index])
    assert (len(opened), most) == (10, 3) and all(file.closed for file in opened)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted through /proc")
def test_features_at_rest_hold_no_file_open_and_nothing_mapped(tmp_path):
    before = len(list(Path("/proc/self/fd").iterdir()))
    rows, whole = make(tmp_path, [4] * 20)
    assert torch.equal(rows[:], whole) and torch.equal(rows[torch.tensor([70, 3])], whole[[70, 3]])
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("piece", [1, 5 * 2 * 6, 2**20])
def test_runs_are_mapped_in_pieces(tmp_path, monkeypatch, piece, dtype):
    monkeypatch.setattr(shards, "_MAPPED_BYTES", piece)
    rows, whole = make(tmp_path, [13, 1, 9], width=5, dtype=dtype)
    for cut in (slice(None), slice(3, 20), slice(12, 14), slice(4, 4)):
        assert torch.equal(rows[cut], whole[cut])
        with torch.inference_mode():
            assert torch.equal(rows[cut], whole[cut])


def test_runs_from_any_page_of_a_file(tmp_path):
    rows, whole = make(tmp_path, [200], width=500)  # 100 pages
    for first in range(0, 200, 7):
        assert torch.equal(rows[first : first + 9], whole[first : first + 9])


def reading_through(monkeypatch, readinto):
    """Files that `shards` opens read by `readinto(file, into)`."""

    class Watched(FileIO):
        def readinto(self, into):
            return readinto(super(), into)

    monkeypatch.setattr(shards, "open", lambda path, *_, **__: Watched(path), raising=False)


def test_neighbors_are_read_in_one_go(tmp_path, monkeypatch):
    rows, whole = make(tmp_path, [8, 8])
    reads = []
    reading_through(monkeypatch, lambda file, into: reads.append(len(into)) or file.readinto(into))
    index = torch.tensor([9, 2, 3, 10, 4, 2, 15])
    assert torch.equal(rows[index], whole[index])
    assert sorted(size // 12 for size in reads) == [1, 1, 2, 3]  # 2; 2 to 4; 9 and 10; 15


def test_a_read_that_comes_in_pieces_is_put_together(tmp_path, monkeypatch):
    rows, whole = make(tmp_path, [8])
    reading_through(monkeypatch, lambda file, into: file.readinto(into[:5]))
    assert torch.equal(rows[torch.tensor([6, 1, 2])], whole[[6, 1, 2]])


@pytest.mark.parametrize("index", [slice(None), torch.tensor([0, 7])])
def test_a_file_that_became_shorter_is_named(tmp_path, index):
    rows, _ = make(tmp_path, [8], width=2000)
    path = tmp_path / shard_name(0)
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(FeaturesError, match="shard-00000.safetensors has become shorter"):
        rows[index]
