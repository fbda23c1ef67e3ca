"""The items that a refined reward lost to its base: how many, and the worst of them with their texts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ebrm.data import conversation
from ebrm.evaluation.pairs import Pairs
from ebrm.evaluation.results import Regression
from ebrm.evaluation.scored import Common
from ebrm.evaluation.scores import Scores

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

#: Regressions shown for each refined scorer.
EXAMPLES = 6

# Official values closer than this are equal but for rounding.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Flips:
    """Items whose official value changed from the base to the refined reward.

    Attributes:
        fixed: how many rose; where items are right or wrong, the base had them wrong and the refined has them right.
        broken: how many fell.
    """

    fixed: int
    broken: int


def count_flips(item: Integers, weight: Floats, base: Floats, refined: Floats) -> Flips:
    """Count the items that refining fixed and broke.

    Args:
        item: item of each official value [k].
        weight: weight of each value in the overall score [k]. An item with several values counts by their mean with
            these weights; one that is in no overall score counts by their plain mean.
        base: official values of the base reward [k].
        refined: official values of the refined reward [k].
    """
    total, values = np.bincount(item, weights=weight), np.bincount(item)
    share = np.where(total[item] > 0, weight / np.where(total > 0, total, 1.0)[item], 1.0 / values[item])
    change = np.bincount(item, weights=share * (refined - base))
    return Flips(int((change > _ROUNDING).sum()), int((change < -_ROUNDING).sum()))


def reward_unit(reward: Floats) -> float:
    """The standard deviation of a scorer's rewards over all responses, the unit of its margins; 1 if it is 0."""
    spread = float(np.nanstd(reward))
    return spread if spread > 0 else 1.0


def worst_regressions(
    common: Common, pairs: Pairs, base: Scores, refined: Scores, most: int = EXAMPLES
) -> tuple[Regression, ...]:
    """The pairs that the base reward has right and the refined one has not, the largest drop of the margin first.

    Margins are measured in each scorer's own unit (`reward_unit`). Each prompt shows at most one pair, its worst; pairs
    of equal drop stay in the order of the items, which is that of their ids.

    Args:
        common: the items compared.
        pairs: pairs of their responses.
        base: scores of the base reward for those items.
        refined: scores of the refined reward.
        most: how many at most.
    """
    first, second = (
        scores.reward[pairs.item, pairs.a] - scores.reward[pairs.item, pairs.b] for scores in (base, refined)
    )
    drop = first / reward_unit(base.reward) - second / reward_unit(refined.reward)
    lost = np.flatnonzero((first > 0) & (second <= 0))
    items = common.benchmark.items
    worst = lost[np.argsort(-drop[lost], kind="stable")]
    found: list[Regression] = []
    seen: set[int] = set()
    for row in worst.tolist():
        place, right, wrong = int(pairs.item[row]), int(pairs.a[row]), int(pairs.b[row])
        prompt = int(common.prompt[place])
        if prompt in seen:
            continue
        seen.add(prompt)
        item = items[place]
        found.append(
            Regression(
                item=item.id,
                group=item.group,
                prompt=conversation(item.prompt),
                right=item.responses[right],
                wrong=item.responses[wrong],
                base=(float(base.reward[place, right]), float(base.reward[place, wrong])),
                refined=(float(refined.reward[place, right]), float(refined.reward[place, wrong])),
                scorer=refined.name,
            )
        )
        if len(found) == most:
            break
    return tuple(found)
