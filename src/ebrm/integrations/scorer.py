"""Scorers for trainers: an energy reward model in this process, or a client of `ebrm serve`.

Trainers that take a file or a class name, and no arguments, are configured by environment variables
(:class:`Environment`).
"""

from __future__ import annotations

import logging
import math
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ebrm.backbone import OnError
from ebrm.client import Client
from ebrm.data import Prompt, Reply
from ebrm.errors import ConfigError, ModelError
from ebrm.model import EnergyRewardModel, RefinedReward

logger = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class Environment:
    """The environment variables of reward functions that take no arguments.

    Attributes:
        model: `EBRM_MODEL`, folder or Hub name of an energy reward model, scored in this process; empty for a server.
        device: `EBRM_DEVICE`, the device of that model's RM; "auto" unless set.
        backbone: `EBRM_BACKBONE`, where that RM is found now, if it has moved since the fit; None: where it was.
        server: `EBRM_SERVER`, address of a running `ebrm serve`; empty for a model here.
        token: `EBRM_TOKEN`, the server's token; None where it has none.
        pessimism: `EBRM_PESSIMISM`, standard deviations subtracted from each reward; 0 unless set.
        unusable: `EBRM_UNUSABLE_REWARD`, the reward of a text that cannot be scored (too long, mostly); None: such a
            text is an error.
    """

    model: str
    device: str
    server: str
    token: str | None
    pessimism: float
    unusable: float | None
    backbone: str | None = None

    @property
    def on_error(self) -> OnError:
        """The argument of `EnergyRewardModel.score`."""
        return "raise" if self.unusable is None else "nan"

    def rewards(self, refined: RefinedReward) -> dict[str, Tensor]:
        """`reward` [n] with pessimism, `base_reward` [n], `std` [n], and `unusable` [n]: 1 where `unusable` is paid."""
        unusable = torch.tensor([error is not None for error in refined.errors], dtype=torch.bool)
        if bool(unusable.any()):
            first = next(error for error in refined.errors if error is not None)
            logger.info("%d texts have the reward EBRM_UNUSABLE_REWARD: %s", int(unusable.sum()), first)
        fill = self.unusable or 0.0
        return {
            "reward": (refined.reward - self.pessimism * refined.std).masked_fill(unusable, fill),
            "base_reward": refined.base_reward.masked_fill(unusable, fill),
            "std": refined.std.masked_fill(unusable, 0.0),
            "unusable": unusable.float(),
        }


def read_environment(server_only: str = "") -> Environment:
    """Read and check the variables; `server_only` names a caller that cannot run a model itself."""
    model, server = os.environ.get("EBRM_MODEL", ""), os.environ.get("EBRM_SERVER", "")
    if server_only and (model or not server):
        raise ConfigError(
            f"{server_only} needs a server, since its workers have no GPU; EBRM_MODEL is {model!r} and EBRM_SERVER is "
            f"{server!r}. Run `ebrm serve MODEL`, set EBRM_SERVER to its address (http://127.0.0.1:8080) for every "
            "worker, and leave EBRM_MODEL unset."
        )
    if bool(model) == bool(server):
        raise ConfigError(
            f"EBRM_MODEL is {model!r} and EBRM_SERVER is {server!r}. Set one of the two, for every worker: EBRM_MODEL "
            "to an energy reward model's folder or Hub name, or EBRM_SERVER to the address of a running `ebrm serve`."
        )
    pessimism = _number("EBRM_PESSIMISM") or 0.0
    if pessimism < 0:
        raise ConfigError(f"EBRM_PESSIMISM is {pessimism:g}; it is a number of standard deviations, at least 0.")
    return Environment(
        model=model,
        device=os.environ.get("EBRM_DEVICE") or "auto",
        server=server,
        token=os.environ.get("EBRM_TOKEN") or None,
        pessimism=pessimism,
        unusable=_number("EBRM_UNUSABLE_REWARD"),
        backbone=os.environ.get("EBRM_BACKBONE") or None,
    )


def _number(name: str) -> float | None:
    given = os.environ.get(name, "")
    if not given:
        return None
    try:
        value = float(given)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ConfigError(f"{name} is {given!r}; it must be a finite number.")
    return value


_shared: dict[tuple[str, ...], EnergyRewardModel | Client] = {}
_opening = threading.Lock()  # a trainer's first threads would each load a model


def shared_scorer(environment: Environment) -> EnergyRewardModel | Client:
    """The model or client of an environment, opened once a process and used by all its threads."""
    key = (
        environment.model,
        environment.device,
        environment.server,
        environment.token or "",
        environment.backbone or "",
    )
    with _opening:
        if key not in _shared:
            if environment.server:
                _shared[key] = Client(environment.server, token=environment.token)
            else:
                model = EnergyRewardModel.from_pretrained(environment.model, device=environment.device)
                opened = open_scorer(model, environment.backbone)
                assert isinstance(opened, EnergyRewardModel)
                _shared[key] = opened
        return _shared[key]
