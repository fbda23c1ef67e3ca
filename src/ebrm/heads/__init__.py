"""Reward heads on embeddings: the energy model and others, their configs, fitting and inference.

Heads see tensors only: no texts, no reward model, no layout on disk.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
