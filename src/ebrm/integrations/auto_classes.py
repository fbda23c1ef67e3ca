"""Make transformers' Auto classes know ebrm models, as soon as both are imported and never before.

`import ebrm` must stay light and must not import transformers. So the configuration is registered when transformers'
own registry is loaded: at once where it already is, else right after it has been. The model follows when a
configuration is made (:class:`ebrm.integrations.config.EBRMConfig`).
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import logging
import sys
from collections.abc import Sequence
from types import ModuleType

logger = logging.getLogger(__name__)

REGISTRY = "transformers.models.auto.configuration_auto"


def register_with_transformers() -> None:
    """Register now, or when transformers loads its registry. Calling it again does nothing."""
    module = sys.modules.get(REGISTRY)
    if module is not None and not getattr(getattr(module, "__spec__", None), "_initializing", False):
        _register()
    elif not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())


def _register() -> None:
    """Register; whatever goes wrong is said, and never breaks the import that brought us here."""
    try:
        from transformers import AutoConfig

        from ebrm.integrations.config import EBRMConfig

        AutoConfig.register(EBRMConfig.model_type, EBRMConfig, exist_ok=True)
    except Exception as error:
        logger.warning(
            "ebrm models could not be made known to transformers' Auto classes (%s: %s). Load them with "
            "ebrm.EBRMForSequenceClassification.from_pretrained.",
            type(error).__name__,
            error,
        )


class _AfterImport(importlib.abc.MetaPathFinder):
    """Finds the registry as Python would, once, and registers when it has been executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != REGISTRY:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    """A module's own loader, with something to do after it."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:  # from here on the module is as if nobody had been waiting for it
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        _register()
