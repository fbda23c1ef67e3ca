from __future__ import annotations

import dataclasses
import errno
import logging
import os
import resource

import pytest
import torch
from tests.features.fakes import FakeBackbone, contents, some_preferences

from ebrm.errors import FeaturesError
from ebrm.features import FeatureConfig, Features, extract_features, open_features, save_features
from ebrm.features import writer as write
from ebrm.pairs import PreferencePairs

SMALL = FeatureConfig(shard_rows=8)


def test_a_file_size_limit_says_what_is_needed_and_keeps_what_is_made(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(count):
        if count == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))  # a shard has 64 kB; Python ignores SIGXFSZ

    backbone = FakeBackbone(embedding_size=2000, token_budget=10_000, on_read=limit)
    try:
        kept = r"are kept and not redone"
        said = rf"shard-00002.* cannot be written: File too large.*need about \d+.\d kB, of which 128.1 kB are .*{kept}"
        with pytest.raises(FeaturesError, match=said):
            extract_features(backbone, some_preferences(), tmp_path / "f", SMALL)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    made = sorted(name for name in contents(tmp_path / "f") if "shard" in name)
    assert made == ["shard-00000.safetensors", "shard-00001.safetensors"]
    for name in ("f", "g"):
        whole = FakeBackbone(embedding_size=2000, token_budget=10_000)
        extract_features(whole, some_preferences(), tmp_path / name, SMALL)
    assert contents(tmp_path / "f") == contents(tmp_path / "g")


@pytest.mark.parametrize("at", range(1, 8))
def test_a_full_disk_at_any_file_leaves_what_can_be_continued(tmp_path, monkeypatch, at):
    writes, sync = 0, os.fsync

    def fsync(handle):
        nonlocal writes
        writes += 1
        if writes == at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(FeaturesError, match="No space left on device. These features need about"):
        extract_features(FakeBackbone(), some_preferences(15), tmp_path / "f", SMALL)
    assert not any(name.startswith(".") for name in contents(tmp_path / "f"))
    extract_features(FakeBackbone(), some_preferences(15), tmp_path / "f", SMALL)
    extract_features(FakeBackbone(), some_preferences(15), tmp_path / "g", SMALL)
    assert contents(tmp_path / "f") == contents(tmp_path / "g")


def test_another_failure_to_write_names_the_file(tmp_path, monkeypatch):
    def replace(source, target):
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(FeaturesError, match="manifest.json cannot be written: Permission denied"):
        extract_features(FakeBackbone(), some_preferences(), tmp_path / "f", SMALL)


def test_too_little_room_is_said_at_the_beginning(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(write.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 100})())
    with caplog.at_level(logging.WARNING):
        extract_features(FakeBackbone(), some_preferences(), tmp_path / "f", SMALL)
    assert "are still needed there and 100 bytes are free" in caplog.text


def test_a_remade_shard_that_came_out_different_is_recorded_aloud(tmp_path, caplog):
    out = tmp_path / "f"
    extract_features(FakeBackbone(), some_preferences(), out, SMALL)
    before = contents(out)
    (out / "shard-00001.safetensors").unlink()
    with caplog.at_level(logging.WARNING):
        extract_features(FakeBackbone(token_budget=100_000), some_preferences(), out, SMALL)
    assert "shard-00001.safetensors was made anew and is not byte for byte" in caplog.text
    after = contents(open_features(out).path)
    assert {name for name in before if before[name] != after[name]} == {"manifest.json", "shard-00001.safetensors"}


def in_memory(n: int = 10) -> Features:
    generator = torch.Generator().manual_seed(0)
    pairs = PreferencePairs.of(
        range(0, n, 2), range(1, n, 2), prompt_id=[f"p{i // 2}" for i in range(n // 2)], source=["s"] * (n // 2)
    )
    embedding, reward = torch.randn(n, 4, generator=generator), torch.randn(n, generator=generator)
    return Features.from_tensors(embedding, reward, pairs, backbone={"name": "rm"}, text={"template": "plain"})


def test_features_in_memory_can_be_written(tmp_path):
    known = in_memory()
    made = save_features(known, tmp_path / "f", FeatureConfig("bfloat16", 3))
    assert made.manifest["backbone"] == {"name": "rm"} and made.manifest["text"] == {"template": "plain"}
    assert torch.equal(made.embedding(slice(None)), known.embedding(slice(None)).bfloat16().float())
    assert torch.equal(made.reward, known.reward)
    assert made.pairs.prompt_id.tolist() == known.pairs.prompt_id.tolist()
    before = contents(tmp_path / "f")
    save_features(in_memory(), tmp_path / "f", FeatureConfig("bfloat16", 3))
    assert contents(tmp_path / "f") == before
    other = dataclasses.replace(known, reward=known.reward + 1)
    with pytest.raises(FeaturesError, match="holds other features than this run makes: data.fingerprint is"):
        save_features(other, tmp_path / "f", FeatureConfig("bfloat16", 3))


def test_features_on_disk_can_be_written_smaller_with_all_that_is_known(tmp_path):
    full = extract_features(FakeBackbone(), some_preferences(), tmp_path / "full", SMALL)
    half = save_features(full, tmp_path / "half", FeatureConfig("float16", 5))
    direct = extract_features(FakeBackbone(), some_preferences(), tmp_path / "direct", FeatureConfig("float16", 8))
    assert torch.equal(half.embedding(slice(None)), direct.embedding(slice(None)))
    for name in ("items.parquet", "pairs.parquet"):
        assert contents(tmp_path / "half")[name] == contents(tmp_path / "full")[name]
    same = ("backbone", "text", "data", "tokens", "items", "pairs", "batch_drift", "origin")
    assert {name: half.manifest[name] for name in same} == {name: full.manifest[name] for name in same}


def test_items_know_the_prompt_of_their_pairs():
    pairs = PreferencePairs.of([0, 2], [1, 0], prompt_id=["p", "p"])
    assert write.item_prompts(pairs, 4) == ["p", "p", "p", None]
