"""How the numbers of the benchmark report were measured, and on what."""

from __future__ import annotations

from ebrm.evaluation import BenchmarkResult, Evaluation
from ebrm.report.benchmark_verdicts import others, overall, titles
from ebrm.report.page import Section, Table
from ebrm.report.words import count, decimal, listing, name_in_text, percent, setting_rows

_NAMED_ITEMS = 5


def measured_section(evaluation: Evaluation) -> Section:
    """What was scored and what was not, how ties, intervals and tests work, and what it ran on."""
    tables = [_items(evaluation), *_left_out(evaluation), *_ties(evaluation), _about_benchmarks(evaluation)]
    for scorer, about in evaluation.about.items():
        if about:
            tables.append(Table(name_in_text(scorer), ("setting", "value"), setting_rows(about), text=True))
    if evaluation.versions:
        rows = [[name, str(evaluation.versions[name])] for name in sorted(evaluation.versions)]
        tables.append(Table("Versions", ("package", "version"), rows, text=True))
    if evaluation.seconds:
        rows = [[stage, decimal(seconds, 1)] for stage, seconds in evaluation.seconds.items()]
        rows.append(["together", decimal(sum(evaluation.seconds.values()), 1)])
        tables.append(Table("Time, seconds", ("stage", "time"), rows))
    return Section("measured", "How it was measured", text=_statistics(evaluation), tables=tables)


def _statistics(evaluation: Evaluation) -> list[str]:
    bootstrap = evaluation.bootstrap
    text = [
        f"Intervals: the central {100 * bootstrap.level:g}% of {bootstrap.resamples:,} bootstrap resamples of the "
        "prompts (percentiles). All responses to a prompt are resampled together, and all rewards on the same "
        f"resamples, so that differences are paired. Seed {bootstrap.seed}."
    ]
    compared = len(others(evaluation))
    if compared:
        overall_tests = compared * len(evaluation.benchmarks)
        parts = sum(bool(benchmark.scores[1:]) for benchmark in evaluation.benchmarks)
        families = f"the {count(overall_tests, 'test')} of the overall scores are one family"
        if parts:
            families += ", the sections and subsets of each benchmark another"
        text.append(
            "Tests: two-sided permutation tests that swap the two rewards on whole prompts, "
            f"{evaluation.permutations:,} random swaps, or all of them where prompts are few. p-values are corrected "
            f"for their number by Holm's method: {families}. These tests are against "
            f"{name_in_text(evaluation.reference)}."
        )
    if compared > 1:
        text.append(
            "Whether a score is clearly below the highest of its row is tested in the same way, corrected for the "
            "number of rewards in the row."
        )
    text.append(
        "Items that one of the rewards could not score are left out for all of them, and counted below. A tie between "
        "a right and a wrong response counts by the benchmark's own rule."
    )
    return text


def _items(evaluation: Evaluation) -> Table:
    names = titles(evaluation)
    rows = [
        [
            names[b.name],
            f"{b.items:,}",
            f"{b.prompts:,}",
            f"{sum(b.excluded.values()):,}",
            f"{len(b.unscored_items):,}",
        ]
        for b in evaluation.benchmarks
    ]
    return Table("Items", ("benchmark", "compared", "prompts", "left out before scoring", "not scored"), rows)


def _left_out(evaluation: Evaluation) -> list[Table]:
    names = titles(evaluation)
    rows = []
    for benchmark in evaluation.benchmarks:
        title = names[benchmark.name]
        rows += [
            [title, f"{reason}: {count(number, 'item')}"] for reason, number in benchmark.excluded.items() if number
        ]
        for scorer, reasons in benchmark.unscored.items():
            rows += [
                [title, f"{name_in_text(scorer)}, {reason}: {count(number, 'item')}"]
                for reason, number in reasons.items()
                if number
            ]
        if benchmark.unscored_items:
            rows.append([title, f"Left out for every reward: {_some(benchmark)}."])
    return [Table("Left out, and why", ("benchmark", "reason"), rows, text=True)] if rows else []


def _some(benchmark: BenchmarkResult) -> str:
    ids = [name_in_text(item) for item in benchmark.unscored_items]
    more = len(ids) - _NAMED_ITEMS
    return listing([*ids[:_NAMED_ITEMS], f"{count(more, 'more item')}"]) if more > 0 else listing(ids)


def _ties(evaluation: Evaluation) -> list[Table]:
    """Overall scores by the benchmark's own rule for ties and with ties broken by lot, where they differ."""
    names = titles(evaluation)
    rows = []
    for benchmark in evaluation.benchmarks:
        for scorer, result in benchmark.scorers.items():
            cell = result.cells.get(overall(benchmark).name)
            if cell is not None and abs(cell.value.value - cell.shared.value) > 1e-9:
                rows.append(
                    [names[benchmark.name], name_in_text(scorer), percent(cell.value.value), percent(cell.shared.value)]
                )
    if not rows:
        return []
    columns = ("benchmark", "reward", "official", "ties broken by lot")
    return [Table("Overall scores that depend on the rule for ties", columns, rows)]


def _about_benchmarks(evaluation: Evaluation) -> Table:
    names = titles(evaluation)
    rows = [[names[b.name], "\n".join([b.origin, *b.notes])] for b in evaluation.benchmarks]
    return Table("Where the items are from", ("benchmark", "origin and notes"), rows, text=True)
