"""What can be said of rewards in numbers, each with what it is sure of."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
