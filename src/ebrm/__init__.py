"""Energy-based reward models: adapt a frozen reward model to preference pairs, with calibrated confidence.

Public names are imported on first use (PEP 562): `import ebrm` loads neither torch nor transformers.
"""

import lazy_loader as lazy

from ebrm.integrations.auto_classes import register_with_transformers

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)

register_with_transformers()
