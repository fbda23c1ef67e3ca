from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.features.fakes import FakeBackbone, contents, some_preferences

from ebrm.errors import FeaturesError
from ebrm.features import FeatureConfig, extract_features
from ebrm.features.distributed import World

ROOT = Path(__file__).resolve().parents[2]

SHARE = """
import json, os, sys
from pathlib import Path
import torch
from ebrm.errors import EBRMError
from ebrm.features import extract_features
from ebrm.features import FeatureConfig
from tests.features.fakes import FakeBackbone, some_preferences

torch.set_num_threads(1)
folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
said = {}


class Broken(FakeBackbone):
    def read(self, token_ids, on_error="raise"):
        reading = super().read(token_ids)
        if rank == 1:
            reading.embedding[0] = torch.nan
        return reading


for name, backbone in (
    ("together", FakeBackbone()), ("broken", Broken()), ("together", FakeBackbone()), ("broken", FakeBackbone())
):
    try:
        made = extract_features(backbone, some_preferences(), folder / name, FeatureConfig(shard_rows=4))
        what = {"items": len(made), "complete": made.manifest["complete"]}
    except EBRMError as error:
        what = {"error": str(error)}
    drift = {tuple(ids) for ids in getattr(backbone, "drift_ids", [])}
    reads = backbone.reads if not drift else backbone.reads[: -1 - len(backbone.drift_ids)]
    said.setdefault(name, []).append(what | {"read": sum(map(len, reads)), "tokenized": backbone.tokenized})
print(json.dumps(said))
torch.distributed.destroy_process_group()
"""


def test_alone_there_is_one_process(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    world = World()
    assert (world.rank, world.size, world.main) == (0, 1, True)
    world.barrier()
    with pytest.raises(FeaturesError, match="mine"):
        world.barrier(FeaturesError("mine"))


def test_processes_that_cannot_reach_each_other_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("accelerate.PartialState", lambda cpu: SimpleNamespace(process_index=0, num_processes=1))
    with pytest.raises(FeaturesError, match="2 processes were launched"):
        World()


def test_only_the_main_process_shows_progress(monkeypatch):
    shown = []

    class Bar:
        advance = shown.append

    monkeypatch.setattr("ebrm.features.distributed.progress", lambda what, total, unit: nullcontext(Bar))
    alone = World()
    for alone.rank in (1, 0):
        with alone.progress("features", 10, "tokens") as advance:
            advance(10 + alone.rank)
    assert shown == [10]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """What two processes said that made features together, and where."""
    folder = tmp_path_factory.mktemp("shared")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = os.environ | {
        "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "ACCELERATE_USE_CPU": "true", "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    command, pipes = [sys.executable, "-c", SHARE, str(folder)], {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    processes = [
        subprocess.Popen(command, **pipes, text=True, env=shared | {"RANK": rank, "LOCAL_RANK": rank}) for rank in "01"
    ]
    said = []
    for process in processes:
        out, errors = process.communicate()
        assert process.returncode == 0, errors
        said.append(json.loads(out.splitlines()[-1]))
    return folder, said


def test_two_processes_share_the_shards_and_make_the_bytes_of_one(shared, tmp_path):
    folder, said = shared
    alone = extract_features(FakeBackbone(), some_preferences(), tmp_path / "alone", FeatureConfig(shard_rows=4))
    assert contents(folder / "together") == contents(tmp_path / "alone")
    first = [process["together"][0] for process in said]
    assert [what["items"] for what in first] == [len(alone)] * 2 and all(what["complete"] for what in first)
    shards = -(-len(alone) // 4)
    evens = 4 * (shards // 2)
    assert [what["read"] for what in first] == [len(alone) - evens, evens] and evens > 4
    assert [process["together"][1]["tokenized"] for process in said] == [0, 0]


def test_what_stops_one_process_stops_all_and_all_can_go_on(shared):
    folder, said = shared
    (main, other) = (process["broken"] for process in said)
    assert "is NaN or infinite" in other[0]["error"]
    assert main[0]["error"] == f"Process 1 of 2 stopped: {other[0]['error']}"
    assert main[1]["complete"] and other[1]["complete"]
    assert main[1]["read"] < main[0]["read"]
    assert contents(folder / "broken") == contents(folder / "together")
