"""Numbers checked before they are computed with: in float64, or refused with the place of the first bad one."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebrm.errors import ConfigError, DataError

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


def check_finite(
    values: ArrayLike,
    what: str,
    dims: int | None = None,
    *,
    device: torch.device | str | None = None,
    nonempty: bool = False,
    **sizes: int,
) -> Tensor:
    """`values` in float64, if all of them are finite numbers and their shape is the one in `what`.

    Args:
        values: a tensor, array or list of any number type.
        what: what one of them is called, for messages, with the shape it must have ("rewards [n, a]").
        dims: the number of dimensions, where `what` has no shape; None: 1.
        device: where the tensor shall be; None: where it is.
        nonempty: refuse a tensor without numbers.
        sizes: the length that a dimension of `what` must have (`n=len(rewards)`).

    Raises:
        DataError: a NaN or an infinity; the message counts them and has the index of the first.
        TypeError: not numbers.
        ValueError: another shape.
    """
    tensor = as_tensor(values, what, device)
    _check_shape(tensor, what, dims, nonempty, sizes)
    bad = ~torch.isfinite(tensor)
    if bool(bad.any()):
        place, where = _first(bad)
        raise DataError(
            f"{int(bad.sum())} of {tensor.numel()} numbers ({what}) are not finite, the first at index {where}: "
            f"{float(tensor[place])}. Find out why, or leave those rows out."
        )
    return tensor.double()


def check_range(
    values: ArrayLike,
    low: float,
    high: float,
    what: str,
    dims: int | None = None,
    *,
    device: torch.device | str | None = None,
    nonempty: bool = False,
    **sizes: int,
) -> Tensor:
    """`values` in float64, if all of them are finite and from `low` to `high` (which may be infinite).

    The other arguments and errors are those of `check_finite`; a number outside is a DataError, too.
    """
    numbers = check_finite(values, what, dims, device=device, nonempty=nonempty, **sizes)
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


def check_mask(values: ArrayLike, what: str, device: torch.device | str | None = None, **sizes: int) -> Tensor:
    """`values` as a bool tensor of the shape in `what`; TypeError for numbers, ValueError for another shape."""
    mask = as_tensor(values, what, device)
    if mask.dtype != torch.bool:
        raise TypeError(f"{what}: expected bool, got {mask.dtype}")
    _check_shape(mask, what, None, False, sizes)
    return mask


def check_setting(
    name: str,
    value: float,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> None:
    """Raise ConfigError, naming the argument, unless `value` is a finite number within these bounds."""
    bounds = {"of at least": at_least, "above": above, "at most": at_most, "below": below}
    met = (
        math.isfinite(value)
        and (at_least is None or value >= at_least)
        and (above is None or value > above)
        and (at_most is None or value <= at_most)
        and (below is None or value < below)
    )
    if not met:
        expected = " and ".join(f"{words} {bound:g}" for words, bound in bounds.items() if bound is not None)
        raise ConfigError(f"`{name}` is {value}; expected a finite number {expected}.".replace(" .", "."))


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Raise ConfigError, naming the argument, unless `value` is one of `choices`."""
    if value not in choices:
        raise ConfigError(f"`{name}` is {value!r}; expected one of {', '.join(map(repr, choices))}.")


def match_dtype(result: Tensor, *values: ArrayLike) -> Tensor:
    """`result` in the common float type of the inputs it was computed of (of whole numbers: the default type)."""
    kind = functools.reduce(torch.promote_types, (as_tensor(value, "values").dtype for value in values))
    return result.to(kind if kind.is_floating_point else torch.get_default_dtype())


def unit_vectors(
    embedding: ArrayLike,  # [n, d]
    what: str,
    device: torch.device | str | None = None,
) -> Tensor:  # [n, d]
    """Embeddings brought to length 1, in float64: their products are cosines.

    Args:
        embedding: one a row.
        what: what they are called, for messages ("responses").

    Raises:
        DataError: a number that is not finite, or an embedding of zeros, which has no direction (its index is named).
        ValueError: not [n, d].
    """
    numbers = check_finite(embedding, f"{what} [rows, d]", device=device)
    why = "They have no direction: find out why, or leave those rows out."
    refuse((numbers == 0).all(1), f"embeddings ({what}) are 0", why)
    numbers = numbers / numbers.abs().amax(1, keepdim=True)  # so that no square is too small or too large
    return numbers / numbers.square().sum(1, keepdim=True).sqrt()


def refuse(bad: Tensor, what: str, do: str = "Correct those, or leave them out.") -> None:
    """Raise DataError where any is bad: "<count> of <all> <what>, the first at index <place>. <do>"."""
    if bool(bad.any()):
        raise DataError(f"{int(bad.sum())} of {bad.numel()} {what}, the first at index {_first(bad)[1]}. {do}")


def check_same_shape(**tensors: Tensor) -> None:
    """Raise ValueError, naming the shapes, unless all tensors have the shape of the first."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError("expected tensors of one shape, got " + ", ".join(f"{n} {s}" for n, s in shapes.items()))


def _check_shape(tensor: Tensor, what: str, dims: int | None, nonempty: bool, sizes: dict[str, int]) -> None:
    named = re.search(r"\[([^\]]*)\]", what)
    names = [name.strip() for name in named[1].split(",") if name.strip()] if named else []
    count = dims if dims is not None else len(names) if named else 1
    if tensor.dim() != count:
        raise ValueError(f"{what}: expected a tensor of {count} dimensions, got the shape {tuple(tensor.shape)}")
    wanted = {name: size for name, size in zip(names, tensor.shape, strict=False) if sizes.get(name, size) != size}
    if wanted:
        expected = " and ".join(f"{name} = {sizes[name]}" for name in wanted)
        raise ValueError(f"{what}: expected {expected}, got the shape {tuple(tensor.shape)}")
    if nonempty and not tensor.numel():
        raise ValueError(f"{what}: expected at least one number, got the shape {tuple(tensor.shape)}")


def _first(bad: Tensor) -> tuple[tuple[int, ...], str]:
    """The first true position, as an index and for messages."""
    place = tuple(bad.nonzero()[0].tolist())
    return place, str(place[0]) if len(place) == 1 else str(place)
