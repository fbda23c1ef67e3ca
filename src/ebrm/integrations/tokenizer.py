"""A tokenizer whose chat template alone renders texts as ebrm does, for libraries that tokenize by themselves.

TRL renders a conversation by the tokenizer's chat template and tokenizes that without adding special tokens, so the
text rule's decisions about start and end tokens have to be in the template. transformers' pipelines tokenize the same
text and do add special tokens, so the tokenizer must have none of its own to add.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerFast

from ebrm.data import PLAIN, TextRule, template_source, tokenize
from ebrm.errors import ModelError, TextError

logger = logging.getLogger(__name__)

# More tokens than any text has: nothing is cut by whoever truncates to the tokenizer's limit; the model refuses.
_NO_LIMIT = int(1e30)
# sentence-transformers' CrossEncoder writes a pair of texts as turns of these roles.
_PAIR = {"query": "user", "document": "assistant"}
_PLAIN_TEMPLATE = (
    "{%- set names = {'system': 'System', 'user': 'User', 'assistant': 'Assistant'} -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] not in names -%}"
    "{{- raise_exception('The plain format knows the roles system, user and assistant.') -}}"
    "{%- endif -%}"
    "{{- '' if loop.first else '\\n\\n' -}}{{- names[message['role']] + ': ' + message['content'] -}}"
    "{%- endfor -%}"
)
#: As `ebrm.data.template.fold_system`.
_FOLDED = (
    "{%- set fold = namespace(texts=[], turns=[]) -%}{%- for turn in messages -%}"
    "{%- if turn['role'] in ['system', 'developer'] -%}"
    "{%- set fold.texts = fold.texts + ([turn['content']] if turn['content'] else []) -%}"
    "{%- elif turn['role'] == 'user' and fold.texts -%}"
    "{%- set fold.turns = fold.turns + [dict(turn, content=(fold.texts + [turn['content']]) | join('\\n\\n'))] -%}"
    "{%- set fold.texts = [] -%}{%- else -%}{%- set fold.turns = fold.turns + [turn] -%}{%- endif -%}"
    "{%- endfor -%}{%- set messages = fold.turns +%}"
)
_USER, _ANSWER = {"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "Four."}
# Conversations on which a template is compared with ebrm's own rendering, as (prompt, response).
_PROBES: tuple[tuple[list[dict[str, str]], str], ...] = (
    ([_USER], "It is four."),
    ([_USER], ""),
    ([_USER], "  Two lines\n\nand spaces \n"),
    ([{"role": "system", "content": "Be brief."}, _USER], "4"),
    ([_USER, _ANSWER, {"role": "user", "content": "And 3 + 3? ü你😀"}], "Six — é水🎉."),
)


def make_tokenizer(rule: TextRule, tokenizer: Any) -> Any:
    """A copy of a base RM's tokenizer whose chat template follows the text rule, and which adds no special tokens.

    `tok(tok.apply_chat_template(messages, tokenize=False))` gives the ids of :func:`ebrm.data.text.tokenize`, with
    `add_special_tokens` or without, except that nothing is cut: a longer text is left as it is. The template also takes
    the turns `query` and `document`, as which sentence-transformers writes a pair, for a user's and an assistant's.

    Raises:
        ModelError: this tokenizer gives other ids with any template.
    """
    own = _adding_nothing(tokenizer)
    own.chat_template = write_template(rule, tokenizer)
    own.padding_side, own.model_max_length = "right", _NO_LIMIT
    own.model_input_names = ["input_ids", "attention_mask"]
    if own.pad_token is None:
        own.pad_token = own.eos_token
    if list(own("a", verbose=False)["input_ids"]) != list(
        own("a", add_special_tokens=False, verbose=False)["input_ids"]
    ):
        logger.warning(
            "The tokenizer (%s) adds special tokens of its own to texts that have them already. Where a library "
            "tokenizes by itself, tell it not to (add_special_tokens=False).", type(tokenizer).__name__,
        )  # fmt: skip
    different = first_difference(rule, tokenizer, own)
    if different is not None:
        raise ModelError(
            f"This tokenizer ({type(tokenizer).__name__}) cannot render texts for transformers as the fitted model's "
            f"text rule does: {different}. Score with EnergyRewardModel, or in TRL with ebrm.reward_function."
        )
    return own


def _adding_nothing(tokenizer: Any) -> Any:
    """A copy that adds no start or end tokens to a text, as far as its kind can be told not to."""
    own = copy.deepcopy(tokenizer)
    for name in ("add_bos_token", "add_eos_token"):
        if getattr(own, name, False):
            setattr(own, name, False)
    inner = getattr(own, "backend_tokenizer", None)
    adds = list(tokenizer("a", verbose=False)["input_ids"]) != list(
        tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"]
    )
    if inner is None or not adds:
        return own
    inner.post_processor = None
    # Classes of model families put their special tokens back when they are loaded; the general class does not.
    more = (
        {"extra_special_tokens": list(own.extra_special_tokens)} if getattr(own, "extra_special_tokens", None) else {}
    )
    names = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
    special = {name: getattr(own, name) for name in names if getattr(own, name, None) is not None}
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, clean_up_tokenization_spaces=own.clean_up_tokenization_spaces, **special, **more
    )


def first_difference(rule: TextRule, tokenizer: Any, other: Any) -> str | None:
    """Where `other`, used as TRL uses a tokenizer, gives other ids than the text rule; None where it does not."""
    anything = replace(rule, max_length=10**9)
    for prompt, response in _PROBES:
        try:
            tokens = tokenize(anything, tokenizer, prompt, response)
        except TextError:
            continue  # the template refuses such conversations
        assert tokens is not None
        messages = [*prompt, {"role": "assistant", "content": response}]
        try:
            text = other.apply_chat_template(messages, tokenize=False)
            ids = list(other(text, add_special_tokens=False, verbose=False)["input_ids"])
        except ValueError as error:  # no chat template
            return " ".join(str(error).split())[:120]
        if ids != tokens.ids:
            roles = " \u2192 ".join(message["role"] for message in messages)
            return f"of turns {roles} it makes {_short(ids)}, and {_short(tokens.ids)} was expected"
    return None


def write_template(rule: TextRule, tokenizer: Any) -> str:
    """The source of a chat template that renders whole texts, start and end tokens included."""
    before, after = _added(tokenizer) if rule.template == PLAIN else ("", "")
    template = _PLAIN_TEMPLATE if rule.template == PLAIN else template_source(rule)
    given = _pair_roles(template)
    given += "".join(f"{{%- set {name} = {value!r} +%}}" for name, value in rule.template_kwargs.items())
    given += _FOLDED if rule.system == "fold" else ""
    rules = _end(rule, tokenizer) + _start(rule, tokenizer)
    if not rules and not before and not after:
        return given + template
    # A template's last line break does not count, nor do the breaks after tags; `+` keeps the others.
    written = f"{{%+ set written +%}}{template.removesuffix(chr(10))}{{%+ endset -%}}"
    whole = f"{{%- set ns = namespace(text={before!r} + written + {after!r}, starts=0) -%}}"
    return given + written + whole + rules + "{{- ns.text -}}"


def _pair_roles(template: str) -> str:
    """Gives turns of `_PAIR` the roles that the template knows, unless it knows those."""
    if any(f"{quote}query{quote}" in template for quote in "'\""):
        return ""
    return (
        "{%- set turns = namespace(all=[]) -%}{%- for turn in messages -%}"
        f"{{%- set turns.all = turns.all + [dict(turn, role={_PAIR!r}.get(turn['role'], turn['role']))] -%}}"
        "{%- endfor -%}{%- set messages = turns.all +%}"
    )


def _end(rule: TextRule, tokenizer: Any) -> str:
    if rule.eos != "append":
        return ""
    eos = repr(tokenizer.eos_token)
    bare = ""
    if rule.template != PLAIN:  # line breaks after an end token that is the template's own
        bare = (
            f"{{%- if ns.text.rstrip('\\n').endswith({eos}) -%}}"
            "{%- set ns.text = ns.text.rstrip('\\n') -%}{%- endif -%}"
        )
    return (
        f"{bare}{{%- for _ in ns.text.split({eos}) -%}}{{%- if ns.text.endswith({eos}) -%}}"
        f"{{%- set ns.text = ns.text[:-{len(tokenizer.eos_token)}] -%}}{{%- endif -%}}{{%- endfor -%}}"
        f"{{%- set ns.text = ns.text + {eos} -%}}"
    )


def _start(rule: TextRule, tokenizer: Any) -> str:
    if tokenizer.bos_token is None or rule.bos == "keep":
        return ""
    bos = repr(tokenizer.bos_token)
    if rule.bos == "strip":
        # Where the start token is also the token that is pooled, one has to stay.
        kept = f"{bos} if ns.starts else ''" if tokenizer.bos_token_id == tokenizer.cls_token_id else "''"
    else:
        ids = tokenizer("a", verbose=False)["input_ids"]
        adds = rule.template != PLAIN and bool(ids) and ids[0] == tokenizer.bos_token_id
        kept = bos if adds else f"{bos} if ns.starts else ''"
    return (
        f"{{%- for _ in ns.text.split({bos}) -%}}{{%- if ns.text.startswith({bos}) -%}}"
        f"{{%- set ns.text = ns.text[{len(tokenizer.bos_token)}:] -%}}{{%- set ns.starts = ns.starts + 1 -%}}"
        f"{{%- endif -%}}{{%- endfor -%}}{{%- set ns.text = ({kept}) + ns.text -%}}"
    )


def _added(tokenizer: Any) -> tuple[str, str]:
    """Special tokens that a tokenizer adds before and after a text."""
    bare = list(tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"])
    full = list(tokenizer("a", verbose=False)["input_ids"])
    first = next((i for i in range(len(full)) if full[i : i + len(bare)] == bare), 0)
    tokens = tokenizer.convert_ids_to_tokens(full)
    return "".join(tokens[:first]), "".join(tokens[first + len(bare) :])


def _short(ids: Sequence[int]) -> str:
    shown = ", ".join(map(str, ids[:6]))
    return f"[{shown}{', …' if len(ids) > 6 else ''}] ({len(ids)} tokens)"
