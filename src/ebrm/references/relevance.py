"""Regularized relevance: relevance to the query, times an incentive for length, times a price of repetition."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ebrm.errors import DataError
from ebrm.utils.validation import ArrayLike, as_tensor, check_finite, check_mask, check_setting

# nltk's wordpunct_tokenize.
_WORDS = re.compile(r"\w+|[^\w\s]+")
#: Dot products with a reference that the paper maps to 0 … max_tokens / 100.
_REFERENCE_RANGE = 3.5


@dataclass(frozen=True, eq=False)
class Relevance:
    """Regularized relevance rewards [n], float32, and their factors.

    Attributes:
        reward: the product of the others, without `length` where the answer is constrained.
        relevance: dot product with the prompt, or the scaled one with the reference where the answer is constrained.
        length: words / 100.
        unique: share of trigrams that occur once or for the first time.
    """

    reward: Tensor
    relevance: Tensor
    length: Tensor
    unique: Tensor


def length_incentive(texts: Sequence[str]) -> Tensor:  # [n]
    r"""Words of each text, in hundreds (R3, arXiv 2402.03469); words are `\w+|[^\w\s]+` (nltk's wordpunct)."""
    return torch.tensor([len(_WORDS.findall(text)) / 100 for text in texts], dtype=torch.float32)


def unique_trigrams(texts: Sequence[str]) -> Tensor:  # [n]
    """Distinct trigrams of words over all trigrams of each text, in (0, 1]; 1 for fewer than three words (R3's RP)."""
    shares = []
    for text in texts:
        words = _WORDS.findall(text)
        found = list(zip(words, words[1:], words[2:], strict=False))
        shares.append(len(set(found)) / len(found) if found else 1.0)
    return torch.tensor(shares, dtype=torch.float32)


def relevance_reward(
    responses: Sequence[str],
    response_embedding: ArrayLike,
    prompt_embedding: ArrayLike,
    reference_embedding: ArrayLike | None = None,
    constrained: ArrayLike | None = None,
    *,
    max_tokens: int = 512,
) -> Relevance:
    """Regularized relevance reward (R3, arXiv 2402.03469).

        open-ended:   (M(x)·M(y)) * length * unique
        constrained:  F(M(ref)·M(y)) * unique,  F linear with F(0) = 0 and F(3.5) = max_tokens / 100, not clamped

    with M an embedder of sentences (the paper: Contriever, mean-pooled, not normalized; of an embedder with unit
    vectors, F reaches a third of its range). The paper's public code compares the reference with the response.
    Relevance alone makes policies copy the question; the factors are returned for that.

    Args:
        responses: texts y [n], cut where they should stop.
        response_embedding: M(y) [n, d].
        prompt_embedding: M(x) [n, d].
        reference_embedding: M(ref) [n, d]; what stands in rows that are not constrained is not looked at.
        constrained: True where there is one right answer [n]; None: nowhere.
        max_tokens: most tokens of a response.

    Raises:
        DataError: a number that is not finite, other lengths, or constrained rows without references.
        ConfigError: max_tokens.
    """
    check_setting("max_tokens", max_tokens, at_least=1)
    n = len(responses)
    y = check_finite(response_embedding, "response embedding [n, d]", n=n)
    x = check_finite(prompt_embedding, "prompt embedding [n, d]", n=n)
    relevance = _dot(x, y, "prompt")
    length, unique = length_incentive(responses).to(y.device), unique_trigrams(responses).to(y.device)
    incentive = length
    if constrained is not None:
        where = check_mask(constrained, "constrained [n]", y.device, n=n)
        if bool(where.any()):
            if reference_embedding is None:
                raise DataError(f"{int(where.sum())} responses are constrained, but no reference_embedding is given.")
            references = as_tensor(reference_embedding, "reference embedding", y.device)
            known = check_finite(references[where], "reference embedding", dims=2)
            scale = max_tokens / 100 / _REFERENCE_RANGE
            relevance = relevance.masked_scatter(where, _dot(known, y[where], "reference") * scale)
            incentive = length.masked_fill(where, 1)
    relevance = relevance.float()
    return Relevance(relevance * incentive * unique, relevance, length, unique)


def _dot(one: Tensor, other: Tensor, name: str) -> Tensor:
    if one.shape != other.shape:
        raise DataError(f"The {name} embeddings are {tuple(one.shape)} and the responses' {tuple(other.shape)}.")
    return (one * other).sum(1)
