"""How text becomes token ids, settled for one tokenizer: the rule whose identity is stored with features and models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ebrm.data.config import TextConfig
from ebrm.errors import ConfigError, TextError
from ebrm.utils.files import sha256_json

PLAIN = "plain"
# Arguments of apply_chat_template that ebrm decides itself.
_RESERVED_KWARGS = {"conversation", "messages", "tokenize", "chat_template", "add_generation_prompt", "return_dict"}
# tokenizers without a limit carry int(1e30); anything this large is no limit of a model.
_SANE_LENGTH = 1_000_000


@dataclass(frozen=True)
class TextRule:
    """How text becomes token ids, settled for one tokenizer; its identity travels with features and models.

    Attributes:
        template: "plain", or the source of the chat template.
        template_kwargs: arguments passed to the chat template (for example `{"enable_thinking": False}`).
        bos: "auto", "keep" or "strip" (see `TextConfig`).
        eos: "auto", "append" or "keep".
        truncation: "error", "prompt_left" or "drop".
        max_length: longest text, in tokens, special tokens counted.
    """

    template: str
    template_kwargs: dict[str, Any]
    bos: str
    eos: str
    truncation: str
    max_length: int

    def identity(self) -> dict[str, Any]:
        """Everything that decides the token ids, as JSON-ready values, with the template's SHA-256."""
        return {**asdict(self), "template_sha256": sha256_json(self.template)}

    @classmethod
    def from_identity(cls, identity: Mapping[str, Any]) -> TextRule:
        """Rebuild the rule from `identity()`'s result.

        Raises:
            TextError: a field is missing, or the template does not have the SHA-256 stored beside it.
        """
        try:
            rule = cls(**{name: identity[name] for name in cls.__dataclass_fields__})
        except KeyError as error:
            raise TextError(
                f"The stored text rule has no field {error.args[0]!r} (it has {', '.join(sorted(identity))}). It was "
                "written by another version or damaged; make the features or the model again."
            ) from error
        if identity.get("template_sha256") != sha256_json(rule.template):
            raise TextError(
                "The stored text rule's template does not match the SHA-256 stored beside it: the file was edited or "
                "damaged. Restore it, or make the features or the model again."
            )
        return rule

    def mismatch(self, other: TextRule, *, ours: str = "here", theirs: str = "there") -> str | None:
        """Say where two rules differ, naming both sides; None when they make the same token ids."""
        a, b = self.identity(), other.identity()
        parts = [
            f"{name} is {a[name]!r} {ours} and {b[name]!r} {theirs}"
            for name in ("template_sha256", "template_kwargs", "bos", "eos", "truncation", "max_length")
            if a[name] != b[name]
        ]
        return "the text rule differs: " + "; ".join(parts) if parts else None


def make_text_rule(tokenizer: Any, settings: TextConfig, model_limit: int | None) -> TextRule:
    """Settle the text rule for a tokenizer and a model.

    Args:
        tokenizer: a transformers tokenizer.
        settings: the user's choices.
        model_limit: longest text the model takes, in tokens; None when it does not say.

    Raises:
        ConfigError: `max_length` above the model's limit, no limit known and none given, a template argument
            that this library decides itself, `eos="append"` with a tokenizer that has no end-of-text token, or a
            template name the tokenizer does not have.
    """
    reserved = sorted(_RESERVED_KWARGS & set(settings.template_kwargs))
    if reserved:
        raise ConfigError(
            f"template_kwargs sets {', '.join(reserved)}, which ebrm decides itself (the text is the whole "
            "conversation, without a generation prompt). Remove it; template_kwargs is for the template's own "
            "variables."
        )
    if settings.eos == "append" and tokenizer.eos_token_id is None:
        raise ConfigError(
            "eos is 'append', but this tokenizer has no end-of-text token. Use eos='auto', or set eos_token in the "
            "model's tokenizer_config.json."
        )
    template = _choose_template(tokenizer, settings)
    if template == PLAIN and settings.template_kwargs:
        raise ConfigError(
            f"template_kwargs ({', '.join(sorted(settings.template_kwargs))}) would have no effect: the text goes in "
            "the plain format, which takes no arguments. Remove them, or give a chat template."
        )
    return TextRule(
        template=template,
        template_kwargs=dict(settings.template_kwargs),
        bos=settings.bos,
        eos=settings.eos,
        truncation=settings.truncation or "error",
        max_length=_choose_length(tokenizer, settings.max_length, model_limit),
    )


def _choose_template(tokenizer: Any, settings: TextConfig) -> str:
    own = getattr(tokenizer, "chat_template", None)
    named = own if isinstance(own, dict) else {}
    if settings.template is None:
        if not own:
            return PLAIN
        if not named:
            return str(own)
        if "default" not in named:
            raise ConfigError(
                f"The tokenizer has several chat templates ({', '.join(sorted(named))}) and none is called default. "
                "Choose one by name: template=…"
            )
        return str(named["default"])
    if settings.template == PLAIN:
        return PLAIN
    if settings.template in named:
        return str(named[settings.template])
    if "{" not in settings.template:
        choices = ["auto", PLAIN, *sorted(named)]
        raise ConfigError(
            f"template is {settings.template!r}, which is neither a template this model has nor a Jinja template (it "
            f"has no braces). Use one of {', '.join(choices)}, or give the template's source."
        )
    return settings.template


def _choose_length(tokenizer: Any, wanted: int | None, model_limit: int | None) -> int:
    stated = getattr(tokenizer, "model_max_length", None)
    limits = [n for n in (model_limit, stated) if n is not None and 0 < n < _SANE_LENGTH]
    if wanted is not None:
        if model_limit is not None and wanted > model_limit:
            raise ConfigError(
                f"max_length is {wanted} tokens, but the model takes at most {model_limit}. Lower max_length, or leave "
                "it unset to use the model's limit."
            )
        return wanted
    if not limits:
        raise ConfigError(
            "Neither the model nor its tokenizer says how long a text may be. Set max_length (in tokens) to the length "
            "the reward model was trained with."
        )
    return int(min(limits))
