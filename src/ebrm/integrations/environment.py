"""What trainers that take a file or a class name, and no arguments, are told through environment variables."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from ebrm.errors import ConfigError


@dataclass(frozen=True)
class Environment:
    """Which model scores, and how its rewards are given.

    Attributes:
        model: `EBRM_MODEL`, folder or Hub name of an energy model, scored in this process; empty for a server.
        device: `EBRM_DEVICE`, where that model's RM runs; "auto" unless set.
        server: `EBRM_SERVER`, address of a running `ebrm serve`; empty for a model here.
        token: `EBRM_TOKEN`, the server's token; None where it has none.
        pessimism: `EBRM_PESSIMISM`, how many standard deviations are taken off each reward; 0 unless set.
        unusable: `EBRM_UNUSABLE_REWARD`, the reward of a text that cannot be scored (too long, mostly); None: such a
            text is an error.
    """

    model: str
    device: str
    server: str
    token: str | None
    pessimism: float
    unusable: float | None


def read_environment(server_only: str = "") -> Environment:
    """Read the variables.

    Args:
        server_only: who cannot run a model itself; `EBRM_MODEL` is then refused in its name.

    Raises:
        ConfigError: neither or both of model and server, or a number that is none.
    """
    model, server = os.environ.get("EBRM_MODEL", ""), os.environ.get("EBRM_SERVER", "")
    if server_only and (model or not server):
        raise ConfigError(
            f"{server_only} asks a server, since its workers have no GPU; EBRM_MODEL is {model!r} and EBRM_SERVER is "
            f"{server!r}. Run `ebrm serve MODEL`, set EBRM_SERVER to its address (http://127.0.0.1:8080) for every "
            "worker, and leave EBRM_MODEL unset."
        )
    if bool(model) == bool(server):
        raise ConfigError(
            f"EBRM_MODEL is {model!r} and EBRM_SERVER is {server!r}. Set one of the two, for every worker: EBRM_MODEL "
            "to an energy model's folder or Hub name, or EBRM_SERVER to the address of a running `ebrm serve`."
        )
    pessimism = _number("EBRM_PESSIMISM", 0.0)
    assert pessimism is not None
    if pessimism < 0:
        raise ConfigError(f"EBRM_PESSIMISM is {pessimism:g}; it is a number of standard deviations, at least 0.")
    return Environment(
        model=model,
        device=os.environ.get("EBRM_DEVICE") or "auto",
        server=server,
        token=os.environ.get("EBRM_TOKEN") or None,
        pessimism=pessimism,
        unusable=_number("EBRM_UNUSABLE_REWARD", None),
    )


def _number(name: str, default: float | None) -> float | None:
    given = os.environ.get(name, "")
    if not given:
        return default
    try:
        value = float(given)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ConfigError(f"{name} is {given!r}; it must be a finite number.")
    return value
