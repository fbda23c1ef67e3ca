"""A thread for work off the event loop, which the end of the process does not wait for."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Worker(Executor):
    """One daemon thread that runs calls in the order given; a call that was cancelled before its turn is left out.

    `ThreadPoolExecutor` has no such thread: Python waits for its threads, and so a server that is to end would wait for
    a batch that takes minutes.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: queue.SimpleQueue[tuple[Future, Callable[[], object]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        #: Whether a call is under way.
        self.busy = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run a call when its turn comes."""
        future: Future[T] = Future()
        self._calls.put((future, partial(fn, *args, **kwargs)))
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                self._thread.start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the thread after the calls submitted so far, or with `cancel_futures` after the one under way."""
        while cancel_futures:
            try:
                waiting = self._calls.get_nowait()
            except queue.Empty:
                break
            if waiting is not None:
                waiting[0].cancel()
        self._calls.put(None)
        if wait and self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        while (waiting := self._calls.get()) is not None:
            future, call = waiting
            if future.set_running_or_notify_cancel():
                self.busy = True
                try:
                    future.set_result(call())
                except BaseException as error:  # noqa: BLE001 - as ThreadPoolExecutor: it is raised where it is awaited
                    future.set_exception(error)
                self.busy = False
            # Or the thread would hold the last call's request until the next comes.
            del waiting, future, call
