"""`ebrm export`: what it writes, says and refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.terminal import ebrm, refused, snapshot


def test_both_kinds_are_written(model: Path, tmp_path: Path) -> None:
    small = ebrm("export", model, "--out", tmp_path / "small", "--json")
    assert small.code == 0, small.err
    assert small.value["standalone"] is False
    whole = ebrm("export", model, "--out", tmp_path / "whole", "--standalone", "--dtype", "bfloat16")
    assert whole.code == 0, whole.err
    assert "standalone" in whole.out
    shared = {"README.md", "chat_template.jinja", "config.json", "energy.safetensors"}
    shared |= {"tokenizer.json", "tokenizer_config.json"}
    more = {"special_tokens_map.json"}  # which transformers 4 writes
    assert set(snapshot(tmp_path / "small")) - more == shared
    assert set(snapshot(tmp_path / "whole")) - more == shared | {"model.safetensors"}
    assert '"dtype": "bfloat16"' in (tmp_path / "whole" / "config.json").read_text()
    assert small.value["bytes"] == sum(len(found) for found in snapshot(tmp_path / "small").values())
    told = ebrm("info", tmp_path / "whole")
    assert told.code == 0 and "reward model" in told.out, told.err


def test_what_is_there_is_left_as_it_is(model: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    refused(ebrm("export", model, "--out", tmp_path), "exists already and is not empty")
    refused(ebrm("export", model, "--out", tmp_path / "mine"), "is a file")
    assert snapshot(tmp_path) == {"mine": b"x"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "--out is needed"),
        (("--out", "m", "--dtype", "int3"), "int3"),
        (("--out", "m", "--backbone", "no-such-rm"), "There is no reward model no-such-rm"),
    ],
)
def test_mistakes_are_one_paragraph(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(ebrm("export", model, *arguments), said)
    assert not list(tmp_path.iterdir())
    refused(ebrm("export", tmp_path, "--out", "m"), "holds no config.json")


def test_the_folder_that_the_command_runs_in_is_not_replaced(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(ebrm("export", model, "--out", "."), "--out is .", "that this command runs in")
    (tmp_path / ".m.4194305.partial").mkdir()
    assert ebrm("export", model, "--out", "m").code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
