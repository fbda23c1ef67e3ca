from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.report import small

from ebrm.evaluation import Evaluation
from ebrm.report.benchmark_curves import (
    abstention_section,
    calibration_section,
    drawn_families,
    rewards_section,
)
from ebrm.report.page import Section

PAIR = {"rm": None, "ebrm": "rm"}
ROW = {"rm": (0.5, None), "ebrm": (0.6, 0.01)}
MAKERS = (calibration_section, abstention_section, rewards_section)


def sections(evaluation: Evaluation) -> list[Section]:
    found = [make(evaluation) for make in MAKERS]
    assert all(section is not None for section in found)
    return [section for section in found if section is not None]


def bare(evaluation: Evaluation, **changes: object) -> Evaluation:
    """The evaluation without any curves and metrics but those in `changes`."""
    empty = {"metrics": {}, "calibration": None, "risk": {}, "margins": np.empty(0)} | changes
    made = [
        replace(b, scorers={name: replace(result, **empty) for name, result in b.scorers.items()})  # type: ignore[arg-type]
        for b in evaluation.benchmarks
    ]
    return replace(evaluation, benchmarks=tuple(made))


def test_every_benchmark_is_drawn_once(evaluation: Evaluation) -> None:
    titles = [benchmark.title for benchmark in evaluation.benchmarks]
    for section in sections(evaluation):
        (panel,) = section.panels
        assert [title for title, _, _ in panel.figures] == titles and not panel.folded
        assert [label.split(",")[0] for _, label in panel.legend][:2] == ["base: demo-rm", "refined: demo-ebrm"]


def test_the_legend_has_std_where_it_is_drawn(evaluation: Evaluation) -> None:
    calibration, abstention, rewards = sections(evaluation)
    labels = [[label for _, label in section.panels[0].legend] for section in (calibration, abstention, rewards)]
    assert labels[0] == labels[2] == ["base: demo-rm", "refined: demo-ebrm"]
    assert labels[1] == [
        "base: demo-rm, by confidence",
        "refined: demo-ebrm, by confidence",
        "refined: demo-ebrm, by std",
    ]


def test_each_figure_is_summed_up_by_a_number(evaluation: Evaluation) -> None:
    calibration, abstention, rewards = sections(evaluation)
    assert calibration.panels[0].figures[0][1] == "ECE, %: 4.1 base, 4.1 refined"
    assert abstention.panels[0].figures[0][1] == "gained, points: 9.0 base, 9.0 refined"
    assert rewards.panels[0].figures[0][1].startswith("mean, in stds: ")
    alone = replace(evaluation, bases={"demo-rm": None})
    assert sections(alone)[0].panels[0].figures[0][1] == "ECE, %: 4.1"


def test_nothing_measured_is_no_section(evaluation: Evaluation) -> None:
    assert [make(bare(evaluation)) for make in MAKERS] == [None, None, None]
    only = bare(evaluation, metrics={"ece": small.exact(0.1)})
    section = calibration_section(only)
    assert section is not None and section.panels == [] and len(section.grids) == 1
    assert abstention_section(only) is None and rewards_section(only) is None


def test_curves_without_metrics_and_some_without_curves(evaluation: Evaluation) -> None:
    first = evaluation.benchmarks[0]
    curves = bare(
        evaluation,
        calibration=first.scorers["demo-rm"].calibration,
        risk=first.scorers["demo-rm"].risk,
        margins=np.ones(3),
    )
    for section in sections(curves):
        assert section.grids == [] and section.panels[0].figures[0][1] == ""
    mixed = replace(evaluation, benchmarks=(bare(evaluation).benchmarks[0], *evaluation.benchmarks[1:]))
    for section in sections(mixed):
        assert [title for title, _, _ in section.panels[0].figures] == [b.title for b in evaluation.benchmarks[1:]]


def test_a_reward_is_drawn_without_its_base(evaluation: Evaluation) -> None:
    made = [
        replace(b, scorers={**b.scorers, "demo-rm": bare(evaluation).benchmarks[0].scorers["demo-rm"]})
        for b in evaluation.benchmarks
    ]
    calibration = calibration_section(replace(evaluation, benchmarks=tuple(made)))
    assert calibration is not None and len(calibration.panels[0].figures) == len(made)
    assert calibration.panels[0].figures[0][1] == "ECE, %: 4.1 refined"


def test_other_families_are_folded_and_named() -> None:
    bases: dict[str, str | None] = {"a": None, "b": None, "b2": "b"}
    row: dict[str, small.Numbers] = {name: (0.5, 0.5) for name in bases}
    evaluation = bare(small.overall_only([row], bases, "b"), margins=np.arange(5.0))
    section = rewards_section(evaluation)
    assert section is not None
    assert [(panel.title, panel.folded, bool(panel.caption)) for panel in section.panels] == [
        ("Reward margins, right minus wrong response: b2 and its base b", False, True),
        ("Reward margins, right minus wrong response: a", True, False),
    ]
    assert section.panels[1].legend[0][1] == "a"


@pytest.mark.parametrize(("benchmarks", "drawn"), [(9, 4), (10, 3), (40, 1)])
def test_there_is_a_limit_to_figures_and_it_is_said(benchmarks: int, drawn: int) -> None:
    bases: dict[str, str | None] = {name: None for name in "abcd"}
    row: dict[str, small.Numbers] = {name: (0.5, 0.5) for name in bases}
    made = [small.benchmark(f"B{number}", {"overall": row}, "d") for number in range(benchmarks)]
    evaluation = small.evaluation(made, bases, "d")
    order = [roles["base"] for roles in drawn_families(evaluation)]
    assert order == list("dabc")[:drawn]
    section = calibration_section(bare(evaluation, metrics={"ece": small.exact(0.1)}))
    assert section is not None
    said = [note for note in section.notes if "Not drawn" in note]
    assert len(said) == (drawn < 4) and all(name in " ".join(said).split(":")[-1] for name in list("dabc")[drawn:])


def test_ties_are_shown_where_there_are_some(evaluation: Evaluation) -> None:
    tied = rewards_section(evaluation)
    assert tied is not None and "ties, %" in [name for name, _ in tied.grids[0].columns]
    assert "No two rewards" not in tied.notes[0]
    metrics = {"ties": small.exact(0.0), "accuracy_ties_half": small.exact(0.5), "accuracy": small.exact(0.5)}
    section = rewards_section(bare(evaluation, metrics=metrics))
    assert section is not None and [name for name, _ in section.grids[0].columns] == ["pairs right, %"]
    assert "No two rewards of a pair are tied." in section.notes[0]


def test_unknown_measures_have_a_table_of_their_own(evaluation: Evaluation) -> None:
    section = rewards_section(bare(evaluation, metrics={"new_measure": small.exact(0.5)}))
    assert section is not None and [grid.caption for grid in section.grids] == ["Further measures"]
