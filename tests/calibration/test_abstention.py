"""Abstention: what is promised holds over many held-out sets, and too few pairs promise nothing."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, binom

from ebrm.calibration import Abstention, conformal_abstention, selective_abstention
from ebrm.errors import ConfigError, DataError

SPLITS = 200


def draw(generator: np.random.Generator, count: int, spread: float = 2.0) -> np.ndarray:
    """P(chosen > rejected) of an overconfident head: its confidence orders pairs rightly and is too high."""
    odds = generator.normal(0, spread, count)
    right = generator.random(count) < 1 / (1 + np.exp(-np.abs(odds)))
    side = np.where(right, 1, -1) * np.abs(odds)
    return 1 / (1 + np.exp(-3 * side))


def outcomes(rule: Abstention, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether new pairs are decided, and wrongly."""
    decided = rule.decides(p)
    return decided, decided & (p < 0.5)


@pytest.mark.parametrize(("count", "risk"), [(30, 0.1), (200, 0.1), (200, 0.15), (99, 0.02)])
def test_the_marginal_risk_holds_over_two_hundred_held_out_sets_and_is_used_up(count, risk):
    generator = np.random.default_rng(0)
    new = 500
    rates = []
    for _ in range(SPLITS):
        p = draw(generator, count + new)
        rates.append(outcomes(conformal_abstention(p[:count], risk=risk), p[count:])[1].mean())
    # A set's true risk is Beta-distributed around its mean (the rank of the quantile), its estimate binomial.
    rank = math.ceil((count + 1) * (1 - risk))
    spread = beta.var(count + 1 - rank, rank) + risk * (1 - risk) / new
    tolerance = 3.5 * math.sqrt(spread / SPLITS)
    assert risk - 1 / (count + 1) - tolerance <= np.mean(rates) <= risk + tolerance


@pytest.mark.parametrize("risk", [0.1, 0.2])
def test_the_selective_risk_holds_for_the_stated_share_of_two_hundred_held_out_sets(risk):
    generator = np.random.default_rng(1)
    p = draw(np.random.default_rng(2), 400_000)
    sure = np.maximum(p, 1 - p)
    order = np.argsort(-sure)
    error = np.cumsum(p[order] < 0.5) / np.arange(1, len(p) + 1)  # true error rate of the most confident
    broken, decided = 0, []
    for _ in range(SPLITS):
        held = draw(generator, 300)
        rule = selective_abstention(held, generator, risk=risk, level=0.9)
        kept = int((sure > rule.threshold).sum())
        decided.append(kept / len(p))
        broken += kept > 0 and error[kept - 1] > risk
    assert broken <= binom.ppf(0.9999, SPLITS, 0.1)
    assert np.mean(decided) > 0.1


def test_the_threshold_is_the_split_conformal_quantile():
    p = draw(np.random.default_rng(3), 150)
    score = np.sort(np.where(p > 0.5, 0.0, np.maximum(p, 1 - p)))
    for risk in (0.02, 0.05, 0.1, 0.15):
        quantile = score[math.ceil(151 * (1 - risk)) - 1]
        assert conformal_abstention(p, risk=risk).threshold == max(quantile, 0.5)


def test_the_selective_threshold_is_where_the_upper_bound_of_the_error_rate_last_is_the_risk_or_less():
    p = draw(np.random.default_rng(4), 200, spread=4.0)
    rule = selective_abstention(p, np.random.default_rng(0), risk=0.1, level=0.9)
    sure, wrong = np.maximum(p, 1 - p), p < 0.5
    order = np.argsort(-sure)
    passed = []
    for k in range(20, 201, 20):
        if k < 22:  # of fewer, none without an error would do
            continue
        errors = wrong[order[:k]].sum()
        upper = beta.ppf(0.9, errors + 1, k - errors) if errors < k else 1.0
        if upper > 0.1:
            break
        passed.append(k)
    assert passed and passed[-1] < 200
    assert rule.threshold == sure[order[passed[-1]]]
    assert rule.decides(p).sum() == passed[-1]


def test_a_failed_test_ends_the_sequence():
    # The 20% most confident pairs are all wrong, the rest right: later shares would pass, and must not count.
    p = np.concatenate([np.full(20, 0.001), np.linspace(0.6, 0.9, 980)])
    assert selective_abstention(p, np.random.default_rng(0), risk=0.1).threshold == 1.0


@pytest.mark.parametrize(("risk", "needed"), [(0.1, 9), (0.05, 19), (0.3, 3), (0.01, 99)])
def test_too_few_prompts_promise_nothing_and_say_how_many_are_needed(risk, needed):
    few = conformal_abstention(np.full(needed - 1, 0.9), risk=risk)
    assert not few.possible and few.threshold == 1.0 and few.decided == 0 and few.needed == needed
    assert f"{needed} are needed" in few.sentence() and "cannot be promised" in few.sentence()
    enough = conformal_abstention(np.full(needed, 0.9), risk=risk)
    assert enough.possible and enough.decided == 1 and enough.threshold == 0.5


def test_the_selective_rule_needs_as_many_prompts_as_would_pass_without_an_error():
    assert selective_abstention(np.full(21, 0.9), np.random.default_rng(0), risk=0.1).needed == 22
    assert 0.9**22 <= 0.1 < 0.9**21
    assert selective_abstention(np.full(21, 0.9), np.random.default_rng(0), risk=0.1).decided == 0
    assert selective_abstention(np.full(22, 0.9), np.random.default_rng(0), risk=0.1).decided == 1


def test_without_pairs_nothing_is_decided():
    for rule in (conformal_abstention([]), selective_abstention([], np.random.default_rng(0))):
        assert (rule.threshold, rule.decided, rule.pairs, rule.prompts) == (1.0, 0.0, 0, 0)
        assert not rule.decides([1.0])[0]


def test_always_right_decides_everything_and_always_wrong_nothing():
    generator = np.random.default_rng(0)
    right, wrong = np.linspace(0.6, 0.99, 100), np.linspace(0.01, 0.4, 100)
    for rule in (conformal_abstention(right), selective_abstention(right, generator)):
        assert rule.threshold == 0.5 and rule.decided == 1 and rule.wrong == 0
    assert selective_abstention(wrong, generator).decided == 0
    # Of all pairs 10% may be decided wrongly, and so many are.
    assert conformal_abstention(wrong).decided == pytest.approx(0.09)


def test_pairs_of_one_prompt_count_as_one():
    p = draw(np.random.default_rng(5), 80)
    copies, prompt = np.repeat(p, 4), np.repeat(np.arange(80), 4)
    one, four = conformal_abstention(p), conformal_abstention(copies, prompt_id=prompt)
    assert four.threshold == one.threshold and four.decided == pytest.approx(one.decided)
    assert (four.pairs, four.prompts) == (320, 80)
    assert conformal_abstention(np.repeat(p[:8], 4), prompt_id=prompt[:32]).possible is False
    first = selective_abstention(p, np.random.default_rng(0), risk=0.2)
    second = selective_abstention(copies, np.random.default_rng(1), risk=0.2, prompt_id=prompt)
    assert second.threshold == first.threshold


def test_the_marginal_risk_holds_for_prompts_with_many_pairs():
    # A prompt's pairs are right or wrong together, which would be far too bold if they counted as 5 pairs each.
    generator = np.random.default_rng(6)
    rates = []
    for _ in range(SPLITS):
        p = np.repeat(draw(generator, 540), 5)
        prompt = np.repeat(np.arange(40), 5)
        rule = conformal_abstention(p[:200], risk=0.1, prompt_id=prompt)
        rates.append(outcomes(rule, p[200:])[1].mean())
    spread = beta.var(4, 37) + 0.1 * 0.9 / 500
    assert np.mean(rates) <= 0.1 + 3.5 * math.sqrt(spread / SPLITS)
    assert np.mean(rates) >= 0.1 - 1 / 41 - 3.5 * math.sqrt(spread / SPLITS)


def test_one_pair_a_prompt_is_drawn_by_the_generator():
    p = draw(np.random.default_rng(7), 600)
    prompt = np.arange(600) // 6
    rules = [selective_abstention(p, np.random.default_rng(seed), risk=0.25, prompt_id=prompt) for seed in (0, 0, 1)]
    assert rules[0] == rules[1] != rules[2]


@given(st.lists(st.tuples(st.floats(0, 1, width=16), st.booleans()), min_size=1, max_size=60), st.floats(0.02, 0.6))
def test_the_marginal_rule_does_not_depend_on_the_order_of_pairs_or_on_their_sides(pairs, risk):
    p, y = np.array([pair[0] for pair in pairs]), np.array([float(pair[1]) for pair in pairs])
    rule = conformal_abstention(p, y, risk)
    assert conformal_abstention(p[::-1], y[::-1], risk) == rule
    turned = conformal_abstention(1 - p, 1 - y, risk)
    assert (turned.threshold, turned.wrong) == (rule.threshold, rule.wrong)
    assert rule.wrong <= max(risk * (len(p) + 1) - 1, 0) / len(p) + 1e-9
    assert 0 <= rule.decided_low <= rule.decided <= rule.decided_high <= 1


def test_more_risk_decides_no_less():
    p = draw(np.random.default_rng(8), 120)
    decided = [conformal_abstention(p, risk=risk).decided for risk in (0.01, 0.05, 0.1, 0.2, 0.4)]
    assert decided == sorted(decided) and decided[0] < decided[-1]


def test_equal_confidences_are_decided_together():
    p = np.array([0.8] * 30 + [0.2] * 10 + [0.95] * 60)
    for rule in (conformal_abstention(p, risk=0.05), selective_abstention(p, np.random.default_rng(0), risk=0.05)):
        assert rule.threshold == 0.8 and rule.decided == pytest.approx(0.6)


def test_a_label_that_favors_neither_side_is_no_success():
    p = np.full(40, 0.9)
    assert conformal_abstention(p, np.full(40, 0.5)).decided == 0
    assert conformal_abstention(p, np.full(40, 0.6)).decided == 1


def test_what_is_decided_is_strictly_above_the_threshold():
    rule = Abstention("marginal", 0.1, None, 0.75, 0.5, 0.4, 0.6, 0.05, 100, 100, 9)
    assert rule.decides([0.75, 0.25, 0.76, 0.24, 0.5]).tolist() == [False, False, True, True, False]


def test_the_interval_of_the_share_decided_is_clopper_and_pearson_s():
    rule = conformal_abstention(draw(np.random.default_rng(9), 200))
    hits = round(rule.decided * 200)
    assert rule.error == pytest.approx(rule.wrong * 200 / hits)
    assert rule.decided_low == pytest.approx(beta.ppf(0.025, hits, 201 - hits))
    assert rule.decided_high == pytest.approx(beta.ppf(0.975, hits + 1, 200 - hits))


def test_the_sentences_say_threshold_share_guarantee_and_its_condition():
    rule = Abstention("marginal", 0.1, None, 0.7771, 0.41, 0.35, 0.47, 0.082, 212, 200, 9)
    assert rule.sentence() == (
        "Above confidence 0.778, 41% [35, 47] of pairs are decided (20% of these wrongly); at most 10% of all pairs "
        "are decided wrongly, on average over held-out sets (split conformal; holds if new pairs are exchangeable with "
        "the 212 held-out ones)."
    )
    other = Abstention("selective", 0.05, 0.9, 0.9, 0.2, 0.1, 0.3, 0.01, 300, 300, 45)
    assert "at most 5% of the decided pairs are wrong, with probability 0.9" in other.sentence()
    none = Abstention("selective", 0.05, 0.9, 1.0, 0.0, 0.0, 0.1, 0.0, 300, 300, 45)
    assert none.sentence().startswith("No pair is decided: only so at most 5%")


def test_a_rule_goes_through_json():
    p = draw(np.random.default_rng(10), 100)
    for rule in (conformal_abstention(p), selective_abstention(p, np.random.default_rng(0))):
        assert Abstention.from_dict(json.loads(json.dumps(rule.to_dict()))) == rule
    with pytest.raises(ConfigError, match="cannot be put together"):
        Abstention.from_dict({"risk": 0.1})


@pytest.mark.parametrize("risk", [0.0, 1.0, -0.1, math.nan])
def test_a_risk_is_between_zero_and_one(risk):
    with pytest.raises(ConfigError, match="`risk` is"):
        conformal_abstention([0.9], risk=risk)
    with pytest.raises(ConfigError, match="`risk` is"):
        selective_abstention([0.9], np.random.default_rng(0), risk=risk)


def test_bad_numbers_are_named():
    with pytest.raises(ConfigError, match="`level` is 1"):
        selective_abstention([0.9], np.random.default_rng(0), level=1.0)
    with pytest.raises(DataError, match="out of range"):
        conformal_abstention([1.2])
    with pytest.raises(DataError, match="label"):
        conformal_abstention([0.2], [7.0])
    with pytest.raises(ValueError, match="prompt_id"):
        conformal_abstention([0.2], prompt_id=["a", "b"])
