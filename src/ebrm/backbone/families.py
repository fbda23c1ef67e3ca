"""Families of reward models: where the head is, and how a checkpoint becomes a model with a known head."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ebrm.backbone.checkpoint import Checkpoint
from ebrm.backbone.config import BackboneConfig
from ebrm.errors import BackboneError

# Where the reward head is looked for, in this order, after `config.value_head_prefix` (OpenRLHF). The first are the
# names of transformers' own classes, the others those of trainers and single repositories.
HEAD_RULE = (
    "score",  # decoders: Llama, Qwen, Gemma, Mistral, GPT-NeoX, …; INF-ORM (Sequential)
    "classifier",  # encoders: BERT, DeBERTa; RoBERTa and Electra (classifier.out_proj)
    "classification_head",  # BART, T5
    "logits_proj",  # XLNet
    "sequence_summary",  # XLM, Flaubert
    "v_head",  # TRL, LLaMA-Factory and GRM (v_head.summary); InternLM2, Starling
    "value_head",  # OpenRLHF, older
    "regression_head",  # UltraRM, Eurus
    "score_head",  # safe-rlhf
    "reward_head",
    "out_proj",  # Open-Assistant's GPTNeoXRewardModel
)
# Several objectives behind a gate: no single linear map gives the reward (ArmoRM, QRM, URM).
SEVERAL_OBJECTIVES = ("regression_layer", "gating")
# Heads of several linear maps whose numbered parts are known to alternate with ReLU: INF-ORM, GRM.
_RELU_BETWEEN = ("score", "v_head.summary")


@dataclass(frozen=True)
class Loaded:
    """A reward model ready to be read.

    Attributes:
        model: called with `input_ids` and `attention_mask` [n, L]; gives the reward (`.logits` [n, 1], or alike).
        head: its last linear map, a submodule; its input [n, L, d] or [n, d] is the beginning of the embedding.
        head_module: the head's name, as in the checkpoint.
    """

    model: nn.Module
    head: nn.Linear
    head_module: str


Matches = Callable[[Mapping[str, Any]], bool]
Load = Callable[[Checkpoint, BackboneConfig], Loaded]


_families: dict[str, tuple[Matches, Load]] = {}  # the last registered is the last


def register_family(name: str, matches: Matches, load: Load) -> None:
    """Teach ebrm a family of reward models; the last registered is tried first, before all that is built in.

    Args:
        name: for messages; a name registered again is replaced.
        matches: given the contents of `config.json`, whether this family reads it.
        load: given the checkpoint and the settings, the model with its head (checked on the first batch).
    """
    forget_family(name)
    _families[name] = matches, load


def forget_family(name: str) -> None:
    """Remove a registered family."""
    _families.pop(name, None)


def find_family(config: Mapping[str, Any]) -> Load | None:
    """The loader of the first registered family that reads this `config.json`, or None."""
    return next((load for matches, load in reversed(_families.values()) if matches(config)), None)


def head_names(config: Mapping[str, Any], override: str | None) -> tuple[str, ...]:
    """Where to look for the head, in order: only the override if there is one."""
    if override:
        return (override,)
    own = config.get("value_head_prefix")
    return (own, *(name for name in HEAD_RULE if name != own)) if own else HEAD_RULE


@dataclass(frozen=True)
class StoredHead:
    """A reward head found among a checkpoint's tensors: its linear maps in order (several: ReLU between them)."""

    name: str
    linears: tuple[str, ...]
    rows: int


def stored_head(checkpoint: Checkpoint, names: tuple[str, ...]) -> StoredHead | None:
    """Find the head among the checkpoint's tensors, or None."""
    tensors = {plain_name(full): info for full, info in checkpoint.tensors.items()}
    for name in names:
        inside = (path for path in tensors if path.startswith(name + ".") and path.endswith(".weight"))
        maps = (path for path in inside if len(tensors[path].shape) == 2 and ".lora_" not in path)
        weights = [path.removesuffix(".weight") for path in maps]
        if weights:
            # Numbered parts run in order of their numbers; otherwise the map to the fewest numbers is the last.
            ordered = sorted(weights, key=lambda path: (-tensors[path + ".weight"].shape[0], path))
            numbered = [path for path in weights if path.rpartition(".")[2].isdigit()]
            numbered.sort(key=lambda path: int(path.rpartition(".")[2]))
            linears = tuple(numbered) if len(numbered) == len(weights) else (ordered[-1],)
            return StoredHead(linears[-1], linears, tensors[linears[-1] + ".weight"].shape[0])
    return None


def plain_name(tensor: str) -> str:
    """A tensor's name in the model, without what peft puts around it in an adapter's file."""
    return tensor.removeprefix("base_model.model.").replace(".modules_to_save.", ".")


class ValueHeadModel(nn.Module):
    """A transformers base model with a reward head of another name, read at the last position of the mask."""

    def __init__(self, base: nn.Module, head: nn.Linear | nn.Sequential) -> None:
        super().__init__()
        self.base, self.head = base, head
        self.config = base.config

    def get_input_embeddings(self) -> Any:
        """The table of token embeddings."""
        return self.base.get_input_embeddings()  # type: ignore[operator]

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Rewards [n] of token ids [n, L]."""
        hidden = self.base(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state  # [n, L, d]
        rows = torch.arange(len(hidden), device=hidden.device)
        return self.head(hidden[rows, last_position(attention_mask)]).squeeze(-1)


def last_position(attention_mask: Tensor) -> Tensor:
    """Index of the last 1 of each row of the mask [n, L], wherever the padding is → int64 [n]."""
    places = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    return (attention_mask.to(torch.int64) * places).argmax(dim=1)


def attach_value_head(base: nn.Module, checkpoint: Checkpoint, head: StoredHead) -> Loaded:
    """Put a checkpoint's stored head on a loaded base model."""
    stored = {plain_name(full): full for full in checkpoint.tensors}
    reference = next(base.parameters())
    linears = []
    for path in head.linears:
        weight = checkpoint.read(stored[path + ".weight"])
        bias = checkpoint.read(stored[path + ".bias"]) if path + ".bias" in stored else None
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        with torch.no_grad():
            linear.weight.copy_(weight)
            if bias is not None:
                linear.bias.copy_(bias)
        linears.append(linear.to(device=reference.device, dtype=reference.dtype))
    config: Any = base.config
    hidden = (config.get_text_config() if hasattr(config, "get_text_config") else config).hidden_size
    if linears[0].in_features != hidden:
        raise BackboneError(
            f"The head {head.name} of {checkpoint.name} takes {linears[0].in_features} numbers, but its base model "
            f"gives {hidden}. The head belongs to another model; give the folder they were saved in together."
        )
    parts: list[nn.Module] = [linears[0]]
    for linear in linears[1:]:
        parts += [nn.ReLU(), linear]
    model = ValueHeadModel(base, nn.Sequential(*parts) if len(parts) > 1 else linears[0])
    return Loaded(model, linears[-1], head.name)


def refuse_unknown_parts(checkpoint: Checkpoint, head: StoredHead) -> None:
    """Raise BackboneError for a head with tensors beside linear maps that alternate with ReLU."""
    stored = {plain_name(full) for full in checkpoint.tensors}
    parent, last = head.name.rpartition(".")[::2]
    # The maps of a Sequential share a parent (score.0, score.2); a single map may be the head itself (value_head).
    root = parent if last.isdigit() else head.name
    known = {f"{path}.{kind}" for path in head.linears for kind in ("weight", "bias")}
    extra = sorted(path for path in stored if path.startswith(root + ".") and path not in known)
    # Linear, ReLU, Linear: the numbers of the maps go up by two, since ReLU has one and no tensors.
    alternating = [f"{root}.{2 * place}" for place in range(len(head.linears))]
    if extra or (len(head.linears) > 1 and not (root in _RELU_BETWEEN and list(head.linears) == alternating)):
        raise BackboneError(
            f"The head {root} of {checkpoint.name} has parts that its tensors do not tell how to compute "
            f"({', '.join([*head.linears, *extra])}). Teach ebrm this model with "
            "ebrm.backbone.register_family."
        )
