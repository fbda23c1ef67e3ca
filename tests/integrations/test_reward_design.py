"""Reward designs: known numbers of every composition, rows without a reward, and what is refused."""

from __future__ import annotations

import itertools
import json
import logging
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.integrations.policies import LONG, prompts, save_policy

from ebrm.errors import ConfigError, DataError, TextError
from ebrm.integrations import (
    BaseAndBonus,
    Gated,
    LengthPenalty,
    LogSigmoidCentered,
    PreferenceAsReward,
    ProcessReward,
    ReferenceRewards,
    RewardDesign,
    Rollouts,
    VerifiableOrModel,
    WeightedSum,
    reward_function,
)
from ebrm.judges import JudgeAnswer, judge_scorer
from ebrm.logprobs import TokenLogprobs
from ebrm.model import EnergyRewardModel
from ebrm.references import smoothed_bleu

ASKED = ["Hi", "Hi", "Ho", "Ho"]
SAID = ["a", "bb", "ccc", "dddd"]


def size(prompts: Any, responses: Any) -> list[float]:
    """A reward that can be counted by hand: the response's letters."""
    return [float(len(response)) for response in responses]


def column(values: list[Any]) -> Any:
    """A source that gives these rewards, one for each of `SAID`."""
    return lambda prompts, responses: [values[SAID.index(response)] for response in responses]


def summed(*names: str) -> WeightedSum:
    return WeightedSum(dict.fromkeys(names, 1.0))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def call(function: Any, prompts: Any = ASKED, completions: Any = SAID, **given: Any) -> list[Any]:
    ids = [[1] * len(completion) for completion in completions]
    return function(prompts=prompts, completions=completions, **{"completion_ids": ids, **given})


class TestShapes:
    @pytest.mark.parametrize(
        ("references", "want"),
        [
            # Rewards are 1, 2, 3, 4; references are texts, or their rewards.
            (["xx", "xx", "x", "x"], [sigmoid(-1), 0.5, sigmoid(2), sigmoid(3)]),
            ([2, 2.0, 1, np.float64(1)], [sigmoid(-1), 0.5, sigmoid(2), sigmoid(3)]),
            ([["x", "xxx"]] * 4, [(0.5 + sigmoid(-2)) / 2, (sigmoid(1) + sigmoid(-1)) / 2,
                                  (sigmoid(2) + 0.5) / 2, (sigmoid(3) + sigmoid(1)) / 2]),
            ([["x"], None, [], ["x", "xx"]], [0.5, None, None, (sigmoid(3) + sigmoid(2)) / 2]),
            ([[{"role": "assistant", "content": "xx"}]] * 4, [sigmoid(-1), 0.5, sigmoid(1), sigmoid(2)]),
        ],
    )  # fmt: skip
    def test_preference_as_reward_is_the_mean_probability_of_beating_a_reference(
        self, references: list[Any], want: list[Any]
    ) -> None:
        function = reward_function(size, shape=PreferenceAsReward(), reference="ref")
        got = call(function, ref=references)
        assert [value is None for value in got] == [value is None for value in want]
        assert [v for v in got if v is not None] == pytest.approx([v for v in want if v is not None], abs=1e-12)

    def test_references_of_a_model_are_its_own_scores(self, refined: EnergyRewardModel) -> None:
        talk = [{"role": "user", "content": "Hi"}]
        answer = [{"role": "assistant", "content": "Yes"}]
        function = reward_function(refined, shape=PreferenceAsReward(slope=2.0), reference="ref")
        got = call(function, [talk, "Hi"], [answer, "Yes"], ref=[["No", answer], "No"])
        yes, no = refined.score("Hi", ["Yes", "No"]).reward.double().tolist()
        against = sigmoid(2 * (yes - no))
        assert got == pytest.approx([(against + 0.5) / 2, against], abs=1e-5)

    def test_references_are_scored_once_for_each_prompt(self) -> None:
        seen: list[list[str]] = []

        def counted(prompts: Any, responses: Any) -> list[float]:
            seen.append(list(responses))
            return size(prompts, responses)

        call(reward_function(counted, shape=PreferenceAsReward(), reference="ref"), ref=[["x", "yy"]] * 2 + ["x"] * 2)
        assert seen == [SAID, ["x", "yy", "x"]]

    def test_log_sigmoid_is_centered_on_a_level_or_a_quantile_of_references(self) -> None:
        got = call(reward_function(size, shape=LogSigmoidCentered(level=2.0)))
        assert got == pytest.approx([math.log(sigmoid(x)) for x in (-1, 0, 1, 2)])
        shaped = reward_function(size, shape=LogSigmoidCentered(quantile=0.5), reference="ref")
        got = call(shaped, ref=[[1.0, 3.0], [2.0], [0.0, 1.0, 5.0], [4.0]])  # medians 2, 2, 1, 4
        assert got == pytest.approx([math.log(sigmoid(x)) for x in (-1, 0, 2, 0)])

    def test_a_length_price_comes_before_the_shapes_after_it(self) -> None:
        price = LengthPenalty(free=2, rate=0.5)
        assert call(reward_function(size, shape=price)) == [1, 2, 2.5, 3]  # 0.5 for every token beyond two
        both = reward_function(size, shape=[price, PreferenceAsReward()], reference="ref")
        assert call(both, ref=[2.0] * 4) == pytest.approx([sigmoid(x) for x in (-1, 0, 0.5, 1)])
        words = reward_function(size, shape=LengthPenalty(free=1, rate=1.0, unit="words"))
        assert call(words, ["Hi"], ["a b c"], completion_ids=[[1]]) == [5 - 2]

    def test_process_clip_and_delta_of_lists_of_steps(self) -> None:
        steps = column([[0.2, 0.8, 0.5], None, [0.9, 0.1], []])
        clipped = reward_function(steps, shape=ProcessReward(threshold=0.6, delta=False))
        assert call(clipped) == [pytest.approx(-0.5), None, -0.5, 0.0]  # -0.4 - 0.1, and -0.5; none above 0
        # Differences telescope: the last step is left out, and a response keeps its first score.
        assert call(reward_function(steps, shape=ProcessReward())) == [pytest.approx(0.2), None, 0.9, 0.0]
        both = call(reward_function(steps, shape=ProcessReward(threshold=0.6)))
        assert both == [pytest.approx(-0.4), None, 0.0, 0.0]

    def test_a_shape_of_ones_own_sees_groups_lengths_and_columns(self) -> None:
        talks = [[{"role": "user", "content": text, "tool_calls": None}] for text in ASKED]

        def shape(reward: torch.Tensor, rollouts: Rollouts) -> torch.Tensor:
            return rollouts.groups.centered(reward) + rollouts.lengths() + torch.tensor(rollouts.columns["extra"])

        got = call(reward_function(size, shape=shape), talks, extra=[10.0, 20.0, 30.0, 40.0])
        assert got == [-0.5 + 1 + 10, 0.5 + 2 + 20, -0.5 + 3 + 30, 0.5 + 4 + 40]

    def test_a_file_of_reference_rewards(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        rows = [
            {"prompt": "Hi", "response": "x", "reward": 2.0},
            {"prompt": [{"role": "user", "content": "Hi"}], "response": "y", "reward": None},
            {"prompt": [{"role": "user", "content": "Ho"}], "responses": ["x", "y"], "reward": [1.0, 3.0]},
        ]
        path = tmp_path / "references.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        with caplog.at_level(logging.WARNING):
            references = ReferenceRewards.read(path)
        assert "1 references have no reward" in caplog.text
        function = reward_function(size, shape=PreferenceAsReward(), reference=references)
        talk = [{"role": "user", "content": "Hi"}]
        got = call(function, ["Hi", talk, "Ho", "He"])
        assert got[3] is None and got[:3] == pytest.approx([sigmoid(-1), 0.5, (sigmoid(2) + 0.5) / 2])
        assert "Its prompt is not in" in caplog.text

    @pytest.mark.parametrize(
        ("row", "said"),
        [
            ({"prompt": "Hi", "score": 1}, "has no column 'reward'; it has prompt, score"),
            ({"prompt": "Hi", "reward": "good"}, "reward is 'good'; a number or a list of numbers"),
            ({"prompt": "Hi", "reward": None}, "has no reward in its column 'reward'"),
        ],
    )
    def test_a_file_of_something_else(self, row: dict[str, Any], said: str, tmp_path: Path) -> None:
        (tmp_path / "r.jsonl").write_text(json.dumps(row) + "\n")
        with pytest.raises(DataError, match=said):
            ReferenceRewards.read(tmp_path / "r.jsonl")


class TestAggregates:
    @pytest.mark.parametrize(
        ("aggregate", "want"),
        [
            (WeightedSum({"x": 2.0, "y": -1.0}), [2 - 0.5, 0 - 1.0, 1 - 0.25, 2.0]),
            (BaseAndBonus("x", "y"), [0.75, 0.0, 0.5 * 1.25 / 2, 0.5]),
            (BaseAndBonus("x", "y", (0.6, 0.4)), [0.8, 0.0, 0.5 * 0.7, 0.6]),
            (Gated(("x",), ("y",), how="min"), [0.5, 0.0, 0.125, 0.0]),
            (Gated(("x",), ("y",)), [0.5, 0.1 / 1.1, 0.25 * 0.6 / 1.1, 0.0]),  # gate (s + 0.1) / 1.1
            (lambda parts, rollouts: parts["x"] * parts["y"], [0.5, 0.0, 0.125, 0.0]),
        ],
    )
    def test_known_numbers(self, aggregate: Any, want: list[float]) -> None:
        sources = {"x": column([1.0, 0.0, 0.5, True]), "y": column([0.5, 1.0, 0.25, 0.0])}
        assert call(reward_function(sources, aggregate=aggregate)) == pytest.approx(want, abs=1e-12)

    def test_a_check_where_there_is_one_and_a_model_elsewhere(self) -> None:
        sources = {"check": column([1.0, None, 0.0, None]), "model": column([None, 0.25, 0.5, None])}
        by_value = reward_function(sources, aggregate=VerifiableOrModel("check", "model"))
        assert call(by_value) == [1.0, 0.25, 0.0, None]
        by_column = reward_function(sources, aggregate=VerifiableOrModel("check", "model", verifiable="sure"))
        assert call(by_column, sure=[True, True, False, False]) == [1.0, None, 0.5, None]
        with pytest.raises(ConfigError, match="The column 'sure' holds 1; true or false"):
            call(by_column, sure=[True, 1, False, False])

    def test_a_base_without_a_bonus_is_paid_in_full(self) -> None:
        sources = {"x": column([1.0, 1.0, 0.5, None]), "y": column([0.5, None, None, 1.0])}
        function = reward_function(sources, aggregate=BaseAndBonus("x", "y", has_bonus="judged"))
        assert call(function, judged=[True, False, True, False]) == [0.75, 1.0, None, None]

    def test_the_order_of_rows_does_not_matter(self) -> None:
        shape = {"x": lambda reward, rollouts: rollouts.groups.centered(reward), "y": PreferenceAsReward()}
        function = reward_function({"x": size, "y": size}, shape=shape, reference="ref", aggregate=summed("x", "y"))
        ref = [["z"], ["zz", "z"], ["z"], ["zzz"]]
        want = call(function, ref=ref)
        for order in itertools.permutations(range(4)):
            got = call(function, *([row[i] for i in order] for row in (ASKED, SAID)), ref=[ref[i] for i in order])
            assert got == pytest.approx([want[i] for i in order], abs=1e-12)

    def test_a_row_that_any_part_leaves_out_has_none_and_is_counted(self, caplog: pytest.LogCaptureFixture) -> None:
        metrics: dict[str, float] = {}
        columns: dict[str, list[Any]] = {}
        sources = {"x": column([1.0, None, 0.5, 0.5]), "y": column([0.5, 1.0, math.nan, 0.0])}
        twice = {"y": lambda reward, rollouts: reward * 2}
        function = reward_function(sources, aggregate=summed("x", "y"), shape=twice, name="r")
        with caplog.at_level(logging.WARNING):
            got = call(function, log_metric=metrics.__setitem__, log_extra=columns.__setitem__)
        assert got == [2.0, None, None, 0.5]
        assert metrics == {
            "r/unusable": 0.5, "r/x/unusable": 0.25, "r/y/unusable": 0.25,
            "r/x/reward": pytest.approx(2 / 3), "r/y/reward": 1.0, "r/y/unshaped": 0.5,
        }  # fmt: skip
        assert columns == {
            "r/x/reward": [1.0, None, 0.5, 0.5], "r/y/reward": [1.0, 2.0, None, 0.0],
            "r/y/unshaped": [0.5, 1.0, None, 0.0],
        }  # fmt: skip
        (said,) = [record.getMessage() for record in caplog.records]
        assert "row 1 of this call has no reward (None): x: The source 'x' gave no reward." in said

    def test_a_models_parts_are_logged_under_its_name(self, refined: EnergyRewardModel) -> None:
        metrics: dict[str, float] = {}
        function = reward_function(
            {"rm": refined, "size": size}, aggregate=WeightedSum({"rm": 1.0, "size": 0.1}), name="r"
        )
        got = call(function, ["Hi", "Hi"], ["Yes", "No"], log_metric=metrics.__setitem__)
        found = refined.score("Hi", ["Yes", "No"])
        assert got == pytest.approx([float(found.reward[0]) + 0.3, float(found.reward[1]) + 0.2], abs=1e-5)
        assert metrics["r/rm/base_reward"] == pytest.approx(float(found.base_reward.mean()), abs=1e-5)
        assert {"r/rm/std", "r/rm/beyond_std", "r/rm/reward", "r/size/reward"} < metrics.keys()


class TestSources:
    def test_functions_get_prompts_responses_and_the_columns_they_name(self) -> None:
        seen: list[Any] = []

        def check(prompts: Any, responses: Any, answer: Any, weight: Any = None, *, absent: Any = 3) -> list[float]:
            seen.append((prompts, responses, answer, weight, absent))
            return [1.0 if said == known else 0.0 for said, known in zip(responses, answer, strict=True)]

        talk = [{"role": "user", "content": "Hi"}]
        turns = [{"role": "assistant", "content": "Wait."}, {"role": "user", "content": "?"},
                 {"role": "assistant", "content": "4"}]  # fmt: skip
        rows = ["Hi", talk, "Hi"], ["3", turns, [{"role": "user", "content": "no answer"}]]
        given = {"answer": ["4", "4", "4"], "weight": [1, 2, 3], "topic": ["t"] * 3}
        assert call(reward_function(check), *rows, **given) == [0.0, 1.0, None]
        assert seen == [(["Hi", talk + turns[:2]], ["3", "4"], ["4", "4"], [1, 2], 3)]
        everything = reward_function(lambda prompts, responses, **columns: [len(columns)] * len(prompts))
        assert call(everything, ["Hi"], ["3"], answer=["4"], topic=["t"], trainer_state=None) == [2.0]

    def test_a_text_that_a_function_cannot_read_has_no_reward_and_the_others_do(self) -> None:
        def strict(prompts: Any, responses: Any) -> list[float]:
            for row, response in enumerate(responses):
                if len(response) > 3:
                    raise TextError(f"Text {row} has {len(response)} letters.")
            return [float(len(responses))] * len(responses)

        assert call(reward_function(strict)) == [3.0, 3.0, 3.0, None]
        assert call(reward_function(strict), ["Hi"], ["four"]) == [None]

    def test_a_judge_sees_the_responses_to_one_conversation_side_by_side(self) -> None:
        asked: list[Any] = []

        def judge(requests: Any) -> list[JudgeAnswer]:
            asked.extend(requests)
            found = [re.findall(r'<answer name="([^"]+)">\n(.*?)\n</answer>', one.prompt) for one in requests]
            said = [{"scores": {name: len(text) for name, text in one}} for one in found]
            texts = [
                "no idea" if "Ho" in one.prompt else json.dumps(scores)
                for one, scores in zip(requests, said, strict=True)
            ]
            return [JudgeAnswer(text) for text in texts]

        talks = [[{"role": "user", "content": text}] for text in ASKED]
        answers = [[{"role": "assistant", "content": text}] for text in SAID]
        function = reward_function(
            {"judge": judge_scorer(judge, "It is long."), "size": size}, aggregate=summed("judge", "size")
        )
        assert call(function, talks, answers) == [2.0, 4.0, None, None]  # what could not be read is no 0
        assert len(asked) == 4  # two conversations, each in two orders

    def test_a_comparison_with_the_text_in_a_column(self) -> None:
        function = reward_function(lambda p, r, answer: smoothed_bleu(r, answer, tokenizer="whitespace"))
        texts = ["a b c d e", "a b c d e", "x"]
        got = call(function, ["Hi"] * 3, texts, answer=["a b c d e", ["a b", "a b c d e"], "a b c d e"])
        assert got[:2] == [1.0, 1.0] and 0 < got[2] < 0.1

    def test_log_probabilities_of_a_language_model(self) -> None:
        def logprobs(prompts: Any, responses: Any) -> Any:
            logp = torch.tensor([[-1.0 * len(one), -2.0] for one in responses])
            return TokenLogprobs(logp, torch.tensor([[len(one) > 0] * 2 for one in responses]))

        function = reward_function(lambda p, r: logprobs(p, r).mean())
        assert call(function) == [-1.5, -2.0, -2.5, -3.0]
        assert call(function, completions=["a", "", "ccc", "dddd"]) == [-1.5, None, -2.5, -3.0]  # no token, no mean
        with pytest.raises(DataError, match="The source gave TokenLogprobs; a list, array or tensor of rewards"):
            call(reward_function(logprobs))

    def test_a_missing_column_names_those_that_there_are(self) -> None:
        with pytest.raises(ConfigError, match="The source needs the column 'answer', and .* 'a', 'topic'. Name one"):
            call(reward_function(lambda p, r, answer: [1.0] * len(p)), topic=["t"] * 4, a=["t"] * 4)
        with pytest.raises(ConfigError, match="`reference` needs the column 'ref', and .* none beside the prompts"):
            call(reward_function(size, shape=PreferenceAsReward(), reference="ref"))

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ([1.0], "gave 1 rewards to 4 responses"),
            ("good", "gave str; a list, array or tensor"),
            ([1.0, "2", 3.0, 4.0], "gave row 1 the reward '2'"),
            ([1.0, 2.0, math.inf, 4.0], "gave row 2 the reward inf"),
            ([1.0, [1.0], 3.0, 4.0], "lists of steps to some rows and numbers to others"),
        ],
    )
    def test_rewards_that_are_none(self, given: Any, said: str) -> None:
        with pytest.raises(DataError, match=said):
            call(reward_function(lambda prompts, responses: given))

    @pytest.mark.parametrize(
        "made", [torch.tensor, np.array, tuple, lambda values: [np.float32(one) for one in values]]
    )
    def test_tensors_arrays_and_numpy_numbers_are_rewards(self, made: Any) -> None:
        function = reward_function(
            lambda prompts, responses: made([1, 2, 3, 4]), shape=lambda reward, rollouts: reward / 2
        )
        assert call(function) == [0.5, 1.0, 1.5, 2.0]

    def test_no_rows_call_nothing_and_give_nothing(self) -> None:
        def never(*_: Any) -> Any:
            raise AssertionError

        metrics: dict[str, float] = {}
        function = reward_function(
            {"a": never, "b": never},
            shape={"a": PreferenceAsReward()},
            reference="ref",
            aggregate=BaseAndBonus("a", "b"),
        )
        assert call(function, [], [], ref=[], log_metric=metrics.__setitem__) == []
        assert metrics == {"ebrm/unusable": 0, "ebrm/a/unusable": 0, "ebrm/b/unusable": 0}

    def test_rewards_that_an_aggregate_does_not_take_name_it(self) -> None:
        function = reward_function({"a": size, "b": size}, aggregate=BaseAndBonus("a", "b"))
        with pytest.raises(DataError, match=r"The aggregate, BaseAndBonus: .*base score \[n\].* out of range"):
            call(function)
        with pytest.raises(DataError, match=r"The shape of 'reward', wide, gave \(1,\) rewards to 4 responses"):
            call(reward_function(size, shape=wide))


def wide(reward: Any, rollouts: Rollouts) -> torch.Tensor:
    return torch.zeros(1)


async def later(prompts: Any, responses: Any) -> list[float]:
    return [1.0]


TWO = {"a": size, "b": size}
SUM = summed("a", "b")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"source": TWO}, "2 sources and no `aggregate`. Say how 'a', 'b' become one"),
        ({"source": {}}, r"`source` has the names \[\]"),
        ({"source": TWO, "aggregate": WeightedSum({"a": 1.0})}, "takes 'a', and .* 'a', 'b': 'b' is in only"),
        ({"source": TWO, "aggregate": BaseAndBonus("a", "c")}, "'c' is in only one of them"),
        ({"source": TWO, "aggregate": WeightedSum}, "`aggregate` is .*; an aggregate or a function was expected"),
        ({"source": TWO, "aggregate": SUM, "shape": LengthPenalty()}, "one for several sources. Give shapes by name"),
        ({"source": TWO, "aggregate": SUM, "shape": {"c": LengthPenalty()}}, "`shape` has 'c'; the sources are 'a'"),
        ({"source": size, "shape": {"a": LengthPenalty()}}, "`shape` has names, and `source` is a single one"),
        ({"source": size, "shape": PreferenceAsReward}, "`shape` has <class"),
        ({"source": size, "shape": PreferenceAsReward()}, "is against references, and `reference` names none"),
        ({"source": size, "reference": "ref"}, "no shape is against references"),
        ({"source": size, "shape": PreferenceAsReward(), "reference": 5}, "`reference` is 5; expected a column's name"),
        ({"source": size, "mode": "mode"}, "`mode` is 'mode', and no source is a model"),
        ({"source": size, "backbone": "x"}, "`backbone` is 'x', and no source is a model"),
        ({"source": later}, "The source is an async function"),
        ({"source": lambda texts: texts}, "The source takes texts. A function of prompts and responses was expected"),
        (
            {"source": TWO, "aggregate": SUM, "shape": {"a": PreferenceAsReward(), "b": PreferenceAsReward()},
             "reference": ReferenceRewards({})},
            "`reference` holds rewards of one source",
        ),
        ({"source": RewardDesign(size), "shape": LengthPenalty()}, "`source` is a whole RewardDesign"),
    ],
)  # fmt: skip
def test_designs_that_do_not_fit_together(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        reward_function(**given)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: PreferenceAsReward(slope=0.0), "`slope` is 0.0"),
        (lambda: PreferenceAsReward(squash="step"), "`squash` is 'step'"),  # type: ignore[arg-type]
        (lambda: LogSigmoidCentered(quantile=1.0), "`quantile` is 1.0"),
        (lambda: LogSigmoidCentered(level=math.nan), "`level` is nan"),
        (lambda: LengthPenalty(rate=-1.0), "`rate` is -1.0"),
        (lambda: LengthPenalty(unit="lines"), "`unit` is 'lines'"),  # type: ignore[arg-type]
        (lambda: ProcessReward(threshold=math.inf), "`threshold` is inf"),
        (lambda: WeightedSum({}), "weights for no attribute"),
        (lambda: Gated((), ("a",)), r"`requirements` is \(\)"),
        (lambda: Gated(("b",), "a"), "`objectives` is 'a'; a tuple of names"),  # type: ignore[arg-type]
        (lambda: Gated(("b",), ("a",), weights=(1.0, 2.0)), "`weights` has 2 numbers for 1 `objectives`"),
        (lambda: Gated(("b",), ("a",), smoothing=0.0), "`smoothing` is 0.0"),
        (lambda: BaseAndBonus("a", "b", (0.0, 1.0)), "above 0"),
    ],
)
def test_wrong_settings_show_when_they_are_made(make: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make()


def test_what_shows_at_the_first_call() -> None:
    with pytest.raises(ConfigError, match="gives scores of steps. Give it a shape"):
        call(reward_function(column([[1.0]] * 4)))
    with pytest.raises(ConfigError, match="takes scores of steps, and 'reward' gives one reward a response"):
        call(reward_function(size, shape=ProcessReward()))
    with pytest.raises(ConfigError, match='does not say how many tokens .* `unit="words"`'):
        call(reward_function(size, shape=LengthPenalty()), completion_ids=None)
    shapes = {"a": PreferenceAsReward(), "b": PreferenceAsReward()}
    with pytest.raises(ConfigError, match="The column 'ref' holds numbers, and several sources"):
        call(reward_function(TWO, shape=shapes, aggregate=SUM, reference="ref"), ref=[1.0] * 4)


# transformers 5.23 says that its own arguments, which TRL 1.16 sets, will have other names.
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*deprecated:FutureWarning")
def test_a_policy_trains_on_a_composite_of_a_check_and_a_shaped_model(
    refined: EnergyRewardModel, tmp_path: Path
) -> None:
    from trl import GRPOConfig, GRPOTrainer

    def even(prompts: Any, responses: Any, topic: Any) -> list[float]:
        return [float(len(response) % 2 == 0) for response in responses]

    function = reward_function(
        {"even": even, "rm": refined}, shape={"rm": PreferenceAsReward()}, reference="ref",
        aggregate=BaseAndBonus("even", "rm"), name="r",
    )  # fmt: skip
    arguments = GRPOConfig(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=8, num_generations=2, seed=1,
        max_completion_length=6, logging_steps=1, use_cpu=True, report_to="none", save_strategy="no", bf16=False,
        disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    data = prompts("conversational").add_column("ref", [["Hi.", "Ho."]] * 4)
    run = GRPOTrainer(
        model=save_policy(tmp_path / "policy"), reward_funcs=function, args=arguments, train_dataset=data
    )  # fmt: skip
    run.train()
    asked, said = list(run._logs["prompt"]), [answer[0]["content"] for answer in run._logs["completion"]]
    usable = [LONG not in str(prompt) for prompt in asked]
    got = list(run._logs["rewards"]["r"])
    assert [math.isnan(reward) for reward in got] == [not use for use in usable]
    for prompt, answer, reward, use in zip(asked, said, got, usable, strict=True):
        if use:
            mine, *others = refined.score(prompt, [answer, "Hi.", "Ho."]).reward.double().tolist()
            bonus = sum(sigmoid(mine - other) for other in others) / 2
            assert reward == pytest.approx((len(answer) % 2 == 0) * (1 + bonus) / 2, abs=1e-5)
    log = run.state.log_history[-2]
    assert log["step"] == 2 and log["r/unusable"] == log["r/rm/unusable"] == 0.25 and 0 < log["r/rm/reward"] < 1
