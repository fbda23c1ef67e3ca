from __future__ import annotations

import json

import pytest
from tests.terminal import ebrm, refused

from ebrm.cli import serve as command


@pytest.fixture
def served(monkeypatch):
    """What the server was run with; it ends at once."""
    calls = []

    def serve(model, settings, name, backbone, listening, ready):
        calls.append((model, settings, name, backbone))
        listening("http://127.0.0.1:1234")
        ready()

    monkeypatch.setattr("ebrm.serve.serve", serve)
    return calls


def test_settings_of_all_three_kinds_reach_the_server(model, served):
    options = ("--port", 0, "--max-wait", 2, "--estimate", "mode", "--token-budget", 99, "--truncation", "drop")
    ran = ebrm("serve", model, *options, "--token", "a")
    assert ran.code == 0, ran.err
    ((loaded, settings, name, backbone),) = served
    assert (settings.port, settings.max_wait, settings.token) == (0, 2.0, "a")
    assert loaded.inference.estimate == "mode" and name == str(model)
    assert backbone == {"token_budget": 99, "truncation": "drop"}
    assert ran.out == "listening on http://127.0.0.1:1234\n"
    assert f"ready: {model}" in ran.err


def test_machines_are_told_the_url(model, served):
    ran = ebrm("serve", model, "--json")
    assert json.loads(ran.out) == {"url": "http://127.0.0.1:1234", "model": str(model)}


def test_mistakes_are_one_paragraph(model, tmp_path, served):
    refused(ebrm("serve", tmp_path / "nothing"), "nothing")
    refused(ebrm("serve", model, "--port", 99999), "port", "0 to 65535")
    refused(ebrm("serve", model, "--queue", 3), "`--queue` is 3 texts")
    assert not served


def test_without_the_extra_it_says_what_to_install(model, monkeypatch):
    monkeypatch.setattr(command, "find_spec", lambda name: None if name == "uvicorn" else object())
    refused(ebrm("serve", model), "pip install '.[serve]'", "uvicorn")
