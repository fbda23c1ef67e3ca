"""Calibration of P(a > b) on held-out pairs, and abstention: which comparisons are sure enough for a stated risk.

Confidence of a comparison is max(P, 1 - P), and its uncertainty 1 - confidence.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
