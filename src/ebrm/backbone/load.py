"""Load a frozen reward model by name, or by the identity it was read under before."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ebrm.backbone.build import (
    assemble,
    behavior,
    choose_device,
    load_config,
    load_model,
    load_tokenizer,
    model_limit,
    quiet,
    refuse_base,
    skeleton,
    weights_fingerprint,
    with_base,
)
from ebrm.backbone.checkpoint import open_checkpoint
from ebrm.backbone.config import BackboneConfig
from ebrm.backbone.demo import demo_sources, demo_text, load_demo
from ebrm.backbone.families import find_family
from ebrm.backbone.identity import SERVER, BackboneIdentity
from ebrm.backbone.read import Backbone
from ebrm.backbone.server import load_server
from ebrm.data import (
    Prompt,
    Reply,
    TextConfig,
    TextLook,
    TextRule,
    TokenizedText,
    look_at,
    make_text_rule,
    tokenize,
)
from ebrm.data.config import given_config
from ebrm.errors import BackboneError, ModelError, setting

# transformers changes the process's default precision and log level while it loads a model.
loading_lock = threading.RLock()  # a family's loader may load another


def load_backbone(
    config: BackboneConfig | str, text: TextConfig | None = None, *, blocks: Sequence[int] | None = None
) -> Backbone:
    """Load a reward model, find its head and settle its text rule.

    Args:
        config: which model, and how to run it; a name or folder alone ("demo": the packaged one): with the defaults.
        text: how text becomes token ids; unset: the defaults.
        blocks: read the hidden states after these blocks, counted from 1, instead of `config.layers`.

    Raises:
        BackboneError: the model is not there, or is not a reward model with one trained scalar head.
        ServerError: a server (`config.server`) that cannot be reached or serves something else.
        ConfigError: a device that is not there, or text settings that do not fit the model.
    """
    config = BackboneConfig(config) if isinstance(config, str) else config
    with loading_lock:
        return _load(config, given_config("text", text, TextConfig), blocks)


def _load(config: BackboneConfig, text: TextConfig, blocks: Sequence[int] | None) -> Backbone:
    if config.server is not None:
        return load_server(config, text, blocks)
    choose_device(config.device)  # a device that is not there is said before minutes of loading, not after
    if config.backbone == "demo":
        refuse_base("demo", config)
        return load_demo(config, text, blocks)
    checkpoint = open_checkpoint(config.backbone, config.revision, config.trust_remote_code)
    load = find_family(checkpoint.config)
    if load is not None:
        refuse_base(checkpoint.name, config)
        with quiet():
            return assemble(load(checkpoint, config), [checkpoint], config, text, blocks=blocks)
    sources = with_base(checkpoint, config)
    return assemble(load_model(sources, config), sources, config, text, blocks=blocks)


@dataclass(frozen=True)
class TextReader:
    """Tokenizer and text rule of a reward model whose weights are not loaded."""

    name: str
    tokenizer: Any
    text_rule: TextRule

    def tokenize(self, prompt: Prompt, response: Reply, where: str = "") -> TokenizedText | None:
        """Token ids of a prompt with its response, as of `Backbone.tokenize`."""
        return tokenize(self.text_rule, self.tokenizer, prompt, response, where)

    def look_at(self, prompt: Prompt, response: Reply) -> TextLook:
        """A prompt with a response as the reward model gets it (`ebrm.data.look_at`)."""
        return look_at(self.text_rule, self.tokenizer, prompt, response)

    def decode(self, ids: Sequence[int]) -> str:
        """Token ids as text, special tokens shown."""
        return str(self.tokenizer.decode(list(ids)))


def load_text_reader(config: BackboneConfig | str, text: TextConfig | None = None) -> TextReader:
    """The tokenizer and the text rule of a reward model; its weights are loaded only where a registered family does so.

    Args, Raises: as :func:`load_backbone`.
    """
    config, text = BackboneConfig(config) if isinstance(config, str) else config, text or TextConfig()
    trust = config.trust_remote_code
    if config.backbone == "demo":
        sources, text = demo_sources(), demo_text(text)
    else:
        checkpoint = open_checkpoint(config.backbone, config.revision, trust)
        if find_family(checkpoint.config) is not None:
            backbone = load_backbone(config, text)
            return TextReader(backbone.identity.name, backbone.tokenizer, backbone.text_rule)
        sources = with_base(checkpoint, config)
    with loading_lock:
        limit = model_limit(skeleton(sources[-1], load_config(sources[-1], trust), config))
        tokenizer = load_tokenizer(sources, trust)
    return TextReader(config.backbone, tokenizer, make_text_rule(tokenizer, text, limit))


def reload_backbone(
    identity: Mapping[str, Any], text_rule: Mapping[str, Any], config: Mapping[str, Any] | None = None
) -> Backbone:
    """Load a reward model again as it was read before, and check that it is that one.

    Args:
        identity, text_rule: of the features or the model made with it (`to_dict()`, `identity()`).
        config: fields of `BackboneConfig` that are to differ: where and how fast it runs, or where it is found; and of
            `TextConfig`, `truncation` and `rendered`, which leave other texts as they are.

    Raises:
        ModelError: another reward model or text rule was found. BackboneError, ServerError: as `load_backbone`.
    """
    stated, rule = BackboneIdentity.from_dict(identity), TextRule.from_identity(dict(text_rule))
    changes = dict(config or {})
    texts = {name: changes.pop(name) for name in ("truncation", "rendered") if name in changes}
    kept = {field.name: getattr(rule, field.name) for field in fields(TextConfig)}
    if rule.date is None:
        kept["date"] = "today"  # without effect where the template does not ask for it
    saved = {"backbone": stated.name, "revision": stated.revision, "dtype": stated.dtype, "base": stated.base}
    if not stated.head_module.rpartition(".")[2].isdigit():  # of several maps, which have to be found together
        saved["head"] = stated.head_module
    try:
        backbone = load_backbone(
            BackboneConfig(**{**saved, **changes}),
            TextConfig(**kept | texts),
            blocks=None if "layers" in changes else stated.layers,
        )
    except BackboneError as error:
        if "backbone" in changes or stated.name == "demo" or Path(stated.name).expanduser().is_dir():
            raise
        raise BackboneError(
            f"The reward model that this was made with cannot be loaded. {error} If it has moved, what helps is "
            f"{setting('backbone', 'PATH')}."
        ) from error
    backbone.check(identity, text_rule, ignore=tuple(texts))
    return backbone


def check_files(identity: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> None:
    """Check that a reward model in a local folder still has the files of an identity, without loading its weights.

    What was read of it before may be used only then. Nothing is checked of a reward model that is in no local folder
    now (a commit of the Hub does not change; one that is gone cannot), or is read from a server or by a registered
    family.

    Args:
        identity, config: as :func:`reload_backbone`.

    Raises:
        ModelError: naming what differs.
    """
    stated, changes = BackboneIdentity.from_dict(identity), dict(config or {})
    folder = str(changes.get("backbone") or stated.name)
    if stated.attention == SERVER or changes.get("server") or not Path(folder).expanduser().is_dir():
        return
    trust = bool(changes.get("trust_remote_code"))
    settings = BackboneConfig(folder, base=changes.get("base") or stated.base, trust_remote_code=trust)
    checkpoint = open_checkpoint(folder, None, trust)
    if find_family(checkpoint.config) is not None:
        return
    sources = with_base(checkpoint, settings)
    with loading_lock:
        tokenizer = load_tokenizer(sources, trust)
    found = replace(stated, weights_fingerprint=weights_fingerprint(sources), **behavior(sources, settings, tokenizer))
    difference = stated.mismatch(found, ours="when it was read", theirs="now")
    if difference is not None:
        raise ModelError(
            f"{folder} has changed since rewards were read from it: {difference}. Make features and models of it "
            "again, or give the folder back what it had."
        )
