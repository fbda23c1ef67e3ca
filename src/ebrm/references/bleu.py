"""Smoothed sentence BLEU against reference answers, as a reward."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from ebrm.errors import ConfigError, DataError
from ebrm.utils.extras import install_hint
from ebrm.utils.validation import check_setting

#: How a text becomes words: mteval's 13a, at white space, or a function of one's own.
BleuTokenizer = Literal["13a", "whitespace"] | Callable[[str], Sequence[str]]


def smoothed_bleu(
    texts: Sequence[str],
    references: Sequence[str | Sequence[str]],
    *,
    tokenizer: BleuTokenizer = "13a",
    max_order: int = 4,
    effective_order: bool = False,
) -> Tensor:  # [n]
    """Smoothed sentence BLEU of each text against its references, in 0 … 1 (BLEUBERI, arXiv 2505.11080).

        BLEU = min(1, exp(1 - min|reference| / |text|)) * (prod_o p_o)^(1/max_order)
        p_o = (matches_o + 1) / (n-grams_o + 1)

    with n-gram matches clipped by the largest count in any reference. These are the numbers of Hugging Face evaluate's
    metric `bleu` with `smooth=True` on one text at a time; sacrebleu's smoothed sentence BLEU gives others (it does
    not smooth single words, and takes the reference of the closest length). Every order is smoothed, also one
    that a text is too short to have: one wrong word against a reference of one word has 0.84, so that short references
    say next to nothing (`effective_order`).

    Args:
        texts: the responses [n]; one without words has 0.
        references: for each, one text or several.
        tokenizer: "13a" (extra `references`), "whitespace", or a function from a text to its words.
        max_order: longest n-gram.
        effective_order: leave out the orders that a text is too short to have, as sacrebleu does (not in the
            paper).

    Returns:
        float32 [n], on the CPU.

    Raises:
        DataError: a text without a reference, or lists of other lengths. ConfigError: tokenizer, max_order.
    """
    check_setting("max_order", max_order, at_least=1)
    if isinstance(texts, str) or isinstance(references, str):
        raise TypeError("texts and references are lists, one entry for each response; got a single string")
    if len(texts) != len(references):
        raise DataError(f"There are {len(texts)} texts and references for {len(references)}; give references for each.")
    split = bleu_tokenizer(tokenizer)
    scores = []
    for place, (text, known) in enumerate(zip(texts, references, strict=True)):
        known = [known] if isinstance(known, str) else list(known)
        if not known:
            raise DataError(f"references[{place}] is an empty list; give at least one reference, or leave the row out.")
        scores.append(_bleu(split(text), [split(one) for one in known], max_order, effective_order))
    return torch.tensor(scores, dtype=torch.float32)


def bleu_tokenizer(tokenizer: BleuTokenizer) -> Callable[[str], Sequence[str]]:
    """The function from a text to its words that `tokenizer` of :func:`smoothed_bleu` names.

    Raises:
        ConfigError: another name, or the extra `references` is not installed.
    """
    if callable(tokenizer):
        return tokenizer
    if tokenizer == "whitespace":
        return str.split
    if tokenizer != "13a":
        raise ConfigError(f"tokenizer is {tokenizer!r}, but must be 13a, whitespace or a function.")
    try:
        from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
    except ImportError as error:
        raise ConfigError(
            f"The tokenizer 13a is sacrebleu's, which is not installed ({install_hint('references')}). The tokenizer "
            "whitespace needs nothing."
        ) from error
    split = Tokenizer13a()
    return lambda text: split(text).split()


def _bleu(words: Sequence[str], references: Sequence[Sequence[str]], max_order: int, effective_order: bool) -> float:
    if not words:
        return 0.0
    logs = []
    for order in range(1, max_order + 1):
        found, allowed = _ngrams(words, order), Counter[tuple[str, ...]]()
        for reference in references:
            allowed |= _ngrams(reference, order)  # the larger count of each
        if effective_order and not found:
            break
        logs.append(math.log((sum((found & allowed).values()) + 1) / (sum(found.values()) + 1)))
    shortest = min(map(len, references))
    brevity = min(0.0, 1 - shortest / len(words))
    return math.exp(brevity + sum(logs) / len(logs))


def _ngrams(words: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + order]) for i in range(len(words) - order + 1))
