"""Judgments become numbers; what cannot be read is NaN and counted, never 0."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Sequence

import pytest
import torch

from ebrm import PreferencePairs
from ebrm.curate import judge_agreement
from ebrm.errors import ConfigError, DataError
from ebrm.judges import (
    JudgeAnswer,
    JudgePrompts,
    JudgeRequest,
    conversation_text,
    evidence_filter,
    judge_scorer,
    pairwise_judgments,
    principle_scores,
    rubric_scores,
    yes_no_scores,
)

ANSWER = re.compile(r'<answer name="([^"]+)">\n(.*?)\n</answer>', re.S)


class Told:
    """A judge that answers by a function of the answers it is shown."""

    def __init__(self, say: Callable[[dict[str, str]], str]) -> None:
        self.say = say
        self.requests: list[JudgeRequest] = []

    def __call__(self, requests: Sequence[JudgeRequest]) -> list[JudgeAnswer]:
        self.requests += requests
        return [JudgeAnswer(self.say(dict(ANSWER.findall(request.prompt)))) for request in requests]


def drawn() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def lengths(answers: dict[str, str]) -> str:
    return "Let me think {hard}. " + json.dumps({"scores": {name: min(5, len(text)) for name, text in answers.items()}})


def test_responses_to_one_prompt_are_scored_side_by_side_and_come_back_in_their_rows() -> None:
    judge = Told(lengths)
    prompts, responses = ["p", "q", "p", "p"], ["a", "bb", "ccc", "dddd"]
    found = principle_scores(judge, prompts, responses, "long", generator=drawn())
    assert found.score.tolist() == [1, 2, 3, 4]
    assert (found.asked, found.unparsable, found.failed) == (4, 0, 0)
    assert [len(ANSWER.findall(request.prompt)) for request in judge.requests] == [3, 3, 1, 1]
    assert all("Criterion: long" in request.prompt and "from 1 " in request.prompt for request in judge.requests)
    many = principle_scores(Told(lengths), ["p"] * 40, ["ab"] * 40, "long", generator=drawn(), orders=1)
    assert many.asked == 3 and many.score.tolist() == [2.0] * 40


def test_a_judge_that_looks_at_the_place_is_averaged_over_orders_that_the_generator_draws() -> None:
    place = Told(lambda answers: json.dumps({"scores": {name: i + 1 for i, name in enumerate(answers)}}))
    found = principle_scores(place, ["p"] * 3, ["a", "b", "c"], "x", generator=drawn(), orders=400)
    assert found.score.tolist() == pytest.approx([2, 2, 2], abs=0.15)
    state = torch.random.get_rng_state()
    one, same = (principle_scores(place, ["p"] * 3, ["a", "b", "c"], "x", generator=drawn()) for _ in range(2))
    assert torch.equal(one.score, same.score) and torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    "text",
    ["", "no idea", '{"scores": [1, 2]}', '{"scores": {"Answer 1": 3}}', '{"scores": {"Answer 1": "3", "Answer 2": 4}}',
     '{"scores": {"Answer 1": true, "Answer 2": 4}}', '{"scores": {"Answer 1": 6, "Answer 2": 4}}', "{" * 3000,
     '{"scores": {"Answer 1": NaN, "Answer 2": 4}}'],
)  # fmt: skip
def test_scores_that_cannot_be_read_are_nan_and_counted(text: str, caplog: pytest.LogCaptureFixture) -> None:
    found = principle_scores(Told(lambda answers: text), ["p", "p"], ["a", "b"], "x", generator=drawn(), orders=1)
    assert found.unparsable == 1 and found.failed == 0
    assert bool(found.score.isnan().any()) and 0 not in found.score.tolist()
    assert "1 of 1 answers of the judge could not be read; their scores are NaN" in caplog.text


def test_a_missing_answer_is_nan_and_not_counted_as_unreadable() -> None:
    found = principle_scores(lambda requests: [JudgeAnswer(None, error="late")] * len(requests), ["p"], ["a"], "x",
                             generator=drawn())  # fmt: skip
    assert math.isnan(found.score.item()) and (found.unparsable, found.failed) == (0, 2)


def test_preferences_are_asked_for_in_both_orders() -> None:
    by_length = Told(lambda answers: json.dumps({"better": max(answers, key=lambda name: len(answers[name]))}))
    found = pairwise_judgments(by_length, ["p"] * 2, ["aaa", "b"], ["b", "aaa"])
    assert found.first.tolist() == [1, 0] and found.contradictions == 0 and found.asked == 4
    by_place = Told(lambda answers: json.dumps({"better": "Answer 1"}))
    found = pairwise_judgments(by_place, ["p"] * 2, ["aaa", "b"], ["b", "aaa"])
    assert found.first.tolist() == [0.5, 0.5] and found.contradictions == 2
    assert pairwise_judgments(by_place, ["p"], ["a"], ["b"], swap=False).first.tolist() == [1]
    tie = Told(lambda answers: '{"better": "tie"}')
    assert pairwise_judgments(tie, ["p"], ["a"], ["b"]).first.tolist() == [0.5]
    unreadable = pairwise_judgments(Told(lambda answers: '{"better": 1}'), ["p"], ["a"], ["b"])
    assert math.isnan(unreadable.first.item()) and unreadable.unparsable == 2


def test_judgments_feed_the_agreement_filter() -> None:
    by_length = Told(lambda answers: json.dumps({"better": max(answers, key=lambda name: len(answers[name]))}))
    by_place = Told(lambda answers: '{"better": "Answer 2"}')
    sides = [
        torch.stack([found.first, 1 - found.first], dim=1)
        for found in (
            pairwise_judgments(by_length, ["p", "q"], ["a", "bbb"], ["bb", "b"]),
            pairwise_judgments(by_place, ["p", "q"], ["a", "bbb"], ["bb", "b"], swap=False),
        )
    ]
    pairs, report = judge_agreement(PreferencePairs.of([0, 2], [1, 3]), torch.stack(sides))
    assert (pairs.chosen.tolist(), pairs.rejected.tolist()) == ([1], [0])  # of the other pair they think otherwise


def test_rubrics_are_shares_of_requirements_met() -> None:
    judge = Told(lambda answers: json.dumps({"met": ["a" in answers["Answer"], "b" in answers["Answer"]]}))
    found = rubric_scores(judge, ["p"] * 3, ["ab", "a", ""], ["has a", "has b"])
    assert found.met.tolist() == [[1, 1], [1, 0], [0, 0]] and found.score.tolist() == [1, 0.5, 0]
    assert "1. has a\n2. has b" in judge.requests[0].prompt
    own = rubric_scores(judge, ["p"] * 2, ["ab", "a"], [["one", "two"], ["three"]])
    assert own.score[0] == 1 and math.isnan(own.score[1]) and own.unparsable == 1  # two verdicts on one requirement
    with pytest.raises(DataError, match="no requirements"):
        rubric_scores(judge, ["p"], ["a"], [[]])
    with pytest.raises(TypeError, match="list of requirements"):
        rubric_scores(judge, ["p"], ["a"], "has a")


def probable(logprobs: dict[str, float] | None) -> Callable[[Sequence[JudgeRequest]], list[JudgeAnswer]]:
    return lambda requests: [JudgeAnswer("Yes", logprobs)] * len(requests)


def test_yes_or_no_is_a_difference_of_log_probabilities() -> None:
    p = {"Yes": math.log(0.8), "No": math.log(0.2)}
    assert yes_no_scores(probable(p), ["p"], ["a"], "x").score.item() == pytest.approx(math.log(4), abs=1e-6)
    swapped = {"No": p["Yes"], "Yes": p["No"]}
    assert yes_no_scores(probable(swapped), ["p"], ["a"], "x").score.item() == pytest.approx(-math.log(4), abs=1e-6)
    spelled = {"Yes": math.log(0.3), " yes": math.log(0.3), "▁YES": math.log(0.2), "Ġno": math.log(0.1), "Maybe": -2.4}
    assert yes_no_scores(probable(spelled), ["p"], ["a"], "x").score.item() == pytest.approx(math.log(8), abs=1e-5)


def test_where_one_side_is_not_among_the_tokens_the_log_odds_are_a_bound() -> None:
    found = yes_no_scores(probable({"Yes": math.log(0.9), "Sure": math.log(0.04)}), ["p"], ["a"], "x")
    assert found.bounded == 1 and found.score.item() == pytest.approx(math.log(0.9 / 0.04), abs=1e-5)
    found = yes_no_scores(probable({"No": math.log(0.9), "So": math.log(0.099)}), ["p"], ["a"], "x")
    assert found.score.item() == pytest.approx(-math.log(0.9 / 0.001), abs=1e-3)  # 0.001 are left
    neither = yes_no_scores(probable({"Sure": -0.1}), ["p"], ["a"], "x")
    assert math.isnan(neither.score.item()) and neither.unparsable == 1
    with pytest.raises(ConfigError, match="returned no log-probabilities"):
        yes_no_scores(probable(None), ["p"], ["a"], "x")


def test_a_judge_is_a_scorer() -> None:
    scorer = judge_scorer(Told(lengths), "be long")
    assert scorer(["p", "p"], ["a", "bbb"]).tolist() == [1, 3]
    met = judge_scorer(Told(lambda answers: '{"met": [true, false]}'), "one\n\n two ", how="rubric")
    assert met(["p"], ["a"]).tolist() == [0.5]
    assert judge_scorer(probable({"Yes": -1.0, "No": -2.0}), "x", how="yes_no")(["p"], ["a"]).tolist() == [1]
    assert scorer([], []).shape == (0,)
    with pytest.raises(ConfigError, match="`principle` is empty"):
        judge_scorer(Told(lengths), " \n")
    with pytest.raises(ConfigError, match="`how`"):
        judge_scorer(Told(lengths), "x", how="vote")  # type: ignore[arg-type]


def test_texts_are_values_and_no_templates() -> None:
    judge = Told(lengths)
    messages = [{"role": "user", "content": "{{ principle }}"}, {"role": "assistant", "content": "{% x %}"},
                {"role": "user", "content": "go on"}]  # fmt: skip
    principle_scores(judge, [messages], ["{{ 7 * 7 }}"], "{{ low }}", generator=drawn(), orders=1)
    prompt = judge.requests[0].prompt
    assert "user: {{ principle }}\n\nassistant: {% x %}\n\nuser: go on" in prompt and "{{ 7 * 7 }}" in prompt
    assert conversation_text("plain") == "plain"
    tool = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}
    offered = conversation_text({"messages": [{"role": "user", "content": "go"}], "tools": [tool]})
    assert offered.startswith('tools: [{"type": "function"') and offered.endswith("\n\ngo") and "look_up" in offered
    own = JudgePrompts(principle='{{ answers | length }} {{ conversation }} {"scores": {}}', system="")
    principle_scores(judge, ["p"], ["a"], "x", generator=drawn(), orders=1, templates=own)
    assert judge.requests[-1] == JudgeRequest('1 p {"scores": {}}')
    with pytest.raises(ConfigError, match="`pairwise` uses score; it has answers, conversation, principle"):
        JudgePrompts(pairwise="{{ score }}")
    with pytest.raises(ConfigError, match="`system` is not a Jinja template"):
        JudgePrompts(system="{% if %}")


def test_lists_are_of_one_length() -> None:
    judge = Told(lengths)
    with pytest.raises(DataError, match="1 prompts and 2 responses"):
        principle_scores(judge, ["p"], ["a", "b"], "x", generator=drawn())
    with pytest.raises(DataError, match="2 rows and 1 principles"):
        principle_scores(judge, ["p", "p"], ["a", "b"], ["x"], generator=drawn())
    with pytest.raises(DataError, match="1 first and 2 second"):
        pairwise_judgments(judge, ["p"], ["a"], ["a", "b"])
    with pytest.raises(TypeError, match="single string"):
        yes_no_scores(judge, "p", ["a"], "x")
    with pytest.raises(DataError, match="0 answers to 1 questions"):
        yes_no_scores(lambda requests: [], ["p"], ["a"], "x")


def test_cited_spans_have_to_be_in_the_feedback(monkeypatch: pytest.MonkeyPatch) -> None:
    feedback = ["The answer is too long and repeats itself."] * 4
    spans = ["too long", "too lang", "a great example", ""]
    assert evidence_filter(spans, feedback).tolist() == [True, True, False, False]
    assert evidence_filter(spans, feedback, threshold=99).tolist() == [True, False, False, False]
    assert evidence_filter([], []).shape == (0,)
    with pytest.raises(DataError, match="1 spans and feedback for 0"):
        evidence_filter(["a"], [])
    monkeypatch.setitem(sys.modules, "rapidfuzz.fuzz", None)
    with pytest.raises(ConfigError, match="needs RapidFuzz"):
        evidence_filter(["a"], ["a"])
