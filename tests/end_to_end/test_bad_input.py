"""Bad input through the command line: a clear error or a counted skip, exit code 2, nothing there harmed."""

from __future__ import annotations

import itertools
import json
import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.terminal import answer_rows, ebrm, ebrm_forked, preference_rows, read_lines, refused, snapshot, write_lines
from tests.tiny import edit_config, save_rm

from ebrm.scoring import score as scoring

QUICK = ("--head", "energy", "--joint-widths", "12,6", "--epochs", "2")


@pytest.fixture(autouse=True)
def plain_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ebrm.report.write_report", lambda path, data: path.write_text("a report"))


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A folder with somebody's file, in which commands work."""
    (tmp_path / "precious.txt").write_text("keep me")
    return tmp_path


def features_of(rm: str | Path, data: Path, out: Path, *more: object) -> Any:
    return ebrm("features", "--backbone", rm, "--data", data, "--out", out, *more)


def fit_of(features: Path, out: Path, *more: object) -> Any:
    return ebrm("fit", "--features", features, "--out", out, *QUICK, *more)


# ---- preference data ----------------------------------------------------------------------------------------------

LINE = json.dumps(preference_rows(1)[0])
BAD_DATA: list[tuple[str, str, tuple[str, ...]]] = [
    ("empty file", "", ("bad.jsonl", "no rows")),
    ("not JSON at line 3", f"{LINE}\n{LINE}\n{{'prompt': 1}}\n", ("bad.jsonl:3", "JSON")),
    ("wrong columns", '{"question": "a", "good": "b", "bad": "c"}\n', ("question, good, bad", "--column")),
    ("empty strings", f'{LINE}\n{{"prompt": "a", "chosen": "", "rejected": "b"}}\n', ("bad.jsonl:2", "empty")),
    ("chosen = rejected", f'{LINE}\n{{"prompt": "a", "chosen": "b", "rejected": "b"}}\n', ("bad.jsonl:2", "equal")),
    ("not UTF-8", LINE + "\n{\"prompt\": \"\udcff\"}\n", ("bad.jsonl:2", "UTF-8")),
]  # fmt: skip


@pytest.mark.parametrize(("text", "words"), [row[1:] for row in BAD_DATA], ids=[row[0] for row in BAD_DATA])
def test_preference_data(rm: Path, kept: Path, text: str, words: tuple[str, ...]) -> None:
    data = kept / "bad.jsonl"
    data.write_bytes(text.encode("utf-8", "surrogateescape"))
    before = snapshot(kept)
    refused(features_of(rm, data, kept / "f"), *words)
    assert snapshot(kept) == before


def test_bad_rows_are_skipped_and_counted(rm: Path, kept: Path) -> None:
    good = preference_rows(6)
    bad = [{**good[0], "chosen": ""}, {**good[1], "rejected": good[1]["chosen"]}, {**good[2], "chosen": None}]
    data = write_lines(kept / "mixed.jsonl", [*good[:3], *bad, *good[3:]])
    refused(features_of(rm, data, kept / "f"), "3 of 9 rows", "mixed.jsonl:4", "--bad-rows skip")
    ran = features_of(rm, data, kept / "f", "--bad-rows", "skip", "--json")
    assert ran.code == 0, ran.err
    assert ran.value["pairs"] == 6
    assert sum(ran.value["data"]["skipped"].values()) == 3
    assert "3 skipped" in ran.err


def test_a_prompt_longer_than_the_model(rm: Path, model: Path, kept: Path) -> None:
    rows = preference_rows(4)
    rows[2]["prompt"] = "word " * 400
    data = write_lines(kept / "long.jsonl", rows)
    before = snapshot(kept)
    refused(features_of(rm, data, kept / "f"), "long.jsonl:3", "128", "truncation")
    assert snapshot(kept) == before
    dropped = features_of(rm, data, kept / "dropped", "--truncation", "drop", "--json")
    assert (dropped.value["pairs"], dropped.value["dropped"]) == (3, 1)
    cut = features_of(rm, data, kept / "cut", "--truncation", "prompt_left", "--json")
    assert (cut.value["pairs"], cut.value["truncated"]) == (4, 2)
    answers = write_lines(kept / "answers.jsonl", [{"prompt": rows[2]["prompt"], "response": "a"}, *answer_rows(2)])
    refused(ebrm("score", model, answers, "--out", kept / "out.jsonl"), "answers.jsonl:1", "128", "--bad-rows mark")
    assert not (kept / "out.jsonl").exists()


# ---- reward models ------------------------------------------------------------------------------------------------


def test_what_is_no_reward_model(pairs: Path, rm: Path, kept: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("models")
    headless = save_rm(folder / "headless", "llama", "base")
    edit_config(headless, architectures=["LlamaForSequenceClassification"])
    broken = shutil.copytree(rm, folder / "broken")
    (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:1000])
    before = snapshot(kept)
    for name in ("nobody/no-such-model", kept / "nowhere", "not a name", headless, broken):
        refused(features_of(name, pairs, kept / "f"), str(name))
        assert snapshot(kept) == before


# ---- features and models on disk ----------------------------------------------------------------------------------


def test_features_of_another_reward_model_or_template(
    rm: Path, pairs: Path, features: Path, model: Path, kept: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = save_rm(tmp_path_factory.mktemp("other") / "other", "llama", seed=1)
    before = snapshot(features)
    refused(features_of(other, pairs, features, "--shard-rows", 40), "weights_fingerprint")
    refused(features_of(rm, pairs, features, "--shard-rows", 40, "--template", "plain"), "template")
    assert snapshot(features) == before
    assert features_of(other, pairs, kept / "other").code == 0
    refused(ebrm("score", model, kept / "other", "--out", kept / "o.jsonl"), "reward model", "weights_fingerprint")
    assert features_of(rm, pairs, kept / "plain", "--template", "plain").code == 0
    refused(ebrm("score", model, kept / "plain", "--out", kept / "o.jsonl"), "text rule", "template")
    answers = write_lines(kept / "a.jsonl", answer_rows(2))
    refused(ebrm("score", model, answers, "--out", kept / "o.jsonl", "--backbone", other), "weights_fingerprint")
    assert not (kept / "o.jsonl").exists()


def test_a_damaged_shard(features: Path, model: Path, kept: Path) -> None:
    broken = shutil.copytree(features, kept / "f")
    shard = broken / "shard-00001.safetensors"
    data = bytearray(shard.read_bytes())
    data[-3] ^= 0x40
    shard.write_bytes(data)
    before = snapshot(kept)
    refused(fit_of(broken, kept / "m"), "shard-00001.safetensors")
    refused(ebrm("score", model, broken, "--out", kept / "o.jsonl"), "shard-00001.safetensors")
    shutil.rmtree(kept / ".m.work", ignore_errors=True)
    assert snapshot(kept) == before


# ---- writing ------------------------------------------------------------------------------------------------------


def full_after(size: int) -> Callable[[], None]:
    """No file may grow beyond `size` bytes: writing fails as on a full disk."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


def test_disk_full(rm: Path, pairs: Path, features: Path, model: Path, kept: Path) -> None:
    answers = write_lines(kept / "a.jsonl", answer_rows(40))
    before = snapshot(kept)
    ran = ebrm_forked("score", model, answers, "--out", kept / "o.jsonl", before=full_after(5000))
    refused(ran, "File too large", "same command again")
    assert not (kept / "o.jsonl").exists()
    assert ebrm("score", model, answers, "--out", kept / "o.jsonl").code == 0
    assert len(read_lines(kept / "o.jsonl")) == 40

    refused(ebrm_forked("features", "--backbone", rm, "--data", pairs, "--out", kept / "f", before=full_after(2000)))
    assert features_of(rm, pairs, kept / "f").code == 0

    fit = ("fit", "--features", features, "--out", kept / "m", *QUICK)
    refused(ebrm_forked(*fit, before=full_after(2000)), "File too large")
    assert not (kept / "m").exists()
    assert ebrm(*fit).code == 0
    after = snapshot(kept)
    assert {name: after[name] for name in before} == before


def test_nowhere_to_write(features: Path, model: Path, pairs: Path, rm: Path, kept: Path) -> None:
    answers = write_lines(kept / "a.jsonl", answer_rows(2))
    under = kept / "precious.txt" / "below"
    before = snapshot(kept)
    refused(ebrm("score", model, answers, "--out", under / "o.jsonl"), "precious.txt")
    refused(fit_of(features, under), "precious.txt")
    refused(features_of(rm, pairs, under), "precious.txt")
    assert snapshot(kept) == before


# ---- stopped in the middle ----------------------------------------------------------------------------------------


def stopped(by: signal.Signals, n: int, *command: object) -> None:
    """Run a command and stop it just before its n-th finished file gets its name: half a file lies there then."""

    def arm() -> None:
        rename, count = os.replace, itertools.count(1)

        def replace(*arguments: Any, **more: Any) -> None:
            if next(count) == n:
                os.kill(os.getpid(), by)
            rename(*arguments, **more)

        os.replace = replace

    ran = ebrm_forked(*command, before=arm)
    if by == signal.SIGKILL:
        assert ran.code == -signal.SIGKILL, ran
    else:
        assert ran.code == 130, ran
        assert "Traceback" not in ran.err
        assert ran.err.count("ebrm: Interrupted.") == 1
        assert "run the same command again" in ran.err


def test_features_stopped(rm: Path, pairs: Path, features: Path, kept: Path) -> None:
    command = ("features", "--backbone", rm, "--data", pairs, "--out", kept / "f", "--shard-rows", 40)
    stopped(signal.SIGKILL, 3, *command)
    stopped(signal.SIGINT, 2, *command)
    assert ebrm(*command).code == 0
    assert snapshot(kept / "f") == snapshot(features)


def test_fit_stopped(rm: Path, pairs: Path, kept: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    whole = tmp_path_factory.mktemp("whole") / "m"
    assert ebrm("fit", "--backbone", rm, "--data", pairs, "--out", whole, *QUICK).code == 0
    command = ("fit", "--backbone", rm, "--data", pairs, "--out", kept / "m", *QUICK)
    stopped(signal.SIGKILL, 3, *command)
    assert not (kept / "m").exists()
    stopped(signal.SIGINT, 6, *command)  # after the one shard
    assert not (kept / "m").exists()
    assert ebrm(*command).code == 0
    assert (kept / "m" / "energy.safetensors").read_bytes() == (whole / "energy.safetensors").read_bytes()
    assert sorted(path.name for path in kept.iterdir()) == ["m", "precious.txt"]


def test_score_stopped(model: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "CHUNK_ROWS", 7)
    source = write_lines(kept / "in.jsonl", answer_rows(30))
    assert ebrm("score", model, source, "--out", kept / "whole.jsonl").code == 0
    command = ("score", model, source, "--out", kept / "out.jsonl")
    stopped(signal.SIGKILL, 7, *command)  # job.json, two chunks with their checksums, and half of the third
    stopped(signal.SIGINT, 7, *command)
    assert not (kept / "out.jsonl").exists()
    ran = ebrm(*command)
    assert ran.code == 0, ran.err
    assert "28 of 30 rows were scored before" in ran.err
    assert (kept / "out.jsonl").read_bytes() == (kept / "whole.jsonl").read_bytes()
    assert not list(kept.glob(".out.jsonl.*.partial"))


# ---- odd but good text --------------------------------------------------------------------------------------------


def test_odd_text_goes_through(rm: Path, model: Path, kept: Path) -> None:
    odd = [
        "ünï 🙂 👩‍👩‍👧 \u202e right",
        "null \x00 byte",
        "\u2028\x85 line ends \r\n",
        "<|end|></s>[SEP]",
        '"x", \\ {x}',
    ]
    rows = [{"prompt": f"{text} {i}", "chosen": f"{text} a", "rejected": f"{text} b"} for i, text in enumerate(odd)]
    ran = features_of(rm, write_lines(kept / "odd.jsonl", rows), kept / "f", "--json")
    assert ran.code == 0, ran.err
    assert ran.value["pairs"] == len(odd)
    odd.append("word " * 200_000)  # a megabyte
    answers = write_lines(kept / "a.jsonl", [{"prompt": text[:99], "response": text} for text in odd])
    assert ebrm("score", model, answers, "--out", kept / "o.jsonl", "--bad-rows", "mark").code == 0
    *found, big = read_lines(kept / "o.jsonl")
    assert [row["response"] for row in [*found, big]] == odd and "128" in big["error"]
    assert all(isinstance(row["reward"], float) and row["error"] is None for row in found)
