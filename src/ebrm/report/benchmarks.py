"""The report of an evaluation on benchmarks: who is better, where, and how sure that is, on one self-contained page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ebrm.errors import DataError
from ebrm.evaluation import Evaluation
from ebrm.report.benchmark_changes import changes_section, regressions_section
from ebrm.report.benchmark_curves import abstention_section, calibration_section, rewards_section
from ebrm.report.benchmark_finding import headline, summary, tiles
from ebrm.report.benchmark_run import measured_section
from ebrm.report.benchmark_scores import scores_section
from ebrm.report.benchmark_verdicts import others, refined_scorers
from ebrm.report.page import Page, Section, render_page
from ebrm.report.words import count, listing, name_in_text
from ebrm.utils.files import write_text

__all__ = ["benchmark_page", "write_benchmark_report"]

_NAMED_SCORERS = 3
_NARROW_SCORERS = 3


def write_benchmark_report(path: str | Path, evaluation: Evaluation, *, notes: Sequence[str] = ()) -> Path:
    """Write the report as one HTML file that needs no network; the same evaluation gives the same bytes.

    Args:
        path: where to write; an existing file is replaced, as a whole.
        evaluation: what to show.
        notes: small print at the end of the page, such as the command that was run, a paragraph each.

    Returns:
        The path.

    Raises:
        DataError: if there is no benchmark, or the reference is not among the scorers.
    """
    write_text(path, render_page(benchmark_page(evaluation, notes=notes)))
    return Path(path)


def benchmark_page(evaluation: Evaluation, *, notes: Sequence[str] = ()) -> Page:
    """Arrange the evaluation as a page; see `write_benchmark_report`."""
    if not evaluation.benchmarks:
        raise DataError("There is nothing to report: the evaluation has no benchmark. Evaluate at least one.")
    if evaluation.reference not in evaluation.bases:
        raise DataError(
            f"The reference {evaluation.reference!r} is not among the scorers {', '.join(evaluation.bases)}. "
            "Name one of them."
        )
    sections: list[Section] = [scores_section(evaluation)]
    missing: list[str] = []

    def add(section: Section | None, otherwise: str) -> None:
        if section is None:
            missing.append(otherwise)
        else:
            sections.append(section)

    add(changes_section(evaluation), "Better and worse: there is only one reward, and nothing to compare it with.")
    add(
        calibration_section(evaluation),
        "Calibration: none of these benchmarks has responses that are right or wrong, or it was not measured.",
    )
    add(abstention_section(evaluation), "Leaving out uncertain pairs: no uncertainty was measured.")
    add(rewards_section(evaluation), "Margins, length and order: they were not measured.")
    if refined_scorers(evaluation):
        add(
            regressions_section(evaluation), "Worst regressions: no refined reward lost a pair that its base has right."
        )
    elif others(evaluation):
        missing.append("Worst regressions: none of the rewards refines another one of them.")
    sections.append(measured_section(evaluation))
    return Page(
        _title(evaluation),
        headline(evaluation),
        summary(evaluation),
        tiles(evaluation),
        sections,
        missing,
        list(notes),
        wide=len(evaluation.bases) > _NARROW_SCORERS,
    )


def _title(evaluation: Evaluation) -> str:
    names = [name_in_text(name) for name in evaluation.bases]
    who = listing(names) if len(names) <= _NAMED_SCORERS else count(len(names), "reward model")
    return f"{who} on {count(len(evaluation.benchmarks), 'benchmark')}"
