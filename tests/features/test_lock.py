from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.features.fakes import FakeBackbone, contents, some_preferences

from ebrm.errors import FeaturesError, TextError
from ebrm.features import FeatureConfig, extract_features
from ebrm.features import manifest as manifests
from ebrm.features.distributed import World
from ebrm.features.lock import lock_folder
from ebrm.utils.files import atomic_path

ROOT = Path(__file__).resolve().parents[2]
IDENTITY = {name: None for name in ("origin", "backbone", "text", "data", "embedding_dtype", "shard_rows")}


def test_a_new_or_empty_folder_is_claimed_and_left_without_a_lock(tmp_path):
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "empty", tmp_path / "deep" / "new"):
        with lock_folder(out, IDENTITY, World()) as found:
            assert found is None and out.is_dir()
        assert contents(out) == {}


@pytest.mark.parametrize("name", ["notes.txt", ".hidden", "shard-00000.safetensors", "sub", "manifest.json"])
def test_a_folder_with_something_else_in_it_is_refused_and_untouched(tmp_path, name):
    (tmp_path / name).mkdir() if name == "sub" else (tmp_path / name).write_text('{"name": "a web app"}')
    before = sorted(tmp_path.iterdir()), contents(tmp_path)
    said = f"is not empty and holds no features .it has {name}, and no manifest"
    if name == "manifest.json":
        said = "not the manifest of an ebrm features folder"
    with pytest.raises(FeaturesError, match=said):
        extract_features(FakeBackbone(), some_preferences(), tmp_path)
    assert (sorted(tmp_path.iterdir()), contents(tmp_path)) == before


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "f").write_text("mine")
    with pytest.raises(FeaturesError, match="is a file; features need a folder"):
        extract_features(FakeBackbone(), some_preferences(), tmp_path / "f")
    with pytest.raises(FeaturesError, match="cannot be written to"):
        extract_features(FakeBackbone(), some_preferences(), tmp_path / "f" / "g")
    assert (tmp_path / "f").read_text() == "mine"


def test_what_killed_runs_left_half_written_is_removed(tmp_path):
    leftovers = (".manifest.json.4194305.partial", ".shard-00000.safetensors.4194306.partial", ".lock")
    finished = {}
    for _ in range(2):  # killed at the beginning, and at the very end
        for name in leftovers:
            (tmp_path / name).write_text("half")
        extract_features(FakeBackbone(), some_preferences(), tmp_path)
        finished = finished or contents(tmp_path)
        assert contents(tmp_path) == finished and not any(name.startswith(".") for name in finished)


def test_what_living_processes_are_writing_is_not_removed(tmp_path):
    with atomic_path(tmp_path / "f" / "rewards.jsonl") as partial:
        extract_features(FakeBackbone(), some_preferences(), tmp_path / "f")
        assert partial.exists()


def test_a_run_that_failed_before_its_first_shard_stops_no_other(tmp_path):
    out = tmp_path / "f"
    backbone = FakeBackbone(on_read=lambda count: os.kill(os.getpid(), signal.SIGINT))
    for fails in (FakeBackbone(max_length=1), backbone):
        with pytest.raises((FeaturesError, TextError, KeyboardInterrupt)):
            extract_features(fails, some_preferences(), out, FeatureConfig(shard_rows=8))
    extract_features(FakeBackbone(), some_preferences(15), out)
    extract_features(FakeBackbone(), some_preferences(15), tmp_path / "g")
    assert contents(out) == contents(tmp_path / "g")


def test_unfinished_features_of_another_kind_go_only_when_a_restart_is_asked_for(tmp_path):
    def stop(count):
        if count == 2:
            raise KeyboardInterrupt

    out, small = tmp_path / "f", FeatureConfig(shard_rows=8)
    with pytest.raises(KeyboardInterrupt):
        extract_features(FakeBackbone(token_budget=400, on_read=stop), some_preferences(), out, small)
    assert (out / "shard-00000.safetensors").exists()
    with pytest.raises(FeaturesError, match="the beginning of other features.*`restart=true` to discard"):
        extract_features(FakeBackbone(), some_preferences(15), out, small)
    restart = FeatureConfig(shard_rows=8, restart=True)
    extract_features(FakeBackbone(), some_preferences(15), out, restart)
    finished = contents(out)
    extract_features(FakeBackbone(), some_preferences(15), out, restart)
    with pytest.raises(FeaturesError, match="holds other features"):
        extract_features(FakeBackbone(), some_preferences(), out, restart)
    assert contents(out) == finished


HOLD = """
import sys
from pathlib import Path
from ebrm.features.lock import lock_folder
from ebrm.features.distributed import World

with lock_folder(Path(sys.argv[1]), {}, World()):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_two_processes_do_not_write_one_folder(tmp_path):
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    command, pipe = [sys.executable, "-c", HOLD, str(tmp_path / "f")], subprocess.PIPE
    holder = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
    with holder:
        assert holder.stdout.readline() == "held\n"
        backbone = FakeBackbone()
        with pytest.raises(FeaturesError, match=f"Another run is writing features to .*: process {holder.pid} on .*-c"):
            extract_features(backbone, some_preferences(), tmp_path / "f")
        assert backbone.tokenized == 0 and set(contents(tmp_path / "f")) == {".lock"}
        holder.stdin.close()
    assert holder.returncode == 0
    extract_features(FakeBackbone(), some_preferences(), tmp_path / "f")
    assert ".lock" not in contents(tmp_path / "f")


def test_a_finished_folder_is_returned_with_its_manifest_also_read_only(tmp_path):
    made = extract_features(FakeBackbone(), some_preferences(), tmp_path / "f")
    tmp_path.joinpath("f").chmod(0o555)
    try:
        extract_features(FakeBackbone(), some_preferences(), tmp_path / "f")
        with lock_folder(tmp_path / "f", manifests.identity(made.manifest), World()) as found:
            assert found == made.manifest
        assert not any(name.startswith(".") for name in contents(tmp_path / "f"))
    finally:
        tmp_path.joinpath("f").chmod(0o755)
