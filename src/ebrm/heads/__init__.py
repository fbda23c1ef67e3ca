"""The heart: networks over (embedding, reward), noise and objectives, fitting, ascent, the exact posterior.

Everything here sees tensors and nothing else; it could be lifted out and used on any scalar regression.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
