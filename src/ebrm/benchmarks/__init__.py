"""The public benchmarks of reward models, one file each: where the items are, and what the official score is."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
