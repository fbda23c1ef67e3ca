"""Clients of a real application."""

from __future__ import annotations

import asyncio

import httpx
import pytest
import torch
from tests.serve.routes import KINDS

from ebrm.client import AsyncClient, RefusedText
from ebrm.errors import ServerError
from ebrm.model import EnergyRewardModel
from ebrm.serve import ServeConfig
from ebrm.serve.app import create_app


@pytest.fixture(scope="module")
def energy(model):
    return EnergyRewardModel.from_pretrained(model)


def test_a_client_of_the_real_server_gives_what_the_model_gives(energy):
    kinds = [KINDS[kind] for kind in KINDS if kind != "over-long"]
    prompts, responses = [prompt for prompt, _ in kinds], [response for _, response in kinds]
    app = create_app(energy, ServeConfig(token="word", max_texts=2, queue=4))

    async def main():
        async with AsyncClient("http://server", token="word", transport=httpx.ASGITransport(app=app)) as client:
            refined = await client.score(prompts, responses)
            ranked = await client.rank("a", ["b", "c"])
            info = await client.info()
            written = await client.get_reward(["x"])
            await client.wait_until_ready()
            with pytest.raises(RefusedText, match="row 2 of all"):
                await client.score(["a", "b", "eta theta " * 60], ["c", "d", "e"])
            with pytest.raises(ServerError, match="limit is 2"):
                await client.rank("a", ["b", "c", "d"])
        return refined, ranked, info, written

    refined, ranked, info, written = asyncio.run(main())
    offline = energy.score(prompts, responses)
    for name in ("reward", "base_reward", "std", "interval", "log_density", "delta"):
        assert torch.allclose(getattr(refined, name), getattr(offline, name), atol=1e-5), name
    assert [row.index for row in ranked] == [row.index for row in energy.rank("a", ["b", "c"])]
    assert ranked[0].p_best == pytest.approx(energy.rank("a", ["b", "c"])[0].p_best, abs=1e-5)
    assert info["fingerprint"] == energy.fingerprint()
    assert len(written["rewards"]) == len(written["extra_logs"]["std"]) == 1
