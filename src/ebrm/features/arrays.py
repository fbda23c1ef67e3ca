"""Named arrays in files that other tools wrote: npy, npz, safetensors, Parquet. Nothing pickled is ever read."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ebrm.errors import FeaturesError

SUFFIXES = (".npy", ".npz", ".safetensors", ".parquet")


class Column:
    """One named array, possibly in several files, which then follow one another in the order of the files.

    Arrays in npy and safetensors files stay on disk until a part of them is asked for; those in npz and Parquet files
    are in memory.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.parts: list[Any] = []  # NumPy arrays or tensors, joined along their first axis
        self.files: list[Path] = []

    def add(self, part: Any, file: Path) -> None:
        """Append what `file` holds under this name."""
        self.parts.append(part)
        self.files.append(file)

    def __len__(self) -> int:
        """Entries along the first axis."""
        return sum(len(part) for part in self.parts)

    def require_numbers(self) -> None:
        """Refuse text, dates and objects.

        Raises:
            FeaturesError: Naming the file and the type found.
        """
        for part, file in zip(self.parts, self.files, strict=True):
            kind = "f" if isinstance(part, Tensor) else part.dtype.kind
            if kind not in "fiu":
                raise FeaturesError(f"{file}: `{self.name}` holds {part.dtype}; expected numbers.")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole; parts of different shapes were refused when read."""
        return (len(self), *self.parts[0].shape[1:])

    def tensor(self, start: int, stop: int) -> Tensor:
        """Entries start..stop as float32."""
        rows, begin = [], 0
        for part in self.parts:
            low, high = max(start - begin, 0), min(stop - begin, len(part))
            if low < high:
                piece = part[low:high]
                if not isinstance(piece, Tensor):
                    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused as such
                        piece = torch.from_numpy(np.array(piece, np.float32))
                rows.append(piece.to(torch.float32))
            begin += len(part)
        return torch.cat(rows) if rows else torch.empty(0, *self.shape[1:])

    def values(self) -> np.ndarray:
        """The whole as a NumPy array: numbers as they are, text as str objects, missing as None or NaN."""
        parts = []
        for part in self.parts:
            if isinstance(part, Tensor):
                part = part.float().numpy() if part.dtype == torch.bfloat16 else part.numpy()
            if part.dtype.kind == "S":
                part = np.char.decode(part, "utf-8")
            parts.append(part.astype(object) if part.dtype.kind == "U" else part)
        return np.concatenate(parts)


def list_files(source: str | Path | Sequence[str | Path]) -> list[Path]:
    """The files of a source: itself, those of a folder by name, or several of either.

    Raises:
        FeaturesError: A file or folder that is not there, or of a format that is not read.
    """
    files: list[Path] = []
    for entry in [source] if isinstance(source, (str, Path)) else source:
        path = Path(entry)
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
            if not inside:
                raise FeaturesError(f"The folder {path} holds no {', '.join(SUFFIXES)} file to import.")
            files += inside
        elif not path.is_file():
            raise FeaturesError(f"There is no file {path} to import.")
        elif path.suffix not in SUFFIXES:
            raise FeaturesError(f"{path} is not a format that is imported; expected one of {', '.join(SUFFIXES)}.")
        else:
            files.append(path)
    return files


def read_columns(files: Sequence[Path]) -> dict[str, Column]:
    """All named arrays of `files`; an npy file's array is named by the file.

    Raises:
        FeaturesError: A file that cannot be read, an array that is pickled or has no entries axis, rows of different
            lengths, or parts that do not fit together.
    """
    columns: dict[str, Column] = {}
    for file in files:
        for name, part in _read_file(file).items():
            if len(part.shape) == 0:
                raise FeaturesError(f"{file}: `{name}` is a single value; expected an array with one entry a row.")
            column = columns.setdefault(name, Column(name))
            if column.parts and column.parts[0].shape[1:] != part.shape[1:]:
                raise FeaturesError(
                    f"`{name}` has shape {list(column.parts[0].shape)} in {column.files[0]} and {list(part.shape)} in "
                    f"{file}; parts of one array must agree in all but their number of rows."
                )
            column.add(part, file)
    return columns


def _read_file(file: Path) -> dict[str, Any]:
    try:
        if file.suffix == ".npy":
            return {file.stem: np.load(file, mmap_mode="r", allow_pickle=False)}
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as tensors:
                return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
        with open(file, "rb") as handle:
            table = pq.read_table(handle)
        return {name: _from_arrow(table.column(name), name, file) for name in table.column_names}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, SafetensorError, pa.ArrowException) as error:
        hint = " Save text as a str array, not as objects." if "object" in str(error).lower() else ""
        raise FeaturesError(f"{file} cannot be read as {file.suffix[1:]}: {error}.{hint}") from None


def _from_arrow(column: pa.ChunkedArray, name: str, file: Path) -> np.ndarray:
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        if pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind):
            return column.to_numpy()
        values = np.empty(len(column), dtype=object)
        values[:] = column.to_pylist()
        return values
    joined = column.combine_chunks()
    lengths = joined.value_lengths().to_numpy(zero_copy_only=False)
    wrong = np.flatnonzero(lengths != lengths[:1])  # a missing row has the length NaN, which is not equal to itself
    if len(wrong):
        found, first = ("nothing" if np.isnan(lengths[row]) else f"{lengths[row]:g} entries" for row in (wrong[0], 0))
        raise FeaturesError(
            f"{file}, row {wrong[0]}: `{name}` holds {found}, and row 0 holds {first}; expected the same number of "
            "entries in every row."
        )
    flat = joined.flatten()
    if flat.null_count:
        raise FeaturesError(f"{file}: `{name}` has missing entries inside its rows; expected numbers only.")
    return flat.to_numpy(zero_copy_only=False).reshape(len(column), int(lengths[0]) if len(column) else 0)
