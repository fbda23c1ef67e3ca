from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from tests.serve.routes import run

from ebrm.serve import ServeConfig
from ebrm.serve.deadline import answer, prompt_of
from ebrm.serve.errors import Refused
from ebrm.serve.requests import Message


def scoring(deadline=60.0):
    return SimpleNamespace(settings=ServeConfig(deadline=deadline))


class Asker:
    """A client that stays until told to go."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()

    async def receive(self):
        await self.gone.wait()
        return {"type": "http.disconnect"}


class Work:
    """Work that is never done, and knows whether it was called off."""

    def __init__(self) -> None:
        self.begun, self.called_off = asyncio.Event(), False

    async def __call__(self):
        self.begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.called_off = True
            raise


def test_what_the_work_gives_or_raises_is_passed_on():
    async def fails():
        raise KeyError("a")

    async def main():
        assert await answer(Asker(), scoring(), lambda: asyncio.sleep(0, "done")) == "done"
        with pytest.raises(KeyError):
            await answer(Asker(), scoring(), fails)

    run(main())


def test_work_is_called_off_when_the_client_goes():
    async def main():
        asker, work = Asker(), Work()
        task = asyncio.create_task(answer(asker, scoring(), work))
        await work.begun.wait()
        asker.gone.set()
        with pytest.raises(Refused) as refused:
            await task
        assert refused.value.kind == "gone" and work.called_off

    run(main())


def test_work_is_called_off_at_the_deadline():
    async def main():
        work = Work()
        with pytest.raises(Refused) as refused:
            await answer(Asker(), scoring(deadline=0.01), work)
        assert (refused.value.status_code, refused.value.kind) == (503, "deadline") and work.called_off

    run(main())


def test_prompts_as_the_model_takes_them():
    assert prompt_of("a") == "a"
    assert prompt_of([Message(role="user", content="a")]) == [{"role": "user", "content": "a"}]
