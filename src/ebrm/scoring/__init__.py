"""Scoring files: rows of texts or a features folder in, the same rows with refined rewards out."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
