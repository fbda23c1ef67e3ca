"""`ebrm serve MODEL`: refined rewards over HTTP."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated

import typer

from ebrm.backbone import BackboneConfig
from ebrm.cli.console import Screen
from ebrm.cli.options import Chosen, command
from ebrm.errors import ConfigError
from ebrm.heads import InferenceConfig
from ebrm.serve import ServeConfig
from ebrm.utils.extras import install_hint

_STAGES = {"server": ServeConfig, "inference": InferenceConfig, "reward_model": BackboneConfig}
_ONLY = {"reward_model": ("backbone", "revision", "device", "dtype", "attention", "trust_remote_code", "token_budget")}
#: What the extra `serve` brings.
_PACKAGES = ("fastapi", "uvicorn", "prometheus_client")


def register(app: typer.Typer) -> None:
    """Add the command."""

    @command(app, "serve", _STAGES, _ONLY, saved=("inference", "reward_model"))
    def serve(
        screen: Screen,
        chosen: Chosen,
        model: Annotated[str, typer.Argument(help="Folder that `ebrm fit` wrote, or a Hub name.")],
    ) -> None:
        """Serve a model over HTTP: scores, ranks, and answers as vLLM's and OpenRLHF's reward servers do.

        It listens on this machine alone unless --host says otherwise. Texts of different requests are scored together.
        SIGTERM or Ctrl-C ends it once what it accepted is answered. GET /docs on the server lists its routes.
        """
        _serve(screen, chosen, model)


def _serve(screen: Screen, chosen: Chosen, name: str) -> None:
    settings = chosen.of(ServeConfig)
    missing = [package for package in _PACKAGES if find_spec(package) is None]
    if missing:
        raise ConfigError(
            f"`ebrm serve` needs packages that are not installed ({', '.join(missing)}): {install_hint('serve')}."
        )
    from ebrm.model import EnergyRewardModel
    from ebrm.serve import serve

    model = EnergyRewardModel.from_pretrained(name).with_inference(**chosen.given(InferenceConfig))
    screen.kept = "The server ended."

    def listening(url: str) -> None:
        screen.say(f"listening on {url}")
        screen.result({"url": url, "model": name})
        screen.note("The reward model is being loaded; GET /ready says when texts are scored.")

    backbone = chosen.given(BackboneConfig)
    serve(model, settings, name, backbone, listening, lambda: screen.note(f"ready: {name}"))
