"""Put the tables into docs/methods.md, between its `<!-- table NAME -->` and `<!-- end -->` lines.

    ebrm compare src/ebrm/demo/features --methods all --pool tulu_bon_pool --limit 250 --out recipes/methods/results
    python -m benchmarks.members --out recipes/methods/results/members.json
    python recipes/methods/page.py

What a member is and its paper come from its docstring, what it costs and what it changed from the results.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ebrm.report import decimal

ROOT = Path(__file__).parent.parent.parent
SOURCE = ROOT / "src" / "ebrm"
RESULTS = Path(__file__).parent / "results"
PAGE = ROOT / "docs" / "methods.md"
ROOMS = ("aggregate", "shape", "curate", "optimize", "energy/heads")

#: Public names that are no methods: results, tables and settings, and steps that the methods of a module share.
PARTS: Mapping[str, frozenset[str]] = {
    "results and containers": frozenset(
        {
            "BilevelWeights", "Majority", "ConflictCount", "ConflictReport", "Corrupted", "Done", "Pairs", "Report",
            "Peers", "Strength", "Selection", "Tilted", "Labels", "HeadData",
            "HeadConfig",
        }
    ),
    "shared steps": frozenset(
        {
            "filled", "head_difference", "pool_tables", "pools_by_size", "tie_groups",
            "held_out_loss", "TwoLayers", "shuffled", "head_data", "labels_by_source", "fit_head",
            "load_head", "RewardHead", "lowest", "best_penalty", "early_stopping", "hinge",
        }
    ),
}  # fmt: skip
#: When to use what a module has.
WHEN: Mapping[str, str] = {
    "aggregate/bilevel": "one reward is trusted but scarce or coarse, others are plentiful",
    "aggregate/ensembles": "several reward models or heads are at hand whose errors differ",
    "aggregate/gates": "a response has to be right in several respects at once, or a check decides",
    "aggregate/granularity": "the whole is scored and so are its parts",
    "aggregate/lagrangian": "a requirement has to hold on average (harmlessness, length) while a reward rises",
    "aggregate/min_norm": "several objectives are learned together and none is to lose",
    "aggregate/neighbors": "texts that say the same get different rewards",
    "aggregate/nominal": "heads say how sure they are",
    "aggregate/steps": "a process reward model scores every step",
    "aggregate/votes": "several judges, or many answers to one question",
    "aggregate/weights": "attributes are rated one by one",
    "shape/checks": "unit tests or rubric items decide, and few pass all",
    "shape/hardness": "demonstrations are at hand and prompts differ in how hard they are",
    "shape/length": "the policy grows longer without getting better",
    "shape/preference": "the reward can grow without end, and references are at hand",
    "shape/process": "the policy learns to repeat steps that look good",
    "shape/running": "the reward's scale drifts or differs from what the trainer expects",
    "curate/agreement": "several models or judges can look at the pairs",
    "curate/conflict": "the base reward model is good and the labels are not",
    "curate/corruption": "few pairs, and ways to make a response worse are known",
    "curate/cross_fitting": "some labels are wrong and nobody knows which",
    "curate/cross_prompt": "rewards are compared between prompts (filtering, base-and-bonus)",
    "curate/density_ratio": "thumbs down come from other prompts than thumbs up",
    "curate/dynamic_labels": "a model is fitted in many passes on labels that may be wrong",
    "curate/goals": "responses have scores, and the reward is to be steered",
    "curate/hull": "few pairs, and perturbed copies of the chosen responses can be made",
    "curate/peer_review": "many labels are wrong",
    "curate/rank_consistency": "two rewards rank several responses to each prompt",
    "curate/retrieval": "labels can still be bought",
    "curate/selection": "responses are scored, and pairs are wanted",
    "curate/strength": "several models were fitted on the pairs",
    "optimize/advantages": "a policy is trained by group-relative policy gradient",
    "optimize/best_of_n": "the best of several responses is taken",
    "optimize/listwise": "several scored responses to each prompt are at hand",
    "optimize/selection": "a policy is fine-tuned on its own best responses",
    "optimize/tilting": "what a KL-regularized policy would gain is asked, without training it",
    "energy/heads/anchored": "the base reward is good and is to change little",
    "energy/heads/attributes": "responses are rated rather than compared",
    "energy/heads/bayesian": "the reward has to know where pairs have said little",
    "energy/heads/binary": "there are thumbs but no pairs",
    "energy/heads/bradley_terry": "pairs and nothing else; the first thing to compare with",
    "energy/heads/centroids": "responses that are unlike all known ones have to be found",
    "energy/heads/directions": "the reward likes one direction too much, such as length",
    "energy/heads/gaussian": "pairs differ in how noisy they are",
    "energy/heads/min_norm": "pairs come from several data sets that disagree",
    "energy/heads/probe": "what an embedding knows is asked",
    "energy/heads/prototypes": "pairs come from people with different tastes",
}
#: Member to the methods of `ebrm compare` that show what it does.
MEASURED: Mapping[str, str] = {
    "ensemble_mean": "silu-mean", "ensemble_median": "silu-median", "worst_case": "silu-worst-case",
    "uncertainty_weighted": "silu-uwo", "mean_minus_std": "silu-mean-std", "log_sigmoid_sum": "base-and-silu",
    "neighbor_fusion": "base-neighbors", "nominal_worst_case": "gaussian-worst-case",
    "most_confident_head": "gaussian", "preference_as_reward": "base-par", "log_sigmoid_centered": "base-log-sigmoid",
    "running_standardized": "base-standardized", "running_clipped": "base-clipped", "running_min_max": "base-min-max",
    "length_penalty": "base-length", "relative_length_penalty": "base-shorter", "LinearHead": "linear",
    "SiluHead": "silu", "GaussianHeads": "gaussian", "BayesianHead": "bayesian", "BinaryFeedbackHead": "binary",
    "AnchoredHead": "anchored", "MinNormHead": "min_norm", "PrototypeHead": "prototypes",
    "DirectionalHead": "directional",
}  # fmt: skip


@dataclass(frozen=True)
class Member:
    """A public function or class: where it is, its docstring's first line, and the papers it names."""

    module: str
    name: str
    what: str
    papers: tuple[str, ...]


def members() -> Iterator[Member]:
    """Every public member of the rooms, the parts that are no methods aside."""
    parts = frozenset().union(*PARTS.values())
    for room in ROOMS:
        for path in sorted((SOURCE / room).glob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            of_module = ast.get_docstring(tree) or ""
            for node in tree.body:
                if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
                    continue
                if node.name not in parts:
                    text = ast.get_docstring(node) or ""
                    found = papers(text) or papers(of_module)
                    yield Member(f"{room}/{path.stem}", node.name, text.split("\n")[0].rstrip("."), found)


def papers(text: str) -> tuple[str, ...]:
    """The arXiv ids a text names, each once, in its order."""
    return tuple(dict.fromkeys(re.findall(r"arXiv\s+(\d{4}\.\d{4,5})", text)))


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
        what = member.what.replace("|", "\\|")
        place = member.module.replace("/", ".")
        rows.append(
            [
                f"`{place}.{member.name}`",
                what,
                WHEN[member.module],
                links or "–",
                ", ".join(cost) or "–",
                effect(method),
            ]
        )
    return table(["member", "what it does", "use it when", "paper", "cost", "measured"], rows)


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
        f"choose by, and measured on {compared['pairs']:,} pairs of {compared['prompts']:,} other prompts; gold on "
        f"{compared['pool_prompts']} prompts of `{compared['pool']}` ({left_out} sampled ones left out, as they have a "
        f"response that is too long for the reward model, or fewer responses), where any response is worth "
        f"{compared['random']:.3f}. {100 * compared['level']:g}% intervals over prompts, differences paired."
    )


def table(header: list[str], body: list[list[str]]) -> str:
    """Markdown."""
    lines = [f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in body)])


def tables() -> dict[str, str]:
    """Name to what stands between the marks of that name."""
    compared = json.loads((RESULTS / "results.json").read_text(encoding="utf-8"))
    seconds = json.loads((RESULTS / "members.json").read_text(encoding="utf-8"))
    return {
        "measured on": measured_on(compared),
        "methods": methods_table(compared),
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
