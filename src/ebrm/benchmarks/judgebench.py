"""JudgeBench: pairs of a right and a wrong answer to hard questions (Tan et al. 2024, arXiv 2410.12784)."""

from __future__ import annotations

from pathlib import Path

from ebrm.benchmarks.benchmark import Benchmark, Item
from ebrm.benchmarks.fields import name, pair
from ebrm.benchmarks.read import Place, Row, read_items, read_rows, remarks
from ebrm.benchmarks.rules import mean_of_items, terms_by_group
from ebrm.data import RowProblem

PLACE = Place(
    "JudgeBench",
    (("judgebench.parquet",), ("data/dataset=judgebench,response_model=*.jsonl",)),
    repository="ScalerLab/JudgeBench",
    hub="ScalerLab/JudgeBench",
    splits=("gpt", "claude"),
)

#: What a `source` begins with, to its category in the paper's tables.
CATEGORIES = {
    "mmlu-pro": "knowledge",
    "livebench-reasoning": "reasoning",
    "livebench-math": "math",
    "livecodebench": "coding",
}


def load(data: Path | None) -> Benchmark:
    """Read JudgeBench's pairs, of all response models that are there.

    A pair is right if the response that the label prefers has the higher reward. A reward does not depend on the
    order of the responses, so one pass is judged, as upstream does for reward models (`--single_game`). A tie is
    wrong; upstream's reward models call it B>A, so that it counts where B happens to be right. Overall is the mean
    over all pairs. Sections are the categories and the response models: the leaderboard's numbers are those of
    gpt-4o alone. Subsets are the sources (the subjects of MMLU-Pro).

    Args:
        data: folder of a prepared file or of a clone; None loads both splits from the Hub.

    Raises:
        DataError: nothing found, or rows that cannot be used.
    """
    rows = read_rows(PLACE, data)
    items = read_items(rows, _item, "pair_id")
    # A group is "response model/source"; it counts towards everything, its category, its response model, its source.
    groups = sorted({item.group for item in items})
    of = {group: ("all", _category(group), *group.split("/", 1)) for group in groups}
    present = {term for terms in of.values() for term in terms}
    models = sorted({group.split("/", 1)[0] for group in groups})
    sections = [*(category for category in CATEGORIES.values() if category in present), *models]
    subsets = [source for source in sorted({group.split("/", 1)[1] for group in groups}) if source not in CATEGORIES]
    return Benchmark(
        name="judgebench",
        title="JudgeBench",
        origin=rows.origin,
        items=items,
        scores=(
            mean_of_items("overall", "overall", "all"),
            *(mean_of_items(section, "section", section) for section in sections),
            *(mean_of_items(source, "subset", source) for source in subsets),
        ),
        terms=terms_by_group(of),
        notes=remarks(items),
    )


def _item(row: Row) -> Item:
    label = name(row, "label")
    if label not in ("A>B", "B>A"):
        raise RowProblem("label is neither A>B nor B>A", "label", label)
    source, model = name(row, "source"), name(row, "response_model")
    if not source.startswith(tuple(CATEGORIES)):
        raise RowProblem(f"begins with none of {', '.join(CATEGORIES)}", "source", source)
    if "/" in model:
        raise RowProblem("a name with a slash", "response_model", model)
    right, wrong = ("response_A", "response_B") if label == "A>B" else ("response_B", "response_A")
    return pair(row, f"{model}/{name(row, 'pair_id')}", f"{model}/{source}", ("question", right, wrong))


def _category(group: str) -> str:
    source = group.split("/", 1)[1]
    return next(category for start, category in CATEGORIES.items() if source.startswith(start))
