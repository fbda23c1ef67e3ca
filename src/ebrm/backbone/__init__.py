"""The frozen reward model: load it, find its head, read (embedding, reward); one adapter a family of models."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
