"""Pairs whose worse side is known: a response over the same response with its parts out of order.

"PageLLM: A Multi-Grained Reward Framework for Whole-Page Optimization with Large Language Models" (arXiv 2506.09084)
makes pairs of pages that differ in relevance, ranking, diversity or redundancy. Here is the like for the parts of any
text: its sentences, paragraphs or items. Only the idea is the paper's; how parts are drawn and changed is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ebrm.errors import ConfigError
from ebrm.groups import Groups
from ebrm.pairs import CurationReport, PreferencePairs

Kind = Literal["swap", "duplicate", "splice"]


@dataclass(frozen=True, eq=False)
class Corrupted:
    """Corrupted responses as sequences of parts that are there already.

    Attributes:
        part: rows of parts, each response's in its order [q], int64.
        response: the corrupted response that each stands in, 0 … count - 1, in ascending order.
        origin: the response that each was made from [count], int64.
    """

    part: Tensor
    response: Groups
    origin: Tensor


def corruption_pairs(
    response: Groups,  # of [t]
    kind: Kind,
    generator: torch.Generator,
    prompt: Groups | None = None,  # of [n]
) -> tuple[PreferencePairs, Corrupted, CurationReport]:
    """Every response that can be corrupted over its corrupted self.

    swap: two parts change places (order); the parts stay the same. duplicate: one part stands twice, one after the
    other (redundancy). splice: one part gives way to one of a response to another prompt (relevance). Each part is as
    likely as any other. Swapping needs two parts, duplicating one, splicing one and parts of another prompt; other
    responses have no pair. Parts of equal words count as different: leave out the pairs that they make alike.

    Args:
        response: the response, 0 … n - 1, that each of t parts stands in; the parts of a response in their order.
        kind: what to do.
        generator: draws the parts.
        prompt: the prompt of each response, for splicing; None: each response answers its own.

    Returns:
        The pairs: a response over row n + j, the j-th corrupted one; the corrupted ones, whose texts (and embeddings)
        the caller makes and puts after the n that there are; and the report.

    Raises:
        ConfigError: another kind.
        ValueError: prompts of another number of responses.
    """
    if kind not in ("swap", "duplicate", "splice"):
        raise ConfigError(f"The corruption is {kind!r}; expected 'swap', 'duplicate' or 'splice'.")
    if prompt is not None and len(prompt) != response.count:
        raise ValueError(f"{len(prompt)} responses have a prompt, and {response.count} parts")
    of = torch.arange(response.count) if prompt is None else prompt.index
    sizes, parts = response.sizes, response.index.sort(stable=True).indices
    starts = sizes.cumsum(0) - sizes
    of_prompt = torch.zeros(int(of.max()) + 1 if len(of) else 0, dtype=torch.int64).index_add_(0, of, sizes)
    others = len(parts) - of_prompt[of]
    able = {"swap": sizes >= 2, "duplicate": sizes >= 1, "splice": (sizes >= 1) & (others >= 1)}[kind]
    origin = able.nonzero().flatten()
    length = sizes[origin]
    number = torch.arange(len(origin)).repeat_interleave(length)
    first = length.cumsum(0) - length
    sequence = parts[starts[origin[number]] + torch.arange(len(number)) - first[number]]
    one = first + _below(length, generator)
    if kind == "swap":
        two = first + (one - first + 1 + _below(length - 1, generator)) % length
        sequence[one], sequence[two] = sequence[two], sequence[one]
    elif kind == "duplicate":
        times = torch.ones_like(sequence)
        times[one] = 2
        sequence, number = sequence.repeat_interleave(times), number.repeat_interleave(times)
    else:
        # Parts prompt by prompt: another prompt's part is one outside this prompt's stretch.
        along = parts[of[response.index[parts]].sort(stable=True).indices]
        start = (of_prompt.cumsum(0) - of_prompt)[of[origin]]
        place = _below(others[origin], generator)
        sequence[one] = along[place + (place >= start) * of_prompt[of[origin]]]
    pairs = PreferencePairs.of(origin, response.count + torch.arange(len(origin)), step=f"{kind} corruption")
    corrupted = Corrupted(sequence, Groups(number, len(origin)), origin)
    return pairs, corrupted, pairs.report(0, {"responses": response.count})


def _below(count: Tensor, generator: torch.Generator) -> Tensor:
    """A whole number from 0 to below each count."""
    draw = torch.rand(len(count), generator=generator, dtype=torch.float64)
    return torch.minimum((draw * count).long(), count - 1)
