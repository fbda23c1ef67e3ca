"""Trainers that take a file or a class name, and no arguments, are configured by environment variables."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import logging
import math
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ebrm.backbone import OnError
from ebrm.client import Client
from ebrm.data import one_line
from ebrm.errors import ConfigError, EBRMError, TextError
from ebrm.integrations.reward_design import DesignedRewards, OpenedDesign, RewardDesign
from ebrm.integrations.scorer import open_scorer
from ebrm.model import EnergyRewardModel, RefinedReward

logger = logging.getLogger(__name__)


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
        reward: `EBRM_REWARD`, `FILE.py:FUNCTION` or `MODULE:FUNCTION`, which returns a `RewardDesign`; empty for the
            model's or server's rewards as they are.
    """

    model: str
    device: str
    server: str
    token: str | None
    pessimism: float
    unusable: float | None
    backbone: str | None = None
    reward: str = ""

    @property
    def on_error(self) -> OnError:
        """The argument of `EnergyRewardModel.score`."""
        return "raise" if self.unusable is None else "nan"

    def rewards(self, refined: RefinedReward) -> dict[str, Tensor]:
        """`reward` [n] with pessimism, `base_reward` [n], `std` [n], and `unusable` [n]: 1 where `unusable` is paid."""
        unusable = self._unusable(refined.errors)
        fill = self.unusable or 0.0
        return {
            "reward": (refined.reward - self.pessimism * refined.std).masked_fill(unusable, fill),
            "base_reward": refined.base_reward.masked_fill(unusable, fill),
            "std": refined.std.masked_fill(unusable, 0.0),
            "unusable": unusable.float(),
        }

    def designed(self, found: DesignedRewards) -> dict[str, Tensor]:
        """`reward` [n], the columns of its parts, 0 where there is nothing, and `unusable` [n], as `rewards`.

        Raises:
            TextError: a row without a reward, unless `unusable` is paid.
        """
        row = next((row for row, error in enumerate(found.errors) if error is not None), None)
        if row is not None and self.unusable is None:
            raise TextError(f"Text {row} has no reward: {found.errors[row]}")
        unusable = self._unusable(found.errors)
        return {
            "reward": found.reward.float().masked_fill(unusable, self.unusable or 0.0),
            **{name: column.float().nan_to_num(0.0) for name, column in found.columns().items()},
            "unusable": unusable.float(),
        }

    def _unusable(self, errors: Any) -> Tensor:
        unusable = torch.tensor([error is not None for error in errors], dtype=torch.bool)
        if bool(unusable.any()):
            first = next(error for error in errors if error is not None)
            logger.info("%d texts have the reward EBRM_UNUSABLE_REWARD: %s", int(unusable.sum()), first)
        return unusable


def read_environment(server_only: str = "") -> Environment:
    """Read and check the variables; `server_only` names a caller that cannot run a model itself."""
    model, server = os.environ.get("EBRM_MODEL", ""), os.environ.get("EBRM_SERVER", "")
    reward = os.environ.get("EBRM_REWARD", "")
    if server_only and (model or not (server or reward)):
        raise ConfigError(
            f"{server_only} needs a server, since its workers have no GPU; EBRM_MODEL is {model!r} and EBRM_SERVER is "
            f"{server!r}. Run `ebrm serve MODEL`, set EBRM_SERVER to its address (http://127.0.0.1:8080) for every "
            "worker, and leave EBRM_MODEL unset."
        )
    if (model and server) or not (model or server or reward):
        raise ConfigError(
            f"EBRM_MODEL is {model!r} and EBRM_SERVER is {server!r}. Set one of the two, for every worker: EBRM_MODEL "
            "to an energy reward model's folder or Hub name, or EBRM_SERVER to the address of a running `ebrm serve`."
        )
    pessimism = _number("EBRM_PESSIMISM") or 0.0
    if pessimism < 0:
        raise ConfigError(f"EBRM_PESSIMISM is {pessimism:g}; it is a number of standard deviations, at least 0.")
    if pessimism and reward:
        raise ConfigError(
            f"EBRM_PESSIMISM is {pessimism:g} and EBRM_REWARD is {reward!r}, which says itself what is paid. Leave "
            'EBRM_PESSIMISM unset, and give the design `mode="pessimistic"` and `k`.'
        )
    return Environment(
        model=model,
        device=os.environ.get("EBRM_DEVICE") or "auto",
        server=server,
        token=os.environ.get("EBRM_TOKEN") or None,
        pessimism=pessimism,
        unusable=_number("EBRM_UNUSABLE_REWARD"),
        backbone=os.environ.get("EBRM_BACKBONE") or None,
        reward=reward,
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


_scorers: dict[tuple[str, ...], EnergyRewardModel | Client] = {}
_designs: dict[tuple[str, ...], OpenedDesign] = {}
_opening = threading.RLock()  # a trainer's first threads would each load a model


def shared_scorer(environment: Environment) -> EnergyRewardModel | Client:
    """The model or client of an environment, opened once a process and used by all its threads."""
    key = _key(environment)
    with _opening:
        if key not in _scorers:
            if environment.server:
                _scorers[key] = Client(environment.server, token=environment.token)
            else:
                model = EnergyRewardModel.from_pretrained(environment.model, device=environment.device)
                opened = open_scorer(model, environment.backbone)
                assert isinstance(opened, EnergyRewardModel)
                _scorers[key] = opened
        return _scorers[key]


def shared_design(environment: Environment) -> OpenedDesign:
    """The reward design that `EBRM_REWARD` names, opened once a process and used by all its threads.

    Its function has one parameter, the model or client that `EBRM_MODEL` or `EBRM_SERVER` names, or none if neither is
    set.

    Raises:
        ConfigError: no such file, module or function, or one that gives something else.
    """
    key = (*_key(environment), environment.reward)
    with _opening:
        if key not in _designs:
            function = _load(environment.reward)
            given = [shared_scorer(environment)] if environment.model or environment.server else []
            try:
                inspect.signature(function).bind(*given)
            except TypeError as error:
                takes = ", ".join(inspect.signature(function).parameters) or "no parameter"
                variables = "EBRM_MODEL or EBRM_SERVER is set" if given else "neither EBRM_MODEL nor EBRM_SERVER is set"
                raise ConfigError(
                    f"EBRM_REWARD is {environment.reward!r}, a function of {takes}, and {variables}. With one of them "
                    "set it has one parameter, which gets that model or client; with neither, none."
                ) from error
            design = function(*given)
            if not isinstance(design, RewardDesign):
                raise ConfigError(
                    f"EBRM_REWARD is {environment.reward!r}, which gave {design!r:.60}; a RewardDesign of "
                    "ebrm.integrations was expected."
                )
            _designs[key] = OpenedDesign(design)
        return _designs[key]


def _key(environment: Environment) -> tuple[str, ...]:
    token, backbone = environment.token or "", environment.backbone or ""
    return environment.model, environment.device, environment.server, token, backbone


def _load(given: str) -> Callable[..., Any]:
    """The function that `FILE.py:FUNCTION` or `MODULE:FUNCTION` names."""
    place, _, name = given.rpartition(":")
    if not place or not name.isidentifier():
        raise ConfigError(
            f"EBRM_REWARD is {given!r}; expected FILE.py:FUNCTION or MODULE:FUNCTION, such as "
            "/path/my_reward.py:design."
        )
    try:
        module = _from_file(Path(place), given) if place.endswith(".py") else importlib.import_module(place)
    except EBRMError:
        raise
    except Exception as error:  # whatever the user's own code raises
        raise ConfigError(
            f"EBRM_REWARD is {given!r}, and {place} cannot be imported: {type(error).__name__}: {one_line(error)}. It "
            "has to work on every worker."
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        own = [value for value in vars(module).values() if inspect.isfunction(value)]
        there = [one.__name__ for one in own if one.__module__ == module.__name__]
        raise ConfigError(
            f"EBRM_REWARD is {given!r}, and {place} has no function {name}; it has {', '.join(there) or 'none'}."
        )
    return function


def _from_file(path: Path, given: str) -> Any:
    if not path.is_file():
        raise ConfigError(
            f"EBRM_REWARD is {given!r}, and there is no file {path}. Every worker needs it, at that path."
        )
    name = f"ebrm_reward_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for it
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
