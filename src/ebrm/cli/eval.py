"""`ebrm eval MODEL … --benchmark NAMES --out DIR`: how good rewards are on benchmarks, and whether refining helped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from cyclopts import Parameter

from ebrm.backbone import BackboneConfig
from ebrm.cli.common import out_folder, show_summary
from ebrm.cli.console import Console
from ebrm.cli.parser import Chosen, Command, Part
from ebrm.data import TextConfig
from ebrm.evaluation import BenchmarkConfig
from ebrm.features import FeatureConfig
from ebrm.utils.files import write_text
from ebrm.utils.outputs import results_folder

_SUFFIX = {"markdown": "md", "csv": "csv"}


@dataclass(frozen=True)
class Output:
    """Where the results go and how they are shown.

    Attributes:
        out: folder for results.json, items.parquet and report.html; those of an earlier evaluation are replaced.
        format: how the scores are printed. All but text are also written to scores.md or .csv.
        overwrite: replace files of these names that something else wrote, or that were changed.
    """

    out: str
    format: Literal["text", "markdown", "csv"] = "text"
    overwrite: bool = False


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
    names = ["results.json", "items.parquet", "report.html", "timing.json"]
    if output.format != "text":
        names.append(f"scores.{_SUFFIX[output.format]}")
    inputs = {"MODEL": models, "`benchmark`": settings.benchmark, "`seen`": settings.seen}
    with results_folder(out, "eval", names, inputs, output.overwrite) as new:
        evaluated = evaluate_models(
            models, settings, backbone=chosen.given(BackboneConfig), text=chosen.of(TextConfig),
            features=chosen.of(FeatureConfig(shard_rows=1024)),
        )  # fmt: skip
        from ebrm.report import (
            details,
            evaluation_to_dict,
            overview,
            scores_summary,
            write_benchmark_report,
            write_results,
        )

        evaluation = evaluated.evaluation
        write_results(new, evaluation, evaluated.scored)
        write_benchmark_report(new / "report.html", evaluation)
        if output.format != "text":
            write_text(new / names[-1], details(evaluation, output.format))
    if output.format == "text":
        show_summary(console, scores_summary(evaluation))
        console.facts([("texts read", f"{evaluated.texts_read:,}"), ("written", out), ("report", out / "report.html")])
    else:
        console.block(overview(evaluation, output.format))  # nothing else on stdout: it may be on its way to a file
        console.note(f"Texts read: {evaluated.texts_read:,}. Report: {out / 'report.html'}")
    console.result({"out": str(out), "texts_read": evaluated.texts_read, **evaluation_to_dict(evaluation)})


# An energy model brings its own reward model, which is not named here.
_READING = (
    "revision", "base", "head", "device", "dtype", "attention", "trust_remote_code", "layers", "token_budget", "server",
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
