"""Probe of a reward model: its rewards of a few fixed texts, which tell what its files do not.

Another version of a library, damaged weights in memory, or a server with another model give other rewards from the same
files. The rewards are stored with features and models, and compared when these are attached to a reward model again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ebrm.backbone.identity import SERVER, BackboneIdentity

# How far a reward may move by rounding from one device, library or batch to another, in units of |reward| +
# ‖weight ∘ embedding‖₂. Hidden states in half precision drift by a few percent.
_ROUNDING = {"float64": 1e-3, "float32": 1e-3, "float16": 0.05, "bfloat16": 0.1}
_HALF = 0.1
# Ordinary texts of several lengths, so that positions, the attention's scale and every layer matter.
_PROBE = (
    "The harbor was quiet.",
    "user: How do I boil an egg?\n\nassistant: Put it into boiling water for seven minutes, then into cold water.",
    "A farmer in the north keeps forty sheep, two old dogs and one very loud rooster. Every morning she walks to the "
    "river, counts the boats, and writes their names into a small blue book. Last year the water rose twice; nobody "
    "was hurt, but the bridge had to be built again from stone.",
    "def area(r):\n    return 3.14159 * r ** 2  # 1, 2, 3: 3.14, 12.57, 28.27",
)
_LONGEST = 96  # tokens of each


def fixed_texts(tokenizer: Callable[..., Any], limit: int | None) -> list[list[int]]:
    """Token ids of the probe: fixed texts, without a chat template, cut to 96 tokens and to what the model takes."""
    most = min(limit or _LONGEST, _LONGEST)
    ids = [list(tokenizer(text, verbose=False)["input_ids"])[:most] for text in _PROBE]
    return [one for one in ids if one]


def probe_mismatch(
    stated: BackboneIdentity, here: BackboneIdentity, scale: Iterable[float], *, then: str, now: str
) -> str | None:
    """Where a measured probe is not the stated one, by more than rounding; None where it is, or where none was stated.

    Args:
        stated, here: the two identities; precision and attention decide what rounding is.
        scale: |reward| + ‖weight ∘ embedding‖₂ of each text of the probe, as measured here.
        then, now: what the two sides are called.
    """
    if not stated.probe:
        return None
    if len(stated.probe) != len(here.probe):
        return f"the probe has {len(stated.probe)} rewards {then} and {len(here.probe)} {now}"
    limit = max(_ROUNDING.get(side.dtype, _HALF) for side in (stated, here))
    if SERVER in (stated.attention, here.attention):
        limit = max(limit, _HALF)  # a server does not state its precision
    for number, (a, b, unit) in enumerate(zip(stated.probe, here.probe, scale, strict=True), 1):
        if not abs(a - b) <= limit * unit + 1e-5:
            return (
                f"the probe differs (fixed text {number} of {len(here.probe)} has the reward {a:.6g} {then} and "
                f"{b:.6g} {now}; up to {limit * unit:.2g} is rounding)"
            )
    return None
