"""Chat templates and tokenization: token ids of a prompt with its response, by one rule for all of the library."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any

from ebrm.data.config import TextConfig
from ebrm.data.messages import check_messages, check_prompt, check_tools, reply_message
from ebrm.data.rendered import find_marker, take_apart
from ebrm.data.schema import Message, Prompt, Reply, RowProblem
from ebrm.data.template import (
    PLAIN,
    TextRule,
    apply_template,
    asks_for_the_date,
    left_out_roles,
    warn_once,
    write,
    writes_a_response,
)
from ebrm.errors import ConfigError, TextError, TextTooLongError, setting

# Arguments of apply_chat_template that ebrm decides itself.
_RESERVED_KWARGS = {"conversation", "messages", "tokenize", "chat_template", "add_generation_prompt", "return_dict"}
#: Truncation that cuts the prompt where that is enough, and drops the text where it is not.
CUT_OR_DROP = "prompt_left_or_drop"
# tokenizers without a limit carry int(1e30); anything this large is no limit of a model.
_SANE_LENGTH = 1_000_000

# Stand for a prompt and a response where a template's own writing is looked at.
_PROMPT, _RESPONSE = "\ue000", "\ue001"


def make_text_rule(tokenizer: Any, config: TextConfig, model_limit: int | None) -> TextRule:
    """Text rule of a tokenizer and a model (which takes `model_limit` tokens, None if unknown), by a configuration.

    Raises:
        ConfigError: `max_length` above the model's limit, no limit known and none given, a reserved template argument,
            `eos="append"` without such a token, a template name that is not there, or a setting without effect.
    """
    reserved = sorted(_RESERVED_KWARGS & set(config.template_kwargs))
    if reserved:
        raise ConfigError(
            f"template_kwargs sets {', '.join(reserved)}, which ebrm decides itself (the text is the whole "
            "conversation, without a generation prompt). Remove it; `template_kwargs` is for the template's own "
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
    if template == PLAIN and config.system == "fold":
        raise ConfigError(
            "system is 'fold', which would have no effect: the text goes in the plain format, which has a place for "
            f"system turns. Leave it at {setting('system', 'keep')}."
        )
    length = _choose_length(tokenizer, config.max_length, model_limit)
    kwargs, truncation = dict(config.template_kwargs), config.truncation or "error"
    rule = TextRule(
        template, kwargs, config.bos, config.eos, truncation, length, system=config.system, rendered=config.rendered
    )
    if not writes_a_response(rule, tokenizer):
        raise ConfigError(
            "The chat template writes nothing of a response that is text (templates of models that see images expect "
            f"lists of parts), so all texts would be the same. Set `template` to one for text, or {PLAIN}."
        )
    return _with_date(rule, tokenizer, config.date)


def _with_date(rule: TextRule, tokenizer: Any, given: str | None) -> TextRule:
    """The rule, with a date where its texts would depend on the day."""
    if not asks_for_the_date(rule, tokenizer):
        if given not in (None, "today"):
            raise ConfigError(
                f"date is {given!r}, which would have no effect: the text does not depend on the day (the template "
                "writes no date, or `template_kwargs` sets it). Leave `date` out."
            )
        return rule
    if given == "today":
        warn_once("The chat template writes today's date, which is not fixed: rewards change with the day.")
        return rule
    if given is not None:
        return replace(rule, date=given, date_given=True)
    today = date.today().isoformat()
    warn_once(
        f"The chat template writes today's date. It is {today} in all texts from now on, also when the result is used "
        f"later; {setting('date', today)} gives the same texts on another day."
    )
    return replace(rule, date=today)


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
    """Token ids of one prompt with its response.

    Attributes:
        ids: the token ids.
        truncated: how many were cut from the prompt's beginning (0 = none).
        marker: a special token or a template's marker that the prompt or the response held as text, as texts do that
            went through a chat template before; None: there is none, or the rule does not look for any.
        marked_prompt: whether the prompt holds it.
    """

    ids: list[int]
    truncated: int
    marker: str | None = field(default=None, compare=False)
    marked_prompt: bool = field(default=False, compare=False)


def render(
    rule: TextRule, tokenizer: Any, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None
) -> str:
    r"""A conversation as the text the model reads; plain format: `Role: content`, joined by blank lines.

    Raises:
        TextError: no messages, an unknown role, a content that is not text, or the chat template refuses, or leaves out
            tools, tool calls or reasoning.
    """
    if isinstance(messages, Sequence) and not messages:
        raise TextError("There are no messages to write. A prompt needs at least one turn.")
    return write(rule, tokenizer, [_encodable(message) for message in _messages(messages, "messages")], tools)


def read_prompt(prompt: Prompt) -> tuple[list[Message], tuple[dict[str, Any], ...] | None]:
    """Messages and tools of a prompt as it is given to score: a string, messages, or {"messages": …, "tools": …}.

    Raises:
        TextError: none of these; no turn of the user's that says something; or the last turn is not a user's or tool's.
    """
    tools = None
    if isinstance(prompt, Mapping) and "messages" in prompt:
        unknown = sorted(str(key) for key in prompt.keys() - {"messages", "tools"} if prompt[key] is not None)
        if unknown:
            raise TextError(f"The prompt has {', '.join(unknown)} beside messages; it may have messages and tools.")
        try:
            tools = check_tools(prompt.get("tools"), "tools")
        except RowProblem as problem:
            raise TextError(f"The prompt's {problem.field} cannot be read: {_said(problem)}.") from None
        prompt = prompt["messages"]
    if isinstance(prompt, str):
        turns: list[Message] = [{"role": "user", "content": prompt}]
    elif not isinstance(prompt, Sequence | Mapping) or type(prompt).__name__ in ("bytes", "bytearray"):
        raise TextError(f"The prompt is a {type(prompt).__name__}, neither a string nor messages.")
    elif not prompt:
        raise TextError("The prompt has no messages. It needs at least a user's turn.")
    else:
        turns = _messages(prompt, "prompt")
    try:
        check_prompt(turns, "prompt")
    except RowProblem as problem:
        roles = " → ".join(turn["role"] for turn in turns)
        raise TextError(
            f"The prompt cannot be answered: {problem.kind} (its turns: {roles}). End it in a user's turn."
        ) from None
    if not any(turn["role"] == "user" and turn["content"].strip() for turn in turns):
        raise TextError("The prompt is empty: no user's turn says something.")
    return [_encodable(turn) for turn in turns], tools


def read_reply(reply: Reply) -> Message:
    """A reply as it is given to score, as the assistant's message: a string, or one message (alone or in a list).

    Raises:
        TextError: anything else.
    """
    if isinstance(reply, str):
        return _encodable(reply_message(reply))
    if not isinstance(reply, Mapping | list | tuple) or not reply:
        raise TextError(
            f"The response is a {type(reply).__name__}, not a string. Give the response as text, or as an assistant's "
            "message."
        )
    found = _messages(reply, "response")
    if len(found) != 1 or found[0]["role"] != "assistant":
        roles = " → ".join(message["role"] for message in found)
        raise TextError(
            f"The response has the turns {roles}; one assistant's message was expected. Turns before it belong to the "
            "prompt."
        )
    return _encodable(found[0])


def _messages(value: Any, field: str) -> list[Message]:
    try:
        return check_messages(value, field, strict=False)
    except RowProblem as problem:
        raise TextError(
            f"{problem.field} cannot be read: {_said(problem)}. Give messages, each with a role and a content that is "
            "text (or a string instead of messages)."
        ) from None


def _said(problem: RowProblem) -> str:
    """The problem, with a value that is no text: errors of servers must not hold what they were sent."""
    short = isinstance(problem.value, str) and problem.field.endswith(".role") and len(problem.value) < 20
    shown = short or problem.value is None or isinstance(problem.value, bool | int | float)
    return f"{problem.kind}, {problem.value!r}" if shown else problem.kind


def _encodable(value: Any) -> Any:
    """A message or a part of one with lone surrogates replaced."""
    if isinstance(value, str):
        return _without_surrogates(value)
    if isinstance(value, dict):
        return {key: _encodable(entry) for key, entry in value.items()}
    return [_encodable(entry) for entry in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class _Conversation:
    """What is written as one text: turns, reply and tools, and the marker that was found in them."""

    turns: list[Message]
    reply: Message
    tools: tuple[dict[str, Any], ...] | None
    marker: str | None
    marked_prompt: bool

    @classmethod
    def of(cls, rule: TextRule, tokenizer: Any, prompt: Prompt, response: Reply) -> _Conversation:
        turns, tools = read_prompt(prompt)
        reply = read_reply(response)
        if rule.rendered == "parse":
            turns, content = take_apart(rule, tokenizer, turns, reply["content"])
            reply = {**reply, "content": content}
        marker, in_prompt = None, False
        if rule.rendered != "keep":
            found = (find_marker(tokenizer, turn["content"]) for turn in turns)
            marker = next((one for one in found if one is not None), None)
            in_prompt = marker is not None
            marker = marker or find_marker(tokenizer, reply["content"])
        return cls(turns, reply, tools, marker, in_prompt)


def tokenize(
    rule: TextRule, tokenizer: Any, prompt: Prompt, response: Reply, where: str = ""
) -> TokenizedText | None:  # fmt: skip
    """Token ids of a prompt and a response.

    Args:
        rule: the text rule.
        tokenizer: the reward model's.
        prompt: a string (one user turn), messages that end in a user's or a tool's turn, or a mapping of `messages` and
            `tools`.
        response: a string, which may be empty, or the assistant's message where it holds tool calls or reasoning.
        where: the row's place, for errors.

    Returns:
        None when the text is too long and `truncation` is "drop", or "prompt_left_or_drop" and the response alone is.

    Raises:
        TextError: a text that cannot be written or is too long.
    """
    at = f"{where}: " if where else ""
    try:
        given = _Conversation.of(rule, tokenizer, prompt, response)
        text = write(rule, tokenizer, [*given.turns, given.reply], given.tools)
    except TextError as error:
        raise type(error)(f"{at}{error.fact}", error.advice) from error
    found = _fit(rule, tokenizer, text, at, lambda: _response_start(rule, tokenizer, given, text))
    return found and replace(found, marker=given.marker, marked_prompt=given.marked_prompt)


@dataclass(frozen=True)
class TextLook:
    """One text as the reward model gets it, for people to look at.

    Attributes:
        rendered: the text that the template writes.
        decoded: its token ids decoded, special tokens visible: what is left of it after start and end tokens are
            settled and the prompt is cut.
        ids: the token ids; empty where there are none.
        tokens: how many the whole text has, before anything is cut.
        truncated: how many were cut from the prompt.
        marker: a special token that the prompt or the response held as text (see `TokenizedText`).
        left_out: roles of turns of which the template writes nothing.
        error: why the reward model does not read it (refused, too long); None where it does.
    """

    rendered: str
    decoded: str
    ids: tuple[int, ...]
    tokens: int
    truncated: int = 0
    marker: str | None = None
    left_out: tuple[str, ...] = ()
    error: str | None = None


def look_at(rule: TextRule, tokenizer: Any, prompt: Prompt, response: Reply) -> TextLook:
    """A prompt with a response as the reward model gets it; refused and too long texts too, with the reason."""
    text, tokens, found = "", 0, None
    marker: str | None = None
    error: str | None = None
    gone: tuple[str, ...] = ()
    try:
        given = _Conversation.of(rule, tokenizer, prompt, response)
        marker, messages = given.marker, [*given.turns, given.reply]
        text = apply_template(rule, tokenizer, messages, given.tools)
        gone = tuple(left_out_roles(rule, tokenizer, [message["role"] for message in messages]))
        tokens = len(_token_ids(rule, tokenizer, text))
        found = tokenize(rule, tokenizer, prompt, response)
        if found is None:
            error = f"The text has {tokens} tokens, more than {rule.max_length}; the text rule drops it."
    except TextError as refused:
        error = refused.fact
    ids = () if found is None else tuple(found.ids)
    cut = 0 if found is None else found.truncated
    return TextLook(text, tokenizer.decode(list(ids)), ids, tokens, cut, marker, gone, error)


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
            f"{at}The text has {len(ids)} tokens, and the limit is {rule.max_length}.",
            f"Choose one: {setting('truncation', 'prompt_left')} to cut the prompt's beginning, "
            f"{setting('truncation', 'drop')} to leave such rows out and count them, or "
            f"{setting('truncation', CUT_OR_DROP)} to cut where that is enough and else leave out.",
        )
    leading = 1 if ids[0] in (tokenizer.bos_token_id, tokenizer.cls_token_id) else 0
    tail = _tokens_from(rule, tokenizer, text, response_start())
    kept = rule.max_length - leading
    if tail > kept and rule.truncation == CUT_OR_DROP:
        return None
    if tail > kept:
        raise TextTooLongError(
            f"{at}The response alone has {tail} tokens (those that close the turn included), and the limit is "
            f"{rule.max_length}.",
            f"ebrm never cuts a response: leave such rows out with {setting('truncation', CUT_OR_DROP)}, which counts "
            "them, or shorten it.",
        )
    return TokenizedText(ids[:leading] + ids[len(ids) - kept :], surplus)


def _assistant_marks(rule: TextRule, tokenizer: Any) -> tuple[str, str]:
    """Template text between a user's turn and the assistant's, and after that; empty where it refuses both."""
    try:
        turns = [{"role": "user", "content": _PROMPT}, {"role": "assistant", "content": _RESPONSE}]
        written = apply_template(rule, tokenizer, turns).partition(_PROMPT)[2]
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


def _without_surrogates(text: str) -> str:
    """Join surrogate pairs and replace lone surrogates by U+FFFD: they have no UTF-8 form, tokenizers crash on them."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        warn_once("Some texts hold lone surrogates (broken emoji, usually); each is replaced by U+FFFD.")
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
        warn_once(f"Texts start with {given} start-of-text tokens ({tokenizer.bos_token!r}); all but one are removed.")
        return ids[given - 1 :]
    if given == 0 and rule.template != PLAIN and list(tokenizer("a", verbose=False)["input_ids"][:1]) == [bos]:
        return [bos, *ids]  # as this tokenizer adds it
    return ids


def _response_start(rule: TextRule, tokenizer: Any, given: _Conversation, text: str) -> int:
    """Where in the written `text` the response starts."""
    # Where the texts of two different responses part: no assumption about the template, which may trim the response or
    # leave parts of it out.
    other = apply_template(rule, tokenizer, [*given.turns, reply_message(_RESPONSE)], given.tools)
    return _common(text, other)


def _common(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _tokens_from(rule: TextRule, tokenizer: Any, text: str, start: int) -> int:
    """How many tokens at the end belong to what stands from the character `start` on: a response and its closing."""
    final, plain = _final_text(rule, tokenizer, text), rule.template == PLAIN
    if not tokenizer.is_fast:
        # No character offsets: the response tokenized alone, which may count a token more than in place.
        return len(_close(rule, tokenizer, list(tokenizer(final[start:], add_special_tokens=plain)["input_ids"])))
    encoded = tokenizer(final, add_special_tokens=plain, return_offsets_mapping=True, verbose=False)
    first, _ = _tokens_between(encoded["offset_mapping"], start, start)
    return len(_close(rule, tokenizer, list(encoded["input_ids"]))) - first


@dataclass(frozen=True)
class ResponseTokens:
    """Token ids of a conversation, and which of them are those of its last message.

    Attributes:
        ids: the token ids, the prompt's first.
        start, end: the response is `ids[start:end]`: the tokens that hold any of its characters, so that one token may
            also hold the prompt's last (a space).
        truncated: how many tokens were cut from the prompt's beginning. What follows `end` closes the turn.
    """

    ids: list[int]
    start: int
    end: int
    truncated: int = 0


def tokenize_response(
    rule: TextRule, tokenizer: Any, prompt: Prompt, response: Reply, where: str = "", *,
    followup: str | None = None, unconditional: bool = False,
) -> ResponseTokens | None:  # fmt: skip
    """Token ids as of :func:`tokenize`, and where in them the response is, by the characters that each token holds.

    Args:
        rule, tokenizer, prompt, response, where: as of :func:`tokenize`; the tokenizer must be a fast one.
        followup: what the user says next; it is then the message whose tokens are found, after prompt and response.
        unconditional: leave the prompt out: its system turns and an empty user's turn stay.

    Raises:
        TextError: as of :func:`tokenize`; a tokenizer that does not tell which characters a token holds.
    """
    at = f"{where}: " if where else ""
    if not tokenizer.is_fast:
        raise TextError(
            f"{at}This tokenizer ({type(tokenizer).__name__}) does not tell which characters each token holds, so "
            "where the response starts is not known. Use a fast one (with tokenizer.json)."
        )
    try:
        given = _Conversation.of(rule, tokenizer, prompt, response)
        turns, last, tools = given.turns, given.reply, given.tools
        if unconditional:
            system: list[Message] = [turn for turn in turns if turn["role"] in ("system", "developer")]
            turns, tools = [*system, {"role": "user", "content": ""}], None
        if followup is not None:
            turns, last = [*turns, last], {"role": "user", "content": _without_surrogates(followup)}
        text = write(rule, tokenizer, [*turns, last], tools)
        other = apply_template(rule, tokenizer, [*turns, {"role": last["role"], "content": _RESPONSE}], tools)
    except TextError as error:
        raise type(error)(f"{at}{error.fact}", error.advice) from error
    # Where it parts from the text of another response, at either end: no assumption about the template.
    start = _common(text, other)
    end = len(text) - min(_common(text[::-1], other[::-1]), len(text) - start)
    fitted = _fit(rule, tokenizer, text, at, lambda: start)
    if fitted is None:
        return None
    final, plain = _final_text(rule, tokenizer, text), rule.template == PLAIN
    encoded = tokenizer(final, add_special_tokens=plain, return_offsets_mapping=True, verbose=False)
    first, stop = _tokens_between(encoded["offset_mapping"], start, end)
    # What the rules for start and end tokens and the length left of them stands at the end of the ids.
    closed = len(_close(rule, tokenizer, list(encoded["input_ids"])))
    shift = len(fitted.ids) - closed
    return ResponseTokens(fitted.ids, first + shift, min(stop, closed) + shift, fitted.truncated)


def _tokens_between(offsets: Sequence[tuple[int, int]], start: int, end: int) -> tuple[int, int]:
    """First and last token (excluded) with a character from `start` to `end`; added special tokens hold none (0, 0)."""
    first = next((i for i, (_, stop) in enumerate(offsets) if stop > start), None)
    if first is None:  # an empty response that nothing follows but added special tokens
        first = len(offsets)
        while first and offsets[first - 1][1] == 0:
            first -= 1
    stop = first
    while start < end and stop < len(offsets) and offsets[stop][0] < end and offsets[stop][1] > 0:
        stop += 1
    return first, stop
