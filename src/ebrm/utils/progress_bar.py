"""Progress of long work: a live bar on a terminal, a log line every few seconds elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ebrm.utils.neutral import printable

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 10.0


class Bar:
    """Progress bar or log lines: amount done of `total`, rate, time left."""

    def __init__(self, what: str, total: int, unit: str, live: object | None) -> None:
        self.what, self.total, self.unit, self.done = what, total, unit, 0
        self._start = self._spoke = time.monotonic()
        self._said = False
        self._live = live
        self._task = live.add_task(what, total=total, stats="") if live is not None else None  # type: ignore[attr-defined]

    def advance(self, amount: int, **stats: float) -> None:
        """Count `amount` more as done; `stats` (loss, accuracy, …) are shown beside the rate."""
        self.done += amount
        now = time.monotonic()
        rate = self.done / max(now - self._start, 1e-9)
        shown = f"{rate:,.0f} {self.unit}/s" + "".join(f"  {k} {v:.4g}" for k, v in stats.items())
        if self._live is not None:
            self._live.update(self._task, completed=self.done, stats=shown)  # type: ignore[attr-defined]
        elif now - self._spoke > _SECONDS_BETWEEN_LINES:
            self._spoke = now
            left = (self.total - self.done) / max(rate, 1e-9)
            logger.info("%s: %d of %d %s, %s, %.0f s left", self.what, self.done, self.total, self.unit, shown, left)

    def say(self, line: str) -> None:
        """Log how far it is, where there is no bar: the first time, and then every few seconds."""
        if self._live is None and (not self._said or time.monotonic() - self._spoke > _SECONDS_BETWEEN_LINES):
            self._said, self._spoke = True, time.monotonic()
            logger.info("%s", line)


@contextmanager
def progress(what: str, total: int, unit: str) -> Iterator[Bar]:
    """Show progress of `what` over `total` units while the body runs; silent when INFO logging is off."""
    if not (sys.stderr.isatty() and logger.isEnabledFor(logging.INFO)):
        yield Bar(what, total, unit, None)
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),  # with what stands beside it, 80 columns
        TaskProgressColumn(),
        TextColumn("{task.fields[stats]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as live:
        yield Bar(escape(printable(what)), total, unit, live)
