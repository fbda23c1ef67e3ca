"""LLMBar: does the judge see which output follows the instruction (Zeng et al. 2023, arXiv 2310.07641)."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from ebrm.benchmarks.benchmark import Benchmark, Item
from ebrm.benchmarks.fields import name, pair
from ebrm.benchmarks.read import Place, Row, read_items, read_rows, remarks
from ebrm.benchmarks.rules import mean_of_groups, mean_of_items, terms_by_group
from ebrm.data import RowProblem
from ebrm.errors import DataError

PLACE = Place(
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
    repository="princeton-nlp/LLMBar",
)

_NATURAL = "LLMBar/Natural"
_ADVERSARIAL = tuple(f"LLMBar/Adversarial/{subset}" for subset in ("Neighbor", "GPTInst", "GPTOut", "Manual"))
_OWN = (_NATURAL, *_ADVERSARIAL)
_OTHERS = ("CaseStudy", "Processed")


def load(data: Path | None) -> Benchmark:
    """Read LLMBar and what else its repository holds.

    A pair is right if the output that the label prefers has the higher reward. The benchmark is the 419 pairs of
    Natural and the four Adversarial subsets: overall is the unweighted mean of the five, and the section "Adversarial"
    that of the four. The repository's case studies and the sets of others that it repackages (FairEval, LLMEval^2,
    MT-Bench) are sections of their own, unweighted means of their subsets, and no part of overall.

    Args:
        data: folder of the prepared file or of a clone; None fails, as the Hub's copy is a script that current
            versions of `datasets` do not run.

    Raises:
        DataError: nothing found, rows that cannot be used, or none of the benchmark's own pairs.
    """
    rows = read_rows(PLACE, data)
    items = read_items(rows, _item)
    groups = sorted({item.group for item in items})
    own = [group for group in (_NATURAL, *_ADVERSARIAL) if group in groups]
    if not own:
        raise DataError(
            f"LLMBar: {rows.origin} has none of {', '.join((_NATURAL, *_ADVERSARIAL))}. Name the whole set."
        )
    absent = [group for group in (_NATURAL, *_ADVERSARIAL) if group not in groups]
    adversarial = [group for group in own if group != _NATURAL]
    others = {part: [group for group in groups if group.startswith(f"{part}/")] for part in _OTHERS}
    natural = [mean_of_items("Natural", "section", _NATURAL)] if _NATURAL in own else []
    return Benchmark(
        name="llmbar",
        title="LLMBar",
        origin=rows.origin,
        items=items,
        scores=(
            mean_of_groups("overall", "overall", own),
            *natural,
            *([mean_of_groups("Adversarial", "section", adversarial)] if adversarial else []),
            *(mean_of_groups(part, "section", below) for part, below in others.items() if below),
            *(mean_of_items(group.removeprefix("LLMBar/"), "subset", group) for group in adversarial),
            *(mean_of_items(group, "subset", group) for below in others.values() for group in below),
        ),
        terms=terms_by_group({group: (group,) for group in groups}),
        notes=(*([f"Absent, and no part of overall: {', '.join(absent)}."] if absent else []), *remarks(items)),
    )


def _item(row: Row) -> Item:
    """Prepared (chosen, rejected) and upstream (output_1, output_2, label) rows."""
    if "output_1" not in row.values:
        return pair(row, name(row, "id"), _known(name(row, "category"), "category"))
    label = name(row, "label")
    if label not in ("1", "2"):
        raise RowProblem("label is neither 1 nor 2", "label", row.values["label"])
    right, wrong = ("output_1", "output_2") if label == "1" else ("output_2", "output_1")
    folder = str(PurePosixPath(row.part).parent).removeprefix("Dataset/")
    number = row.where.rpartition(":")[2]
    return pair(row, f"{folder}-{number}", _known(folder, "folder"), ("input", right, wrong))


def _known(group: str, field: str) -> str:
    if group not in _OWN and not group.startswith(tuple(f"{part}/" for part in _OTHERS)):
        raise RowProblem("not a set of LLMBar", field, group)
    return group
