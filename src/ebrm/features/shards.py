"""One shard: a safetensors file holding `embedding` [m, d] and `reward` [m], and many shards read as one matrix."""

from __future__ import annotations

import json
import mmap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_HEADER_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

# Pages of a mapped file stay in this process's resident set after they are read. Past this many bytes they are
# given back to the page cache, so that reading features larger than memory does not look (or act) like a leak.
RESIDENT_BYTES = 256 * 2**20
_FAULT_BYTES = 2 * 2**20  # what the kernel may map around one touched byte, with large pages in its cache


def shard_name(number: int) -> str:
    """File name of shard `number`, counted from 0."""
    return f"shard-{number:05d}.safetensors"


def shard_bytes(embedding: Tensor, reward: Tensor) -> bytes:
    """A shard's file content. No metadata is written, so equal tensors give equal bytes."""
    return save({"embedding": embedding.contiguous(), "reward": reward.contiguous()})


def shard_size(rows: int, embedding_size: int, dtype: str) -> int:
    """Bytes of a shard's tensors (its header adds about 150)."""
    return rows * (embedding_size * DTYPES[dtype].itemsize + 4)


class MappedShard:
    """A shard mapped into memory: nothing is read until rows are asked for.

    Raises:
        ValueError: The file is not a shard of `rows` rows, `embedding_size` columns and number type `dtype`.
    """

    def __init__(self, path: Path, rows: int, embedding_size: int, dtype: str) -> None:
        with open(path, "rb") as handle:
            size = handle.seek(0, 2)
            if size < 8:
                raise ValueError(f"it has {size} bytes, too few for a safetensors file")
            # Private and writable only because torch warns about read-only buffers; nothing here ever writes.
            self._map = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY)
        start = 8 + int.from_bytes(self._map[:8], "little")
        try:
            header = json.loads(self._map[8:start]) if start <= size else None
            fields = {name: header[name] for name in ("embedding", "reward")}  # type: ignore[index]
            found = {
                name: (_HEADER_DTYPES[entry["dtype"]], list(entry["shape"]), *entry["data_offsets"])
                for name, entry in fields.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError("its header is not that of a safetensors file with `embedding` and `reward`") from None
        expected = {
            "embedding": (DTYPES[dtype], [rows, embedding_size]),
            "reward": (torch.float32, [rows]),
        }
        for name, (number_type, shape) in expected.items():
            if found[name][:2] != (number_type, shape):
                raise ValueError(f"its `{name}` is {found[name][0]} {found[name][1]}, expected {number_type} {shape}")
            count = int(np.prod(shape))
            begin, end = found[name][2:]
            if not 0 <= begin <= end <= size - start or end - begin != count * number_type.itemsize:
                raise ValueError(f"it has {size} bytes, and its `{name}` does not fit in them")
        if size != start + max(entry[3] for entry in found.values()):
            raise ValueError(f"it has {size} bytes, expected {start + max(entry[3] for entry in found.values())}")
        self.embedding = self._view(start + found["embedding"][2], DTYPES[dtype], [rows, embedding_size])
        self.reward = self._view(start + found["reward"][2], torch.float32, [rows])

    def _view(self, offset: int, dtype: torch.dtype, shape: list[int]) -> Tensor:
        count = int(np.prod(shape))
        if count == 0:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(self._map, dtype=dtype, count=count, offset=offset).view(shape)

    def release(self) -> None:
        """Give the pages read so far back to the page cache; they are mapped again when next touched."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


class EmbeddingRows:
    """Embeddings of many shards as one matrix [n, d], read on demand and always given as float32 on the CPU.

    Indexing takes a slice or a LongTensor of positions in any order, with repeats (negative ones count from the
    end). Only the rows asked for are read; the order of the answer is the order of the index.

    Attributes:
        shape: `(n, d)`.
        dtype: `torch.float32`, what indexing returns.
        stored_dtype: What the rows are stored as.
    """

    dtype = torch.float32

    def __init__(self, shards: Sequence[MappedShard | Tensor], embedding_size: int) -> None:
        self._shards = [shard if isinstance(shard, Tensor) else shard.embedding for shard in shards]
        self._mapped = [shard if isinstance(shard, MappedShard) else None for shard in shards]
        starts = np.cumsum([0] + [len(rows) for rows in self._shards])
        self._starts = torch.from_numpy(starts.astype(np.int64))  # [shards + 1], first row of each, then n
        self.shape = (int(starts[-1]), embedding_size)
        self.stored_dtype = self._shards[0].dtype if self._shards else torch.float32
        self._touched: dict[int, int] = {}  # shard -> at most so many bytes of it are resident

    def __len__(self) -> int:
        """Number of rows."""
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
            out[row - start : upto - start] = self._shards[first][row - begin : upto - begin]
            self._touch(first, upto - row, runs=1)
            row, first = upto, first + 1
        return out

    def _gather(self, index: Tensor) -> Tensor:
        out = torch.empty(len(index), self.shape[1])
        ordered, position = index.sort(stable=True)  # neighbours on disk are read together, shard by shard
        bounds = torch.searchsorted(ordered, self._starts).tolist()
        for number, (begin, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
            if begin < end:
                rows = self._shards[number].index_select(0, ordered[begin:end] - self._starts[number])
                out[position[begin:end]] = rows.to(torch.float32)
                self._touch(number, end - begin, runs=end - begin)
        return out

    def _touch(self, number: int, rows: int, runs: int) -> None:
        if self._mapped[number] is None:
            return
        bytes_a_row = self.shape[1] * self.stored_dtype.itemsize
        touched = self._touched.get(number, 0) + rows * bytes_a_row + runs * _FAULT_BYTES
        self._touched[number] = min(touched, len(self._shards[number]) * bytes_a_row)
        if sum(self._touched.values()) > RESIDENT_BYTES:
            for shard in map(self._mapped.__getitem__, self._touched):
                if shard is not None:
                    shard.release()
            self._touched.clear()
