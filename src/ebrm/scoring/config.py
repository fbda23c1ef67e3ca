"""Configuration of scoring a file, and of what scores it where that is no reward model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

from ebrm.data import parse_label_map
from ebrm.errors import ConfigError

BadRows = Literal["stop", "mark"]


@dataclass(frozen=True)
class ScoreConfig:
    """Scoring of a file: its columns, rows that cannot be scored, names of the columns added.

    Attributes:
        columns: Where a column has another name in the data: our name = its name (response=answer). Our names:
            prompt, system, tools, response, responses, messages, chosen, rejected, a, b, label.
        label_map: What the values of a label say, as for `PreferenceConfig` (1=a, 0=b).
        bad_rows: Rows that cannot be scored (not text, too long): `stop` and list them, or `mark` them with
            empty rewards and the reason in the column `error`.
        prefix: Put before the names of the added columns, where the data has such names already.
        overwrite: Replace an output that is there already.
        restart: Discard unfinished work on this output, which another run left, and begin anew.

    Raises:
        ConfigError: a value that is none of those above.
    """

    columns: dict[str, str] = field(default_factory=dict)
    label_map: dict[str, str] = field(default_factory=dict)
    bad_rows: BadRows = "stop"
    prefix: str = ""
    overwrite: bool = False
    restart: bool = False

    def __post_init__(self) -> None:
        parse_label_map(self.label_map)
        if self.bad_rows not in get_args(BadRows):
            raise ConfigError(f"bad_rows is {self.bad_rows!r}; it must be one of {', '.join(get_args(BadRows))}.")


@dataclass(frozen=True, kw_only=True)
class ScorerConfig:
    """What scores responses and is no reward model of ours; each kind has its settings."""

    kind: ClassVar[str] = ""


@dataclass(frozen=True, kw_only=True)
class PolicyScorer(ScorerConfig):
    """A reward from log-probabilities of a language model.

    Attributes:
        policy: The language model whose log-probabilities are read: a folder, a Hub name, or the URL of a vLLM or
            SGLang server that has it.
        policy_tokenizer: Folder or Hub name of a policy behind a URL, of which the tokenizer alone is read.
        closing: Whether the tokens that close the response's turn count as the response's.
    """

    policy: str
    policy_tokenizer: str | None = None
    closing: bool = True


@dataclass(frozen=True, kw_only=True)
class SelfAlignedScorer(PolicyScorer):
    """Self-aligned reward: by how much the prompt lowers the response's perplexity (`ebrm.logprobs.self_aligned`).

    Attributes:
        clip: The lowest reward is minus this.
    """

    kind: ClassVar[str] = "sar"
    clip: float = 1.0


@dataclass(frozen=True, kw_only=True)
class ImplicitScorer(PolicyScorer):
    """Implicit reward of a policy trained by DPO (`ebrm.logprobs.implicit_reward`).

    Attributes:
        weak: The language model that the policy was trained from, named like it.
        weak_tokenizer: Its tokenizer where it is behind a URL.
        beta: Factor of the difference of log-likelihoods, above 0.
    """

    kind: ClassVar[str] = "implicit"
    weak: str
    weak_tokenizer: str | None = None
    beta: float = 0.1


@dataclass(frozen=True, kw_only=True)
class DensityRatioScorer(PolicyScorer):
    """Log density ratio of a better aligned language model over another (`ebrm.logprobs.log_density_ratio`).

    Attributes:
        weak: The less aligned language model, named like the policy.
        weak_tokenizer: Its tokenizer where it is behind a URL.
        reduction: Log-probabilities of the tokens: `sum`, or `mean`, which takes the number of tokens out.
        beta: Factor of the ratio.
    """

    kind: ClassVar[str] = "density-ratio"
    weak: str
    weak_tokenizer: str | None = None
    reduction: Literal["sum", "mean"]
    beta: float = 1.0


@dataclass(frozen=True, kw_only=True)
class EndogenousScorer(PolicyScorer):
    """Endogenous reward, summed over the response's tokens (`ebrm.logprobs.endogenous_reward`).

    Attributes:
        alpha: Temperature of the softmax, above 0.
    """

    kind: ClassVar[str] = "endogenous"
    alpha: float = 1.0


@dataclass(frozen=True, kw_only=True)
class FollowupScorer(PolicyScorer):
    """How much likelier a pleased than a displeased follow-up of the user is (`ebrm.logprobs.followup_likelihood`).

    Attributes:
        dimensions: What follow-ups are about: understanding, relevance, correctness, engagingness, informativeness,
            following. Unset: all of them.
    """

    kind: ClassVar[str] = "followup"
    dimensions: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class BleuScorer(ScorerConfig):
    """Smoothed sentence BLEU against the references of a row (`ebrm.references.smoothed_bleu`).

    Attributes:
        reference: The column with a row's reference text, or a list of them.
        bleu_tokenizer: How texts become words: mteval's `13a` (extra `references`), or at white space.
    """

    kind: ClassVar[str] = "bleu"
    reference: str
    bleu_tokenizer: Literal["13a", "whitespace"] = "13a"


@dataclass(frozen=True, kw_only=True)
class MaxSimilarityScorer(ScorerConfig):
    """Bidirectional maximal similarity to a reference of the tokens' input embeddings (`ebrm.references`).

    Attributes:
        reference: The column with a row's reference text; of a list of them the nearest counts.
        embedder: The reward model whose table of input embeddings is read: a folder, a Hub name, or `demo`.
        combine: How both directions become one number: their `mean`, or `f1` as in BERTScore.
    """

    kind: ClassVar[str] = "max-similarity"
    reference: str
    embedder: str
    combine: Literal["mean", "f1"] = "mean"


@dataclass(frozen=True, kw_only=True)
class OTScorer(ScorerConfig):
    """Minus the cost of moving the reference's tokens onto the response's (`ebrm.references.ot_alignment`).

    Attributes:
        reference: The column with a row's reference text; of a list of them the nearest counts.
        embedder: The reward model whose table of input embeddings is read: a folder, a Hub name, or `demo`.
        regularization: Entropic regularization, above 0, in units of cost (0 to 2).
        mass: Share of mass that the marginals ask for, above 0 and at most 1.
    """

    kind: ClassVar[str] = "ot"
    reference: str
    embedder: str
    regularization: float = 0.05
    mass: float = 0.9


@dataclass(frozen=True, kw_only=True)
class RelevanceScorer(ScorerConfig):
    """Relevance to the prompt times an incentive for length and a price of repetition (`relevance_reward`).

    Attributes:
        encoder: The sentence encoder: a folder or Hub name for sentence-transformers (extra `references`).
        reference: A column with reference texts: rows that have one are compared with it instead of the prompt, and
            length counts for nothing there. Unset: none.
    """

    kind: ClassVar[str] = "relevance"
    encoder: str
    reference: str | None = None


@dataclass(frozen=True, kw_only=True)
class JudgeScorer(ScorerConfig):
    """A score by a principle, of a judge behind an OpenAI-compatible API (`ebrm.judges.principle_scores`).

    Attributes:
        url: Address of the judge's API up to its version, such as http://127.0.0.1:8000/v1. A key is read from the
            variable EBRM_JUDGE_TOKEN.
        model: The judge's name there.
        principle: What to judge by, or @ and a file that holds it. For a rubric, one requirement a line.
        cache: Folder to keep answers in, so that no question is asked twice. Unset: none are kept.
        concurrency: Most requests at a time.
        tries: Most tries of a question.
        timeout: Seconds for one try.
        price: Price of a million tokens read and of a million written, as 0.1,0.4. Unset: costs are not counted.
        seed: Seed of the orders in which responses are shown.
    """

    kind: ClassVar[str] = "judge"
    url: str
    model: str
    principle: str
    cache: str | None = None
    concurrency: int = 8
    tries: int = 4
    timeout: float = 120.0
    price: tuple[float, float] | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class YesNoScorer(JudgeScorer):
    """Log-odds of Yes over No that the principle is met (`ebrm.judges.yes_no_scores`)."""

    kind: ClassVar[str] = "yes-no"


@dataclass(frozen=True, kw_only=True)
class RubricScorer(JudgeScorer):
    """Share of the principle's lines, one requirement each, that are met (`ebrm.judges.rubric_scores`)."""

    kind: ClassVar[str] = "rubric"


#: Scorers by the name of their kind.
SCORERS: dict[str, type[ScorerConfig]] = {
    config.kind: config
    for config in (
        SelfAlignedScorer, ImplicitScorer, DensityRatioScorer, EndogenousScorer, FollowupScorer, BleuScorer,
        MaxSimilarityScorer, OTScorer, RelevanceScorer, JudgeScorer, YesNoScorer, RubricScorer,
    )
}  # fmt: skip
