"""EBRMConfig: the configuration of an energy reward model as transformers sees it."""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from typing import Any

from transformers import PretrainedConfig


class EBRMConfig(PretrainedConfig):
    """What `config.json` of an ebrm model says, as attributes.

    Everything that :class:`ebrm.model.ModelRecord` holds is an attribute of the same name (`backbone`, `text_rule`,
    `network`, `inference`, …), plain JSON values.

    Attributes:
        base: how to build the base RM whose weights lie in the same folder (see :mod:`ebrm.integrations.base`); None
        where
            the folder refers to the base RM by name, revision and fingerprint.
        own_tokenizer: a folder that refers to its base RM has a tokenizer that writes texts as
            `ebrm.data.text.tokenize` does, to be used instead of the base RM's own.
    """

    model_type = "ebrm"

    def __init__(self, base: dict[str, Any] | None = None, own_tokenizer: bool = False, **kwargs: Any) -> None:
        if kwargs.get("id2label") is None:
            kwargs.setdefault("num_labels", 1)
        super().__init__(**kwargs)
        _make_model_known()
        self.base, self.own_tokenizer = base, own_tokenizer

    def record(self) -> dict[str, Any]:
        """The values of :class:`ebrm.model.ModelRecord` among the attributes, with what is trusted."""
        from ebrm.model import ModelRecord

        names = [*(f.name for f in fields(ModelRecord)), "trust"]
        return {name: getattr(self, name) for name in names if hasattr(self, name)}


@cache
def _make_model_known() -> None:
    """Register the model that goes with the configuration.

    Not with the configuration: transformers is imported from within ebrm, too, whose modules are then half executed.
    """
    from transformers import AutoModelForSequenceClassification

    from ebrm.integrations.transformers import EBRMForSequenceClassification

    AutoModelForSequenceClassification.register(EBRMConfig, EBRMForSequenceClassification, exist_ok=True)
