from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from tests.evaluation.suites import all_kinds, best_of, pairwise, plain_scores, pool, three

from ebrm.benchmarks import Benchmark
from ebrm.errors import ConfigError, DataError
from ebrm.evaluation import BenchmarkResult, Evaluation, ScoredBenchmark, Scores, compare, evaluate_scores
from ebrm.metrics import Bootstrap, holm


def of_all(seed: int = 0) -> Evaluation:
    scored = [ScoredBenchmark(made, three(made)) for made in all_kinds()]
    return evaluate_scores(scored, "rm", bootstrap=Bootstrap(100, seed=seed), permutations=199)


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


def test_the_seed_decides_and_the_order_of_items_does_not() -> None:
    made = pool(count=30)
    scorers = three(made)
    there = compare(made, scorers, "rm", bootstrap=Bootstrap(100, seed=4), permutations=199)
    assert repr(compare(made, scorers, "rm", bootstrap=Bootstrap(100, seed=4), permutations=199)) == repr(there)
    order = np.random.default_rng(0).permutation(30)
    turned = compare(
        made.take(order), [one.take(order) for one in scorers], "rm", bootstrap=Bootstrap(100, seed=4), permutations=199
    )
    assert repr(turned) == repr(there)
    assert repr(compare(made, scorers, "rm", bootstrap=Bootstrap(100, seed=5), permutations=199)) != repr(there)


def test_pairs_are_drawn_with_the_seed() -> None:
    made = pool(count=10, responses=9)
    rm = plain_scores(made, "rm")
    first, second = (
        compare(made, [rm], "rm", bootstrap=Bootstrap(100, seed=seed), permutations=199).scorers["rm"].margins
        for seed in (0, 1)
    )
    assert len(first) == len(second) == 90 and first.tolist() != second.tolist()


def test_an_items_pairs_do_not_depend_on_other_items() -> None:
    made = pool(count=10, responses=9)
    rm = plain_scores(made, "rm")
    whole = compare(made, [rm], "rm", permutations=199).scorers["rm"].margins
    part = compare(made.take([3, 7]), [rm.take(np.array([3, 7]))], "rm", permutations=199).scorers["rm"].margins
    np.testing.assert_array_equal(part, np.concatenate([whole[27:36], whole[63:72]]))


def overall(results: Evaluation | Mapping[str, BenchmarkResult]) -> list[tuple[float, float]]:
    benchmarks = results.benchmarks if isinstance(results, Evaluation) else results.values()
    cells = [result.scorers[name].entries["overall"] for result in benchmarks for name in ("rm-refined", "poor")]
    return [(cell.p, cell.p_holm) for cell in cells if cell.p is not None and cell.p_holm is not None]


def test_overall_scores_are_one_family_over_all_benchmarks() -> None:
    evaluation = of_all()
    found = overall(evaluation)
    assert len(found) == 8
    assert [p_holm for _, p_holm in found] == pytest.approx(holm([p for p, _ in found]))
    alone = {
        made.name: compare(made, three(made), "rm", bootstrap=Bootstrap(100), permutations=199) for made in all_kinds()
    }
    assert [p for p, _ in overall(alone)] == [p for p, _ in found]
    assert [p for _, p in overall(alone)] != [p for _, p in found]
    for result in evaluation.benchmarks:
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
    direct = compare(
        made,
        three(made),
        "poor",
        bootstrap=Bootstrap(100, level=0.9, seed=3),
        excluded={"not sampled": 7},
        permutations=199,
    )
    assert repr(result) == repr(direct)


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
    made = pairwise()
    scorers = three(made)
    with pytest.raises(ConfigError, match="'nobody' is not among .* rm, rm-refined, poor"):
        compare(made, scorers, "nobody", permutations=199)
    with pytest.raises(ConfigError, match="no benchmark"):
        evaluate_scores([], "rm")
    with pytest.raises(ConfigError, match="same name: pairs"):
        evaluate_scores([ScoredBenchmark(made, scorers), ScoredBenchmark(made, scorers)], "rm", permutations=199)
    other = best_of()
    with pytest.raises(ValueError, match="best-of was scored by"):
        evaluate_scores(
            [ScoredBenchmark(made, scorers), ScoredBenchmark(other, three(other)[:2])], "rm", permutations=199
        )
    with pytest.raises(ValueError, match="was scored by"):
        evaluate_scores(
            [ScoredBenchmark(made, scorers), ScoredBenchmark(other, three(other)[::-1])], "rm", permutations=199
        )
    nothing = Scores("rm", np.full((len(made), 2), np.nan))
    with pytest.raises(DataError, match="Pairs: there is no item"):
        evaluate_scores([ScoredBenchmark(made, (nothing, *scorers[1:]))], "rm", permutations=199)


def test_gains_over_the_own_base_are_corrected_over_all_benchmarks() -> None:
    found = of_all()
    cells = [result.scorers["rm-refined"].entries["overall"] for result in found.benchmarks]
    expected = holm([cell.p_gain for cell in cells])
    assert [cell.p_gain_holm for cell in cells] == pytest.approx(expected)
    assert any(cell.p_gain_holm != cell.p_gain for cell in cells)
    assert all(
        result.scorers[name].entries["overall"].gain is None for result in found.benchmarks for name in ("rm", "poor")
    )
