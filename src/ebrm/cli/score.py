"""`ebrm score MODEL IN --out OUT`: refined rewards for every row of a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ebrm.backbone import BackboneConfig
from ebrm.cli.console import Screen
from ebrm.cli.options import Chosen, command
from ebrm.cli.scoring import ScoreConfig
from ebrm.heads import InferenceConfig

if TYPE_CHECKING:
    from ebrm.model import EnergyRewardModel

_STAGES = {"scoring": ScoreConfig, "inference": InferenceConfig, "reward_model": BackboneConfig}
# What a stored model leaves open: where and how fast its reward model runs, and where to find it.
_ONLY = {
    "reward_model": (
        "backbone",
        "revision",
        "device",
        "dtype",
        "attention",
        "trust_remote_code",
        "token_budget",
        "server",
    )
}


def register(app: typer.Typer) -> None:
    """Add the command."""

    @command(app, "score", _STAGES, _ONLY, saved=("inference", "reward_model"))
    def score(
        screen: Screen,
        chosen: Chosen,
        model: Annotated[str, typer.Argument(help="Folder that `ebrm fit` wrote, or a Hub name.")],
        source: Annotated[
            str,
            typer.Argument(
                metavar="IN",
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
        _score(screen, chosen, model, source)


def _score(screen: Screen, chosen: Chosen, model_name: str, source_name: str) -> None:
    from ebrm.cli.rows import kind_of

    settings = chosen.of(ScoreConfig)
    kind_of(Path(settings.out))
    from ebrm.cli import scoring
    from ebrm.features import MANIFEST
    from ebrm.model import EnergyRewardModel

    model = EnergyRewardModel.from_pretrained(model_name).with_inference(**chosen.given(InferenceConfig))
    changes = chosen.given(BackboneConfig)
    path = Path(source_name)
    if (path / MANIFEST).is_file():
        opened = scoring.open_feature_pairs(path, settings, model)
    else:
        # The rows first: a mistake in them should not wait for a reward model to load.
        opened = scoring.open_texts(path, settings)
    screen.note(f"{opened.name}: {opened.count:,} rows, {opened.said}.")
    job = _job(model, opened, settings, changes)
    summary = scoring.run(opened, settings, job, screen, lambda: _with_backbone(model, changes))
    if summary["errors"]:
        screen.note(
            f"{summary['errors']:,} of {summary['rows']:,} rows could not be scored; the reason stands in their column "
            f"{settings.prefix}error."
        )
    _show(screen, settings.out, summary)
    screen.result({"out": settings.out, **summary})


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


def _show(screen: Screen, out: str, summary: dict[str, Any]) -> None:
    facts = [
        ("rows", f"{summary['rows']:,}, {summary['scored']:,} scored"),
        ("mean reward", f"{summary['mean_reward']:.4g} (base {summary['mean_base_reward']:.4g})"),
        ("mean std", f"{summary['mean_std']:.4g}"),
        ("mean change", f"{summary['mean_abs_delta']:.4g} up or down"),
    ]
    if "accuracy" in summary:
        facts.append(("chosen first", f"{summary['accuracy']:.1%} (base {summary['base_accuracy']:.1%})"))
    screen.facts([*facts, ("written", out)])
