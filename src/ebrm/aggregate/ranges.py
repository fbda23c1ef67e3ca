"""Numbers that have to lie in a range: in float64, or refused with the place of the first that does not."""

from __future__ import annotations

from torch import Tensor

from ebrm.errors import DataError
from ebrm.finite import finite


def within(values: Tensor, low: float, high: float, what: str, dims: int = 1) -> Tensor:
    """`values` in float64, if all of them are finite and from `low` to `high`.

    Args:
        values: a tensor of any number type, of `dims` dimensions.
        low, high: the least and the highest that is allowed; the highest may be infinite.
        what: what one of them is called, for messages ("standard deviation").
        dims: the number of dimensions they must have.

    Raises:
        DataError: a number that is not finite or is outside; the message counts them and has the index of the first.
        ValueError: another number of dimensions.
    """
    numbers = finite(values, what, dims)
    bad = (numbers < low) | (numbers > high)
    if bool(bad.any()):
        place = tuple(bad.nonzero()[0].tolist())
        where = str(place[0]) if len(place) == 1 else str(place)
        expected = f"from {low:g} to {high:g}" if high < float("inf") else f"of at least {low:g}"
        raise DataError(
            f"{int(bad.sum())} of {numbers.numel()} numbers ({what}) are out of range, the first at index {where}: "
            f"{float(numbers[place]):g}. Expected numbers {expected}: bring them to that scale first, or leave those "
            "rows out."
        )
    return numbers
