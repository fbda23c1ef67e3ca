"""From rewards to a training signal: bounded, centered, scaled, or charged for length."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
