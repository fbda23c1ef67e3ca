"""Scorers for trainers: an energy reward model in this process, or a client of `ebrm serve`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from ebrm.backbone import OnError
from ebrm.data import Prompt, Reply
from ebrm.errors import ConfigError, ModelError
from ebrm.model import EnergyRewardModel, RefinedReward


class Scorer(Protocol):
    """Scores texts: an :class:`EnergyRewardModel`, a :class:`ebrm.Client`, or anything alike."""

    def score(
        self, prompts: Sequence[Prompt], responses: Sequence[Reply], *, on_error: OnError = "raise"
    ) -> RefinedReward:
        """As `EnergyRewardModel.score`."""


def open_scorer(model: Scorer | str | Path, backbone: str | Path | None = None) -> Scorer:
    """The scorer itself, or the model of a folder or the Hub; its RM is loaded now, so that errors show early.

    Args:
        model: a model, its folder or Hub name, or a client.
        backbone: where a model's RM is found now, if it has moved since the fit.
    """
    if isinstance(model, str | Path):
        if "://" in str(model):
            raise ModelError(f"{model} is an address, not a model. Give a client: ebrm.Client({str(model)!r}).")
        model = EnergyRewardModel.from_pretrained(model)
    if backbone is not None and not isinstance(model, EnergyRewardModel):
        raise ConfigError(f"`backbone` is {str(backbone)!r}, and only a model in this process has one. Leave it out.")
    if isinstance(model, EnergyRewardModel):
        model = model if backbone is None else model.with_backbone(backbone=str(backbone))
        _ = model.backbone
    elif isinstance(model, type) or not callable(getattr(model, "score", None)):
        raise ModelError(
            f"`source` is {model!r:.60}; a model, a folder or Hub name of one, a client, or a function of prompts and "
            "responses was expected."
        )
    return model
