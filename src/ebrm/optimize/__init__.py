"""Advantages, policy losses, rejection sampling, weights, best of n and KL-tilted policies: functions over arrays."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
