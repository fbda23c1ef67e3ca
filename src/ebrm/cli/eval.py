"""`ebrm eval MODEL … --benchmark NAMES --out DIR`: how good rewards are on benchmarks, and whether refining helped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from ebrm.backbone import BackboneConfig
from ebrm.cli.common import out_folder
from ebrm.cli.console import Console
from ebrm.cli.parser import Chosen, Command, Part
from ebrm.data import TextConfig
from ebrm.evaluation import BenchmarkConfig
from ebrm.features import FeatureConfig

if TYPE_CHECKING:
    from ebrm.evaluation import Evaluation
    from ebrm.metrics import Estimate

_SUFFIX = {"markdown": "md", "csv": "csv"}


@dataclass(frozen=True)
class Output:
    """Where the results go and how they are shown.

    Attributes:
        out: folder for results.json, items.parquet and report.html; written anew.
        format: how the scores are printed. All but text are also written to scores.md or .csv.
    """

    out: str
    format: Literal["text", "markdown", "csv"] = "text"


def evaluate(
    console: Console,
    chosen: Chosen,
    models: Annotated[
        list[str],
        Parameter(
            name="MODEL",
            help="One or more of: a folder that `ebrm fit` wrote, a reward model (folder, Hub name or `demo`), a "
            "features folder.",
        ),
    ],
) -> None:
    """Score reward models and energy models on the public benchmarks, and test which differences are real.

    Base and refined rewards come from the same reading of the texts, which is kept: a second run, another
    benchmark statistic or another energy model on the same reward model reads nothing again. Head, dtype, revision,
    layers and text settings apply to plain reward models; energy models bring their own. Items with a text that a
    model cannot read are left out for all models and counted, also under --truncation error.
    """
    settings, output = chosen.of(BenchmarkConfig), chosen.of(Output)
    out = out_folder(output.out)
    from ebrm.evaluation import cache_folder
    from ebrm.evaluation import evaluate as evaluate_models

    console.kept = f"What was read so far is kept in {cache_folder(settings)}; run the same command again to go on."
    storage = chosen.given(FeatureConfig)
    evaluated = evaluate_models(
        models,
        settings,
        backbone=chosen.given(BackboneConfig),
        text=chosen.of(TextConfig),
        features=FeatureConfig(shard_rows=1024, **storage),
    )
    from ebrm.report import details, evaluation_to_dict, overview, write_benchmark_report, write_results

    evaluation = evaluated.evaluation
    write_results(out, evaluation, evaluated.scored)
    write_benchmark_report(out / "report.html", evaluation)
    written = [("texts read", f"{evaluated.texts_read:,}"), ("written", str(out)), ("report", out / "report.html")]
    if output.format == "text":
        _show(console, evaluation)
        console.facts(written)
    else:
        from ebrm.utils.files import write_text

        write_text(out / f"scores.{_SUFFIX[output.format]}", details(evaluation, output.format))
        console.block(overview(evaluation, output.format))  # nothing else on stdout: it may be on its way to a file
        console.note(f"Texts read: {evaluated.texts_read:,}. Report: {out / 'report.html'}")
    console.result({"out": str(out), "texts_read": evaluated.texts_read, **evaluation_to_dict(evaluation)})


def _show(console: Console, evaluation: Evaluation) -> None:
    """The overall scores, one line a benchmark and scorer, then what must be known to read them."""
    from ebrm.evaluation import apart
    from ebrm.report import decimal, interval, left_out

    def change(estimate: Estimate | None, p: float | None) -> list[str]:
        if estimate is None:
            return ["", "", ""]
        ends = interval(100 * estimate.low, 100 * estimate.high, 1, sign=True)
        return [decimal(100 * estimate.value, 1, sign=True), ends, "" if p is None else _p(p)]

    own = bool(apart(evaluation))
    rows: list[list[Any]] = []
    for result in evaluation.benchmarks:
        score = result.scores[0].name
        for number, (name, scorer) in enumerate(result.scorers.items()):
            cell = scorer.entries[score]
            rows.append(
                [
                    result.title if number == 0 else "",
                    name,
                    decimal(100 * cell.value.value, 1),
                    interval(100 * cell.value.low, 100 * cell.value.high, 1),
                    *change(cell.difference, cell.p_holm),
                    *(change(cell.gain, cell.p_gain_holm) if own else ()),
                    f"{result.counts[score][0]:,}" if number == 0 else "",
                ]
            )
    head = ["benchmark", "scorer", "score", "interval", f"minus {evaluation.reference}", "interval", "p"]
    console.table([*head, *(["minus its base", "interval", "p"] if own else []), "items"], rows)
    console.print(
        f"Scores in percent with {100 * evaluation.bootstrap.level:g}% intervals over prompts. p: permutation test, "
        "corrected for all comparisons of its column (Holm)."
    )
    for line in left_out(evaluation.benchmarks):
        console.print(line)
    for result in evaluation.benchmarks:
        for note in result.notes:
            console.print(f"{result.title}: {note}")


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


# An energy model brings its own reward model, which is not named here.
_READING = (
    "revision", "head", "device", "dtype", "attention", "trust_remote_code", "layers", "token_budget", "server",
)  # fmt: skip
command = Command(
    "eval",
    evaluate,
    {
        "evaluation": Part(BenchmarkConfig),
        "output": Part(Output),
        "reward_model": Part(BackboneConfig, _READING),
        "text": Part(TextConfig),
        "storage": Part(FeatureConfig, ("embedding_dtype",)),
    },
)
