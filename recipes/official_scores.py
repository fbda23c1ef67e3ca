"""Do our benchmark scores equal those of the official implementations?

    python recipes/official_scores.py FOLDER [--pip REQUIREMENTS …] [--rm-bench CLONE] [--rewardmath CLONE] …

RewardBench 1 and 2: makes a virtual environment in FOLDER, installs the package `rewardbench` there (it pins a version
of transformers, so it cannot live beside ebrm), and compares the scores of made-up rewards, many of them tied, with
those of the package's own functions. RM-Bench, RewardMATH, JudgeBench, RMB: given clones of their repositories, the
same with the functions found there, and with the rewards of real models as far as these are committed.

`--pip` is one call of pip; give it several times to choose versions, or a torch without CUDA:

    --pip "torch --index-url https://download.pytorch.org/whl/cpu" --pip "rewardbench"

Versions of the package up to 0.1.4 treat zero margins in Ties in another way, so Ties may differ there: install the
repository itself (`--pip CLONE`). Ends with status 1 if anything differs by more than 1e-9.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import json
import shlex
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ebrm.benchmarks import SECTIONS, Benchmark, Floats, Ties, item_success, open_benchmark, padded
from ebrm.metrics import score_values

TOLERANCE = 1e-9
DRAWS = 20

# Runs in the environment of the package `rewardbench`: tables of rewards in, the package's scores out, both as JSON.
OFFICIAL = """
import json, sys
import numpy as np
import rewardbench
from datasets import Dataset
from rewardbench.constants import EXAMPLE_COUNTS, SUBSET_MAPPING
from rewardbench.utils import calculate_scores_per_section, process_single_model, reroll_and_score_dataset

def first(table):
    won = {}
    for subset, (chosen, rejected) in zip(table["subset"], table["rewards"]):
        won.setdefault(subset, []).append(1 if chosen > rejected else 0)
    metrics = {subset: sum(results) / len(results) for subset, results in won.items()}
    sections = calculate_scores_per_section(EXAMPLE_COUNTS, SUBSET_MAPPING, metrics)
    return {**metrics, **sections, "overall": float(np.mean(list(sections.values())))}

def second(table):
    rows = list(zip(table["id"], table["subset"], table["num_correct"], table["rewards"]))
    flat = [{"id": i, "subset": s, "num_correct": n, "text": "", "scores": r} for i, s, n, rs in rows for r in rs]
    # Every item gets a group of its own, for ids repeat between subsets.
    done = reroll_and_score_dataset(Dataset.from_list(flat), [len(rewards) for *_, rewards in rows])
    scores = {}
    for subset in sorted(set(table["subset"])):
        part = done.filter(lambda row: row["subset"] == subset)
        with np.errstate(all="ignore"):
            scores[subset] = process_single_model(part)[1] if subset == "Ties" else float(np.mean(part["results"]))
    return {**scores, "overall": float(np.mean(list(scores.values())))}

out = sys.stdout
sys.stdout = sys.stderr
tables = json.load(open(sys.argv[1]))
scorers = {"rewardbench": first, "rewardbench2": second}
found = {name: [score(table) for table in tables[name]] for name, score in scorers.items()}
print(json.dumps({"version": rewardbench.__version__, "scores": found}), file=out)
"""


class Comparison:
    """A table of what was compared and how far apart it was."""

    def __init__(self) -> None:
        self.worst = 0.0
        print("| compared with | rewards | scores | largest difference |\n| --- | --- | --- | --- |", flush=True)

    def add(self, official: str, rewards: str, pairs: list[tuple[float, float]]) -> None:
        """One row: pairs of (our score, the official one)."""
        largest = float(np.abs(np.subtract(*np.transpose(pairs))).max())
        self.worst = float(np.maximum(self.worst, largest))  # which keep NaN
        print(f"| {official} | {rewards} | {len(pairs):,} | {largest:.1e} |", flush=True)


def our_scores(benchmark: Benchmark, rewards: Floats, ties: Ties | None = None) -> dict[str, float]:
    """Every score of a benchmark for rewards [n, r]."""
    terms = benchmark.terms(benchmark.items, rewards, ties)
    weights = [[score.weights.get(name, 0.0) for name in terms.names] for score in benchmark.scores]
    values = score_values(terms.term, terms.value[:, None], np.array(weights))[:, 0]
    return {score.name: float(value) for score, value in zip(benchmark.scores, values, strict=True)}


def draw(benchmark: Benchmark, generator: np.random.Generator, levels: int | None) -> Floats:
    """Random rewards: normal, or one of a few levels, so that there are many ties."""
    gold = benchmark.gold()
    drawn = generator.normal(size=gold.shape) if levels is None else generator.integers(levels, size=gold.shape) / 4
    return np.where(np.isfinite(gold), drawn, np.nan)


def draws(benchmark: Benchmark) -> list[Floats]:
    """The fixed tables of rewards."""
    generator = np.random.default_rng(20)
    return [draw(benchmark, generator, (None, 2, 3, 9)[number % 4]) for number in range(DRAWS)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as JSON lines (or as one JSON array) and return their folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "\n".join(json.dumps(row) for row in rows)
    path.write_text(lines if path.suffix == ".jsonl" else json.dumps(rows), encoding="utf-8")
    return path.parent


def taken_from(path: Path, *names: str, **known: Any) -> dict[str, Any]:
    """Functions and classes of a script, without what it imports."""
    wanted = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if getattr(node, "name", None) in names]
    if len(wanted) != len(names):
        raise SystemExit(f"{path} does not define {', '.join(names)}; is it the repository's newest version?")
    before = ast.parse("from __future__ import annotations").body  # the names in annotations are not there
    exec(compile(ast.Module([*before, *wanted], []), str(path), "exec"), known)
    return known


def quietly(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call an upstream function without what it prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        return function(*arguments)


# ---- RewardBench 1 and 2 ------------------------------------------------------------------------------------------


def environment(folder: Path, calls: list[str]) -> Path:
    """A Python with the package `rewardbench`; made in `folder` unless it is there already."""
    python = folder / "environment" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    if not python.exists():
        venv.create(folder / "environment", with_pip=True)
        try:
            for call in calls:
                subprocess.run([python, "-m", "pip", "install", "--quiet", *shlex.split(call)], check=True)
        except subprocess.CalledProcessError as error:
            shutil.rmtree(folder / "environment")
            raise SystemExit(f"pip install {' '.join(error.cmd[5:])} failed") from error
    return python


def made_up_rewardbench() -> list[dict[str, Any]]:
    """Between 8 and 30 pairs in every subset."""
    subsets = [subset for counts in SECTIONS.values() for subset in counts]
    return [
        {"id": f"{subset} {n}", "subset": subset, "prompt": f"{subset} {n}", "chosen": "right", "rejected": "wrong"}
        for place, subset in enumerate(subsets)
        for n in range(8 + place)
    ]


def made_up_rewardbench2() -> list[dict[str, Any]]:
    """Best-of-four items, and questions of Ties with 2 to 5 right answers and their references."""
    shapes = [
        (str(n), subset, 1, 3) for subset in ("Factuality", "Precise IF", "Math", "Safety", "Focus") for n in range(40)
    ]
    for n in range(60):
        shapes += [(f"tied:{n}", "Ties", 2 + n % 4, 1 + n % 3), (f"ref:{n}", "Ties", 1, 1 + n % 5)]
    return [
        {
            "id": name,
            "subset": subset,
            "prompt": f"{subset} {name}",
            "chosen": [f"right {n}" for n in range(right)],
            "rejected": [f"wrong {n}" for n in range(wrong)],
            "num_correct": right,
            "total_completions": right + wrong,
        }
        for name, subset, right, wrong in shapes
    ]


def compare_rewardbench(comparison: Comparison, folder: Path, python: Path) -> None:
    """Both benchmarks with the package's own functions."""
    rows = {"rewardbench": made_up_rewardbench(), "rewardbench2": made_up_rewardbench2()}
    tables: dict[str, list[dict[str, Any]]] = {}
    ours: dict[str, list[dict[str, float]]] = {}
    for name, given in rows.items():
        benchmark = open_benchmark(name, write(folder / name / f"{name}.jsonl", given))
        columns = {key: [row.get(key) for row in given] for key in ("id", "subset", "num_correct")}
        every = draws(benchmark)
        tables[name] = [
            columns | {"rewards": [[one for one in row if np.isfinite(one)] for row in rewards.tolist()]}
            for rewards in every
        ]
        ours[name] = [our_scores(benchmark, rewards) for rewards in every]
    (folder / "tables.json").write_text(json.dumps(tables), encoding="utf-8")
    (folder / "official.py").write_text(OFFICIAL, encoding="utf-8")
    run = subprocess.run(
        [python, folder / "official.py", folder / "tables.json"], capture_output=True, text=True, check=False
    )
    if run.returncode:
        raise SystemExit(f"the package's functions failed:\n{run.stderr}")
    found = json.loads(run.stdout)
    for name, theirs in found["scores"].items():
        apart = [score for score in ("Ties", "overall") if score in theirs[0]]
        for said in ("subsets and sections", *apart):
            pairs = [
                (mine[key], score[key])
                for mine, score in zip(ours[name], theirs, strict=True)
                for key in ([said] if said in apart else score.keys() - apart)
            ]
            comparison.add(f"rewardbench {found['version']}: {name}, {said}", f"{DRAWS} made up", pairs)


# ---- RM-Bench -----------------------------------------------------------------------------------------------------


def compare_rm_bench(comparison: Comparison, folder: Path, clone: Path) -> None:
    """`compute_accuracy` of scripts/utils.py, on made-up items of all domains and on the items of the clone."""
    script = clone / "scripts" / "utils.py"
    compute = taken_from(script, "compute_accuracy", "split_dataset_by_domain", np=np)
    compute_accuracy = compute["compute_accuracy"]
    domains = ("chat", "code", "math", "safety-refuse", "safety-response")
    rows = [
        {"id": n, "domain": domain, "prompt": f"{domain} {n}", "chosen": list("abc"), "rejected": list("def")}
        for place, domain in enumerate(domains)
        for n in range(20 + 7 * place)
    ]
    made_up = open_benchmark("rm-bench", write(folder / "rm-bench" / "total_dataset.json", rows))
    names = {f"{level}_acc": level for level in ("easy", "normal", "hard")}
    names |= {"chat": "chat", "code": "code", "math": "math", "safety": "safety", "total_avg_acc": "overall"}
    pairs = []
    for rewards in draws(made_up):
        ours, theirs = our_scores(made_up, rewards), quietly(compute_accuracy, with_scores(made_up, rewards))
        pairs += [(ours[names[key]], float(value)) for key, value in theirs.items()]
    comparison.add("RM-Bench compute_accuracy, total_dataset.json", f"{DRAWS} made up", pairs)

    benchmark = open_benchmark("rm-bench", clone)
    pairs = []
    for rewards in draws(benchmark):
        ours, results = our_scores(benchmark, rewards), with_scores(benchmark, rewards)
        for domain in [domain for domain in ("chat", "code", "math", "safety") if domain in ours]:
            part = [
                {key: value for key, value in result.items() if key != "domain"}
                for result in results
                if result["domain"].startswith(domain)
            ]
            theirs = compute_accuracy(part)
            pairs += [(ours[f"{domain}/{names[key]}"], float(value)) for key, value in theirs.items()]
            pairs.append((ours[domain], float(np.mean(list(theirs.values())))))
    comparison.add(f"RM-Bench compute_accuracy, {benchmark.origin.split(' in ')[0]}", f"{DRAWS} made up", pairs)


def with_scores(benchmark: Benchmark, rewards: Floats) -> list[dict[str, Any]]:
    """RM-Bench items as upstream keeps them once they are scored."""
    return [
        {"domain": item.group, "score_chosen": row[:3], "score_rejected": row[3:]}
        for item, row in zip(benchmark.items, rewards.tolist(), strict=True)
    ]


# ---- RewardMATH ---------------------------------------------------------------------------------------------------

STEP_SCORES = ["min", "max", "prod", "geometric_mean", "mean", "mean_logit", "mean_odd", "last"]


def compare_rewardmath(comparison: Comparison, folder: Path, clone: Path) -> None:
    """`RewardMATHEvaluation` on every result committed under results/RewardMATH."""
    script = clone / "src" / "evaluation" / "eval.py"
    evaluation = taken_from(script, "RewardMATHEvaluation", np=np, BaseEvaluation=object)["RewardMATHEvaluation"]
    evaluation.__init__ = lambda self, data, functions: vars(self).update(
        dataset=data, func_list=functions, except_model=None
    )
    shown: list[str] = []
    pairs = []
    files = sorted((clone / "results" / "RewardMATH").glob("*.json"))
    for file in files:
        results = json.loads(file.read_text(encoding="utf-8"))
        if "chosen_position" in results[0]:
            functions = ["pairwise"]
        else:  # one number a solution, or one a step
            functions = STEP_SCORES if isinstance(results[0]["score"][0], list) else ["normal"]
        upstream = evaluation(results, functions)
        theirs = quietly(upstream.get_results)
        sides = [upstream.processing_results(result) for result in results]
        for function in functions:
            rewards = [side["chosen_score"][function] + side["rejected_score"][function] for side in sides]
            if not all(np.isfinite(row).all() for row in rewards):
                print(f"{file.stem}, {function}: not every score is a finite number; left out", file=sys.stderr)
                continue
            rows = [
                {"id": str(n), "prompt": f"{n}", "chosen": "right", "rejected": ["wrong"] * (len(row) - 1)}
                for n, row in enumerate(rewards)
            ]
            benchmark = open_benchmark("rewardmath", write(folder / "rewardmath" / "rewardmath.jsonl", rows))
            ours = our_scores(benchmark, padded(rewards))
            for key, score in (
                ("reward Acc", "overall"),
                ("reward Acc (w/ tie)", "ties as right"),
                ("reward MRR", "MRR"),
            ):
                pairs.append((ours[score], float(np.mean(theirs[function][key]))))
            if function in ("normal", "pairwise", "prod"):
                said = " ".join(f"{100 * ours[score]:6.2f}" for score in ("overall", "ties as right", "MRR"))
                shown.append(f"{file.stem.removesuffix('_reward'):28} {function:9} {said}")
    comparison.add(f"RewardMATHEvaluation, {len(files)} committed results", "real", pairs)
    print("\nRewardMATH, in percent: accuracy, with ties as right, MRR", *shown, sep="\n", file=sys.stderr)


# ---- JudgeBench and RMB -------------------------------------------------------------------------------------------


def compare_judgebench(comparison: Comparison, clone: Path) -> None:
    """`compute_final_metrics` of utils/metrics.py on the reward models' outputs that are committed.

    Upstream's reward models decide B>A where both responses have the same reward; pairs with a tie are counted here.
    """
    compute = taken_from(clone / "utils" / "metrics.py", "flip_judgment", "compute_final_metrics")[
        "compute_final_metrics"
    ]
    benchmark = open_benchmark("judgebench", clone)
    categories = {"mmlu-pro": "knowledge", "livebench-reasoning": "reasoning", "livebench-math": "math"}
    categories |= {"livecodebench": "coding", "": "overall"}
    for file in sorted((clone / "outputs").glob("*judge_name=reward_model*.jsonl")):
        results = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        by_id = {f"{result['response_model']}/{result['pair_id']}": result for result in results}
        part = benchmark.take([place for place, item in enumerate(benchmark.items) if item.id in by_id])
        rewards = []
        for item in part.items:
            first, second = by_id[item.id]["judgments"][0]["judgment"]["scores"]
            rewards.append([first, second] if by_id[item.id]["label"] == "A>B" else [second, first])
        ours = our_scores(part, padded(rewards))
        ties = sum(right == wrong for right, wrong in rewards)
        pairs = [
            (ours[name], compute(results, False, lambda pair, start=start: pair["source"].startswith(start)) / 100)
            for start, name in categories.items()
        ]
        model = file.stem.rpartition("judge_model=")[2]
        comparison.add(f"JudgeBench compute_final_metrics, {model}, {len(part)} pairs, {ties} ties", "real", pairs)
        said = ", ".join(f"{name} {100 * ours[name]:.2f}" for name in categories.values())
        print(f"JudgeBench {model}: {said}", file=sys.stderr)


def compare_rmb(comparison: Comparison, clone: Path) -> None:
    """Whether each pair of eval/result is right, as upstream found it."""
    for file in sorted((clone / "eval" / "result").glob("*.json")):
        results: list[Mapping[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
        rewards = np.array([[result["chosen_reward"], result["reject_reward"]] for result in results], dtype=np.float64)
        ours = item_success(rewards, np.tile([1.0, 0.0], (len(rewards), 1)))
        theirs = [float(result["is_correct"]) for result in results]
        comparison.add(f"RMB is_correct, {file.stem}", "real", list(zip(ours.tolist(), theirs, strict=True)))


def main() -> None:
    """Compare whatever was named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the environment and the made-up files go")
    parser.add_argument(
        "--pip", action="append", metavar="ARGUMENTS", help="of one `pip install`; default: rewardbench"
    )
    parser.add_argument("--python", type=Path, help="one that has rewardbench already, instead of a new environment")
    for name in ("rm-bench", "rewardmath", "judgebench", "rmb"):
        parser.add_argument(f"--{name}", type=Path, metavar="CLONE", help=f"the repository of {name}")
    given = parser.parse_args()
    python = given.python or environment(given.folder, given.pip or ["rewardbench"])
    comparison = Comparison()
    compare_rewardbench(comparison, given.folder, python)
    if given.rm_bench:
        compare_rm_bench(comparison, given.folder, given.rm_bench)
    if given.rewardmath:
        compare_rewardmath(comparison, given.folder, given.rewardmath)
    if given.judgebench:
        compare_judgebench(comparison, given.judgebench)
    if given.rmb:
        compare_rmb(comparison, given.rmb)
    sys.exit(0 if comparison.worst <= TOLERANCE else 1)


if __name__ == "__main__":
    main()
