"""Registration of ebrm models with transformers' Auto classes."""

from __future__ import annotations

import logging
from typing import Any

logger = logging.getLogger(__name__)


def register() -> None:
    """Make transformers' Auto classes load the folders that `ebrm fit` and `ebrm export` write; idempotent.

    Only needed where `import ebrm` comes before transformers: `import ebrm` registers when transformers is loaded
    already, and so does importing `ebrm.EBRMConfig` or `ebrm.EBRMForSequenceClassification`.
    """
    from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

    class LazyConfig(PretrainedConfig):
        """Stands for EBRMConfig, whose module (loaded when a configuration is read) registers it in this place."""

        model_type = "ebrm"

        @classmethod
        def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
            from ebrm.integrations.transformers import EBRMConfig

            return EBRMConfig.from_dict(config_dict, **kwargs)

    if LazyConfig.model_type not in CONFIG_MAPPING:
        AutoConfig.register(LazyConfig.model_type, LazyConfig)


def register_or_warn() -> None:
    """:func:`register` for `import ebrm`, which must not fail on a transformers that cannot be used."""
    try:
        register()
    except Exception as error:
        logger.warning(
            "ebrm models are unknown to transformers' Auto classes (%s: %s). Load them with "
            "ebrm.EBRMForSequenceClassification.from_pretrained.",
            type(error).__name__,
            error,
        )
