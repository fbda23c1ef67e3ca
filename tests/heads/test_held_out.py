"""Held-out pairs, a part at a time: the same numbers as all at once, and nothing computed twice."""

from __future__ import annotations

import math

import pytest
import torch
from tests.heads.toys import energy

import ebrm.heads.data as rows_module
from ebrm.heads import EnergyHead, NetworkConfig
from ebrm.heads.objective import noisy_preference_nll
from ebrm.heads.training import held_out_densities, log_density_of, validate
from ebrm.pairs import PreferencePairs

D = 3
#: Responses that stand in several pairs, near to one another and far apart.
PAIRS = PreferencePairs.of([0, 0, 5, 7, 9, 0, 11, 2], [1, 2, 6, 8, 1, 3, 10, 12])


@pytest.fixture(scope="module")
def density() -> EnergyHead:
    network = NetworkConfig(reward_widths=(4,), joint_widths=(6,))
    made = EnergyHead(D, energy(network, label_noise=0.2), torch.Generator().manual_seed(0))
    embedding, reward = data()
    made.fit_units(reward, [embedding])
    with torch.no_grad():
        for parameter in made.network.parameters():
            parameter.mul_(3)  # densities that differ
    return made.eval()


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(13, D, generator=generator), 2 + 5 * torch.randn(13, generator=generator)


class Watched:
    """Embeddings that say which rows were read."""

    def __init__(self, embedding: torch.Tensor) -> None:
        self.embedding, self.shape = embedding, tuple(embedding.shape)
        self.reads: list[list[int]] = []

    def __getitem__(self, index: torch.Tensor) -> torch.Tensor:
        self.reads.append(index.tolist())
        return self.embedding[index]


@pytest.mark.parametrize("rows", [2, 4, 6, 100])
@pytest.mark.parametrize("estimate", ["mean", "mode", "ascent"])
def test_parts_give_the_numbers_of_the_whole(monkeypatch, density, rows, estimate):
    monkeypatch.setattr(rows_module, "_READ_FLOATS", rows * D)
    (embedding, reward), head = data(), density.with_inference(estimate=estimate)
    accuracy, nll, loss = validate(head, embedding, reward, PAIRS)
    refined = head.refine(embedding, reward).reward
    assert accuracy == float((refined[PAIRS.chosen] > refined[PAIRS.rejected]).double().mean())
    at = density.posterior(embedding, reward)
    once = [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12]  # 4 stands in no pair
    assert nll == pytest.approx(-float(log_density_of(density, at, reward)[once].mean()), rel=1e-5)
    mass = at.log_cells().float()
    assert loss == pytest.approx(
        float(noisy_preference_nll(mass[PAIRS.chosen], mass[PAIRS.rejected], 0.2).mean()), rel=1e-5
    )


def test_every_response_of_a_part_is_read_and_its_density_computed_once(monkeypatch, density):
    monkeypatch.setattr(rows_module, "_READ_FLOATS", 6 * D)  # three pairs a part
    embedding, reward = data()
    watched, computed = Watched(embedding), []
    original = density.posterior
    monkeypatch.setattr(density, "posterior", lambda e, *rest: computed.append(len(e)) or original(e, *rest))
    validate(density, watched, reward, PAIRS)
    assert watched.reads == [[0, 1, 2, 5, 6], [0, 1, 3, 7, 8, 9], [2, 10, 11, 12]]
    assert computed == [5, 6, 4]


def test_densities_come_with_the_rows_they_belong_to(monkeypatch, density):
    monkeypatch.setattr(rows_module, "_READ_FLOATS", 6 * D)
    embedding, reward = data()
    parts = list(held_out_densities(density.with_inference(nodes=33), embedding, reward, PAIRS))
    whole = density.posterior(embedding, reward, 33)
    internal = density.standardizer.to_internal(reward)
    for side in ("chosen", "rejected"):
        places, rows = [getattr(part, side) for part in parts], getattr(PAIRS, side)
        got = torch.cat([part.log_mass[place] for part, place in zip(parts, places, strict=True)])
        assert torch.allclose(got, whole.log_cells().float()[rows], atol=1e-5)
        assert torch.equal(
            torch.cat([part.reward[place] for part, place in zip(parts, places, strict=True)]), internal[rows]
        )
    assert all(torch.equal(part.nodes, whole.nodes.float()) for part in parts)


def test_nothing_held_out_has_no_numbers(density):
    assert all(math.isnan(value) for value in validate(density, *data(), PreferencePairs.of([], [])))
