from __future__ import annotations

import math

import pytest

from ebrm.metrics import Estimate
from ebrm.report import words


def plain(text: str) -> str:
    return text.replace(words.NO_BREAK, " ")


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (words.percent_estimate(Estimate(0.523, 0.491, 0.554)), "52.3 [49.1, 55.4]"),
        (words.percent_estimate(Estimate(1, 1, 1), "%"), "100.0% [100.0, 100.0]"),
        (words.points_estimate(Estimate(-0.012, -0.03, 0.004)), "−1.2 [−3.0, +0.4]"),
        (words.percent_estimate(Estimate(0.5, math.nan, math.nan)), "50.0 [no interval]"),
        (words.percent(0.6149), "61.5%"),
        (words.percent(None), "–"),
        (words.p_value(0.0314), "p = 0.031"),
        (words.p_value(0.0009), "p < 0.001"),
        *zip(map(words.p_number, (None, math.nan, 0.0, 0.00099)), ("–", "–", "<0.001", "<0.001"), strict=True),
        *zip(map(words.p_number, (0.001, 0.0314, 1.0)), ("0.001", "0.031", "1.000"), strict=True),
        (words.count(1, "pair"), "1 pair"),
        (words.count(0, "pair"), "0 pairs"),
        (words.count(3012, "pair"), "3,012 pairs"),
        (words.shorten("a  b\nc", 5), "a b c"),
        (words.shorten("abcdefgh", 5), "abcd…"),
        (words.group_name("-", "source"), "(no source)"),
        (words.group_name("hh", "source"), "hh"),
        *zip(map(words.listing, ("a", "ab", "abc")), ("a", "a and b", "a, b and c"), strict=True),
        (words.clean("a\tb\nпривет 🦜 \u200f"), "a\tb\nпривет 🦜 \u200f"),
        (words.clean("\x00\x1b\ud83d\u202e\r\n\r"), "\ufffd\ufffd\ufffd\ufffd\n\n"),
    ],
)
def test_words(found: str, text: str) -> None:
    assert plain(found) == text


@pytest.mark.parametrize(
    ("value", "digits", "sign", "text"),
    [
        (1234.5, 1, False, "1,234.5"),
        (-0.04, 1, False, "0.0"),
        (-0.04, 1, True, "0.0"),
        (0.06, 1, True, "+0.1"),
        (-2, 0, False, "−2"),
        (None, 2, False, "–"),
        (math.nan, 2, False, "–"),
        (math.inf, 2, False, "–"),
    ],
)
def test_decimal(value: float | None, digits: int, sign: bool, text: str) -> None:
    assert words.decimal(value, digits, sign) == text


def test_reward_digits_follow_the_spread() -> None:
    assert [words.reward_digits([0, 2 * s]) for s in (30, 4, 1.8, 0.7, 0.05, 1e-12)] == [1, 1, 2, 2, 3, 8]
    assert words.reward_digits([]) == words.reward_digits([7, 7]) == 3


@pytest.mark.parametrize(
    ("name", "length", "text"),
    [
        ("short", 10, "short"),
        ("  two\nlines ", 64, "two lines"),
        ("abcdefghij", 10, "abcdefghij"),
        ("abcdefghijk", 10, "abcd…ghijk"),
        ("نموذج", 64, "نموذج\u200e"),
        ("שלום 1", 64, "שלום 1\u200e"),
        ("\x00", 64, "\ufffd"),
    ],
)
def test_names_fit_into_sentences(name: str, length: int, text: str) -> None:
    assert words.name_in_text(name, length) == text
    assert len(words.name_in_text(name * 100, length)) <= length + 1


def test_settings_become_rows() -> None:
    settings = {"a": {"b": {"c": 1.5}, "d": ()}, "e": True, "f": [1, None, "x"], "g": {}}
    assert words.setting_rows(settings) == [
        ["a.b.c", "1.5"],
        ["a.d", "none"],
        ["e", "yes"],
        ["f", "1, none, x"],
        ["g", "none"],
    ]
