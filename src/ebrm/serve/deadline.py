"""What the scoring routes share: how long an answer is awaited, and what they may say instead of one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from fastapi import Request

from ebrm.serve.errors import Refused
from ebrm.serve.requests import ErrorAnswer, PromptBody
from ebrm.serve.scoring import Scoring

T = TypeVar("T")

#: What a route may answer besides 200.
ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorAnswer, "description": "The body is not JSON."},
    401: {"model": ErrorAnswer, "description": "No token, or another one."},
    408: {"model": ErrorAnswer, "description": "The body did not come in time."},
    413: {"model": ErrorAnswer, "description": "The body is too large."},
    422: {"model": ErrorAnswer, "description": "Another shape, or a text that the reward model cannot take."},
    503: {"model": ErrorAnswer, "description": "The queue is full, the deadline has passed, or the server is ending."},
}


async def answer(request: Request, scoring: Scoring, work: Callable[[], Awaitable[T]]) -> T:
    """Await `work()` until the deadline or until the client goes; either way its texts leave the queue."""
    task = asyncio.ensure_future(work())
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, timeout=scoring.settings.deadline, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise Refused(499, "gone", "The client went away.")  # which nobody reads
        raise Refused(
            503, "deadline", f"The request was not answered within {scoring.settings.deadline:g} seconds. Come again."
        )
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def prompt_of(body: PromptBody) -> Any:
    """A prompt as the model takes it."""
    return body if isinstance(body, str) else [{"role": m.role, "content": m.content} for m in body]
