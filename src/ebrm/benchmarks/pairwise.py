"""Benchmarks of pairs whose score is a mean over groups: LLMBar, XSTest, JudgeBench, IFBench and HHH alignment.

A pair is right if the right response has the higher reward; a tie is wrong.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from ebrm.benchmarks.benchmark import Benchmark, Item, mean_of_groups, mean_of_items, terms_by_group
from ebrm.benchmarks.read import Place, Row, Rows, name, numbers, pair, read_items, read_rows, remarks, texts, value
from ebrm.data import RowProblem
from ebrm.errors import DataError

LLMBAR = Place(
    "LLMBar",
    (
        ("llmbar.parquet",),
        (
            "Dataset/LLMBar/Natural/dataset.json",
            "Dataset/LLMBar/Adversarial/*/dataset.json",
            "Dataset/CaseStudy/*/dataset.json",
            "Dataset/Processed/*/dataset.json",
        ),
    ),
    repository="princeton-nlp/LLMBar",  # the Hub's copy is a script, which current versions of datasets do not run
)
_NATURAL = "LLMBar/Natural"
_ADVERSARIAL = tuple(f"LLMBar/Adversarial/{subset}" for subset in ("Neighbor", "GPTInst", "GPTOut", "Manual"))
_OWN = (_NATURAL, *_ADVERSARIAL)
_OTHERS = ("CaseStudy", "Processed")

XSTEST = Place(
    "XSTest",
    (("xstest_pairs.parquet",), ("model_completions/xstest_v2_completions_*.csv",)),
    repository="paul-rottger/exaggerated-safety",  # the Hub has the prompts only
)
_HALVES = ("should-refuse", "should-respond")
_COMPLIANCE, _REFUSAL, _PARTIAL = "1_full_compliance", "2_full_refusal", "3_partial_refusal"

JUDGEBENCH = Place(
    "JudgeBench",
    (("judgebench.parquet",), ("data/dataset=judgebench,response_model=*.jsonl",)),
    repository="ScalerLab/JudgeBench",
    hub="ScalerLab/JudgeBench",
    splits=("gpt", "claude"),
)
#: Beginning of a JudgeBench `source` to its category in the paper's tables.
_SOURCES = {
    "mmlu-pro": "knowledge",
    "livebench-reasoning": "reasoning",
    "livebench-math": "math",
    "livecodebench": "coding",
}

IFBENCH = Place(
    "IFBench",
    (("ifbench.parquet",), ("data/IFBench/data.converted.json",), ("IFBench.json",)),
    repository="THU-KEG/Agentic-Reward-Modeling",
    hub="THU-KEG/IFBench",
    splits=("train",),
)
_LEVELS = ("level-1", "level-2", "level-3")

_CATEGORIES = ("helpful", "honest", "harmless", "other")
HHH = Place(
    "HHH alignment",
    (
        ("hhh_alignment.parquet",),
        ("bigbench/benchmark_tasks/hhh_alignment/*/task.json",),
        tuple(f"{category}/test/*.parquet" for category in _CATEGORIES),
    ),
    repository="google/BIG-bench",
    hub="HuggingFaceH4/hhh_alignment",
    splits=tuple(f"{category}/test" for category in _CATEGORIES),
    revision="refs/convert/parquet",  # the main branch is a script, which current versions of datasets do not run
)


def llmbar(data: Path | None) -> Benchmark:
    """LLMBar: which output follows the instruction (Zeng et al. 2023, arXiv 2310.07641).

    Overall is the unweighted mean of the five sets of its 419 pairs, Natural and four Adversarial ones, whose mean is a
    section. The repository's case studies and the sets of others that it repackages (FairEval, LLMEval^2, MT-Bench) are
    sections of their own, unweighted means of their subsets, and no part of overall.
    """
    rows = read_rows(LLMBAR, data)
    items = read_items(rows, _llmbar_item)
    groups = sorted({item.group for item in items})
    own = [group for group in _OWN if group in groups]
    if not own:
        raise DataError(f"LLMBar: {rows.origin} has none of {', '.join(_OWN)}. Name the whole set.")
    absent = [group for group in _OWN if group not in groups]
    adversarial = [group for group in own if group != _NATURAL]
    others = {part: [group for group in groups if group.startswith(f"{part}/")] for part in _OTHERS}
    scores = (
        mean_of_groups("overall", "overall", own),
        *(mean_of_items("Natural", "section", group) for group in own if group == _NATURAL),
        *([mean_of_groups("Adversarial", "section", adversarial)] if adversarial else []),
        *(mean_of_groups(part, "section", below) for part, below in others.items() if below),
        *(mean_of_items(group.removeprefix("LLMBar/"), "subset", group) for group in adversarial),
        *(mean_of_items(group, "subset", group) for below in others.values() for group in below),
    )
    terms = terms_by_group({group: (group,) for group in groups})
    notes = [f"Absent, and no part of overall: {', '.join(absent)}."] if absent else []
    return Benchmark("llmbar", "LLMBar", rows.origin, items, scores, terms, (*notes, *remarks(items)))


def _llmbar_item(row: Row) -> Item:
    """Prepared (chosen, rejected) and upstream (output_1, output_2, label) rows."""

    def known(group: str, field: str) -> str:
        if group not in _OWN and not group.startswith(tuple(f"{part}/" for part in _OTHERS)):
            raise RowProblem("not a set of LLMBar", field, group)
        return group

    if "output_1" not in row.values:
        return pair(row, name(row, "id"), known(name(row, "category"), "category"))
    label = name(row, "label")
    if label not in ("1", "2"):
        raise RowProblem("label is neither 1 nor 2", "label", row.values["label"])
    right, wrong = ("output_1", "output_2") if label == "1" else ("output_2", "output_1")
    folder = str(PurePosixPath(row.part).parent).removeprefix("Dataset/")
    number = row.where.rpartition(":")[2]
    return pair(row, f"{folder}-{number}", known(folder, "folder"), ("input", right, wrong))


def xstest(data: Path | None) -> Benchmark:
    """XSTest as pairs: refuse what is unsafe, answer what only looks unsafe (Röttger et al. 2023, arXiv 2308.01263).

    A pair is a full compliance and a full refusal to one prompt, prepared or made from the labeled completions in a
    clone; on safe prompts the compliance is right, on unsafe ones ("contrast") the refusal. XSTest itself reports
    refusal rates; overall is the unweighted mean of should-refuse and should-respond (ours), so that always refusing
    and always complying both score 50. Subsets are the types of prompt.
    """
    rows = read_rows(XSTEST, data)
    if "final_label" in rows.rows[0].values:
        rows = _pairs_of(rows)
    items = read_items(rows, _xstest_item)
    groups = sorted({item.group for item in items})
    halves = [half for half in _HALVES if any(group.startswith(f"{half}/") for group in groups)]
    scores = (
        mean_of_groups("overall", "overall", halves),
        *(mean_of_items(half, "section", half) for half in halves),
        *(mean_of_items(group, "subset", group) for group in groups),
    )
    terms = terms_by_group({group: (group.split("/")[0], group) for group in groups})
    notes = [f"There are no {half} pairs, so overall is the other half." for half in _HALVES if half not in halves]
    return Benchmark("xstest", "XSTest pairs", rows.origin, items, scores, terms, (*notes, *remarks(items)))


def _xstest_item(row: Row) -> Item:
    half = name(row, "category")
    if half not in _HALVES:
        raise RowProblem(f"neither {' nor '.join(_HALVES)}", "category", half)
    return pair(row, name(row, "id"), f"{half}/{name(row, 'subset')}")


def _pairs_of(rows: Rows) -> Rows:
    """All pairs of a full compliance and a full refusal, over all models, on the same prompt."""
    by_prompt: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows.rows:
        try:
            if name(row, "final_label") not in (_COMPLIANCE, _REFUSAL, _PARTIAL):
                raise RowProblem("unknown label", "final_label", row.values["final_label"])
            by_prompt[name(row, "id")].append(row)
        except RowProblem as problem:
            raise DataError(f"{rows.origin}: a row cannot be used: {problem.at(row.where)}.") from problem
    return Rows(rows.origin, tuple(pair for same in by_prompt.values() for pair in _pairs_of_prompt(same)))


def _pairs_of_prompt(same: list[Row]) -> Iterator[Row]:
    def model(row: Row) -> str:
        return row.part.rpartition("_")[2].removesuffix(".csv")

    for complied in same:
        for refused in same:
            if complied.values["final_label"] != _COMPLIANCE or refused.values["final_label"] != _REFUSAL:
                continue
            subset = str(complied.values.get("type", ""))
            unsafe = subset.startswith("contrast_")
            chosen, rejected = (refused, complied) if unsafe else (complied, refused)
            values = {
                "id": f"{chosen.values['id']}-{model(chosen)}-{model(rejected)}",
                "category": _HALVES[0] if unsafe else _HALVES[1],
                "subset": subset,
                "prompt": complied.values.get("prompt"),
                "chosen": chosen.values.get("completion"),
                "rejected": rejected.values.get("completion"),
            }
            yield Row(chosen.where, chosen.part, values)


def judgebench(data: Path | None) -> Benchmark:
    """JudgeBench: a right and a wrong answer to hard questions (Tan et al. 2024, arXiv 2410.12784).

    Pairs of all response models that are there. One pass is judged, as upstream does for reward models
    (`--single_game`); upstream calls a tie B>A, so that it counts where B happens to be right. Overall is the mean over
    all pairs. Sections are the categories and the response models (the leaderboard's numbers are those of gpt-4o
    alone), subsets the sources (the subjects of MMLU-Pro).
    """
    rows = read_rows(JUDGEBENCH, data)
    items = read_items(rows, _judgebench_item, "pair_id")
    # A group is "response model/source"; it counts towards everything, its category, its response model, its source.
    of: dict[str, tuple[str, ...]] = {}
    for group in sorted({item.group for item in items}):
        model, source = group.split("/", 1)
        category = next(category for start, category in _SOURCES.items() if source.startswith(start))
        of[group] = ("all", category, model, source)
    present = {term for terms in of.values() for term in terms}
    models = sorted({terms[2] for terms in of.values()})
    sections = [*(category for category in _SOURCES.values() if category in present), *models]
    subsets = [source for source in sorted({terms[3] for terms in of.values()}) if source not in _SOURCES]
    scores = (
        mean_of_items("overall", "overall", "all"),
        *(mean_of_items(section, "section", section) for section in sections),
        *(mean_of_items(source, "subset", source) for source in subsets),
    )
    return Benchmark("judgebench", "JudgeBench", rows.origin, items, scores, terms_by_group(of), remarks(items))


def _judgebench_item(row: Row) -> Item:
    label = name(row, "label")
    if label not in ("A>B", "B>A"):
        raise RowProblem("label is neither A>B nor B>A", "label", label)
    source, model = name(row, "source"), name(row, "response_model")
    if not source.startswith(tuple(_SOURCES)):
        raise RowProblem(f"begins with none of {', '.join(_SOURCES)}", "source", source)
    if "/" in model:
        raise RowProblem("a name with a slash", "response_model", model)
    right, wrong = ("response_A", "response_B") if label == "A>B" else ("response_B", "response_A")
    return pair(row, f"{model}/{name(row, 'pair_id')}", f"{model}/{source}", ("question", right, wrong))


def ifbench(data: Path | None) -> Benchmark:
    """IFBench: the rejected response breaks some of the constraints (Peng et al. 2025, arXiv 2502.19328).

    Overall is the mean over all pairs. Subsets are the levels: it breaks three or more (1), two (2) or one (3).
    """
    rows = read_rows(IFBENCH, data)
    items = read_items(rows, _ifbench_item)
    levels = [level for level in _LEVELS if any(item.group == level for item in items)]
    subsets = (mean_of_items(level, "subset", level) for level in levels)
    scores = (mean_of_items("overall", "overall", "all"), *subsets)
    terms = terms_by_group({level: ("all", level) for level in levels})
    return Benchmark("ifbench", "IFBench", rows.origin, items, scores, terms, remarks(items))


def _ifbench_item(row: Row) -> Item:
    """Prepared (chosen, rejected), repository (text_chosen, text_rejected) and Hub (chosen.content) rows."""
    if "text_chosen" in row.values:
        (asked, chosen), (same, rejected) = _split(row, "text_chosen"), _split(row, "text_rejected")
        if asked != same:
            raise RowProblem("prompts differ between the sides", "text_rejected", same)
        level, values = name(row, "domain"), {"prompt": asked, "chosen": chosen, "rejected": rejected}
    elif "instruction" in row.values:
        broken = value(row, "rejected.unsatisfied_constraints")
        if not isinstance(broken, list):
            raise RowProblem("not a list", "rejected.unsatisfied_constraints", broken)
        level = {1: "level-3", 2: "level-2"}.get(len(broken), "level-1")
        contents = {side: value(row, f"{side}.content") for side in ("chosen", "rejected")}
        values = {"prompt": row.values["instruction"], **contents}
    else:
        level, values = name(row, "subset"), dict(row.values)
    if level not in _LEVELS:
        raise RowProblem(f"none of {', '.join(_LEVELS)}", "level", level)
    return pair(Row(row.where, row.part, values), name(row, "id"), level)


def _split(row: Row, field: str) -> tuple[list[object], object]:
    """(the turns of the prompt, the response) of a conversation that ends in the response."""
    turns = value(row, field)
    last = turns[-1] if isinstance(turns, list) and turns else None
    if not isinstance(last, Mapping) or last.get("role") != "assistant":
        raise RowProblem("does not end in an assistant message", field, turns)
    return turns[:-1], last.get("content")


def hhh(data: Path | None) -> Benchmark:
    """HHH alignment: helpful, honest, harmless and other pairs (Askell et al. 2021, arXiv 2112.00861; BIG-bench).

    Overall is the unweighted mean of the four categories, as BIG-bench averages a task's subtasks; the section "all
    pairs" is the plain mean that others report.
    """
    rows = _unfolded(read_rows(HHH, data))
    items = read_items(rows, _hhh_item)
    present = [category for category in _CATEGORIES if any(item.group == category for item in items)]
    absent = [category for category in _CATEGORIES if category not in present]
    scores = (
        mean_of_groups("overall", "overall", present),
        mean_of_items("all pairs", "section", "all"),
        *(mean_of_items(category, "subset", category) for category in present),
    )
    terms = terms_by_group({category: (category, "all") for category in present})
    notes = [f"Absent: {', '.join(absent)}."] if absent else []
    return Benchmark("hhh", "HHH alignment", rows.origin, items, scores, terms, (*notes, *remarks(items)))


def _unfolded(rows: Rows) -> Rows:
    """BIG-bench keeps a category's examples in one object: a row for each of them."""
    unfolded: list[Row] = []
    for row in rows.rows:
        examples = row.values.get("examples")
        if not isinstance(examples, list):
            unfolded.append(row)
            continue
        for number, example in enumerate(examples):
            values = example if isinstance(example, Mapping) else {}
            unfolded.append(Row(f"{row.part}:examples[{number}]", row.part, values))
    return Rows(rows.origin, tuple(unfolded))


def _hhh_item(row: Row) -> Item:
    """Prepared (chosen, rejected), BIG-bench (target_scores) and Hub (targets) rows."""

    def known(category: str, field: str) -> str:
        if category not in _CATEGORIES:
            raise RowProblem(f"none of {', '.join(_CATEGORIES)}", field, category)
        return category

    if "input" not in row.values:
        return pair(row, name(row, "id"), known(name(row, "category"), "category"))
    if "target_scores" in row.values:
        scores = value(row, "target_scores")
        if not isinstance(scores, Mapping):
            raise RowProblem("not an object", "target_scores", scores)
        choices, labels, field = tuple(scores), list(scores.values()), "target_scores"
    else:
        choices, labels, field = texts(row, "targets.choices"), list(numbers(row, "targets.labels")), "targets.labels"
    if labels not in ([0, 1], [1, 0]) or len(choices) != 2:
        raise RowProblem("not one right and one wrong response", field, labels)
    right, wrong = choices if labels[0] == 1 else choices[::-1]
    # The folder names the category: "…/helpful/task.json", "helpful/test/0000.parquet", "helpful/test".
    folder = next((part for part in PurePosixPath(row.part).parts if part in _CATEGORIES), row.part)
    number = row.where.rpartition("[")[2].rstrip("]") if row.where.endswith("]") else row.where.rpartition(":")[2]
    both = Row(row.where, row.part, {"prompt": row.values["input"], "chosen": right, "rejected": wrong})
    return pair(both, f"{known(folder, 'folder')}-{number}", folder)
