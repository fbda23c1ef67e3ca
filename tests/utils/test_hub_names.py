"""The Hub is asked only for what looks like a name on it, once, and a local path that is wrong is said at once."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tests.terminal import child_environment

from ebrm.backbone.checkpoint import open_checkpoint
from ebrm.data import load_preferences
from ebrm.errors import BackboneError, DataError, ModelError
from ebrm.hub import download_model
from ebrm.utils.hub_names import why_no_hub_name


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("acme/rm", ""), ("acme/rm-0.6B", ""), ("nowhere", "does not read"), ("/tmp/rm", "does not read"),
        ("./acme/rm", "does not read"), ("../rm", "does not read"), ("~/rm", "does not read"),
        ("acme/rm/", "does not read"), ("a/b/c", "does not read"), ("acme/rm.safetensors", "it is a file"),
        ("acme/pairs.jsonl", "it is a file"), ("runs/rm", "the folder runs is here"),
    ],
)  # fmt: skip
def test_what_reads_as_a_path_is_not_asked_for(
    name: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    found = why_no_hub_name(name)
    assert why in found and bool(why) == bool(found)
    asked: list[object] = []
    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", lambda *a, **k: asked.append(a) or _no_network())
    monkeypatch.setattr("datasets.load_dataset", lambda *a, **k: _no_network())
    for opened, error in (
        (open_checkpoint, BackboneError),
        (download_model, ModelError),
        (load_preferences, DataError),
    ):
        with pytest.raises(error):
            opened(name)
    assert len(asked) == (0 if why else 3)


def _no_network() -> None:
    raise ConnectionError("no network")


def test_a_revision_asks_the_hub_whatever_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("acme").mkdir()
    assert "folder acme" in why_no_hub_name("acme/rm") and why_no_hub_name("acme/rm", "main") == ""
    with pytest.raises(BackboneError, match='`revision="main"` asks the Hub'):
        open_checkpoint("acme/rm")
    with pytest.raises(DataError, match="acme/pairs@main"):
        load_preferences("acme/pairs")


@pytest.fixture
def hub() -> Iterator[tuple[str, list[str]]]:
    """A Hub that has nothing; its address and the requests that it got."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            status = 503 if "busy" in self.path else 404
            self.send_response(status)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


SCRIPT = """
import json, sys, time
from ebrm.backbone.checkpoint import open_checkpoint
from ebrm.cli.console import logging_to_stderr
from ebrm.data import load_preferences
from ebrm.errors import EBRMError
with logging_to_stderr(False, False):
    for kind, name in (pair.split("=") for pair in sys.argv[1:]):
        started = time.monotonic()
        try:
            (open_checkpoint if kind == "model" else load_preferences)(name)
        except EBRMError as error:
            print(json.dumps([time.monotonic() - started, str(error)]))
"""


def test_the_hub_is_asked_once_and_its_library_prints_nothing(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    address, asked = hub
    online = child_environment() | {"HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0", "HF_HOME": str(tmp_path)}
    names = ("model=acme/none", "data=acme/none", "model=acme/busy", "data=acme/busy")
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, *names], capture_output=True, text=True, env=online | {"HF_ENDPOINT": address}
    )
    assert run.returncode == 0 and run.stderr == "", run.stderr
    said = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(said) == 4 and "no such repository on the Hub" in said[0][1] and "could not be loaded" in said[1][1]
    assert len(asked) == 4, asked
    assert all(seconds < 20 for seconds, _ in said)  # imports of the libraries; no waiting
