"""Configuration of the frozen reward model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ebrm.errors import ConfigError

Dtype = Literal["auto", "float32", "bfloat16", "float16"]

#: The depths that are read unless others are asked for.
DEFAULT_LAYERS = (1 / 3, 2 / 3)


@dataclass(frozen=True)
class BackboneConfig:
    """Reward model to read: name, precision, device, layers, batch size.

    Attributes:
        backbone: The reward model: a Hub name (owner/name), a folder, or `demo` for the small one that comes with the
            package (extra `demo`).
        revision: Hub revision: branch, tag or commit. Unset: the default branch. Ignored for folders.
        base: The base model of a LoRA adapter, a Hub name or folder. Unset: the one that the adapter's own
            configuration names, which may have moved.
        head: Where the reward head is, as a dotted path (`score`, `v_head.summary`). Unset: found by name.
        dtype: Precision of the reward model: `auto` keeps the checkpoint's. The head is always float32.
        device: Where it runs: `auto` takes a GPU if there is one; else a torch device (cpu, cuda:1).
        attention: Attention implementation (eager, sdpa, flash_attention_2). Unset: transformers' own choice. Gemma-2
            needs eager or flash_attention_2.
        trust_remote_code: Run Python code from the model's repository. Only for repositories you have read.
        layers: Depths in the model, above 0 up to 1 (all its blocks), whose hidden states, averaged over the text's
            tokens, join the embedding: lower layers know what the last position has forgotten. `none`: the input of
            the reward head only, as in the paper.
        token_budget: Most tokens in one batch, padding counted (at most 1024 on a CPU). Halved by itself when memory
            runs out.
        server: URL of a running vLLM or SGLang pooling server that has this reward model: embeddings are read from it,
            and the checkpoint gives only tokenizer, configuration and head. It has no inner layers, so none are read;
            dtype and device are the server's. Its API key: the variable EBRM_SERVER_TOKEN.

    Raises:
        ConfigError: a value outside its range.
    """

    backbone: str
    revision: str | None = None
    base: str | None = None
    head: str | None = None
    dtype: Dtype = "auto"
    device: str = "auto"
    attention: str | None = None
    trust_remote_code: bool = False
    layers: tuple[float, ...] = DEFAULT_LAYERS
    token_budget: int = 16384
    server: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.backbone, str) or not self.backbone.strip():
            raise ConfigError(
                f"backbone is {self.backbone!r}; give a Hub name (owner/name), a folder, or `demo` for the packaged "
                "model."
            )
        if self.dtype not in get_args(Dtype):
            raise ConfigError(f"dtype is {self.dtype!r}; it must be one of {', '.join(get_args(Dtype))}.")
        object.__setattr__(self, "layers", _depths(self.layers))
        if self.token_budget < 1:
            raise ConfigError(f"token_budget is {self.token_budget} tokens; it must be at least 1.")
        if self.server is not None and not re.match(r"https?://[^/\s]+", self.server):
            raise ConfigError(
                f"server is {self.server!r}; give the URL of a running pooling server, as in http://127.0.0.1:8000."
            )
        if self.server is not None and self.attention is not None:
            raise ConfigError(
                f"attention is {self.attention!r}, but the reward model runs in the server ({self.server}), which "
                "chooses its own. Leave attention out."
            )


def _depths(layers: Any) -> tuple[float, ...]:
    """The depths as floats."""
    given = list(layers) if isinstance(layers, tuple | list) else None
    numbers = given is not None and all(isinstance(x, int | float) and not isinstance(x, bool) for x in given)
    if given is None or not numbers or not all(0 < depth <= 1 for depth in given):
        raise ConfigError(
            f"layers is {layers!r}; give depths above 0 and up to 1, the share of the model's blocks that have run "
            "((0.5,) is half-way), or () to read the input of the reward head only."
        )
    return tuple(map(float, given))
