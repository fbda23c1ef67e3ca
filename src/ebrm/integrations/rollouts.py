"""Rollouts: responses that a policy gave, as a trainer hands them over, read for reward models and reward functions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from ebrm.backbone import as_list
from ebrm.data import Prompt, Reply, RowProblem, as_reply, check_messages, check_tools, message_words
from ebrm.errors import ConfigError, TextError
from ebrm.groups import Groups

LengthUnit = Literal["tokens", "words", "characters"]

# What ends a policy's turn in text that was decoded with special tokens: <|im_end|>, </s>, <end_of_turn>, <eos>.
_CLOSING = re.compile(r"(?:\s*(?:<\|[^<>|\n]{1,40}\|>|</s>|<end_of_turn>|<eos>|<pad>))+\s*\Z")


@dataclass(frozen=True, eq=False)
class Rollouts:
    """Responses that a policy gave, with what a trainer knows of each: what shapes and aggregates of rewards see.

    Attributes:
        prompts: prompts as the trainer has them [n]; equal ones are a group.
        contexts: what stands before each response [n], for a reward: the prompt, a string or messages, with a
            completion's turns before its last one. None where a row cannot be read.
        responses: text, or the assistant's message where it holds more than text [n]. None where it is not known.
        errors: why a row cannot be read [n], None where it can.
        columns: the data set's other columns by name, each [n].
        tools: the tools that each row offers [n], or None.
        tokens: tokens of each response [n], where the trainer says.
        rendered: prompt and response as one text that went through a chat template [n], where the trainer has those.
        references: rewards of responses of the reference policy to each row's prompt [n, m], NaN beyond a row's last;
            for shapes that need them.
    """

    prompts: Sequence[Any]
    contexts: Sequence[Prompt | None]
    responses: Sequence[Reply | None]
    errors: Sequence[str | None]
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    tools: Sequence[Any] | None = None
    tokens: Tensor | None = None
    rendered: Sequence[str] | None = None
    references: Tensor | None = None

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.prompts)

    @cached_property
    def groups(self) -> Groups:
        """Rows with equal prompts."""
        return Groups.of(self.prompts)

    @property
    def readable(self) -> list[int]:
        """Places of the rows that can be read."""
        return [row for row, error in enumerate(self.errors) if error is None]

    def take(self, rows: Sequence[int]) -> Rollouts:
        """These rows, in this order."""

        def some(column: Sequence[Any]) -> list[Any]:
            return [column[row] for row in rows]

        places = torch.tensor(list(rows), dtype=torch.int64)
        return Rollouts(
            some(self.prompts),
            some(self.contexts),
            some(self.responses),
            some(self.errors),
            {name: some(column) for name, column in self.columns.items()},
            None if self.tools is None else some(self.tools),
            None if self.tokens is None else self.tokens[places],
            None if self.rendered is None else some(self.rendered),
            None if self.references is None else self.references[places],
        )

    def column(self, name: str, what: str) -> Sequence[Any]:
        """A column of the data set; `what` needs it, for the message.

        Raises:
            ConfigError: there is no such column; those that there are are named.
        """
        if name not in self.columns:
            there = ", ".join(map(repr, sorted(self.columns))) or "none beside the prompts"
            raise ConfigError(
                f"{what} needs the column {name!r}, and the trainer's data have {there}. Name one of those."
            )
        return self.columns[name]

    def lengths(self, unit: LengthUnit = "tokens") -> Tensor:
        """Lengths of the responses [n], float64: in the policy's tokens, in words at white space, or in characters.

        Raises:
            ConfigError: tokens, where the trainer does not say how many there are.
        """
        if unit == "tokens":
            if self.tokens is None:
                raise ConfigError(
                    "Lengths are in tokens, and this trainer does not say how many tokens a response has. Give "
                    '`unit="words"` or `unit="characters"`.'
                )
            return self.tokens.double()
        texts = [message_words(response or "") for response in self.responses]
        return torch.tensor([len(text.split() if unit == "words" else text) for text in texts], dtype=torch.float64)

    def with_responses(self, rows: Sequence[int], replies: Sequence[Any]) -> Rollouts:
        """Other replies to the prompts of `rows` (which may repeat), such as those of the reference policy."""
        taken = self.take(rows)
        if taken.rendered is not None:
            texts = [
                f"{prompt}{reply if isinstance(reply, str) else ''}"
                for prompt, reply in zip(taken.prompts, replies, strict=True)
            ]
            return read_rendered(texts, taken.prompts, taken.columns)
        return read_rollouts(taken.prompts, replies, taken.columns, taken.tools)


@dataclass(frozen=True, eq=False)
class StepScores:
    """Scores of the steps of n responses, from a process reward model.

    Attributes:
        score: the steps' scores [m], float64.
        groups: the response that each step belongs to, of n.
    """

    score: Tensor
    groups: Groups

    def take(self, rows: Tensor) -> StepScores:
        """The steps of these responses (places [r], none twice)."""
        number = torch.full((self.groups.count,), -1, dtype=torch.int64)
        number[rows] = torch.arange(len(rows))
        of = number[self.groups.index]
        return StepScores(self.score[of >= 0], Groups(of[of >= 0], len(rows)))


def read_rollouts(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    columns: Mapping[str, Sequence[Any]] | None = None,
    tools: Sequence[Any] | None = None,
    tokens: Tensor | None = None,
) -> Rollouts:
    """Rollouts in TRL's two forms: strings, or lists of messages; a completion's last turn is the response.

    Args:
        prompts, completions: one a row.
        columns: the data set's other columns.
        tools: tools that a row offers, None for none; for the reward model's chat template.
        tokens: tokens of each completion [n].

    Raises:
        TextError: prompts and completions that do not match, or a string in place of a list.
    """
    asked, given = as_list("prompts", prompts), as_list("completions", completions)
    if len(asked) != len(given):
        raise TextError(f"There are {len(asked)} prompts but {len(given)} completions; give one each.")
    offered = [None] * len(asked) if tools is None else as_list("tools", tools)
    found = [_split(*row) for row in zip(asked, given, offered, strict=True)]
    return Rollouts(
        asked,
        [None if isinstance(one, str) else one[0] for one in found],
        [None if isinstance(one, str) else one[1] for one in found],
        [one if isinstance(one, str) else None for one in found],
        columns or {},
        offered,
        tokens,
    )


def read_rendered(
    texts: Sequence[str], prompts: Sequence[str], columns: Mapping[str, Sequence[Any]] | None = None
) -> Rollouts:
    """Rollouts as texts that went through a chat template, prompt and response in one, beside the prompts alone.

    Reward models read the text as it is. For functions the response is what comes after the prompt, without the
    special tokens that end it; None where the text does not begin with its prompt.
    """
    responses = [
        _CLOSING.sub("", text[len(prompt) :]) if text.startswith(prompt) else None
        for text, prompt in zip(texts, prompts, strict=True)
    ]
    return Rollouts(list(prompts), list(prompts), responses, [None] * len(texts), columns or {}, rendered=list(texts))


def as_turns(context: Prompt) -> Prompt:
    """A context for a reward model: a string is one user turn, whatever it holds."""
    return [{"role": "user", "content": context}] if isinstance(context, str) else context


def _split(prompt: Any, completion: Any, tools: Any) -> tuple[Prompt, Reply] | str:
    """The conversation up to the last assistant's turn, and that turn; or why there is none."""
    try:
        if isinstance(prompt, str):
            turns = [{"role": "user", "content": prompt}]
        else:
            turns = check_messages(prompt, "prompt", strict=False)
        offered = check_tools(tools, "tools")
        before: list[Any] = []
        reply: Reply = completion
        if not isinstance(completion, str):
            *before, last = check_messages(completion, "completion", strict=False)
            if last["role"] != "assistant":
                return f"The completion ends with a turn of the {last['role']}, not with the assistant's."
            reply = as_reply(last)
    except RowProblem as problem:
        return f"The row cannot be read: {problem.field}: {problem.kind}."
    if offered:
        return {"messages": [*turns, *before], "tools": offered}, reply
    return prompt if isinstance(prompt, str) and not before else [*turns, *before], reply
