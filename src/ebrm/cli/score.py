"""`ebrm score MODEL IN --out OUT`: refined rewards for every row of a file; `--scorer`: those of something else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from cyclopts import Parameter

from ebrm.backbone import BackboneConfig
from ebrm.cli.console import Console
from ebrm.cli.parser import Chosen, Command, Part, key_of
from ebrm.cli.values import read
from ebrm.data import TextConfig
from ebrm.errors import ConfigError
from ebrm.heads import InferenceConfig
from ebrm.scoring import SCORERS, JudgeScorer, MaxSimilarityScorer, OTScorer, PolicyScorer, ScoreConfig


@dataclass(frozen=True)
class Output:
    """Where scored rows go.

    Attributes:
        out: File to write: .jsonl, .parquet or .csv. Rows come out in the order they came in.
    """

    out: str


@dataclass(frozen=True)
class ScorerChoice:
    """What scores in place of a model of ours.

    Attributes:
        scorer: What scores in place of MODEL. From log-probabilities of a policy: sar, implicit, density-ratio,
            endogenous, followup. By reference texts: bleu, max-similarity, ot, relevance. A judge: judge, yes-no,
            rubric. Each has options of its own: `ebrm score --scorer NAME --help`.
    """

    scorer: Literal[
        "sar", "implicit", "density-ratio", "endogenous", "followup", "bleu", "max-similarity", "ot", "relevance",
        "judge", "yes-no", "rubric",
    ] | None = None  # fmt: skip


def score(
    console: Console,
    chosen: Chosen,
    model: Annotated[
        str, Parameter(name="MODEL", help="Folder that `ebrm fit` wrote, or a Hub name. With --scorer there is none.")
    ],
    source: Annotated[
        str | None,
        Parameter(
            name="IN",
            help="Rows to score (.jsonl, .json, .csv, .tsv, .parquet): prompt and response, or prompt and a list of "
            "responses, or messages that end in the assistant's, or preference pairs. Or a features folder, which "
            "needs no reward model.",
        ),
    ] = None,
) -> None:
    """Score a file: every row comes out with its refined reward, base reward and uncertainty.

    The rows keep their columns and order. A run that is stopped, by Ctrl-C or by force, goes on where it was when
    the same command is given again, and ends with the same bytes. Settings of inference and of the reward model
    that are not given are those the model was saved with. `ebrm score IN --scorer NAME --out OUT` scores by something
    else than a model of `ebrm fit`: a language model's log-probabilities, reference texts, or a judge.
    """
    if (scorer := chosen.of(ScorerChoice).scorer) is not None:
        if source is not None:
            raise ConfigError(
                f"{model} and {source} are given; with --scorer there is no MODEL, and IN is the only argument."
            )
        _score_with(console, chosen, scorer, model)
        return
    if source is None:
        raise ConfigError(
            "IN is needed: ebrm score MODEL IN --out OUT. Without a MODEL, name what scores: ebrm score IN --scorer "
            "NAME --out OUT."
        )
    from ebrm.metrics import FEW
    from ebrm.model import EnergyRewardModel
    from ebrm.scoring import file_kind, score_file

    config, out = chosen.of(ScoreConfig), chosen.of(Output).out
    file_kind(Path(out))
    loaded = EnergyRewardModel.from_pretrained(model).with_inference(**chosen.given(InferenceConfig))

    how = chosen.given(BackboneConfig) | chosen.given(TextConfig)
    found = score_file(loaded, source, out, config, backbone=how, on_progress=_kept(console))
    _note_counts(console, found, config.prefix)
    facts = [("rows", f"{found['rows']:,}, {found['scored']:,} scored"), ("prompts fitted on", fitted_words(found))]
    if found.get("truncated"):
        facts.append(("prompts cut", f"in {found['truncated']:,} rows (column {config.prefix}truncated: tokens)"))
    for name, words in (("", ""), ("training_", "training rows: ")):
        if found.get(f"{name}mean_reward") is not None:
            facts += [
                (
                    f"{words}mean reward",
                    f"{found[f'{name}mean_reward']:.4g} (base {found[f'{name}mean_base_reward']:.4g})",
                ),
                (f"{words}mean std", f"{found[f'{name}mean_std']:.4g}"),
                (f"{words}mean change", f"{found[f'{name}mean_abs_delta']:.4g} up or down"),
            ]
        if found.get(f"{name}accuracy") is not None:
            share = f"{found[f'{name}accuracy']:.1%} (base {found[f'{name}base_accuracy']:.1%})"
            pairs = found[f"{name}pairs"]
            share += f" of {pairs:,} pairs{', too few to tell' if pairs < FEW else ''}"
            facts.append((f"{words}chosen first", f"{share}, which says nothing of others" if name else share))
    console.facts([*facts, ("written", out)])
    console.result({"out": out, **found})


def _kept(console: Console) -> Any:
    def scored(done: int, rows: int) -> None:
        if done:
            console.kept = "The rows scored so far are kept; run the same command again to go on."

    return scored


def _note_counts(console: Console, found: Mapping[str, Any], prefix: str) -> None:
    if found["errors"]:
        console.note(
            f"{found['errors']:,} of {found['rows']:,} rows could not be scored; the reason stands in their column "
            f"{prefix}error."
        )
    if found["empty"]:
        console.note(f"{found['empty']:,} responses are empty; they are scored like any other.")


def _score_with(console: Console, chosen: Chosen, kind: str, source: str) -> None:
    """Score by something that is no model of ours."""
    from ebrm.metrics import FEW
    from ebrm.report import count
    from ebrm.scoring import file_kind, score_file_with, text_scorer

    config, out = chosen.of(ScoreConfig), chosen.of(Output).out
    file_kind(Path(out))
    what = chosen.of(SCORERS[kind])
    if isinstance(what, JudgeScorer):
        what = replace(what, principle=_principle(what.principle))
    given = chosen.given(TextConfig)
    text = TextConfig(**given) if given else None
    scorer = text_scorer(what, backbone=chosen.given(BackboneConfig), text=text)
    found = score_file_with(scorer, source, out, config, on_progress=_kept(console))
    _note_counts(console, found, config.prefix)
    facts: list[tuple[str, Any]] = [("scorer", kind), ("rows", f"{found['rows']:,}, {found['scored']:,} scored")]
    if found["unscored"]:
        facts.append(("without a score", f"{count(found['unscored'], 'row')} whose texts are fine"))
    if found["mean_reward"] is not None:
        facts.append(("mean reward", f"{found['mean_reward']:.4g}"))
    if found.get("accuracy") is not None:
        few = ", too few to tell" if found["pairs"] < FEW else ""
        facts.append(("chosen first", f"{found['accuracy']:.1%} of {found['pairs']:,} pairs{few}"))
    usage = None if scorer.usage is None else dict(vars(scorer.usage))
    if usage is not None:
        cost = "" if usage["cost"] is None else f"; cost {usage['cost']:.4g}"
        facts.append((
            "judge", f"{usage['requests']:,} questions, {usage['cached']:,} known before, {usage['failed']:,} without "
            f"an answer; {usage['prompt_tokens']:,} tokens read, {usage['completion_tokens']:,} written{cost}",
        ))  # fmt: skip
    console.facts([*facts, ("written", out)])
    console.result({"out": out, "scorer": kind, **found} | ({} if usage is None else {"judge": usage}))


def _principle(given: str) -> str:
    """The text itself, or that of the file behind an @."""
    if not given.startswith("@"):
        return given
    try:
        return Path(given[1:]).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise ConfigError(f"--principle is {given}, and there is no file {given[1:]}.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"--principle is {given}, which is not UTF-8 text (byte {error.start}).") from None


def fitted_words(found: dict[str, Any]) -> str:
    """How many rows have prompts that the model was fitted on."""
    count = found["fitted_on"]
    if count is None:
        return "not known (the model does not say, or the rows' prompts have no ids to compare)"
    return f"those of {count:,} of {found['rows']:,} rows" if count else "none of them"


# What a stored model leaves open: where and how fast its reward model runs, and where to find it.
_RUNNING = (
    "backbone",
    "revision",
    "base",
    "device",
    "dtype",
    "attention",
    "trust_remote_code",
    "token_budget",
    "server",
)
# Where and how a policy or an embedder runs.
_LOADING = ("device", "dtype", "attention", "trust_remote_code", "token_budget")


def _parts(choice: Mapping[str, Any]) -> dict[str, Part]:
    """The options under a choice of a scorer, or of none."""
    known = get_type_hints(ScorerChoice)["scorer"]
    name = None if choice.get("scorer") is None else read(choice["scorer"], known, "--scorer")
    shared = {"output": Part(Output), "scorer": Part(ScorerChoice), "scoring": Part(ScoreConfig)}
    if name is None:
        return shared | {
            "inference": Part(InferenceConfig, saved=True),
            "text": Part(TextConfig, ("truncation", "rendered"), saved=True),
            "reward_model": Part(BackboneConfig, _RUNNING, saved=True),
        }
    config = SCORERS[name]
    parts = shared | {config.kind.replace("-", "_"): Part(config)}
    if issubclass(config, PolicyScorer):
        parts |= {"text": Part(TextConfig), "model": Part(BackboneConfig, _LOADING)}
    elif issubclass(config, MaxSimilarityScorer | OTScorer):
        parts |= {"model": Part(BackboneConfig, _LOADING)}
    return parts


def _refuse(key: str, choice: Mapping[str, Any]) -> str | None:
    """Why an option that another scorer has is none of the chosen one's."""
    has = [name for name, config in SCORERS.items() if any(key_of(config, each.name) == key for each in fields(config))]
    if not has:
        return None
    flag = "--" + key.replace("_", "-")
    chosen = choice.get("scorer")
    now = f"the scorer is {chosen}" if chosen else "no scorer is chosen"
    return f"{flag} is an option of the scorers {', '.join(has)}; {now} (--scorer)."


_USAGE = "ebrm score [MODEL] IN [OPTIONS]"
command = Command("score", score, _parts, {"scorer": "scorer"}, _refuse, _USAGE)
