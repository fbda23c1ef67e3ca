"""From a checkpoint to a model with its head, tokenizer, text rule and identity, by way of transformers."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from ebrm.backbone.adapters import brought, merge_adapter, open_base
from ebrm.backbone.check import refuse_unsupported, require_head, require_linear
from ebrm.backbone.checkpoint import Checkpoint
from ebrm.backbone.config import BackboneConfig
from ebrm.backbone.families import (
    Loaded,
    StoredHead,
    ValueHeadModel,
    attach_value_head,
    head_names,
    refuse_unknown_parts,
    stored_head,
)
from ebrm.backbone.forward import inner_layers
from ebrm.backbone.identity import (
    BackboneIdentity,
    adapter_behavior,
    code_files,
    config_behavior,
    fingerprint,
    tokenizer_files,
)
from ebrm.backbone.read import Backbone
from ebrm.backbone.weights import Loading, refuse_unfit, stored_twice, use_bias
from ebrm.data import TextConfig, make_text_rule
from ebrm.errors import BackboneError, setting
from ebrm.utils.files import sha256_json
from ebrm.utils.neutral import shorten_line

logger = logging.getLogger(__name__)

# Model types of single repositories that are a known type with a head of another name: ours → transformers'.
_ALIASES = {"gpt_neox_reward_model": "gpt_neox"}


def with_base(checkpoint: Checkpoint, settings: BackboneConfig) -> list[Checkpoint]:
    """[model], or [adapter, base] for an adapter.

    Raises:
        BackboneError: a base model that cannot be opened, or one that was named for a whole model.
    """
    if checkpoint.adapter is None:
        refuse_base(checkpoint.name, settings)
        return [checkpoint]
    return [checkpoint, open_base(checkpoint, settings.trust_remote_code, settings.base)]


def refuse_base(name: str, settings: BackboneConfig) -> None:
    """BackboneError where a base model is named for a reward model that is no adapter."""
    if settings.base is not None:
        raise BackboneError(
            f"A base model is named ({setting('base', settings.base)}), but {name} is no LoRA adapter: it needs none. "
            "Leave `base` out, or give the adapter's folder as the reward model."
        )


def find_head(sources: Sequence[Checkpoint], settings: BackboneConfig) -> tuple[Checkpoint, StoredHead]:
    """The reward head among the tensors of [model] or [adapter, base], and the checkpoint that holds it."""
    for source in sources:
        refuse_unsupported(source)
    names = head_names(sources[-1].config, settings.head)
    for source in sources:
        if (found := stored_head(source, names)) is not None:
            return source, require_head(source, found, names)
    return sources[0], require_head(sources[0], None, names)  # raises: there is none


def load_model(sources: Sequence[Checkpoint], settings: BackboneConfig, model_class: Any = None) -> Loaded:
    """A model with its head, from [model] or [adapter, base]; `model_class` replaces transformers' own choice.

    Raises:
        BackboneError: not a reward model with one trained scalar head, or its weights are incomplete.
    """
    base = sources[-1]
    adapter = sources[0] if len(sources) > 1 else None
    owner, stored = find_head(sources, settings)
    with quiet():
        model, loading = load_transformers(base, settings, model_class)
        if adapter is not None:
            model, left = merge_adapter(model, adapter)
            given = brought(adapter)
            shapes = {name: shape for name, shape in loading.mismatched.items() if name not in given}
            loading = Loading(loading.missing - given, loading.unexpected | left, shapes)
    module = dict(model.named_modules()).get(stored.name)
    if module is not None and stored.name + ".weight" not in loading.missing:
        refuse_unfit(sources, owner, stored, loading, settings.head)
        linear = require_linear(base.name, stored.name, module)
        use_bias(owner, stored, linear)
        return Loaded(model, linear, stored.name)
    # transformers' class has no head of that name: keep its base model, put the stored head on it.
    prefix = getattr(model, "base_model_prefix", "")
    inner = getattr(model, prefix, model) if prefix else model
    refuse_unknown_parts(owner, stored)
    refuse_unfit(sources, owner, stored, loading if inner is model else loading.part(prefix + "."), settings.head)
    return attach_value_head(inner, owner, stored)


def assemble(
    loaded: Loaded,
    sources: Sequence[Checkpoint],
    settings: BackboneConfig,
    text: TextConfig,
    name: str | None = None,
    blocks: Sequence[int] | None = None,
) -> Backbone:
    """A loaded model with its tokenizer (of the first of `sources` that has one), text rule and identity.

    `name` is the name in the identity (unset: the first source's); `blocks`: see :func:`load_backbone`.

    Raises:
        BackboneError: the model's blocks cannot be found, or those wanted are not there.
    """
    device = choose_device(settings.device)
    tokenizer = load_tokenizer(sources, settings.trust_remote_code)
    limit = model_limit(loaded.model)
    config = getattr(loaded.model, "config", None)
    inner = loaded.model.base if isinstance(loaded.model, ValueHeadModel) else loaded.model
    called = name or full_name(sources)
    layers = inner_layers(called, loaded.model, settings.layers, blocks)
    dtype = str(next(inner.parameters()).dtype).removeprefix("torch.")
    attention = str(getattr(config, "_attn_implementation", None) or "own")
    identity = BackboneIdentity(
        called, sources[0].revision, weights_fingerprint(sources), type(inner).__name__, loaded.head_module, dtype,
        attention, layers.indices, base_name(sources, settings), **behavior(sources, settings, tokenizer),
    )  # fmt: skip
    warn_of_attention(identity, str(getattr(config, "model_type", "")))
    rule = make_text_rule(tokenizer, text, limit)
    return Backbone(
        loaded, tokenizer, rule, identity,
        device=device, token_budget=settings.token_budget, limit=limit, layers=layers,
    )  # fmt: skip


def full_name(sources: Sequence[Checkpoint]) -> str:
    """What [model] or [adapter, base] is called: its Hub name, or its folder's full path."""
    return sources[0].name if sources[0].revision else str(sources[0].folder.resolve())


def base_name(sources: Sequence[Checkpoint], settings: BackboneConfig) -> str | None:
    """What the base model is called if the settings name it, None where the adapter does or there is none."""
    return None if settings.base is None else full_name(sources[-1:])


def weights_fingerprint(sources: Sequence[Checkpoint]) -> str:
    """The fingerprint of [model], or of [adapter, base] (see :func:`ebrm.backbone.identity.fingerprint`)."""
    return fingerprint(
        (("adapter/" if len(sources) > 1 and source is sources[0] else "") + file.name, file)
        for source in sources
        for file in source.weights
    )


def behavior(sources: Sequence[Checkpoint], settings: BackboneConfig, tokenizer: Any) -> dict[str, Any]:
    """What decides the rewards of [model] or [adapter, base] beside weights: fields of :class:`BackboneIdentity`."""
    template, trust = getattr(tokenizer, "chat_template", None), settings.trust_remote_code
    return {
        "config": config_behavior(sources[-1].config),
        "adapter": adapter_behavior(sources[0].adapter),
        "tokenizer": tokenizer_files(tokenizer_folder(sources)),
        "template": None if template is None else sha256_json(template),
        "code": {name: sha for source in sources for name, sha in code_files(source.folder).items()} if trust else {},
    }


def warn_of_attention(identity: BackboneIdentity, model_type: str) -> None:
    """Warn where an attention implementation is known to change the scores of a kind of model."""
    if model_type == "gemma2" and identity.attention not in ("eager", "flash_attention_2"):
        logger.warning(
            "%s is a Gemma-2 model, whose scores need attention soft-capping; %s attention leaves it out. Use "
            "attention='eager' or 'flash_attention_2'.", identity.name, identity.attention,
        )  # fmt: skip


def choose_device(wanted: str) -> torch.device:
    """The device to run on: "auto" is this process's GPU if there is one, else the CPU."""
    if wanted == "auto":
        # Under `accelerate launch` each process has its own GPU.
        gpu = int(os.environ.get("LOCAL_RANK", "0"))
        return torch.device("cuda", gpu) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(wanted)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise BackboneError(
            f"The device {wanted!r} cannot be used here ({str(error).splitlines()[0]}). Use auto, cpu, or a GPU that "
            "this machine has (cuda, cuda:1)."
        ) from error
    return device


def model_limit(model: nn.Module) -> int | None:
    """The most tokens a model takes, None when its configuration does not state it."""
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    length = getattr(config, "max_position_embeddings", None)
    if not isinstance(length, int) or length <= 0:
        return None
    for path, module in model.named_modules():
        if path.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            # RoBERTa and its kin count positions from the padding token's id on.
            return min(length, module.num_embeddings) - module.padding_idx - 1
    return length


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back transformers' log lines and bars while it loads: what they warn of is checked here."""
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


def load_transformers(checkpoint: Checkpoint, settings: BackboneConfig, model_class: Any) -> tuple[nn.Module, Loading]:
    """A checkpoint by transformers (by `model_class`, or its own choice), and which weights did not fit."""
    trust = settings.trust_remote_code
    config = load_config(checkpoint, trust)
    dtype = settings.dtype if settings.dtype == "auto" else getattr(torch, settings.dtype)
    options: dict[str, Any] = {
        "config": config, "dtype": dtype, "output_loading_info": True, "use_safetensors": True,
        "ignore_mismatched_sizes": True,  # told, and refused by name
    }  # fmt: skip
    if settings.attention is not None:
        options["attn_implementation"] = settings.attention
    if model_class is None:
        options["trust_remote_code"] = trust
        model_class = choose_class(checkpoint, config, trust)
    try:
        model, info = model_class.from_pretrained(str(checkpoint.folder), **options)
    except Exception as error:  # noqa: BLE001 - what transformers raises on configurations is no list
        raise BackboneError(
            f"transformers {transformers.__version__} cannot load {checkpoint.name}: "
            f"{' '.join(str(error).split())[:400]}. If the files are complete, use a transformers version that knows "
            "this model, or teach ebrm with ebrm.backbone.register_family."
        ) from error
    loading = Loading.of(info)
    loading.unexpected |= stored_twice(checkpoint, getattr(model, "base_model_prefix", ""))
    return model, loading


def skeleton(base: Checkpoint, config: Any, settings: BackboneConfig) -> nn.Module:
    """The model without its weights: what tells its class, its parts and its limits."""
    trust = settings.trust_remote_code
    model_class, options = choose_class(base, config, trust), {"trust_remote_code": True} if trust else {}
    try:
        with quiet(), torch.device("meta"):
            model: nn.Module = model_class.from_config(config, **options)
    except Exception as error:  # noqa: BLE001 - as above
        raise BackboneError(
            f"transformers cannot build {base.name} from its configuration, {base.folder / 'config.json'}: "
            f"{shorten_line(str(error) or type(error).__name__, 300)}. Use a version that knows this model; if the "
            "file was edited or damaged, get it again."
        ) from error
    return model


def choose_class(checkpoint: Checkpoint, config: Any, trust: bool) -> Any:
    """The transformers class that loads a checkpoint."""
    own = checkpoint.config.get("auto_map") or {} if trust else {}
    if "AutoModelForSequenceClassification" in own:
        return AutoModelForSequenceClassification
    if "AutoModel" in own:
        return AutoModel
    known = type(config) in AutoModelForSequenceClassification._model_mapping
    return AutoModelForSequenceClassification if known else AutoModel


def load_config(checkpoint: Checkpoint, trust: bool) -> Any:
    """The transformers configuration of a checkpoint, with one label."""
    kind = checkpoint.config.get("model_type")
    if kind in _ALIASES:
        if checkpoint.config.get("pooling", "last") != "last":
            raise BackboneError(
                f"{checkpoint.name} pools its embedding by {checkpoint.config['pooling']!r}; for its kind ({kind}) "
                "ebrm knows only the last token. Teach ebrm this model with ebrm.backbone.register_family."
            )
        values = {key: value for key, value in checkpoint.config.items() if key != "model_type"}
    try:
        if kind in _ALIASES:
            return AutoConfig.for_model(_ALIASES[kind], **{**values, "num_labels": 1})
        config = AutoConfig.from_pretrained(str(checkpoint.folder), num_labels=1, trust_remote_code=trust)
    except Exception as error:  # noqa: BLE001 - as above
        advice = (
            "Use a transformers version that knows it, or teach ebrm with ebrm.backbone.register_family; "
            "if config.json was edited or damaged, get it again."
        )
        if checkpoint.config.get("auto_map") and not trust:
            advice = f"It brings its own code: read it, then allow it with {setting('trust_remote_code', True)}."
        reason = shorten_line(str(error) or type(error).__name__, 200)
        raise BackboneError(
            f"transformers {transformers.__version__} cannot read {checkpoint.folder / 'config.json'} (model_type "
            f"{kind!r}): {reason.rstrip('.')}. {advice}"
        ) from error
    text = config.get_text_config()
    size = getattr(text, "vocab_size", None)
    for part in (config, text):
        # A model cannot be built with a padding token that it has no embedding of; which one pads is chosen later.
        pad = getattr(part, "pad_token_id", None)
        if isinstance(pad, int) and isinstance(size, int) and not 0 <= pad < size:
            part.pad_token_id = None
    return config


def tokenizer_folder(sources: Sequence[Checkpoint]) -> Path:
    """The folder of the first of the checkpoints that has a tokenizer."""
    folders = [source.folder for source in sources]
    has = [f for f in folders if (f / "tokenizer_config.json").is_file() or (f / "tokenizer.json").is_file()]
    return (has or folders[-1:])[0]


def load_tokenizer(sources: Sequence[Checkpoint], trust: bool) -> Any:
    """The tokenizer in `tokenizer_folder`."""
    folder = tokenizer_folder(sources)
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust)
    except Exception as error:  # noqa: BLE001 - as above; the tokenizers library also raises plain Exception
        raise BackboneError(
            f"The tokenizer of {sources[0].name} cannot be loaded from {folder} "
            f"({shorten_line(str(error) or type(error).__name__, 300)}). Put the tokenizer's files (tokenizer.json, "
            "tokenizer_config.json) beside the model; if they were edited or damaged, get them again."
        ) from error
