"""New pairs: of the best and worst response, across prompts, at a goal, of corrupted and of perturbed responses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ebrm.groups import Groups
from ebrm.pairs import CurationReport, PreferencePairs
from ebrm.utils.validation import ArrayLike, as_tensor, check_choice, check_finite, check_mask, check_setting

Kind = Literal["swap", "duplicate", "splice"]
# Points of the plane are told apart to so many decimals of the widest extent, angles of a corner to so many radians.
_DECIMALS = 9
_FLAT = 1e-6
_CHUNK_CELLS = 4_000_000


def best_worst_pairs(
    reward: ArrayLike,  # [n]
    prompt: Groups,
    evidence: ArrayLike | None = None,  # [t, n]
    weight: ArrayLike | None = None,  # [t]
    least_gap: float = 0.0,
    least_best: float = -math.inf,
) -> tuple[PreferencePairs, CurationReport]:
    """One pair a prompt: the response with the highest total over that with the lowest, if they lie apart.

        total = r + Σ_t λ_t evidence_t;  kept where total_best > total_worst, the gap is ≥ least_gap and
        r_best ≥ least_best

    The part of Anyprefer (arXiv 2504.19276) that needs no agent; the sum and both bounds are ours. Of equal totals the
    first response counts. Pairs are in the order of prompts, with label 1.

    Args:
        reward: of n responses.
        prompt: the prompt of each, and the `prompt_id` of the pairs.
        evidence: t further scores of each response, such as checks by tools; None: none.
        weight: λ of each evidence; None: 1 each.
        least_gap: the least difference of totals, at least 0. A prompt whose totals are all equal never has a pair.
        least_best: the least r of the better side.
    """
    known = total = check_finite(reward, "reward [n]", n=len(prompt))
    prompt = prompt.to(known.device)
    check_setting("least_gap", least_gap, at_least=0)
    if evidence is not None:
        scores = check_finite(evidence, "evidence [t, n]", device=known.device, n=len(known))
        weights = scores.new_ones(len(scores))
        if weight is not None:
            weights = check_finite(weight, "weight [t]", device=known.device, t=len(scores))
        total = total + weights @ scores
    elif weight is not None:
        raise ValueError("`weight` of evidence was given, and no `evidence`")
    high, low = prompt.maximum(total), prompt.minimum(total)
    best, worst = (_first(total == prompt.spread(extreme), prompt) for extreme in (high, low))
    apart = (high > low) & (high - low >= least_gap)
    apart &= torch.cat([known, known.new_zeros(1)])[best] >= least_best
    ids = apart.nonzero().flatten()
    pairs = PreferencePairs.of(best[apart], worst[apart], prompt_id=ids, step="best and worst")
    prompts = int((prompt.sizes > 0).sum())
    return pairs, pairs.report(0, {"prompts": prompts, "share with a pair": len(pairs) / max(prompts, 1)})


def cross_prompt_pairs(
    passed: ArrayLike, generator: torch.Generator, wins: int | None = None, ties: int | None = None
) -> tuple[PreferencePairs, CurationReport]:  # [n]
    """Pairs across prompts from pass/fail labels: pass over fail, and pass beside pass as a tie.

        label 1 for (i, j) in W x L;  label 1/2 for {i, j} within W;  never two of L

    SoliReward (arXiv 2512.22170). Its code weighs ties twice and gives them a margin; label 1/2 with margin 0 is the
    paper's loss. There are |W| |L| wins and |W| (|W| - 1) / 2 ties; `wins` and `ties` of them (None: all), in this
    order, are drawn without replacement, each as likely as any other. Split prompts before: pairs share rows.
    """
    for name, number in (("wins", wins), ("ties", ties)):
        check_setting(name, number or 0, at_least=0)
    which = check_mask(passed, "passed [n]")
    good, bad = which.nonzero().flatten(), (~which).nonzero().flatten()
    n, m = len(good), len(bad)
    win = _drawn(n * m, wins, generator).to(which.device)
    tie = _drawn(n * (n - 1) // 2, ties, generator).to(which.device)
    # On a ring of n, going 1, 2, … (n - 1) / 2 places on from each place meets every two just once; for even n, from
    # half of the places only at the last distance.
    start, apart = tie % max(n, 1), tie // max(n, 1) + 1
    chosen = torch.cat([good[win // max(m, 1)], good[start]])
    rejected = torch.cat([bad[win % max(m, 1)], good[(start + apart) % max(n, 1)]])
    label = torch.cat([torch.ones_like(win, dtype=torch.float64), torch.full_like(tie, 0.5, dtype=torch.float64)])
    pairs = PreferencePairs.of(chosen, rejected, label=label, step="cross-prompt pairs")
    return pairs, pairs.report(0, {"wins": len(win), "ties": len(tie)})


def goal_conditioned_pairs(
    pairs: PreferencePairs, score: ArrayLike
) -> tuple[PreferencePairs, Tensor, CurationReport]:  # [n] -> of [2q], [2q]
    """Goal-conditioned pairs: aimed at the better score the better response is preferred, at the worse one the other.

        R(y, g) = -(g - score(y))²:  R(chosen, g) = 0 > R(rejected, g) in every pair, with g = score(chosen)

    Reward-augmented data (arXiv 2410.08067), which puts the goal g into the system prompt ("… overall score: g");
    writing the goal into texts is left to the caller. Its published variant without a system prompt does not exchange
    the responses of the second copy; here both do. Pairs whose scores (of n responses, in the judge's unit) contradict
    their order, or tie, are left out. With more than two responses to a prompt give all of its pairs.

    Returns:
        The pairs, first all at the goal of the better response, then all at that of the worse, with the columns of the
        pair that each comes from; the goal of each; and the report.
    """
    known = check_finite(score, "score [n]", device=pairs.device)
    better = (pairs.difference(known) > 0).nonzero().flatten()
    high, low = pairs.chosen[better], pairs.rejected[better]
    made = pairs.derived("goal-conditioned", better.repeat(2), torch.cat([high, low]), torch.cat([low, high]))
    return made, known[made.chosen], made.report(len(pairs), {"left out": len(pairs) - len(better)})


@dataclass(frozen=True, eq=False)
class Corrupted:
    """Corrupted responses as sequences of parts that are there already.

    Attributes:
        part: rows of parts, each response's in its order [q], int64.
        response: the corrupted response that each stands in, 0 … count - 1, in ascending order.
        origin: the response that each was made from [count], int64.
    """

    part: Tensor
    response: Groups
    origin: Tensor


def corruption_pairs(
    response: Groups, kind: Kind, generator: torch.Generator, prompt: Groups | None = None
) -> tuple[PreferencePairs, Corrupted, CurationReport]:  # of [t], of [n]
    """Pairs by corruption: every response over itself with its parts (sentences, items) out of order.

    Pairs that differ in relevance, ranking or redundancy are the idea of PageLLM (arXiv 2506.09084); how parts are
    drawn and changed is ours. swap: two parts change places. duplicate: one part stands twice, one after the other.
    splice: one part gives way to one of a response to another prompt. Each part is as likely as any other. Swapping
    needs two parts, duplicating one, splicing one and parts of another prompt; other responses have no pair. Parts of
    equal words count as different: leave out the pairs that they make alike.

    Args:
        response: the response, 0 … n - 1, that each of t parts stands in; the parts of a response in their order.
        kind: what to do.
        generator: draws the parts.
        prompt: the prompt of each response, for splicing and `prompt_id`; None: each response answers its own.

    Returns:
        The pairs: a response over row n + j, the j-th corrupted one; the corrupted ones, whose texts (and embeddings)
        the caller makes and puts after the n that there are; and the report.
    """
    check_choice("kind", kind, get_args(Kind))
    if prompt is not None and len(prompt) != response.count:
        raise ValueError(f"{len(prompt)} responses have a prompt, and {response.count} parts")
    device, sizes, starts, parts = response.index.device, response.sizes, response.starts, response.order
    of = torch.arange(response.count, device=device) if prompt is None else prompt.index.to(device)
    of_prompt = Groups(of, int(of.max()) + 1 if len(of) else 0).sum(sizes).long()
    others = len(parts) - of_prompt[of]
    able = {"swap": sizes >= 2, "duplicate": sizes >= 1, "splice": (sizes >= 1) & (others >= 1)}[kind]
    origin = able.nonzero().flatten()
    length = sizes[origin]
    number = torch.arange(len(origin), device=device).repeat_interleave(length)
    first = length.cumsum(0) - length
    sequence = parts[starts[origin[number]] + torch.arange(len(number), device=device) - first[number]]
    one = first + _below(length, generator)
    if kind == "swap":
        two = first + (one - first + 1 + _below(length - 1, generator)) % length
        sequence[one], sequence[two] = sequence[two], sequence[one]
    elif kind == "duplicate":
        times = torch.ones_like(sequence)
        times[one] = 2
        sequence, number = sequence.repeat_interleave(times), number.repeat_interleave(times)
    else:
        # Parts prompt by prompt: another prompt's part is one outside this prompt's stretch.
        along = parts[of[response.index[parts]].sort(stable=True).indices]
        start = (of_prompt.cumsum(0) - of_prompt)[of[origin]]
        place = _below(others[origin], generator)
        sequence[one] = along[place + (place >= start) * of_prompt[of[origin]]]
    made = response.count + torch.arange(len(origin), device=device)
    pairs = PreferencePairs.of(origin, made, prompt_id=of[origin], step=f"{kind} corruption")
    corrupted = Corrupted(sequence, Groups(number, len(origin)), origin)
    return pairs, corrupted, pairs.report(0, {"responses": response.count})


def hull_vertices(embedding: ArrayLike, group: Groups) -> Tensor:  # [n, d] -> bool [n]
    """Corners of the convex hull of each group's embeddings, in the plane of its two principal components.

    A row is a corner if all others of its group lie within less than half a turn, seen from it. One row, or all rows
    equal: the first; all on a line: both ends; of equal corners the first. Takes s² angles for a group of s rows, in
    parts of at most 4 million.
    """
    known = check_finite(embedding, "embedding [n, d]", n=len(group))
    corner = torch.zeros(len(known), dtype=torch.bool, device=known.device)
    for _, rows in group.to(known.device).by_size():
        size = rows.shape[1]
        for part in rows.split(max(1, _CHUNK_CELLS // (size * max(size, known.shape[1], 1)))):
            corner[part] = _corners(_plane(known[part]))
    return corner


def convex_hull_augmentation(
    pairs: PreferencePairs, embedding: ArrayLike, copy_of: ArrayLike
) -> tuple[PreferencePairs, CurationReport]:  # [n, d], [n]
    """Convex-hull augmentation: add a pair for every outermost perturbed copy of the chosen response (2309.16155).

    Each chosen response is perturbed (the paper: five copies, with 5% of the words changed), embedded, projected to two
    principal components, and the corners of the copies' convex hull become further chosen responses. Perturbing and
    embedding texts is left to the caller. `copy_of` is the response that each of the n rows is a copy of, -1 for none.
    The pairs that were given come first, then the made ones, with the columns of theirs.
    """
    known = check_finite(embedding, "embedding [n, d]", device=pairs.device)
    pairs.check_rows(len(known))
    of = as_tensor(copy_of, "copy_of", pairs.device)
    if of.shape != (len(known),) or of.is_floating_point() or of.dtype == torch.bool:
        raise ValueError(f"copy_of: expected {len(known)} whole numbers [n], got {tuple(of.shape)} of {of.dtype}")
    if bool(((of < -1) | (of >= len(known))).any()):
        raise ValueError(f"copy_of: expected rows from -1 to {len(known) - 1}")
    copies = (of >= 0).nonzero().flatten()
    source = of[copies].long()
    outer = hull_vertices(known[copies], Groups(source, len(known)))
    corners = Groups(source[outer], len(known))
    copies = copies[outer][corners.order]
    number = corners.sizes[pairs.chosen]
    all_pairs = torch.arange(len(pairs), device=pairs.device)
    parent = all_pairs.repeat_interleave(number)
    place = torch.arange(len(parent), device=pairs.device) - (number.cumsum(0) - number)[parent]
    chosen = copies[corners.starts[pairs.chosen[parent]] + place]
    made = pairs.derived(
        "convex hull",
        torch.cat([all_pairs, parent]),
        torch.cat([pairs.chosen, chosen]),
        torch.cat([pairs.rejected, pairs.rejected[parent]]),
        torch.arange(len(pairs) + len(parent), device=pairs.device) >= len(pairs),
    )
    return made, made.report(len(pairs), {"copies": int((of >= 0).sum()), "outermost": len(copies)})


def _first(which: Tensor, prompt: Groups) -> Tensor:
    """The first row of each prompt that `which` is true of; the number of rows where there is none [count]."""
    rows = which.nonzero().flatten()
    none = torch.full_like(prompt.sizes, len(which))
    return none.scatter_reduce(0, prompt.index[rows], rows, "amin")


def _drawn(total: int, count: int | None, generator: torch.Generator) -> Tensor:
    """`count` different numbers below `total`, in ascending order; all if None or too many."""
    device = generator.device
    if count is None or count >= total:
        return torch.arange(total, device=device)
    if 2 * count > total:
        return torch.randperm(total, generator=generator, device=device)[:count].sort().values
    found = torch.zeros(0, dtype=torch.int64, device=device)
    while len(found) < count:  # at least every second draw is new
        more = torch.randint(total, (2 * count + 10,), generator=generator, device=device)
        found = torch.cat([found, more]).unique()
    return found[torch.randperm(len(found), generator=generator, device=device)[:count]].sort().values


def _below(count: Tensor, generator: torch.Generator) -> Tensor:
    """A whole number from 0 to below each count."""
    draw = torch.rand(len(count), generator=generator, dtype=torch.float64, device=generator.device).to(count.device)
    return torch.minimum((draw * count).long(), count - 1)


def _plane(points: Tensor) -> Tensor:  # [b, s, d] -> [b, s, 2]
    """Coordinates along the two widest principal components, in units of the widest; equal ones are exactly equal."""
    off = points - points.mean(1, keepdim=True)
    u, width, _ = torch.linalg.svd(off, full_matrices=False)
    plane = points.new_zeros(*points.shape[:2], 2)
    shared = min(2, width.shape[1])
    tiny = 1e-12 * points.abs().amax((1, 2)) if points.numel() else width.new_zeros(len(points))
    widest = width.amax(1) if width.shape[1] else width.new_zeros(len(points))
    unit = torch.where(widest > tiny, widest, torch.inf)
    plane[..., :shared] = u[..., :shared] * (width[:, :shared] / unit[:, None])[:, None, :]
    return plane.round(decimals=_DECIMALS)


def _corners(plane: Tensor) -> Tensor:  # [b, s, 2] -> [b, s]
    size = plane.shape[1]
    to = plane[:, None, :, :] - plane[:, :, None, :]  # [b, from, to, 2]
    elsewhere = (to != 0).any(3)
    before = torch.ones(size, size, dtype=torch.bool, device=plane.device).tril(-1)
    again = (~elsewhere & before).any(2)
    angle = torch.atan2(to[..., 1], to[..., 0])
    last = angle.masked_fill(~elsewhere, -torch.inf).amax(2, keepdim=True)
    angle = torch.where(elsewhere, angle, last).sort(2).values  # rows at the same point stand in no direction
    open_turn = torch.maximum(
        angle.diff(dim=2).amax(2) if size > 1 else torch.zeros_like(last[..., 0]),
        2 * torch.pi - (angle[..., -1] - angle[..., 0]),
    )
    return ~again & (~elsewhere.any(2) | (open_turn > torch.pi + _FLAT))
