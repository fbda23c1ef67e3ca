"""Language models that are loaded for their log-probabilities, by name or folder, as reward models are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import AutoModelForCausalLM

from ebrm.backbone.adapters import brought, merge_adapter
from ebrm.backbone.build import (
    choose_device,
    full_name,
    load_tokenizer,
    load_transformers,
    model_limit,
    quiet,
    with_base,
)
from ebrm.backbone.checkpoint import open_checkpoint, open_tokenizer
from ebrm.backbone.config import BackboneConfig
from ebrm.backbone.load import loading_lock
from ebrm.backbone.model_server import ModelServer
from ebrm.backbone.weights import Loading, refuse_mismatched, refuse_missing
from ebrm.errors import BackboneError, setting


@dataclass(frozen=True, eq=False)
class CausalLM:
    """A causal language model and its tokenizer.

    Attributes:
        name: its Hub name, or its folder's full path.
        model: the model, in evaluation mode, without gradients, on its device.
        tokenizer: its tokenizer.
        limit: most tokens it takes, None if unknown.
    """

    name: str
    model: nn.Module
    tokenizer: Any
    limit: int | None


def load_causal_lm(config: BackboneConfig | str) -> CausalLM:
    """Load a causal language model, or a LoRA adapter on one, which is merged into it.

    Args:
        config: which model and how to run it: `backbone`, `revision`, `base`, `dtype`, `device`, `attention` and
            `trust_remote_code`; a name or folder alone: with the defaults.

    Raises:
        BackboneError: the model is not there, some of its weights are missing or of another shape (as those of a reward
            model, which has no language-model head), or a field that says nothing of a language model.
    """
    config = BackboneConfig(config) if isinstance(config, str) else config
    if config.server is not None or config.head is not None:
        field, why = ("server", "use ServerLogprobs") if config.server is not None else ("head", "leave it out")
        given = setting(field, getattr(config, field))
        raise BackboneError(f"A language model is loaded here, of which {given} says nothing: {why}.")
    device = choose_device(config.device)
    with loading_lock:
        checkpoint = open_checkpoint(config.backbone, config.revision, config.trust_remote_code, "language model")
        sources = with_base(checkpoint, config)
        with quiet():
            model, loading = load_transformers(sources[-1], config, AutoModelForCausalLM)
            if len(sources) > 1:
                model, left = merge_adapter(model, checkpoint)
                loading = Loading(loading.missing - brought(checkpoint), loading.unexpected | left, loading.mismatched)
        refuse_mismatched(sources[-1].name, loading)
        refuse_missing(sources[-1].name, loading.missing, loading.unexpected)
        tokenizer = load_tokenizer(sources, config.trust_remote_code)
    model = model.eval().requires_grad_(False).to(device)
    return CausalLM(full_name(sources), model, tokenizer, model_limit(model))


def load_served_tokenizer(server: ModelServer, name: str) -> Any:
    """The tokenizer of the model that a server serves, by its folder or Hub name; its weights are not fetched.

    Raises:
        BackboneError: there is none. ServerError: the server has another model.
    """
    checkpoint = open_tokenizer(name)
    server.refuse_other_model(checkpoint.name, checkpoint.folder, "language model")
    with loading_lock:
        return load_tokenizer([checkpoint], False)
