from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import logsigmoid

from ebrm.errors import ConfigError, DataError
from ebrm.heads import pair_loss
from ebrm.heads.multi_objective import binary_feedback_loss, class_mean_shift
from ebrm.logprobs import (
    FOLLOWUPS,
    SIX_DIMENSIONS,
    THREE_DIMENSIONS,
    TokenLogprobs,
    adaptive_weight,
    contrastive_implicit_reward,
    endogenous_reward,
    followup_likelihood,
    implicit_margin,
    implicit_reward,
    log_density_ratio,
    logit_extrapolation,
    self_aligned,
    self_aligned_attribution,
    yes_no_log_odds,
)
from ebrm.optimize import distillation_loss, margin_scaled_beta

LN2 = math.log(2)
D = torch.float64


def every(value: float, *lengths: int) -> TokenLogprobs:
    """Responses of these lengths whose tokens all have one log-probability."""
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return TokenLogprobs(torch.full(mask.shape, value, dtype=D), mask)


def drawn(seed: int, n: int = 4, places: int = 6, log_z: bool = False, dtype: torch.dtype = D) -> TokenLogprobs:
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, places + 1, (n,), generator=torch.Generator().manual_seed(n))
    logp = -torch.rand(n, places, generator=random, dtype=D).exp()
    z = torch.randn(n, places, generator=random, dtype=D).to(dtype) if log_z else None
    return TokenLogprobs(logp.to(dtype), torch.arange(places) < lengths[:, None], z)


def padded(tokens: TokenLogprobs, left: int, right: int) -> TokenLogprobs:
    """The same tokens with padding around them that holds NaN."""

    def wide(values: Tensor, fill: float | bool) -> Tensor:
        return torch.nn.functional.pad(values, (left, right), value=fill)

    z = None if tokens.log_z is None else wide(tokens.log_z, math.nan)
    return TokenLogprobs(wide(tokens.logp, math.nan), wide(tokens.mask, False), z)


# ---- self-aligned reward -------------------------------------------------------------------------------------------


def test_self_aligned_has_the_papers_values() -> None:
    assert self_aligned(every(-LN2, 3), every(-2 * LN2, 3)).tolist() == pytest.approx([0.5])
    assert self_aligned(every(-1.3, 3, 1), every(-1.3, 3, 1)).tolist() == [0.0, 0.0]
    worse = every(-math.log(12), 4), every(-math.log(4), 4)
    assert self_aligned(*worse, clip=5).tolist() == pytest.approx([-2.0])
    assert self_aligned(*worse).tolist() == pytest.approx([-1.0])


def test_self_aligned_is_the_relative_fall_of_perplexity_below_one_and_knows_no_common_constant() -> None:
    one, two = drawn(1), drawn(2)
    reward = self_aligned(one, two, clip=1e6)
    ppl, ppl_alone = ((-t.mean()).exp() for t in (one, two))
    torch.testing.assert_close(reward, (ppl_alone - ppl) / ppl_alone)
    assert bool((reward < 1).all())
    shifted = [TokenLogprobs(t.logp - 3.0, t.mask) for t in (one, two)]
    torch.testing.assert_close(self_aligned(*shifted, clip=1e6), reward)
    gain = self_aligned_attribution(one, two)
    torch.testing.assert_close(1 - (-gain.sum(1) / one.lengths).exp(), reward)
    assert bool((gain[~one.mask] == 0).all())


def test_self_aligned_of_a_hopeless_response_is_clipped_with_a_finite_gradient() -> None:
    logp = torch.tensor([[-5000.0]], requires_grad=True)
    mask = torch.ones(1, 1, dtype=torch.bool)
    reward = self_aligned(TokenLogprobs(logp, mask), TokenLogprobs(torch.tensor([[-1.0]]), mask))
    reward.sum().backward()
    assert reward.item() == -1.0 and logp.grad is not None and logp.grad.item() == 0.0


# ---- density ratio and implicit rewards ----------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_density_ratio_of_a_model_with_itself_is_exactly_0_and_swapping_negates(reduction: str) -> None:
    one, two = drawn(1, dtype=torch.float32), drawn(2, dtype=torch.float32)
    assert log_density_ratio(one, one, reduction=reduction).tolist() == [0.0] * 4
    there = log_density_ratio(one, two, reduction=reduction)
    assert torch.equal(log_density_ratio(two, one, reduction=reduction), -there) and there.abs().min() > 0
    torch.testing.assert_close(log_density_ratio(one, two, reduction=reduction, beta=0.5), there / 2)


def test_the_summed_density_ratio_adds_up_over_parts_of_a_response() -> None:
    one, two = drawn(1), drawn(2)
    parts = [
        [TokenLogprobs(t.logp[:, where], t.mask[:, where]) for t in (one, two)] for where in (slice(2), slice(2, None))
    ]
    whole = log_density_ratio(one, two, reduction="sum")
    torch.testing.assert_close(sum(log_density_ratio(*part, reduction="sum") for part in parts), whole)
    torch.testing.assert_close(log_density_ratio(one, two, reduction="mean"), whole / one.lengths)


def test_totals_of_two_tokenizers_are_compared_and_their_tokens_are_not() -> None:
    one, other = every(-1.0, 3, 2), every(-0.5, 3, 4)
    assert log_density_ratio(one, other, reduction="sum").tolist() == [-1.5, 0.0]
    for compare in (
        lambda: log_density_ratio(one, other, reduction="mean"),
        lambda: self_aligned(one, other),
        lambda: contrastive_implicit_reward(one, other),
    ):
        with pytest.raises(DataError, match="not of the same tokens: row 1 has 2 and 4 tokens"):
            compare()


def test_token_rewards_of_a_reversed_model_sum_to_the_density_ratio() -> None:
    one, two = drawn(1), drawn(2)
    each = contrastive_implicit_reward(one, two, beta=0.3)
    torch.testing.assert_close(each.sum(1), log_density_ratio(one, two, reduction="sum", beta=0.3))
    assert bool((each[~one.mask] == 0).all())


def test_implicit_rewards_make_dpo_cream_margin_scaled_and_bco_of_the_losses_there_are() -> None:
    random = torch.Generator().manual_seed(0)
    pc, pr, rc, rr = -torch.rand(4, 5, generator=random, dtype=D).exp() * 10
    zero = torch.zeros(5, dtype=D)
    z = 0.1 * ((pc - rc) - (pr - rr))
    margin = implicit_margin(pc, pr, rc, rr)
    torch.testing.assert_close(margin, z)
    torch.testing.assert_close(pair_loss(implicit_reward(pc, rc), implicit_reward(pr, rr)), -logsigmoid(z))
    consistency = torch.tensor([0.0, 1.0, 5 / 6, 0.5, 0.2], dtype=D)
    cream = -consistency * logsigmoid(z) - (1 - consistency) * logsigmoid(-z)
    torch.testing.assert_close(pair_loss(margin, zero, label=consistency), cream)
    beta = margin_scaled_beta(torch.tensor([0.0, 2.0, 1.0, 4.0, 9.0], dtype=D))
    assert beta[:2].tolist() == pytest.approx([0.1, 0.131606], abs=1e-6)
    scaled = pair_loss(implicit_margin(pc, pr, rc, rr, beta=1.0), zero, scale=beta)
    torch.testing.assert_close(scaled, -logsigmoid(beta * 10 * z))
    reward, up = implicit_reward([30.0, 10.0], [0.0, 0.0]), torch.tensor([True, False])
    assert reward.tolist() == pytest.approx([3.0, 1.0])
    assert binary_feedback_loss(reward, up).sum().item() == pytest.approx(1.361849, abs=1e-6)
    shifted = binary_feedback_loss(reward, up, class_mean_shift(reward, up))
    assert shifted.sum().item() == pytest.approx(0.626523, abs=1e-6)
    assert pair_loss(reward[:1], reward[1:]).item() == pytest.approx(0.126928, abs=1e-6)


def test_creams_soft_loss_is_least_at_the_logit_of_the_consistency_and_flat_at_one_half() -> None:
    for consistency in (0.2, 0.5, 0.9):
        at = torch.tensor([math.log(consistency / (1 - consistency))], dtype=D, requires_grad=True)
        loss = pair_loss(at, torch.zeros(1), label=consistency)
        loss.sum().backward()
        assert at.grad is not None and abs(at.grad.item()) < 1e-12
    assert loss is not None and pair_loss([0.0], [0.0], label=0.5).item() == pytest.approx(LN2)


# ---- endogenous reward ---------------------------------------------------------------------------------------------


def test_the_endogenous_reward_telescopes_to_the_likelihood_and_the_first_value() -> None:
    tokens = drawn(3, n=7, log_z=True)
    assert tokens.log_z is not None
    for alpha in (1.0, 0.7):
        reward = endogenous_reward(tokens, alpha)
        torch.testing.assert_close(reward.sum(1), alpha * (tokens.sum() + tokens.log_z[:, 0]), rtol=0, atol=1e-13)
    assert bool((reward[~tokens.mask] == 0).all())


def test_the_endogenous_reward_of_uniform_logits_is_minus_log_2_but_for_the_last_token() -> None:
    logits = torch.zeros(1, 4, 2, dtype=D)
    logp, log_z = logits.log_softmax(-1)[..., 0], logits.logsumexp(-1)
    reward = endogenous_reward(TokenLogprobs(logp, torch.ones(1, 4, dtype=torch.bool), log_z))
    assert reward[0].tolist() == pytest.approx([-LN2, -LN2, -LN2, 0.0], abs=1e-15)


def test_the_endogenous_reward_is_q_minus_the_next_value_at_any_temperature() -> None:
    random = torch.Generator().manual_seed(4)
    logits, alpha = torch.randn(2, 5, 7, generator=random, dtype=D), 0.6
    chosen = torch.randint(7, (2, 5), generator=random)
    mask = torch.ones(2, 5, dtype=torch.bool)

    def reward(f: Tensor, at: float) -> Tensor:
        soft = (f / at).log_softmax(-1).gather(-1, chosen[..., None])[..., 0]
        return endogenous_reward(TokenLogprobs(soft, mask, (f / at).logsumexp(-1)), at)

    value = alpha * (logits / alpha).logsumexp(-1)
    q = logits.gather(-1, chosen[..., None])[..., 0]
    expected = q - torch.cat([value[:, 1:], torch.zeros(2, 1, dtype=D)], 1)
    torch.testing.assert_close(reward(logits, alpha), expected)
    torch.testing.assert_close(reward(2 * logits, 2 * alpha), 2 * expected)
    shift = torch.randn(2, 5, 1, generator=random, dtype=D)  # a constant a state moves value from token to token
    moved = reward(logits + shift, alpha) - expected
    torch.testing.assert_close(moved[:, :-1], (shift[:, :-1] - shift[:, 1:])[..., 0])


def test_without_log_z_there_is_no_endogenous_reward() -> None:
    with pytest.raises(DataError, match="log_z.*CausalLogprobs.*a server does not give it"):
        endogenous_reward(drawn(1))


# ---- yes and no ----------------------------------------------------------------------------------------------------


def test_log_odds_of_yes_have_the_known_values_and_know_no_other_token() -> None:
    p = torch.tensor([[0.8, 0.2], [0.5, 0.5]], dtype=D)
    assert yes_no_log_odds(p.log(), [0], [1]).tolist() == pytest.approx([math.log(4), 0.0])
    z = torch.tensor([[2.0, 0.5, 9.0, -math.inf]], dtype=D)
    assert yes_no_log_odds(z, [0], [1]).tolist() == pytest.approx([1.5])
    assert yes_no_log_odds(z, [1], [0]).tolist() == pytest.approx([-1.5])
    both = yes_no_log_odds(torch.tensor([[1.0, 2.0, 0.3, -1.0]], dtype=D), [0, 1], [2, 3])
    odds = (math.exp(1) + math.exp(2)) / (math.exp(0.3) + math.exp(-1))
    assert both.item() == pytest.approx(math.log(odds))


@pytest.mark.parametrize(
    ("yes", "no", "said"),
    [([], [1], "yes_ids.*at least one"), ([0], [4], "no_ids. is .4.*0 to 3"), ([0, 0], [1], "each once"),
     ([0, 1], [1], r"share \[1\]"), ([-1], [1], "yes_ids")],
)  # fmt: skip
def test_token_ids_that_cannot_be_meant_are_refused(yes: list[int], no: list[int], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        yes_no_log_odds(torch.zeros(1, 4), yes, no)


# ---- logits --------------------------------------------------------------------------------------------------------


def test_extrapolated_logits_have_the_papers_limits_and_values() -> None:
    one, other = torch.tensor([1.0, 0.0], dtype=D), torch.tensor([0.0, 1.0], dtype=D)
    assert adaptive_weight(one, other).item() == pytest.approx(9.2433433, abs=1e-6)
    assert adaptive_weight(one, other, scale=1, least=1e-9).item() == pytest.approx(0.9242343, abs=1e-6)
    assert adaptive_weight(one, one).item() == pytest.approx(0.001)
    assert torch.equal(logit_extrapolation(one, one, 0.001), one)
    for beta_2 in (0.1, 0.4, 1e9):  # the theorem's form
        teacher = 0.1 / beta_2 * one + (1 - 0.1 / beta_2) * other
        torch.testing.assert_close(logit_extrapolation(one, other, 0.1 / beta_2 - 1), teacher)
    torch.testing.assert_close(logit_extrapolation(one, other, -1.0), other)


def test_extrapolation_takes_a_weight_a_place_and_its_probabilities_know_no_constant() -> None:
    random = torch.Generator().manual_seed(1)
    z, z_ref = torch.randn(2, 3, 4, 5, generator=random, dtype=D)
    w = adaptive_weight(z, z_ref)
    assert w.shape == (3, 4)
    teacher = logit_extrapolation(z, z_ref, w).softmax(-1)
    torch.testing.assert_close(teacher[1, 2], (z[1, 2] + w[1, 2] * (z[1, 2] - z_ref[1, 2])).softmax(-1))
    moved = logit_extrapolation(z + torch.randn(3, 4, 1, dtype=D, generator=random), z_ref - 2, w).softmax(-1)
    torch.testing.assert_close(moved, teacher)
    reward = z.log_softmax(-1) - z_ref.log_softmax(-1)  # what is extrapolated gains on its own reward
    assert bool(((teacher * reward).sum(-1) >= (z.softmax(-1) * reward).sum(-1) - 1e-12).all())


def test_distilling_the_extrapolated_teacher_ends_at_the_teacher() -> None:
    random = torch.Generator().manual_seed(2)
    dpo, reverse = torch.randn(2, 1, 3, 5, generator=random, dtype=D)
    w, mask = adaptive_weight(dpo, reverse), torch.ones(1, 3, dtype=torch.bool)
    teacher = logit_extrapolation(dpo, reverse, w)
    assert distillation_loss(teacher + 1.0, teacher, mask, 0.1 / w).item() == pytest.approx(0.0, abs=1e-12)
    assert distillation_loss(dpo, teacher, mask, 0.1 / w).item() > 1e-3


def test_logits_that_cannot_be_extrapolated_are_refused() -> None:
    two = torch.zeros(3, 2)
    with pytest.raises(DataError, match="A weight is -1.5; below -1"):
        logit_extrapolation(two, two, -1.5)
    with pytest.raises(ValueError, match=r"one weight a place \(3,\)"):
        logit_extrapolation(two, two, [0.0, 1.0])
    for function in (adaptive_weight, lambda a, b: logit_extrapolation(a, b, 0.0)):
        with pytest.raises(ValueError, match=r"one shape, got \(3, 2\) and \(3, 4\)"):
            function(two, torch.zeros(3, 4))


# ---- follow-ups ----------------------------------------------------------------------------------------------------


def test_follow_up_likelihood_has_the_known_values_and_is_antisymmetric() -> None:
    assert followup_likelihood([[-1.0]], [[-3.0]]).tolist() == [2.0]
    random = torch.Generator().manual_seed(0)
    good, bad = torch.randn(3, 4, generator=random, dtype=D), torch.randn(3, 2, generator=random, dtype=D)
    assert followup_likelihood(good, good).tolist() == [0.0] * 3
    torch.testing.assert_close(followup_likelihood(bad, good), -followup_likelihood(good, bad))


def test_follow_ups_are_averaged_as_one_set_or_over_dimensions() -> None:
    good, bad = torch.tensor([[-1.0, -3.0, -5.0]]), torch.tensor([[-2.0, -8.0]])
    assert followup_likelihood(good, bad).tolist() == [2.0]
    names = ["understanding", "understanding", "following"], ["understanding", "following"]
    assert followup_likelihood(good, bad, *names).tolist() == [1.5]  # mean of 0 and 3
    assert followup_likelihood(good, bad, *names, dimensions=["following"]).tolist() == [3.0]
    assert set(THREE_DIMENSIONS) < set(SIX_DIMENSIONS) == set(FOLLOWUPS)
    with pytest.raises(ConfigError, match="'relevance' has no follow-up of one kind"):
        followup_likelihood(good, bad, *names, dimensions=["relevance"])
    with pytest.raises(ConfigError, match="on one side only"):
        followup_likelihood(good, bad, names[0])
    with pytest.raises(ValueError, match="one name for each of 3 columns, got 2"):
        followup_likelihood(good, bad, names[1], names[1])
    with pytest.raises(ValueError, match="at least one follow-up"):
        followup_likelihood(torch.zeros(1, 0), bad)


# ---- all of them ---------------------------------------------------------------------------------------------------

ON_TOKENS = {
    "self_aligned": lambda t, u: self_aligned(t, u),
    "density ratio": lambda t, u: log_density_ratio(t, u, reduction="sum"),
    "mean density ratio": lambda t, u: log_density_ratio(t, u, reduction="mean"),
    "contrastive": lambda t, u: contrastive_implicit_reward(t, u).sum(1),
    "endogenous": lambda t, u: endogenous_reward(t).square().sum(1) + u.sum(),
    "sum": lambda t, u: t.sum() + u.sum(),
    "mean": lambda t, u: t.mean() + u.mean(),
}


@pytest.fixture(params=ON_TOKENS)
def reward_of(request):
    return ON_TOKENS[request.param]


def test_padding_on_either_side_changes_no_reward_whatever_it_holds(reward_of) -> None:
    one, two = drawn(1, log_z=True), drawn(2, log_z=True)
    plain = reward_of(one, two)
    for left, right in ((2, 0), (0, 3), (1, 1)):
        torch.testing.assert_close(reward_of(padded(one, left, right), padded(two, left, right)), plain)


def test_rows_do_not_depend_on_one_another_and_there_may_be_none(reward_of) -> None:
    one, two = drawn(1, log_z=True), drawn(2, log_z=True)
    whole = reward_of(one, two)

    def rows(tokens: TokenLogprobs, where: slice) -> TokenLogprobs:
        assert tokens.log_z is not None
        return TokenLogprobs(tokens.logp[where], tokens.mask[where], tokens.log_z[where])

    for i in range(len(one)):
        torch.testing.assert_close(reward_of(rows(one, slice(i, i + 1)), rows(two, slice(i, i + 1))), whole[i : i + 1])
    assert reward_of(rows(one, slice(0)), rows(two, slice(0))).shape == (0,)


def test_gradients_agree_with_finite_differences(reward_of) -> None:
    one, two = drawn(1, log_z=True), drawn(2, log_z=True)
    assert one.log_z is not None and two.log_z is not None

    def of(a: Tensor, b: Tensor, z: Tensor) -> Tensor:
        return reward_of(TokenLogprobs(a, one.mask, z), TokenLogprobs(b, two.mask, z))

    inputs = [t.clone().requires_grad_() for t in (one.logp, two.logp, one.log_z)]
    assert torch.autograd.gradcheck(of, inputs)


def test_no_places_are_no_tokens() -> None:
    nothing = TokenLogprobs(torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.bool), torch.zeros(2, 0))
    assert nothing.sum().tolist() == [0.0, 0.0] and endogenous_reward(nothing).shape == (2, 0)
    for function in (nothing.mean, lambda: self_aligned(nothing, nothing)):
        with pytest.raises(DataError, match="2 of 2 responses have no tokens, the first in row 0"):
            function()


@settings(deadline=None, max_examples=25)
@given(st.lists(st.lists(st.floats(-50, 0), max_size=5), min_size=1, max_size=5), st.floats(0.1, 3))
def test_the_endogenous_reward_ranks_as_the_likelihood_within_a_prompt(rows: list[list[float]], value: float) -> None:
    places = max(map(len, rows))
    logp = torch.tensor([row + [0.0] * (places - len(row)) for row in rows], dtype=D).reshape(len(rows), places)
    mask = torch.arange(places) < torch.tensor([[len(row)] for row in rows])
    total = endogenous_reward(TokenLogprobs(logp, mask, torch.full_like(logp, value))).sum(1)
    expected = logp.sum(1) + value * mask.any(1).double()
    torch.testing.assert_close(total, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda t: self_aligned(t, t, clip=0.0), "`clip` is 0"),
        (lambda t: log_density_ratio(t, t, reduction="max"), "`reduction` is 'max'"),
        (lambda t: log_density_ratio(t, t, reduction="sum", beta=math.nan), "`beta` is nan"),
        (lambda t: implicit_reward([1.0], [1.0], beta=0.0), "`beta` is 0"),
        (lambda t: contrastive_implicit_reward(t, t, beta=-1), "`beta` is -1"),
        (lambda t: endogenous_reward(t, alpha=0.0), "`alpha` is 0"),
        (lambda t: adaptive_weight(t.logp, t.logp, scale=0.0), "`scale` is 0"),
        (lambda t: adaptive_weight(t.logp, t.logp, least=0.0), "`least` is 0"),
    ],
)
def test_settings_outside_their_range_are_refused(call, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        call(drawn(1, log_z=True))


def test_other_rows_are_refused() -> None:
    with pytest.raises(DataError, match="`strong` has 4 responses and `weak` 3"):
        log_density_ratio(drawn(1), drawn(1, n=3), reduction="sum")
    with pytest.raises(DataError, match="not of the same tokens: 4 and 3 responses"):
        self_aligned(drawn(1), drawn(1, n=3))
    shifted = padded(drawn(1), 1, 0)
    with pytest.raises(DataError, match=r"masks \[4, 6\] and \[4, 7\] that differ"):
        self_aligned(drawn(1), shifted)
    with pytest.raises(ValueError, match="as many chosen as rejected"):
        implicit_margin([1.0], [1.0, 2.0], [1.0], [1.0, 2.0])
