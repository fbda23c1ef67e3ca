"""Energy-based reward models: adapt a frozen reward model to preference pairs, with calibrated confidence.

Public names are imported on first use (PEP 562): `import ebrm` loads neither torch nor transformers.
"""

import sys

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)

if sys.modules.get("transformers") is not None:
    from ebrm.integrations.registration import register_or_warn

    register_or_warn()
