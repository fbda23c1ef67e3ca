from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ebrm.backbone.threads import spread


@pytest.fixture(autouse=True)
def six_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(6)
    yield
    torch.set_num_threads(before)


@given(items=st.lists(st.integers()), workers=st.integers(1, 6))
def test_results_come_in_the_order_of_the_items(items: list[int], workers: int) -> None:
    assert list(spread([lambda item: item * 2] * workers, items)) == [item * 2 for item in items]


def test_workers_run_at_the_same_time_each_on_its_share_of_the_threads() -> None:
    together = threading.Barrier(3, timeout=30)  # opens only if three wait at it at once

    def work(_: int) -> tuple[int, bool]:
        together.wait()
        return torch.get_num_threads(), threading.current_thread() is threading.main_thread()

    assert list(spread([work] * 3, range(9))) == [(2, False)] * 9
    assert torch.get_num_threads() == 6


def test_no_worker_has_two_items_at_once() -> None:
    busy = [threading.Lock() for _ in range(3)]

    def work(number: int) -> int:
        assert busy[number].acquire(blocking=False)
        threading.Event().wait(0.001)
        busy[number].release()
        return number

    workers = [lambda _, number=number: work(number) for number in range(3)]
    assert set(spread(workers, range(60))) <= {0, 1, 2}


def test_a_single_worker_stays_on_this_thread() -> None:
    seen = list(spread([lambda _: (threading.current_thread(), torch.get_num_threads())], [1, 2]))
    assert seen == [(threading.main_thread(), 6)] * 2


@pytest.mark.parametrize("workers", [1, 2])
def test_nothing_is_begun_after_an_error_or_after_it_is_closed(workers: int) -> None:
    begun: list[int] = []
    enough = threading.Event()

    def work(item: int) -> int:
        begun.append(item)
        if item == 0:
            raise ValueError("the first")
        enough.wait(30)
        return item

    threading.Timer(0.05, enough.set).start()
    with pytest.raises(ValueError, match="the first"):
        list(spread([work] * workers, range(100)))
    assert len(begun) <= 2 * workers + 1 and torch.get_num_threads() == 6
    begun.clear()
    results = spread([work] * workers, range(1, 100))
    assert next(results) == 1
    results.close()
    assert len(begun) < 99 and torch.get_num_threads() == 6


def test_threads_that_start_later_have_all_of_torchs_threads() -> None:
    list(spread([lambda item: item] * 3, range(9)))
    seen: list[int] = []
    later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert seen == [6]
