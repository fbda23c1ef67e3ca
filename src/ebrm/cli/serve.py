"""`ebrm serve MODEL`: refined rewards over HTTP."""

from __future__ import annotations

from importlib.util import find_spec

from ebrm.backbone import BackboneConfig
from ebrm.cli.common import Model
from ebrm.cli.console import Console
from ebrm.cli.parser import Chosen, Command, Part
from ebrm.data import TextConfig
from ebrm.errors import ConfigError
from ebrm.heads import InferenceConfig
from ebrm.serve import ServeConfig
from ebrm.utils.extras import install_hint

#: What the extra `serve` brings.
_PACKAGES = ("fastapi", "uvicorn", "prometheus_client")


def serve(console: Console, chosen: Chosen, model: Model) -> None:
    """Serve a model over HTTP: scores, ranks, and answers as vLLM's and OpenRLHF's reward servers do.

    It listens on this machine alone unless --host says otherwise. Texts of different requests are scored together.
    SIGTERM or Ctrl-C ends it once what it accepted is answered. GET /docs on the server lists its routes.
    """
    settings = chosen.of(ServeConfig)
    missing = [package for package in _PACKAGES if find_spec(package) is None]
    if missing:
        raise ConfigError(
            f"`ebrm serve` needs packages that are not installed ({', '.join(missing)}): {install_hint('serve')}."
        )
    from ebrm.model import EnergyRewardModel
    from ebrm.serve import serve

    loaded = EnergyRewardModel.from_pretrained(model).with_inference(**chosen.given(InferenceConfig))
    console.kept = "The server ended."

    def listening(url: str) -> None:
        console.print(f"listening on {url}")
        console.result({"url": url, "model": model})
        console.note("The reward model is being loaded; GET /ready says when texts are scored.")

    backbone = chosen.given(BackboneConfig) | chosen.given(TextConfig)
    serve(loaded, settings, model, backbone, listening, lambda: console.note(f"ready: {model}"))


_RUNNING = ("backbone", "revision", "base", "device", "dtype", "attention", "trust_remote_code", "token_budget")
command = Command(
    "serve",
    serve,
    {
        "server": Part(ServeConfig),
        "inference": Part(InferenceConfig, saved=True),
        "text": Part(TextConfig, ("truncation", "rendered"), saved=True),
        "reward_model": Part(BackboneConfig, _RUNNING, saved=True),
    },
)
