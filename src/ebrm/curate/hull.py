"""More chosen responses from perturbed copies: those that lie outermost among their like."""

from __future__ import annotations

import torch
from torch import Tensor

from ebrm.groups import Groups
from ebrm.pairs import CurationReport, PreferencePairs
from ebrm.utils.validation import check_finite

# Points of the plane are told apart to so many decimals of the widest extent, angles of a corner to so many radians.
_DECIMALS = 9
_FLAT = 1e-6
_CHUNK_CELLS = 4_000_000


def hull_vertices(embedding: Tensor, group: Groups) -> Tensor:  # [n, d] -> [n]
    """Which rows are corners of their group's convex hull, in the plane of its two principal components.

    A row is a corner if all others of its group lie within less than half a turn, seen from it. One row, or all rows
    equal: the first; all on a line: both ends; of equal corners the first. Rows on an edge are none. An offset, a
    rotation and a positive scale of a group's embeddings do not matter, nor does the order of rows, unless its second
    and third principal components are equally wide.

    Takes s² angles for a group of s rows, in parts of at most 4 million.

    Args:
        embedding: of n texts.
        group: what each of them is a copy of.

    Returns:
        bool [n].
    """
    known = check_finite(embedding, "embedding [n, d]", 2)
    if len(known) != len(group):
        raise ValueError(f"{len(known)} embeddings were given for {len(group)} rows of groups")
    corner = torch.zeros(len(known), dtype=torch.bool)
    order = group.index.sort(stable=True).indices
    starts = group.sizes.cumsum(0) - group.sizes
    for size in group.sizes[group.sizes > 0].unique().tolist():
        rows = order[starts[group.sizes == size][:, None] + torch.arange(size)]
        for part in rows.split(max(1, _CHUNK_CELLS // (size * max(size, known.shape[1], 1)))):
            corner[part] = _corners(_plane(known[part]))
    return corner


def convex_hull_augmentation(
    pairs: PreferencePairs, embedding: Tensor, copy_of: Tensor
) -> tuple[PreferencePairs, CurationReport]:
    """Add to each pair one of every outermost perturbed copy of its chosen response, over the same rejected one.

    "The Trickle-down Impact of Reward (In-)consistency on RLHF" (arXiv 2309.16155): each chosen response is perturbed
    (the paper: five copies, with 5% of the words changed), embedded, projected to two principal components, and the
    corners of the copies' convex hull become further chosen responses. Perturbing and embedding texts is left to the
    caller. A chosen response without copies has its own pair only.

    Args:
        pairs: p of them.
        embedding: of n responses, the copies among them.
        copy_of: the response that each row is a copy of, -1 for those that are none, whole numbers.

    Returns:
        The pairs that were given, then the made ones, with the columns of theirs; and the report.
    """
    known = check_finite(embedding, "embedding [n, d]", 2)
    pairs.check_rows(len(known))
    if copy_of.shape != (len(known),) or copy_of.is_floating_point() or copy_of.dtype == torch.bool:
        raise ValueError(f"copy_of: expected {len(known)} whole numbers [n], got {tuple(copy_of.shape)}")
    if bool(((copy_of < -1) | (copy_of >= len(known))).any()):
        raise ValueError(f"copy_of: expected rows from -1 to {len(known) - 1}")
    copies = (copy_of >= 0).nonzero().flatten()
    source = copy_of[copies].long()
    outer = hull_vertices(known[copies], Groups(source, len(known)))
    copies, source = copies[outer], source[outer]
    copies = copies[source.sort(stable=True).indices]
    counts = torch.bincount(source, minlength=len(known))
    starts = counts.cumsum(0) - counts
    number = counts[pairs.chosen]
    parent = torch.arange(len(pairs)).repeat_interleave(number)
    place = torch.arange(len(parent)) - (number.cumsum(0) - number)[parent]
    chosen = copies[starts[pairs.chosen[parent]] + place]
    made = pairs.derived(
        "convex hull",
        torch.cat([torch.arange(len(pairs)), parent]),
        torch.cat([pairs.chosen, chosen]),
        torch.cat([pairs.rejected, pairs.rejected[parent]]),
        torch.arange(len(pairs) + len(parent)) >= len(pairs),
    )
    return made, made.report(len(pairs), {"copies": int((copy_of >= 0).sum()), "outermost": len(copies)})


def _plane(points: Tensor) -> Tensor:  # [b, s, d] -> [b, s, 2]
    """Coordinates along the two widest principal components, in units of the widest; equal ones are exactly equal."""
    off = points - points.mean(1, keepdim=True)
    u, width, _ = torch.linalg.svd(off, full_matrices=False)
    plane = torch.zeros(*points.shape[:2], 2, dtype=points.dtype)
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
    before = torch.ones(size, size, dtype=torch.bool).tril(-1)
    again = (~elsewhere & before).any(2)
    angle = torch.atan2(to[..., 1], to[..., 0])
    last = angle.masked_fill(~elsewhere, -torch.inf).amax(2, keepdim=True)
    angle = torch.where(elsewhere, angle, last).sort(2).values  # rows at the same point stand in no direction
    open_turn = torch.maximum(
        angle.diff(dim=2).amax(2) if size > 1 else torch.zeros_like(last[..., 0]),
        2 * torch.pi - (angle[..., -1] - angle[..., 0]),
    )
    return ~again & (~elsewhere.any(2) | (open_turn > torch.pi + _FLAT))
