"""Judgments as numbers: scores by a principle, preferences in both orders, rubrics, and yes-or-no log-odds."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ebrm.data import Prompt, Reply
from ebrm.errors import ConfigError, DataError
from ebrm.groups import Groups
from ebrm.judges.client import Judge, JudgeAnswer, JudgeRequest
from ebrm.judges.prompts import JudgePrompts, conversation_text, named
from ebrm.utils.validation import check_choice, check_setting

logger = logging.getLogger(__name__)

#: Most answers that one question shows to a judge.
_TOGETHER = 16


@dataclass(frozen=True, eq=False)
class JudgedScores:
    """A judge's scores.

    Attributes:
        score: one a response [n], float32; NaN where an answer was missing or could not be read.
        asked: questions.
        unparsable: answers that could not be read.
        failed: questions without an answer.
        bounded: for :func:`yes_no_scores`, rows of which only one side was among the tokens returned.
    """

    score: Tensor
    asked: int
    unparsable: int
    failed: int
    bounded: int = 0


@dataclass(frozen=True, eq=False)
class JudgedPairs:
    """A judge's preferences between two responses.

    Attributes:
        first: share of orders in which the first won [n], float32, 0 to 1 (a tie is half); NaN where an answer was
            missing or could not be read.
        contradictions: pairs of which the judge preferred the same place in both orders.
        asked, unparsable, failed: as :class:`JudgedScores`.
    """

    first: Tensor
    contradictions: int
    asked: int
    unparsable: int
    failed: int


@dataclass(frozen=True, eq=False)
class JudgedRubric:
    """Which requirements of a rubric responses meet, by a judge.

    Attributes:
        met: 1 or 0 for each requirement [n, items], float32; NaN where an answer was missing or could not be read, and
            past the end of a shorter rubric.
        score: share of requirements met [n], float32; NaN as above.
        asked, unparsable, failed: as :class:`JudgedScores`.
    """

    met: Tensor
    score: Tensor
    asked: int
    unparsable: int
    failed: int


def principle_scores(
    judge: Judge,
    prompts: Sequence[Prompt],
    responses: Sequence[Reply],
    principle: str | Sequence[str],
    *,
    generator: torch.Generator,
    orders: int = 2,
    low: float = 1.0,
    high: float = 5.0,
    templates: JudgePrompts | None = None,
) -> JudgedScores:
    """Scores of responses under a principle, those to one prompt side by side (RewardAnything, arXiv 2506.03637).

    Responses to equal prompts under equal principles are shown together, at most 16 at a time, under names that say
    nothing, in `orders` random orders, whose scores are averaged. A score is NaN unless every order could be read.
    (The paper's public code names the responses in one fixed order, and resets the global generator to draw it.)

    Args:
        judge: an :class:`OpenAIJudge`, or any function from requests to answers.
        prompts: one a response [n]; equal ones are grouped.
        responses: [n].
        principle: what to judge by: one for all, or one a response.
        generator: draws the orders.
        orders: in how many orders each group is judged.
        low: lowest score.
        high: highest score.
        templates: what the judge is asked.

    Raises:
        DataError: lists of other lengths. ConfigError: orders, low, high. What the judge raises.
    """
    check_setting("orders", orders, at_least=1)
    check_setting("high", high, above=low)
    templates = templates or JudgePrompts()
    principles = _each(principle, len(responses), "principles")
    texts = _conversations(prompts, responses)
    groups = Groups.of([json.dumps(pair) for pair in zip(texts, principles, strict=True)])
    rows_of: list[list[int]] = [[] for _ in range(groups.count)]
    for row, group in enumerate(groups.index.tolist()):
        if rows_of[group] and len(rows_of[group]) % _TOGETHER == 0:
            rows_of.append(rows_of[group])
            rows_of[group] = []
        rows_of[group].append(row)
    requests: list[JudgeRequest] = []
    shown: list[list[tuple[str, int]]] = []
    for rows in rows_of:
        for _ in range(orders):
            drawn = [rows[place] for place in torch.randperm(len(rows), generator=generator).tolist()]
            names = [f"Answer {number}" for number in range(1, len(drawn) + 1)]
            given = {
                "conversation": texts[drawn[0]], "answers": named(names, [responses[row] for row in drawn]),
                "principle": principles[drawn[0]], "low": _plain(low), "high": _plain(high),
            }  # fmt: skip
            question = templates.render("principle", given)
            requests.append(JudgeRequest(question, templates.render("system")))
            shown.append(list(zip(names, drawn, strict=True)))
    answers = _ask(judge, requests)
    total = torch.zeros(len(responses), dtype=torch.float64)
    unparsable = 0
    for answer, places in zip(answers, shown, strict=True):
        found = _last(answer, "scores")
        values = [_number(found.get(name), low, high) if isinstance(found, dict) else None for name, _ in places]
        unparsable += answer.text is not None and None in values
        for (_, row), value in zip(places, values, strict=True):
            total[row] += math.nan if value is None else value
    return JudgedScores((total / orders).float(), len(requests), *_counted(answers, unparsable))


def pairwise_judgments(
    judge: Judge,
    prompts: Sequence[Prompt],
    first: Sequence[Reply],
    second: Sequence[Reply],
    principle: str | Sequence[str] = "The answer helps the user most.",
    *,
    swap: bool = True,
    templates: JudgePrompts | None = None,
) -> JudgedPairs:
    """Which of two responses a judge prefers, in both orders: (1[o = A] + 1[o swapped = A]) / 2 (Rubric-ARM's average).

    A judge that always prefers one place gets 0.5, and is counted in `contradictions`. `first` is a soft label of
    `ebrm.PreferencePairs`, and its two values are what `ebrm.curate.judge_agreement` compares over judges.

    Args:
        judge: as :func:`principle_scores`.
        prompts: one a pair [n].
        first: the one response of each pair [n].
        second: the other [n].
        principle: as :func:`principle_scores`.
        swap: also ask with the responses changed round.
        templates: what the judge is asked.

    Raises:
        DataError: lists of other lengths. What the judge raises.
    """
    templates = templates or JudgePrompts()
    principles = _each(principle, len(first), "principles")
    texts = _conversations(prompts, first)
    if len(first) != len(second):
        raise DataError(f"There are {len(first)} first and {len(second)} second responses; give one of each a pair.")
    names = ("Answer 1", "Answer 2")
    requests = []
    for row, text in enumerate(texts):
        for sides in ([first[row], second[row]], [second[row], first[row]])[: 2 if swap else 1]:
            given = {"conversation": text, "answers": named(names, sides), "principle": principles[row]}
            question = templates.render("pairwise", given)
            requests.append(JudgeRequest(question, templates.render("system")))
    answers = _ask(judge, requests)
    verdicts = {names[0]: 1.0, names[1]: 0.0, "tie": 0.5}
    said = [verdicts.get(found) if isinstance(found := _last(answer, "better"), str) else None for answer in answers]
    unparsable = sum(answer.text is not None and value is None for answer, value in zip(answers, said, strict=True))
    values = torch.tensor([math.nan if value is None else value for value in said], dtype=torch.float32)
    contradictions = 0
    if swap:
        one, other = values.reshape(-1, 2).unbind(1)
        contradictions = int(((one == other) & (one != 0.5)).sum())
        values = (one + 1 - other) / 2
    return JudgedPairs(values, contradictions, len(requests), *_counted(answers, unparsable))


def rubric_scores(
    judge: Judge,
    prompts: Sequence[Prompt],
    responses: Sequence[Reply],
    rubric: Sequence[str] | Sequence[Sequence[str]],
    *,
    templates: JudgePrompts | None = None,
) -> JudgedRubric:
    """Which requirements each response meets, and the share of them (rubrics as in OpenRubrics, arXiv 2510.07743).

    Args:
        judge: as :func:`principle_scores`.
        prompts: one a response [n].
        responses: [n].
        rubric: requirements for all, or a list of them for each response.
        templates: what the judge is asked.

    Raises:
        DataError: lists of other lengths, or a rubric without requirements. What the judge raises.
    """
    templates = templates or JudgePrompts()
    texts = _conversations(prompts, responses)
    if isinstance(rubric, str):
        raise TypeError("`rubric` is a list of requirements; got a single string")
    same = [item for item in rubric if isinstance(item, str)]
    rubrics = [same] * len(responses) if len(same) == len(rubric) else [list(items) for items in rubric]
    if len(rubrics) != len(responses):
        raise DataError(f"There are {len(responses)} responses and {len(rubrics)} rubrics; give one each.")
    if not all(rubrics):
        raise DataError("A rubric has no requirements; give at least one, or leave the row out.")
    requests = [
        JudgeRequest(
            templates.render(
                "rubric", {"conversation": text, "answers": named(["Answer"], [response]), "rubric": items}
            ),
            templates.render("system"),
        )
        for text, response, items in zip(texts, responses, rubrics, strict=True)
    ]
    answers = _ask(judge, requests)
    met = torch.full((len(responses), max(map(len, rubrics), default=0)), math.nan)
    unparsable = 0
    for row, (answer, items) in enumerate(zip(answers, rubrics, strict=True)):
        found = _last(answer, "met")
        if isinstance(found, list) and len(found) == len(items) and all(isinstance(one, bool) for one in found):
            met[row, : len(items)] = torch.tensor(found, dtype=torch.float32)
        else:
            unparsable += answer.text is not None
    score = met.nanmean(1) if met.shape[1] else torch.zeros(0)
    return JudgedRubric(met, score, len(requests), *_counted(answers, unparsable))


def yes_no_scores(
    judge: Judge,
    prompts: Sequence[Prompt],
    responses: Sequence[Reply],
    principle: str | Sequence[str],
    *,
    top_logprobs: int = 20,
    templates: JudgePrompts | None = None,
) -> JudgedScores:
    """Log-odds that a response meets a principle, log P(Yes) - log P(No) of the first token (RLBFF, arXiv 2509.21319).

    Probabilities of all spellings among the tokens returned are added ("Yes", " yes", "YES"). Where only one side is
    among them, the other is at most as likely as the least likely token returned and as all that is left together, and
    the log-odds for that are given: `bounded` counts those rows, whose true log-odds are further from 0.

    Args:
        judge: as :func:`principle_scores`; it has to return log-probabilities.
        prompts: one a response [n].
        responses: [n].
        principle: as :func:`principle_scores`.
        top_logprobs: how many tokens to ask for, 2 or more; servers allow 5 to 20.
        templates: what the judge is asked.

    Raises:
        ConfigError: the judge returns no log-probabilities at all. DataError: lists of other lengths. What the judge
            raises.
    """
    check_setting("top_logprobs", top_logprobs, at_least=2)
    templates = templates or JudgePrompts()
    principles = _each(principle, len(responses), "principles")
    requests = [
        JudgeRequest(
            templates.render(
                "yes_no", {"conversation": text, "answers": named(["Answer"], [response]), "principle": one}
            ),
            templates.render("system"), top_logprobs, max_tokens=1,
        )
        for text, response, one in zip(_conversations(prompts, responses), responses, principles, strict=True)
    ]  # fmt: skip
    answers = _ask(judge, requests)
    answered = [answer for answer in answers if answer.text is not None]
    if answered and all(answer.logprobs is None for answer in answered):
        raise ConfigError(
            "The judge returned no log-probabilities, which yes-or-no log-odds are made of. Use a server that does "
            "(vLLM, SGLang), or scores by a principle."
        )
    odds, unparsable, bounded = [], 0, 0
    for answer in answers:
        value, bound = _log_odds(answer.logprobs or {})
        unparsable += answer.text is not None and math.isnan(value)
        bounded += bound
        odds.append(value)
    counts = _counted(answers, unparsable)
    return JudgedScores(torch.tensor(odds, dtype=torch.float32), len(requests), *counts, bounded)


def judge_scorer(
    judge: Judge,
    principle: str,
    *,
    how: Literal["principle", "yes_no", "rubric"] = "principle",
    seed: int = 0,
    templates: JudgePrompts | None = None,
) -> Callable[[Sequence[Prompt], Sequence[Reply]], Tensor]:
    """A judge as a scorer: a function from prompts and responses to rewards [n], NaN where it gave no judgment.

    Args:
        judge: as :func:`principle_scores`.
        principle: what to judge by; for a rubric, one requirement a line.
        how: :func:`principle_scores`, :func:`yes_no_scores`, or the share of :func:`rubric_scores`.
        seed: of the orders in which responses are shown; the same for every call.
        templates: what the judge is asked.

    Raises:
        ConfigError: how, or a principle without words.
    """
    check_choice("how", how, ("principle", "yes_no", "rubric"))
    requirements = [line.strip() for line in principle.splitlines() if line.strip()]
    if not requirements:
        raise ConfigError("`principle` is empty; say what to judge by.")

    def score(prompts: Sequence[Prompt], responses: Sequence[Reply]) -> Tensor:
        if how == "rubric":
            return rubric_scores(judge, prompts, responses, requirements, templates=templates).score
        if how == "yes_no":
            return yes_no_scores(judge, prompts, responses, principle, templates=templates).score
        generator = torch.Generator().manual_seed(seed)
        return principle_scores(judge, prompts, responses, principle, generator=generator, templates=templates).score

    return score


def _ask(judge: Judge, requests: Sequence[JudgeRequest]) -> list[JudgeAnswer]:
    answers = list(judge(requests)) if requests else []
    if len(answers) != len(requests):
        raise DataError(f"The judge gave {len(answers)} answers to {len(requests)} questions; it has to give one each.")
    return answers


def _counted(answers: Sequence[JudgeAnswer], unparsable: int) -> tuple[int, int]:
    """Unparsable and missing answers, said aloud."""
    if unparsable:
        logger.warning(
            "%d of %d answers of the judge could not be read; their scores are NaN.", unparsable, len(answers)
        )
    return int(unparsable), sum(answer.text is None for answer in answers)


def _each(value: str | Sequence[str], count: int, what: str) -> list[str]:
    values = [value] * count if isinstance(value, str) else list(value)
    if len(values) != count:
        raise DataError(f"There are {count} rows and {len(values)} {what}; give one for all, or one a row.")
    return values


def _conversations(prompts: Sequence[Prompt], responses: Sequence[Reply]) -> list[str]:
    if isinstance(prompts, str) or isinstance(responses, str):
        raise TypeError("prompts and responses are lists, one entry a row; got a single string")
    if len(prompts) != len(responses):
        raise DataError(f"There are {len(prompts)} prompts and {len(responses)} responses; give one of each a row.")
    return [conversation_text(prompt) for prompt in prompts]


def _last(answer: JudgeAnswer, key: str) -> Any:
    """The value of `key` in the last JSON object of an answer that has it; None where there is none."""
    found = None
    for value in _objects(answer.text or ""):
        found = value.get(key, found)
    return found


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """The JSON objects in a text, outermost ones."""
    decoder, place = json.JSONDecoder(), text.find("{")
    while place >= 0:
        try:
            value, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            end = place + 1
        else:
            if isinstance(value, dict):
                yield value
        place = text.find("{", end)


def _number(value: Any, low: float, high: float) -> float | None:
    fits = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
    return float(value) if fits else None


def _plain(value: float) -> str:
    return f"{value:g}"


def _log_odds(logprobs: Mapping[str, float]) -> tuple[float, bool]:
    """Log-odds of yes over no among the first token's alternatives, and whether they are a bound."""
    sides: dict[str, list[float]] = {"yes": [], "no": []}
    for token, value in logprobs.items():
        # Byte-level tokenizers write a space as Ġ or ▁.
        word = token.strip().lstrip("Ġ▁").strip().lower()
        if word in sides and value > -math.inf:
            sides[word].append(value)
    yes, no = (_log_sum(sides[side]) for side in ("yes", "no"))
    if yes is not None and no is not None:
        return yes - no, False
    if yes is None and no is None:
        return math.nan, False
    left = math.log(max(1 - math.exp(min(0.0, _log_sum(list(logprobs.values())) or 0.0)), 1e-12))
    least = min(left, min(value for value in logprobs.values() if value > -math.inf))
    known = yes if yes is not None else no
    assert known is not None
    bound = max(0.0, known - least)
    return (bound if yes is not None else -bound), True


def _log_sum(values: Sequence[float]) -> float | None:
    if not values:
        return None
    most = max(values)
    return most + math.log(sum(math.exp(value - most) for value in values))
