"""Deploy, do not, or bring more pairs: every rule at its edges, and the sentences that come of it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebrm.errors import ConfigError
from ebrm.evaluation import AnchorDrift, DeploymentRule, LearningCurve, Memorization, fit_power, recommend
from ebrm.evaluation.answers import better_for_me, clearly_worse, deploy, what_else_moves
from ebrm.evaluation.recommendation import about, drifts
from ebrm.metrics import Bootstrap, Estimate, PairedAccuracy, paired_accuracy, pairs_needed, smallest_difference

BOOTSTRAP = Bootstrap(50)
RULE = DeploymentRule()


def accuracy(
    difference: float, low: float, high: float, pairs: int = 1000, prompts: int = 1000, flips: float = 0.2
) -> PairedAccuracy:
    """Accuracies with this difference and interval, `flips` a share of pairs."""
    made = paired_accuracy(np.ones(4), np.zeros(4), np.ones(4), np.zeros(4), bootstrap=BOOTSTRAP)
    changed, gained = round(flips * pairs), round(difference * pairs)
    fixed = (changed + gained) // 2
    return replace(
        made, base=Estimate(0.6, 0.57, 0.63), refined=Estimate(0.6 + difference, 0.5, 0.7), pairs=pairs,
        prompts=prompts, difference=Estimate(difference, low, high), flips_fixed=fixed, flips_broken=changed - fixed,
    )  # fmt: skip


def drift(moved: float = 0.2, lost: Estimate | None = None) -> AnchorDrift:
    found = accuracy(lost.value, lost.low, lost.high) if lost else None
    one = Estimate(moved, moved, moved)
    return AnchorDrift(
        rows=400, pairs=200 if found else 0, prompts=200, std=1.0, mean_abs=one, max_abs=2.0,
        rank_correlation=Estimate(0.9, 0.88, 0.92), flipped=Estimate(0.1, 0.08, 0.12), compared=200, accuracy=found,
        bootstrap=BOOTSTRAP,
    )  # fmt: skip


BETTER, WORSE = accuracy(0.03, 0.01, 0.05), accuracy(-0.03, -0.05, -0.01)
UNCLEAR, NO_GAIN = accuracy(0.02, -0.01, 0.05), accuracy(-0.005, -0.03, 0.02)


@pytest.mark.parametrize(
    ("overall", "more", "action", "sentence"),
    [
        (BETTER, {}, "deploy", "Deploy on data like these: +3.0 points [+1.0, +5.0]."),
        (
            BETTER,
            {"anchors": drift()},
            "deploy",
            "Deploy: +3.0 points [+1.0, +5.0], and close to the base reward on the anchors.",
        ),
        (BETTER, {"anchors": drift(0.6)}, "do not deploy", "Do not deploy: it is better on these pairs, +3.0 points"),
        (BETTER, {"worse": ("code", "maths")}, "deploy", "[+1.0, +5.0], but not on code, maths, where it is worse."),
        (BETTER, {"seen": "yes"}, "deploy", "Deploy on data like these: +3.0"),
        (BETTER, {"unchanged": True}, "do not deploy", "Do not deploy: the refined reward is the base reward."),
        (WORSE, {}, "do not deploy", "Do not deploy: it is worse, −3.0 points [−5.0, −1.0]."),
        (WORSE, {"seen": "no"}, "do not deploy", "Do not deploy: it is worse"),
        (WORSE, {"seen": "yes"}, "bring more pairs", "Bring pairs that the reward model has not seen: the reward"),
        (UNCLEAR, {"seen": "yes"}, "bring more pairs", "Bring pairs that the reward model has not seen"),
        (UNCLEAR, {}, "bring more pairs", "more pairs to test on: +2.0 points [−1.0, +5.0] is not clear of zero."),
        (NO_GAIN, {}, "do not deploy", "Do not deploy: no gain was seen (−0.5 points [−3.0, +2.0])."),
        (accuracy(0.0, -0.02, 0.02), {}, "do not deploy", "no gain was seen"),
    ],
)
def test_each_rule_has_its_sentence(overall: PairedAccuracy, more: dict[str, Any], action: str, sentence: str) -> None:
    found = recommend(overall, **more)
    assert found.action == action and sentence in str(found).replace("\u00a0", " ")
    assert json.loads(json.dumps(found.to_dict()))["sentence"] == str(found)


@pytest.mark.parametrize(
    ("low", "high", "action"),
    [
        (0.0, 0.05, "bring more pairs"),  # an interval that ends at zero holds it
        (1e-9, 0.05, "deploy"),
        (-0.05, 0.0, "bring more pairs"),
        (-0.05, -1e-9, "do not deploy"),
    ],
)
def test_an_interval_that_ends_at_zero_is_not_clear_of_it(low: float, high: float, action: str) -> None:
    assert recommend(accuracy(0.02, low, high)).action == action


def test_as_many_pairs_are_asked_for_as_would_show_the_difference() -> None:
    needed = pairs_needed(0.02, 0.2)
    found = recommend(UNCLEAR)
    assert needed is not None and found.pairs == needed - 1000 > 0
    assert found.verdict == f"Bring about {about(found.pairs)} more pairs to test on"
    twice = recommend(UNCLEAR, 2.0)
    assert twice.pairs == (pairs_needed(0.02, 0.2, design_effect=2.0) or 0) - 1000
    assert recommend(UNCLEAR, rule=DeploymentRule(power=0.9)).pairs == (pairs_needed(0.02, 0.2, power=0.9) or 0) - 1000


def test_no_more_pairs_are_asked_for_than_show_a_difference_worth_having() -> None:
    tiny = accuracy(0.001, -0.01, 0.012, pairs=2000)
    assert recommend(tiny).pairs == (pairs_needed(0.01, 0.2) or 0) - 2000
    many = accuracy(0.001, -0.002, 0.004, pairs=50_000, flips=0.1)
    assert str(recommend(many)).startswith("Do not deploy: a gain worth having would have shown")
    assert 7000 < (pairs_needed(0.01, 0.1) or 0) < 8000
    enough, short = (accuracy(0.005, -0.001, 0.011, pairs=pairs, flips=0.1) for pairs in (8000, 7000))
    assert recommend(enough).action == "do not deploy" and recommend(short).action == "bring more pairs"
    assert recommend(enough, rule=DeploymentRule(worth=0.009)).action == "bring more pairs"


@pytest.mark.parametrize(("prompts", "action"), [(19, "bring more pairs"), (20, "deploy")])
def test_few_prompts_are_never_enough_to_deploy(prompts: int, action: str) -> None:
    assert recommend(replace(BETTER, prompts=prompts)).action == action


def test_from_few_prompts_at_least_as_many_pairs_are_asked_for_as_reach_enough() -> None:
    few = accuracy(0.4, 0.1, 0.5, pairs=10, prompts=5, flips=0.5)
    found = recommend(few)
    assert found.pairs == 30 and "10 held-out pairs of 5 prompts are too few to tell (+40.0" in str(found)
    one = accuracy(0.0, math.nan, math.nan, pairs=3, prompts=1)
    assert "only a difference of about" in str(found)
    assert "3 held-out pairs of 1 prompt are too few to tell" in str(recommend(one)) and recommend(one).pairs == 57
    assert recommend(accuracy(-0.4, -0.5, -0.1, pairs=29, prompts=29, flips=0.5)).action == "bring more pairs"
    assert recommend(accuracy(-0.4, -0.5, -0.1, pairs=30, prompts=30, flips=0.5)).action == "do not deploy"


@pytest.mark.parametrize(
    ("anchors", "far"),
    [
        (drift(0.5), False),
        (drift(0.5001), True),
        (drift(math.nan), False),
        (drift(0.1, Estimate(-0.011, -0.02, -0.001)), True),
        (drift(0.1, Estimate(-0.01, -0.02, -0.001)), False),  # no more than may be lost
        (drift(0.1, Estimate(-0.05, -0.11, 0.0)), False),  # not clear
        (drift(0.1, Estimate(0.05, 0.01, 0.09)), False),
        (drift(0.6, Estimate(0.05, 0.01, 0.09)), True),
    ],
)
def test_drift_is_too_far_beyond_its_bounds(anchors: AnchorDrift, far: bool) -> None:
    assert drifts(anchors) == far
    assert (recommend(BETTER, anchors=anchors).action == "deploy") != far


def test_bounds_can_be_set_and_are_checked() -> None:
    assert drifts(drift(0.2), DeploymentRule(most_moved=0.1)) and not drifts(drift(0.6), DeploymentRule(most_moved=1))
    for field, value in (("worth", -1.0), ("most_moved", math.nan), ("most_lost", -0.1), ("power", 0.3), ("power", 1)):
        with pytest.raises(ConfigError, match=f"`{field}` is"):
            DeploymentRule(**{field: value})
    with pytest.raises(ConfigError, match="`least_prompts` is 0"):
        DeploymentRule(least_prompts=0)


@given(
    value=st.floats(-0.1, 0.1), width=st.floats(0, 0.1), pairs=st.integers(1, 5000), flips=st.floats(0.1, 0.5),
    effect=st.floats(0.5, 4), moved=st.floats(0, 1), seen=st.sampled_from(["yes", "no", "unknown"]),
)  # fmt: skip
def test_deploying_takes_a_clear_gain_and_more_pairs_are_a_positive_number(
    value: float, width: float, pairs: int, flips: float, effect: float, moved: float, seen: Any
) -> None:
    overall = accuracy(value, value - width, value + width, pairs=pairs, prompts=pairs, flips=flips)
    found = recommend(overall, effect, anchors=drift(moved), seen=seen)
    if found.action == "deploy":
        assert value - width > 0 and moved <= 0.5 and pairs >= 20
    if found.action == "bring more pairs":
        assert (found.pairs is None) == (seen == "yes" and value - width <= 0)
        assert found.pairs is None or found.pairs > 0


def test_power_is_that_of_the_observed_flips() -> None:
    power = fit_power(UNCLEAR, 1.5)
    assert power.discordant == pytest.approx(0.2) and power.design_effect == 1.5
    assert power.smallest == smallest_difference(0.2, 1000, design_effect=1.5)
    assert power.needed == pairs_needed(0.02, 0.2, design_effect=1.5)
    assert power.fewest == pairs_needed(0.05, 0.2, design_effect=1.5)
    assert fit_power(NO_GAIN, 1.0).fewest == pairs_needed(-0.03, 0.2)
    nothing = fit_power(accuracy(0.0, math.nan, math.nan, pairs=2), 1.0)
    assert nothing.smallest is nothing.needed is nothing.fewest is None
    assert json.loads(json.dumps(power.to_dict(), allow_nan=False))["power"] == 0.8


@pytest.mark.parametrize(
    ("number", "said"), [(7, "7"), (42, "42"), (101, "110"), (1234, "1,300"), (990_001, "1,000,000")]
)
def test_numbers_of_pairs_are_rounded_up_to_two_digits(number: int, said: str) -> None:
    assert about(number) == said


def plain(answer: Any) -> str:
    return " ".join([answer.answer, *answer.details]).replace("\u00a0", " ")


@pytest.mark.parametrize(
    ("overall", "short"),
    [
        (BETTER, "Yes: +3.0 points [+1.0, +5.0]"),
        (WORSE, "No, worse: −3.0 points [−5.0, −1.0]"),
        (UNCLEAR, "Not clear: +2.0 points [−1.0, +5.0]"),
    ],
)
def test_better_for_me_has_the_difference_and_both_accuracies(overall: PairedAccuracy, short: str) -> None:
    said = plain(better_for_me(overall, fit_power(overall, 1.0), "unknown", None, (), False))
    assert said.startswith(short) and "On 1,000 held-out pairs from 1,000 prompts the base reward ranks 60.0%" in said


def test_better_for_me_says_that_pairs_are_too_few() -> None:
    few = accuracy(0.4, 0.1, 0.5, pairs=12, prompts=12, flips=0.5)
    found = better_for_me(few, fit_power(few, 1.0), "unknown", None, (), False)
    smallest = 100 * (fit_power(few, 1.0).smallest or 0)
    assert found.answer == (
        f"12 pairs are too few to tell; only a difference of about {smallest:.0f} points or more could be seen"
    )


def test_better_for_me_says_whether_the_pairs_were_seen() -> None:
    suspicious = Memorization(accuracy(0.14, 0.1, 0.18), 0.05)
    found = {
        seen: plain(better_for_me(BETTER, fit_power(BETTER, 1.0), seen, suspicious, ("A note.",), False))  # type: ignore[arg-type]
        for seen in ("yes", "no", "unknown")
    }
    assert "The reward model was trained on these pairs" in found["yes"] and "trained on them?" not in found["yes"]
    assert "has not seen these pairs" in found["no"] and "trained on them?" in found["no"]
    assert "was not stated" in found["unknown"] and "trained on them?" in found["unknown"]
    assert all("A note." in said for said in found.values())


KINDS = {
    "code": accuracy(-0.05, -0.08, -0.02),
    "maths": accuracy(0.04, 0.01, 0.07),
    "chat": accuracy(0.0, -0.02, 0.02),
    "tiny": accuracy(-0.5, -0.6, -0.4, prompts=19),
    "-": accuracy(-0.09, -0.1, -0.08),
}


def test_kinds_that_clearly_moved_are_named_and_those_not_fitted_on_marked() -> None:
    said = plain(what_else_moves(None, KINDS, {"code", "maths", "chat"}, RULE))
    assert said.startswith("Not measured: there are no anchors")
    assert (
        "Of 4 kinds of held-out pairs with 20 prompts or more the refined reward is clearly worse on (no category) "
        "(−9.0 points [−10.0, −8.0], not fitted on), code (−5.0 points [−8.0, −2.0]), and clearly better on maths "
        "(+4.0 points [+1.0, +7.0]); 1 is not clearly changed."
    ) in said
    assert clearly_worse(KINDS, RULE) == ("code", "-")


def test_kinds_without_changes_many_changes_and_few_prompts() -> None:
    calm = {"a": KINDS["chat"], "b": KINDS["chat"]}
    assert "none is clearly better or worse" in plain(what_else_moves(None, calm, {"a"}, RULE))
    many = {f"k{n}": accuracy(-0.05 - n / 100, -0.3, -0.01) for n in range(7)}
    said = plain(what_else_moves(None, many, set(many), RULE))
    assert "k6" in said and "k3" in said and "k2" not in said and "and 3 others." in said
    tiny = {"a": KINDS["tiny"], "b": KINDS["tiny"]}
    assert "None of 2 kinds" in plain(what_else_moves(None, tiny, set(), RULE)) and clearly_worse(tiny, RULE) == ()
    assert clearly_worse({"a": WORSE}, RULE) == ()  # one kind is all pairs
    assert "kinds of" not in plain(what_else_moves(None, {"a": WORSE}, set(), RULE))


def test_drift_on_anchors_is_told_with_its_bound() -> None:
    little = plain(what_else_moves(drift(0.2, Estimate(0.01, -0.01, 0.03)), {}, (), RULE))
    assert little.startswith("Little: 0.20 standard deviations on anchors") and "up to 0.5 is allowed" in little
    assert "Rank correlation 0.90 [0.88, 0.92]" in little and "10.0% [8.0, 12.0] changed their order" in little
    assert "Accuracy on 1,000 labeled anchor pairs" in little and "difference +1.0 points [−1.0, +3.0]" in little
    much = plain(what_else_moves(replace(drift(0.7), flipped=None), {}, (), RULE))
    assert much.startswith("Too much: 0.70") and "changed their order" not in much and "labeled anchor" not in much
    assert plain(what_else_moves(drift(math.nan), {}, (), RULE)).startswith("Not known")


def test_what_to_do_says_what_these_pairs_could_show_and_what_it_takes() -> None:
    def said(overall: PairedAccuracy, curve: LearningCurve | None = None) -> str:
        return plain(deploy(recommend(overall), fit_power(overall, 1.0), overall, curve))

    text = said(UNCLEAR)
    smallest = 100 * smallest_difference(0.2, 1000)
    assert text.startswith("Bring about") and f"a difference of {smallest:.1f} points or more is found with 80%" in text
    assert f"about {about(pairs_needed(0.02, 0.2) or 0)} held-out pairs in all" in text
    assert f"{about(pairs_needed(0.05, 0.2) or 0)} if it is the upper end of its interval" in text
    assert "was not measured" in text
    assert "held-out pairs in all" not in said(BETTER) and "held-out pairs in all" not in said(NO_GAIN)
    gain = Estimate(0.02, 0.01, 0.03)
    assert "would add at most about that" in said(BETTER, LearningCurve((25, 50, 100), (gain,) * 3, gain))
    assert "so few can show no difference" in said(accuracy(0.0, math.nan, math.nan, pairs=2, prompts=2))
