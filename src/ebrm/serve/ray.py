"""The server on several GPUs or machines, by Ray Serve: `serve run ebrm.serve.ray:app model=my-ebrm replicas=2`.

Each replica is a process with the application of `ebrm serve` (the same routes, token and limits) and a reward model of
its own. Ray Serve listens, hands each request to a replica, and starts a replica anew when it dies.
"""

from __future__ import annotations

import dataclasses
import os
import typing
from typing import Any

import pydantic
from fastapi import FastAPI

from ebrm.errors import ConfigError
from ebrm.serve.config import ServeConfig
from ebrm.utils.extras import install_hint

try:
    import ray
    from ray import serve
except ImportError as error:
    raise ConfigError(
        f"Serving on several GPUs needs Ray Serve, which cannot be imported here ({error}): "
        f"{install_hint('ray,serve')}."
    ) from None

#: Ray Serve listens, and knows its names; a token on the command line would be seen (EBRM_TOKEN is read instead).
_NOT_HERE = ("host", "port", "token", "allowed_hosts")

_hints = typing.get_type_hints(ServeConfig)
_fields = dataclasses.fields(ServeConfig)
_limits: dict[str, Any] = {f.name: (_hints[f.name], f.default) for f in _fields if f.name not in _NOT_HERE}
_Arguments: type[pydantic.BaseModel] = pydantic.create_model(
    "_Arguments",
    __config__=pydantic.ConfigDict(extra="forbid", protected_namespaces=()),
    model=(str, ...),
    replicas=(int, 1),
    gpus=(float | None, None),
    **_limits,
)


def app(arguments: dict[str, Any]) -> serve.Application:
    """The application that Ray Serve runs.

    Args:
        arguments: `model`, a folder or Hub name that every machine sees; and if wanted `replicas`, processes (1);
            `gpus`, for each, possibly a part of one (unset: 1 where the cluster has GPUs, else 0); and limits of
            :class:`ServeConfig`. Values may be text. The token is taken from EBRM_TOKEN.

    Raises:
        ConfigError: an unknown argument, or one that is not of its type or range.
        ModelError: no such model.
    """
    from ebrm.model import EnergyRewardModel

    try:
        given = _Arguments.model_validate(arguments).model_dump()
    except pydantic.ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise ConfigError(
            f"The arguments of ebrm.serve.ray:app cannot be used ({faults}). It takes "
            f"{', '.join(_Arguments.model_fields)}, as NAME=VALUE."
        ) from None
    name, replicas, gpus = given.pop("model"), given.pop("replicas"), given.pop("gpus")
    config = ServeConfig(**given)
    if replicas < 1:
        raise ConfigError(f"`replicas` is {replicas}; it must be 1 or more.")
    EnergyRewardModel.from_pretrained(name)  # errors show here, not in the log of a replica
    folder = os.path.abspath(name) if os.path.isdir(name) else name
    if gpus is None:
        if not ray.is_initialized():  # `serve run` would do it next, by the same rules
            ray.init(namespace="serve")
        gpus = 1 if ray.cluster_resources().get("GPU", 0) >= 1 else 0

    def replica() -> FastAPI:
        from ebrm.serve.app import create_app

        model = EnergyRewardModel.from_pretrained(folder)
        model.backbone  # noqa: B018 - loads it
        return create_app(model, config, name)

    deployment = serve.deployment(
        name="ebrm",
        num_replicas=replicas,
        ray_actor_options={"num_cpus": 1, "num_gpus": gpus},
        # Ray's own default of 5 would leave batches nearly empty. The application refuses what comes beyond its queue.
        max_ongoing_requests=config.queue,
        graceful_shutdown_timeout_s=config.drain,
    )
    return deployment(serve.ingress(replica)()).bind()
