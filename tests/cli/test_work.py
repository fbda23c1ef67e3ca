"""What a command that failed leaves behind: nothing that stands in the way of its corrected form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.terminal import ebrm, preference_rows, refused, snapshot, write_lines

import ebrm as library
from ebrm.features import writer


def fit(rm: Path, data: Path, out: Path, *more: object) -> Any:
    return ebrm("fit", "--backbone", rm, "--data", data, "--out", out, *more)


@pytest.fixture(autouse=True)
def plain_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ebrm.report.write_report", lambda path, data: path.write_text("a report"))


def test_a_fit_that_failed_before_any_work_leaves_nothing(
    rm: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "m"
    long = write_lines(
        tmp_path / "long.jsonl", [*preference_rows(30), {"prompt": "a", "chosen": "b " * 9999, "rejected": "c"}]
    )
    before = snapshot(tmp_path)
    refused(fit(rm, tmp_path / "typo.jsonl", out), "typo.jsonl")
    refused(fit(tmp_path / "no-rm", pairs, out), "no-rm")
    refused(fit(rm, long, out), "long.jsonl:31")
    for error in (KeyboardInterrupt, MemoryError):
        with monkeypatch.context() as patched:
            patched.setattr(writer, "write_shard", _raising(error))
            if error is KeyboardInterrupt:
                ran = fit(rm, pairs, out)
                assert (ran.code, "Nothing was written" in ran.err) == (130, True)
            else:
                with pytest.raises(error):
                    fit(rm, pairs, out)
    assert snapshot(tmp_path) == before and sorted(path.name for path in tmp_path.iterdir()) == ["long.jsonl"]
    assert fit(rm, pairs, out, "-q").code == 0


def _raising(error: type[BaseException]) -> Any:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


def test_texts_that_were_read_serve_another_head_and_no_other_texts(
    rm: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "m"
    with monkeypatch.context() as patched:
        patched.setattr(library, "fit", _fit_and_stop(library.fit))
        assert fit(rm, pairs, out).code == 130
    other = write_lines(tmp_path / "other.jsonl", preference_rows(40, seed=5))
    ran = fit(rm, other, out, "--layers", "none", "--column", "prompt=prompt")
    refused(ran, f"--data was {pairs} and is {other}", "--layers was 0.333333,0.666667 and is unset", "--restart")
    refused(ran, "--column was unset and is prompt=prompt")
    with monkeypatch.context() as patched:
        patched.setattr(writer, "write_shard", _raising(AssertionError))  # nothing is read again
        ran = fit(rm, pairs, out, "--head", "linear", "--seed", 3, "--token-budget", 100)
        assert ran.code == 0, ran.err
    assert {path.name for path in tmp_path.iterdir()} == {"m", "other.jsonl"}


def _fit_and_stop(real: Any) -> Any:
    def fit(*arguments: Any, **settings: Any) -> None:
        real(*arguments, **settings)
        raise KeyboardInterrupt

    return fit


def test_a_restart_discards_what_is_unfinished_and_never_a_model(
    rm: Path, pairs: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "m"
    with monkeypatch.context() as patched:
        patched.setattr(library, "fit", _fit_and_stop(library.fit))
        assert fit(rm, pairs, out).code == 130
    assert fit(rm, pairs, out, "--layers", "none", "--restart", "-q").code == 0
    before = snapshot(tmp_path)
    refused(fit(rm, pairs, out, "--restart"), "exists already", "--layers was unset and is 0.333333,0.666667")
    assert snapshot(tmp_path) == before and [path.name for path in tmp_path.iterdir()] == ["m"]
