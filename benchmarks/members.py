"""CPU seconds of every aggregate, shape, advantage, weight and loss on a million rewards in a hundred thousand groups.

Of rewards from log-probabilities, on a million tokens.

    python -m benchmarks.members [--only NAME …] [--out FILE]

Each has to take less than half a second on two cores. What is counted is the processor's time for the call alone, on
one thread, the least of three: what else runs on the machine hardly matters, and two cores are no slower.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ebrm import aggregate, heads, logprobs, optimize, shape
from ebrm.groups import Groups
from ebrm.utils.files import write_json

REWARDS, GROUPS = 1_000_000, 100_000
REQUIRED = 0.5
_TURNS = 3
#: Members, attributes, references, requirements and checks a row; with them the table has so many rewards.
_COLUMNS = 4
#: Tokens a response, and tokens in the vocabulary of logits.
_PLACES = 200

#: Public members that are not timed here, and why.
ELSEWHERE: Mapping[str, str] = {
    "bilevel_weights": "a fit: as many calls of expected_trusted as L-BFGS takes steps",
    "min_norm_weights": "weights of a few gradients, not of rewards",
    "neighbor_fusion": "compares every row's embedding with a whole bank's",
    "separability": "compares embeddings of sentences",
}


@dataclass(frozen=True, eq=False)
class Made:
    """Made-up rewards: one a row, several a row (of as many rewards in all), and the groups of both."""

    reward: Tensor  # [n]
    groups: Groups
    table: Tensor  # [m, columns]
    of_table: Groups
    std: Tensor  # [columns, m]
    share: Tensor  # [m, columns], from 0 to 1
    flag: Tensor  # bool [n]
    check: Tensor  # bool [m, columns]
    answer: Tensor  # [n]
    length: Tensor  # [n]
    one: Tensor  # [groups]
    statistics: shape.RunningStatistics
    requirements: aggregate.Lagrangian
    tokens: tuple[logprobs.TokenLogprobs, logprobs.TokenLogprobs]  # of two models
    logits: tuple[Tensor, Tensor]  # [m, vocabulary], of two models

    @classmethod
    def up(cls, rewards: int = REWARDS, groups: int = GROUPS, seed: int = 0) -> Made:
        """Draw them; every group has rows."""
        draw = torch.Generator().manual_seed(seed)
        few = rewards // _COLUMNS

        def prompts(rows: int, count: int) -> Groups:
            index = torch.arange(rows) % count
            return Groups(index[torch.randperm(rows, generator=draw)], count)

        reward = torch.randn(rewards, generator=draw)
        few_tokens = -torch.rand(2, rewards // _PLACES, _PLACES, generator=draw)
        mask = torch.rand(few_tokens.shape[1:], generator=draw) < 0.9
        mask[:, 0] = True
        log_z = torch.randn(few_tokens.shape[1:], generator=draw)
        return cls(
            reward=reward,
            groups=prompts(rewards, groups),
            table=torch.randn(few, _COLUMNS, generator=draw),
            of_table=prompts(few, groups),
            std=torch.rand(_COLUMNS, few, generator=draw) + 0.5,
            share=torch.rand(few, _COLUMNS, generator=draw),
            flag=torch.rand(rewards, generator=draw) < 0.5,
            check=torch.rand(few, _COLUMNS, generator=draw) < 0.5,
            answer=torch.randint(5, (rewards,), generator=draw),
            length=torch.randint(1, 500, (rewards,), generator=draw),
            one=torch.rand(groups, generator=draw),
            statistics=shape.RunningStatistics().updated(reward),
            requirements=aggregate.Lagrangian.start(torch.zeros(_COLUMNS)),
            tokens=tuple(logprobs.TokenLogprobs(logp, mask, log_z) for logp in few_tokens),  # type: ignore[arg-type]
            logits=tuple(torch.randn(2, rewards // _PLACES, _PLACES, generator=draw)),  # type: ignore[arg-type]
        )


def members(made: Made) -> dict[str, Callable[[], object]]:
    """Name of each public member to a call of it."""
    m = made
    table, mean, std = m.table.T.contiguous(), m.table.T.mean(1), m.table.T.std(1)
    uniform = torch.sigmoid(m.reward)
    one, two = m.tokens
    ones = torch.ones(_COLUMNS)
    names = dict.fromkeys("abcd"[:_COLUMNS], 1.0)
    columns = dict(zip(names, m.table.unbind(1), strict=True))
    return {
        # aggregate
        "member_units": lambda: aggregate.member_units(table),
        "standardized": lambda: aggregate.standardized(table, mean, std),
        "centered": lambda: aggregate.centered(table, m.of_table),
        "ensemble_mean": lambda: aggregate.ensemble_mean(table),
        "ensemble_median": lambda: aggregate.ensemble_median(table),
        "worst_case": lambda: aggregate.worst_case(table),
        "uncertainty_weighted": lambda: aggregate.uncertainty_weighted(table),
        "disagreement": lambda: aggregate.disagreement(table),
        "mean_minus_std": lambda: aggregate.mean_minus_std(table),
        "pessimistic": lambda: aggregate.pessimistic(m.reward, m.reward.abs()),
        "most_confident_head": lambda: aggregate.most_confident_head(table, m.std),
        "nominal_worst_case": lambda: aggregate.nominal_worst_case(table, m.std),
        "log_sigmoid_sum": lambda: aggregate.log_sigmoid_sum(m.table, ones),
        "gate": lambda: aggregate.gate(m.share),
        "gated": lambda: aggregate.gated(m.share, m.share),
        "base_and_bonus": lambda: aggregate.base_and_bonus(uniform, uniform),
        "verifiable_or_model": lambda: aggregate.verifiable_or_model(uniform, m.reward, m.flag),
        "mixed_granularity": lambda: aggregate.mixed_granularity(m.one, m.reward, m.groups),
        "Lagrangian": lambda: m.requirements.updated(m.table).combine(m.table[:, 0], m.table),
        "step_reward": lambda: aggregate.step_reward(uniform, m.groups, "product"),
        "swap_average": lambda: aggregate.swap_average(uniform, uniform),
        "majority_vote": lambda: aggregate.majority_vote(m.answer, m.groups),
        "weighted_sum": lambda: aggregate.weighted_sum(m.table, ones),
        "weighted_mean": lambda: aggregate.weighted_mean(m.table, ones),
        "attribute_sum": lambda: aggregate.attribute_sum(columns, names),
        "expected_trusted": lambda: aggregate.expected_trusted(m.table[:, 0], m.table, m.of_table, ones),
        # shape
        "preference_as_reward": lambda: shape.preference_as_reward(m.table[:, 0], m.table),
        "centered_on_references": lambda: shape.centered_on_references(m.table[:, 0], m.table),
        "log_sigmoid_centered": lambda: shape.log_sigmoid_centered(m.reward, m.reward),
        "reference_level": lambda: shape.reference_level(m.table),
        "RunningStatistics": lambda: m.statistics.updated(m.reward),
        "running_standardized": lambda: shape.running_standardized(m.reward, m.statistics),
        "running_clipped": lambda: shape.running_clipped(m.reward, m.statistics),
        "running_min_max": lambda: shape.running_min_max(m.reward, m.statistics),
        "process_clip": lambda: shape.process_clip(m.reward, 0.5),
        "process_delta": lambda: shape.process_delta(m.reward, m.groups),
        "process_return": lambda: shape.process_return(m.reward, m.groups, m.one),
        "length_penalty": lambda: shape.length_penalty(m.length),
        "relative_length_penalty": lambda: shape.relative_length_penalty(m.length, m.groups),
        "correct_length_penalty": lambda: shape.correct_length_penalty(m.length, m.flag, m.groups),
        "difficulty_weighted_checks": lambda: shape.difficulty_weighted_checks(m.check, m.of_table),
        "hardness_scale": lambda: shape.hardness_scale(m.one, m.one),
        "hardness_scaled_advantage": lambda: shape.hardness_scaled_advantage(m.reward, m.one, m.groups),
        # optimize
        "group_advantage": lambda: optimize.group_advantage(m.reward, m.groups),
        "attribute_advantage": lambda: optimize.attribute_advantage(m.table, m.of_table, "per_attribute"),
        "leave_one_out_advantage": lambda: optimize.leave_one_out_advantage(m.reward, m.groups),
        "soft_plackett_luce": lambda: optimize.soft_plackett_luce(m.reward, m.reward, m.groups),
        "reward_ranked_top": lambda: optimize.reward_ranked_top(m.reward, m.groups),
        "reward_ranked_local": lambda: optimize.reward_ranked_local(m.reward, m.groups),
        "contrastive_subsample": lambda: optimize.contrastive_subsample(m.reward, m.groups, 4),
        # logprobs
        "TokenLogprobs": lambda: logprobs.TokenLogprobs(one.logp, one.mask, one.log_z).mean(),
        "self_aligned": lambda: logprobs.self_aligned(one, two),
        "self_aligned_attribution": lambda: logprobs.self_aligned_attribution(one, two),
        "log_density_ratio": lambda: logprobs.log_density_ratio(one, two, reduction="mean"),
        "contrastive_implicit_reward": lambda: logprobs.contrastive_implicit_reward(one, two),
        "endogenous_reward": lambda: logprobs.endogenous_reward(one),
        "implicit_reward": lambda: logprobs.implicit_reward(m.reward, m.reward),
        "implicit_margin": lambda: logprobs.implicit_margin(m.reward, m.reward, m.reward, m.reward),
        "yes_no_log_odds": lambda: logprobs.yes_no_log_odds(m.logits[0], [0, 1], [2]),
        "logit_extrapolation": lambda: logprobs.logit_extrapolation(*m.logits, 0.5),
        "adaptive_weight": lambda: logprobs.adaptive_weight(*m.logits),
        "followup_likelihood": lambda: logprobs.followup_likelihood(m.table, m.table),
        "tilt_weights": lambda: optimize.tilt_weights(m.reward, m.groups, 0.5),
        "regression_weights": lambda: optimize.regression_weights(m.reward, m.groups, 0.5),
        "steerlm2_weights": lambda: optimize.steerlm2_weights(m.reward, m.reward.abs(), m.groups),
        "margin_scaled_beta": lambda: optimize.margin_scaled_beta(m.reward),
        "optimistic_dpo_loss": lambda: optimize.optimistic_dpo_loss(m.reward, m.reward, m.reward),
        "power_margin": lambda: optimize.power_margin(m.reward, m.reward, m.length, m.length, 2.0),
        "power_loss": lambda: optimize.power_loss(m.reward, m.reward, m.length, m.length, 2.0, 0.1, uniform),
        "distillation_loss": lambda: optimize.distillation_loss(m.table[None], m.share[None], m.check[None, :, 0]),
        # heads
        "pair_loss": lambda: heads.pair_loss(m.reward, m.reward.flip(0), label=uniform, margin=m.reward),
        "inconsistency_penalty": lambda: heads.inconsistency_penalty(table),
        "tie_probabilities": lambda: heads.tie_probabilities(m.reward),
        "difference_objective": lambda: heads.difference_objective(m.reward, m.groups),
    }


def timed(made: Made, only: list[str] | None = None, turns: int = _TURNS) -> dict[str, float]:
    """Name to the least CPU seconds of several turns."""
    return {
        name: min(_seconds(call) for _ in range(turns))
        for name, call in members(made).items()
        if not only or name in only
    }


def _seconds(call: Callable[[], object]) -> float:
    started = time.process_time()
    call()
    return time.process_time() - started


def main(argv: list[str] | None = None) -> int:
    """Time them and print a table; 1 if any takes too long."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", metavar="NAME", help="members to time (default: all)")
    parser.add_argument("--out", help="JSON file for the seconds by name")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    slow, found = 0, timed(Made.up(), arguments.only)
    if arguments.out:
        write_json(arguments.out, {name: round(taken, 3) for name, taken in found.items()})
    for name, taken in found.items():
        slow += taken >= REQUIRED
        print(f"{name:28} {taken:7.3f} s{'' if taken < REQUIRED else '  too slow'}", flush=True)
    return int(slow > 0)


if __name__ == "__main__":
    sys.exit(main())
