"""Smoothed BLEU is that of tensorflow/nmt's compute_bleu, which Hugging Face evaluate wraps."""

from __future__ import annotations

import math
import sys
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ebrm.errors import ConfigError, DataError
from ebrm.references import bleu_tokenizer, smoothed_bleu

WORDS = st.lists(st.sampled_from("abcd"), max_size=9)


def test_known_answers() -> None:
    texts = ["a b c d e", "w x y z", "a b", "wrong", ""]
    references = ["a b c d e", "a b c d", "a b c d", "right", "right"]
    expected = [1.0, (1 / 120) ** 0.25, math.exp(-1), 0.5**0.25, 0.0]
    assert smoothed_bleu(texts, references).tolist() == pytest.approx(expected, rel=1e-6)
    assert smoothed_bleu(["w x y z"], ["a b c d"]).item() == pytest.approx(0.302138, abs=1e-6)
    assert smoothed_bleu(["wrong"], ["right"]).item() == pytest.approx(0.840896, abs=1e-6)
    # Only single words are counted where there are only those.
    assert smoothed_bleu(["wrong"], ["right"], effective_order=True).item() == 0.5


def compute_bleu(words: list[str], references: list[list[str]], max_order: int) -> float:
    """Written from the published formula order by order, with plain dictionaries."""
    if not words:
        return 0.0
    product = 1.0
    for order in range(1, max_order + 1):
        grams = [tuple(words[i : i + order]) for i in range(len(words)) if i + order <= len(words)]
        most: dict[tuple[str, ...], int] = {}
        for reference in references:
            seen = Counter(
                tuple(reference[i : i + order]) for i in range(len(reference)) if i + order <= len(reference)
            )
            most = {gram: max(most.get(gram, 0), seen.get(gram, 0)) for gram in {*most, *seen}}
        matches = sum(min(count, most.get(gram, 0)) for gram, count in Counter(grams).items())
        product *= (matches + 1) / (len(grams) + 1)
    shortest = min(len(reference) for reference in references)
    brevity = 1.0 if len(words) > shortest else math.exp(1 - shortest / len(words))
    return brevity * product ** (1 / max_order)


@given(WORDS, st.lists(WORDS, min_size=1, max_size=3), st.integers(1, 5))
def test_it_equals_the_published_computation(words: list[str], references: list[list[str]], order: int) -> None:
    given_references = [" ".join(reference) for reference in references]
    found = smoothed_bleu([" ".join(words)], [given_references], tokenizer="whitespace", max_order=order)
    assert found.item() == pytest.approx(compute_bleu(words, references, order), rel=1e-6)
    assert 0 <= found.item() <= 1
    assert torch.equal(
        found, smoothed_bleu([" ".join(words)], [given_references[::-1]], tokenizer="whitespace", max_order=order)
    )


def test_words_are_those_of_13a_unless_said_otherwise() -> None:
    assert bleu_tokenizer("13a")("Hello, world! 3.5") == ["Hello", ",", "world", "!", "3.5"]
    assert smoothed_bleu(["Hello, you"], ["Hello , you"]).item() == 1
    assert smoothed_bleu(["Hello, you"], ["Hello , you"], tokenizer="whitespace").item() < 1
    assert smoothed_bleu(["ABC"], ["abc"], tokenizer=lambda text: list(text.lower())).item() == 1


def test_mistakes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert smoothed_bleu([], []).shape == (0,)
    with pytest.raises(DataError, match=r"references\[1\] is an empty list"):
        smoothed_bleu(["a", "b"], ["a", []])
    with pytest.raises(DataError, match="2 texts and references for 1"):
        smoothed_bleu(["a", "b"], ["a"])
    with pytest.raises(TypeError, match="single string"):
        smoothed_bleu(["a"], "a")
    with pytest.raises(ConfigError, match="must be 13a, whitespace"):
        smoothed_bleu(["a"], ["a"], tokenizer="14")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="max_order"):
        smoothed_bleu(["a"], ["a"], max_order=0)
    monkeypatch.setitem(sys.modules, "sacrebleu.tokenizers.tokenizer_13a", None)
    with pytest.raises(ConfigError, match="sacrebleu's, which is not installed .*whitespace needs nothing"):
        smoothed_bleu(["a"], ["a"])
