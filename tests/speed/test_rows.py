from __future__ import annotations

import torch
from benchmarks import rows
from benchmarks.rows import fit_briefly, made_rows

from ebrm.heads import EnergyConfig, LikelihoodConfig


def test_rewards_are_linear_in_the_embedding_but_for_noise():
    embedding, reward = made_rows(4000, 24)
    assert embedding.shape == (4000, 24) and embedding.dtype == torch.float32
    design = torch.cat([embedding, torch.ones(4000, 1)], dim=1).double()
    left = reward - design @ torch.linalg.lstsq(design, reward.double().unsqueeze(1)).solution.squeeze(1)
    assert abs(float(left.std() / reward.std()) - 0.3 / (1 + 0.3**2) ** 0.5) < 0.02
    centered = embedding - embedding.mean(0)
    share = torch.linalg.svdvals(centered / centered.std(0)).square()
    assert float(share[:4].sum() / share.sum()) > 2 * 4 / 24
    again, _ = made_rows(4000, 24)
    other, _ = made_rows(4000, 24, seed=1)
    assert torch.equal(embedding, again) and not torch.equal(embedding, other)


def test_labels_agree_with_four_rewards_in_five(monkeypatch):
    seen = {}
    monkeypatch.setattr(rows, "fit_head", lambda *given: seen.update(given=given))
    embedding, reward = made_rows(4001, 3)
    config = EnergyConfig()
    fit_briefly(embedding, reward, config)
    given, _, _, train, validation = seen["given"]
    assert given is config
    agreed = (reward[train.chosen] > reward[train.rejected]).double().mean()
    assert abs(float(agreed) - 0.8) < 0.03
    used = torch.cat([train.chosen, train.rejected, validation.chosen, validation.rejected])
    assert sorted(used.tolist()) == list(range(4000)) and len(validation) == 200
    fit_briefly(embedding, reward, EnergyConfig(objective=LikelihoodConfig()))
    assert len(seen["given"][4]) == 0
