"""Numbers checked before they are computed with: in float64, or refused with the place of the first bad one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebrm.errors import DataError

#: Numbers as a tensor, a NumPy array or a (nested) list.
ArrayLike = Tensor | np.ndarray | Sequence[Any]


def as_tensor(values: ArrayLike, what: str, device: torch.device | str | None = None) -> Tensor:
    """Numbers as a tensor: tensors keep their dtype, arrays theirs, lists of floats are float64.

    Args:
        values: a tensor, a NumPy array or a (nested) list of numbers or bools.
        what: what one of them is called, for messages ("reward").
        device: where the tensor shall be; None: where it is, and the CPU for arrays and lists.

    Raises:
        TypeError: anything else.
    """
    if isinstance(values, Tensor):
        return values if device is None else values.to(device)
    try:
        array = np.array(None if isinstance(values, str | bytes | dict | set) else values)
    except ValueError:  # lists of different lengths
        array = np.array(None)
    if array.dtype.kind not in "biuf":
        seen = f"an array of {array.dtype}" if isinstance(values, np.ndarray) else f"{values!r:.60}"
        raise TypeError(f"{what}: expected numbers in a tensor, a NumPy array or a list of equal rows, got {seen}")
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)
    if array.dtype.byteorder not in "=|":
        array = array.astype(array.dtype.newbyteorder("="))
    return torch.from_numpy(array).to(device) if device is not None else torch.from_numpy(array)


def check_finite(values: ArrayLike, what: str, dims: int = 1) -> Tensor:
    """`values` in float64, if all of them are finite numbers.

    Args:
        values: a tensor, array or list of any number type, of `dims` dimensions.
        what: what one of them is called, for messages ("reward").
        dims: the number of dimensions they must have.

    Raises:
        DataError: a NaN or an infinity; the message counts them and has the index of the first.
        ValueError: another number of dimensions.
    """
    values = as_tensor(values, what)
    if values.dim() != dims:
        raise ValueError(f"{what}: expected a tensor of {dims} dimensions, got the shape {tuple(values.shape)}")
    bad = ~torch.isfinite(values)
    if bool(bad.any()):
        place, where = _first(bad)
        raise DataError(
            f"{int(bad.sum())} of {values.numel()} numbers ({what}) are not finite, the first at index {where}: "
            f"{float(values[place])}. Find out why, or leave those rows out."
        )
    return values.double()


def check_range(values: ArrayLike, low: float, high: float, what: str, dims: int = 1) -> Tensor:
    """`values` in float64, if all of them are finite and from `low` to `high`.

    Args:
        values: a tensor, array or list of any number type, of `dims` dimensions.
        low, high: the least and the highest that is allowed; the highest may be infinite.
        what: what one of them is called, for messages ("standard deviation").
        dims: the number of dimensions they must have.

    Raises:
        DataError: a number that is not finite or is outside; the message counts them and has the index of the first.
        ValueError: another number of dimensions.
    """
    numbers = check_finite(values, what, dims)
    bad = (numbers < low) | (numbers > high)
    if bool(bad.any()):
        place, where = _first(bad)
        expected = f"from {low:g} to {high:g}" if high < float("inf") else f"of at least {low:g}"
        raise DataError(
            f"{int(bad.sum())} of {numbers.numel()} numbers ({what}) are out of range, the first at index {where}: "
            f"{float(numbers[place]):g}. Expected numbers {expected}: bring them to that scale first, or leave those "
            "rows out."
        )
    return numbers


def unit_vectors(embedding: ArrayLike, what: str) -> Tensor:  # [n, d] -> [n, d]
    """Embeddings brought to length 1, in float64: their products are cosines.

    Args:
        embedding: one a row.
        what: what they are called, for messages ("responses").

    Raises:
        DataError: a number that is not finite, or an embedding of zeros, which has no direction (its index is named).
        ValueError: not [n, d].
    """
    numbers = check_finite(embedding, f"{what} [rows, d]", 2)
    nothing = (numbers == 0).all(1)
    if bool(nothing.any()):
        raise DataError(
            f"{int(nothing.sum())} of {len(nothing)} embeddings ({what}) are 0, the first at index "
            f"{_first(nothing)[1]}, and have no direction. Find out why, or leave those rows out."
        )
    numbers = numbers / numbers.abs().amax(1, keepdim=True)  # so that no square is too small or too large
    return numbers / numbers.square().sum(1, keepdim=True).sqrt()


def check_same_shape(**tensors: Tensor) -> None:
    """Raise ValueError, naming the shapes, unless all tensors have the shape of the first."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError("expected tensors of one shape, got " + ", ".join(f"{n} {s}" for n, s in shapes.items()))


def _first(bad: Tensor) -> tuple[tuple[int, ...], str]:
    """The first true position, as an index and for messages."""
    place = tuple(bad.nonzero()[0].tolist())
    return place, str(place[0]) if len(place) == 1 else str(place)
