"""Features read by the actors of a Ray cluster on this machine."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.features.fakes import FakeBackbone, contents, interrupted, preferences, some_preferences
from tests.terminal import ROOT, child_environment, ebrm, preference_rows, refused, write_lines

from ebrm.backbone import BackboneConfig
from ebrm.errors import ConfigError, FeaturesError, TextError
from ebrm.features import EngineConfig, FeatureConfig, distributed, extract_features, ray_engine
from ebrm.features import ray as on_ray
from ebrm.features.extract import tokenize_preferences
from ebrm.features.ray import read_on_ray

SMALL = FeatureConfig(shard_rows=8)

# Ray Data warns of its own default settings when its context is made (`use_polars`, `use_push_based_shuffle`, …).
pytestmark = pytest.mark.filterwarnings("ignore:`use_.* is deprecated:DeprecationWarning")


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """Ray on this machine with two processors, so two actors; it and all its processes end with the module."""
    import ray

    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{child_environment()['PYTHONPATH']}")
        patched.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patched.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
        ray.init(
            address="local", num_cpus=2, num_gpus=0, object_store_memory=100_000_000, include_dashboard=False,
            log_to_driver=False, logging_level=logging.ERROR,
        )  # fmt: skip
        yield
        ray.shutdown()


def hooked(folder: Path, kill: str = "", times: int = 1, **options) -> FakeBackbone:
    """A reward model that notes what it reads in `folder`, and kills its process at the token ids named `kill`."""

    class Hooked(FakeBackbone):
        def read(self, token_ids, on_error="raise"):
            first = str(token_ids[0])
            seen = len(list(folder.glob("read-*")))
            (folder / f"read-{os.getpid()}-{seen}-{len(self.reads)}").write_text(str(len(token_ids)))
            deaths = list(folder.glob("death-*"))
            if first == kill and len(deaths) < times:
                (folder / f"death-{os.getpid()}").touch()
                (folder.parent / "f" / f".shard-00003.safetensors.{os.getpid()}.partial").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().read(token_ids)

    return Hooked(**options)


def first_read(data, shard: int, tmp_path: Path) -> str:
    """What is read first of a shard, by its token ids."""
    whole = extract_features(FakeBackbone(), data, tmp_path / "whole", SMALL)
    assert len(whole) > 4 * 8
    (tmp_path / "whole" / f"shard-{shard:05d}.safetensors").rename(tmp_path / "kept")
    backbone = FakeBackbone()
    extract_features(backbone, data, tmp_path / "whole", SMALL)
    return str(backbone.reads[0][0])


def extract(load, data, out, settings=None, backbone=None):
    engine = partial(read_on_ray, load, settings or EngineConfig("ray"))
    return extract_features(backbone or FakeBackbone(), data, out, SMALL, engine=engine)


def shards(folder: Path) -> list[str]:
    return sorted(name for name in contents(folder) if name.startswith("shard"))


@pytest.mark.slow
def test_a_run_begun_here_is_finished_by_actors_one_of_which_is_killed(tmp_path, caplog):
    data = some_preferences(40)
    culprit = first_read(data, 3, tmp_path)
    interrupted(tmp_path / "f", data)
    before = shards(tmp_path / "f")
    assert 0 < len(before) < 3
    (tmp_path / "log").mkdir()
    driver = FakeBackbone()
    with caplog.at_level(logging.INFO):
        made = extract(partial(hooked, tmp_path / "log", culprit), data, tmp_path / "f", backbone=driver)
    assert driver.reads == []  # not even to measure the drift
    assert contents(tmp_path / "f") == contents(tmp_path / "whole")  # nothing half written is left either
    assert made.manifest["batch_drift"] is not None
    dead = {path.name.split("-")[1] for path in (tmp_path / "log").glob("death-*")}
    readers = {path.name.split("-")[1] for path in (tmp_path / "log").glob("read-*")}
    assert len(dead) == 1 and len(readers - dead) >= 2
    rows = sum(int(p.read_text()) for p in (tmp_path / "log").glob("read-*") if p.name.split("-")[1] not in dead)
    assert rows < len(made) - 8 * len(before) + 8 + 2 * 16 + 1  # finished shards are not read again
    assert f"Reading {len(shards(tmp_path / 'f')) - len(before)} shards with 2 Ray actors of 1 CPUs" in caplog.text


@pytest.mark.slow
def test_a_shard_at_which_every_actor_dies_is_named_and_the_rest_is_kept(tmp_path):
    data = some_preferences(40)
    culprit = first_read(data, 3, tmp_path)
    (tmp_path / "log").mkdir()
    with pytest.raises(FeaturesError, match=r"3 Ray actors died one after the other at shard 3 \(train.jsonl:\d+, "):
        extract(partial(hooked, tmp_path / "log", culprit, 99), data, tmp_path / "f")
    assert len(list((tmp_path / "log").glob("death-*"))) == 3
    assert shards(tmp_path / "f") and "shard-00003.safetensors" not in shards(tmp_path / "f")
    assert (tmp_path / "f" / "manifest.json").exists()
    extract_features(FakeBackbone(), data, tmp_path / "f", SMALL)
    assert contents(tmp_path / "f") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_ctrl_c_keeps_the_finished_shards_and_one_process_goes_on(tmp_path, monkeypatch):
    data, done = some_preferences(40), []

    @contextmanager
    def progress(what, total, unit):
        class Bar:
            def advance(self, amount):
                done.extend([amount] if what == "features" else [])
                if len(done) == 3:
                    raise KeyboardInterrupt

        yield Bar()

    with monkeypatch.context() as patched:
        patched.setattr(distributed, "progress", progress)
        with pytest.raises(KeyboardInterrupt):
            extract(FakeBackbone, data, tmp_path / "f")
    kept = shards(tmp_path / "f")
    assert len(kept) >= 3 and not (tmp_path / "f" / ".lock").exists()
    again = FakeBackbone()
    extract_features(again, data, tmp_path / "f", SMALL)
    extract_features(FakeBackbone(), data, tmp_path / "whole", SMALL)
    assert contents(tmp_path / "f") == contents(tmp_path / "whole")


def test_the_command_makes_the_same_folder(tmp_path):
    from tests.tiny import save_rm  # not above: the actors import this file, and need no transformers

    rm, pairs = save_rm(tmp_path / "rm", "llama"), write_lines(tmp_path / "pairs.jsonl", preference_rows(20))
    common = ("features", "--backbone", rm, "--data", pairs, "--shard-rows", 10)
    assert ebrm(*common, "--out", tmp_path / "local").code == 0
    ran = ebrm(*common, "--out", tmp_path / "ray", "--engine", "ray", "--ray-actors", 2, "--json")
    assert ran.code == 0, ran.err
    assert ran.value["items"] == 40  # nothing else on stdout
    assert "raylet" not in ran.err and "MapWorker" not in ran.err
    assert contents(tmp_path / "local") == contents(tmp_path / "ray")


# What an actor does, in this process


def actor(load, out: Path, data) -> on_ray._Actor:
    """An actor for a folder that a run has begun, and that nobody has died in."""
    interrupted(out, data)
    texts, _, _ = tokenize_preferences(FakeBackbone(), data, distributed.World())
    begun = SimpleNamespace(begin=SimpleNamespace(remote=lambda number: 0))
    return on_ray._Actor(load, 1, out, json.loads((out / "manifest.json").read_text(encoding="utf-8")), texts, begun)


@pytest.fixture
def nearby(monkeypatch):
    monkeypatch.setattr("ray.get", lambda value: value)


def test_an_error_in_an_actor_arrives_as_it_would_without_ray(tmp_path, nearby):
    data = some_preferences(40)

    class Broken(FakeBackbone):
        def read(self, token_ids, on_error="raise"):
            reading = super().read(token_ids)
            reading.embedding[0] = torch.nan
            return reading

    made = actor(Broken, tmp_path / "f", data)({"shard": np.array([2])})
    with pytest.raises(FeaturesError, match="The embedding of train.jsonl:.* is NaN or infinite") as told:
        extract_features(Broken(), data, tmp_path / "f", SMALL)
    assert (made["kind"], made["error"]) == (["FeaturesError"], [str(told.value)])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"fingerprint": "b" * 64}, "weights_fingerprint is bbb.* on .* and aaa.* where the run was started"),
        ({"max_length": 300}, "max_length is 300 for .* and 400 for the machine that started the run"),
        ({"layers": (2,)}, "the embedding differs: .*layers is 2 on .* and none where the run was started"),
    ],
)
def test_an_actor_that_loads_another_model_says_so(tmp_path, nearby, options, said):
    made = actor(partial(FakeBackbone, **options), tmp_path / "f", some_preferences())({"shard": np.array([2])})
    assert made["kind"] == ["BackboneError"] and re.search(f"load different reward models: .*{said}", made["error"][0])


def test_an_actor_that_does_not_see_the_folder_says_so(tmp_path, nearby):
    made = actor(FakeBackbone, tmp_path / "f", some_preferences())
    (tmp_path / "f").rename(tmp_path / "elsewhere")
    said = made({"shard": np.array([2])})
    assert said["kind"] == ["FeaturesError"] and "put it on a shared file system" in said["error"][0]
    assert not (tmp_path / "f").exists()


# What needs no actor


def test_a_text_that_is_too_long_stops_before_any_actor_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(on_ray, "_import_ray", lambda: pytest.fail("Ray was used"))
    data = preferences([("p", "a", "b"), ("p", "a" * 40, "b")])
    with pytest.raises(TextError, match="train.jsonl:2, chosen: 42 tokens"):
        extract(FakeBackbone, data, tmp_path / "f", backbone=FakeBackbone(max_length=30))
    assert contents(tmp_path) == {}


def test_without_ray_one_paragraph_says_how_to_install_it(tmp_path, monkeypatch):
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    monkeypatch.setitem(sys.modules, "ray.data", None)
    ran = ebrm(
        "features", "--backbone", "demo", "--data", tmp_path / "pairs.jsonl", "--out", tmp_path / "f", "--engine", "ray"
    )
    refused(ran, "pip install '.[ray]'")
    assert not (tmp_path / "f").exists()


def test_a_cluster_that_is_not_there_is_said_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(ConfigError, match=r"No Ray cluster can be reached or started at 127.0.0.1:1: .*ray start"):
        extract(FakeBackbone, some_preferences(3), tmp_path / "f", EngineConfig("ray", ray_address="127.0.0.1:1"))


def test_a_cluster_without_room_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="No machine of the Ray cluster has 1 CPUs and 1 GPUs .* have 2 CPUs, 0 G"):
        extract(FakeBackbone, some_preferences(3), tmp_path / "f", EngineConfig("ray", ray_gpus=1))


def test_processes_of_accelerate_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("ebrm.features.distributed.World.__init__", lambda self: self.__dict__.update(rank=0, size=2))
    with pytest.raises(FeaturesError, match="without `accelerate launch`"):
        extract(FakeBackbone, some_preferences(3), tmp_path / "f")


def test_a_reward_model_on_the_cpu_takes_no_gpu():
    chosen = ray_engine(BackboneConfig("rm", device="cpu"), config=EngineConfig("ray", ray_actors=3)).args[1]
    assert chosen == EngineConfig("ray", ray_actors=3, ray_gpus=0)
    assert ray_engine(BackboneConfig("rm")).args[1] == EngineConfig("ray")
