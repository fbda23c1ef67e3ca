"""RMB: pairs and best-of-n lists over 49 scenarios (Zhou et al. 2024, arXiv 2410.09893)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ebrm.benchmarks.benchmark import Benchmark, Item, Score, mean_of_groups, terms_by_group
from ebrm.benchmarks.read import Place, Row, name, prompt, read_items, read_rows, remarks, text, texts
from ebrm.data import RowProblem

PLACE = Place(
    "RMB",
    (
        ("rmb_pairwise.parquet", "rmb_bon.parquet"),
        ("RMB_dataset/Pairwise_set/**/*.json", "RMB_dataset/BoN_set/**/*.json"),
    ),
    repository="Zhou-Zoey/RMB-Reward-Model-Benchmark",
)

_SETS = {"pairwise": "pairwise", "bon": "best-of-n"}  # first part of a group: how it is said
_LISTS = 3786  # best-of-n lists in the repository
_GOALS = ("Helpfulness", "Harmlessness")


def load(data: Path | None) -> Benchmark:
    """RMB: pairwise and best-of-n sets. It is not on the Hub.

    A pair is right if the chosen response has the higher reward, a list if the best one beats every loser. A section
    (goal and set) is the unweighted mean over its scenarios (`category_path`), and overall is the mean of the four
    sections, which is how the paper's leaderboard ranks; upstream's own script prints the plain accuracy of whatever
    files it is given. Subsets are the scenarios' parents (Chat, Code, S1, …).
    """
    rows = read_rows(PLACE, data)
    items = read_items(rows, _item)
    groups = sorted({item.group for item in items})
    terms = terms_by_group({group: (group,) for group in groups})
    return Benchmark("rmb", "RMB", rows.origin, items, _scores(groups), terms, (*_absent(items), *remarks(items)))


def _item(row: Row) -> Item:
    """Both sets, prepared (`best`, `chosen`) and upstream (`bon_best`, `chosen.answer`)."""
    upstream = "category_path" in row.values
    if "bon_best" in row.values or "best" in row.values:
        part = "bon"
        best = text(row, "bon_best.answer" if upstream else "best")
        others = texts(row, "loser_list", key="answer") if upstream else texts(row, "losers")
    else:
        part = "pairwise"
        best = text(row, "chosen.answer" if upstream else "chosen")
        others = (text(row, "reject.answer" if upstream else "rejected"),)
    number = name(row, ("bon_uid" if part == "bon" else "pair_uid") if upstream else "id")
    asked = prompt(row, "conversation_input" if upstream else "prompt")
    group = f"{part}/{_upstream_path(row) if upstream else _prepared_path(row)}"
    return Item(f"{part}/{number}", asked, (best, *others), (1.0, *(0.0 for _ in others)), group, row.where)


def _upstream_path(row: Row) -> str:
    said = name(row, "category_path")
    return _known_goal(said.removeprefix("Pairwise_set/").removeprefix("BoN_set/"), "category_path")


def _prepared_path(row: Row) -> str:
    category, subset = name(row, "category"), name(row, "subset")
    path = category if category.endswith(f"/{subset}") else f"{category}/{subset}"
    return _known_goal(path, "category")


def _known_goal(path: str, field: str) -> str:
    if path.count("/") < 1 or path.split("/")[0] not in _GOALS:
        raise RowProblem(f"does not begin with {' or '.join(_GOALS)}", field, path)
    return path


def _scores(groups: Sequence[str]) -> tuple[Score, ...]:
    sections: list[Score] = []
    subsets: list[Score] = []
    for goal in _GOALS:
        for part, said in _SETS.items():
            below = [group for group in groups if group.startswith(f"{part}/{goal}/")]
            if below:
                sections.append(mean_of_groups(f"{goal} {said}", "section", below))
            parents = dict.fromkeys("/".join(group.split("/")[:3]) for group in below)
            for parent in parents:
                scenarios = [group for group in below if group == parent or group.startswith(f"{parent}/")]
                subsets.append(mean_of_groups(f"{goal}/{parent.split('/')[2]} {said}", "subset", scenarios))
    weights = {term: weight / len(sections) for section in sections for term, weight in section.weights.items()}
    return (Score("overall", "overall", weights), *sections, *subsets)


def _absent(items: Sequence[Item]) -> tuple[str, ...]:
    """Notes on scenarios that one of the two sets lacks, and on lists that are not there."""
    paths: dict[str, set[str]] = {part: set() for part in _SETS}
    for item in items:
        part, path = item.group.split("/", 1)
        paths[part].add(path)
    notes = []
    for part, other in (("pairwise", "bon"), ("bon", "pairwise")):
        if not paths[part]:
            notes.append(f"The {_SETS[part]} set is absent, and so is its half of the overall score.")
        elif lacking := sorted(paths[other] - paths[part]):
            notes.append(f"Scenarios absent from the {_SETS[part]} set: {', '.join(lacking)}.")
    lists = sum(item.group.startswith("bon/") for item in items)
    if 0 < lists != _LISTS:
        notes.append(f"{lists:,} best-of-n lists of the published {_LISTS:,}: not the numbers of the leaderboard.")
    return tuple(notes)
