"""`ebrm score MODEL IN --out OUT`: refined rewards for every row of a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from ebrm.backbone import BackboneConfig
from ebrm.cli.common import Model
from ebrm.cli.console import Console
from ebrm.cli.parser import Chosen, Command, Part
from ebrm.cli.scoring import ScoreConfig
from ebrm.heads import InferenceConfig

if TYPE_CHECKING:
    from ebrm.model import EnergyRewardModel


def score(
    console: Console,
    chosen: Chosen,
    model: Model,
    source: Annotated[
        str,
        Parameter(
            name="IN",
            help="Rows to score (.jsonl, .json, .csv, .tsv, .parquet): prompt and response, or messages that end "
            "in the assistant's, or preference pairs. Or a features folder, which needs no reward model.",
        ),
    ],
) -> None:
    """Score a file: every row comes out with its refined reward, base reward and uncertainty.

    The rows keep their columns and order. A run that is stopped, by Ctrl-C or by force, goes on where it was when
    the same command is given again, and ends with the same bytes. Settings of inference and of the reward model
    that are not given are those the model was saved with.
    """
    from ebrm.cli.rows import kind_of

    settings = chosen.of(ScoreConfig)
    kind_of(Path(settings.out))
    from ebrm.cli import scoring
    from ebrm.features import MANIFEST
    from ebrm.model import EnergyRewardModel

    loaded = EnergyRewardModel.from_pretrained(model).with_inference(**chosen.given(InferenceConfig))
    changes = chosen.given(BackboneConfig)
    path = Path(source)
    if (path / MANIFEST).is_file():
        opened = scoring.open_feature_pairs(path, settings, loaded)
    else:
        # The rows first: a mistake in them should not wait for a reward model to load.
        opened = scoring.open_texts(path, settings)
    console.note(f"{opened.name}: {opened.count:,} rows, {opened.said}.")
    job = _job(loaded, opened, settings, changes)
    summary = scoring.run(opened, settings, job, console, lambda: _with_backbone(loaded, changes))
    if summary["errors"]:
        console.note(
            f"{summary['errors']:,} of {summary['rows']:,} rows could not be scored; the reason stands in their column "
            f"{settings.prefix}error."
        )
    _show(console, settings.out, summary)
    console.result({"out": settings.out, **summary})


def _with_backbone(model: EnergyRewardModel, changes: dict[str, Any]) -> EnergyRewardModel:
    """The model with its reward model loaded by the settings given, checked to be the one fitted on."""
    return model if not changes or model.record.text_rule is None else model.with_backbone(**changes)


def _job(model: EnergyRewardModel, opened: Any, settings: ScoreConfig, changes: dict[str, Any]) -> dict[str, Any]:
    """What decides the bytes of the output. Not `bad_rows`: rows scored under stop are the same under mark."""
    from ebrm._version import __version__
    from ebrm.cli.scoring import CHUNK_ROWS
    from ebrm.utils.files import sha256_json

    return {
        "input": opened.fingerprint,
        "model": model.fingerprint(),
        "settings": sha256_json(changes),
        "columns": [list(opened.columns), dict(sorted(settings.columns.items())), settings.prefix],
        "chunk_rows": CHUNK_ROWS,
        "version": __version__,
    }


def _show(console: Console, out: str, summary: dict[str, Any]) -> None:
    facts = [
        ("rows", f"{summary['rows']:,}, {summary['scored']:,} scored"),
        ("mean reward", f"{summary['mean_reward']:.4g} (base {summary['mean_base_reward']:.4g})"),
        ("mean std", f"{summary['mean_std']:.4g}"),
        ("mean change", f"{summary['mean_abs_delta']:.4g} up or down"),
    ]
    if "accuracy" in summary:
        facts.append(("chosen first", f"{summary['accuracy']:.1%} (base {summary['base_accuracy']:.1%})"))
    console.facts([*facts, ("written", out)])


# What a stored model leaves open: where and how fast its reward model runs, and where to find it.
_RUNNING = ("backbone", "revision", "device", "dtype", "attention", "trust_remote_code", "token_budget", "server")
command = Command(
    "score",
    score,
    {
        "scoring": Part(ScoreConfig),
        "inference": Part(InferenceConfig, saved=True),
        "reward_model": Part(BackboneConfig, _RUNNING, saved=True),
    },
)
