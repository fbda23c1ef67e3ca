"""Which prompts a model was fitted on: fingerprints of their ids, which are kept with its weights."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ebrm.errors import ModelError

#: "text": hashes of the prompts' texts, the same in all data. "data": names that came with imported features.
IdKind = Literal["text", "data"]
_TEXT = re.compile(r"[0-9a-f]{16}")
#: Counted, not named: the same id stands for another prompt in other data.
_COUNTED = re.compile(r"(?:pair-|row-)?\d+")
_TENSOR = "fitted_prompts."


def id_kind(ids: Iterable[str]) -> IdKind | None:
    """What prompt ids stand for: "text" where all have 16 hexadecimal digits; None where there are none, or numbers."""
    known = set(ids)
    if not known:
        return None
    if all(_TEXT.fullmatch(name) for name in known):
        return "text"
    return None if any(_COUNTED.fullmatch(name) for name in known) else "data"


@dataclass(frozen=True, eq=False)
class FittedPrompts:
    """The set of prompts that a model was fitted on.

    Attributes:
        kind: what their ids are.
        fingerprints: the first 64 bits of each id's SHA-256, ascending int64 [m].
    """

    kind: IdKind
    fingerprints: Tensor

    @classmethod
    def of(cls, ids: Sequence[str]) -> FittedPrompts | None:
        """The set of these ids; None where they name no prompts (`id_kind`)."""
        kind = id_kind(ids)
        return None if kind is None else cls(kind, torch.unique(_fingerprints(set(ids))))

    def __len__(self) -> int:
        return len(self.fingerprints)

    def contains(self, ids: Sequence[str], kind: IdKind | None) -> NDArray[np.bool_] | None:
        """Whether each of these ids [n] of a kind is in the set; None where the set's ids are of another kind."""
        if kind != self.kind:
            return None
        asked = _fingerprints(ids)
        place = torch.searchsorted(self.fingerprints, asked).clamp(max=max(len(self) - 1, 0))
        return (self.fingerprints[place] == asked).numpy()

    def tensors(self) -> dict[str, Tensor]:
        """As they are stored beside the weights."""
        return {_TENSOR + self.kind: self.fingerprints}

    @classmethod
    def taken_from(cls, tensors: dict[str, Tensor]) -> FittedPrompts | None:
        """Take the set out of stored tensors, which keep the weights; None where there is none.

        Raises:
            ModelError: they are no fingerprints, or of both kinds.
        """
        kinds: tuple[IdKind, ...] = ("text", "data")
        found = [cls(kind, tensors.pop(_TENSOR + kind)) for kind in kinds if _TENSOR + kind in tensors]
        for one in found:
            prints = one.fingerprints
            ascending = prints.dtype == torch.int64 and prints.dim() == 1 and bool((prints[1:] > prints[:-1]).all())
            if not ascending or len(found) > 1:
                raise ModelError(
                    f"the tensor {_TENSOR}{one.kind} ({prints.dtype}, {list(prints.shape)}) is not the one list of "
                    "ascending whole numbers that fingerprints of prompts are"
                )
        return found[0] if found else None


def _fingerprints(ids: Iterable[str]) -> Tensor:
    first = [sha256(name.encode("utf-8", "surrogatepass")).digest()[:8] for name in ids]
    return torch.tensor([int.from_bytes(part, "big", signed=True) for part in first], dtype=torch.int64)
