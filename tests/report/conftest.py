"""An evaluation of made-up rewards on made-up benchmarks, and a made-up fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest
from tests.evaluation.suites import all_kinds, plain_scores, refined_scores
from tests.report.made_report import make_report

from ebrm.benchmarks import Benchmark
from ebrm.evaluation import Evaluation, ScoredBenchmark, evaluate_scores
from ebrm.metrics import Bootstrap
from ebrm.report import ReportData

MakeEvaluation = Callable[..., Evaluation]


def _make(bases: Mapping[str, str | None] | None = None, benchmarks: Sequence[Benchmark] | None = None) -> Evaluation:
    """Refined rewards are much better on the first benchmark, much worse on the second, and so on in turn."""
    bases = {"demo-rm": None, "demo-ebrm": "demo-rm"} if bases is None else bases
    scored = []
    for place, made in enumerate(all_kinds() if benchmarks is None else benchmarks):
        skill = -0.2 if place % 2 else 2.0
        scorers = [
            plain_scores(made, name, seed=seed, digits=1)
            if base is None
            else refined_scores(made, name, base, skill, seed)
            for seed, (name, base) in enumerate(bases.items())
        ]
        scored.append(ScoredBenchmark(made, scorers))
    about = {name: {"path": f"/models/{name}", "grid": {"nodes": 257}} for name in bases}
    return evaluate_scores(
        scored, next(iter(bases)), bootstrap=Bootstrap(100), permutations=999, about=about, versions={"ebrm": "0.2.0"}
    )


@pytest.fixture(scope="session")
def make_evaluation() -> MakeEvaluation:
    return _make


@pytest.fixture(scope="session")
def evaluation() -> Evaluation:
    """A reward model and its refinement on four benchmarks."""
    made = _make()
    return Evaluation(**{**vars(made), "seconds": {"compare": 1.0}})  # the same at every run


@pytest.fixture(scope="session")
def report_data() -> ReportData:
    return make_report(pairs=600, resamples=100)
