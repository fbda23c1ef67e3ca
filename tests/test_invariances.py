"""What shifts, scales and the order of rows do to every numeric method on rows in groups."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ebrm.aggregate import (
    Lagrangian,
    centered,
    ensemble_mean,
    mixed_granularity,
    most_confident_head,
    nominal_worst_case,
    step_reward,
    weighted_mean,
)
from ebrm.curate import rank_consistency
from ebrm.errors import DataError
from ebrm.groups import Groups
from ebrm.heads import difference_objective, inconsistency_penalty
from ebrm.optimize import (
    attribute_advantage,
    contrastive_subsample,
    group_advantage,
    leave_one_out_advantage,
    margin_scaled_beta,
    optimistic_dpo_loss,
    power_margin,
    regression_weights,
    reward_ranked_local,
    reward_ranked_top,
    soft_plackett_luce,
    steerlm2_weights,
    tilt_weights,
)
from ebrm.shape import (
    RunningStatistics,
    centered_on_references,
    correct_length_penalty,
    hardness_scaled_advantage,
    log_sigmoid_centered,
    preference_as_reward,
    process_clip,
    process_delta,
    process_return,
    relative_length_penalty,
    running_clipped,
    running_min_max,
    running_standardized,
)

N, COUNT = 24, 5  # one group without rows


def seen(reward):
    return RunningStatistics().updated(reward)


def mask(selection):
    return torch.zeros(N, dtype=torch.bool).index_fill(0, selection.rows, True)[: N if len(selection.rows) else 0]


# Name -> f(x [n], y [n], groups), and what x + offset (of each group, "each"; of all, "all"; y moves along with "both")
# and scale · x (of each group, with "each") do to the result: "same", "through" (it moves as x does), "other" (it
# changes) or None (not said).
CASES = {
    # one result a row
    "group_advantage": (lambda x, y, g: group_advantage(x, g), "each same", "same"),
    "group_advantage undivided": (lambda x, y, g: group_advantage(x, g, divide_by_std=False), "each same", "through"),
    "leave_one_out_advantage": (lambda x, y, g: leave_one_out_advantage(x, g), "each same", "through"),
    "attribute_advantage sum": (
        lambda x, y, g: attribute_advantage(torch.stack([x, y], 1), g, "sum"), "each same", "other"),
    "attribute_advantage each": (
        lambda x, y, g: attribute_advantage(torch.stack([x, y], 1), g, "per_attribute"), "each same", "same"),
    "hardness_scaled_advantage": (
        lambda x, y, g: hardness_scaled_advantage(x, torch.linspace(1, 2, COUNT), g), "all other", "through"),
    "centered": (lambda x, y, g: centered(torch.stack([x, y]), g)[0], "each same", "through"),
    "ensemble_mean": (lambda x, y, g: ensemble_mean(torch.stack([x, y])), "both through", "other"),
    "weighted_mean": (lambda x, y, g: weighted_mean(torch.stack([x, y], 1), [1.0, 3.0]), "both through", "other"),
    "most_confident_head": (
        lambda x, y, g: most_confident_head(torch.stack([x, y]), (y - x).abs() + torch.tensor([[1.0], [2.0]])),
        "both through", None),
    "nominal_worst_case": (
        lambda x, y, g: nominal_worst_case(torch.stack([x, y]), torch.ones(2, len(x)), 0.3), "both through", "other"),
    "nominal per batch": (
        lambda x, y, g: nominal_worst_case(torch.stack([x, y]), torch.ones(2, N), 0.3, "per_batch"),
        "both through", None),
    "Lagrangian": (
        lambda x, y, g: Lagrangian.start([0.3]).updated(y[:, None] * 0).combine(x, y[:, None]),
        "both through", "other"),
    "relative_length_penalty": (
        lambda x, y, g: relative_length_penalty(x.exp(), g), "all same", None),  # lengths: a shift is a scale
    "correct_length_penalty": (
        lambda x, y, g: correct_length_penalty(100 * x - 1000 * x.min() + 1e4, (y > 0).double(), g), None, None),
    "process_clip": (lambda x, y, g: process_clip(x, 0.4), "all other", None),
    "process_clip by a mean": (lambda x, y, g: process_clip(x, float(x.mean())), "all same", "through"),
    "preference_as_reward": (lambda x, y, g: preference_as_reward(x, y[:, None]), "both same", "other"),
    "preference_as_reward tanh": (
        lambda x, y, g: preference_as_reward(x, y[:, None], squash="tanh"), "both same", "other"),
    "preference_as_reward arctan": (
        lambda x, y, g: preference_as_reward(x, y[:, None], squash="arctan"), "both same", "other"),
    "preference_as_reward polynomial": (
        lambda x, y, g: preference_as_reward(x, y[:, None], squash="polynomial"), "both same", "other"),
    "centered_on_references": (lambda x, y, g: centered_on_references(x, y[:, None]), "both same", "other"),
    "log_sigmoid_centered": (lambda x, y, g: log_sigmoid_centered(x, y), "both same", "other"),
    "running_standardized": (lambda x, y, g: running_standardized(x, seen(x)), "all same", "same"),
    "running_min_max": (lambda x, y, g: running_min_max(x, seen(x)), "all same", "same"),
    "running_clipped": (lambda x, y, g: running_clipped(x, seen(x)), "all through", "through"),
    "reward_ranked_top": (lambda x, y, g: mask(reward_ranked_top(x, g, 0.3)), "all same", "same"),
    "reward_ranked_local": (lambda x, y, g: mask(reward_ranked_local(x, g)), "each same", "same"),
    "contrastive_subsample": (lambda x, y, g: mask(contrastive_subsample(x, g, 3)), "each same", "same"),
    "tilt_weights": (lambda x, y, g: tilt_weights(x, g, 0.5), "each same", "other"),
    "tilt_weights of the best": (lambda x, y, g: tilt_weights(x.round(), g, 0.0), None, None),
    "tilt_weights by the deviation": (
        lambda x, y, g: tilt_weights(x, g, float(x.std()) if len(x) else 1.0), "all same", None),
    "regression_weights": (lambda x, y, g: regression_weights(x, g, 2.0), "each same", "other"),
    "steerlm2_weights": (lambda x, y, g: steerlm2_weights(x, y, g), "each same", "other"),
    "steerlm2_weights of the proposal": (lambda x, y, g: steerlm2_weights(y, x, g), "each same", "other"),
    "margin_scaled_beta": (lambda x, y, g: margin_scaled_beta(x - y), "both same", "other"),
    "optimistic_dpo_loss": (lambda x, y, g: optimistic_dpo_loss(x, y, 0 * y, 0.5), "both same", "other"),
    "optimistic_dpo_loss of the sampled": (
        lambda x, y, g: optimistic_dpo_loss(y, 0 * y, x, 1.0, 1.0), "all through", "other"),
    "power_margin of one length": (
        lambda x, y, g: power_margin(x, y, 0 * y + 3, 0 * y + 3, 2.0), "both same", None),
    "inconsistency_penalty": (lambda x, y, g: inconsistency_penalty(torch.stack([x, y])), "both other", "other"),
    # one result a group
    "difference_objective": (lambda x, y, g: difference_objective(x, g), "each same", "other"),
    **{f"step_reward {how}": (lambda x, y, g, how=how: step_reward(x, g, how, empty=0.0), None, None)
       for how in ("min", "max", "mean")},
    "step_reward product": (lambda x, y, g: step_reward(x.sigmoid(), g, "product", empty=0.0), "all other", "other"),
    "mixed_granularity": (
        lambda x, y, g: mixed_granularity(torch.zeros(COUNT), x, g, 0.3, empty=0.0), "all other", "through"),
    "process_return": (lambda x, y, g: process_return(x, g, torch.zeros(COUNT)), "all other", "through"),
    "soft_plackett_luce of scores": (lambda x, y, g: soft_plackett_luce(x, y.round(), g, 0.3), "each same", "other"),
    "soft_plackett_luce of rewards": (lambda x, y, g: soft_plackett_luce(y, x, g, 0.3), "each same", "other"),
    **{f"rank_consistency {measure}": (
        lambda x, y, g, measure=measure: rank_consistency(x, y.round(), g, measure), "each same", "same")
       for measure in ("kendall", "spearman", "top order")},
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.5, 20), st.floats(1.5, 9))
def test_shifts_scales_and_the_order_of_rows(name, seed, offset, scale):
    function, shift, stretch = CASES[name]
    random = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, N, generator=random, dtype=torch.float64)
    index = torch.arange(N) % (COUNT - 1)
    groups = Groups(index, COUNT)
    found = function(x, y, groups).double()
    order = torch.randperm(N, generator=random)
    mixed = function(x[order], y[order], Groups(index[order], COUNT)).double()
    torch.testing.assert_close(mixed, found[order] if len(found) == N else found, rtol=1e-6, atol=1e-6, equal_nan=True)
    if shift:
        where, expected = shift.split()
        each = torch.randn(COUNT, generator=random, dtype=torch.float64)[index] if where == "each" else 1.0
        moved = function(x + offset * each, y + offset * each if where == "both" else y, groups).double()
        agree(moved, {"same": found, "through": found + offset}.get(expected), found)
    if stretch:
        each = scale * (1 + torch.arange(COUNT) * (shift is not None and shift.startswith("each")))  # [count]
        of_result = each[index] if len(found) == N else each
        wide = function(each[index] * x, y, groups).double()
        agree(wide, {"same": found, "through": of_result * found}.get(stretch), found)


def agree(result, expected, before):
    if expected is None:
        assert not torch.allclose(result, before, equal_nan=True)
    else:
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("name", [name for name in CASES if "advantage" in name and "hardness" not in name])
def test_advantages_sum_to_0_in_each_group(name):
    x, y = torch.randn(2, N, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    groups = Groups(torch.arange(N) % (COUNT - 1), COUNT)
    assert groups.sum(CASES[name][0](x, y, groups)).tolist() == pytest.approx([0.0] * COUNT, abs=1e-9)


@pytest.mark.parametrize("name", [name for name in CASES if name != "process_clip by a mean"])
def test_no_rows_have_no_result_or_are_refused(name):
    none = torch.empty(0, dtype=torch.float64)
    try:
        assert CASES[name][0](none, none, Groups(none.long(), COUNT)).shape in ((0,), (COUNT,))
    except (DataError, RuntimeError, ValueError) as error:
        assert re.search("at least one number|seen no reward|numel|dim 0", str(error)), error


def test_only_delta_and_last_know_the_order_of_steps():
    score, groups = torch.tensor([0.9, 0.8, 0.4, 0.7]), Groups.of([0, 0, 0, 0])
    for function in (lambda s: process_delta(s, groups), lambda s: step_reward(s, groups, "last")):
        assert function(score).sum() != function(score.flip(0)).sum()
    # Steps of other responses may stand between.
    index = torch.tensor([0, 1, 0, 1, 0, 0])
    between = torch.tensor([0.9, 5.0, 0.8, 6.0, 0.4, 0.7])
    assert process_delta(between, Groups(index, 2))[index == 0].tolist() == process_delta(score, groups).tolist()
