"""Exponential back-off of HTTP clients."""

from __future__ import annotations

import random

#: Seconds: the first pause, doubled each time up to the longest; and the longest Retry-After that is followed.
_FIRST, _LONGEST, _RETRY_AFTER = 0.5, 30.0, 120.0


def backoff(attempt: int, retry_after: str = "") -> float:
    """Seconds until the next try: exponential back-off with up to a fifth of jitter, at least Retry-After.

    Args:
        attempt: how many tries there were before the last, 0 or more.
        retry_after: the header of the last answer; anything but whole seconds is not followed.
    """
    pause = min(_LONGEST, _FIRST * 2.0**attempt) * random.uniform(0.8, 1.0)
    return max(pause, min(_RETRY_AFTER, float(retry_after[:9]))) if retry_after.isdecimal() else pause
