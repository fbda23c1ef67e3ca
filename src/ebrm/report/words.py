"""Numbers and sentences as the report writes them: one format for each kind of number, everywhere."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ebrm.metrics import NO_CATEGORY, Estimate
from ebrm.utils.neutral import clean

MINUS = "\u2212"
ELLIPSIS = "\u2026"
NONE = "\u2013"
NO_BREAK = "\u00a0"
_LEFT_TO_RIGHT_MARK = "\u200e"


def shorten(text: str, length: int) -> str:
    """Put `text` on one line of at most `length` characters, an ellipsis standing for the rest."""
    line = " ".join(clean(text).split())
    return line if len(line) <= length else line[: length - 1].rstrip() + ELLIPSIS


def name_in_text(name: str, length: int = 64) -> str:
    """Write a name inside a sentence: on one line, the middle of a long one left out, its writing direction kept in."""
    line = " ".join(clean(name).split())
    if len(line) > length:
        tail = length // 2
        line = line[: length - 1 - tail].rstrip() + ELLIPSIS + line[-tail:].lstrip()
    turned = any(unicodedata.bidirectional(character) in ("R", "AL") for character in line)
    return line + _LEFT_TO_RIGHT_MARK if turned else line


def listing(parts: Sequence[str]) -> str:
    """Join parts as in a sentence: a, b and c."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def decimal(value: float | None, digits: int, sign: bool = False) -> str:
    """Write a number with a fixed number of decimals and a true minus; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return NONE
    text = f"{value:{'+' if sign else ''},.{digits}f}"
    if not re.search("[1-9]", text):  # no "-0.0"
        text = text.lstrip("+-")
    return text.replace("-", MINUS)


def percent(share: float | None) -> str:
    """Write a share as a percentage with one decimal: 0.523 is 52.3%."""
    text = decimal(None if share is None else 100 * share, 1)
    return text if text == NONE else text + "%"


def interval(low: float, high: float, digits: int, sign: bool = False) -> str:
    """Write an interval, [49.1, 55.4]."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return f"[no{NO_BREAK}interval]"
    return f"[{decimal(low, digits, sign)},{NO_BREAK}{decimal(high, digits, sign)}]"


def percent_estimate(estimate: Estimate, unit: str = "") -> str:
    """Write a share and its interval in percent, 52.3 [49.1, 55.4]; `unit` goes after the value."""
    return f"{decimal(100 * estimate.value, 1)}{unit} {interval(100 * estimate.low, 100 * estimate.high, 1)}"


def points_estimate(estimate: Estimate, unit: str = "") -> str:
    """Write a difference of shares in percentage points, signed: +2.3 [+0.9, +3.7]."""
    value = decimal(100 * estimate.value, 1, sign=True)
    return f"{value}{unit} {interval(100 * estimate.low, 100 * estimate.high, 1, sign=True)}"


def too_few(number: int, smallest: float | None, noun: str = "pair") -> str:
    """Say that so few pairs tell nothing, and the smallest difference (a share) that they could show; None: not any."""
    return f"{too_few_of(number, noun)}; {could_be_seen(smallest)}"


def too_few_of(number: int, noun: str, of: str = "") -> str:
    """Say that so few tell nothing: `12 held-out pairs of 5 prompts are too few to tell`."""
    return f"{count(number, noun)}{of and f' of {of}'} {'is' if number == 1 else 'are'} too few to tell"


def could_be_seen(smallest: float | None) -> str:
    """Say which difference (a share) could be seen; None: not any."""
    if smallest is None:
        return "no difference at all could be seen"
    return f"only a difference of about {decimal(100 * smallest, 0)} points or more could be seen"


def p_value(value: float) -> str:
    """Write a p-value: p = 0.031, or p < 0.001."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def p_number(value: float | None) -> str:
    """Write a p-value without its name: 0.031, or <0.001; a dash where there is none."""
    return "<0.001" if value is not None and value < 0.001 else decimal(value, 3)


def count(number: int, noun: str) -> str:
    """Write a number of things: 1 pair, 3,012 pairs."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def reward_digits(rewards: Iterable[float] | np.ndarray) -> int:
    """Decimals that show a reward to about a hundredth of the rewards' spread (0 to 8)."""
    values = np.asarray(rewards, dtype=np.float64)
    spread = float(values.std()) if values.size else 0.0
    if not (math.isfinite(spread) and spread > 0):
        return 3
    return min(8, max(0, round(2 - math.log10(spread))))


def group_name(name: str, noun: str) -> str:
    """Name a group of pairs; those without a `noun` (category, source) are "(no category)"."""
    return f"(no {noun})" if name == NO_CATEGORY else name


def setting_rows(settings: Mapping[str, Any]) -> list[list[str]]:
    """Write settings as rows of a name and a value; nested ones are named by their path, `network.size`."""
    return [[name, _setting(value)] for name, value in _flat(settings)]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _setting(value: Any) -> str:
    if value is None or (isinstance(value, list | tuple | Mapping) and not value):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(_setting(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
