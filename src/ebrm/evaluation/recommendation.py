"""Deploy, do not deploy, or bring more pairs: the rules, and what the held-out pairs could show at all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ebrm.errors import ConfigError
from ebrm.evaluation.anchors import AnchorDrift
from ebrm.metrics import FEW, PairedAccuracy, pairs_needed, smallest_difference
from ebrm.report import could_be_seen, count, points_estimate, too_few_of

Action = Literal["deploy", "do not deploy", "bring more pairs"]
#: Whether the reward model was trained on the pairs.
Seen = Literal["yes", "no", "unknown"]


@dataclass(frozen=True)
class DeploymentRule:
    """Bounds of the rules of `recommend`.

    Attributes:
        worth: the smallest difference of accuracies that is worth anything, a share.
        most_moved: mean |refined - base| on anchors that is allowed, in standard deviations of their base rewards.
        most_lost: accuracy on labeled anchors that may be lost, a share; more counts if its interval is below zero.
        least_prompts: held-out prompts from which on an interval is relied on, if there are also 30 pairs.
        power: chance to find a difference, of the numbers of pairs that are named, from 0.5 to below 1.

    Raises:
        ConfigError: a field is outside its range.
    """

    worth: float = 0.01
    most_moved: float = 0.5
    most_lost: float = 0.01
    least_prompts: int = 20
    power: float = 0.8

    def __post_init__(self) -> None:
        for name in ("worth", "most_moved", "most_lost"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"`{name}` is {getattr(self, name)!r}; a number of 0 or more was expected.")
        if not 0.5 <= self.power < 1:
            raise ConfigError(f"`power` is {self.power!r}; a share from 0.5 to below 1 was expected, such as 0.8.")
        if not isinstance(self.least_prompts, int) or self.least_prompts < 1:
            raise ConfigError(f"`least_prompts` is {self.least_prompts!r}; a whole number of 1 or more was expected.")


@dataclass(frozen=True)
class FitPower:
    """What the held-out pairs could show.

    Attributes:
        discordant: share of pairs that one reward ranks right and the other wrong.
        design_effect: of several pairs a prompt, on the difference.
        smallest: the smallest difference of accuracies found with `power`, a share; None: too few pairs for any.
        needed: held-out pairs in all that would show the observed difference; None where it is 0.
        fewest: those that would, were the true difference that end of its interval that is farther from 0.
        power: chance to find the difference.
    """

    discordant: float
    design_effect: float
    smallest: float | None
    needed: int | None
    fewest: int | None
    power: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dict(vars(self))


@dataclass(frozen=True)
class Recommendation:
    """What to do with a refined reward, and why.

    Attributes:
        action: one of three.
        pairs: how many more held-out pairs to bring, where that can be told.
        verdict: the action in words: "Deploy", "Bring about 1,300 more pairs to test on", …
        why: the reason, half a sentence.
    """

    action: Action
    pairs: int | None
    verdict: str
    why: str

    def __str__(self) -> str:
        """One sentence."""
        return f"{self.verdict}: {self.why}."

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `sentence` has all of it."""
        return {**vars(self), "sentence": str(self)}


def fit_power(overall: PairedAccuracy, effect: float, rule: DeploymentRule = DeploymentRule()) -> FitPower:
    """Power of a comparison of two rewards on the same pairs; `effect` is the design effect of their differences."""
    discordant, difference = (overall.flips_fixed + overall.flips_broken) / overall.pairs, overall.difference
    settings = {"design_effect": effect, "power": rule.power, "level": overall.bootstrap.level}
    smallest = smallest_difference(discordant, overall.pairs, **settings)
    end = max(difference.low, difference.high, key=lambda one: abs(one) if math.isfinite(one) else -1.0)
    return FitPower(
        discordant=discordant,
        design_effect=effect,
        smallest=None if math.isnan(smallest) else smallest,
        needed=pairs_needed(difference.value, discordant, **settings),
        fewest=pairs_needed(end, discordant, **settings) if math.isfinite(end) else None,
        power=rule.power,
    )


def drifts(anchors: AnchorDrift, rule: DeploymentRule = DeploymentRule()) -> bool:
    """Whether the refined reward is farther from the base reward on anchors than the rule allows."""
    lost = anchors.accuracy is not None and (
        anchors.accuracy.difference.high < 0 and -anchors.accuracy.difference.value > rule.most_lost
    )
    return lost or anchors.mean_abs.value > rule.most_moved


def recommend(
    overall: PairedAccuracy,
    effect: float = 1.0,
    *,
    unchanged: bool = False,
    anchors: AnchorDrift | None = None,
    seen: Seen = "unknown",
    worse: Sequence[str] = (),
    rule: DeploymentRule = DeploymentRule(),
) -> Recommendation:
    """Recommend what to do with a refined reward, by the first of these rules that holds.

    1. It is the base reward: do not deploy.
    2. The reward model was trained on the pairs and the refined reward is not better: bring pairs it has not seen, for
       its accuracy on these is not the one it has elsewhere.
    3. Fewer pairs than `ebrm.metrics.FEW` (30) or prompts than `rule.least_prompts`: too few to tell, bring more.
    4. The interval of the difference is below zero: do not deploy.
    5. The interval is above zero: deploy, unless it `drifts` on the anchors.
    6. It holds zero, and the difference is above zero: bring as many more as would show it, or `rule.worth` if that is
       larger; if there are that many already, or the difference is not above zero, do not deploy.

    Args:
        overall: both rewards on the held-out pairs.
        effect: design effect of the pairs' differences (:func:`ebrm.metrics.design_effect`).
        unchanged: whether the refined reward is the base reward on all of these pairs.
        anchors: drift on anchors held out.
        seen: whether the reward model was trained on these pairs.
        worse: kinds of pairs on which the refined reward is clearly worse.
        rule: the bounds.
    """
    difference, pairs = overall.difference, overall.pairs
    points = points_estimate(difference, "\u00a0points")
    better, harmful = difference.low > 0, difference.high < 0
    if unchanged:
        return _not("the refined reward is the base reward")
    if seen == "yes" and not better:
        why = f"the reward model was trained on these, and is better on them than on new ones ({points})"
        return Recommendation("bring more pairs", None, "Bring pairs that the reward model has not seen", why)
    found = fit_power(overall, effect, rule)
    wanted = 0
    if difference.value > 0:
        settings = {"design_effect": effect, "power": rule.power, "level": overall.bootstrap.level}
        wanted = pairs_needed(max(difference.value, rule.worth), found.discordant, **settings) or 0
    more = wanted - pairs
    if overall.prompts < rule.least_prompts or pairs < FEW:
        prompts = count(overall.prompts, "prompt")
        least = max(math.ceil(pairs * (rule.least_prompts / overall.prompts - 1)), FEW - pairs)
        said = too_few_of(pairs, "held-out pair", prompts)
        return _bring(max(least, more), f"{said} ({points}; {could_be_seen(found.smallest)})")
    if harmful:
        return _not(f"it is worse, {points}")
    if better:
        if anchors is not None and drifts(anchors, rule):
            return _not(f"it is better on these pairs, {points}, but moves too far on the anchors")
        where = f", but not on {', '.join(worse)}, where it is worse" if worse else ""
        if anchors is None:
            return Recommendation("deploy", 0, "Deploy on data like these", f"{points}{where}")
        why = f"{points}{where}, and close to the base reward on the anchors"
        return Recommendation("deploy", 0, "Deploy", why)
    if more > 0:
        return _bring(more, f"{points} is not clear of zero")
    if difference.value > 0:
        return _not(f"a gain worth having would have shown on these pairs ({points})")
    return _not(f"no gain was seen ({points})")


def _not(why: str) -> Recommendation:
    return Recommendation("do not deploy", None, "Do not deploy", why)


def _bring(pairs: int, why: str) -> Recommendation:
    return Recommendation("bring more pairs", pairs, f"Bring about {about(pairs)} more pairs to test on", why)


def about(number: int) -> str:
    """A number rounded up to two digits: 1,234 is 1,300."""
    unit = 10 ** max(0, len(str(number)) - 2)
    return f"{-(-number // unit) * unit:,}"
