"""The three questions that a fit answers first: better for me, what else moves, and whether to deploy it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from ebrm.evaluation.anchors import AnchorDrift
from ebrm.evaluation.learning import LearningCurve
from ebrm.evaluation.recommendation import DeploymentRule, FitPower, Recommendation, Seen, about, drifts
from ebrm.evaluation.seen_pairs import Memorization
from ebrm.metrics import NO_CATEGORY, Estimate, PairedAccuracy
from ebrm.report import Answer, count, decimal, interval, percent_estimate, points_estimate, too_few

#: Kinds that are named in a sentence; the others are counted.
_NAMED = 4


def better_for_me(
    overall: PairedAccuracy,
    power: FitPower,
    seen: Seen,
    memorization: Memorization | None,
    notes: Sequence[str],
    unchanged: bool,
) -> Answer:
    """Answer on the target: accuracy base to refined, whether the pairs were seen, and why where nothing changed."""
    points, few = _points(overall.difference), too_few(overall.pairs, power.smallest)
    short = {
        "better": f"Yes: {points}",
        "worse": f"No, worse: {points}",
        "no clear difference": f"Not clear: {points}",
        "too few to tell": few,
    }[overall.verdict]
    base, refined = (percent_estimate(side, "%") for side in (overall.base, overall.refined))
    details = [
        f"On {count(overall.pairs, 'held-out pair')} from {count(overall.prompts, 'prompt')} the base reward ranks "
        f"{base} as labeled, the refined reward {refined}.",
        *notes,
    ]
    known = {
        "yes": "The reward model was trained on these pairs: its accuracy on new ones is lower, and the difference "
        "there larger.",
        "no": "The reward model has not seen these pairs.",
        "unknown": "Whether the reward model was trained on these pairs was not stated; if it was, its accuracy here "
        "is too high.",
    }
    details.append(known[seen])
    if memorization is not None and seen != "yes":
        details.append(str(memorization))
    return Answer("Better for me?", "No: the refined reward is the base reward" if unchanged else short, tuple(details))


def what_else_moves(
    anchors: AnchorDrift | None,
    kinds: Mapping[str, PairedAccuracy],
    fitted: Collection[str],
    rule: DeploymentRule,
) -> Answer:
    """Answer on everything else: drift on anchors, and held-out kinds of pairs (`fitted`: those trained on)."""
    details = []
    if anchors is None:
        short = "Not measured: there are no anchors"
        details.append(
            "Anchors are texts whose reward should not move, such as those of the old domain; without them, only the "
            "kinds among the held-out pairs are known."
        )
    else:
        moved = f"{decimal(anchors.mean_abs.value, 2)} standard deviations on anchors"
        short = f"{'Too much' if drifts(anchors, rule) else 'Little'}: {moved}"
        if not math.isfinite(anchors.mean_abs.value):
            short = "Not known: the base reward is the same for all anchors"
        details.append(
            f"On {count(anchors.rows, 'anchor response')} from {count(anchors.prompts, 'prompt')} the refined reward "
            f"is {_ends(anchors.mean_abs)} standard deviations of the base reward away on average, at most "
            f"{decimal(anchors.max_abs, 2)}; up to {rule.most_moved:g} is allowed. "
            f"Rank correlation {_ends(anchors.rank_correlation)}."
        )
        if anchors.flipped is not None:
            details.append(
                f"Of {count(anchors.compared, 'comparison')} within a prompt {percent_estimate(anchors.flipped, '%')} "
                "changed their order."
            )
        if anchors.accuracy is not None:
            found = anchors.accuracy
            sides = [percent_estimate(side, "%") for side in (found.base, found.refined)]
            details.append(
                f"Accuracy on {count(found.pairs, 'labeled anchor pair')}: base {sides[0]}, refined {sides[1]}, "
                f"difference {_points(found.difference)}."
            )
    details += _kinds(kinds, fitted, rule)
    return Answer("What else moves?", short, tuple(details))


def clearly_worse(kinds: Mapping[str, PairedAccuracy], rule: DeploymentRule) -> tuple[str, ...]:
    """Kinds of pairs, of enough prompts, on which the interval of the difference is below zero."""
    enough = {name: one for name, one in kinds.items() if one.prompts >= rule.least_prompts}
    return tuple(name for name, one in enough.items() if one.verdict == "worse") if len(kinds) > 1 else ()


def _kinds(kinds: Mapping[str, PairedAccuracy], fitted: Collection[str], rule: DeploymentRule) -> list[str]:
    if len(kinds) < 2:
        return []
    enough = {name: one for name, one in kinds.items() if one.prompts >= rule.least_prompts}
    if not enough:
        return [f"None of {len(kinds)} kinds of held-out pairs has {rule.least_prompts} prompts, too few to judge any."]
    said = []
    for verdict in ("worse", "better"):
        names = [name for name, one in enough.items() if one.verdict == verdict]
        worst = sorted(names, key=lambda name: -abs(enough[name].difference.value))
        if names:
            listed = [
                f"{_kind(name)} ({_points(enough[name].difference)}" + (")" if name in fitted else ", not fitted on)")
                for name in worst[:_NAMED]
            ]
            more = f" and {count(len(names) - _NAMED, 'other')}" if len(names) > _NAMED else ""
            said.append(f"clearly {verdict} on {', '.join(listed)}{more}")
    judged = f"Of {len(enough)} kinds of held-out pairs with {rule.least_prompts} prompts or more"
    rest = len(enough) - sum(one.verdict in ("better", "worse") for one in enough.values())
    if not said:
        return [f"{judged} none is clearly better or worse."]
    others = f"; {rest} {'is' if rest == 1 else 'are'} not clearly changed" if rest else ""
    return [f"{judged} the refined reward is {', and '.join(said)}{others}."]


def deploy(
    recommendation: Recommendation, power: FitPower, overall: PairedAccuracy, curve: LearningCurve | None
) -> Answer:
    """Answer on what to do: the verdict, what these pairs could show, and what more would add."""
    details = []
    share = f"{100 * power.power:g}%"
    changed = f"The two rewards disagree on {100 * power.discordant:.1f}% of these {overall.pairs:,} pairs"
    if power.smallest is None:
        details.append(f"{changed}; so few can show no difference at all.")
    else:
        details.append(
            f"{changed}; with so many, a difference of {100 * power.smallest:.1f} points or more is found with "
            f"{share} probability."
        )
    if overall.verdict == "no clear difference" and power.needed is not None and overall.difference.value > 0:
        fewest = "" if power.fewest is None else f", {about(power.fewest)} if it is the upper end of its interval"
        details.append(
            f"It takes about {about(power.needed)} held-out pairs in all to show the difference if it is "
            f"{decimal(100 * overall.difference.value, 1, sign=True)} points{fewest}, and no number if it is zero."
        )
    details.append("What more training pairs would add was not measured." if curve is None else f"{curve}")
    return Answer("Deploy it?", recommendation.verdict, tuple(details))


def _kind(name: str) -> str:
    return "(no category)" if name == NO_CATEGORY else name


def _points(difference: Estimate) -> str:
    return points_estimate(difference, "\u00a0points")


def _ends(estimate: Estimate) -> str:
    return f"{decimal(estimate.value, 2)} {interval(estimate.low, estimate.high, 2)}"
