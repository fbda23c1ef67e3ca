"""Whatever stored files hold, reading them works or is refused in one paragraph; never a traceback, never NaN."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.linear import linear_features
from tests.mutated import broken, mutated, wrong_tensors
from tests.terminal import ebrm

from ebrm.cli.console import Console
from ebrm.cli.work import work_folder
from ebrm.demo.run import _is_demonstration
from ebrm.errors import EBRMError
from ebrm.features import open_features, save_features
from ebrm.fitting import fit
from ebrm.heads import EnergyConfig, LinearConfig, PrototypesConfig, ResidualConfig, TrainingConfig, fit_head
from ebrm.model import EnergyRewardModel
from ebrm.pairs import PreferencePairs
from ebrm.scoring.files import Journal
from ebrm.utils.files import sha256_file
from ebrm.utils.tensors import save_tensors

#: Mutations a test; 3,000 in all were tried once with EBRM_MUTATIONS=400.
FEW = settings(max_examples=int(os.environ.get("EBRM_MUTATIONS", "20")), phases=[Phase.generate])
DRAWS = st.integers(0, 2**32).map(Random)
HEADS = {
    "energy": EnergyConfig(training=TrainingConfig(epochs=1)), "residual": ResidualConfig(),
    "linear": LinearConfig(ridge=1.0),
    "prototypes": PrototypesConfig(epochs=1, hidden=4, dimension=2),
}  # fmt: skip


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of each head, and features."""
    root = tmp_path_factory.mktemp("stored")
    features = linear_features(40)
    save_features(features, root / "features")
    for name, config in HEADS.items():
        fit(features, head=config).model.save_pretrained(root / name)
    return root


@contextmanager
def changed(path: Path, data: bytes) -> Iterator[None]:
    """The file with other bytes while the body runs."""
    before = path.read_bytes()
    path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(before)


def ends_well(run: Callable[[], Any]) -> Any:
    """What it gives, or None where it is refused in one paragraph."""
    try:
        return run()
    except EBRMError as error:
        assert len(str(error)) < 1500 and str(error).endswith((".", "`", "!")), str(error)
        return None


def info(folder: Path) -> None:
    ran = ebrm("info", folder)
    assert ran.code in (0, 2) and "Traceback" not in ran.err and "\x1b" not in ran.out + ran.err, ran
    assert ran.code == 0 or len(ran.err.splitlines()) == 1, ran.err


def refined(folder: Path) -> torch.Tensor:
    model = EnergyRewardModel.from_pretrained(folder)
    return model.refine(torch.zeros(3, model.embedding_size), torch.tensor([-1.0, 0.0, 2.0])).reward


@FEW
@given(draw=DRAWS, head=st.sampled_from(sorted(HEADS)))
def test_a_model_s_config(stored: Path, draw: Random, head: str) -> None:
    path = stored / head / "config.json"
    with changed(path, mutated(path.read_bytes(), draw)):
        found = ends_well(lambda: refined(path.parent))
        assert found is None or bool(found.isfinite().all())
        info(path.parent)


@FEW
@given(draw=DRAWS, head=st.sampled_from(sorted(HEADS)))
def test_a_model_s_tensors_under_a_right_checksum(stored: Path, draw: Random, head: str) -> None:
    folder = stored / head
    weights, config = folder / "energy.safetensors", folder / "config.json"
    before, right = weights.read_bytes(), refined(folder)
    name, how, tensors = wrong_tensors(load_file(weights), draw)
    try:
        save_file(tensors, weights)
        said = json.loads(config.read_text()) | {"weights_sha256": sha256_file(weights)}
        with changed(config, json.dumps(said).encode()):
            found = ends_well(lambda: refined(folder))
    finally:
        weights.write_bytes(before)
    assert found is None or bool(found.isfinite().all()), (name, how)
    if how in ("type", "shape", "missing", "surplus") or "nan" in how:
        assert found is None, (name, how, right)


@FEW
@given(draw=DRAWS)
def test_a_manifest(stored: Path, draw: Random) -> None:
    path = stored / "features" / "manifest.json"
    with changed(path, mutated(path.read_bytes(), draw)):
        found = ends_well(lambda: open_features(path.parent))
        assert found is None or bool(found.embedding(slice(0, 3)).isfinite().all())
        info(path.parent)


@FEW
@given(draw=DRAWS, name=st.sampled_from(("pairs.parquet", "items.parquet", "shard-00000.safetensors")))
def test_files_of_features_under_a_right_checksum(stored: Path, draw: Random, name: str) -> None:
    path, manifest = stored / "features" / name, stored / "features" / "manifest.json"
    with changed(path, broken(path.read_bytes(), draw)):
        said = json.loads(manifest.read_text())
        said["files"][name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        with changed(manifest, json.dumps(said).encode()):
            ends_well(lambda: open_features(path.parent).embedding(slice(0, 3)))


@FEW
@given(draw=DRAWS)
def test_records_of_unfinished_and_finished_work(tmp_path_factory: pytest.TempPathFactory, draw: Random) -> None:
    folder = tmp_path_factory.mktemp("work")
    out, job = folder / "o.jsonl", {"input": "1", "model": {"a": [1, 2.5]}}
    journal = Journal(out, job, {"limit": 3})
    assert not journal.open(overwrite=False)
    journal.part(0, "jsonl").write_text("x")
    path = journal.folder / "job.json"
    with changed(path, mutated(path.read_bytes(), draw)):
        ends_well(lambda: Journal(out, job, {"limit": 3}).open(overwrite=False))
    out.write_text("done")
    journal.finish({"rows": 1})
    with changed(journal.done, mutated(journal.done.read_bytes(), draw)):
        again = Journal(out, job)
        if ends_well(lambda: again.open(overwrite=False)):
            assert again.record["summary"] == {"rows": 1}
    groups = {"source": {"data": ["a.jsonl"]}, "reading": {"limit": None}, "head": {"kind": "linear", "ridge": 0.5}}
    work = folder / ".m.work"

    def fit_again() -> None:
        with work_folder(folder / "m", groups, False, lambda name: f"--{name}", Console(quiet=True)):
            (work / "checkpoint.safetensors").write_text("x")

    fit_again()
    with changed(work / "job.json", mutated((work / "job.json").read_bytes(), draw)):
        ends_well(fit_again)
    shutil.rmtree(folder)


@FEW
@given(draw=DRAWS)
def test_the_config_that_a_demonstration_is_told_by(stored: Path, draw: Random) -> None:
    shutil.copytree(stored / "linear", stored / "model", dirs_exist_ok=True)
    path = stored / "model" / "config.json"
    with changed(path, mutated(path.read_bytes(), draw)):
        assert not _is_demonstration(stored)
    shutil.rmtree(stored / "model")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Callable[[], Any]]:
    path = tmp_path_factory.mktemp("checkpoint") / "checkpoint.safetensors"
    features = linear_features(20)
    none = PreferencePairs.of([], [])

    def run(epochs: int = 1) -> Any:
        config = EnergyConfig(training=TrainingConfig(epochs=epochs))
        rows = features.embedding(slice(None))
        return fit_head(config, rows, features.reward, features.pairs, none, checkpoint=path).history

    run()
    return path, run


@FEW
@given(draw=DRAWS, name=st.sampled_from(("run", "history")))
def test_a_checkpoint_s_records_under_a_right_checksum(
    checkpoint: tuple[Path, Callable[[], Any]], draw: Random, name: str
) -> None:
    path, run = checkpoint
    before = path.read_bytes()
    with safe_open(path, framework="pt") as handle:
        metadata = {key: value for key, value in handle.metadata().items() if key != "sha256"}
        tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118
    made = mutated(metadata[name].encode(), draw)
    try:
        metadata[name] = made.decode()
    except UnicodeDecodeError:
        assume(False)
    try:
        save_tensors(path, tensors, metadata)
        ends_well(run)
    finally:
        path.write_bytes(before)
