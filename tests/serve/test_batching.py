from __future__ import annotations

import asyncio
import gc
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from ebrm.serve.batching import Batch, Batcher, TextFailed

LONG = 1e6  # seconds: never, in a test


class Machine:
    """A model that answers with each text's sum, holds batches until it is let go, and fails on what it is told to."""

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


def batcher(machine, tokens=100, max_wait=0.0, **more):
    return Batcher(machine.run, ThreadPoolExecutor(1), tokens=tokens, max_wait=max_wait, **more)


async def entered(machine):
    assert await asyncio.get_running_loop().run_in_executor(None, lambda: machine.entered.acquire(timeout=30))


async def turns():
    """Let everything on the loop go as far as it can."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_every_answer_finds_its_request_in_order():
    machine, draw = Machine(), random.Random(0)
    requests = [[[draw.randrange(1000) for _ in range(draw.randint(1, 9))] for _ in range(draw.randint(0, 5))]
                for _ in range(60)]  # fmt: skip

    async def main():
        scored = batcher(machine, tokens=40)
        answers = await asyncio.gather(*(scored.score(texts) for texts in requests))
        assert answers == [[sum(text) for text in texts] for texts in requests]
        assert len(scored) == 0

    asyncio.run(main())
    assert len(machine.batches) < sum(map(len, requests)) / 2  # they shared batches


def test_what_comes_while_a_batch_runs_is_the_next_batch_up_to_the_budget():
    machine = Machine(held=True)

    async def main():
        scored = batcher(machine, tokens=10)
        first = asyncio.create_task(scored.score([[1] * 4]))
        await entered(machine)
        others = [asyncio.create_task(scored.score([[k] * 4])) for k in (2, 3, 4)]
        await turns()
        assert len(scored) == 3
        for _ in range(3):
            machine.go.release()
        assert await asyncio.gather(first, *others) == [[4], [8], [12], [16]]

    asyncio.run(main())
    assert machine.batches == [[1], [2, 3], [4]]  # 4 + 4 + 4 tokens are more than 10


def test_a_text_over_the_budget_goes_alone_and_texts_can_be_limited():
    machine = Machine()

    async def main():
        assert await batcher(machine, tokens=5).score([[1] * 9, [2] * 2, [3] * 2]) == [9, 4, 6]
        await batcher(machine, most_texts=2).score([[4], [5], [6]])

    asyncio.run(main())
    assert machine.batches == [[1], [2, 3], [4, 5], [6]]


def test_a_batch_waits_for_company_until_it_is_full():
    machine = Machine()

    async def main():
        scored = batcher(machine, tokens=6, max_wait=LONG)
        first = asyncio.create_task(scored.score([[1] * 3]))
        await turns()
        assert machine.batches == [] and len(scored) == 1
        assert await scored.score([[2] * 3]) == [6]
        assert await first == [3]

    asyncio.run(main())
    assert machine.batches == [[1, 2]]


def test_what_was_answered_no_longer_counts_towards_a_full_batch():
    machine = Machine()

    async def main():
        scored = batcher(machine, tokens=6, max_wait=LONG)
        await scored.score([[1] * 3, [2] * 3])
        lone = asyncio.create_task(scored.score([[3] * 3]))
        await turns()
        assert machine.batches == [[1, 2]] and len(scored) == 1
        lone.cancel()

    asyncio.run(main())


def test_a_batch_does_not_wait_longer_than_it_may():
    machine = Machine()
    assert asyncio.run(batcher(machine, max_wait=1e-3).score([[7]])) == [7]


def test_who_goes_away_leaves_the_queue_and_disturbs_nobody():
    machine = Machine(held=True)

    async def main():
        scored = batcher(machine)
        tasks = [asyncio.create_task(scored.score([[1]]))]
        await entered(machine)
        tasks += [asyncio.create_task(scored.score([[k], [k]])) for k in (2, 3)]
        await turns()
        for gone in tasks[:2]:  # one in the model, one waiting
            gone.cancel()
        await turns()
        assert len(scored) == 2
        machine.go.release()
        machine.go.release()
        assert await tasks[2] == [3, 3]
        assert all(task.cancelled() for task in tasks[:2])

    asyncio.run(main())
    assert machine.batches == [[1], [3, 3]]


def test_a_failing_text_fails_its_own_request_and_says_which_it_was():
    machine = Machine(bad=frozenset({5}))

    async def main():
        scored = batcher(machine)
        answers = await asyncio.gather(
            scored.score([[1], [2]]), scored.score([[3], [5], [4]]), scored.score([[6]]), return_exceptions=True
        )
        assert answers[0] == [1, 2] and answers[2] == [6]
        assert isinstance(answers[1], TextFailed) and answers[1].row == 1
        assert "cannot take [5]" in str(answers[1].cause)
        assert await scored.score([[7]]) == [7]

    asyncio.run(main())
    assert machine.batches[1:7] == [[1], [2], [3], [5], [4], [6]]  # each alone


def test_several_failures_of_a_request_are_one():
    machine, complaints = Machine(bad=frozenset({1, 2})), []

    async def main():
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
        with pytest.raises(TextFailed) as failed:
            await batcher(machine).score([[1], [2]])
        assert failed.value.row == 0
        await turns()
        del failed
        gc.collect()

    asyncio.run(main())
    assert not complaints  # no "exception was never retrieved"


def test_those_whose_client_is_gone_are_not_tried_again():
    machine = Machine(held=True, bad=frozenset({1}))

    async def main():
        scored = batcher(machine, max_wait=LONG, tokens=2)
        tasks = [asyncio.create_task(scored.score([[k]])) for k in (1, 2)]
        await entered(machine)
        tasks[1].cancel()
        await turns()
        for _ in range(2):
            machine.go.release()
        with pytest.raises(TextFailed):
            await tasks[0]

    asyncio.run(main())
    assert machine.batches == [[1, 2], [1]]


def test_too_few_results_fail_and_do_not_hang():
    async def main():
        with pytest.raises(TextFailed, match="1 texts were given and 0 results"):
            await Batcher(lambda ids: [], ThreadPoolExecutor(1), tokens=9, max_wait=0).score([[1]])

    asyncio.run(main())


def test_what_was_measured_is_told():
    seen: list[Batch] = []
    asyncio.run(batcher(Machine(), measured=seen.append).score([[1, 1], [2]]))
    (batch,) = seen
    assert (batch.texts, batch.tokens, len(batch.waited)) == (2, 3, 2)
    assert batch.seconds >= 0 and min(batch.waited) >= 0


def test_it_works_in_one_event_loop_after_another():
    scored = batcher(Machine())
    assert [asyncio.run(scored.score([[k]])) for k in (1, 2)] == [[1], [2]]
