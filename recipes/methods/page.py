"""Put the tables into docs/methods.md, between its `<!-- table NAME -->` and `<!-- end -->` lines.

    ebrm compare src/ebrm/demo/features --methods all --out recipes/methods/results
    ebrm compare src/ebrm/demo/features --methods all --pool tulu_bon_pool --limit 80 --out with_pool  # some minutes
    mv with_pool/results.json recipes/methods/results/with_pool.json  # gold alone is taken from it
    python -m benchmarks.members --out recipes/methods/results/members.json
    python recipes/methods/page.py

What a method is and its paper come from its docstring, what it costs and what it changed from the results.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ebrm.heads import HEADS
from ebrm.report import decimal

ROOT = Path(__file__).parent.parent.parent
RESULTS = Path(__file__).parent / "results"
PAGE = ROOT / "docs" / "methods.md"

#: Package to when to use a method to the methods, in the order of the page.
WHEN: Mapping[str, Mapping[str, str]] = {
    "aggregate": {
        "several reward models or heads are at hand whose errors differ": (
            "ensemble_mean ensemble_median worst_case uncertainty_weighted mean_minus_std disagreement pessimistic"
        ),
        "members of an ensemble have other scales or levels": "member_units standardized centered",
        "heads say how sure they are": "most_confident_head nominal_worst_case",
        "texts that say the same get different rewards": "neighbor_fusion",
        "several objectives are learned together and none is to lose": "min_norm_weights",
        "attributes are rated one by one": "weighted_sum weighted_mean attribute_sum",
        "one reward is trusted but scarce or coarse, others are plentiful": "expected_trusted bilevel_weights",
        "a requirement has to hold on average (harmlessness, length) while a reward rises": "Lagrangian",
        "a response has to be right in several respects at once, or a check decides": (
            "log_sigmoid_sum gate gated base_and_bonus verifiable_or_model"
        ),
        "the whole is scored and so are its parts": "mixed_granularity",
        "a process reward model scores every step": "step_reward",
        "several judges, or many answers to one question": "majority_vote",
        "a judge favors the response that it is shown first": "swap_average",
    },
    "shape": {
        "the reward can grow without end, and references are at hand": (
            "preference_as_reward centered_on_references log_sigmoid_centered reference_level"
        ),
        "the reward's scale drifts or differs from what the trainer expects": (
            "RunningStatistics running_standardized running_clipped running_min_max"
        ),
        "the policy grows longer without getting better": (
            "length_penalty relative_length_penalty correct_length_penalty"
        ),
        "the policy learns to repeat steps that look good": "process_clip process_delta process_return",
        "unit tests or rubric items decide, and few pass all": "difficulty_weighted_checks",
        "demonstrations are at hand and prompts differ in how hard they are": (
            "separability hardness_scale hardness_scaled_advantage"
        ),
    },
    "curate": {
        "the base reward model is good and the labels are not": "filter_conflicts",
        "several models or judges can look at the pairs": "dual_consistency consensus judge_agreement",
        "responses are scored, and pairs are wanted": "best_worst_pairs hard_subset",
        "some labels are wrong and nobody knows which": "cross_fitted_difference estimated_noise",
        "many labels are wrong": "exchange peer_review independent_heads",
        "a model is fitted in many passes on labels that may be wrong": "dynamic_labels",
        "several models were fitted on the pairs": "preference_strength flip_weakest soften_labels adaptive_margin",
        "two rewards rank several responses to each prompt": "rank_consistency consistency_labels",
        "few pairs, and ways to make a response worse are known": "corruption_pairs",
        "few pairs, and perturbed copies of the chosen responses can be made": "hull_vertices convex_hull_augmentation",
        "rewards are compared between prompts (filtering, base-and-bonus)": "cross_prompt_pairs",
        "responses have scores, and the reward is to be steered": "goal_conditioned_pairs",
        "thumbs down come from other prompts than thumbs up": "density_ratio_weights odds_weights",
        "labels can still be bought": "retrieval_budget error_driven_retrieval ucb_pairs",
        "rubrics were written from ranked responses, and a judge applies them": "rubric_consistency",
        "several annotators named principles": "principle_consensus",
    },
    "optimize": {
        "a policy is trained by group-relative policy gradient": (
            "group_advantage attribute_advantage leave_one_out_advantage"
        ),
        "several scored responses to each prompt are at hand": "soft_plackett_luce",
        "a policy is fine-tuned on its own best responses": (
            "reward_ranked_top reward_ranked_local contrastive_subsample"
        ),
        "a policy is fine-tuned on all responses, the better ones more": (
            "tilt_weights regression_weights steerlm2_weights"
        ),
        "DPO, and a reward model says how far apart a pair's responses are": "margin_scaled_beta",
        "DPO on few pairs, and the policy is to explore": "optimistic_dpo_loss",
        "DPO without a reference policy, on labels or pairs that are not to be trusted": "power_loss power_margin",
        "a policy is to follow a better one, or one extrapolated, token by token": "distillation_loss",
        "the best of several responses is taken": "best_of_n_gold best_of_n_kl",
        "what a KL-regularized policy would gain is asked, without training it": "tilt tilt_to_kl",
    },
    "heads": {
        "a reward model is to learn from a few pairs and keep what it knew": "ResidualConfig",
        "which head is best is not known": "AutoConfig",
        "pairs and their base rewards, both noisy; uncertainty is asked for": "EnergyConfig",
        "pairs and nothing else; the first thing to compare with": "LinearConfig SiLUConfig pair_loss",
        "pairs may be ties": "tie_probabilities",
        "several rewards are to agree on pairs that have no label": "inconsistency_penalty",
        "the policy has moved, and the reward hardly tells its responses apart": "difference_objective",
        "pairs differ in how noisy they are": "GaussianConfig gaussian_pair_loss",
        "the reward has to know where pairs have said little": "BayesianConfig",
        "responses are rated rather than compared": "AttributesConfig",
        "there are thumbs but no pairs": "BinaryConfig binary_feedback_loss class_mean_shift",
        "the base reward is good and is to change little": "AnchoredConfig anchored_ranking_loss",
        "pairs come from several data sets that disagree": "MinNormConfig",
        "pairs come from people with different tastes": "PrototypesConfig",
        "the reward likes one direction too much, such as length": (
            "DirectionalConfig nuisance_direction remove_direction directional_correction directional_similarity"
        ),
        "responses that are unlike all known ones have to be found": "fit_centroids Centroids Leverage",
        "what an embedding knows is asked": "fit_probe LinearProbe",
        "there are demonstrations and a policy's own responses, and no labels": "demonstration_reward",
        "a fit went the right way, and may go further": "extrapolate_head",
        "how easily a reward can be driven up is asked": "reward_gradient_probe spsa_gradient",
    },
}
#: Public functions and classes that are no methods: results, steps that methods share, and the parts of a head.
PARTS: Mapping[str, str] = {
    "aggregate": "BilevelWeights Majority",
    "shape": "",
    "curate": "ConflictCount ConflictReport Corrupted CurateConfig Peers Strength head_difference",
    "optimize": "Selection Tilted pool_tables pools_by_size tie_groups",
    "heads": (
        "Anchors ClosedFormHead EmbeddingSource EnergyHead EnergyNetwork Epoch EstimateConfig FiniteRows "
        "FitConfig FittedHead Fusion GaussianHead GradientProbe HeadConfig InferenceConfig JointConfig "
        "LikelihoodConfig NCEConfig NetworkConfig Posterior PrototypesHead Refinement ResidualHead RewardHead "
        "TrainingConfig agreement find_interpolation fit_energy fit_head grid_nodes head_config head_fitter load_head "
        "posterior read_batch refuse_not_finite tanh train_step"
    ),
}
#: Method to those of `ebrm compare` that show what it does.
MEASURED: Mapping[str, str] = {
    "ensemble_mean": "silu-mean", "ensemble_median": "silu-median", "worst_case": "silu-worst-case",
    "uncertainty_weighted": "silu-uwo", "mean_minus_std": "silu-mean-std", "log_sigmoid_sum": "base-and-silu",
    "neighbor_fusion": "base-neighbors", "nominal_worst_case": "gaussian-worst-case",
    "most_confident_head": "gaussian", "preference_as_reward": "base-par", "log_sigmoid_centered": "base-log-sigmoid",
    "running_standardized": "base-standardized", "running_clipped": "base-clipped", "running_min_max": "base-min-max",
    "length_penalty": "base-length", "relative_length_penalty": "base-shorter",
    **{config.__name__: kind for kind, config in HEADS.items() if kind != "attributes"},
}  # fmt: skip


@dataclass(frozen=True)
class Member:
    """A public function or class, when to use it, its docstring's first line, and the papers it names."""

    package: str
    name: str
    when: str
    what: str
    papers: tuple[str, ...]


def members() -> Iterator[Member]:
    """Every method, in the order of the page."""
    for package, whens in WHEN.items():
        module = importlib.import_module(f"ebrm.{package}")
        for when, names in whens.items():
            for name in names.split():
                text = inspect.getdoc(getattr(module, name)) or ""
                yield Member(package, name, when, text.split("\n")[0].rstrip("."), papers(text))


def papers(text: str) -> tuple[str, ...]:
    """The arXiv ids a text names, each once, in its order."""
    return tuple(dict.fromkeys(re.findall(r"\b\d{4}\.\d{5}\b", text)))


def members_table(compared: Mapping[str, Any], seconds: Mapping[str, float]) -> str:
    """One row a member."""
    by_name = {method["name"]: method for method in compared["methods"]}
    rows = []
    for member in members():
        method = by_name.get(MEASURED.get(member.name, ""))
        cost = []
        if method is not None:
            cost.append(f"{method['microseconds']:.2f} µs a row")
            if method["parameters"]:
                cost.append(f"{method['parameters']:,} parameters")
        elif member.name in seconds:
            cost.append(f"{seconds[member.name]:.2f} µs a reward")
        links = ", ".join(f"[{id}](https://arxiv.org/abs/{id})" for id in member.papers)
        what = re.sub(r" \((arXiv )?\d{4}\.\d{5}\)", "", member.what).replace("|", "\\|")
        name = f"`{member.package}.{member.name}`"
        rows.append([name, what, member.when, links or "–", ", ".join(cost) or "–", effect(method)])
    return table(["method", "what it does", "use it when", "paper", "cost", "measured"], rows)


def effect(method: Mapping[str, Any] | None) -> str:
    """What a method changed, in points of accuracy and in gold."""
    if method is None or method["difference"] is None:
        return "–"
    parts = [f"accuracy {change(method['difference'], 100, 1)}"]
    if method["gain"] is not None:
        parts.append(f"gold {change(method['gain'], 1, 3)}")
    return "; ".join(parts)


def change(estimate: Mapping[str, float], factor: float, digits: int) -> str:
    """A signed value with its interval."""
    value, low, high = (decimal(factor * estimate[end], digits, sign=True) for end in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def plain(estimate: Mapping[str, float], factor: float, digits: int) -> str:
    """A value with its interval."""
    return change(estimate, factor, digits).replace("+", "")


def methods_table(compared: Mapping[str, Any]) -> str:
    """One row a method of `ebrm compare`."""
    first = compared["methods"][0]["name"]
    rows = []
    for m in compared["methods"]:
        gold = ["–" if m["gold"] is None else f"{m['gold']['value']:.3f}"]
        gold.append("–" if m["gain"] is None else change(m["gain"], 1, 3))
        difference = "–" if m["difference"] is None else change(m["difference"], 100, 1)
        row = [f"`{m['name']}`", plain(m["accuracy"], 100, 1), difference, f"{100 * m['ece']['value']:.1f}"]
        row += [plain(m["log_loss"], 1, 3), *gold, f"{m['parameters']:,}", f"{m['microseconds']:.2f}"]
        rows.append(row)
    head = ["method", "accuracy, %", f"minus {first}", "ECE, %", "log loss", f"gold, best of {compared['n']}"]
    return table([*head, f"minus {first}", "parameters", "µs a row"], rows)


def measured_on(compared: Mapping[str, Any]) -> str:
    """The sentence on the data."""
    left_out = sum(compared["left_out"].values())
    return (
        f"Fitted on {compared['train']:,} pairs of the demonstration's features, with {compared['validation']:,} to "
        f"choose by, and measured on {compared['pairs']:,} pairs of {compared['prompts']:,} other prompts; the "
        "probabilities of every row have one temperature, fitted on the pairs to choose by. Gold is of another run on "
        f"{compared['pool_prompts']} prompts of `{compared['pool']}` ({left_out} sampled ones left out, as they have a "
        f"response that is too long for the reward model, or fewer responses), where any response is worth "
        f"{compared['random']:.3f}. {100 * compared['level']:g}% intervals over prompts, differences paired."
    )


#: What is simple beside the heads that are ours or the default: the base reward, its shapings, and one layer by labels.
SIMPLE = ("base", "linear", "silu", "bayesian", "binary", "anchored", "min_norm")


def ahead(compared: Mapping[str, Any]) -> str:
    """Which simple methods have higher numbers than the energy and than the default head, on the same pairs."""
    by_name = {method["name"]: method for method in compared["methods"]}
    simple = [name for name in by_name if name in SIMPLE or name.startswith("base-")]

    def better(than: str, measure: str, scale: float, digits: int, unit: str) -> str:
        level = by_name[than][measure]["value"]
        found = {name: by_name[name][measure]["value"] for name in simple if name != than}
        above = sorted((name for name in found if found[name] > level), key=lambda name: -found[name])
        # Shapings that keep the base reward's order have its numbers, too.
        same = [name for name in above if name.startswith("base-") and found[name] == found.get("base")]
        listed = [f"`{name}` {decimal(scale * found[name], digits)}{unit}" for name in above if name not in same]
        whose = "the energy" if than == "energy" else "the default, the residual head,"
        return f"than {whose} ({decimal(scale * level, digits)}{unit}): {', '.join(listed) or 'none'}"

    pairs = "; ".join(better(than, "accuracy", 100, 1, "%") for than in ("energy", "residual"))
    gold = "; ".join(better(than, "gold", 1, 3, "") for than in ("energy", "residual"))
    return (
        f"**Simple methods that are ahead.** They rank more of these pairs rightly {pairs}. Their best of "
        f"{compared['n']} has more gold {gold}. The table's intervals are of differences to "
        f"`{compared['methods'][0]['name']}`; differences between two other rows are not tested."
    )


def table(header: list[str], body: list[list[str]]) -> str:
    """Markdown."""
    lines = [f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in body)])


def tables() -> dict[str, str]:
    """Name to what stands between the marks of that name."""
    compared, pool, timing = (
        json.loads((RESULTS / name).read_text(encoding="utf-8"))
        for name in ("results.json", "with_pool.json", "timing.json")
    )
    gold = {method["name"]: {key: method[key] for key in ("gold", "gain")} for method in pool["methods"]}
    compared |= {key: pool[key] for key in ("left_out", "n", "pool", "pool_prompts", "random")}
    compared["methods"] = [
        method | gold[method["name"]] | timing["methods"][method["name"]] for method in compared["methods"]
    ]
    seconds = json.loads((RESULTS / "members.json").read_text(encoding="utf-8"))
    return {
        "measured on": measured_on(compared),
        "methods": methods_table(compared),
        "ahead": ahead(compared),
        "members": members_table(compared, seconds),
    }


def filled(page: str, made: Mapping[str, str]) -> str:
    """The page with every table put in."""
    for name, text in made.items():
        pattern = rf"(<!-- table {re.escape(name)} -->\n)(?:(?!<!-- ).)*(<!-- end -->)"
        page, count = re.subn(pattern, lambda found, text=text: f"{found[1]}{text}\n{found[2]}", page, flags=re.DOTALL)  # type: ignore[misc]
        if count != 1:
            raise SystemExit(f"{PAGE} has {count} places for the table {name!r}; it must have one.")
    return page


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), tables()), encoding="utf-8")
