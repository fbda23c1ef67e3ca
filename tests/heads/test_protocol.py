"""An EnergyRewardModel that holds a head: refined, ranked, saved, loaded and evaluated like the energy model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.heads.worlds import linear_truth, world
from tests.linear import QUICK, TINY, linear_features

from ebrm.errors import ModelError
from ebrm.fitting import fit
from ebrm.heads import (
    HEADS,
    HeadConfig,
    InferenceConfig,
    NetworkConfig,
    RewardDensity,
    RewardHead,
    RewardPosterior,
    fit_head,
    load_posterior,
)
from ebrm.heads.data import Labels
from ebrm.model import EnergyRewardModel, ModelRecord

WORLD = world(linear_truth, pairs=150)


def model(kind: str) -> EnergyRewardModel:
    settings = HeadConfig(kind=kind, hidden=8, epochs=2)  # type: ignore[arg-type]
    users = torch.arange(len(WORLD.train)) % 2
    labels = {
        "min_norm": Labels(group=users),
        "prototypes": Labels(group=users),
        "attributes": Labels(ratings=torch.stack([WORLD.truth, -WORLD.truth + WORLD.embedding[:, 1]], 1)),
    }.get(kind, Labels())
    head = fit_head(
        kind,
        WORLD.embedding,
        WORLD.reward,
        WORLD.train,
        WORLD.validation,
        settings,
        labels=labels,  # type: ignore[arg-type]
    )
    return EnergyRewardModel(head, ModelRecord(head=head.settings))


@pytest.mark.parametrize("kind", HEADS)
def test_a_saved_head_answers_as_before(kind: str, tmp_path: Path) -> None:
    before = model(kind)
    before.save_pretrained(tmp_path)
    after = EnergyRewardModel.from_pretrained(tmp_path)
    assert isinstance(after.head, RewardHead) and after.record == before.record
    rows = before.refine(WORLD.embedding, WORLD.reward).to_rows()
    assert rows == after.refine(WORLD.embedding, WORLD.reward).to_rows()
    assert torch.equal(
        before.density(WORLD.embedding[:3], WORLD.reward[:3])[1],
        after.density(WORLD.embedding[:3], WORLD.reward[:3])[1],
    )
    assert before.fingerprint() == after.fingerprint()
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["head"]["kind"] == kind and "network" not in config and "training" not in config
    card = (tmp_path / "README.md").read_text()
    assert HEADS[kind] in card and f"| head.kind | {kind} |" in card and "density p(r | e)" not in card


def test_what_every_posterior_answers() -> None:
    features = linear_features()
    energy = fit(features=features, network=TINY, training=QUICK).model.head
    head = fit_head("linear", WORLD.embedding, WORLD.reward, WORLD.train, WORLD.validation)
    posteriors: list[tuple[RewardPosterior, torch.Tensor, torch.Tensor]] = [
        (energy, features.embedding(torch.arange(7)), features.reward[:7]),
        (head, WORLD.embedding[:7], WORLD.reward[:7]),
    ]
    for posterior, e, r in posteriors:
        refined = posterior.refine(e, r, InferenceConfig())
        assert refined.reward.shape == (7,) and bool((refined.interval[:, 0] < refined.interval[:, 1]).all())
        assert posterior.prefer((e, e), (r, r)).tolist() == [0.5] * 7
        assert float(posterior.p_best(e, r).sum()) == pytest.approx(1, abs=1e-5)
        at = posterior.internal_posterior(e, r, 33)
        assert at.log_density.shape == (7, 33) and torch.equal(
            at.nodes, posterior.internal_posterior(e[:0], r[:0], 33).nodes
        )
        assert posterior.trust.power in (0, 0.125, 0.25, 0.5, 1) and posterior.device.type == "cpu"
        loaded = load_posterior(TINY if isinstance(posterior, RewardDensity) else head.settings, posterior.state_dict())
        assert torch.equal(loaded.refine(e, r, InferenceConfig()).reward, refined.reward)


def test_the_energy_model_s_config_has_no_head_and_one_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    record = ModelRecord()
    assert "head" not in record.to_dict() and ModelRecord.from_dict(record.to_dict()) == record
    with pytest.raises(KeyError, match="network"):
        ModelRecord.from_dict({"inference": {}})
    model("linear").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["head"]["kind"] = "silu"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="do not belong together|cannot be put together"):
        EnergyRewardModel.from_pretrained(tmp_path)
    with pytest.raises(KeyError):
        load_posterior(NetworkConfig(), {})


def test_a_head_refuses_what_the_energy_model_refuses() -> None:
    held = model("linear")
    with pytest.raises(ModelError, match=r"embeddings \[n, 6\]"):
        held.refine(torch.zeros(2, 5), torch.zeros(2))
    bad = WORLD.embedding[:3].clone()
    bad[1, 0] = torch.nan
    with pytest.raises(ModelError, match="row 1"):
        held.refine(bad, WORLD.reward[:3])
    none = held.refine(WORLD.embedding[:0], WORLD.reward[:0])
    assert len(none) == 0 and none.to_rows() == []
    changed = held.with_inference(estimate="mode")
    assert changed.fingerprint() != held.fingerprint()
