from __future__ import annotations

import inspect
from collections.abc import Iterator

import pytest
import torch
from benchmarks import members
from benchmarks.members import ELSEWHERE, Made, main, timed

import ebrm.aggregate
import ebrm.heads
import ebrm.logprobs
import ebrm.optimize
import ebrm.shape

#: What is public but gives no rewards: results.
NOT_MEMBERS = {"BilevelWeights", "Majority", "Selection", "Followups"}
#: Where packages have more than functions of numbers: the modules that are functions of numbers.
NUMBERS = {
    ebrm.optimize: ("ebrm.optimize.advantages", "ebrm.optimize.policy_losses", "ebrm.optimize.weights"),
    ebrm.heads: ("ebrm.heads.losses",),
    ebrm.logprobs: ("ebrm.logprobs.followups", "ebrm.logprobs.rewards", "ebrm.logprobs.tokens"),
}


def public() -> Iterator[str]:
    for package in (ebrm.aggregate, ebrm.shape, ebrm.optimize, ebrm.heads, ebrm.logprobs):
        for name in package.__all__:
            value = getattr(package, name)
            if not (inspect.isfunction(value) or inspect.isclass(value)):
                continue
            if package not in NUMBERS or value.__module__ in NUMBERS[package]:
                yield name


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Made:
    return Made.up(800, 10)


def test_every_public_member_is_timed_or_said_why_not(small: Made) -> None:
    assert set(public()) - NOT_MEMBERS == set(members.members(small)) | set(ELSEWHERE)


def test_all_of_them_run(small: Made) -> None:
    taken = timed(small, turns=1)
    assert set(taken) == set(members.members(small)) and min(taken.values()) > 0


def test_made_rewards_have_the_size_that_is_said() -> None:
    made = Made.up(800, 20)
    assert len(made.reward) == made.table.numel() == made.std.numel() == 800
    for groups in (made.groups, made.of_table):
        assert groups.count == 20 and bool((groups.sizes > 0).all())
    assert torch.equal(made.table, Made.up(800, 20).table)
    assert (members.REWARDS, members.GROUPS) == (1_000_000, 100_000)


def test_the_table_says_what_is_too_slow(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(members.Made, "up", lambda: None)
    monkeypatch.setattr(members.torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(members, "timed", lambda made, only: {"a": 0.1, "b": 0.6})
    assert main([]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["a", "0.100", "s"] and lines[1].endswith("too slow")
    monkeypatch.setattr(members, "timed", lambda made, only: {name: 0.1 for name in only})
    assert main(["--only", "a"]) == 0
