"""Curation of preference pairs: filters, relabeling, weights, augmentation; pure functions over pairs and rewards."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
