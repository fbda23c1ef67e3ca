from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.integrations.policies import LONG
from tests.integrations.remote import Remote

from ebrm.errors import EBRMError, ModelError
from ebrm.integrations.scorer import open_scorer, score_rendered, score_rows
from ebrm.model import EnergyRewardModel, RefinedReward

OPEN = "<s><|start|>user\nHi<|end|>\n<|start|>assistant\n"


def same(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("remote", [False, True], ids=["here", "there"])
def test_rows_that_cannot_be_scored_are_named_and_the_others_scored(refined: EnergyRewardModel, remote: bool) -> None:
    scorer = Remote(refined) if remote else refined
    found = score_rows(scorer, ["Hi", LONG, "Ho", LONG], ["Yes", "a", "No", "b"])
    assert found.rows == [0, 2] and sorted(found.refused) == [1, 3]
    assert all(("too long" if remote else "and the limit is 128") in why for why in found.refused.values())
    want = refined.score(["Hi", "Ho"], ["Yes", "No"])
    same(found.refined.reward, want.reward)
    same(found.refined.interval, want.interval)
    none = score_rows(scorer, [LONG], ["a"])
    assert none.rows == [] and len(none.refined) == 0 and none.refined.interval.shape == (0, 2)
    assert score_rows(scorer, [], []).refused == {}


def test_a_server_is_asked_again_once_for_each_refusal(refined: EnergyRewardModel) -> None:
    remote = Remote(refined)
    score_rows(remote, ["Hi", LONG, LONG, "Hi"], ["Yes"] * 4)
    assert remote.asked == 3


def test_a_text_that_the_rule_drops_is_refused(refined: EnergyRewardModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refined.backbone, "tokenize", lambda prompt, response: None)
    found = score_rows(refined, ["Hi"], ["Yes"])
    assert found.refused == {0: "It is longer than the 128 tokens that the RM reads."}


def test_written_texts_score_as_their_turns(refined: EnergyRewardModel) -> None:
    found = score_rendered(refined, [OPEN + "Yes<|end|>\n", OPEN + "No", OPEN + LONG])
    assert found.rows == [0, 1] and "and the limit is 128" in found.refused[2]
    same(found.refined.reward, refined.score(["Hi", "Hi"], ["Yes", "No"]).reward)


def test_threads_take_turns(refined: EnergyRewardModel, monkeypatch: pytest.MonkeyPatch) -> None:
    read, together = refined.backbone.read, []
    meeting = threading.Barrier(2, timeout=0.3)  # broken by the first who waits alone

    def watched(ids: Sequence[Sequence[int]]) -> Any:
        with suppress(threading.BrokenBarrierError):
            meeting.wait()
            together.append(ids)
        return read(ids)

    monkeypatch.setattr(refined.backbone, "read", watched)
    got: dict[int, float] = {}

    def work(row: int) -> None:
        got[row] = float(score_rows(refined, ["Hi"], ["Yes " * (row + 1)]).refined.reward)

    threads = [threading.Thread(target=work, args=(row,)) for row in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == [] and len(got) == 8
    want = refined.score(["Hi"] * 8, ["Yes " * (row + 1) for row in range(8)]).reward.tolist()
    assert [got[row] for row in range(8)] == pytest.approx(want, abs=1e-5)


def test_other_errors_are_raised() -> None:
    class Down:
        def score(self, prompts: Sequence[Any], responses: Sequence[str]) -> RefinedReward:
            raise EBRMError("nobody answers")

    with pytest.raises(EBRMError, match="nobody answers"):
        score_rows(Down(), ["Hi"], ["Yes"])


def test_opening(refined: EnergyRewardModel, model: Path) -> None:
    assert open_scorer(refined) is refined
    opened = open_scorer(str(model))
    assert isinstance(opened, EnergyRewardModel) and opened._lazy._loaded is not None
    with pytest.raises(ModelError, match=r"is an address.*Client\('http://127.0.0.1:1'\)"):
        open_scorer("http://127.0.0.1:1")
