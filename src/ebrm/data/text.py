"""Chat templates and tokenization: token ids of a prompt with its response, by one rule for all of the library."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from jinja2 import TemplateError

from ebrm.data.config import TextConfig
from ebrm.data.schema import Message, Reply
from ebrm.errors import ConfigError, TextError, TextTooLongError, setting
from ebrm.utils.files import sha256_json

logger = logging.getLogger(__name__)

PLAIN = "plain"
# Arguments of apply_chat_template that ebrm decides itself.
_RESERVED_KWARGS = {"conversation", "messages", "tokenize", "chat_template", "add_generation_prompt", "return_dict"}
# tokenizers without a limit carry int(1e30); anything this large is no limit of a model.
_SANE_LENGTH = 1_000_000

_PLAIN_ROLES = {"system": "System", "user": "User", "assistant": "Assistant"}
# Stand for a prompt and a response where a template's own writing is looked at.
_PROMPT, _RESPONSE = "\ue000", "\ue001"


@dataclass(frozen=True)
class TextRule:
    """Template, special tokens, truncation and length for one tokenizer; stored with features and models.

    Attributes:
        template: "plain", or the source of the chat template.
        template_kwargs: arguments of the chat template (`{"enable_thinking": False}`).
        bos, eos, truncation: as in `TextConfig`.
        max_length: longest text, in tokens, special tokens counted.
    """

    template: str
    template_kwargs: dict[str, Any]
    bos: str
    eos: str
    truncation: str
    max_length: int

    def identity(self) -> dict[str, Any]:
        """Identity of the text rule: all that decides the ids, as JSON-ready values, with the template's SHA-256."""
        return {**asdict(self), "template_sha256": sha256_json(self.template)}

    @classmethod
    def from_identity(cls, identity: Mapping[str, Any]) -> TextRule:
        """The rule of an `identity()`; TextError where a field is missing or the template does not have its SHA-256."""
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
        names = ("template_sha256", "template_kwargs", "bos", "eos", "truncation", "max_length")
        parts = [f"{name} is {a[name]!r} {ours} and {b[name]!r} {theirs}" for name in names if a[name] != b[name]]
        return "the text rule differs: " + "; ".join(parts) if parts else None


def make_text_rule(tokenizer: Any, config: TextConfig, model_limit: int | None) -> TextRule:
    """Text rule of a tokenizer and a model (which takes `model_limit` tokens, None if unknown), by a configuration.

    Raises:
        ConfigError: `max_length` above the model's limit, no limit known and none given, a reserved template argument,
            `eos="append"` without such a token, or a template name the tokenizer does not have.
    """
    reserved = sorted(_RESERVED_KWARGS & set(config.template_kwargs))
    if reserved:
        raise ConfigError(
            f"template_kwargs sets {', '.join(reserved)}, which ebrm decides itself (the text is the whole "
            "conversation, without a generation prompt). Remove it; template_kwargs is for the template's own "
            "variables."
        )
    if config.eos == "append" and tokenizer.eos_token_id is None:
        raise ConfigError(
            f"eos is 'append', but this tokenizer has no end-of-text token. Use {setting('eos', 'auto')}, or set "
            "eos_token in the model's tokenizer_config.json."
        )
    template = _choose_template(tokenizer, config)
    if template == PLAIN and config.template_kwargs:
        raise ConfigError(
            f"template_kwargs ({', '.join(sorted(config.template_kwargs))}) would have no effect: the text goes in "
            "the plain format, which takes no arguments. Remove them, or give a chat template."
        )
    length = _choose_length(tokenizer, config.max_length, model_limit)
    kwargs, truncation = dict(config.template_kwargs), config.truncation or "error"
    return TextRule(template, kwargs, config.bos, config.eos, truncation, length)


def _choose_template(tokenizer: Any, config: TextConfig) -> str:
    own = getattr(tokenizer, "chat_template", None)
    named = own if isinstance(own, dict) else {}
    if config.template is None:
        if not own:
            return PLAIN
        if not named:
            return str(own)
        if "default" not in named:
            raise ConfigError(
                f"The tokenizer has several chat templates ({', '.join(sorted(named))}) and none is called default. "
                "Set `template` to one of these names."
            )
        return str(named["default"])
    if config.template == PLAIN:
        return PLAIN
    if config.template in named:
        return str(named[config.template])
    if "{" not in config.template:
        choices = ["auto", PLAIN, *sorted(named)]
        raise ConfigError(
            f"template is {config.template!r}, which is neither a template this model has nor a Jinja template (it "
            f"has no braces). Use one of {', '.join(choices)}, or give the template's source."
        )
    return config.template


def _choose_length(tokenizer: Any, wanted: int | None, model_limit: int | None) -> int:
    stated = getattr(tokenizer, "model_max_length", None)
    limits = [n for n in (model_limit, stated) if n is not None and 0 < n < _SANE_LENGTH]
    if wanted is not None:
        if model_limit is not None and wanted > model_limit:
            raise ConfigError(
                f"max_length is {wanted} tokens, but the model takes at most {model_limit}. Lower `max_length`, or "
                "leave it unset to use the model's limit."
            )
        return wanted
    if not limits:
        raise ConfigError(
            "Neither the model nor its tokenizer states how long a text may be. Set `max_length` (in tokens) to the "
            "length the reward model was trained with."
        )
    return int(min(limits))


@dataclass(frozen=True)
class TokenizedText:
    """Token ids of one prompt with its response, and how many were cut from the prompt's beginning (0 = none)."""

    ids: list[int]
    truncated: int


def render(rule: TextRule, tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> str:
    r"""A conversation as the text the model reads; plain format: `Role: content`, joined by blank lines.

    Raises:
        TextError: no messages, an unknown role, a role or content that is no string, or the chat template refuses.
    """
    if not messages:
        raise TextError("There are no messages to write. A prompt needs at least one turn.")
    clean = [_clean_message(message, place) for place, message in enumerate(messages)]
    if rule.template == PLAIN:
        return "\n\n".join(f"{_plain_role(message['role'])}: {message['content']}" for message in clean)
    try:
        text = tokenizer.apply_chat_template(
            clean, chat_template=rule.template, tokenize=False, add_generation_prompt=False, **rule.template_kwargs
        )
    except TemplateError as error:
        roles = " → ".join(message["role"] for message in clean)
        raise TextError(
            f"The chat template refuses this conversation (turns: {roles}): {error}. Change the turns, or choose "
            f"another template ({setting('template', PLAIN)} takes any order of system, user and assistant)."
        ) from error
    return str(text)


def tokenize(
    rule: TextRule, tokenizer: Any, prompt: Sequence[Message] | str, response: Reply, where: str = ""
) -> TokenizedText | None:
    """Token ids of a prompt (messages, or a string: one user turn) and a response, which may be empty.

    `where` is the row's place for errors. None when the text is too long and `truncation` is "drop".

    Raises:
        TextError: a text that cannot be written or is too long.
    """
    at = f"{where}: " if where else ""
    if not isinstance(response, str):
        raise TextError(f"{at}The response is a {type(response).__name__}, not a string. Give the response as text.")
    if not isinstance(prompt, Sequence) or type(prompt).__name__ in ("bytes", "bytearray"):
        raise TextError(f"{at}The prompt is a {type(prompt).__name__}, neither a string nor messages.")
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    try:
        text = render(rule, tokenizer, [*turns, {"role": "assistant", "content": response}])
    except TextError as error:
        raise TextError(f"{at}{error}") from error
    return _fit(rule, tokenizer, text, at, lambda: _response_start(rule, tokenizer, turns, text))


def tokenize_rendered(rule: TextRule, tokenizer: Any, text: str, where: str = "") -> TokenizedText | None:
    """Token ids of a conversation that is already one text: for a text that `rule` wrote, those of :func:`tokenize`.

    A last assistant's turn that is not closed as the template closes it (a policy's output: cut, or ended by an
    end-of-text token) is closed; all else is read as it stands. The start-of-text token may be left out.

    Raises:
        TextError: not a string, no tokens, or too long (also to cut, where nothing shows where the response starts).
    """
    at = f"{where}: " if where else ""
    if not isinstance(text, str):
        raise TextError(f"{at}The text is a {type(text).__name__}, not a string. Give the whole conversation as text.")
    opening, closing = _assistant_marks(rule, tokenizer)
    text = _closed(_without_surrogates(text), opening, closing, tokenizer.eos_token)

    def start() -> int:
        if not opening or opening not in text:
            raise TextTooLongError(
                f"{at}The text has more than the {rule.max_length} tokens of the limit, and its prompt cannot be cut: "
                f"nothing shows where the response starts (the text rule opens an assistant's turn with {opening!r}). "
                "Write the text with the reward model's own template, or give the prompt and the response apart."
            )
        return text.rindex(opening) + len(opening)

    return _fit(rule, tokenizer, text, at, start)


def _fit(rule: TextRule, tokenizer: Any, text: str, at: str, response_start: Callable[[], int]) -> TokenizedText | None:
    """Token ids of a rendered text within the rule's length; `response_start` is called only where it has to be cut."""
    ids = _token_ids(rule, tokenizer, text)
    if not ids:
        raise TextError(f"{at}The text {text[:40]!r} has no tokens, so there is nothing to read. Leave it out.")
    surplus = len(ids) - rule.max_length
    if surplus <= 0:
        return TokenizedText(ids, 0)
    if rule.truncation == "drop":
        return None
    if rule.truncation == "error":
        raise TextTooLongError(
            f"{at}The text has {len(ids)} tokens, and the limit is {rule.max_length}. Choose one: raise `max_length` "
            f"(if the model takes longer texts), {setting('truncation', 'prompt_left')} to cut the prompt's beginning, "
            f"or {setting('truncation', 'drop')} to leave such rows out and count them."
        )
    leading = 1 if ids[0] in (tokenizer.bos_token_id, tokenizer.cls_token_id) else 0
    tail = _tokens_from(rule, tokenizer, text, response_start())
    kept = rule.max_length - leading
    if tail > kept:
        raise TextTooLongError(
            f"{at}The response alone has {tail} tokens (those that close the turn included), and the limit is "
            f"{rule.max_length}. ebrm never cuts a response: raise `max_length`, use {setting('truncation', 'drop')} "
            "to leave such rows out and count them, or shorten it."
        )
    return TokenizedText(ids[:leading] + ids[len(ids) - kept :], surplus)


def _assistant_marks(rule: TextRule, tokenizer: Any) -> tuple[str, str]:
    """Template text between a user's turn and the assistant's, and after that; empty where it refuses both."""
    try:
        turns = [{"role": "user", "content": _PROMPT}, {"role": "assistant", "content": _RESPONSE}]
        written = render(rule, tokenizer, turns).partition(_PROMPT)[2]
    except TextError:
        return "", ""
    opening, _, closing = written.partition(_RESPONSE)
    return opening, closing


def _closed(text: str, opening: str, closing: str, eos: str | None) -> str:
    """`text` with its last assistant's turn closed as the template closes it; see :func:`tokenize_rendered`."""
    end = closing.rstrip()
    if not opening or not end or opening not in text:
        return text
    start = text.rindex(opening) + len(opening)
    head, response = text[:start], text[start:]
    bare = response.rstrip()
    if bare.endswith(end):
        return head + bare.removesuffix(end) + closing
    if end in response:  # something follows the end of the turn: not ours to understand
        return text
    while eos and response.endswith(eos):
        response = response.removesuffix(eos)
    return head + response + closing


def _plain_role(role: str) -> str:
    if role not in _PLAIN_ROLES:
        raise TextError(
            f"A message has the role {role!r}; the plain format knows system, user and assistant. Rename the role, or "
            "give a chat template that has it."
        )
    return _PLAIN_ROLES[role]


def _clean_message(message: Mapping[str, str], place: int) -> dict[str, str]:
    if not isinstance(message, Mapping):
        raise TextError(
            f"Message {place + 1} is {message!r:.60}, a {type(message).__name__}. A prompt is a string, or messages, "
            "each with a role and a content."
        )
    clean = {}
    for name in ("role", "content"):
        value = message.get(name)
        if not isinstance(value, str):
            raise TextError(
                f"Message {place + 1} has {name} = {value!r}, which is not a string. Each message needs a role and a "
                "content, both text."
            )
        clean[name] = _without_surrogates(value)
    return clean


def _without_surrogates(text: str) -> str:
    """Join surrogate pairs and replace lone surrogates by U+FFFD: they have no UTF-8 form, tokenizers crash on them."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        _warn_once("Some texts hold lone surrogates (broken emoji, usually); each is replaced by U+FFFD.")
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _token_ids(rule: TextRule, tokenizer: Any, text: str) -> list[int]:
    ids = tokenizer(_final_text(rule, tokenizer, text), add_special_tokens=rule.template == PLAIN, verbose=False)
    return _open(rule, tokenizer, _close(rule, tokenizer, list(ids["input_ids"])))


def _final_text(rule: TextRule, tokenizer: Any, text: str) -> str:
    if rule.eos != "append" or rule.template == PLAIN:
        return text
    # Templates often write a newline after the closing token; a model trained on texts that end with the token must
    # not see it twice with a newline between.
    bare = text.rstrip("\n")
    return bare if bare.endswith(tokenizer.eos_token) else text + tokenizer.eos_token


def _close(rule: TextRule, tokenizer: Any, ids: list[int]) -> list[int]:
    """Apply the rule for the end-of-text token."""
    if rule.eos != "append":
        return ids
    end = len(ids)
    while end and ids[end - 1] == tokenizer.eos_token_id:
        end -= 1
    return [*ids[:end], tokenizer.eos_token_id]


def _open(rule: TextRule, tokenizer: Any, ids: list[int]) -> list[int]:
    """Apply the rule for the start-of-text token."""
    bos = tokenizer.bos_token_id
    if bos is None or rule.bos == "keep":
        return ids
    given = 0
    while given < len(ids) and ids[given] == bos:
        given += 1
    if rule.bos == "strip":
        # Where the start token is also the token that is pooled (RoBERTa's <s>), one has to stay.
        return ids[given - 1 if given and bos == tokenizer.cls_token_id else given :]
    if given > 1:
        _warn_once(f"Texts start with {given} start-of-text tokens ({tokenizer.bos_token!r}); all but one are removed.")
        return ids[given - 1 :]
    if given == 0 and rule.template != PLAIN and list(tokenizer("a", verbose=False)["input_ids"][:1]) == [bos]:
        return [bos, *ids]  # as this tokenizer adds it
    return ids


def _response_start(rule: TextRule, tokenizer: Any, turns: Sequence[Mapping[str, str]], text: str) -> int:
    """Where in the written `text` the response starts."""
    # Where the texts of two different responses part: no assumption about the template, which may trim the response or
    # leave parts of it out.
    other = render(rule, tokenizer, [*turns, {"role": "assistant", "content": _RESPONSE}])
    return next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))


def _tokens_from(rule: TextRule, tokenizer: Any, text: str, start: int) -> int:
    """How many tokens at the end belong to what stands from the character `start` on: a response and its closing."""
    final, plain = _final_text(rule, tokenizer, text), rule.template == PLAIN
    if not tokenizer.is_fast:
        # No character offsets: the response tokenized alone, which may count a token more than in place.
        return len(_close(rule, tokenizer, list(tokenizer(final[start:], add_special_tokens=plain)["input_ids"])))
    encoded = tokenizer(final, add_special_tokens=plain, return_offsets_mapping=True, verbose=False)
    ids, ends = list(encoded["input_ids"]), [end for _, end in encoded["offset_mapping"]]
    first = next((i for i, end in enumerate(ends) if end > start), None)
    if first is None:  # an empty response that nothing follows but added special tokens, whose offsets are (0, 0)
        first = len(ends)
        while first and ends[first - 1] == 0:
            first -= 1
    return len(_close(rule, tokenizer, ids)) - first


@cache
def _warn_once(message: str) -> None:
    logger.warning(message)
