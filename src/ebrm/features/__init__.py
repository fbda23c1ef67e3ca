"""Features: embeddings and base rewards on disk; identity, shards, resume, reads of what is indexed."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
