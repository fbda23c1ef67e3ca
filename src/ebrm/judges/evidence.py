"""Principles that feedback really states: the span that a judge cites has to be in it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ebrm.errors import ConfigError, DataError
from ebrm.utils.extras import install_hint
from ebrm.utils.validation import check_setting


def evidence_filter(spans: Sequence[str], feedback: Sequence[str], threshold: float = 60.0) -> Tensor:  # [n] bool
    """Whether each cited span is in its feedback, nearly word by word (RLBFF, arXiv 2509.21319).

    True where RapidFuzz's `partial_ratio` (0 … 100: the best match of the shorter text inside the longer one) is above
    `threshold`; the paper's 60 dropped 2.2% of its principles. An empty span is evidence of nothing: False.

    Args:
        spans: what was cited [n].
        feedback: what it was cited from [n].
        threshold: 0 … 100.

    Raises:
        DataError: lists of other lengths. ConfigError: threshold, or the extra `judges` is not installed.
    """
    check_setting("threshold", threshold, at_least=0, at_most=100)
    if len(spans) != len(feedback):
        raise DataError(f"There are {len(spans)} spans and feedback for {len(feedback)}; give one for each.")
    try:
        from rapidfuzz.fuzz import partial_ratio
    except ImportError as error:
        raise ConfigError(f"The filter of evidence needs RapidFuzz ({install_hint('judges')}).") from error
    found = [bool(span) and partial_ratio(span, text) > threshold for span, text in zip(spans, feedback, strict=True)]
    return torch.tensor(found, dtype=torch.bool)
