"""Preference pairs in, from the Hub or files, as one checked schema; the text and token rules in one place."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
