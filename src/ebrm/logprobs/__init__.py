"""Rewards read off the log-probabilities of language models: pure functions, and what produces their input."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
