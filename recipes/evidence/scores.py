"""Official scores on the test sets: of every method, their gains on the base, and what EBRM is ahead by.

Values are means over seeds. Intervals are the central 95% of 2,000 draws of a two-way bootstrap: prompts are drawn with
replacement (the same ones for all methods and seeds), and so are seeds (the same ones for all methods and test sets).
In the mean over test sets, each set has its prompts drawn by themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from reward_files import PAPER, Refinements
from summary import Row, interval

from ebrm.benchmarks import Benchmark, Score
from ebrm.errors import DataError
from ebrm.metrics import Bootstrap, bootstrap_scores, score_values

DRAWS = 2000
MEAN = "mean"
#: Besides overall: sections where none are named.
PARTS: dict[str, tuple[str, ...] | None] = {"rmb": None, "rm-bench": None, "xstest": None, "hhh": ("harmless",)}


@dataclass(frozen=True)
class Measured:
    """Scores of all methods on base reward models of one kind and noise.

    Attributes:
        base_rm, noise, seeds: which base reward models.
        methods: names M, base first.
        value: (benchmark, category) to the scores [M].
        draws: the same to their resamples [B, M].
        items: the same to how many items it is about.
    """

    base_rm: str
    noise: float
    seeds: int
    methods: tuple[str, ...]
    value: Mapping[tuple[str, str], np.ndarray]
    draws: Mapping[tuple[str, str], np.ndarray]
    items: Mapping[tuple[str, str], int]


@dataclass(frozen=True)
class ItemValues:
    """What the items of a test set add to its scores: term [k], item [k] and values of each scorer [k, S]."""

    names: tuple[str, ...]
    term: np.ndarray
    item: np.ndarray
    value: np.ndarray


def reported_scores(benchmark: Benchmark) -> list[Score]:
    """Overall, and the parts that the study reports."""
    wanted = PARTS.get(benchmark.name, ())
    return [
        score
        for score in benchmark.scores
        if score.kind == "overall" or (score.kind == "section" if wanted is None else score.name in wanted)
    ]


def item_values(cells: Sequence[Refinements], name: str, methods: Sequence[str]) -> ItemValues:
    """Values of the items of test set `name`, a column for every method and seed (methods apart, seeds together).

    Raises:
        DataError: seeds with other items, or a method without a reward for one of them.
    """
    first = cells[0].texts.tests[name].benchmark
    ids = [item.id for item in first.items]
    columns, found = [], None
    for method in methods:
        for cell in cells:
            test = cell.texts.tests[name]
            if test is not cells[0].texts.tests[name] and [item.id for item in test.benchmark.items] != ids:
                raise DataError(f"{name}: seed {cell.seed} was read with other items than seed {cells[0].seed}.")
            rewards = test.rewards(cell.reward[method].astype(np.float64))
            missing = (test.place >= 0) & ~np.isfinite(rewards)
            if missing.any():
                raise DataError(
                    f"{name}: {method} (noise {cell.noise}, seed {cell.seed}) has no finite reward for "
                    f"{missing.sum():,} of {(test.place >= 0).sum():,} responses."
                )
            found = first.terms(first.items, rewards, None)
            columns.append(found.value)
    assert found is not None
    return ItemValues(found.names, found.term, found.item, np.stack(columns, axis=1))


def seed_counts(seeds: int, draws: int = DRAWS) -> np.ndarray:
    """How often each seed is drawn [B, S]."""
    drawn = np.random.default_rng((0, seeds)).integers(0, seeds, size=(draws, seeds))
    return (drawn[:, :, None] == np.arange(seeds)).sum(axis=1)


def measure(
    cells: Sequence[Refinements], methods: Sequence[str], draws: int = DRAWS
) -> tuple[Measured, dict[str, ItemValues]]:
    """Score methods, base first, on base reward models of one kind and noise, one a seed."""
    seeds = len(cells)
    counts = seed_counts(seeds, draws)
    value, drawn, items, values = {}, {}, {}, {}
    for place, (name, test) in enumerate(cells[0].texts.tests.items()):
        found = values[name] = item_values(cells, name, methods)
        scores = reported_scores(test.benchmark)
        weights = np.array([[score.weights.get(term, 0.0) for term in found.names] for score in scores])
        point = score_values(found.term, found.value, weights).reshape(len(scores), len(methods), seeds).mean(axis=2)
        cluster = np.array(test.benchmark.clusters())[found.item]
        prompts = bootstrap_scores(found.term, found.value, cluster, weights, bootstrap=Bootstrap(draws, seed=place))
        both = np.einsum("bqms,bs->bqm", prompts.reshape(draws, len(scores), len(methods), seeds), counts / seeds)
        for number, score in enumerate(scores):
            at = (name, score.name)
            value[at], drawn[at] = point[number], both[:, number]
            items[at] = len(np.unique(found.item[weights[number][found.term] > 0]))
    overall = [(name, "overall") for name in cells[0].texts.tests]
    at = (MEAN, "overall")
    value[at], drawn[at] = (np.mean([table[key] for key in overall], axis=0) for table in (value, drawn))
    items[at] = sum(items[key] for key in overall)
    about = cells[0].base_rm, cells[0].noise, seeds, tuple(methods)
    return Measured(*about, value, drawn, items), values


def score_rows(found: Measured, only: Sequence[str]) -> Iterator[Row]:
    """Rows of score and gain everywhere, and of what EBRM is ahead by on the mean, under every question they answer.

    Args:
        found: what was measured.
        only: the methods that get rows.
    """
    ours = found.methods.index("EBRM") if "EBRM" in found.methods else None
    for (benchmark, category), value in found.value.items():
        value, draws = 100 * value, 100 * found.draws[benchmark, category]

        def row(
            method: int, metric: str, at: float, drawn: np.ndarray, where: tuple[str, str] = (benchmark, category)
        ) -> Iterator[Row]:
            numbers = (float(at), *interval(drawn), found.seeds, found.items[where])
            name = found.methods[method]
            for question in questions(name, found.noise):
                yield Row(question, found.base_rm, found.noise, name, *where, metric, *numbers)

        for method in map(found.methods.index, only):
            yield from row(method, "score", value[method], draws[:, method])
            if method:
                yield from row(method, "gain", value[method] - value[0], draws[:, method] - draws[:, 0])
            if ours is not None and method != ours and benchmark == MEAN:
                yield from row(method, "ahead", value[ours] - value[method], draws[:, ours] - draws[:, method])


def questions(method: str, noise: float) -> list[str]:
    """Which questions a method's scores help to answer."""
    paper, ablation = method.startswith(PAPER), method.startswith("EBRM,")
    everywhere = method in ("base", "EBRM")
    asked = {
        "1 paper": paper or (everywhere and noise in (0.0, 0.25)),
        "2 noise": not paper and not ablation,
        "3 objective": ablation or everywhere,
    }
    return [question for question, yes in asked.items() if yes]
