"""Dynamic batching, on a model that answers with each text's sum."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.serve.routes import run, turns

from ebrm.serve.scoring import Batcher, TextFailed

LONG = 1e6  # seconds: never, in a test


class Machine:
    """Sums texts, holds batches until it is let go, and fails on texts that it is told to."""

    def __init__(self, held: bool = False, bad: frozenset[int] = frozenset()) -> None:
        self.batches: list[list[int]] = []
        self.entered, self.go, self.bad = threading.Semaphore(0), threading.Semaphore(0), bad
        self.held = held

    def run(self, ids):
        self.batches.append([text[0] for text in ids])
        self.entered.release()
        if self.held:
            assert self.go.acquire(timeout=30)
        found = self.bad & {text[0] for text in ids}
        if found:
            raise ValueError(f"cannot take {sorted(found)}")
        return [sum(text) for text in ids]

    def batcher(self, tokens=100, max_wait=0.0, **more):
        return Batcher(self.run, ThreadPoolExecutor(1), tokens=tokens, max_wait=max_wait, **more)

    async def is_busy(self):
        assert await asyncio.get_running_loop().run_in_executor(None, lambda: self.entered.acquire(timeout=30))


def test_every_answer_finds_its_request_in_order():
    machine, draw = Machine(), random.Random(0)
    requests = [[[draw.randrange(1000) for _ in range(draw.randint(1, 9))] for _ in range(draw.randint(0, 5))]
                for _ in range(60)]  # fmt: skip

    async def main():
        batcher = machine.batcher(tokens=40)
        answers = await asyncio.gather(*(batcher.score(texts) for texts in requests))
        assert answers == [[sum(text) for text in texts] for texts in requests]
        assert len(batcher) == 0

    run(main())
    assert len(machine.batches) < sum(map(len, requests)) / 2  # they shared batches


def test_texts_that_come_while_a_batch_runs_are_the_next_batch_up_to_the_budget():
    machine = Machine(held=True)

    async def main():
        batcher = machine.batcher(tokens=10)
        first = asyncio.create_task(batcher.score([[1] * 4]))
        await machine.is_busy()
        others = [asyncio.create_task(batcher.score([[k] * 4])) for k in (2, 3, 4)]
        await turns()
        assert len(batcher) == 3
        for _ in range(3):
            machine.go.release()
        assert await asyncio.gather(first, *others) == [[4], [8], [12], [16]]

    run(main())
    assert machine.batches == [[1], [2, 3], [4]]  # 4 + 4 + 4 tokens are more than 10


def test_a_text_over_the_budget_goes_alone():
    machine = Machine()

    async def main():
        assert await machine.batcher(tokens=5).score([[1] * 9, [2] * 2, [3] * 2]) == [9, 4, 6]

    run(main())
    assert machine.batches == [[1], [2, 3]]


def test_a_batch_waits_until_it_is_full_and_answered_texts_no_longer_count():
    machine = Machine()

    async def main():
        batcher = machine.batcher(tokens=6, max_wait=LONG)
        first = asyncio.create_task(batcher.score([[1] * 3]))
        await turns()
        assert machine.batches == [] and len(batcher) == 1
        assert await batcher.score([[2] * 3]) == [6]
        assert await first == [3]
        lone = asyncio.create_task(batcher.score([[3] * 3]))
        await turns()
        assert machine.batches == [[1, 2]] and len(batcher) == 1
        lone.cancel()

    run(main())


def test_a_batch_does_not_wait_longer_than_it_may_in_one_event_loop_after_another():
    batcher = Machine().batcher(max_wait=1e-3)
    assert [run(batcher.score([[k]])) for k in (7, 8)] == [[7], [8]]


def test_a_client_that_goes_away_leaves_the_queue_and_disturbs_nobody():
    machine = Machine(held=True)

    async def main():
        batcher = machine.batcher()
        tasks = [asyncio.create_task(batcher.score([[1]]))]
        await machine.is_busy()
        tasks += [asyncio.create_task(batcher.score([[k], [k]])) for k in (2, 3)]
        await turns()
        for gone in tasks[:2]:  # one in the model, one waiting
            gone.cancel()
        await turns()
        assert len(batcher) == 2
        machine.go.release()
        machine.go.release()
        assert await tasks[2] == [3, 3]
        assert all(task.cancelled() for task in tasks[:2])

    run(main())
    assert machine.batches == [[1], [3, 3]]


def test_a_failing_text_fails_its_own_request_and_is_named():
    machine = Machine(bad=frozenset({5}))

    async def main():
        batcher = machine.batcher()
        answers = await asyncio.gather(
            batcher.score([[1], [2]]), batcher.score([[3], [5], [4]]), batcher.score([[6]]), return_exceptions=True
        )
        assert answers[0] == [1, 2] and answers[2] == [6]
        assert isinstance(answers[1], TextFailed) and answers[1].row == 1
        assert "cannot take [5]" in str(answers[1].cause)
        assert await batcher.score([[7]]) == [7]

    run(main())
    assert machine.batches[1:7] == [[1], [2], [3], [5], [4], [6]]  # each alone


def test_several_failures_of_a_request_are_one():
    machine, complaints = Machine(bad=frozenset({1, 2})), []

    async def main():
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
        with pytest.raises(TextFailed) as failed:
            await machine.batcher().score([[1], [2]])
        assert failed.value.row == 0
        await turns()
        del failed
        gc.collect()

    run(main())
    assert not complaints  # no "exception was never retrieved"


def test_texts_whose_client_is_gone_are_not_tried_again():
    machine = Machine(held=True, bad=frozenset({1}))

    async def main():
        batcher = machine.batcher(max_wait=LONG, tokens=2)
        tasks = [asyncio.create_task(batcher.score([[k]])) for k in (1, 2)]
        await machine.is_busy()
        tasks[1].cancel()
        await turns()
        for _ in range(2):
            machine.go.release()
        with pytest.raises(TextFailed):
            await tasks[0]

    run(main())
    assert machine.batches == [[1, 2], [1]]


def test_too_few_results_fail_and_do_not_hang():
    with pytest.raises(TextFailed, match="1 texts were given and 0 results"):
        run(Batcher(lambda ids: [], ThreadPoolExecutor(1), tokens=9, max_wait=0).score([[1]]))
