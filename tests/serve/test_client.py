from __future__ import annotations

import asyncio

import httpx
import pytest
import torch
from tests.serve.routes import KINDS, rendered

from ebrm.client import AsyncClient, RefusedText
from ebrm.errors import ServerError
from ebrm.serve import ServeConfig
from ebrm.serve.app import create_app

COLUMNS = ("reward", "base_reward", "std", "interval", "log_density", "delta")


def test_a_client_of_the_real_server_gives_what_the_model_gives(energy):
    texts = [*KINDS.values(), ("a", "eta theta " * 60)]
    prompts, responses = [prompt for prompt, _ in texts], [response for _, response in texts]
    whole = [rendered(energy, "plain"), "", "x"]
    app = create_app(energy, ServeConfig(token="word", max_texts=2, queue=4))

    async def main():
        async with AsyncClient("http://server", token="word", transport=httpx.ASGITransport(app=app)) as client:
            await client.wait_until_ready()
            with pytest.raises(RefusedText, match="row 6 of all"):
                await client.score(prompts, responses)
            with pytest.raises(ServerError, match="limit is 2"):
                await client.rank("a", ["b", "c", "d"])
            assert (await client.info())["fingerprint"] == energy.fingerprint()
            return (
                await client.score(prompts, responses, on_error="nan"),
                await client.score_rendered(whole, on_error="nan"),
                await client.rank("a", ["b", "c"]),
                await client.to_score(torch.arange(3.0)),
            )

    scored, scored_whole, ranked, scores = asyncio.run(main())
    for found, offline in (
        (scored, energy.score(prompts, responses, on_error="nan")),
        (scored_whole, energy.score_rendered(whole, on_error="nan")),
    ):
        assert [error is None for error in found.errors] == [error is None for error in offline.errors]
        for name in COLUMNS:
            torch.testing.assert_close(
                getattr(found, name), getattr(offline, name), rtol=0, atol=1e-5, equal_nan=True, msg=name
            )
    expected = energy.rank("a", ["b", "c"])
    assert [row.index for row in ranked] == [row.index for row in expected]
    assert ranked[0].p_best == pytest.approx(expected[0].p_best, abs=1e-5)
    torch.testing.assert_close(scores, energy.to_score(torch.arange(3.0)))
