"""One shard: a safetensors file holding `embedding` [m, d] and `reward` [m], and many shards read as one matrix.

Runs of rows are mapped a piece at a time, scattered ones read one by one (docs/performance.md). Nothing stays mapped or
open, so neither memory nor the number of open files grows with the features.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Sequence
from contextlib import ExitStack
from io import FileIO
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from ebrm.errors import FeaturesError
from ebrm.utils.stored import fits, parse_json
from ebrm.utils.tensors import load_tensors, sealed

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_HEADER_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

#: Bytes of a file mapped at a time: they count as this process's memory while they are.
_MAPPED_BYTES = 32 * 2**20
#: Files open at a time while scattered rows are read.
_OPEN_FILES = 256


def _place(number: int) -> dict[str, str]:
    return {"shard": str(number)}


def shard_bytes(embedding: Tensor, reward: Tensor, number: int = 0) -> bytes:
    """Content of the file of shard `number`, sealed by its SHA-256; equal tensors give equal bytes."""
    tensors = {"embedding": embedding.contiguous(), "reward": reward.contiguous()}
    # The number is in the checksum alone: several texts in a header stand in any order, which differs from run to run.
    return save(tensors, {"sha256": sealed(tensors, _place(number))["sha256"]})


def shard_size(rows: int, embedding_size: int, dtype: str) -> int:
    """Bytes of a shard's tensors (its header adds about 250)."""
    return rows * (embedding_size * DTYPES[dtype].itemsize + 4)


class Shard:
    """A shard on disk of `rows` rows stored as `dtype`; its header is read and checked at once (ValueError)."""

    def __init__(self, path: Path, rows: int, embedding_size: int, dtype: str) -> None:
        self.path, self.rows, self.dtype = path, rows, DTYPES[dtype]
        with open(path, "rb") as handle:
            size = os.fstat(handle.fileno()).st_size
            if size < 8:
                raise ValueError(f"it has {size} bytes, too few for a safetensors file")
            start = 8 + int.from_bytes(handle.read(8), "little")
            header_bytes = handle.read(start - 8) if start <= size else b""
        try:
            header = parse_json(header_bytes)
            if isinstance(header, dict):
                header.pop("__metadata__", None)
            if not fits(header, "ShardHeader"):
                raise ValueError
            found = {
                name: (_HEADER_DTYPES[entry["dtype"]], list(entry["shape"]), *entry["data_offsets"])
                for name, entry in header.items()
            }
        except (ValueError, KeyError):
            raise ValueError("its header is not that of a safetensors file with `embedding` and `reward`") from None
        expected = {"embedding": (self.dtype, [rows, embedding_size]), "reward": (torch.float32, [rows])}
        for name, (number_type, shape) in expected.items():
            if found[name][:2] != (number_type, shape):
                raise ValueError(f"its `{name}` is {found[name][0]} {found[name][1]}, expected {number_type} {shape}")
            begin, end = found[name][2:]
            if not 0 <= begin <= end <= size - start or end - begin != math.prod(shape) * number_type.itemsize:
                raise ValueError(f"it has {size} bytes, and its `{name}` does not fit in them")
        if size != start + max(entry[3] for entry in found.values()):
            raise ValueError(f"it has {size} bytes, expected {start + max(entry[3] for entry in found.values())}")
        self._embedding_start, self._reward_start = (start + found[name][2] for name in ("embedding", "reward"))
        self._row_bytes = embedding_size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.rows

    def verify(self, number: int) -> None:
        """ValueError where the tensors are not those that were written for the shard of this number."""
        load_tensors(self.path, _place(number))

    def reward(self) -> Tensor:
        """Rewards of all rows, float32 [m]."""
        reward = torch.empty(self.rows)
        with open(self.path, "rb", buffering=0) as handle:
            _fill(handle, _bytes_of(reward), self._reward_start, self.path)
        return reward

    def copy_run(self, start: int, stop: int, out: Tensor) -> None:
        """Copy rows start..stop into `out` [stop - start, d], in the number type it has."""
        step = max(1, _MAPPED_BYTES // max(self._row_bytes, 1))
        with open(self.path, "rb", buffering=0) as handle:
            for first in range(start, stop, step):
                last = min(first + step, stop)
                out[first - start : last - start] = self._map(handle.fileno(), first, last, out.shape[1])

    def _map(self, file: int, start: int, stop: int, width: int) -> Tensor:
        """Rows start..stop as stored, in pages of the file that are let go with the tensor."""
        if not self._row_bytes:
            return torch.empty(stop - start, width, dtype=self.dtype)
        begin = self._embedding_start + start * self._row_bytes
        skipped, length = begin % mmap.ALLOCATIONGRANULARITY, (stop - start) * self._row_bytes
        try:
            # Private and writable only because torch warns about read-only buffers; nothing here ever writes.
            pages = mmap.mmap(file, skipped + length, access=mmap.ACCESS_COPY, offset=begin - skipped)
        except ValueError:
            raise _cut_short(self.path) from None
        return torch.frombuffer(pages, dtype=self.dtype, count=(stop - start) * width, offset=skipped).view(-1, width)

    def will_need(self, file: FileIO, start: int, stop: int) -> int:
        """Let the system begin to read rows start..stop, where it knows how; where they begin in the file."""
        begin = self._embedding_start + start * self._row_bytes
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), begin, (stop - start) * self._row_bytes, os.POSIX_FADV_WILLNEED)
        return begin


class ShardedEmbeddings:
    """Embeddings of many shards as one matrix [n, d]; a slice or LongTensor (any order) gives float32 on the CPU.

    Attributes:
        shape: `(n, d)`.
        dtype: `torch.float32`, the type of what indexing returns.
        stored_dtype: The type of the stored rows.
        block: Rows to read at once: their float32 numbers fill 8 MiB, which stay in the processor's cache.
    """

    dtype = torch.float32

    def __init__(self, shards: Sequence[Shard | Tensor], embedding_size: int) -> None:
        self._shards = list(shards)
        starts = np.cumsum([0] + [len(rows) for rows in self._shards])
        self._starts = torch.from_numpy(starts.astype(np.int64))  # [shards + 1], first row of each, then n
        self.shape = (int(starts[-1]), embedding_size)
        self.stored_dtype = self._shards[0].dtype if self._shards else torch.float32
        self.block = max(1, 2**21 // max(embedding_size, 1))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """Rows as float32 [k, d]."""
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1:
                return self._run(start, max(start, stop))
            index = torch.arange(len(self))[index] if step > 0 else torch.tensor(range(start, stop, step))
        index = torch.as_tensor(index)
        if index.dim() != 1 or (index.dtype not in (torch.int64, torch.int32) and index.numel()):
            raise TypeError(
                "embedding rows are read by a slice or a 1-D LongTensor, not by a "
                f"{index.dtype} of shape {list(index.shape)}"
            )
        index = index.to("cpu", torch.int64)
        index = torch.where(index < 0, index + len(self), index)
        if index.numel() and (int(index.min()) < 0 or int(index.max()) >= len(self)):
            raise IndexError(f"embedding index out of range for {len(self)} rows")
        return self._gather(index)

    def _run(self, start: int, stop: int) -> Tensor:
        out = torch.empty(stop - start, self.shape[1])
        first = int(torch.searchsorted(self._starts, start, right=True)) - 1
        row = start
        while row < stop:
            begin, end = int(self._starts[first]), int(self._starts[first + 1])
            upto = min(stop, end)
            shard, into = self._shards[first], out[row - start : upto - start]
            if isinstance(shard, Tensor):
                into.copy_(shard[row - begin : upto - begin])
            else:
                shard.copy_run(row - begin, upto - begin, into)
            row, first = upto, first + 1
        return out

    def _gather(self, index: Tensor) -> Tensor:
        ordered, position = index.sort(stable=True)  # neighbors on disk are read together, shard by shard
        stored = torch.empty(len(index), self.shape[1], dtype=self.stored_dtype)
        bounds = torch.searchsorted(ordered, self._starts).tolist()
        wanted = [number for number in range(len(self._shards)) if bounds[number] < bounds[number + 1]]
        for few in (wanted[first : first + _OPEN_FILES] for first in range(0, len(wanted), _OPEN_FILES)):
            with ExitStack() as files:
                reads = []
                for number in few:
                    shard, place = self._shards[number], slice(bounds[number], bounds[number + 1])
                    inside = ordered[place] - self._starts[number]
                    if isinstance(shard, Tensor):
                        stored[place] = shard.index_select(0, inside)
                        continue
                    file = files.enter_context(open(shard.path, "rb", buffering=0))
                    for at, start, stop in _stretches(inside):
                        into = stored[place.start + at : place.start + at + stop - start]
                        reads.append((file, into, shard.will_need(file, start, stop), shard.path))
                for file, into, offset, path in reads:
                    _fill(file, _bytes_of(into), offset, path)
        if torch.equal(ordered, index):
            return stored.to(torch.float32)
        out = torch.empty(len(index), self.shape[1])
        out[position] = stored.to(torch.float32)
        return out


def _stretches(rows: Tensor) -> list[tuple[int, int, int]]:
    """Ascending rows as (place in `rows`, first row, last row + 1) of neighbors that follow one another."""
    numbers = rows.numpy()
    begins = np.concatenate([[0], np.flatnonzero(np.diff(numbers) != 1) + 1, [len(numbers)]])
    return [(int(a), int(numbers[a]), int(numbers[a]) + int(b - a)) for a, b in zip(begins, begins[1:], strict=False)]


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor, to be written to."""
    return tensor.view(-1).view(torch.uint8).numpy().data


def _fill(file: FileIO, into: memoryview, offset: int, path: Path) -> None:
    file.seek(offset)
    while len(into):
        count = file.readinto(into)
        if not count:
            raise _cut_short(path)
        into = into[count:]


def _cut_short(path: Path) -> FeaturesError:
    return FeaturesError(
        f"{path} has become shorter since these features were opened. Is something else writing there? Open them again."
    )
