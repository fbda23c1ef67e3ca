from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from tests.evaluation.suites import (
    all_kinds,
    benchmark,
    best_of,
    item,
    pairwise,
    plain_scores,
    pool,
    styles,
    success,
    three,
)

from ebrm.benchmarks import Benchmark, Floats, Item, Score, Terms, Ties
from ebrm.errors import ConfigError, DataError
from ebrm.evaluation import (
    BenchmarkResult,
    Entry,
    Evaluation,
    ScoredBenchmark,
    ScorerResult,
    Scores,
    compare,
    evaluate_scores,
)
from ebrm.evaluation.comparison import estimates, standings
from ebrm.evaluation.results import Official, common_items, official_values
from ebrm.metrics import Bootstrap, Estimate, holm

OVERALL = (Score("overall", "overall", {"all": 1.0}),)


@pytest.fixture(scope="module")
def of_all() -> Evaluation:
    scored = [ScoredBenchmark(made, three(made)) for made in all_kinds()]
    return evaluate_scores(scored, "rm", bootstrap=Bootstrap(100), permutations=199)


@pytest.mark.parametrize("made", all_kinds(), ids=lambda made: made.name)
def test_a_result_has_everything(made: Benchmark) -> None:
    result = compare(made, three(made), "rm", excluded={"seen in training": 3}, permutations=199)
    assert (result.name, result.title, result.origin, result.notes) == (made.name, made.title, "made up", made.notes)
    assert result.scores == made.scores
    assert result.items == len(made) and result.prompts == len(set(made.clusters()))
    assert result.counts["overall"] == (result.items, result.prompts)
    assert result.excluded == {"seen in training": 3}
    assert result.unscored == {"rm": {}, "rm-refined": {}, "poor": {}} and result.unscored_items == ()
    assert list(result.scorers) == ["rm", "rm-refined", "poor"]
    for scorer in result.scorers.values():
        assert list(scorer.entries) == [score.name for score in made.scores]
        assert len(scorer.margins) == scorer.metrics["pairs"].value
    assert {one.scorer for one in result.regressions} == {"rm-refined"}
    assert 0 < len(result.regressions) <= 6
    best = [name for name, scorer in result.scorers.items() if "overall" in scorer.best]
    highest = max(scorer.entries["overall"].value.value for scorer in result.scorers.values())
    assert [name for name in result.scorers if result.scorers[name].entries["overall"].value.value == highest] == best
    assert "overall" not in result.scorers["poor"].not_worse


def test_left_out_items_are_in_no_number() -> None:
    made = best_of(count=40)
    rm, refined, poor = three(made)
    broken = Scores("rm", rm.reward.copy())
    broken.reward[[2, 5], 1] = np.nan
    poor = replace(poor, unscored={5: "the text is too long", 9: "the text is too long"})
    found = compare(made, (broken, refined, poor), "rm", permutations=199)
    kept = [row for row in range(40) if row not in (2, 5, 9)]
    index = np.array(kept)
    others = [one.take(index) for one in (rm, refined, replace(poor, unscored={}))]
    clean = compare(made.take(kept), others, "rm", permutations=199)
    assert found.items == 37 and found.unscored_items == ("b002", "b005", "b009")
    assert found.unscored == {
        "rm": {"the reward is not a number": 2},
        "rm-refined": {},
        "poor": {"the text is too long": 2},
    }
    same = {"unscored": clean.unscored, "unscored_items": ()}
    assert repr(replace(found, **same)) == repr(clean)


@pytest.mark.parametrize("made", all_kinds(), ids=lambda made: made.name)
def test_the_seed_decides_and_the_order_of_items_does_not(made: Benchmark) -> None:
    def found(made: Benchmark, scorers: Sequence[Scores], seed: int) -> str:
        result = compare(made, scorers, "rm", bootstrap=Bootstrap(100, seed=seed), permutations=199)
        with np.printoptions(threshold=10**6, floatmode="unique"):
            return repr(result)

    scorers, order = three(made), np.random.default_rng(0).permutation(len(made))
    there = found(made, scorers, 4)
    assert found(made, scorers, 4) == there != found(made, scorers, 5)
    assert found(made.take(order), [one.take(order) for one in scorers], 4) == there


def test_an_items_pairs_depend_on_seed_and_id_alone() -> None:
    made = pool(count=10, responses=9)
    rm = plain_scores(made, "rm")

    def margins(rows: Sequence[int], seed: int = 0) -> np.ndarray:
        scorer, bootstrap = rm.take(np.array(rows)), Bootstrap(100, seed=seed)
        return compare(made.take(rows), [scorer], "rm", bootstrap=bootstrap, permutations=199).scorers["rm"].margins

    whole, other = margins(range(10)), margins(range(10), seed=1)
    assert len(whole) == len(other) == 90 and whole.tolist() != other.tolist()
    np.testing.assert_array_equal(margins([3, 7]), np.concatenate([whole[27:36], whole[63:72]]))


def overall(results: Evaluation | Mapping[str, BenchmarkResult]) -> list[tuple[float, float]]:
    benchmarks = results.benchmarks if isinstance(results, Evaluation) else results.values()
    cells = [result.scorers[name].entries["overall"] for result in benchmarks for name in ("rm-refined", "poor")]
    return [(cell.p, cell.p_holm) for cell in cells if cell.p is not None and cell.p_holm is not None]


def test_overall_scores_are_one_family_over_all_benchmarks(of_all: Evaluation) -> None:
    found = overall(of_all)
    assert len(found) == 8
    assert [p_holm for _, p_holm in found] == pytest.approx(holm([p for p, _ in found]))
    alone = {
        made.name: compare(made, three(made), "rm", bootstrap=Bootstrap(100), permutations=199) for made in all_kinds()
    }
    assert [p for p, _ in overall(alone)] == [p for p, _ in found]
    assert [p for _, p in overall(alone)] != [p for _, p in found]
    for result in of_all.benchmarks:
        assert result.scorers["rm"].entries["overall"].p_holm is None
        for name in result.scorers:
            for score in result.scores[1:]:
                assert result.scorers[name].entries[score.name] == alone[result.name].scorers[name].entries[score.name]


def test_an_evaluation_says_how_it_was_made() -> None:
    made = pairwise()
    evaluation = evaluate_scores(
        [ScoredBenchmark(made, three(made), {"not sampled": 7})],
        "poor",
        bootstrap=Bootstrap(100, level=0.9, seed=3),
        about={"rm": {"path": "somewhere"}},
        versions={"numpy": "2"},
        seconds={"reading": 1.5},
        permutations=199,
    )
    assert evaluation.reference == "poor"
    assert evaluation.bases == {"rm": None, "rm-refined": "rm", "poor": None}
    assert (evaluation.bootstrap, evaluation.permutations) == (Bootstrap(100, 0.9, 3), 199)
    assert evaluation.about == {"rm": {"path": "somewhere"}} and evaluation.versions == {"numpy": "2"}
    assert list(evaluation.seconds) == ["reading", "compare"] and evaluation.seconds["compare"] >= 0
    (result,) = evaluation.benchmarks
    assert result.excluded == {"not sampled": 7}
    settings = {"bootstrap": Bootstrap(100, level=0.9, seed=3), "permutations": 199}
    assert repr(result) == repr(compare(made, three(made), "poor", excluded={"not sampled": 7}, **settings))


def test_one_scorer_alone() -> None:
    made = pairwise()
    evaluation = evaluate_scores([ScoredBenchmark(made, [plain_scores(made, "rm")])], "rm", permutations=199)
    scorer = evaluation.benchmarks[0].scorers["rm"]
    assert scorer.best == scorer.not_worse == frozenset()
    assert all(cell.p is None and cell.difference is None for cell in scorer.entries.values())
    assert evaluation.benchmarks[0].regressions == ()


def test_regressions_need_a_base_that_is_there() -> None:
    made = pairwise()
    _, refined, poor = three(made)
    result = compare(made, (replace(refined, base="absent"), poor), "poor", permutations=199)
    assert result.regressions == () and "fixed" not in result.scorers["rm-refined"].metrics


def test_what_cannot_be_compared() -> None:
    made, other = pairwise(), best_of()
    scorers, others = three(made), three(other)
    here = ScoredBenchmark(made, scorers)
    nothing = Scores("rm", np.full((len(made), 2), np.nan))
    for error, said, scored, reference in (
        (ConfigError, "'nobody' is not among .* rm, rm-refined, poor", [here], "nobody"),
        (ConfigError, "no benchmark", [], "rm"),
        (ConfigError, "same name: pairs", [here, here], "rm"),
        (ValueError, "best-of was scored by", [here, ScoredBenchmark(other, others[:2])], "rm"),
        (ValueError, "was scored by", [here, ScoredBenchmark(other, others[::-1])], "rm"),
        (DataError, "Pairs: there is no item", [ScoredBenchmark(made, (nothing, *scorers[1:]))], "rm"),
    ):
        with pytest.raises(error, match=said):
            evaluate_scores(scored, reference, permutations=199)


def test_gains_over_the_own_base_are_corrected_over_all_benchmarks(of_all: Evaluation) -> None:
    cells = [result.scorers["rm-refined"].entries["overall"] for result in of_all.benchmarks]
    expected = holm([cell.p_gain for cell in cells])
    assert [cell.p_gain_holm for cell in cells] == pytest.approx(expected)
    assert any(cell.p_gain_holm != cell.p_gain for cell in cells)
    assert all(
        result.scorers[name].entries["overall"].gain is None for result in of_all.benchmarks for name in ("rm", "poor")
    )


def official(made: Benchmark, scorers: Sequence[Scores]) -> Official:
    return official_values(common_items(ScoredBenchmark(made, scorers)))


def stand(
    made: Benchmark, scorers: Sequence[Scores], reference: str = "rm", **settings: int
) -> dict[str, ScorerResult]:
    settings = {"bootstrap": Bootstrap(200), "permutations": 199} | settings
    return standings(official(made, scorers), [one.name for one in scorers], reference, **settings)


def naive_holm(p: Sequence[float]) -> list[float]:
    order = sorted(range(len(p)), key=lambda place: p[place])
    corrected, running = [0.0] * len(p), 0.0
    for rank, place in enumerate(order):
        running = max(running, min(1.0, (len(p) - rank) * p[place]))
        corrected[place] = running
    return corrected


@pytest.mark.parametrize("made", all_kinds(), ids=lambda made: made.name)
def test_values_are_the_weighted_means_of_the_rules_terms(made: Benchmark) -> None:
    scorers = three(made)
    found = stand(made, scorers)
    for scores in scorers:
        for ties in (None, "shared"):
            terms = made.terms(made.items, scores.reward, ties)
            mean = {name: terms.value[terms.term == number].mean() for number, name in enumerate(terms.names)}
            for score in made.scores:
                expected = sum(weight * mean[name] for name, weight in score.weights.items())
                cell = found[scores.name].entries[score.name]
                assert (cell.value if ties is None else cell.shared).value == pytest.approx(expected, abs=1e-12)


def test_ties_are_counted_both_ways() -> None:
    made = benchmark([item(f"i{row}", (1, 0)) for row in range(4)])
    reward = np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [2.0, 2.0]])
    untied = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [2.0, 3.0]])
    values = official(made, (Scores("tied", reward), Scores("untied", untied)))
    assert values.value.T.tolist() == [[1, 0, 0, 0], [1, 1, 0, 0]]
    assert values.shared.T.tolist() == [[1, 0.5, 0, 0.5], [1, 1, 0, 0]]
    found = standings(values, ["tied", "untied"], "untied", bootstrap=Bootstrap(500))
    tied, other = found["tied"].entries["overall"], found["untied"].entries["overall"]
    assert (tied.value.value, tied.shared.value, other.value.value, other.shared.value) == (0.25, 0.5, 0.5, 0.5)
    assert other.value == other.shared
    assert tied.shared.low > tied.value.low and tied.shared.high >= tied.value.high


def test_tests_are_of_the_official_rule() -> None:
    made = benchmark([item(f"i{row}", (1, 0)) for row in range(10)])
    tied = Scores("tied", np.zeros((10, 2)))
    half = Scores("half", np.array([[1.0, 0.0]] * 5 + [[0.0, 1.0]] * 5))
    cell = stand(made, (tied, half), "tied")["half"].entries["overall"]
    assert cell.p == 2 / 2**5  # against 1/2 for each tie it would be 1


def test_the_seed_is_that_of_resamples_and_permutations() -> None:
    made = pairwise()
    scorers = (plain_scores(made, "rm"), plain_scores(made, "close", 0.8, 5))
    first, again, other = (
        stand(made, scorers, bootstrap=Bootstrap(200, seed=seed))["close"].entries["overall"] for seed in (0, 0, 1)
    )
    assert first == again
    assert first.p != other.p and first.value.low != other.value.low and first.difference.low != other.difference.low


def test_the_rule_is_asked_about_shared_ties_only_where_there_are_any() -> None:
    asked: list[Ties | None] = []

    def terms(items: Sequence[Item], rewards: Floats, ties: Ties | None) -> Terms:
        asked.append(ties)
        value = success(items, rewards, ties)
        return Terms(("all",), np.zeros(len(items), np.int64), np.arange(len(items)), value)

    made = replace(benchmark([item("a", (1, 0)), item("b", (1, 0, 0))]), terms=terms, scores=OVERALL)
    official(made, (Scores("free", np.array([[1.0, 0.0, np.nan], [1.0, 0.0, 2.0]])),))
    assert asked == [None]
    asked.clear()
    official(made, (Scores("tied", np.array([[1.0, 0.0, np.nan], [1.0, 0.0, 0.0]])),))
    assert asked == [None, "shared"]


def test_a_rule_with_a_defect_is_found() -> None:
    made = benchmark([item("a", (1, 0)), item("b", (1, 0))])
    first, second = Scores("one", np.array([[1.0, 0.0]] * 2)), Scores("two", np.array([[3.0, 0.0]] * 2))

    def other_items(items: Sequence[Item], rewards: Floats, ties: Ties | None) -> Terms:
        rows = np.flatnonzero(rewards[:, 0] > 2)
        return Terms(("all",), np.zeros(len(rows), np.int64), rows, np.ones(len(rows)))

    def not_finite(items: Sequence[Item], rewards: Floats, ties: Ties | None) -> Terms:
        return Terms(("all",), np.zeros(1, np.int64), np.zeros(1, np.int64), np.array([np.nan]))

    for rule, said in ((other_items, "other items"), (not_finite, "not finite")):
        with pytest.raises(ValueError, match=said):
            official(replace(made, terms=rule, scores=OVERALL), (first, second))


def test_a_rule_may_give_its_values_in_any_order() -> None:
    made = pairwise()

    def shuffled(items: Sequence[Item], rewards: Floats, ties: Ties | None) -> Terms:
        terms = made.terms(items, rewards, ties)
        order = np.argsort(rewards[:, 0])
        return Terms(terms.names, terms.term[order], terms.item[order], terms.value[order])

    assert repr(stand(replace(made, terms=shuffled), three(made))) == repr(stand(made, three(made)))


def test_differences_and_tests_agree_with_scipy() -> None:
    made = pool(count=30)
    rm, _, poor = three(made)
    close = plain_scores(made, "close", skill=0.95, seed=4)
    found = standings(
        official(made, (rm, close, poor)), ["rm", "close", "poor"], "rm", bootstrap=Bootstrap(4000, seed=1)
    )
    mine = success(made.items, rm.reward, None)
    for scores in (close, poor):
        other = success(made.items, scores.reward, None)
        cell = found[scores.name].entries["overall"]
        expected = stats.permutation_test(
            (other, mine), lambda a, b: np.sum(a - b), permutation_type="samples", n_resamples=9999, rng=3
        ).pvalue
        assert cell.p == pytest.approx(expected, abs=0.02)
        interval = stats.bootstrap(
            (other - mine,), np.mean, method="percentile", n_resamples=4000, rng=np.random.default_rng(2)
        ).confidence_interval
        assert cell.difference is not None
        assert cell.difference.value == pytest.approx((other - mine).mean())
        width = interval.high - interval.low
        assert (cell.difference.low, cell.difference.high) == pytest.approx(tuple(interval), abs=0.08 * width)
    assert found["poor"].entries["overall"].p == pytest.approx(1e-4)


def test_the_reference_has_no_difference_and_the_others_do() -> None:
    made = pairwise()
    found = stand(made, three(made), "poor")
    for score in made.scores:
        mine = found["poor"].entries[score.name]
        assert (mine.difference, mine.p, mine.p_holm) == (None, None, None)
        for name in ("rm", "rm-refined"):
            cell = found[name].entries[score.name]
            assert cell.difference is not None
            assert cell.difference.value == pytest.approx(cell.value.value - mine.value.value)
            assert cell.difference.low <= cell.difference.value <= cell.difference.high
            assert 0 < cell.p <= cell.p_holm <= 1


def test_differences_are_paired() -> None:
    made = pairwise()
    rm = plain_scores(made, "rm")
    found = stand(made, (rm, replace(rm, name="twin")))
    twin = found["twin"].entries["overall"]
    assert twin.difference == Estimate(0, 0, 0) and twin.p == 1.0
    assert twin.value.high > twin.value.low


def test_a_smaller_level_makes_smaller_intervals() -> None:
    made = pool()
    values = official(made, (plain_scores(made, "rm"),))
    wide, narrow = (
        standings(values, ["rm"], "rm", bootstrap=Bootstrap(300, level=level))["rm"].entries["overall"].value
        for level in (0.95, 0.5)
    )
    assert wide.low < narrow.low < narrow.high < wide.high


def test_holm_has_two_families_overall_and_the_rest() -> None:
    made = pairwise(count=90, prompts=90)
    scorers = (*three(made), plain_scores(made, "more", 0.6, 7))
    found = stand(made, scorers, permutations=499)
    others = ["rm-refined", "poor", "more"]
    for kinds in (("overall",), ("section", "subset")):
        scores = [score.name for score in made.scores if score.kind in kinds]
        cells = [found[name].entries[score] for score in scores for name in others]
        assert [cell.p_holm for cell in cells] == pytest.approx(naive_holm([cell.p for cell in cells]))
    assert len({cell.p for name in others for cell in found[name].entries.values()}) > 6


def test_a_p_value_depends_on_the_two_scorers_alone() -> None:
    made = pairwise()
    rm, refined, poor = three(made)
    both = stand(made, (rm, refined))["rm-refined"].entries
    all_three = stand(made, (poor, refined, rm))["rm-refined"].entries
    assert {name: cell.p for name, cell in both.items()} == {name: cell.p for name, cell in all_three.items()}
    swapped = stand(made, (rm, refined), "rm-refined")["rm"].entries
    assert {name: cell.p for name, cell in both.items()} == {name: cell.p for name, cell in swapped.items()}
    assert both["overall"].difference.value == -swapped["overall"].difference.value


def made_values(columns: Sequence[Sequence[float]]) -> Official:
    """One score, every item its own cluster."""
    value = np.array(columns, dtype=np.float64).T
    rows = np.arange(len(value))
    return Official(OVERALL, np.ones((1, 1)), np.zeros_like(rows), rows, rows, value, value)


def sets(values: Official, names: Sequence[str]) -> tuple[list[str], list[str]]:
    found = standings(values, names, names[0], bootstrap=Bootstrap(10), permutations=999)
    best = [name for name in names if "overall" in found[name].best]
    close = [name for name in names if "overall" in found[name].not_worse]
    return best, close


ONES, ZEROS, LESS = [1.0] * 40, [0.0] * 40, [0.0] * 6 + [1.0] * 34


@pytest.mark.parametrize(
    ("columns", "best", "close"),
    [
        ([ONES, [1.0] * 38 + [0.0] * 2, ZEROS], "a", "b"),
        ([ZEROS, ONES], "b", ""),
        ([ONES], "", ""),
        ([[1.0, 0.0] * 20, [0.0, 1.0] * 20, ZEROS], "ab", ""),
        ([[np.nextafter(0.5, 1)] * 40, [0.5] * 40], "ab", ""),
        # Six items of 40 lost and none won: p = 2 / 2^6 = 0.031, twice that with two others to test.
        ([ONES, LESS], "a", ""),
        ([ONES, LESS, LESS[::-1]], "a", "bc"),
        # One that is as good as the best is one of the tests too.
        ([ONES, LESS, ONES], "ac", "b"),
        # and so is one that is far away, but step-down spends nothing on it: 0.031 <= 0.05 / 1
        ([ONES, LESS, ZEROS], "a", ""),
    ],
)
def test_the_best_and_those_not_clearly_worse_among_several(columns: list[list[float]], best: str, close: str) -> None:
    assert sets(made_values(columns), list("abc")[: len(columns)]) == (list(best), list(close))


def test_fewer_than_two_prompts_have_no_interval() -> None:
    alone = [item(name, (1, 0), "x", "alone") for name in "ab"]
    made = benchmark([*alone, *(item(f"c{n}", (1, 0), group="many") for n in range(9))])
    rm, _, poor = three(made)
    found = stand(made, (rm, poor))
    for name in ("rm", "poor"):
        cell = found[name].entries["alone"]
        assert math.isfinite(cell.value.value) and math.isnan(cell.value.low) and math.isnan(cell.value.high)
        assert math.isfinite(found[name].entries["many"].value.low)
        assert math.isfinite(found[name].entries["overall"].value.low)
    assert math.isnan(found["poor"].entries["alone"].difference.low)
    assert found["poor"].entries["alone"].p == 1.0
    values = official(made, (rm, poor))
    assert values.counts() == {"overall": (11, 10), "alone": (2, 1), "many": (9, 9)}


def test_a_score_without_items_is_no_number_and_no_test() -> None:
    made = styles(36)
    made = made.take([row for row, one in enumerate(made.items) if one.group == "chat"])
    absent = Score("absent", "subset", {"nowhere": 1.0})
    made = replace(made, scores=(*made.scores, absent))
    rm, refined, poor = three(made)
    values = official(made, (rm, refined, poor))
    assert values.counts()["code"] == values.counts()["absent"] == (0, 0)
    assert values.counts()["overall"] == values.counts()["chat"] == (12, 12)
    found = standings(values, ["rm", "rm-refined", "poor"], "rm", bootstrap=Bootstrap(50), permutations=99)
    for name in ("code", "code/hard", "absent"):
        for standing in found.values():
            cell = standing.entries[name]
            assert math.isnan(cell.value.value) and cell.p is None and cell.p_holm is None
            assert name not in standing.best and name not in standing.not_worse
    assert found["poor"].entries["overall"].value.value == pytest.approx(found["poor"].entries["chat"].value.value)
    tested = [found[who].entries[name] for name in ("chat", "hard") for who in ("rm-refined", "poor")]
    assert [cell.p_holm for cell in tested] == pytest.approx(naive_holm([cell.p for cell in tested]))


def test_estimates_are_percentiles() -> None:
    generator = np.random.default_rng(0)
    draws = generator.normal(size=(50, 3, 2))
    draws[generator.random(50) < 0.3, 1, 1] = np.nan
    draws[:, 2, 0] = np.nan
    value = generator.normal(size=(3, 2))
    found = estimates(value, draws, Bootstrap(level=0.8))
    for row in range(3):
        for column in range(2):
            expected = Bootstrap(level=0.8).estimate(value[row, column], draws[:, row, column])
            assert tuple(found[row][column].__dict__.values()) == pytest.approx(
                tuple(expected.__dict__.values()), nan_ok=True
            )


def test_gains_are_from_the_own_base_and_equal_differences_where_that_is_the_reference() -> None:
    made = pairwise()
    rm, other = plain_scores(made, "rm", seed=1), plain_scores(made, "other", skill=0.3, seed=2)
    refined = replace(plain_scores(made, "refined", skill=2.0, seed=3), base="other")

    def cell(scorers: Sequence[Scores], reference: str) -> Entry:
        bases = [one.base for one in scorers]
        names, few = [one.name for one in scorers], {"bootstrap": Bootstrap(200), "permutations": 199}
        return standings(official(made, scorers), names, reference, bases, **few)["refined"].entries["overall"]

    at_home = cell((rm, other, refined), "other")
    assert at_home.gain is not None and (at_home.gain, at_home.p_gain) == (at_home.difference, at_home.p)
    away = cell((rm, other, refined), "rm")
    assert (away.gain, away.p_gain, away.p_gain_holm) == (at_home.gain, at_home.p_gain, at_home.p_gain)
    assert away.difference == cell((rm, refined), "rm").difference != away.gain
    assert cell((rm, refined), "rm").gain is None  # its base is not there
    assert away.gain.value == pytest.approx(
        away.value.value - stand(made, (rm, other, refined))["other"].entries["overall"].value.value
    )
