from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load, save
from tests.features.fakes import FakeBackbone, ask, contents, interrupted, preferences, some_preferences

from ebrm.data import prompt_id
from ebrm.errors import BackboneError, FeaturesError, TextError
from ebrm.features import (
    FeatureConfig,
    Features,
    Text,
    distributed,
    extract_features,
    extract_texts,
    open_features,
    save_features,
)
from ebrm.features.extract import text_id
from ebrm.features.shards import shard_bytes
from ebrm.pairs import PreferencePairs
from ebrm.utils.files import write_json

ROOT = Path(__file__).resolve().parents[2]
SMALL = FeatureConfig(shard_rows=8)


def test_items_are_the_different_texts_in_order_of_first_appearance(tmp_path):
    backbone = FakeBackbone()
    rows = [("p", "a", "b"), ("p", "c", "a"), ("q", "a", "b"), ("p", "a", "b")]
    made = extract_features(
        backbone,
        preferences(rows, source=["s", None, "t", "s"], category=["x", "y", None, "x"], strength=[1.5, None, 2, 0]),
        tmp_path / "f",
        rm_training=[True, False, False, True],
    )
    assert len(made) == backbone.tokenized == 5  # (p, a) (p, b) (p, c) (q, a) (q, b)
    assert made.pairs.chosen.tolist() == [0, 2, 3, 0]
    assert made.pairs.rejected.tolist() == [1, 0, 4, 1]
    assert made.pairs.source.tolist() == ["s", None, "t", "s"]
    assert made.pairs.category.tolist() == ["x", "y", None, "x"]
    assert made.pairs.split.tolist() == [None] * 4
    assert made.pairs.where.tolist() == [f"train.jsonl:{n}" for n in (1, 2, 3, 4)]
    np.testing.assert_array_equal(made.pairs.strength, [1.5, np.nan, 2, 0])
    assert made.pairs.rm_training.tolist() == [True, False, False, True]
    ids = made.pairs.prompt_id
    assert ids[0] == ids[1] == ids[3] != ids[2]
    texts = [text_id(ids[row], response) for row, response in ((0, "a"), (0, "b"), (0, "c"), (2, "a"), (2, "b"))]
    assert pq.read_table(tmp_path / "f" / "items.parquet").to_pydict() == {
        "prompt_id": [ids[0]] * 3 + [ids[2]] * 2, "tokens": [3] * 5, "truncated": [0] * 5, "text_id": texts,
    }  # fmt: skip


def test_every_item_has_the_embedding_and_reward_of_its_own_text(tmp_path):
    backbone, data = FakeBackbone(), some_preferences()
    made = extract_features(backbone, data, tmp_path / "f", SMALL)
    assert len(made) > 3 * SMALL.shard_rows
    for side, items in (("chosen", made.pairs.chosen), ("rejected", made.pairs.rejected)):
        for row, item in zip(data, items, strict=True):
            alone = backbone.embed(backbone.tokenize(row.prompt, getattr(row, side)).ids)
            torch.testing.assert_close(made.embedding(torch.tensor([item]))[0], alone, rtol=1e-3, atol=0)
            torch.testing.assert_close(made.reward[item], alone @ torch.arange(1.0, 6.0), rtol=1e-3, atol=1e-3)


def test_the_manifest_says_what_made_the_features(tmp_path):
    backbone, data = FakeBackbone(), some_preferences()
    made = extract_features(backbone, data, tmp_path / "f", SMALL)
    said = json.loads((tmp_path / "f" / "manifest.json").read_text(encoding="utf-8"))
    assert said == made.manifest
    lengths = pq.read_table(tmp_path / "f" / "items.parquet").column("tokens").to_pylist()
    expected = {
        "complete": True, "origin": "extracted", "backbone": backbone.probed().to_dict(),
        "text": backbone.text_rule.identity(), "data": {"fingerprint": data.fingerprint, "rm_training": None},
        "embedding_dtype": "float32", "embedding_size": 5, "shard_rows": 8, "items": len(made), "pairs": 25,
        "tokens": sum(lengths), "truncated": 0, "dropped": 0, "dropped_texts": 0,
    }  # fmt: skip
    assert {name: said[name] for name in expected} == expected
    assert said["preferences"]["origin"] == "train.jsonl"
    names = {path.name for path in (tmp_path / "f").iterdir()}
    assert names == {"manifest.json", *said["files"]}
    for name, entry in said["files"].items():
        assert contents(tmp_path / "f")[name] == entry["sha256"]
        assert (tmp_path / "f" / name).stat().st_size == entry["bytes"]


def test_batch_drift_is_measured_from_the_shortest_to_the_longest_text(tmp_path):
    backbone = FakeBackbone(token_budget=10_000)
    made = extract_features(backbone, some_preferences(60), tmp_path / "f", FeatureConfig(shard_rows=1000))
    assert len(made) > 16
    lengths = [len(ids) for ids in backbone.drift_ids]
    tokens = pq.read_table(tmp_path / "f" / "items.parquet").column("tokens").to_pylist()
    assert len(lengths) == 16 and lengths == sorted(lengths)
    assert (lengths[0], lengths[-1]) == (min(tokens), max(tokens))
    rewards = backbone.read(backbone.drift_ids).reward
    assert made.manifest["batch_drift"] == pytest.approx(float(rewards.abs().max()) * 15e-5, rel=0.01)


def test_a_finished_folder_is_returned_without_tokenizing_or_reading(tmp_path):
    data = some_preferences()
    extract_features(FakeBackbone(), data, tmp_path / "f", SMALL)
    before, backbone = contents(tmp_path / "f"), FakeBackbone()
    again = extract_features(backbone, data, tmp_path / "f", SMALL)
    assert (backbone.reads, backbone.tokenized) == ([], 0)
    assert len(again.pairs) == 25 and contents(tmp_path / "f") == before


def test_a_folder_that_states_that_no_layers_were_read_is_as_one_written_before_there_were_layers(tmp_path):
    extract_features(FakeBackbone(), some_preferences(), tmp_path / "f", SMALL)
    manifest = json.loads((tmp_path / "f" / "manifest.json").read_text(encoding="utf-8"))
    assert "layers" not in manifest["backbone"]
    write_json(tmp_path / "f" / "manifest.json", manifest | {"backbone": manifest["backbone"] | {"layers": []}})
    backbone = FakeBackbone()
    extract_features(backbone, some_preferences(), tmp_path / "f", SMALL)
    assert not backbone.reads


def test_the_same_run_gives_the_same_bytes_and_a_shard_depends_only_on_its_own_items(tmp_path):
    whole, part = some_preferences(25), some_preferences(25)
    part = type(part)(part.rows[:15], part.report)
    for name in ("whole", "again"):
        extract_features(FakeBackbone(), whole, tmp_path / name, SMALL)
    assert contents(tmp_path / "whole") == contents(tmp_path / "again")
    made = extract_features(FakeBackbone(), part, tmp_path / "part", SMALL)
    full = len(made) // 8
    assert full >= 2
    for number in range(full):
        name = f"shard-{number:05d}.safetensors"
        assert contents(tmp_path / "whole")[name] == contents(tmp_path / "part")[name]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_embeddings_can_be_stored_in_half_the_space(tmp_path, dtype):
    full = extract_features(FakeBackbone(), some_preferences(), tmp_path / "full", SMALL)
    half = extract_features(FakeBackbone(), some_preferences(), tmp_path / "half", FeatureConfig(dtype, 8))
    assert torch.equal(half.reward, full.reward)
    assert torch.equal(half.embedding(slice(None)), full.embedding(slice(None)).to(getattr(torch, dtype)).float())
    assert half.embeddings.stored_dtype == getattr(torch, dtype)


# What is done before the first forward


def test_a_text_that_is_too_long_stops_before_anything_is_read_or_written(tmp_path):
    backbone = FakeBackbone(max_length=30)
    data = preferences([("p", "a", "b")] * 3 + [("p", "a" * 40, "b")])
    with pytest.raises(TextError, match=r"train.jsonl:4, chosen: 42 tokens"):
        extract_features(backbone, data, tmp_path / "f")
    assert backbone.reads == [] and contents(tmp_path) == {}


def test_pairs_with_a_side_that_is_too_long_are_dropped_and_counted(tmp_path):
    long = "x" * 50
    rows = [("q", "a", long), ("p", "a", long), ("p", "b", "c"), ("p", long, "d"), ("p", "c", "a")]
    backbone = FakeBackbone(max_length=20, truncation="drop")
    made = extract_features(backbone, preferences(rows), tmp_path / "f", rm_training=[False, False, True, False, False])
    # Items: (p, a), first seen in a dropped pair but used by the last one; (p, b); (p, c). Not (q, a) and (p, d).
    assert len(made) == 3
    assert made.pairs.chosen.tolist() == [1, 2] and made.pairs.rejected.tolist() == [2, 0]
    assert made.pairs.where.tolist() == ["train.jsonl:3", "train.jsonl:5"]
    assert made.pairs.rm_training.tolist() == [True, False]
    assert made.manifest["dropped"] == 3
    texts = [text_id(made.pairs.prompt_id[0], reply) for reply in "abc"]
    assert pq.read_table(tmp_path / "f" / "items.parquet").column("text_id").to_pylist() == texts
    assert (made.manifest["dropped_texts"], made.manifest["items"], made.manifest["tokens"]) == (2, 3, 9)
    read = [ids for call in backbone.reads for ids in call]
    assert all(ids[-1] in map(ord, "abc") for ids in read)
    for item, reply in enumerate("abc"):
        alone = backbone.embed([ord("p"), 0, ord(reply)])
        torch.testing.assert_close(made.embedding(slice(item, item + 1))[0], alone, rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("rows", "rm_training", "said"),
    [
        ([("p", "x" * 50, "a"), ("p", "b", "y" * 50)], None, "No pair is left: all 2 .* max_length .20 tokens"),
        ([], None, "no preference pairs"),
        ([("p", "a", "b")], [True, False], "2 entries for 1 pairs"),
    ],
)
def test_where_no_pair_is_left_nothing_is_made(tmp_path, rows, rm_training, said):
    backbone = FakeBackbone(max_length=20, truncation="drop")
    with pytest.raises(FeaturesError, match=said):
        extract_features(backbone, preferences(rows), tmp_path / "f", rm_training=rm_training)
    assert contents(tmp_path) == {}


def test_cut_prompts_are_counted(tmp_path):
    rows = [("p" * 30, "a", "b"), ("p", "a", "b")]
    made = extract_features(FakeBackbone(max_length=20, truncation="prompt_left"), preferences(rows), tmp_path / "f")
    assert made.manifest["truncated"] == 2
    assert pq.read_table(tmp_path / "f" / "items.parquet").column("truncated").to_pylist() == [12, 12, 0, 0]


def test_progress_counts_every_text_and_every_token(tmp_path, monkeypatch):
    seen = []

    @contextmanager
    def progress(what, total, unit):
        entry = {"what": what, "total": total, "unit": unit, "done": 0, "steps": 0}
        seen.append(entry)

        class Bar:
            def advance(self, amount, **stats):
                entry["done"] += amount
                entry["steps"] += 1

        yield Bar()

    monkeypatch.setattr(distributed, "progress", progress)
    made = extract_features(FakeBackbone(), some_preferences(), tmp_path / "f", SMALL)
    assert [(entry["what"], entry["unit"]) for entry in seen] == [("tokenizing", "texts"), ("features", "tokens")]
    assert [entry["total"] for entry in seen] == [50, made.manifest["tokens"]] == [entry["done"] for entry in seen]
    assert seen[1]["steps"] >= len(made) / 8
    (tmp_path / "f" / "shard-00001.safetensors").unlink()
    extract_features(FakeBackbone(), some_preferences(), tmp_path / "f", SMALL)
    tokens = pq.read_table(tmp_path / "f" / "items.parquet").column("tokens").to_pylist()
    assert seen[3]["total"] == sum(tokens[8:16]) == seen[3]["done"]


# What goes wrong while reading


class Faulty(FakeBackbone):
    """A reward model that has `fault` at texts that end in an exclamation mark."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault

    def embed(self, ids):
        return super().embed(ids) * (1e6 if ids[-1] == ord("!") and self.fault == "large" else 1)

    def read(self, token_ids, on_error="raise"):
        reading = super().read(token_ids)
        for row in (row for row, ids in enumerate(token_ids) if ids[-1] == ord("!")):
            if self.fault == "error":
                raise BackboneError("gives 1 of 1 texts an embedding that is not a finite number")
            if self.fault in ("embedding", "reward"):
                getattr(reading, self.fault)[row] = torch.inf if self.fault == "reward" else torch.nan
        return reading


@pytest.mark.parametrize(
    ("fault", "error", "said"),
    [
        ("error", BackboneError, r"train.jsonl:2, rejected: gives 1 of 1"),
        ("embedding", FeaturesError, r"The embedding of train.jsonl:2, rejected is NaN or infinite"),
        ("reward", FeaturesError, r"The reward of train.jsonl:2, rejected is NaN or infinite"),
        ("large", FeaturesError, r"train.jsonl:2, rejected reaches \d.*e\+06, more than float16 can hold .65504"),
    ],
)
def test_a_text_whose_numbers_cannot_be_used_is_named_by_its_place(tmp_path, fault, error, said):
    data = preferences([("p", "a", "b"), ("p", "c", "d!")])
    with pytest.raises(error, match=said):
        extract_features(Faulty(fault), data, tmp_path / "f", FeatureConfig("float16"))
    assert not (tmp_path / "f" / "shard-00000.safetensors").exists()


class Haunted(FakeBackbone):
    """A reward model that gives NaN for texts that end in an exclamation mark."""

    def read(self, token_ids, on_error="raise"):
        reading = super().read(token_ids)
        bad = [row for row, ids in enumerate(token_ids) if ids[-1] == ord("!")]
        if bad and on_error == "raise":
            raise BackboneError(f"gives {len(bad)} of {len(token_ids)} texts a reward that is not a finite number.")
        reading.embedding[bad], reading.reward[bad] = torch.nan, torch.nan
        return reading


class TestTextsThatAreNotFinite:
    DATA = preferences([("p", "a", "b"), ("p", "c", "d!"), ("p", "e!", "f"), ("p", "g!", "h!"), ("q", "a", "b")])

    def test_stop_names_the_first_and_counts_the_others(self, tmp_path):
        with pytest.raises(
            BackboneError, match=r"train.jsonl:\d, .*: .* with 4 of the 10 texts .*bad_rows=.skip"
        ) as caught:
            extract_features(Haunted(), self.DATA, tmp_path / "f")
        assert "\n" not in str(caught.value)

    def test_skip_leaves_their_pairs_out_and_counts_them(self, tmp_path, caplog):
        made = extract_features(Haunted(), self.DATA, tmp_path / "f", FeatureConfig(shard_rows=3), bad_rows="skip")
        assert made.pairs.where.tolist() == ["train.jsonl:1", "train.jsonl:5"] and len(made) == 10
        assert made.manifest["bad_rows"] == {"NaN or infinite for the reward model": 3}
        assert made.manifest["not_finite"] == 4 and made.unread is not None and int(made.unread.sum()) == 4
        assert made.embedding(slice(None)).isfinite().all() and made.reward.isfinite().all()
        assert "3 pairs are left out: " in caplog.text
        again = open_features(tmp_path / "f")
        assert again.pairs.where.tolist() == made.pairs.where.tolist()
        backbone = Haunted()  # a finished folder is not read again
        extract_features(backbone, self.DATA, tmp_path / "f", FeatureConfig(shard_rows=3), bad_rows="skip")
        assert not backbone.reads
        (tmp_path / "f" / "shard-00001.safetensors").unlink()  # nor counted twice where a part is made anew
        anew = extract_features(Haunted(), self.DATA, tmp_path / "f", FeatureConfig(shard_rows=3), bad_rows="skip")
        assert anew.manifest["bad_rows"] == made.manifest["bad_rows"]

    def test_no_pair_is_left(self, tmp_path):
        with pytest.raises(FeaturesError, match="No pair is left: 1 pairs are left out: .*NaN or infinite"):
            extract_features(Haunted(), preferences([("p", "a", "b!")]), tmp_path / "f", bad_rows="skip")

    def test_texts_alone_are_known_by_their_ids(self, tmp_path):
        texts = [Text("p", ask("p"), reply, f"row {reply}") for reply in ("a", "b!", "c")]
        made = extract_texts(Haunted(), texts, tmp_path / "f")
        assert made.manifest["refused"] == {texts[1].id: "NaN or infinite for the reward model"}
        assert made.unread is not None and made.unread.tolist() == [False, True, False]
        assert made.manifest["dropped_texts"] == 1

    def test_numbers_that_are_not_finite_are_never_taken_from_elsewhere(self, tmp_path):
        features = Features.from_tensors(torch.ones(2, 3), torch.tensor([1.0, 2.0]), PreferencePairs.of([0], [1]))
        features.reward[0] = torch.nan
        with pytest.raises(FeaturesError, match="The reward of item 0 is NaN or infinite"):
            save_features(features, tmp_path / "f")


def test_a_large_embedding_fits_bfloat16(tmp_path):
    data = preferences([("p", "a", "b"), ("p", "c", "d!")])
    made = extract_features(Faulty("large"), data, tmp_path / "g", FeatureConfig("bfloat16"))
    assert float(made.embedding(slice(None)).abs().max()) > 1e5


# Resuming


KILL = """
import json, os, signal, sys
from pathlib import Path
import torch
from ebrm.features import extract_features, extract_texts
from ebrm.features import FeatureConfig
from tests.features.fakes import FakeBackbone, ask, contents, some_preferences

torch.set_num_threads(1)
os.fsync = lambda handle: None  # a killed process loses nothing that it wrote; only a machine without power does
folder, data, settings = Path(sys.argv[1]), some_preferences(8), FeatureConfig(shard_rows=4)
first = FakeBackbone()
extract_features(first, data, folder / "unbroken", settings)
drift = len(first.drift_ids)
whole = contents(folder / "unbroken")


def attempt(out, last):
    # Run in a process that kills itself when it comes to its event number `last`; give whether it did.
    child = os.fork()
    if child == 0:
        events = 0

        def event(*_):
            nonlocal events
            events += 1
            if events == last:
                os.kill(os.getpid(), signal.SIGKILL)

        def around(function):
            def call(*arguments, **options):
                event()
                result = function(*arguments, **options)
                event()
                return result
            return call

        os.replace, os.fsync = around(os.replace), event
        third = lambda count: event() if count == 3 else None
        backbone = FakeBackbone(on_tokenize=third, on_read=lambda _: event() if len(backbone.reads[-1]) > 1 else None)
        extract_features(backbone, data, out, settings)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or status == 0, status
    return os.WIFSIGNALED(status)


results, last = [], 1
while True:
    out = folder / str(last)
    killed = attempt(out, last)
    before = contents(out) if out.exists() else {}
    backbone = FakeBackbone()
    extract_features(backbone, data, out, settings)
    results.append({
        "killed": killed,
        "kept": [name for name in before if name.startswith("shard")],
        "partial": [name for name in before if name.endswith(".partial")],
        "read": sum(map(len, backbone.reads)),
        "same": contents(out) == whole,
    })
    if not killed:
        break
    last += 1
rounds = 0
while rounds < 20 and attempt(folder / "again and again", 12):
    rounds += 1
print(json.dumps({
    "results": results, "rounds": rounds,
    "drift": drift,
    "again": contents(folder / "again and again") == whole,
    "shards": sorted(name for name in whole if name.startswith("shard")),
}))
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """What came of runs that were killed at their first, second, third … event, each resumed once."""
    folder = tmp_path_factory.mktemp("killed")
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    run = subprocess.run([sys.executable, "-c", KILL, str(folder)], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_a_run_killed_at_any_event_ends_byte_identical_to_an_unbroken_one(killed):
    results = killed["results"]
    assert [result["killed"] for result in results] == [True] * (len(results) - 1) + [False]
    assert len(results) > 30
    assert all(result["same"] for result in results)
    assert {len(result["kept"]) for result in results} == set(range(len(killed["shards"]) + 1))
    assert any(result["partial"] for result in results)


def test_a_resumed_run_reads_only_what_is_missing(killed):
    most = killed["results"][0]["read"]
    for result in killed["results"][:-1]:
        if len(result["kept"]) == len(killed["shards"]):
            assert result["read"] in (0, 2 * killed["drift"])  # complete, or only the batch drift to measure
        else:
            assert result["read"] == most - 4 * len(result["kept"])
    assert killed["results"][-1]["read"] == 0


def test_a_run_killed_again_and_again_comes_to_its_end(killed):
    assert killed["rounds"] >= 2 and killed["again"]


def test_an_interrupted_run_leaves_its_finished_shards_and_no_lock(tmp_path):
    interrupted(tmp_path / "f", some_preferences())
    names = set(contents(tmp_path / "f"))
    assert "shard-00000.safetensors" in names and not any(name.startswith(".") for name in names)
    with pytest.raises(FeaturesError, match=r"unfinished: \d of \d shards are there. To finish, run `ebrm features`"):
        open_features(tmp_path / "f")


@pytest.mark.parametrize(
    ("backbone", "data", "config", "said"),
    [
        ({"fingerprint": "b" * 64}, {}, {}, r"weights_fingerprint is .aaa.* what is there and .bbb.* this run"),
        ({"max_length": 300}, {}, {}, "text.max_length is 400 for what is there and 300 for this run"),
        ({"truncation": "drop"}, {}, {}, 'text.truncation is "error" for what is there and "drop" for this run'),
        ({"layers": (2, 4)}, {}, {}, "layers is none for what is there and 2,4 for this run"),
        ({}, {"seed": 1}, {}, "data.fingerprint is .* for what is there and .* for this run"),
        ({}, {}, {"shard_rows": 9}, "shard_rows is 8 for what is there and 9 for this run"),
        ({}, {}, {"embedding_dtype": "bfloat16"}, 'embedding_dtype is "float32" for what is there and "bfloat16" for'),
    ],
)
@pytest.mark.parametrize("finished", [False, True])
def test_a_folder_of_something_else_is_refused_and_untouched(tmp_path, backbone, data, config, said, finished):
    if finished:
        extract_features(FakeBackbone(), some_preferences(), tmp_path / "f", SMALL)
    else:
        interrupted(tmp_path / "f", some_preferences())
    before, other = contents(tmp_path / "f"), FakeBackbone(**backbone)
    with pytest.raises(FeaturesError, match=said):
        extract_features(other, some_preferences(**data), tmp_path / "f", FeatureConfig(**{"shard_rows": 8} | config))
    assert other.reads == [] and contents(tmp_path / "f") == before


def test_the_same_weights_under_another_name_may_go_on(tmp_path):
    interrupted(tmp_path / "f", some_preferences())
    backbone = FakeBackbone()
    object.__setattr__(backbone.identity, "name", "/models/rm")
    extract_features(backbone, some_preferences(), tmp_path / "f", SMALL)
    extract_features(FakeBackbone(), some_preferences(), tmp_path / "g", SMALL)
    assert contents(tmp_path / "f") == contents(tmp_path / "g")


def test_a_tokenizer_that_has_changed_meanwhile_is_noticed(tmp_path):
    interrupted(tmp_path / "f", some_preferences())

    class Changed(FakeBackbone):
        def tokenize(self, prompt, response, where=""):
            text = super().tokenize(prompt, response, where)
            return type(text)([ids ^ 1 for ids in text.ids], 0)

    with pytest.raises(FeaturesError, match="same reward model, text rule and data.*content is"):
        extract_features(Changed(), some_preferences(), tmp_path / "f", SMALL)


def test_a_damaged_shard_is_named_and_what_is_deleted_is_made_anew(tmp_path):
    out, data = tmp_path / "f", some_preferences()
    extract_features(FakeBackbone(), data, out, SMALL)
    before, shard = contents(out), out / "shard-00001.safetensors"
    damaged = bytearray(shard.read_bytes())
    damaged[-30] ^= 1
    shard.write_bytes(damaged)
    backbone = FakeBackbone()
    with pytest.raises(FeaturesError, match="shard-00001.safetensors is damaged: its SHA-256.*Delete .* only what is"):
        extract_features(backbone, data, out, SMALL)
    assert backbone.reads == []
    shard.unlink()
    with pytest.raises(FeaturesError, match="shard-00001.safetensors is missing"):
        open_features(out)
    extract_features(backbone, data, out, SMALL)
    assert sum(map(len, backbone.reads)) == 8 and contents(out) == before
    tables = FakeBackbone()
    (out / "pairs.parquet").unlink()
    (out / "items.parquet").unlink()
    extract_features(tables, data, out, SMALL)
    assert tables.reads == [] and contents(out) == before


def flipped(data: bytes) -> bytes:
    return data[:-30] + bytes([data[-30] ^ 1]) + data[-29:]


def other_numbers(data: bytes) -> bytes:
    return shard_bytes(torch.zeros(8, 5, dtype=torch.bfloat16), torch.zeros(8))


def unsealed(data: bytes) -> bytes:
    return save({name: tensor.clone() for name, tensor in load(data).items()})


def of_another_place(data: bytes) -> bytes:
    tensors = load(data)
    return shard_bytes(tensors["embedding"], tensors["reward"], 1)


@pytest.mark.parametrize(
    "damage", [flipped, other_numbers, of_another_place, unsealed, lambda data: data[:100], lambda data: b""]
)
def test_damaged_shards_of_an_unfinished_folder_are_made_again_and_never_sealed(tmp_path, caplog, damage):
    whole, out = tmp_path / "whole", tmp_path / "f"
    extract_features(FakeBackbone(), some_preferences(), whole, SMALL)
    interrupted(out, some_preferences())
    shard = out / "shard-00000.safetensors"
    shard.write_bytes(damage(shard.read_bytes()))
    extract_features(FakeBackbone(), some_preferences(), out, SMALL)
    assert "1 shards in" in caplog.text and "are made again (shard-00000.safetensors: " in caplog.text
    assert contents(out) == contents(whole)


def test_damaged_tables_and_counts_of_an_unfinished_folder_are_made_again(tmp_path, caplog):
    whole, out = tmp_path / "whole", tmp_path / "f"
    extract_features(FakeBackbone(), some_preferences(), whole, SMALL)
    interrupted(out, some_preferences())
    for name in ("items.parquet", "pairs.parquet"):
        (out / name).write_bytes(flipped((out / name).read_bytes()))
    write_json(out / "manifest.json", json.loads((out / "manifest.json").read_text(encoding="utf-8")) | {"dropped": 7})
    extract_features(FakeBackbone(), some_preferences(), out, SMALL)
    assert caplog.text.count("is damaged (it is not what this run writes)") == 2
    assert contents(out) == contents(whole)


def test_a_shard_that_is_damaged_while_the_others_are_made_is_not_sealed(tmp_path):
    out = tmp_path / "f"

    def spoil(count):
        if count == 3:
            shard = out / "shard-00000.safetensors"
            shard.write_bytes(flipped(shard.read_bytes()))

    with pytest.raises(FeaturesError, match="shard-00000.safetensors was damaged after it had been written"):
        extract_features(FakeBackbone(on_read=spoil), some_preferences(), out, SMALL)
    assert not json.loads((out / "manifest.json").read_text(encoding="utf-8"))["complete"]
    extract_features(FakeBackbone(), some_preferences(), out, SMALL)
    extract_features(FakeBackbone(), some_preferences(), tmp_path / "whole", SMALL)
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.parametrize("finished", [False, True])
def test_features_are_not_gone_on_with_where_the_reward_model_gives_other_rewards(tmp_path, finished):
    out = tmp_path / "f"
    if finished:
        extract_features(FakeBackbone(), some_preferences(), out, SMALL)
    else:
        interrupted(out, some_preferences())
    before = contents(out)
    with pytest.raises(FeaturesError, match="other rewards than .*fixed text 1 of 2 has the reward 0.5 for .* 0.75"):
        extract_features(FakeBackbone(offset=0.75), some_preferences(), out, SMALL)
    assert contents(out) == before
    extract_features(FakeBackbone(offset=0.50001), some_preferences(), out, SMALL)  # rounding
    assert json.loads((out / "manifest.json").read_text(encoding="utf-8"))["backbone"]["probe"] == [0.5, 1.0]


def test_features_of_an_earlier_version_are_refused(tmp_path):
    extract_features(FakeBackbone(), some_preferences(), tmp_path / "f", SMALL)
    manifest = json.loads((tmp_path / "f" / "manifest.json").read_text(encoding="utf-8"))
    del manifest["backbone"]["config"]
    write_json(tmp_path / "f" / "manifest.json", manifest)
    with pytest.raises(FeaturesError, match="made by an earlier version.*make them again"):
        open_features(tmp_path / "f")


def test_unicode_null_bytes_and_long_texts_go_through(tmp_path):
    rows = [("é🙂\0", "a\0b", "🙂" * 3), ("é🙂\0", "x" * 100_000, "\0")]
    made = extract_features(FakeBackbone(max_length=10**6), preferences(rows, source=["\0", "🙂"]), tmp_path / "🙂 f")
    assert made.pairs.source.tolist() == ["\0", "🙂"] and len(open_features(tmp_path / "🙂 f")) == 4


def test_a_real_reward_model(tmp_path):
    from tests.tiny import save_rm

    from ebrm.backbone import BackboneConfig, load_backbone

    backbone = load_backbone(BackboneConfig(str(save_rm(tmp_path / "rm", "llama")), device="cpu", token_budget=256))
    data = preferences([("Hi", "Hello.", "Go away"), ("Why?", "Because of the moon", "No"), ("Hi", "Oh", "Hello.")])
    made = extract_features(backbone, data, tmp_path / "f", FeatureConfig(shard_rows=2))
    assert made.embedding_size == 32 + 32 and len(made) == 5  # the head's input, and the mean of one of two blocks
    assert made.manifest["backbone"]["layers"] == [1]
    for row, chosen, rejected in zip(data, made.pairs.chosen, made.pairs.rejected, strict=True):
        for item, reply in ((chosen, row.chosen), (rejected, row.rejected)):
            alone = backbone.read([backbone.tokenize(row.prompt, reply).ids])
            torch.testing.assert_close(made.embedding(slice(item, item + 1)), alone.embedding, rtol=0, atol=1e-5)
            torch.testing.assert_close(made.reward[item : item + 1], alone.reward, rtol=0, atol=1e-5)
    torch.testing.assert_close(backbone.head(made.embedding(slice(None))), made.reward, rtol=0, atol=1e-5)
    assert 0 <= made.manifest["batch_drift"] < 1e-5
    made.check(backbone.identity.to_dict(), backbone.text_rule.identity())


def text(prompt: str, response: str, where: str = "here") -> Text:
    return Text(prompt_id(ask(prompt)), ask(prompt), response, where)


@pytest.mark.parametrize("truncation", ["error", "drop"])
def test_texts_without_pairs(tmp_path, truncation):
    backbone = FakeBackbone(max_length=12, truncation=truncation)
    given = [text(*one) for one in (("p", "a"), ("p", "far too long a text"), ("q", "b"), ("p", "a"))]
    made = extract_texts(backbone, given, tmp_path / "f", SMALL)
    assert (len(made), len(made.pairs)) == (2, 0)
    assert made.manifest["dropped_texts"] == 1 and backbone.tokenized == 3
    assert made.manifest["refused"] == {given[1].id: "longer than the 12 tokens that the RM reads"}
    items = pq.read_table(tmp_path / "f" / "items.parquet").to_pydict()
    assert items["text_id"] == [given[0].id, given[2].id]
    for number, one in enumerate((given[0], given[2])):
        alone = backbone.embed(backbone.tokenize(one.prompt, one.response).ids)
        torch.testing.assert_close(made.embedding(slice(number, number + 1))[0], alone, rtol=1e-3, atol=0)
    reads = len(backbone.reads)
    again = extract_texts(backbone, given, tmp_path / "f", SMALL)
    assert len(backbone.reads) == reads and torch.equal(again.reward, made.reward)
    extract_texts(FakeBackbone(max_length=3), given[1:2], tmp_path / "g")  # all refused: remembered, too
    nothing = open_features(tmp_path / "g")
    assert len(nothing) == 0 and list(nothing.manifest["refused"]) == [given[1].id]


def test_a_text_is_known_by_its_prompt_and_response():
    one = text("p", "a")
    assert one.id == text_id(one.prompt_id, "a") == text("p", "a", "elsewhere").id
    assert one.id == hashlib.sha256(f"{one.prompt_id}\na".encode()).hexdigest()[:16]
    assert len({one.id, text("p", "b").id, text("q", "a").id}) == 3
    assert text("p", "\ud83d").id  # half an emoji has an id, too
