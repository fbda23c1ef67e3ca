"""Weights of a checkpoint against those of the model it was loaded into: all used, none random."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ebrm.backbone.checkpoint import HEAD_FILE, Checkpoint
from ebrm.backbone.families import HEAD_RULE, SEVERAL_OBJECTIVES, StoredHead, plain_name
from ebrm.errors import BackboneError, setting

# Weights beside a reward model that its reward does not depend on, wherever they are in the model.
_HARMLESS = re.compile(
    r"(^|\.)(?:"
    # Heads of pretraining: the next or a masked token, replaced tokens, sentence order, multi-token prediction.
    r"(?:lm_head|lm_loss|embed_out|pred_layer|lm_predictions|mask_predictions|generator_predictions|generator_lm_head"
    r"|discriminator_predictions|predictions|sop_classifier|vocab_transform|vocab_layer_norm|vocab_projector|mtp"
    r"|cls\.predictions|cls\.seq_relationship)(?:\..*)?"
    r"|final_logits_bias|decoder\.(?:weight|bias)"
    # What a class without a pooler leaves of its base model.
    r"|pooler\..*"
    # Buffers that older versions saved and that are computed now.
    r"|rotary_emb\.(?:inv_freq|cos_cached|sin_cached)|position_ids|token_type_ids"
    r"|(?:attn|attention)\.(?:attention\.)?masked_bias"
    r")$"
)
# A mask of attention that older versions saved under a name that may be a bias's; it has four dimensions.
_CAUSAL_MASK = re.compile(r"(?:attn|attention)\.bias$")
# What safe-rlhf keeps of the rewards' mean and variance; applied only where its configuration says so.
_NORMALIZER = re.compile(r"^normalizer\.")
_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks)\.(\d+)\.")


@dataclass
class Loading:
    """What did not fit when a checkpoint was loaded: names as in the model.

    Attributes:
        missing: weights of the model that were not in the checkpoint.
        unexpected: weights of the checkpoint that the model has no place for.
        mismatched: name → shapes (stored, in the model) of weights that are of another shape.
    """

    missing: set[str] = field(default_factory=set)
    unexpected: set[str] = field(default_factory=set)
    mismatched: dict[str, tuple[list[int], list[int]]] = field(default_factory=dict)

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> Loading:
        """From what transformers' `from_pretrained(…, output_loading_info=True)` says."""
        mismatched = {name: (list(stored), list(wanted)) for name, stored, wanted in info["mismatched_keys"]}
        return cls(set(info["missing_keys"]), set(info["unexpected_keys"]), mismatched)

    def part(self, prefix: str) -> Loading:
        """Of the weights under a prefix only; what is unexpected has none and stays."""
        under = {name for name in self.missing if name.startswith(prefix)}
        shapes = {name: value for name, value in self.mismatched.items() if name.startswith(prefix)}
        return Loading(under, self.unexpected, shapes)


def stored_twice(checkpoint: Checkpoint, prefix: str) -> set[str]:
    """Tensors that are also there without the base model's prefix: transformers takes one of the two in silence."""
    names = {name for name, info in checkpoint.tensors.items() if info.file.name != HEAD_FILE}
    return {name for name in names if prefix and name.startswith(prefix + ".") and name[len(prefix) + 1 :] in names}


def refuse_missing(name: str, missing: Iterable[str], unexpected: Iterable[str] = ()) -> None:
    """Refuse (BackboneError) a model some of whose weights were not in the checkpoint: they hold random numbers now."""
    lost, left = sorted(missing), sorted(unexpected)
    if lost:
        instead = f" It has others that the model has no place for ({_some(left, 3)})." if left else ""
        raise BackboneError(
            f"The checkpoint {name} lacks weights that the model needs: {_some(lost)}. They would hold random numbers."
            f"{instead} Save the model again with all its weights (for an adapter: list them in modules_to_save)."
        )


def refuse_mismatched(name: str, loading: Loading) -> None:
    """Refuse (BackboneError) weights of another shape than the model's."""
    if loading.mismatched:
        wrong = [f"{key} {stored} instead of {wanted}" for key, (stored, wanted) in sorted(loading.mismatched.items())]
        raise BackboneError(
            f"Weights of {name} are of another shape than its config.json gives the model: {_some(wrong)}. Get "
            "config.json and the weights again, of the same model."
        )


def refuse_unfit(
    sources: Sequence[Checkpoint], owner: Checkpoint, head: StoredHead, loading: Loading, chosen: str | None
) -> None:
    """Refuse (BackboneError) what would leave a weight random, of another shape, or out.

    Args:
        sources: [model] or [adapter, base].
        owner: the one that holds the head.
        head: the head that is used.
        loading: what did not fit.
        chosen: the head the user named; then others may lie beside it.
    """
    base = sources[-1]
    left = {name for name in loading.unexpected if not _harmless(name, sources)}
    left |= {plain_name(name) for name, info in owner.tensors.items() if info.file.name == HEAD_FILE}
    left -= {f"{path}.{kind}" for path in head.linears for kind in ("weight", "bias")}
    root = head_root(head)
    refuse_mismatched(base.name, loading)
    refuse_missing(base.name, loading.missing, left)
    heads = sorted(name for name in left if _is_head(name) and not name.startswith(root + "."))
    own = {plain_name(name) for name in owner.tensors}
    if chosen is not None:  # the others are not meant
        left -= set(heads)
    elif owner is not base:  # an adapter's head takes the place of its base model's
        left -= set(heads) - own
    if heads and set(heads) == left:
        others = sorted({name.rpartition(".")[0] or name for name in heads})
        raise BackboneError(
            f"{owner.name} has more than one reward head: {root}, and {_some(others)} ({len(heads)} weights). Name the "
            f"one that is meant: {setting('head', root)}, or another."
        )
    if left:
        raise BackboneError(_unexpected(base, sorted(left)))


def _unexpected(base: Checkpoint, left: list[str]) -> str:
    config = base.config.get("text_config") or base.config
    count = config.get("num_hidden_layers", config.get("n_layer"))
    layers = [int(found[1]) for name in left if (found := _LAYER.search(name))]
    advice = (
        "If they do not belong to it, save the model again without them; else use a transformers version that knows "
        "them, or teach ebrm this model with ebrm.backbone.register_family."
    )
    if isinstance(count, int) and layers and len(layers) == len(left) and min(layers) >= count:
        advice = (
            f"In config.json num_hidden_layers is {count}, and the weights have {max(layers) + 1} layers: correct "
            "the number, or get config.json and the weights again, of the same model."
        )
    return (
        f"The checkpoint {base.name} has {len(left)} weight{'s' * (len(left) > 1)} that the model has no place for: "
        f"{_some(left)}. The reward would be computed without {'them' if len(left) > 1 else 'it'}. {advice}"
    )


def head_root(head: StoredHead) -> str:
    """The path under which all parts of a head are: that of several maps is their common one."""
    parent, last = head.name.rpartition(".")[::2]
    return parent if last.isdigit() and parent else head.name


def use_bias(owner: Checkpoint, head: StoredHead, module: nn.Linear) -> None:
    """Give a head the bias that its checkpoint holds, where transformers' class makes heads without one.

    Raises:
        BackboneError: a bias of another shape than one number for each output.
    """
    full = next((name for name in owner.tensors if plain_name(name) == head.name + ".bias"), None)
    if full is None or getattr(module, "bias", None) is not None:
        return
    bias = owner.read(full)
    if bias.shape != (module.out_features,):
        raise BackboneError(
            f"The bias {head.name}.bias of {owner.name} has the shape {list(bias.shape)}; [{module.out_features}] was "
            "expected, one number for each output of the head."
        )
    module.bias = nn.Parameter(bias.to(module.weight), requires_grad=False)


def _harmless(name: str, sources: Sequence[Checkpoint]) -> bool:
    plain = plain_name(name)
    if _HARMLESS.search(plain):
        return True
    if _NORMALIZER.search(plain):
        return not sources[-1].config.get("do_normalize")
    shapes = [
        info.shape for source in sources for full, info in source.tensors.items() if plain.endswith(plain_name(full))
    ]
    return bool(_CAUSAL_MASK.search(plain)) and any(len(shape) == 4 for shape in shapes)


def _is_head(name: str) -> bool:
    """Whether a tensor is of a head, by itself or inside the base model; deeper, its name means something else."""
    return any(part in HEAD_RULE or part in SEVERAL_OBJECTIVES for part in name.split(".")[:-1][:2])


def _some(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
