"""Scorers that are no reward models of ours: log-probabilities, reference texts and judges as functions of texts."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ebrm.backbone import BackboneConfig, load_backbone
from ebrm.data import Prompt, Reply, TextConfig, message_words
from ebrm.errors import ConfigError
from ebrm.judges import JudgeUsage, OpenAIJudge, conversation_text, judge_scorer
from ebrm.logprobs import (
    FOLLOWUPS,
    CausalLogprobs,
    ServerLogprobs,
    TokenLogprobs,
    endogenous_reward,
    followup_likelihood,
    implicit_reward,
    log_density_ratio,
    self_aligned,
)
from ebrm.references import (
    TokenEmbedder,
    max_similarity,
    ot_alignment,
    relevance_reward,
    sentence_embedder,
    smoothed_bleu,
    token_embedder,
)
from ebrm.scoring.config import (
    BleuScorer,
    DensityRatioScorer,
    EndogenousScorer,
    FollowupScorer,
    ImplicitScorer,
    JudgeScorer,
    MaxSimilarityScorer,
    OTScorer,
    PolicyScorer,
    RelevanceScorer,
    ScorerConfig,
    SelfAlignedScorer,
)
from ebrm.utils.outputs import contents

#: Texts [n], and their rows' references ([] where there is none), to rewards [n]; NaN where there is none.
Scoring = Callable[[Sequence[Prompt], Sequence[Reply], Sequence[Sequence[str]]], Tensor]

# What changes no number of a judge.
_FREE = ("cache", "concurrency", "tries", "timeout", "price")


@dataclass(frozen=True)
class TextScorer:
    """A function that scores responses, and what says that two runs have the same one.

    Attributes:
        score: from prompts [n], responses [n] and the references of their rows [n][r] to rewards [n], NaN for none.
        name: what it is called.
        settings: all that decides its numbers, as JSON values: a file scored in part goes on only with the same.
        reference: the column with a row's reference text, or a list of them; None: references are all empty.
        needs_reference: whether a row without a reference cannot be scored.
        reads: what it reads of files, by what people call it, so that none is overwritten.
        usage: what a judge was asked; None for all others.
    """

    score: Scoring
    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    reference: str | None = None
    needs_reference: bool = True
    reads: Mapping[str, str | None] = field(default_factory=dict)
    usage: JudgeUsage | None = None


def text_scorer(
    config: ScorerConfig, *, backbone: Mapping[str, Any] | None = None, text: TextConfig | None = None
) -> TextScorer:
    """The scorer of a configuration. Models are loaded when the first text is scored.

    Args:
        config: one of `SCORERS`.
        backbone: fields of `BackboneConfig` by which a policy or an embedder is loaded (device, dtype, …).
        text: how texts become token ids; unset: the defaults.

    Raises:
        ConfigError: settings that contradict each other.
    """
    how = dict(backbone or {})
    settings = {name: value for name, value in vars(config).items() if name not in _FREE}
    reads: dict[str, str | None] = {}
    for name in ("policy", "policy_tokenizer", "weak", "weak_tokenizer", "embedder", "encoder"):
        if (given := settings.get(name)) is not None:
            reads[f"`{name}`"] = given
            settings[name] = contents(given, Path(given).absolute() / "-", whole=False)
    if not isinstance(config, JudgeScorer | BleuScorer):
        settings["reading"] = {**how, **(vars(text) if text is not None else {})}
    usage = None
    if isinstance(config, PolicyScorer):
        score = _of_policy(config, how, text)
    elif isinstance(config, JudgeScorer):
        judge = _judge(config)
        score, usage = _of_judge(judge, config), judge.usage
    else:
        score = _of_references(config, how)
    reference = getattr(config, "reference", None)
    needed = reference is not None and not isinstance(config, RelevanceScorer)
    return TextScorer(score, config.kind, settings, reference, needed, reads, usage)


# ---- log-probabilities --------------------------------------------------------------------------------------------


def _source(name: str, tokenizer: str | None, config: PolicyScorer, field: str, how: Any, text: Any) -> Any:
    if not name.startswith(("http://", "https://")):
        if tokenizer is not None:
            raise ConfigError(f"`{field}_tokenizer` goes with a URL; a model by name is read with its own tokenizer.")
        return CausalLogprobs(BackboneConfig(name, **how), text=text, closing=config.closing)
    if tokenizer is None:
        raise ConfigError(
            f"{field} is a URL, which gives no tokenizer: name the folder or Hub name of the model that is served as "
            f"`{field}_tokenizer`."
        )
    return ServerLogprobs(name, tokenizer, text, closing=config.closing)


def _of_policy(config: PolicyScorer, how: Mapping[str, Any], text: TextConfig | None) -> Scoring:
    policy = functools.cache(lambda: _source(config.policy, config.policy_tokenizer, config, "policy", how, text))

    def read(prompts: Any, responses: Any, **more: Any) -> TokenLogprobs:
        found: TokenLogprobs = policy()(prompts, responses, **more)
        return found

    def score(prompts: Sequence[Prompt], responses: Sequence[Reply], _: Any) -> Tensor:
        if isinstance(config, SelfAlignedScorer):
            alone = read(prompts, responses, unconditional=True)
            return self_aligned(read(prompts, responses), alone, config.clip)
        if isinstance(config, EndogenousScorer):
            return endogenous_reward(read(prompts, responses, log_z=True, temperature=config.alpha), config.alpha).sum(
                1
            )
        if isinstance(config, FollowupScorer):
            return _followups(policy(), prompts, responses, config.dimensions)
        assert isinstance(config, ImplicitScorer | DensityRatioScorer)
        strong, weak = read(prompts, responses), other()(prompts, responses)
        if isinstance(config, ImplicitScorer):
            return implicit_reward(strong.sum(), weak.sum(), config.beta)
        return log_density_ratio(strong, weak, reduction=config.reduction, beta=config.beta)

    if isinstance(config, ImplicitScorer | DensityRatioScorer):
        weak, tokenizer = config.weak, config.weak_tokenizer
        other = functools.cache(lambda: _source(weak, tokenizer, config, "weak", how, text))
    if isinstance(config, FollowupScorer) and (unknown := sorted({*config.dimensions} - {*FOLLOWUPS})):
        raise ConfigError(f"dimensions has {unknown[0]}; there are {', '.join(FOLLOWUPS)}.")
    return score


def _followups(source: Any, prompts: Any, responses: Any, dimensions: Sequence[str]) -> Tensor:
    wanted = list(dimensions) or list(FOLLOWUPS)
    tables: dict[str, Tensor] = {}
    names: dict[str, list[str]] = {}
    for side in ("positive", "negative"):
        said = [(name, line) for name in wanted for line in getattr(FOLLOWUPS[name], side)]
        tables[side] = torch.stack([source.followup(prompts, responses, line).mean() for _, line in said], 1)
        names[side] = [name for name, _ in said]
    return followup_likelihood(tables["positive"], tables["negative"], names["positive"], names["negative"], wanted)


# ---- judges -------------------------------------------------------------------------------------------------------


def _judge(config: JudgeScorer) -> OpenAIJudge:
    known = {each.name for each in dataclasses.fields(OpenAIJudge)} - {"seed"}
    return OpenAIJudge(**{name: value for name, value in vars(config).items() if name in known})


def _of_judge(judge: OpenAIJudge, config: JudgeScorer) -> Scoring:
    how: Any = {"judge": "principle", "yes-no": "yes_no", "rubric": "rubric"}[config.kind]
    ask = judge_scorer(judge, config.principle, how=how, seed=config.seed)
    return lambda prompts, responses, _: ask(prompts, responses)


# ---- references ---------------------------------------------------------------------------------------------------


def _of_references(config: ScorerConfig, how: Mapping[str, Any]) -> Scoring:
    if isinstance(config, BleuScorer):
        tokenizer = config.bleu_tokenizer
        return lambda _, responses, references: smoothed_bleu(
            [message_words(one) for one in responses], references, tokenizer=tokenizer
        )
    if isinstance(config, RelevanceScorer):
        return _relevance(config)
    assert isinstance(config, MaxSimilarityScorer | OTScorer)
    embed = functools.cache(lambda: token_embedder(load_backbone(BackboneConfig(config.embedder, **how))))

    def score(_: Any, responses: Sequence[Reply], references: Sequence[Sequence[str]]) -> Tensor:
        found = [
            max(_likeness(config, embed(), message_words(response), known) for known in of_row)
            for response, of_row in zip(responses, references, strict=True)
        ]
        return torch.tensor(found)

    return score


def _likeness(config: MaxSimilarityScorer | OTScorer, embed: TokenEmbedder, response: str, reference: str) -> float:
    rows, mask = embed([response, reference])
    one, other = rows[0][mask[0]], rows[1][mask[1]]
    if isinstance(config, OTScorer):
        return ot_alignment(other, one, regularization=config.regularization, mass=config.mass).reward
    return float(max_similarity(one[None], other[None], combine=config.combine))


def _relevance(config: RelevanceScorer) -> Scoring:
    embed = functools.cache(lambda: sentence_embedder(config.encoder))

    def score(prompts: Sequence[Prompt], responses: Sequence[Reply], references: Sequence[Sequence[str]]) -> Tensor:
        texts = [message_words(one) for one in responses]
        asked, answered = embed()([conversation_text(one) for one in prompts]), embed()(texts)
        if not any(references):
            return relevance_reward(texts, answered, asked).reward
        known = embed()([" ".join(of_row) for of_row in references])
        return relevance_reward(texts, answered, asked, known, torch.tensor([bool(one) for one in references])).reward

    return score
