"""What every head does: learn, refine, prefer, save, load, take or refuse columns; closed forms against SciPy."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from tests.heads.toys import NONE, linear_truth, world
from tests.other_device import other_device
from torch import Tensor

from ebrm.errors import ConfigError, DataError, ModelError
from ebrm.heads import (
    HEADS,
    ClosedFormHead,
    EnergyConfig,
    HeadConfig,
    LinearConfig,
    NetworkConfig,
    Refinement,
    RewardHead,
    TrainingConfig,
    fit_head,
    head_fitter,
    load_head,
)
from ebrm.heads.base import GUMBEL_STD
from ebrm.model import EnergyRewardModel, ModelRecord
from ebrm.pairs import PreferencePairs

WORLD = world(linear_truth, pairs=300, flips=0.1)
TRAIN = len(WORLD.train)
SOURCE = [str(pair % 2) for pair in range(TRAIN)]
QUICK: dict[str, Any] = {
    "network": NetworkConfig(reward_widths=(8,), joint_widths=(16,), dropout=0.0),
    "training": TrainingConfig(epochs=15, learning_rate=1e-2, batch_rows=32),
    "heads": 2, "hidden": 16, "epochs": 8, "learning_rate": 1e-2,
}  # fmt: skip
COLUMNS: dict[str, dict[str, Any]] = {
    "min_norm": {"source": SOURCE},
    "prototypes": {"source": SOURCE},
    "attributes": {"ratings": torch.stack([WORLD.truth, WORLD.truth + WORLD.embedding[:, 1]], 1)},
}
FIELDS = [field.name for field in fields(Refinement)]


def config_of(kind: str, **changes: Any) -> HeadConfig:
    names = {field.name for field in fields(HEADS[kind])}
    return HEADS[kind](**{name: value for name, value in (QUICK | changes).items() if name in names})


def fit(kind: str, reward: torch.Tensor | None = None, **columns: Any) -> RewardHead:
    validation = WORLD.validation
    if kind == "prototypes":
        validation = PreferencePairs.of(validation.chosen, validation.rejected, source=["0"] * len(validation))
    made = replace(WORLD, reward=WORLD.reward if reward is None else reward)
    return made.fit(config_of(kind), validation, **COLUMNS.get(kind, {}) | columns)


@pytest.fixture(scope="module")
def heads() -> dict[str, RewardHead]:
    return {kind: fit(kind) for kind in HEADS}


def same(one: RewardHead, other: RewardHead) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def assert_same(one: Refinement, other: Refinement, rows: Any = slice(None)) -> None:
    for name in FIELDS:
        assert torch.allclose(getattr(one, name), getattr(other, name)[rows], rtol=1e-5, atol=2e-4), name


@pytest.mark.parametrize("kind", HEADS)
def test_it_learns_and_is_repeatable_to_the_byte(kind: str, heads: dict[str, RewardHead]) -> None:
    head = heads[kind]
    refined = WORLD.refined(head)
    assert WORLD.accuracy(refined.reward) > (0.75 if kind == "directional" else 0.85)  # it gives up what pays
    assert bool((refined.std > 0).all()) and bool((refined.interval[:, 0] < refined.interval[:, 1]).all())
    assert same(head, fit(kind))
    assert head.config == config_of(kind) and not head.training
    low, high = head.standardizer.to_base(head.support)
    assert bool((refined.reward[WORLD.rows] >= low).all()) and bool((refined.reward[WORLD.rows] <= high).all())


@pytest.mark.parametrize("kind", HEADS)
def test_base_rewards_far_beyond_the_training_rewards_keep_their_order_and_a_spread(
    kind: str, heads: dict[str, RewardHead]
) -> None:
    head, span = heads[kind], float(WORLD.reward.max() - WORLD.reward.min())
    base = torch.tensor([-1e6, -100.0, -10.0, -3.0, 3.0, 10.0, 100.0, 1e6]) * span
    embedding = WORLD.embedding[:1].expand(len(base), -1)
    estimates = ["mode", "mean", "ascent"] if kind == "energy" else ["mean"]
    by_base = kind in ("residual", "energy")  # the others read no base reward
    for estimate in estimates:
        refined = head.with_inference(estimate=estimate).refine(embedding, base)
        assert bool((refined.std > 1e-6 * span).all()) and bool((refined.interval[:, 0] < refined.interval[:, 1]).all())
        for values in (refined.reward, refined.mode, refined.mean):
            assert bool((values.diff() > 0).all() if by_base else (values.diff() == 0).all())
    wins = head.prefer((embedding[1:], embedding[:-1]), (base[1:], base[:-1]))
    assert torch.allclose(wins, torch.full_like(wins, 1.0 if by_base else 0.5), atol=1e-2)
    best = head.p_best(embedding, base)
    assert float(best[-1]) == pytest.approx(1.0 if by_base else 1 / len(base), abs=1e-4)
    _, density = head.density(embedding, base)
    assert bool(density.isfinite().all()) and bool((density >= 0).all())


@pytest.mark.parametrize("kind", ["residual", "linear", "silu"])
def test_one_and_two_threads_agree(kind: str, heads: dict[str, RewardHead]) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        two = WORLD.refined(fit(kind))
    finally:
        torch.set_num_threads(before)
    one, unit = WORLD.refined(heads[kind]), float(WORLD.reward.std())
    assert float((one.reward - two.reward).abs().max()) < 1e-6 * unit


@pytest.mark.parametrize("kind", HEADS)
def test_its_config_and_state_are_all_there_is_to_it(kind: str, heads: dict[str, RewardHead], tmp_path: Path) -> None:
    head = heads[kind]
    loaded = load_head(head.config, head.state_dict())
    assert same(head, loaded) and type(loaded) is type(head)
    before = EnergyRewardModel(head, ModelRecord(head=head.config))
    before.save_pretrained(tmp_path)
    after = EnergyRewardModel.from_pretrained(tmp_path)
    assert same(after.head, head) and after.record == before.record and after.fingerprint() == before.fingerprint()
    for answer in (
        lambda h: h.refine(WORLD.embedding, WORLD.reward),
        lambda h: h.refine(WORLD.embedding[:0], WORLD.reward[:0]),
    ):
        assert all(torch.equal(getattr(answer(head), n), getattr(answer(after.head), n)) for n in FIELDS)
    first = tmp_path / "energy.safetensors"
    again = tmp_path / "again"
    after.save_pretrained(again)
    assert (again / first.name).read_bytes() == first.read_bytes()
    assert json.loads((tmp_path / "config.json").read_text())["head"]["kind"] == kind
    card = (tmp_path / "README.md").read_text()
    assert ("density p(r | e)" in card) == (kind == "energy") and (HEADS[kind].title in card) == (kind != "energy")
    wrong = "silu" if kind != "silu" else "linear"
    with pytest.raises(ModelError, match="the tensor .* is (missing|not one of this head)"):
        load_head(HEADS[wrong](), head.state_dict())


@pytest.mark.parametrize("kind", HEADS)
def test_units_of_the_base_reward_go_through(kind: str, heads: dict[str, RewardHead]) -> None:
    plain = WORLD.refined(heads[kind])
    if kind == "anchored":  # in the base rewards' own units, where a constant goes through
        other = fit(kind, WORLD.reward - 7)
        assert torch.allclose(other.refine(WORLD.embedding, WORLD.reward - 7).reward, plain.reward - 7, atol=1e-2)
        return
    base = 8 * WORLD.reward - 7
    moved = fit(kind, base).refine(WORLD.embedding, base)
    assert torch.allclose(moved.reward, 8 * plain.reward - 7, rtol=1e-3, atol=2e-2)
    assert torch.allclose(moved.std, 8 * plain.std, rtol=2e-3)


STARTS = [{"estimate": "ascent", "start": start} for start in ("base", "paper", "zero", "random")]
READINGS = [(kind, {}) for kind in HEADS] + [("energy", inference) for inference in STARTS]


@pytest.mark.parametrize(("kind", "inference"), READINGS)
def test_rows_are_refined_alike_in_any_batch(kind: str, inference: Any, heads: dict[str, RewardHead]) -> None:
    head, e, r = heads[kind].with_inference(**inference), WORLD.embedding, WORLD.reward
    whole = head.refine(e, r)
    if inference.get("start") not in ("paper", "random"):  # whose draws go by the rows' order
        order = torch.randperm(len(r), generator=torch.Generator().manual_seed(0))
        assert_same(head.refine(e[order], r[order]), whole, order)
        assert_same(head.refine(e[5:6], r[5:6]), whole, slice(5, 6))
    for n in (0, 1, 2):
        got = head.refine(e[:n], r[:n])
        assert all(getattr(got, name).shape == ((n, 2) if name == "interval" else (n,)) for name in FIELDS)
        assert all(bool(getattr(got, name).isfinite().all()) for name in FIELDS)
        assert head.density(e[:n], r[:n])[1].shape == (n, 257)
        assert head.prefer((e[:n], e[:n]), (r[:n], r[:n])).shape == (n,)
    assert all(getattr(whole, name).dtype == torch.float32 for name in FIELDS)
    sides = (e, e.flip(0)), (r, r.flip(0))
    outside = head.prefer(*sides), head.density(e, r)[1]
    with torch.inference_mode():
        inside = e + 0  # an inference tensor
        assert_same(head.refine(inside, r), whole)
        assert torch.allclose(head.prefer((inside, inside.flip(0)), sides[1]), outside[0])
        assert torch.equal(head.density(inside, r)[1], outside[1])
    answers = [getattr(whole, name) for name in FIELDS]
    assert not any(answer.requires_grad for answer in (*answers, *outside))


@pytest.mark.parametrize("kind", HEADS)
def test_probabilities_and_densities_agree(kind: str, heads: dict[str, RewardHead]) -> None:
    head, e, r = heads[kind], WORLD.embedding[:7], WORLD.reward[:7]
    both = head.prefer((e, e.flip(0)), (r, r.flip(0))), head.prefer((e.flip(0), e), (r.flip(0), r))
    assert torch.allclose(both[0] + both[1], torch.ones(7), atol=1e-5)
    assert head.prefer((e, e), (r, r)).tolist() == pytest.approx([0.5] * 7)
    assert float(head.p_best(e, r).sum()) == pytest.approx(1, abs=1e-5)
    assert head.p_best(e[:1], r[:1]).tolist() == [1.0] and head.p_best(e[:0], r[:0]).shape == (0,)
    if kind != "bayesian":  # whose `prefer` knows that two rewards share their weights
        pair = float(head.prefer((e[:1], e[1:2]), (r[:1], r[1:2])))
        assert float(head.p_best(e[:2], r[:2])[0]) == pytest.approx(pair, abs=1e-3)
    nodes, p = head.density(e, r, 513)
    width = torch.full_like(nodes, float(nodes[1] - nodes[0]))
    width[[0, -1]] /= 2
    assert torch.allclose((p * width).sum(1), torch.ones(7), atol=1e-4)
    at = head.posterior(e, r, 33)
    assert at.log_density.shape == (7, 33) and torch.equal(at.nodes, head.posterior(e[:0], r[:0], 33).nodes)
    assert head.fusion.power in (0, 0.125, 0.25, 0.5, 1) and head.device.type == "cpu"


@pytest.mark.parametrize("kind", HEADS)
def test_forward_is_the_mean_and_has_a_gradient_in_the_embedding(kind: str, heads: dict[str, RewardHead]) -> None:
    head, r = heads[kind], WORLD.reward[:5]
    e = WORLD.embedding[:5].clone().requires_grad_()
    mean = head(e, r)
    assert torch.allclose(mean, head.refine(e.detach(), r).mean, rtol=1e-4, atol=2e-3)
    (gradient,) = torch.autograd.grad(mean.sum(), e)
    assert bool(gradient.isfinite().all()) and bool(gradient.any())
    if kind == "residual":  # the base reward plus a correction
        with pytest.raises(ModelError, match="adds to the base reward, and none is given"):
            head(e)
    else:
        assert head(e).shape == (5,)


@pytest.mark.parametrize("kind", HEADS)
def test_other_inference_settings_share_the_weights_and_unknown_ones_are_refused(
    kind: str, heads: dict[str, RewardHead]
) -> None:
    head = heads[kind]
    other = head.with_inference(estimate="mode", coverage=0.5)
    assert other.support.data_ptr() == head.support.data_ptr() and head.config.inference.estimate == "mean"
    wide, narrow = WORLD.refined(head), WORLD.refined(other)
    assert torch.equal(narrow.mean, wide.mean)
    assert bool((narrow.interval[:, 1] <= wide.interval[:, 1]).all())
    with pytest.raises(ConfigError, match=f"The {kind} head has no inference setting nonsense; it has estimate"):
        head.with_inference(nonsense=1)
    if isinstance(head, ClosedFormHead):
        with pytest.raises(ConfigError, match="has no inference setting start, steps"):
            head.with_inference(start="base", steps=3)


def values(kind: str) -> dict[str, torch.Tensor]:
    return {
        "label": torch.linspace(0.5, 1, TRAIN), "weight": torch.linspace(0.2, 2, TRAIN),
        "margin": torch.linspace(0, 1, TRAIN),
    }  # fmt: skip


@pytest.mark.parametrize("column", ["label", "weight", "margin"])
@pytest.mark.parametrize("kind", HEADS)
def test_columns_of_pairs_reach_the_loss_or_are_refused(kind: str, column: str, heads: dict[str, RewardHead]) -> None:
    given = {column: values(kind)[column]}
    if column in type(heads[kind]).takes:
        assert not same(heads[kind], fit(kind, **given))
    else:
        said = f"The loss of the {kind} head has no place for the training pairs' {column}"
        with pytest.raises(DataError, match=said):
            fit(kind, **given)


@pytest.mark.parametrize("kind", HEADS)
def test_columns_that_hold_nothing_change_no_byte(kind: str, heads: dict[str, RewardHead]) -> None:
    nothing = {"label": torch.ones(TRAIN), "weight": torch.ones(TRAIN), "margin": torch.zeros(TRAIN)}
    assert same(heads[kind], fit(kind, **nothing, strength=[None] * TRAIN))
    if kind != "attributes":
        # More pairs for one, more than those held out for the other, which is fitted on both.
        differs = kind in ("bayesian", "residual")
        assert same(heads[kind], fit(kind, weight=torch.full((TRAIN,), 4.0))) is not differs


@pytest.mark.parametrize("kind", ["linear", "bayesian", "anchored", "binary", "min_norm"])
def test_a_pair_of_weight_two_is_the_pair_twice(kind: str) -> None:
    twice = torch.cat([torch.arange(TRAIN), torch.arange(0, TRAIN, 3)])
    weight = torch.ones(TRAIN)
    weight[::3] = 2
    names = {field.name for field in fields(HEADS[kind])}
    config = config_of(kind, ridge=0.05) if "ridge" in names else config_of(kind)
    train = PreferencePairs.of(WORLD.train.chosen, WORLD.train.rejected, source=SOURCE)
    repeated = fit_head(config, WORLD.embedding, WORLD.reward, train.select(twice), NONE).head
    weighted = fit_head(config, WORLD.embedding, WORLD.reward, replace(train, weight=weight.double()), NONE).head
    one, other = WORLD.refined(repeated), WORLD.refined(weighted)
    assert torch.allclose(one.reward, other.reward, atol=1e-3) and torch.allclose(one.std, other.std, rtol=1e-4)


@pytest.mark.parametrize("kind", HEADS)
def test_it_is_fitted_and_read_on_another_device_alike(kind: str) -> None:
    few, rows = WORLD.train.select(slice(40)), slice(0, 7)
    columns = {"ratings": COLUMNS[kind]["ratings"]} if kind == "attributes" else {"source": SOURCE[:40]}
    train = PreferencePairs.of(few.chosen, few.rejected, **columns)
    held = replace(WORLD.validation, source=np.array(["0"] * len(WORLD.validation), dtype=object))
    config = config_of(kind, epochs=2, training=TrainingConfig(epochs=1, batch_rows=32))
    if hasattr(config, "ridge"):
        config = replace(config, ridge=0.1)  # type: ignore[call-arg]
    args = (config, WORLD.embedding, WORLD.reward, train, held)
    here = fit_head(*args).head
    with other_device() as device:
        there = fit_head(*args, device=device).head
        refined = there.refine(WORLD.embedding[rows], WORLD.reward[rows])
        best = there.p_best(WORLD.embedding[rows], WORLD.reward[rows])
    assert_same(refined, here.refine(WORLD.embedding[rows], WORLD.reward[rows]))
    assert torch.allclose(best, here.p_best(WORLD.embedding[rows], WORLD.reward[rows]), atol=1e-5)


def test_nothing_to_fit_on_is_refused() -> None:
    for kind in ("linear", "energy"):
        with pytest.raises(ModelError, match="No training pairs"):
            fit_head(config_of(kind), WORLD.embedding, WORLD.reward, NONE, WORLD.validation)
        with pytest.raises(DataError, match=f"All {TRAIN} training pairs have the weight 0"):
            fit(kind, weight=torch.zeros(TRAIN))


def test_ratings_that_a_head_does_not_use_are_said(caplog: pytest.LogCaptureFixture) -> None:
    assert same(fit("linear"), fit("linear", ratings=WORLD.truth))
    assert f"ratings of {len(WORLD.truth)} rows are not used: the linear head is fitted on pairs" in caplog.text
    with pytest.raises(DataError, match="has no place for the training pairs' weight"):
        fit("binary", ratings=(WORLD.truth > 0).double(), weight=torch.linspace(1, 2, TRAIN))


def test_embeddings_that_say_nothing_give_the_mean_reward() -> None:
    same_rows = replace(WORLD, embedding=torch.ones_like(WORLD.embedding))
    refined = same_rows.refined(same_rows.fit(HEADS["linear"]()))
    mean = WORLD.reward[WORLD.rows].mean()
    assert torch.allclose(refined.reward, mean.expand_as(refined.reward), rtol=1e-5)


def test_a_fitter_is_what_curation_takes() -> None:
    fitter = head_fitter(HEADS["linear"](ridge=0.1))  # type: ignore[call-arg]
    head = fitter(WORLD.embedding, WORLD.train)
    reward = head(WORLD.embedding)
    assert reward.shape == (len(WORLD.reward),) and WORLD.accuracy(reward) > 0.85
    assert float(reward[WORLD.rows].std(correction=0)) == pytest.approx(1, abs=1e-4)
    known = head_fitter(EnergyConfig(**{k: QUICK[k] for k in ("network", "training")}), base_reward=WORLD.reward)
    assert WORLD.accuracy(known(WORLD.embedding, WORLD.train)(WORLD.embedding)) > 0.8
    for kind in ("energy", "anchored"):
        with pytest.raises(DataError, match="fitted on base rewards, too"):
            head_fitter(HEADS[kind]())


def test_a_model_that_holds_a_head_refuses_what_does_not_fit(heads: dict[str, RewardHead], tmp_path: Path) -> None:
    for kind in ("linear", "energy"):
        held = EnergyRewardModel(heads[kind], ModelRecord(head=heads[kind].config))
        with pytest.raises(ModelError, match=r"embeddings \[n, 6\]"):
            held.refine(torch.zeros(2, 5), torch.zeros(2))
        bad = WORLD.embedding[:3].clone()
        bad[1, 0] = torch.nan
        with pytest.raises(ModelError, match="row 1"):
            held.refine(bad, WORLD.reward[:3])
        assert held.with_inference(estimate="mode").fingerprint() != held.fingerprint()
        held.save_pretrained(tmp_path / kind)
        config = json.loads((tmp_path / kind / "config.json").read_text())
        config["head"] = HEADS["silu"]().to_dict()
        (tmp_path / kind / "config.json").write_text(json.dumps(config))
        with pytest.raises(ModelError, match="cannot be put together"):
            EnergyRewardModel.from_pretrained(tmp_path / kind)


class Gumbel(ClosedFormHead):
    """Score: the first number of the embedding."""

    def scores(self, x: Tensor) -> Tensor:
        return x[:, 0]


class Normal(Gumbel):
    """The second number is the logarithm of the deviation."""

    noise = "normal"

    def spread(self, x: Tensor) -> Tensor:
        return x[:, 1].exp()


def made(kind: type[ClosedFormHead], gain: float = 0.5, offset: float = -1.0) -> ClosedFormHead:
    head = kind(2, LinearConfig())
    head.gain.fill_(gain)
    head.offset.fill_(offset)
    head.standardizer.reward_mean.fill_(30.0)
    head.standardizer.reward_std.fill_(4.0)
    head.support.copy_(torch.tensor([-4.0, 4.0]))
    return head.eval()


EMBEDDING = torch.tensor([[0.0, 0.0], [1.0, -1.0], [3.0, 0.5], [-2.0, -3.0], [0.5, 1.0]])
BASE = torch.full((5,), 30.0)
# Base units: 4 * (0.5 * score - 1) + 30.
MEAN = 30 + 4 * (0.5 * EMBEDDING[:, 0] - 1).double().numpy()


def scipy_law(kind: type[ClosedFormHead]) -> stats.rv_continuous:
    if kind is Normal:
        return stats.norm(MEAN, 2 * EMBEDDING[:, 1].double().exp().numpy())
    return stats.gumbel_r(MEAN - 2 * np.euler_gamma, 2.0)


@pytest.mark.parametrize("kind", [Gumbel, Normal])
@pytest.mark.parametrize("estimate", ["mean", "mode"])
def test_refine_is_that_of_scipy_s_distribution(kind: type[ClosedFormHead], estimate: str) -> None:
    refined = made(kind).with_inference(estimate=estimate, coverage=0.8).refine(EMBEDDING, BASE)
    law = scipy_law(kind)
    mode = MEAN if kind is Normal else MEAN - 2 * np.euler_gamma
    at = MEAN if estimate == "mean" else mode
    assert refined.reward.numpy() == pytest.approx(at, rel=1e-6)
    assert refined.mean.numpy() == pytest.approx(law.mean(), rel=1e-6)
    assert refined.mode.numpy() == pytest.approx(mode, rel=1e-6)
    assert refined.std.numpy() == pytest.approx(law.std(), rel=1e-6)
    ends = np.stack([law.ppf(0.1), law.ppf(0.9)])
    assert refined.interval.T.numpy() == pytest.approx(ends, rel=1e-6)
    assert refined.log_density.numpy() == pytest.approx(law.logpdf(at), rel=1e-5)


@pytest.mark.parametrize("kind", [Gumbel, Normal])
def test_the_grid_has_the_distribution_s_probabilities(kind: type[ClosedFormHead]) -> None:
    head, law = made(kind), scipy_law(kind)
    rewards, p = head.density(EMBEDDING, BASE, 33)
    step = float(rewards[1] - rewards[0])
    edges = (rewards.double().numpy()[1:] + rewards.double().numpy()[:-1]) / 2
    cdf = np.stack([law.cdf(edge) for edge in edges], 1)
    mass = np.diff(np.concatenate([np.zeros((5, 1)), cdf, np.ones((5, 1))], 1))
    width = np.full(33, step)
    width[[0, -1]] /= 2
    assert p.double().numpy() * width == pytest.approx(mass, abs=1e-6)
    # Row 3 has a deviation of 0.1 where nodes are 1 apart: its probability is all in two cells or fewer.
    at = head.posterior(EMBEDDING, BASE, 33)
    assert at.log_cells().exp().sum(1).numpy() == pytest.approx(np.ones(5))
    assert bool(at.log_density.isfinite().all())
    fine = head.posterior(EMBEDDING, BASE, 4001)
    inside = np.array([0, 1, 2] if kind is Gumbel else [1, 3])  # the others reach beyond the support
    assert head.standardizer.to_base(fine.mean()).numpy()[inside] == pytest.approx(MEAN[inside], rel=5e-3)


def test_preferring_is_the_logistic_or_the_normal_of_the_difference() -> None:
    a, b = EMBEDDING[:4], EMBEDDING[1:]
    score = EMBEDDING[:, 0]
    both = (a, b), (BASE[:4], BASE[1:])
    assert torch.allclose(made(Gumbel).prefer(*both), torch.sigmoid(score[:4] - score[1:]))
    std = EMBEDDING[:, 1].exp()
    z = (score[:4] - score[1:]) / (std[:4].square() + std[1:].square()).sqrt()
    assert made(Normal).prefer(*both).numpy() == pytest.approx(stats.norm.cdf(z.numpy()), abs=1e-6)


def test_the_best_is_luce_s_softmax_or_the_normal_integral() -> None:
    score = EMBEDDING[:, 0]
    assert torch.allclose(made(Gumbel).p_best(EMBEDDING, BASE), torch.softmax(score, 0))
    found = made(Normal).p_best(EMBEDDING, BASE).double().numpy()
    law = scipy_law(Normal)
    draws = law.rvs((400_000, 5), random_state=np.random.default_rng(0))
    share = np.bincount(draws.argmax(1), minlength=5) / len(draws)
    assert found == pytest.approx(share, abs=4e-3) and found.sum() == pytest.approx(1)
    for kind in (Gumbel, Normal):
        head = made(kind)
        two = head.p_best(EMBEDDING[:2], BASE[:2])
        assert float(two[0]) == pytest.approx(
            float(head.prefer((EMBEDDING[:1], EMBEDDING[1:2]), (BASE[:1], BASE[:1]))), abs=1e-4
        )
        assert head.p_best(EMBEDDING[:1], BASE[:1]).tolist() == [1.0]
        assert head.p_best(EMBEDDING[:0], BASE[:0]).shape == (0,)


def test_the_spread_is_that_of_the_random_utility_model() -> None:
    draws = stats.gumbel_r.rvs(size=(2, 200_000), random_state=1)
    assert draws.std() == pytest.approx(GUMBEL_STD, rel=0.01)
    assert (draws[0] + 0.7 > draws[1]).mean() == pytest.approx(1 / (1 + math.exp(-0.7)), abs=4e-3)


@given(st.floats(-50, 50), st.floats(0.1, 10))
def test_units_change_no_probability(offset: float, gain: float) -> None:
    for kind in (Gumbel, Normal):
        plain, other = made(kind), made(kind, gain, offset)
        both = (EMBEDDING[:4], EMBEDDING[1:]), (BASE[:4], BASE[1:])
        assert torch.allclose(plain.prefer(*both), other.prefer(*both), atol=1e-5)
        assert torch.allclose(plain.p_best(EMBEDDING, BASE), other.p_best(EMBEDDING, BASE), atol=2e-3)


def test_far_tails_stay_finite() -> None:
    for kind in (Gumbel, Normal):
        at = made(kind).posterior(torch.tensor([[1e4, -9.0], [-1e4, -9.0]]), BASE[:2], 65)
        assert bool(at.log_density.isfinite().all()) and bool(at.p_best().isfinite().all())
        assert at.prefer(at).tolist() == [0.5, 0.5]
