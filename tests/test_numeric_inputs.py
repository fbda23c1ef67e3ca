"""What all numeric methods hold: GPU tensors, arrays, lists and whole numbers are taken, float types kept, gradients
finite at ties."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from tests.other_device import There, other_device

from ebrm import aggregate, curate, heads, logprobs, optimize, shape
from ebrm.errors import ConfigError, DataError
from ebrm.groups import Groups
from ebrm.pairs import CurationReport, PreferencePairs

GROUPS = Groups.of(["a", "b", "a", "b", "c", "a"])
PAIRS = PreferencePairs.of([0, 2, 3], [1, 4, 5], source=["x", "y", "x"], strength=[1, None, 2])
BETWEEN = PreferencePairs.of([0, 2, 5, 1], [2, 5, 0, 3])  # within prompts
STATISTICS = shape.RunningStatistics(4, 1.0, 3.0, -1.0, 2.0)
MASK = torch.tensor([True, False, True, True, False, True])
TABLE = torch.tensor([[True, False], [True, True], [False, True], [True, True], [True, False], [True, True]])
R, U, P, L = "any number", "from 0 to 1", "above 0", "below 0"


class Case(NamedTuple):
    function: Any
    numbers: dict[str, tuple[Any, ...]]  # argument -> kind and shape
    rest: dict[str, Any] = {}
    keeps_type: bool = True


def fit(embedding, pairs):
    return lambda rows: rows.double() @ (embedding[pairs.chosen] - embedding[pairs.rejected]).double().mean(0)


def on_grouped(function, *kind, **rest):
    return Case(function, {"reward": kind or (R, 6)}, {"groups": GROUPS, **rest})


STEPS = {f"step_reward-{how}": Case(aggregate.step_reward, {"score": (U, 6)}, {"groups": GROUPS, "how": how})
         for how in ("min", "max", "mean", "last", "product", "mean_logit", "mean_odds")}  # fmt: skip


def on_tokens(function, *names, log_z=False):
    """A function of log-probabilities, of their numbers."""

    def of_numbers(mask, z=None, **logp):
        return function(*(logprobs.TokenLogprobs(logp[name], mask, z) for name in names))

    return Case(of_numbers, {name: (L, 6, 2) for name in names} | ({"z": (R, 6, 2)} if log_z else {}), {"mask": FULL})


FULL = torch.ones(6, 2, dtype=torch.bool)
ENSEMBLES = ("disagreement", "ensemble_mean", "ensemble_median", "mean_minus_std", "uncertainty_weighted", "worst_case")
BANK = {"embedding": (P, 6, 3), "reward": (R, 6), "bank": (P, 5, 3), "bank_reward": (R, 5)}
CASES: dict[str, Case] = {
    **{name: Case(getattr(aggregate, name), {"rewards": (R, 3, 6)}) for name in ENSEMBLES},
    **STEPS,
    "member_units": Case(aggregate.member_units, {"rewards": (R, 3, 6)}, keeps_type=False),
    "standardized": Case(aggregate.standardized, {"rewards": (R, 3, 6), "mean": (R, 3), "std": (P, 3)}),
    "centered": Case(aggregate.centered, {"rewards": (R, 3, 6)}, {"groups": GROUPS}),
    "pessimistic": Case(aggregate.pessimistic, {"mean": (R, 6), "std": (P, 6)}),
    "most_confident_head": Case(aggregate.most_confident_head, {"mean": (R, 3, 6), "std": (P, 3, 6)}),
    "nominal_worst_case": Case(aggregate.nominal_worst_case, {"mean": (R, 3, 6), "std": (P, 3, 6)}),
    "nominal per batch": Case(
        aggregate.nominal_worst_case, {"mean": (R, 3, 6), "std": (P, 3, 6)}, {"worst_case": "per_batch"}
    ),
    "neighbor_fusion": Case(aggregate.neighbor_fusion, BANK, {"own": torch.tensor([0, -1, 1, 2, 2, 4])}),
    "weighted_sum": Case(aggregate.weighted_sum, {"rewards": (R, 6, 2), "weight": (R, 2)}),
    "weighted_mean": Case(aggregate.weighted_mean, {"rewards": (R, 6, 2), "weight": (P, 2)}),
    "log_sigmoid_sum": Case(aggregate.log_sigmoid_sum, {"rewards": (R, 6, 2), "reference": (R, 2)}),
    "gate": Case(aggregate.gate, {"score": (U, 6, 2)}),
    "gate product": Case(aggregate.gate, {"score": (U, 6, 2)}, {"how": "product"}),
    "gated": Case(aggregate.gated, {"requirement": (U, 6, 2), "objective": (U, 6, 3), "weight": (P, 3)}),
    "base_and_bonus": Case(aggregate.base_and_bonus, {"base": (U, 6), "bonus": (U, 6)}, {"has_bonus": MASK}),
    "verifiable_or_model": Case(
        aggregate.verifiable_or_model, {"check": (U, 6), "model": (R, 6)}, {"verifiable": MASK}
    ),
    "Lagrangian": Case(
        lambda threshold, requirement, reward: aggregate.Lagrangian.start(threshold)
        .updated(requirement)
        .combine(reward, requirement),
        {"reward": (R, 6), "threshold": (R, 2), "requirement": (R, 6, 2)},
    ),
    "min_norm_weights": Case(aggregate.min_norm_weights, {"gradient": (P, 2, 3)}),
    "bilevel_weights": Case(
        aggregate.bilevel_weights, {"trusted": (R, 6), "auxiliary": (R, 6, 2)}, {"groups": GROUPS}, keeps_type=False
    ),
    "expected_trusted": Case(
        aggregate.expected_trusted, {"trusted": (R, 6), "auxiliary": (R, 6, 2), "weight": (R, 2)}, {"groups": GROUPS},
        keeps_type=False,
    ),
    "mixed_granularity": Case(
        aggregate.mixed_granularity, {"whole": (R, 3), "item": (R, 6)}, {"groups": GROUPS, "items": "discounted_sum"}
    ),
    "majority_vote": Case(
        lambda weight, vote, groups: aggregate.majority_vote(vote, groups, weight), {"weight": (P, 6)},
        {"vote": torch.tensor([0, 1, 2, 1, 0, 2]), "groups": GROUPS}, keeps_type=False,
    ),
    "swap_average": Case(aggregate.swap_average, {"first": (U, 6), "second": (U, 6)}),
    "length_penalty": Case(shape.length_penalty, {"length": (P, 6)}, {"free": 2.0}),
    "relative_length_penalty": Case(shape.relative_length_penalty, {"length": (P, 6)}, {"groups": GROUPS}),
    "correct_length_penalty": Case(
        shape.correct_length_penalty, {"length": (P, 6), "correct": (U, 6)}, {"groups": GROUPS}
    ),
    **{
        f"preference_as_reward-{squash}": Case(
            shape.preference_as_reward, {"reward": (R, 6), "reference": (R, 6, 2)}, {"squash": squash, "present": TABLE}
        )
        for squash in ("sigmoid", "tanh", "arctan", "polynomial")
    },
    "centered_on_references": Case(
        shape.centered_on_references, {"reward": (R, 6), "reference": (R, 6, 2)}, {"present": TABLE}
    ),
    "log_sigmoid_centered": Case(shape.log_sigmoid_centered, {"reward": (R, 6), "level": (R, 6)}),
    "reference_level": Case(shape.reference_level, {"reference": (R, 6, 2)}, {"present": TABLE}),
    "reference_level normal": Case(shape.reference_level, {"reference": (R, 6, 2)}, {"how": "normal"}),
    "running_standardized": Case(shape.running_standardized, {"reward": (R, 6)}, {"statistics": STATISTICS}),
    "running_clipped": Case(shape.running_clipped, {"reward": (R, 6)}, {"statistics": STATISTICS}),
    "running_min_max": Case(shape.running_min_max, {"reward": (R, 6)}, {"statistics": STATISTICS}),
    "RunningStatistics": Case(shape.RunningStatistics().updated, {"reward": (R, 6)}, keeps_type=False),
    "process_clip": Case(shape.process_clip, {"score": (R, 6)}, {"threshold": 0.4}),
    "process_delta": Case(shape.process_delta, {"score": (R, 6)}, {"groups": GROUPS}),
    "process_return": Case(shape.process_return, {"reward": (R, 6), "success": (U, 3)}, {"groups": GROUPS}),
    "difficulty_weighted_checks": Case(
        lambda smoothing, **rest: shape.difficulty_weighted_checks(smoothing=0.1, **rest), {"smoothing": (P, 1)},
        {"passed": TABLE, "groups": GROUPS, "present": TABLE[:3]}, keeps_type=False,
    ),
    "separability": Case(
        shape.separability, {"demonstration": (P, 6, 2, 3), "response": (P, 6, 4, 3)}, {"demonstration_present": TABLE}
    ),
    "hardness_scale": Case(shape.hardness_scale, {"separability": (R, 6), "responsiveness": (R, 6)}),
    "hardness_scaled_advantage": Case(
        shape.hardness_scaled_advantage, {"advantage": (R, 6), "scale": (P, 3)}, {"groups": GROUPS}
    ),
    "TokenLogprobs.mean": on_tokens(logprobs.TokenLogprobs.mean, "logp"),
    "TokenLogprobs.sum": on_tokens(logprobs.TokenLogprobs.sum, "logp"),
    "self_aligned": on_tokens(logprobs.self_aligned, "conditional", "unconditional"),
    "log_density_ratio": on_tokens(
        lambda one, two: logprobs.log_density_ratio(one, two, reduction="mean"), "strong", "weak"
    ),
    "contrastive_implicit_reward": on_tokens(logprobs.contrastive_implicit_reward, "preferred", "reverse"),
    "endogenous_reward": on_tokens(logprobs.endogenous_reward, "tokens", log_z=True),
    "implicit_reward": Case(logprobs.implicit_reward, {"policy": (R, 6), "reference": (R, 6)}),
    "implicit_margin": Case(
        logprobs.implicit_margin,
        {f"{model}_{side}": (R, 6) for model in ("policy", "reference") for side in ("chosen", "rejected")},
    ),
    "yes_no_log_odds": Case(logprobs.yes_no_log_odds, {"logits": (R, 6, 3)}, {"yes_ids": [0], "no_ids": [1]}),
    "logit_extrapolation": Case(
        logprobs.logit_extrapolation, {"logits": (R, 6, 3), "reference": (R, 6, 3), "weight": (P, 6)}
    ),
    "adaptive_weight": Case(logprobs.adaptive_weight, {"logits": (R, 6, 3), "reverse": (R, 6, 3)}),
    "followup_likelihood": Case(logprobs.followup_likelihood, {"positive": (R, 6, 2), "negative": (R, 6, 3)}),
    "group_advantage": on_grouped(optimize.group_advantage),
    "group_advantage ddof": on_grouped(optimize.group_advantage, ddof=1),
    "attribute_advantage": Case(
        optimize.attribute_advantage, {"attribute": (R, 6, 2), "weight": (R, 2)},
        {"groups": GROUPS, "normalize": "per_attribute"},
    ),
    "leave_one_out_advantage": on_grouped(optimize.leave_one_out_advantage),
    "soft_plackett_luce": Case(
        optimize.soft_plackett_luce, {"score": (R, 6), "reward": (R, 6)}, {"groups": GROUPS}
    ),
    "reward_ranked_top": on_grouped(optimize.reward_ranked_top, share=0.5)._replace(keeps_type=False),
    "reward_ranked_local": on_grouped(optimize.reward_ranked_local)._replace(keeps_type=False),
    "contrastive_subsample": Case(
        optimize.contrastive_subsample, {"score": (R, 6)}, {"groups": GROUPS, "keep": 2}, False
    ),
    "best_of_n_gold": Case(optimize.best_of_n_gold, {"reward": (R, 3, 4), "gold": (R, 3, 4)}, keeps_type=False),
    "best_of_n_kl": Case(optimize.best_of_n_kl, {"n": (P, 3)}, keeps_type=False),
    "tilt": Case(optimize.tilt, {"reward": (R, 3, 4), "gold": (R, 3, 4), "beta": (P, 2)}, keeps_type=False),
    "tilt_to_kl": Case(optimize.tilt_to_kl, {"reward": (R, 3, 4), "gold": (R, 3, 4), "kl": (P, 2)}, keeps_type=False),
    "tilt_weights": on_grouped(optimize.tilt_weights, beta=0.5),
    "tilt_weights of the best": on_grouped(optimize.tilt_weights, beta=0.0),
    "regression_weights": on_grouped(optimize.regression_weights, beta=0.5),
    "steerlm2_weights": Case(optimize.steerlm2_weights, {"target": (R, 6), "proposal": (R, 6)}, {"groups": GROUPS}),
    "margin_scaled_beta": Case(optimize.margin_scaled_beta, {"difference": (R, 6)}),
    "optimistic_dpo_loss": Case(
        optimize.optimistic_dpo_loss, {name: (R, 6) for name in ("chosen", "rejected", "sampled")}
    ),
    "power_margin": Case(
        lambda chosen_length, rejected_length, **rest: optimize.power_margin(
            chosen_length=plus_1(chosen_length), rejected_length=plus_1(rejected_length), beta=2.0, **rest
        ),
        {"chosen": (R, 6), "rejected": (R, 6), "chosen_length": (P, 6), "rejected_length": (P, 6)},
    ),
    "power_loss": Case(
        lambda chosen_length, rejected_length, **rest: optimize.power_loss(
            chosen_length=plus_1(chosen_length), rejected_length=plus_1(rejected_length), beta=2.0, eta=0.1, **rest
        ),
        {"chosen": (R, 6), "rejected": (R, 6), "chosen_length": (P, 6), "rejected_length": (P, 6), "label": (U, 6)},
    ),
    "distillation_loss": Case(
        optimize.distillation_loss, {"student": (R, 6, 2, 3), "teacher": (R, 6, 2, 3), "weight": (P, 6, 2)},
        {"mask": TABLE},
    ),
    "inconsistency_penalty": Case(heads.inconsistency_penalty, {"difference": (R, 3, 6)}, {"entropy": 0.1}),
    "difference_objective": Case(heads.difference_objective, {"reward": (R, 6)}, {"groups": GROUPS}),
    **{
        f"Groups.{name}": Case(getattr(Groups, name), {"values": (R, 6)}, {"self": GROUPS})
        for name in ("sum", "mean", "std", "minimum", "maximum", "logsumexp", "softmax", "centered")
    },
    "Groups.rank": Case(Groups.rank, {"values": (R, 6)}, {"self": GROUPS}, False),
    **{
        name: case._replace(keeps_type=False)
        for name, case in {
            "filter_conflicts": Case(curate.filter_conflicts, {"reward": (R, 6)}, {"pairs": PAIRS}),
            "dual_consistency": Case(curate.dual_consistency, {"best": (U, 3), "gold": (U, 3)}, {"pairs": PAIRS}),
            "consensus": Case(curate.consensus, {"probability": (U, 2, 3)}, {"pairs": PAIRS, "soft": True}),
            "judge_agreement": Case(curate.judge_agreement, {"score": (R, 3, 3, 2)}, {"pairs": PAIRS, "least": 2}),
            "rubric_consistency": Case(
                curate.rubric_consistency, {"probability": (U, 4)}, {"pairs": BETWEEN, "prompt": GROUPS}
            ),
            "ucb_pairs": Case(curate.ucb_pairs, {"reward": (R, 3, 6)}, {"prompt": GROUPS}),
            "hard_subset": Case(curate.hard_subset, {"reward": (R, 6)}, {"count": 2}),
            "preference_strength": Case(curate.preference_strength, {"difference": (R, 2, 3)}),
            **{
                name: Case(
                    lambda difference, pairs, method=method, **rest: method(
                        pairs, curate.preference_strength(difference), **rest
                    ),
                    {"difference": (R, 2, 3)},
                    {"pairs": PAIRS, **rest},
                )
                for name, method, rest in (
                    ("flip_weakest", curate.flip_weakest, {"fraction": 0.4}),
                    ("soften_labels", curate.soften_labels, {"smoothing": 0.2, "strongest": 0.4}),
                    ("adaptive_margin", curate.adaptive_margin, {}),
                )
            },
            "dynamic_labels": Case(curate.dynamic_labels, {"difference": (R, 3)}, {"pairs": PAIRS}),
            **{
                f"rank_consistency-{measure}": Case(
                    curate.rank_consistency, {"reward": (R, 6), "other": (R, 6)},
                    {"prompt": GROUPS, "measure": measure},
                )
                for measure in ("kendall", "spearman", "top order")
            },
            "consistency_labels": Case(
                curate.consistency_labels, {"consistency": (U, 3)}, {"pairs": BETWEEN, "prompt": GROUPS}
            ),
            "best_worst_pairs": Case(
                curate.best_worst_pairs, {"reward": (R, 6), "evidence": (R, 2, 6), "weight": (R, 2)}, {"prompt": GROUPS}
            ),
            "cross_prompt_pairs": Case(
                lambda _, passed: curate.cross_prompt_pairs(passed, generator(), wins=3, ties=2), {"_": (R, 1)},
                {"passed": MASK},
            ),
            "goal_conditioned_pairs": Case(curate.goal_conditioned_pairs, {"score": (R, 6)}, {"pairs": PAIRS}),
            **{
                f"corruption_pairs-{kind}": Case(
                    lambda _, response, prompt, kind=kind: curate.corruption_pairs(response, kind, generator(), prompt),
                    {"_": (R, 1)}, {"response": GROUPS, "prompt": Groups.of([0, 1, 0])},
                )
                for kind in ("swap", "duplicate", "splice")
            },
            "hull_vertices": Case(curate.hull_vertices, {"embedding": (R, 6, 3)}, {"group": GROUPS}),
            "convex_hull_augmentation": Case(
                curate.convex_hull_augmentation, {"embedding": (R, 6, 3)},
                {"pairs": PAIRS, "copy_of": torch.tensor([-1, 0, 0, -1, 2, 0])},
            ),
            "error_driven_retrieval": Case(
                curate.error_driven_retrieval, {"probability": (U, 3), "embedding": (P, 3, 2), "pool": (P, 9, 2)},
                {"most": 2},
            ),
            "density_ratio_weights": Case(
                curate.density_ratio_weights, {"positive": (R, 6, 2), "negative": (R, 5, 2)}
            ),
            "odds_weights": Case(curate.odds_weights, {"logit": (R, 6)}),
            "cross_fitted_difference": Case(
                lambda embedding, pairs, prompt: curate.cross_fitted_difference(
                    pairs, embedding, fit, generator(), folds=2, prompt=prompt
                ),
                {"embedding": (R, 6, 2)}, {"pairs": BETWEEN, "prompt": GROUPS},
            ),
            "peer_review": Case(
                lambda embedding, pairs: curate.peer_review(pairs, embedding, fit, 0.3, generator())[::2],
                {"embedding": (R, 6, 2)}, {"pairs": PAIRS},
            ),
            "independent_heads": Case(
                lambda embedding, pairs: curate.independent_heads(pairs, embedding, fit, generator()).difference,
                {"embedding": (R, 6, 2)}, {"pairs": PAIRS},
            ),
            "PreferencePairs.difference": Case(PreferencePairs.difference, {"reward": (R, 2, 6)}, {"self": PAIRS}),
        }.items()
    },
}  # fmt: skip


def plus_1(lengths):
    """Lengths of at least 1, of what is above 0."""
    if isinstance(lengths, list):
        return [plus_1(length) for length in lengths]
    return lengths if isinstance(lengths, str) else lengths + 1


def generator():
    return torch.Generator().manual_seed(5)


def draw(kind: str, *shape: int, whole: bool = False) -> torch.Tensor:
    random = torch.Generator().manual_seed(sum(shape))
    if whole:
        low, high = {R: (-3, 4), U: (0, 2), P: (1, 5), L: (-5, 0)}[kind]
        return torch.randint(low, high, shape, generator=random)
    numbers = torch.randn(shape, generator=random, dtype=torch.float64)
    return {R: numbers, U: numbers.sigmoid(), P: numbers.exp(), L: -numbers.exp()}[kind]


def flat(result: Any) -> list[Any]:
    """All numbers of a result, as nested lists."""
    if isinstance(result, torch.Tensor):
        return [result.detach().cpu().double().numpy()]
    if isinstance(result, np.ndarray):
        return [result if result.dtype != object else np.array([str(x) for x in result])]
    if isinstance(result, CurationReport):
        return [str(result)]
    if isinstance(result, tuple | list):
        return [x for part in result for x in flat(part)]
    if isinstance(result, dict):
        return flat(list(result.values()))
    return flat(list(vars(result).values())) if dataclasses.is_dataclass(result) else [result]


def assert_same(one: Any, two: Any, rtol: float = 1e-9) -> None:
    for a, b in zip(flat(one), flat(two), strict=True):
        if isinstance(a, np.ndarray) and a.dtype.kind in "fiub":
            np.testing.assert_allclose(np.asarray(a, float), np.asarray(b, float), rtol=rtol, atol=rtol)
        elif isinstance(a, np.ndarray):
            assert a.tolist() == b.tolist()
        else:
            assert a == (pytest.approx(b, rel=rtol, abs=rtol, nan_ok=True) if isinstance(a, float) else b)


def numbers_of(case: Case, whole: bool = False) -> dict[str, torch.Tensor]:
    return {name: draw(*kind, whole=whole) for name, kind in case.numbers.items()}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def test_tensors_elsewhere_stay_there_and_give_the_same(case):
    numbers = numbers_of(case)
    expected = case.function(**numbers, **case.rest)
    with other_device() as device:
        there = {n: v.to(device) if hasattr(v, "to") else v for n, v in {**numbers, **case.rest}.items()}
        found = case.function(**there)
        for tensor in (found, *(found if isinstance(found, tuple) else ())):
            assert not isinstance(tensor, torch.Tensor) or isinstance(tensor, There)
            assert not isinstance(tensor, PreferencePairs) or tensor.device == device
        assert_same(found, expected)


def test_groups_and_settings_may_stay_on_the_cpu(case):
    """`Groups.of` a list of prompts is on the CPU, whatever the rewards are on."""
    numbers = numbers_of(case)
    with other_device() as device:
        there = {n: v.to(device) for n, v in numbers.items()}
        rest = {n: v.to(device) if isinstance(v, torch.Tensor | PreferencePairs) else v for n, v in case.rest.items()}
        if case.numbers and "response" not in rest:
            assert_same(case.function(**there, **rest), case.function(**numbers, **case.rest))


def test_arrays_and_lists_are_taken(case):
    numbers = numbers_of(case)
    expected = case.function(**numbers, **case.rest)
    for convert in (torch.Tensor.numpy, torch.Tensor.tolist):
        rest = {name: convert(v) if isinstance(v, torch.Tensor) else v for name, v in case.rest.items()}
        assert_same(case.function(**{n: convert(v) for n, v in numbers.items()}, **rest), expected)


def test_texts_are_no_numbers(case):
    numbers = numbers_of(case)
    name = next(iter(numbers))
    if name not in ("_", "smoothing"):
        with pytest.raises(TypeError, match="expected numbers in a tensor, a NumPy array or a list"):
            case.function(**{**numbers, name: "abc"}, **case.rest)


def test_whole_numbers_count_as_what_they_are(case):
    whole = numbers_of(case, whole=True)
    found = case.function(**whole, **case.rest)
    assert_same(found, case.function(**{n: v.double() for n, v in whole.items()}, **case.rest), 1e-5)
    if case.keeps_type:
        assert found.is_floating_point()


def test_results_have_the_float_type_of_the_input(case):
    if case.keeps_type:
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            numbers = {name: value.to(dtype) for name, value in numbers_of(case).items()}
            assert case.function(**numbers, **case.rest).dtype == dtype


def test_gradients_are_finite_at_ties(case):
    numbers = {
        name: torch.full(shape, -0.5 if kind == L else 0.5, dtype=torch.float64)
        for name, (kind, *shape) in case.numbers.items()
    }
    for value in numbers.values():
        value.requires_grad_()
    if case.keeps_type:
        result = case.function(**numbers, **case.rest)
        known = result[~result.isnan()]
        if known.requires_grad:
            known.sum().backward()
            assert all(v.grad is None or bool(v.grad.isfinite().all()) for v in numbers.values())


#: Arguments of which a number may be missing, and of which rows may.
NOT_LOOKED_AT = {("verifiable_or_model", "model")}
FREE = {
    ("error_driven_retrieval", "pool"), ("density_ratio_weights", "positive"), ("density_ratio_weights", "negative"),
    ("consensus", "probability"), ("judge_agreement", "score"), ("centered", "rewards"), ("tilt", "beta"),
    ("tilt_to_kl", "kl"), ("ucb_pairs", "reward"), ("weighted_sum", "rewards"), ("weighted_mean", "rewards"),
    ("log_sigmoid_sum", "rewards"), ("PreferencePairs.difference", "reward"), ("cross_fitted_difference", "embedding"),
}  # fmt: skip
ARGUMENTS = [
    (name, argument) for name, case in CASES.items() for argument in case.numbers if argument not in ("_", "smoothing")
]


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_a_number_that_is_not_finite_is_refused(name, argument):
    case, numbers = CASES[name], numbers_of(CASES[name])
    for bad in (math.nan, math.inf):
        numbers[argument].view(-1)[0] = bad
        if (name, argument) in NOT_LOOKED_AT or name.startswith("Groups.") or argument in ("beta", "kl"):
            continue  # reductions leave NaN as it is; an infinite β or KL is a limit
        with pytest.raises((DataError, ConfigError), match=r"index|Member 0|row 0|n is|place 0|weights of"):
            case.function(**numbers, **case.rest)


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_a_missing_row_is_refused(name, argument):
    case, numbers = CASES[name], numbers_of(CASES[name])
    numbers[argument] = numbers[argument][:-1]
    related = len(numbers) > 1 or any(isinstance(v, Groups | PreferencePairs) for v in case.rest.values())
    several = len(case.numbers[argument]) > 2 and argument in ("difference",)
    if related and not several and (name, argument) not in FREE:
        with pytest.raises((ValueError, DataError)):
            case.function(**numbers, **case.rest)


def test_the_other_device_finds_a_tensor_of_the_cpu():
    with other_device() as device:
        there = torch.ones(3).to(device)
        assert torch.equal((there + torch.arange(3, device=device)).cpu(), torch.tensor([1.0, 2.0, 3.0]))
        for mix in (lambda: there + torch.arange(3), lambda: there[torch.arange(3)], lambda: torch.ones(3)[there > 0]):
            with pytest.raises(RuntimeError, match="two devices"):
                mix()
        with pytest.raises(RuntimeError):
            there.numpy()
