"""Evaluation of rewards on benchmarks, pools and held-out pairs, with intervals and significance tests."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
