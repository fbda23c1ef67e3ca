"""How good are the rewards, how sure can one be of it, and the page that says so."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
