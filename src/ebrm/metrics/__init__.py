"""Metrics of rewards: plain functions of arrays; those with an interval take a `Bootstrap`.

Conventions of all of them. Rows are lists, NumPy arrays or tensors. `cluster` [n] labels what is resampled together,
usually prompts; None: every row by itself, or each item, group or prompt where rows have one. An interval is NaN where
fewer than two clusters are behind it. Nothing depends on the order of rows. Rows that are empty or not finite raise a
DataError, shapes that do not fit a ValueError, settings outside their range a ConfigError; each says what it saw and
where.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
