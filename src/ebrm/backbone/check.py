"""Checks of a reward model: one trained scalar head, and readings that give the reward the model reports."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ebrm.backbone.checkpoint import Checkpoint, TensorInfo, conversion, pickles
from ebrm.backbone.families import SEVERAL_OBJECTIVES, StoredHead, last_position, plain_name
from ebrm.errors import BackboneError, setting

_FLOATS = {"F64", "F32", "F16", "BF16"}
# How far head(embedding) in float32 may be from the model's own reward, in units of |reward| + ‖weight ∘ embedding‖₂:
# the rounding of a dot product in the model's precision, with a margin for TF32. Another position or head is off by
# about 1.
_TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 4e-2}
# The same for an embedding read with and without padding, in units of its norm. Half precision drifts by a few
# percent.
_PADDING_TOLERANCE = {torch.float64: 1e-2, torch.float32: 1e-2, torch.float16: 0.3, torch.bfloat16: 0.3}
_OUTPUTS = ("logits", "end_scores", "scores", "score", "rewards", "reward", "value")


def refuse_unsupported(checkpoint: Checkpoint) -> None:
    """Refuse models whose reward is not one linear map of one embedding, by their configuration."""
    classes = [str(name) for name in checkpoint.config.get("architectures") or []]
    pairwise = [name for name in classes if "pairrm" in name.lower() or "pairwise" in name.lower()]
    if pairwise:
        raise BackboneError(
            f"{checkpoint.name} is a pairwise model ({pairwise[0]}): it compares two responses and gives no reward to "
            "one alone, so there is nothing to refine. Choose a scalar reward model (one score for one response)."
        )
    gated = sorted(name for name in checkpoint.tensors if name.split(".")[0] in SEVERAL_OBJECTIVES)
    if gated:
        raise BackboneError(
            f"{checkpoint.name} scores several objectives and mixes them ({gated[0]}, …): its reward is not one linear "
            "map of an embedding. Choose a reward model with one score, or teach ebrm this one with "
            "ebrm.backbone.register_family."
        )


def require_head(checkpoint: Checkpoint, head: StoredHead | None, looked_for: Iterable[str]) -> StoredHead:
    """Give back the stored head, if it is one trained, unquantized map to a single reward."""
    if head is None:
        raise BackboneError(_no_head(checkpoint, tuple(looked_for)))
    if head.rows != 1:
        what = "a two-label classifier" if head.rows == 2 else f"a model with {head.rows} outputs"
        raise BackboneError(
            f"{checkpoint.name} is {what}: its head {head.name} gives {head.rows} numbers, and a reward model gives "
            "one (num_labels=1). Choose a model trained with a scalar reward; a classifier's labels are not rewards."
        )
    info = next(x for name, x in checkpoint.tensors.items() if plain_name(name) == head.name + ".weight")
    if info.dtype not in _FLOATS:
        raise BackboneError(
            f"The head {head.name} of {checkpoint.name} is quantized (stored as {info.dtype}), so the reward cannot be "
            "read exactly. Use the unquantized model, or quantize again and leave the head out (llm_int8_skip_modules "
            "/ modules_to_not_convert)."
        )
    return head


def _no_head(checkpoint: Checkpoint, looked_for: tuple[str, ...]) -> str:
    if found := [name for name, info in checkpoint.tensors.items() if _may_be_head(name, info)]:
        listed = ", ".join(f"{name} {list(checkpoint.tensors[name].shape)}" for name in found[:3])
        return (
            f"{checkpoint.name} has no reward head where it is looked for ({', '.join(looked_for)}), but {listed}. If "
            f"that is it, name it: {setting('head', plain_name(found[0]).removesuffix('.weight'))}."
        )
    if (own := [name for name in pickles(checkpoint.folder) if "head" in name]) and checkpoint.tensors:
        return (
            f"{checkpoint.name} has no reward head in its weights, but {own[0]}, a pickle, which can run code when "
            f"opened; ebrm reads safetensors. Convert once, in that folder: {conversion(own, False)}"
        )
    classes = [str(name) for name in checkpoint.config.get("architectures") or []]
    if any(name.startswith("lm_head.") for name in checkpoint.tensors) or any("CausalLM" in name for name in classes):
        kind = classes[0] if classes else "with lm_head"
        return (
            f"{checkpoint.name} is a causal language model ({kind}) without a reward head: it generates text, it does "
            "not score it. Give a reward model with a trained scalar head (a …ForSequenceClassification with one "
            "label); generative judges are not supported."
        )
    if checkpoint.adapter is not None:
        modules = checkpoint.adapter.get("modules_to_save")
        return (
            f"The adapter {checkpoint.name} holds no reward head (modules_to_save is {modules}), and its base model "
            "has none either: the head would be random. Train or save it again with the head in modules_to_save "
            '(LoraConfig(task_type="SEQ_CLS", modules_to_save=["score"])), or give the folder that has it.'
        )
    return (
        f"{checkpoint.name} has no reward head in its weights (looked for {', '.join(looked_for)}): transformers would "
        "fill it with random numbers. Give the folder or repository with the trained head; if it has another name "
        "there, name it with `head`."
    )


def _may_be_head(name: str, info: TensorInfo) -> bool:
    """Whether a tensor has the shape of a linear map to one number, and is no part of an adapter or a layer."""
    return len(info.shape) == 2 and info.shape[0] == 1 and name.endswith(".weight") and ".layers." not in name


def require_linear(name: str, path: str, module: nn.Module | None) -> nn.Linear:
    """The head's module, if it is a plain linear map with floating-point weights; else BackboneError."""
    if not isinstance(module, nn.Linear):
        raise BackboneError(
            f"The head {path} of {name} is a {type(module).__name__}, not a linear map: the embedding cannot be read "
            "before it. Name the last linear map with `head`, or teach ebrm this model with "
            "ebrm.backbone.register_family."
        )
    if not module.weight.dtype.is_floating_point or module.weight.element_size() < 2:
        raise BackboneError(
            f"The head {path} of {name} is quantized ({type(module).__name__}, {module.weight.dtype}), so the reward "
            "cannot be read exactly. Leave the head out of quantization (llm_int8_skip_modules / "
            "modules_to_not_convert)."
        )
    return module


def reported_reward(output: Any, attention_mask: Tensor) -> Tensor:
    """The reward a model reports, float32 [n]: `.logits` or alike, or a tensor; [n], [n, 1], [n, L] or [n, L, 1]."""
    given = [getattr(output, name, None) for name in _OUTPUTS] + list(output[:1] if isinstance(output, tuple) else ())
    value = next((value for value in (output, *given) if isinstance(value, Tensor)), None)
    if value is not None:
        value = value.squeeze(-1) if value.ndim > 1 else value
        if value.shape == attention_mask.shape and value.ndim == 2:
            value = value[torch.arange(len(value), device=value.device), last_position(attention_mask)]
        if value.shape == attention_mask.shape[:1]:
            return value.detach().float()
    seen = f"a tensor of shape {list(value.shape)}" if value is not None else f"a {type(output).__name__}"
    raise BackboneError(
        f"The model gives {seen} for {len(attention_mask)} texts; one reward for each text was expected. Teach ebrm "
        "this model with ebrm.backbone.register_family."
    )


def check_reading(
    name: str, head: nn.Linear, captured: Tensor, attention_mask: Tensor, embedding: Tensor, reported: Tensor
) -> None:
    """Check on a batch that the head, applied to the embedding that was read, gives the reward the model reports."""
    weight, bias = (head.weight.detach().float()[0], 0.0 if head.bias is None else head.bias.detach().float()[0])
    terms = embedding.float() * weight  # [n, d]
    ours, reported = terms.sum(-1) + bias, reported.float()
    scale = reported.abs() + terms.norm(dim=-1)
    tolerance = _TOLERANCE.get(head.weight.dtype, 4e-2) * scale + 1e-6
    off = (ours - reported).abs()
    if bool(((off <= tolerance) & reported.isfinite()).all()):
        return
    worst = int((off - tolerance).nan_to_num(torch.inf).argmax())
    raise BackboneError(
        f"{name}: the head applied to the embedding gives {ours[worst]:.6g}, but the model reports "
        f"{reported[worst]:.6g} (text {worst + 1} of the first batch; up to {tolerance[worst]:.2g} is rounding). "
        + _diagnosis(captured, attention_mask, weight, bias, ours, reported, tolerance)
        + " Name another head with `head`, or teach ebrm this model with ebrm.backbone.register_family."
    )


def _diagnosis(
    captured: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | float, ours: Tensor, reported: Tensor,
    tolerance: Tensor,
) -> str:  # fmt: skip
    """An explanation of the difference: another position, a lost bias, or something done after the head."""
    if not bool(reported.isfinite().all()):
        return "The embedding is finite, so something after the head is not: it overflows there, or divides by zero."
    if captured.ndim == 3:
        everywhere = captured.float() @ weight + bias  # [n, L]
        fits = (everywhere - reported[:, None]).abs() <= tolerance[:, None]
        last = last_position(mask)
        rows = torch.arange(len(last), device=last.device)
        for shift in range(1, min(5, int(last.min()) + 1)):
            if bool(fits[rows, last - shift].all()):
                return f"Wrong position: the model reads its reward {shift} token(s) before the last one of the text."
        if bool(fits[:, 0].all()):
            return "Wrong position: the model reads its reward at the first token."
        if bool(fits.any(dim=1).all()):
            return "Wrong position: the model reads its reward at another token than the last one of the text."
    difference = reported - ours
    if len(ours) > 1 and bool(((difference - difference.mean()).abs() <= 2 * tolerance).all()):
        by = float(difference.mean())
        return f"Everywhere by {by:.4g}: a bias that was lost, or a constant added after the head."
    for what, change in (("a sigmoid", torch.sigmoid), ("a tanh", torch.tanh), ("a change of sign", torch.neg)):
        if bool(((change(ours) - reported).abs() <= tolerance).all()):
            return f"Post-processing: the model applies {what} after its head."
    if len(ours) > 2:
        apart = ours - ours.mean()
        slope = float(apart @ (reported - reported.mean()) / apart.square().sum().clamp_min(1e-12))
        line = reported.mean() + slope * apart
        if abs(slope) > 1e-3 and bool(((line - reported).abs() <= (1 + abs(slope)) * 2 * tolerance).all()):
            return f"Post-processing: the model rescales its reward after the head (by {slope:.4g})."
    return "Wrong head, or something not linear after it."


def check_padding(name: str, padded: Tensor, alone: Tensor, dtype: torch.dtype, part: str = "embedding") -> None:
    """Check that a text's embedding [d] (a `part` of it) is the same padded and alone, up to the model's precision."""
    off = float((padded.float() - alone.float()).norm() / alone.float().norm().clamp_min(1e-12))
    limit = _PADDING_TOLERANCE.get(dtype, 0.3)
    if not off <= limit:
        raise BackboneError(
            f"{name}: the shortest text of the first batch has another {part} when it is padded (it moves by "
            f"{off:.1%} of its length; up to {limit:.0%} is rounding). The model reads padding, or reads its reward at "
            "a place counted from the end of the batch. Use `token_budget=1` (no padding), or teach ebrm this model "
            "with ebrm.backbone.register_family."
        )
