"""Abstention: the confidence from which comparisons are decided, so that a stated risk of wrong decisions holds.

Both rules hold for pairs exchangeable with the held-out ones: drawn as they were, from the same prompts' source, policy
and annotators. After a shift they promise nothing. A decision is *wrong* where the label favors the other side, or
neither; so the risk is against labels, wrong ones included. Every pair counts alike, whatever its weight.

Pairs of one prompt are not exchangeable with each other, but prompts are: what is promised is of a random pair of a new
prompt.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from scipy.special import bdtr, betaincinv

from ebrm.calibration.preference import confidence, prompt_numbers
from ebrm.errors import ConfigError
from ebrm.utils.validation import ArrayLike, check_range, check_setting

Kind = Literal["marginal", "selective"]

#: Rounding of sums of shares.
_ROUNDING = 1e-9
#: Shares of the pairs, the most confident first, that are tested one after another.
_SHARES = tuple(share / 10 for share in range(1, 11))


@dataclass(frozen=True)
class Abstention:
    """Which comparisons are decided: those whose confidence max(P, 1 - P) is above a threshold.

    Attributes:
        kind: what is promised. "marginal": a share of at most `risk` of *all* pairs is decided wrongly, on average over
            held-out sets. "selective": of the *decided* pairs at most `risk` are wrong, for a share `level` of held-out
            sets.
        risk: the share of wrong decisions that is allowed, above 0 and below 1.
        level: probability that "selective" holds; None for "marginal", which is a mean.
        threshold: 0.5 to 1, in terms of the P that was given; 1 where nothing can be decided.
        decided: share of pairs decided, a prompt's pairs counting as one.
        decided_low, decided_high: its 95% interval (Clopper-Pearson over prompts, which is wide enough).
        wrong: share of the held-out pairs that are decided wrongly, of all pairs.
        pairs, prompts: number of held-out pairs and of their prompts.
        needed: the fewest prompts with which this risk can be promised at all.
    """

    kind: Kind
    risk: float
    level: float | None
    threshold: float
    decided: float
    decided_low: float
    decided_high: float
    wrong: float
    pairs: int
    prompts: int
    needed: int

    @property
    def possible(self) -> bool:
        """Whether there are prompts enough to promise this risk; if not, nothing is decided."""
        return self.prompts >= self.needed

    @property
    def error(self) -> float:
        """Share of the decided held-out pairs that are wrong; 0 where none is decided."""
        return self.wrong / self.decided if self.decided else 0.0

    @property
    def guarantee(self) -> str:
        """What is promised, and on what condition."""
        pairs, risk = f"the {self.pairs:,} held-out ones", _percent(self.risk)
        if self.kind == "marginal":
            return (
                f"at most {risk} of all pairs are decided wrongly, on average over held-out sets (split "
                f"conformal; holds if new pairs are exchangeable with {pairs})"
            )
        return (
            f"at most {risk} of the decided pairs are wrong, with probability {self.level:g} (fixed-sequence "
            f"binomial tests; holds if new pairs are exchangeable with {pairs} and errors get no rarer where "
            "confidence falls)"
        )

    def decides(self, probability: ArrayLike) -> np.ndarray:
        """Which comparisons are decided, from P(a > b) as it was given for the held-out pairs; bool, any shape."""
        return confidence(probability).cpu().numpy() > self.threshold

    def sentence(self) -> str:
        """Threshold, share decided and guarantee, for people."""
        if not self.possible:
            return (
                f"A risk of {_percent(self.risk)} cannot be promised with {self.prompts:,} held-out prompts: "
                f"{self.needed:,} are needed at least. No pair is decided."
            )
        if self.threshold >= 1:
            return f"No pair is decided: only so {self.guarantee}."
        at = math.ceil(self.threshold * 1000 - _ROUNDING) / 1000
        share = f"{self.decided:.0%} [{100 * self.decided_low:.0f}, {100 * self.decided_high:.0f}]"
        share += f" of pairs are decided ({self.error:.0%} of these wrongly)"
        return f"Above confidence {at:g}, {share}; {self.guarantee}."

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Abstention:
        """Build it back from :meth:`to_dict`'s values; ConfigError where they are something else."""
        try:
            return cls(**values)
        except TypeError as error:
            raise ConfigError(f"An abstention cannot be put together from {values!r:.200}: {error}.") from error


def conformal_abstention(
    probability: ArrayLike,
    label: ArrayLike | None = None,
    risk: float = 0.1,
    prompt_id: ArrayLike | np.ndarray | None = None,
) -> Abstention:
    """The lowest threshold at which P(a new pair is decided, and wrongly) ≤ `risk`: split conformal prediction.

    With n prompts and L_g(t) the share of prompt g's pairs that are wrong with confidence above t, the lowest t with

        (Σ_g L_g(t) + 1) / (n + 1) ≤ risk

    (conformal risk control, Angelopoulos et al., arXiv 2208.02814; with one pair a prompt it is the split-conformal
    quantile, rank ⌈(n + 1)(1 - risk)⌉, of the confidences of wrong pairs and 0 for right ones). Needs ⌈1/risk⌉ - 1
    prompts. Nothing is assumed of the head; a better one decides more pairs. A rising map of confidences, such as a
    temperature, may be fitted on the same pairs.

    Args:
        probability: P(chosen > rejected) of held-out pairs [p], by which nothing was chosen.
        label: probability that the chosen side is better, 0 to 1 [p]; None: 1.
        risk: share of all pairs that may be decided wrongly, above 0 and below 1.
        prompt_id: prompt of each pair [p]; None: each pair its own.

    Raises:
        DataError: a probability or label that is not finite or out of range.
        ConfigError: `risk` out of range.
    """
    check_setting("risk", risk, above=0, below=1)
    sure, wrong = _outcomes(probability, label)
    prompt = prompt_numbers(prompt_id, len(sure))
    part = 1 / np.bincount(prompt)[prompt] if len(prompt) else np.empty(0)
    count = int(prompt.max(initial=-1)) + 1
    needed = math.ceil(1 / risk - _ROUNDING) - 1
    threshold = 1.0
    if count >= needed:
        bad = np.flatnonzero(wrong)
        order = bad[np.argsort(-sure[bad], kind="stable")]
        over = np.flatnonzero(np.cumsum(part[order]) > risk * (count + 1) - 1 + _ROUNDING)
        threshold = float(sure[order[over[0]]]) if len(over) else 0.5
    return _abstention("marginal", risk, None, threshold, sure, wrong, part, count, needed)


def selective_abstention(
    probability: ArrayLike,
    generator: np.random.Generator,
    label: ArrayLike | None = None,
    risk: float = 0.1,
    prompt_id: ArrayLike | np.ndarray | None = None,
    level: float = 0.9,
) -> Abstention:
    """The lowest threshold at which P(wrong | decided) ≤ `risk`, with probability `level` over the held-out pairs.

    Of one pair a prompt, drawn by `generator`, the most confident 10%, 20%, … 100% are tested in this order: k pairs
    with x errors pass if P(Binomial(k, risk) ≤ x) ≤ 1 - level, that is if the Clopper-Pearson upper bound of the error
    rate is `risk` or less (selective guaranteed risk, Geifman and El-Yaniv, 2017). The first that fails ends the
    sequence (fixed-sequence testing, Angelopoulos et al., arXiv 2110.01052), so no correction for many tests is needed;
    since the thresholds are the pairs' own, this asks that errors get no rarer where confidence falls. The shares begin
    where k pairs without an error would pass. Needs ⌈log(1 - level) / log(1 - risk)⌉ prompts.

    Args, Raises: as :func:`conformal_abstention`; `risk` is of the decided pairs, `level` above 0 and below 1.
    """
    check_setting("risk", risk, above=0, below=1)
    check_setting("level", level, above=0, below=1)
    sure, wrong = _outcomes(probability, label)
    prompt = prompt_numbers(prompt_id, len(sure))
    order = generator.permutation(len(prompt))
    drawn = order[np.unique(prompt[order], return_index=True)[1]]
    drawn = drawn[np.argsort(-sure[drawn], kind="stable")]
    count = len(drawn)
    needed = math.ceil(math.log(1 - level) / math.log(1 - risk) - _ROUNDING)
    threshold = 1.0
    for k in (math.ceil(share * count - _ROUNDING) for share in _SHARES):
        at = float(sure[drawn[k]]) if k < count else 0.5
        above = drawn[sure[drawn] > at]  # fewer than k where confidences are equal
        if len(above) < needed:
            continue
        if bdtr(wrong[above].sum(), len(above), risk) > 1 - level:
            break
        threshold = at
    part = 1 / np.bincount(prompt)[prompt] if len(prompt) else np.empty(0)
    return _abstention("selective", risk, level, threshold, sure, wrong, part, count, needed)


def _outcomes(probability: ArrayLike, label: ArrayLike | None) -> tuple[np.ndarray, np.ndarray]:
    """Confidence [p], and whether the more probable side is not the one that the label favors [p]."""
    p = check_range(probability, 0, 1, "P(chosen > rejected) [p]").cpu()
    y = np.ones(len(p)) if label is None else check_range(label, 0, 1, "label [p]", p=len(p)).cpu().numpy()
    favored = np.where(p.numpy() > 0.5, y, np.where(p.numpy() < 0.5, 1 - y, 0.5))
    return confidence(p).numpy(), favored <= 0.5


def _abstention(
    kind: Kind, risk: float, level: float | None, threshold: float, sure: np.ndarray, wrong: np.ndarray,
    part: np.ndarray, count: int, needed: int,
) -> Abstention:  # fmt: skip
    above = sure > threshold
    decided, bad = (float((part * which).sum() / max(count, 1)) for which in (above, above & wrong))
    decided = min(decided, 1.0)
    hits = decided * count
    low = float(betaincinv(hits, count - hits + 1, 0.025)) if hits > _ROUNDING else 0.0
    high = float(betaincinv(hits + 1, count - hits, 0.975)) if hits < count - _ROUNDING else 1.0
    return Abstention(kind, risk, level, threshold, decided, low, high, bad, len(sure), count, needed)


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"
