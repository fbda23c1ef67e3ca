"""Group advantages scaled by how hard a prompt is: by its data, and by how the policy fares on it.

"Inverse Reinforcement Learning with Dynamic Reward Scaling for LLM Alignment" (DR-IRL, arXiv 2503.18991), for prompts
that each have a demonstration. What the paper calls hardness of the data is how unlike the demonstration and the
policy's response are; such a pair is easy to tell apart, so that it is called separability here.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ebrm.errors import DataError
from ebrm.groups import Groups
from ebrm.utils.validation import check_finite, check_same_shape


def separability(
    demonstration: Tensor,  # [q, s, d]
    response: Tensor,  # [q, t, d]
    demonstration_present: Tensor | None = None,  # bool [q, s]
    response_present: Tensor | None = None,  # bool [q, t]
) -> Tensor:  # [q]
    """How unlike a demonstration and a response are: δ = 1 - mean_k max_l cos(demonstration_k, response_l).

    For each sentence k of the demonstration the most similar sentence l of the response counts. Not symmetric: what the
    response has in addition costs nothing. The order of sentences and the length of their embeddings do not matter.

    Args:
        demonstration: embeddings of the sentences of q demonstrations [q, s, d], by any encoder of sentences.
        response: of as many responses of the policy [q, t, d].
        demonstration_present: which sentences there are, bool [q, s]; the others are not looked at. None: all.
        response_present: the same of the responses, bool [q, t].

    Returns:
        δ [q], from 0 (every sentence is in the response as well) to 2, in the type of `demonstration`.

    Raises:
        DataError: a number that is not finite, an embedding of length 0, or a text without sentences.
        ValueError: shapes other than those above.
    """
    if demonstration.dim() != 3 or response.dim() != 3 or len(demonstration) != len(response):
        raise ValueError(f"expected [q, s, d] and [q, t, d], got {tuple(demonstration.shape)}, {tuple(response.shape)}")
    if demonstration.shape[2] != response.shape[2]:
        raise ValueError(f"embeddings of {demonstration.shape[2]} and of {response.shape[2]} numbers")
    first, there = _directions(demonstration, demonstration_present, "demonstrations")
    second, present = _directions(response, response_present, "responses")
    if not len(first):
        return demonstration.new_empty(0, dtype=torch.result_type(demonstration, 1.0))
    cosine = (first @ second.transpose(1, 2)).masked_fill(~present[:, None, :], -torch.inf)
    nearest = torch.where(there, cosine.amax(2), 0.0).sum(1) / there.sum(1)
    return (1 - nearest).clamp(0, 2).to(torch.result_type(demonstration, 1.0))


def hardness_scale(separability: Tensor, responsiveness: Tensor | None = None) -> Tensor:  # [q], [q] -> [q]
    """What a prompt's advantages are multiplied by: α_i = σ(δ_i) / σ(mean δ) · σ(g_i) / σ(mean g).

    δ is the separability of the data, g the responsiveness of the policy: how much more reward the demonstration gets
    than the policy's responses. Prompts whose demonstration is further from what the policy writes, or better, weigh
    more; a prompt at both means has α = 1. The means are over the prompts given, so α depends on which come together.
    For δ from 0 to 1 the first factor is between 0.684 and 1.462; scale matters in both, and so do offsets.

    The paper leaves outliers out of the mean of g, by a rule that could not be verified: here nothing is left out.
    Take outliers out of g before, such as `g.clamp(…)`.

    Args:
        separability: δ of q prompts [q], see `separability`.
        responsiveness: g, r(demonstration) - the prompt's mean reward [q]; None: the first factor alone.

    Returns:
        α [q], above 0, in the type of `separability`. 1 for a single prompt, and where all are equal.

    Raises:
        DataError: a number that is not finite.
        ValueError: not [q] and [q].
    """
    result = _against_mean(check_finite(separability, "separability"))
    if responsiveness is not None:
        check_same_shape(separability=separability, responsiveness=responsiveness)
        result = result + _against_mean(check_finite(responsiveness, "responsiveness"))
    return result.exp().to(torch.result_type(separability, 1.0))


def hardness_scaled_advantage(advantage: Tensor, scale: Tensor, groups: Groups) -> Tensor:  # [n], [q] -> [n]
    """Advantages of each prompt times its scale: A'_i = α_q A_i.

    With the advantages of `ebrm.optimize.advantages.group_advantage` those of the paper (GRPO-S). α = 1 leaves them as
    they are; the sum over each group stays 0. Scaling rewards in place of advantages would do nothing once they are
    divided by the group's deviation.

    Args:
        advantage: advantages [n].
        scale: α of each of q prompts, see `hardness_scale` [q].
        groups: the prompt of each row.

    Returns:
        Scaled advantages [n], in the type of `advantage`.

    Raises:
        DataError: a number that is not finite.
        ValueError: not one advantage for each row of the groups, or not one scale for each group.
    """
    values, scales = check_finite(advantage, "advantages"), check_finite(scale, "scales")
    if len(values) != len(groups) or len(scales) != groups.count:
        raise ValueError(
            f"{len(values)} advantages and {len(scales)} scales, for {len(groups)} rows and {groups.count} groups"
        )
    return (values * groups.spread(scales)).to(torch.result_type(advantage, 1.0))


def _against_mean(values: Tensor) -> Tensor:
    """Log of σ(x) / σ(mean x)."""
    if not len(values):
        return values
    off = values - values[0]  # so that equal ones are their own mean, exactly
    return logsigmoid(values) - logsigmoid(values[0] + off.mean())


def _directions(embedding: Tensor, present: Tensor | None, what: str) -> tuple[Tensor, Tensor]:
    """Embeddings of length 1, 0 where there are none [q, s, d], and which there are [q, s]."""
    there = torch.ones(embedding.shape[:2], dtype=torch.bool, device=embedding.device) if present is None else present
    if there.shape != embedding.shape[:2] or there.dtype != torch.bool:
        raise ValueError(
            f"expected the sentences of {what} as bool {tuple(embedding.shape[:2])}, got {there.dtype} "
            f"{tuple(there.shape)}"
        )
    without = ~there.any(1)
    if bool(without.any()):
        raise DataError(
            f"{int(without.sum())} of {len(there)} {what} are without sentences, the first at index "
            f"{int(without.nonzero()[0, 0])}. Leave those prompts out."
        )
    values = check_finite(torch.where(there[..., None], embedding, 0.0), f"embeddings of {what}", 3)
    length = torch.linalg.vector_norm(values, dim=2, keepdim=True)
    none = there & (length[..., 0] == 0)
    if bool(none.any()):
        raise DataError(
            f"{int(none.sum())} embeddings of {what} are 0 and have no direction, the first at index "
            f"{tuple(none.nonzero()[0].tolist())}. Leave those sentences out."
        )
    return values / torch.where(there[..., None], length, 1.0), there
