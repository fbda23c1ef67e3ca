from __future__ import annotations

import copy
import dataclasses
import logging
import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from tests.heads.toys import (
    KNOWN,
    QUICK,
    TINY,
    data,
    energy,
    fit,
    pairs_of,
    quick_fit,
    reading,
    same_weights,
    scripted,
    untimed,
)
from torch import Tensor

import ebrm.heads.data as rows_module
import ebrm.heads.training as fit_module
from ebrm.errors import DataError, ModelError
from ebrm.heads import (
    UNMEASURED,
    EnergyConfig,
    EnergyHead,
    Epoch,
    Fusion,
    InferenceConfig,
    NetworkConfig,
)
from ebrm.heads.fusion import BASE_NOISE
from ebrm.pairs import PreferencePairs

OBJECTIVES = ["joint", "likelihood", "nce"]
ON_ROWS = ["likelihood", "nce"]  # of responses, whose labels are not seen


def ordered(pairs: PreferencePairs, value: Tensor, flips: float = 0.0) -> PreferencePairs:
    """The pairs with the higher value chosen, but for a share of wrong labels."""
    wrong = torch.rand(len(pairs), generator=torch.Generator().manual_seed(7)) < flips
    right = (value[pairs.chosen] > value[pairs.rejected]) ^ wrong
    return PreferencePairs.of(
        torch.where(right, pairs.chosen, pairs.rejected), torch.where(right, pairs.rejected, pairs.chosen)
    )


def accuracy(value: Tensor, pairs: PreferencePairs) -> float:
    return float((value[pairs.chosen] > value[pairs.rejected]).double().mean())


# Same seed, same bytes.


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_same_seed_gives_the_same_weights_and_another_does_not(objective):
    before = torch.get_rng_state()
    one, same = (quick_fit(objective=objective) for _ in range(2))
    assert same_weights(one.head, same.head)
    assert untimed(one) == untimed(same)
    assert not same_weights(one.head, quick_fit(objective=objective, seed=1).head)
    assert torch.equal(torch.get_rng_state(), before)


# What counts as a training row.


@pytest.mark.parametrize("objective", ON_ROWS)
def test_a_response_in_several_pairs_is_one_row_and_the_label_is_not_seen(objective):
    embedding, reward = data(40)
    once = pairs_of(40)
    chosen, rejected = once.chosen, once.rejected
    often = PreferencePairs.of(torch.cat([rejected, chosen, chosen]), torch.cat([chosen, rejected, rejected.flip(0)]))
    one, other = (fit(embedding, reward, pairs, pairs_of(0), objective=objective).head for pairs in (once, often))
    assert same_weights(one, other)


def test_the_joint_objective_sees_the_labels_and_every_pair_as_often_as_it_is_given():
    embedding, reward = data(40)
    once = pairs_of(40)

    def fitted(chosen: Tensor, rejected: Tensor) -> EnergyHead:
        return fit(embedding, reward, PreferencePairs.of(chosen, rejected), pairs_of(0)).head

    density = fitted(once.chosen, once.rejected)
    swapped = fitted(once.rejected, once.chosen)
    twice = fitted(once.chosen.repeat(2), once.rejected.repeat(2))
    for other in (swapped, twice):
        assert not same_weights(density, other)
        assert torch.equal(density.standardizer.reward_mean, other.standardizer.reward_mean)  # units are of the rows
        assert torch.equal(density.support, other.support)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_rows_outside_the_training_pairs_do_not_reach_the_fit(objective):
    embedding, reward = data(60)
    one = fit(embedding, reward, pairs_of(40), pairs_of(0), objective=objective).head
    embedding[40:], reward[40:] = 1e6, -1e6
    other = fit(embedding, reward, pairs_of(40), pairs_of(0), objective=objective).head
    assert same_weights(one, other)
    assert float(one.standardizer.reward_mean) == pytest.approx(reward[:40].double().mean().item())


def watch_steps(monkeypatch) -> list[list[float]]:
    """What the steps are given: rewards of the batch, which are those of their embeddings; the loss is their count."""
    batches: list[list[float]] = []

    def step(_, e: Tensor, r: Tensor, *rest) -> float:
        assert torch.equal(e.squeeze(1), r)
        batches.append(r.tolist())
        return float(len(r))

    monkeypatch.setattr(fit_module, "train_step", step)
    return batches


def test_every_pair_is_seen_once_an_epoch_in_a_new_order_the_chosen_first(monkeypatch):
    embedding, reward = torch.arange(50.0).unsqueeze(1), torch.arange(50.0)
    batches = watch_steps(monkeypatch)
    chosen = torch.cat([torch.tensor([3, 3, 3]), torch.arange(10, 32)])  # one row against several
    rejected = torch.cat([torch.tensor([1, 40, 5]), torch.arange(49, 27, -1)])  # and rows on both sides
    fitted = fit(embedding, reward, PreferencePairs.of(chosen, rejected), pairs_of(0))
    assert [len(batch) for batch in batches] == [16, 16, 16, 2] * 4  # rows a step: eight pairs
    pairs = [list(zip(batch[: len(batch) // 2], batch[len(batch) // 2 :], strict=True)) for batch in batches]
    epochs = [sum(pairs[i : i + 4], []) for i in range(0, 16, 4)]
    given = sorted(zip(chosen.tolist(), rejected.tolist(), strict=True))
    assert all(sorted(epoch) == given for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert fitted.history[0].loss == pytest.approx((3 * 16 * 8 + 2 * 1) / 25)  # batches weigh by their pairs


@pytest.mark.parametrize("objective", ON_ROWS)
def test_every_row_is_seen_once_an_epoch_in_a_new_order(objective, monkeypatch):
    embedding, reward = torch.arange(50.0).unsqueeze(1), torch.arange(50.0)
    batches = watch_steps(monkeypatch)
    fitted = fit(embedding, reward, pairs_of(50), pairs_of(0), objective=objective)
    epochs = [sum(batches[i : i + 4], []) for i in range(0, 16, 4)]
    assert [len(batch) for batch in batches] == [16, 16, 16, 2] * 4
    assert all(sorted(epoch) == reward.tolist() for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert fitted.history[0].loss == pytest.approx((3 * 16 * 16 + 2 * 2) / 50)  # batches weigh by their rows


def test_embeddings_are_read_in_pieces():
    """A reader on disk: rows by LongTensor or slice, half precision inside, never all at once."""

    class OnDisk:
        shape = (80, 3)
        largest = 0

        def __getitem__(self, index):
            part = data()[0][index]
            self.largest = max(self.largest, len(part))
            return part

    reader = OnDisk()
    embedding, reward = data()
    pairs = pairs_of(50), pairs_of(30, first=50)
    got = fit(reader, reward, *pairs)
    assert reader.largest < 80
    assert same_weights(got.head, fit(embedding, reward, *pairs).head)


# Which epoch is kept.


NOTHING = (math.nan, math.nan, math.nan)


@pytest.mark.parametrize(
    ("objective", "scores", "best"),
    [
        # highest accuracy, then lowest -log p; the label loss counts for nothing
        ("likelihood", [(0.5, 1.0, 0.1), (0.7, 1.0, 0.2), (0.7, 0.9, 0.3), (0.6, 0.1, 0.4)], 3),
        ("nce", [(0.7, 1.0, 0.5), (0.7, 1.0, 0.1), (0.6, 0.5, 0.1), (0.5, 0.5, 0.1)], 1),  # the earlier of equals
        ("likelihood", [(0.5, 1.0, 0.5), (0.6, 1.0, 0.5), (0.7, 1.0, 0.5), (0.8, 9.0, 0.5)], 4),
        # lowest label loss; accuracy and -log p count for nothing
        ("joint", [(0.9, 0.1, 0.6), (0.5, 9.0, 0.5), (0.8, 0.1, 0.7), (0.9, 0.1, 0.6)], 2),
        ("joint", [(0.5, 1.0, 0.6), (0.5, 1.0, 0.5), (0.9, 0.1, 0.5), (0.9, 0.1, 0.6)], 2),  # the earlier of equals
        ("joint", [NOTHING] * 4, 4),  # nothing held out: the last
        ("likelihood", [NOTHING] * 4, 4),
    ],
)
def test_the_best_epoch_is_kept(monkeypatch, objective, scores, best):
    scripted(monkeypatch, scores)
    fitted = quick_fit(objective=objective)
    assert fitted.best_epoch == best and len(fitted.history) == 4
    scripted(monkeypatch, [(0.1 * epoch, 1.0, 1.0 / (1 + epoch)) for epoch in range(9)])
    assert same_weights(fitted.head, quick_fit(objective=objective, epochs=best).head)
    assert not fitted.head.training


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_fitting_stops_when_patience_is_out(objective, monkeypatch):
    accuracy = (0.5, 0.7, 0.6, 0.7, 0.9)
    scripted(monkeypatch, [(a, 1.0, 1 - a) for a in accuracy])
    fitted = quick_fit(objective=objective, epochs=5, patience=2)
    assert (len(fitted.history), fitted.best_epoch) == (4, 2)
    scripted(monkeypatch, [(a, 1.0, 1 - a) for a in (0.5, 0.4, 0.6, 0.5, 0.4)])
    assert len(quick_fit(objective=objective, epochs=5, patience=0).history) == 5


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_without_validation_pairs_the_last_epoch_is_kept_and_patience_waits(objective):
    fitted = quick_fit(objective=objective, rows=50, held_out=0, patience=1)
    assert (len(fitted.history), fitted.best_epoch) == (4, 4)
    assert all(
        math.isnan(value)
        for epoch in fitted.history
        for value in (epoch.validation_accuracy, epoch.validation_nll, epoch.validation_label_loss)
    )
    # The other objectives have nothing to do with the base reward once they are fitted.
    assert fitted.head.fusion == (UNMEASURED if objective == "joint" else Fusion())


def test_without_validation_pairs_the_base_reward_counts_a_little():
    embedding, reward = data(50)
    fitted = fit(embedding, reward, pairs_of(50), pairs_of(0))
    lower, refined, higher = (fitted.head.refine(embedding, reward + shift).reward for shift in (-1.0, 0.0, 1.0))
    assert bool((lower < refined).all()) and bool((refined < higher).all())
    fitted.head.fusion = Fusion()
    alone, moved = (fitted.head.refine(embedding, r).reward for r in (reward, reward + 1))
    assert torch.equal(alone, moved) and not torch.allclose(alone, refined, atol=1e-3)


def label_loss_by_hand(p: np.ndarray, nodes: np.ndarray, flips: float) -> float:
    """Mean over pairs of neighboring rows, from densities [n, g] at the nodes [g], by the trapezoid rule."""
    cells = p * (nodes[1] - nodes[0])
    cells[:, [0, -1]] /= 2
    higher = np.tril(np.ones((len(nodes), len(nodes))), -1) + 0.5 * np.eye(len(nodes))
    win = np.einsum("pi,ij,pj->p", cells[0::2], higher, cells[1::2])
    return float(-np.log((1 - flips) * win + flips * (1 - win)).mean())


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(
    "inference",
    [InferenceConfig(), InferenceConfig(estimate="ascent"), InferenceConfig(estimate="ascent", start="random", seed=3)],
    ids=["mean", "ascent", "random"],
)
def test_validation_is_the_deployed_inference_of_the_density(inference, objective, monkeypatch):
    monkeypatch.setattr(rows_module, "_READ_FLOATS", 7 * 3)  # several reads, which must not change a thing
    embedding, reward = data()
    fitted = quick_fit(objective=objective, inference=inference, label_noise=0.2)
    fitted.head.fusion = Fusion()  # the base reward is weighed in after the epoch is chosen
    e, r = embedding[50:], reward[50:]
    refined = reading(fitted.head, inference).refine(e, r).reward
    best = fitted.history[fitted.best_epoch - 1]
    assert best.validation_accuracy == pytest.approx(float((refined[0::2] > refined[1::2]).double().mean()))
    nodes, p = (value.double().numpy() for value in fitted.head.density(e, r, inference.nodes))
    at_base = [np.interp(r[i], nodes, np.log(p[i])) for i in range(30)]
    assert best.validation_nll == pytest.approx(-np.mean(at_base), abs=1e-3)
    flips = 0.2 if objective == "joint" else 0.1  # the other objectives have no such setting
    assert best.validation_label_loss == pytest.approx(label_loss_by_hand(p, nodes, flips), abs=1e-4)


def test_validation_pairs_may_share_rows_and_ties_are_not_right():
    embedding, reward = data()
    embedding[71], reward[71] = embedding[70], reward[70]
    pairs = PreferencePairs.of([60, 60, 70, 70], [61, 62, 61, 71])
    fitted = fit(embedding, reward, pairs_of(50), pairs)
    fitted.head.fusion = Fusion()
    refined = fitted.head.refine(embedding, reward).reward
    right = [refined[c] > refined[r] for c, r in zip(pairs.chosen, pairs.rejected, strict=True)]
    assert not right[-1]
    assert fitted.history[fitted.best_epoch - 1].validation_accuracy == sum(map(float, right)) / 4


def test_log_density_counts_rewards_outside_the_support_as_on_its_edge():
    density = quick_fit(objective="likelihood").head
    embedding, reward = data(1)
    nodes, p = density.density(embedding, reward)
    at = torch.tensor([-1e6, 1e6, nodes[10].item()])
    got = fit_module.log_density_of(density, density.posterior(embedding.expand(3, 3), at, 257), at)
    assert got.tolist() == pytest.approx(p[0, [0, -1, 10]].log().tolist(), abs=1e-3)


# Units.


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("a", [2.0**-20, 0.25, 2.0**20])
def test_a_power_of_two_times_the_base_rewards_changes_only_units_exactly(a, objective):
    embedding, reward = data(40)
    pairs = ordered(pairs_of(24), embedding[:, 0]), ordered(pairs_of(16, first=24), embedding[:, 0])
    one, other = (fit(embedding, r, *pairs, objective=objective).head for r in (reward, a * reward))
    assert one.fusion == other.fusion and math.isinf(one.fusion.base_noise) == (objective != "joint")
    for inference in ({}, *({"estimate": "ascent", "start": start} for start in ("base", "paper", "zero", "random"))):
        before, after = (
            density.with_inference(**inference).refine(embedding, r)
            for density, r in ((one, reward), (other, a * reward))
        )
        for name in ("reward", "std", "interval", "mean", "mode"):
            assert torch.equal(getattr(after, name), a * getattr(before, name)), name
        assert torch.allclose(after.log_density, before.log_density - math.log(a), atol=1e-5)
    sides = (embedding, embedding.flip(0))
    answers = other.prefer(sides, (a * reward, a * reward.flip(0))), one.prefer(sides, (reward, reward.flip(0)))
    assert torch.equal(*answers)


# One step.


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_activation_budget_does_not_change_the_weights(objective, monkeypatch):
    whole = quick_fit(objective=objective)
    monkeypatch.setattr(fit_module, "_ACTIVATIONS", 6 * 16 * 5)  # five rows at a time
    split = quick_fit(objective=objective)
    for name, value in whole.head.state_dict().items():
        assert torch.allclose(value, split.head.state_dict()[name], rtol=1e-3, atol=1e-4), name
    assert [e.loss for e in whole.history] == pytest.approx([e.loss for e in split.history], rel=1e-4)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_loss_falls(objective):
    embedding, reward = data()
    history = fit(embedding, reward, ordered(pairs_of(80), reward), pairs_of(0), objective=objective, epochs=30).history
    assert history[-1].loss < history[0].loss - 0.1


def test_noise_widths_are_in_standard_deviations_of_the_internal_reward(monkeypatch):
    seen = []

    def watch(*arguments, **options):
        seen.append((arguments[3].sigmas, options["negatives"], options["beta"], options["regularization"]))
        return original(*arguments, **options)

    original = fit_module.nce_step_losses
    monkeypatch.setattr(fit_module, "nce_step_losses", watch)
    quick_fit(objective="nce", noise_scales=(0.875, 0.25), reward_scale=4.0, beta=0.2, regularization=0.03, epochs=1)
    assert set(seen) == {((3.5, 1.0), 16, 0.2, 0.03)}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_without_a_number_of_epochs_those_planned_for_the_steps_are_made(objective, monkeypatch):
    planned: list[int] = []
    monkeypatch.setattr(EnergyConfig, "planned_epochs", lambda _, steps: planned.append(steps) or 3)
    assert len(quick_fit(objective=objective, epochs=None, rows=80, held_out=30).history) == 3
    assert planned == [4]  # 50 training rows, 16 of them a step, or 25 pairs, 8 of them a step


def test_no_gradients_are_left_behind():
    assert all(parameter.grad is None for parameter in quick_fit(epochs=1).head.parameters())


def test_gradients_are_clipped():
    embedding, reward = data(16)
    density = EnergyHead(3, energy(**QUICK, clip_norm=1e-3), torch.Generator().manual_seed(0))
    density.fit_units(reward, [embedding])
    before = density.network.output.bias.detach().clone(), density.network.output.weight.detach().clone()
    optimizer = torch.optim.SGD(density.network.parameters(), lr=1.0)
    fit_module.train_step(density, embedding, reward, optimizer, torch.Generator().manual_seed(0))
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in density.network.parameters()))
    assert norm == pytest.approx(1e-3, rel=1e-3)
    moved = (density.network.output.weight.detach() - before[1]).norm()
    assert 0 < moved <= 1.01e-3  # and the step is a step


# What cannot be fitted.


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_gradient_that_is_not_finite(objective):
    embedding, reward = data()
    embedding[7, 1] = math.nan
    network = dataclasses.replace(TINY, standardize_embedding=False)
    with pytest.raises(
        ModelError, match=f"The gradient of the {objective} objective is not finite .*Lower `learning_rate`"
    ):
        fit(
            embedding, reward, pairs_of(10), pairs_of(0), network=network, objective=objective
        )  # fmt: skip


def test_two_rows_can_be_fitted():
    fitted = fit(torch.tensor([[0.0], [1.0]]), torch.tensor([0.0, 1.0]), pairs_of(2), pairs_of(2))
    assert all(math.isfinite(epoch.loss) for epoch in fitted.history)


# What is reported.


def test_every_epoch_is_reported(caplog):
    seen: list[Epoch] = []
    with caplog.at_level(logging.INFO, logger="ebrm"):
        fitted = quick_fit(on_epoch=seen.append)
    assert tuple(seen) == fitted.history
    assert [epoch.epoch for epoch in seen] == [1, 2, 3, 4]
    assert all(epoch.seconds > 0 for epoch in seen)
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("Epoch")]
    assert lines  # the first, and then one every few seconds
    for line in lines:
        epoch = seen[int(line.removeprefix("Epoch ").split(":")[0]) - 1]
        assert f"held out accuracy {epoch.validation_accuracy:.3f}, " in line
        assert f"label loss {epoch.validation_label_loss:.3f}" in line and len(line) <= 80
    assert any(f"to the power {fitted.head.fusion.power:g}," in record.getMessage() for record in caplog.records)


def test_numbers_that_were_not_measured_are_none_in_json():
    epoch = Epoch(1, 0.5, math.nan, math.nan, math.nan, 2.0)
    assert epoch.to_dict() == {
        "epoch": 1, "loss": 0.5, "validation_accuracy": None, "validation_nll": None, "validation_label_loss": None,
        "seconds": 2.0,
    }  # fmt: skip


# What is fitted is the density that the data came from.


@pytest.fixture(scope="module", params=[(name, objective) for name in KNOWN for objective in ON_ROWS], ids="-".join)
def fitted_to_known(request):
    name, objective = request.param
    embedding, reward = KNOWN[name].sample(4000, seed=0)
    network = NetworkConfig(reward_widths=(16,), joint_widths=(32, 16), dropout=0.0)
    fitted = fit(
        embedding, reward, pairs_of(4000), pairs_of(0), network=network, objective=objective, noise_scales=(0.3, 1.0),
        beta=1e-6, regularization=0.0, learning_rate=3e-3, weight_decay=0.0, epochs=12, batch_rows=100, negatives=32,
        nodes=32,
    )  # fmt: skip
    return KNOWN[name], fitted.head


def divergence(truth, density: EnergyHead, shift: float = 0.0) -> float:
    """Mean KL(truth ‖ fitted) over e, in nats."""
    e = torch.linspace(-0.9, 0.9, 13)
    nodes, p = density.density(e.unsqueeze(1), torch.zeros(13), nodes=513)
    log_truth = truth.log_density(e, nodes - shift)
    log_fitted = p.double().clamp_min(1e-30).log()
    return torch.trapezoid(log_truth.exp() * (log_truth - log_fitted), nodes.double(), dim=1).mean().item()


def probability_integral(truth, density: EnergyHead) -> np.ndarray:
    """P(r ≤ its held-out draw | e) under the fitted density, for 1000 draws."""
    embedding, reward = truth.sample(1000, seed=1)
    nodes, p = (value.double().numpy() for value in density.density(embedding, reward, nodes=513))
    cumulative = integrate.cumulative_trapezoid(p, nodes, axis=1, initial=0)
    return np.array([np.interp(reward[i].item(), nodes, cumulative[i]) for i in range(1000)])


def test_the_fitted_density_is_the_known_one(fitted_to_known):
    truth, density = fitted_to_known
    # 0.009 to 0.035 nats over three seeds.
    assert divergence(truth, density) < 0.04
    assert divergence(truth, density, shift=0.2) > 0.05  # the bound can tell


def test_held_out_rewards_are_spread_as_the_fitted_density_says(fitted_to_known):
    truth, density = fitted_to_known
    u = probability_integral(truth, density)
    # 1000 draws from the truth itself stay below 0.052 in 99 of 100 samples; the rest is for the fit's own error.
    assert stats.kstest(u, "uniform").statistic < 0.07
    assert ((u > 0.05) & (u < 0.95)).mean() == pytest.approx(0.9, abs=0.04)


# The joint objective: labels that are often wrong, and a base reward that knows much or nothing.

SMALL = NetworkConfig(reward_widths=(8,), joint_widths=(32,), dropout=0.2)
JOINT = {
    "network": SMALL, "batch_rows": 64, "nodes": 16, "learning_rate": 5e-3, "epochs": 6, "patience": 0,
    "label_noise": 0.25,
}  # fmt: skip
TRAIN, HELD_OUT, TEST = pairs_of(1200), pairs_of(400, first=1200), pairs_of(800, first=1600)


@dataclasses.dataclass(frozen=True)
class Scene:
    """2400 responses: what they are truly worth, what is read of them, and pairs in the true order but for flips."""

    true: Tensor
    embedding: Tensor
    reward: Tensor

    def fit(self, flips: float, **settings) -> EnergyHead:
        train, held_out = (ordered(pairs, self.true, flips) for pairs in (TRAIN, HELD_OUT))
        return fit(self.embedding, self.reward, train, held_out, **JOINT | settings).head

    def refined(self, density: EnergyHead, **inference) -> Tensor:
        return density.with_inference(**inference).refine(self.embedding, self.reward).reward

    @property
    def test(self) -> PreferencePairs:
        return ordered(TEST, self.true)


def scene(knows: str, seed: int = 0) -> Scene:
    """`knows`: what tells the true reward, the embedding or the base reward; the other is noise beside it.

    Under "both" both tell it, the base reward with an error of its own. Under "labels" too, but there the base
    reward's error is a taste that the embedding tells as well.
    """
    generator = torch.Generator().manual_seed(seed)
    embedding = torch.randn(2400, 6, generator=generator) * torch.tensor([1.0, 5.0, 0.1, 1.0, 1.0, 1.0])
    noise = torch.randn(2400, generator=generator)
    if knows == "base":
        return Scene(noise, embedding, 10 + 3 * noise)
    true = embedding[:, 0] + 0.2 * embedding[:, 1]
    if knows == "labels":
        return Scene(true, embedding, 10 + 3 * (0.3 * true + embedding[:, 3]))
    return Scene(true, embedding, 10 + 3 * (true + noise if knows == "both" else noise))


@pytest.fixture(scope="module")
def embedding_knows() -> tuple[Scene, EnergyHead]:
    chosen = scene("embedding")
    return chosen, chosen.fit(flips=0.25)


@pytest.fixture(scope="module")
def both_know() -> tuple[Scene, EnergyHead]:
    chosen = scene("both")
    return chosen, chosen.fit(flips=0.25)


def test_a_quarter_of_wrong_labels_is_seen_through(embedding_knows):
    seen, density = embedding_knows
    base, refined = accuracy(seen.reward, seen.test), accuracy(seen.refined(density), seen.test)
    assert base < 0.55
    assert refined > 0.85 and refined > base + 0.2
    assert density.fusion == Fusion(1.0, BASE_NOISE[-1])  # the base reward counts as little as is tried
    for estimate in ("mode", "ascent"):
        assert accuracy(seen.refined(density, estimate=estimate), seen.test) > 0.8


def test_density_and_base_reward_together_are_better_than_the_base_reward(both_know):
    seen, density = both_know
    base, refined = accuracy(seen.reward, seen.test), accuracy(seen.refined(density), seen.test)
    assert base == pytest.approx(0.8, abs=0.05)
    assert refined > 0.9 and refined > base + 0.08
    assert density.fusion.power > 0


def test_a_taste_of_the_base_reward_is_unlearnt_from_the_labels_alone():
    """Where the base reward is wrong in a way the embedding tells, its own likelihood only repeats it."""
    seen = scene("labels")
    joint, alone = (seen.fit(flips=0.25, objective=objective) for objective in ("joint", "likelihood"))
    base, repeated, refined = (
        accuracy(value, seen.test) for value in (seen.reward, seen.refined(alone), seen.refined(joint))
    )
    assert repeated == pytest.approx(base, abs=0.06)
    assert refined > base + 0.15 and refined > repeated + 0.15
    assert alone.fusion == Fusion()


@pytest.mark.parametrize("flips", [0.0, 0.25])
def test_a_base_reward_that_is_the_truth_keeps_its_order(flips):
    seen = scene("base")
    density = seen.fit(flips)
    assert accuracy(seen.reward, seen.test) == 1.0
    assert accuracy(seen.refined(density), seen.test) > 0.97
    assert density.fusion.base_noise < 1.0 or density.fusion.power == 0.0


@pytest.mark.parametrize("knows", ["embedding_knows", "both_know"])
def test_probabilities_of_preference_are_calibrated_against_the_labels(knows, request):
    """Of labels flipped with ε, a share (1 - ε) P + ε (1 - P) is chosen where P is said."""
    seen, fitted = request.getfixturevalue(knows)
    density = copy.deepcopy(fitted)
    if knows == "embedding_knows":
        density.fusion = Fusion()  # of the density: a base reward that is noise, and never left out, is no part of this
    labels = ordered(TEST, seen.true, flips=0.25)
    first, second = TEST.chosen, TEST.rejected
    said = density.prefer((seen.embedding[first], seen.embedding[second]), (seen.reward[first], seen.reward[second]))
    expected = (0.75 * said + 0.25 * (1 - said)).double()
    chosen = (labels.chosen == first).double()
    sure = expected > expected.median()
    for part in (sure, ~sure):
        assert float(chosen[part].mean()) == pytest.approx(float(expected[part].mean()), abs=0.09)


def test_the_held_out_label_loss_is_better_than_chance(embedding_knows):
    seen, density = embedding_knows
    labels = ordered(TEST, seen.true, flips=0.25)
    rows = torch.stack([labels.chosen, labels.rejected], 1).reshape(-1)
    nodes, p = (v.double().numpy() for v in density.density(seen.embedding[rows], seen.reward[rows], 65))
    assert label_loss_by_hand(p, nodes, 0.25) < math.log(2) - 0.05


def test_order_of_the_rows_does_not_matter():
    seen = scene("embedding")
    order = torch.randperm(2400, generator=torch.Generator().manual_seed(3))
    place = torch.empty_like(order)
    place[order] = torch.arange(2400)  # row i is now at place[i]
    one, other = (
        fit(
            seen.embedding[rows], seen.reward[rows], PreferencePairs.of(at[TRAIN.chosen], at[TRAIN.rejected]),
            PreferencePairs.of(at[HELD_OUT.chosen], at[HELD_OUT.rejected]), **JOINT | {"epochs": 1},
        )
        for rows, at in ((torch.arange(2400), torch.arange(2400)), (order, place))
    )  # fmt: skip
    assert one.history[0].validation_label_loss == pytest.approx(other.history[0].validation_label_loss, abs=1e-4)
    assert one.head.fusion == other.head.fusion
    assert torch.allclose(
        seen.refined(one.head), Scene(seen.true, seen.embedding, seen.reward).refined(other.head), atol=1e-2
    )


def test_the_fusion_is_chosen_for_the_epoch_that_is_kept(monkeypatch):
    """Neither the last epoch's density nor the training pairs are looked at."""
    seen = scene("embedding")
    asked = []

    def watch(held_out, **options):
        asked.append((list(held_out), options))
        return Fusion(0.25, 2.8)

    monkeypatch.setattr(fit_module, "choose_fusion", watch)
    scripted(monkeypatch, [(0.5, 1.0, loss) for loss in (0.6, 0.5, 0.7)])
    held_out = ordered(HELD_OUT, seen.true)
    fitted = fit(
        seen.embedding, seen.reward, ordered(TRAIN, seen.true), held_out,
        **JOINT | {"epochs": 3, "reward_scale": 4.0},
    )  # fmt: skip
    assert fitted.best_epoch == 2 and fitted.head.fusion == Fusion(0.25, pytest.approx(2.8))
    (((part,), options),) = asked
    assert options == {"flips": 0.25, "scale": 4.0}
    fitted.head.fusion = Fusion()
    at = fitted.head.posterior(seen.embedding[1200:1600], seen.reward[1200:1600], InferenceConfig().nodes)
    assert torch.allclose(part.log_mass, at.log_cells().float(), atol=1e-4)
    assert torch.allclose(part.nodes, at.nodes.float())
    assert torch.allclose(part.reward, fitted.head.standardizer.to_internal(seen.reward[1200:1600]))
    assert torch.equal(part.pairs.chosen + 1200, held_out.chosen)
    assert torch.equal(part.pairs.rejected + 1200, held_out.rejected)


def test_joint_settings_reach_the_step_in_internal_units(monkeypatch):
    seen = []

    def watch(*arguments, **options):
        seen.append({k: v for k, v in options.items() if k not in ("generator", "rows_at_once", "label", "weight")})
        return original(*arguments, **options)

    original = fit_module.joint_step_losses
    monkeypatch.setattr(fit_module, "joint_step_losses", watch)
    fitted = quick_fit(
        label_noise=0.2, reward_weight=0.7, reward_noise=1.5, reward_scale=4.0, nodes=12, regularization=0.03, epochs=1
    )
    assert len(seen) == 4
    assert all(
        step
        == {
            "flips": 0.2, "reward_weight": 0.7, "reward_noise": 6.0, "nodes": 12, "regularization": 0.03,
            "support": fitted.head.support_bounds(),
        }
        for step in seen
    )  # fmt: skip


# Labels, weights and strength of pairs.


def test_weights_and_labels_of_pairs_reach_the_steps_relative_to_their_mean(monkeypatch):
    seen = []

    def watch(*arguments, **options):
        seen.append((options["label"], options["weight"]))
        return original(*arguments, **options)

    original = fit_module.joint_step_losses
    monkeypatch.setattr(fit_module, "joint_step_losses", watch)
    embedding, reward = data(32)
    pairs = pairs_of(32)
    columns = {"weight": torch.linspace(0, 6, 16), "label": torch.linspace(0.5, 1, 16)}
    fit(
        embedding, reward, PreferencePairs.of(pairs.chosen, pairs.rejected, **columns), pairs_of(0), epochs=1
    )  # fmt: skip
    label, weight = (torch.cat([step[k] for step in seen]) for k in (0, 1))
    assert weight.mean() == pytest.approx(1) and label.sort().values.tolist() == pytest.approx(
        columns["label"].tolist()
    )
    assert torch.allclose(weight.sort().values, columns["weight"] / 3)
    fit(embedding, reward, pairs, pairs_of(0), epochs=1)
    assert seen[-1] == (None, None)


@pytest.mark.parametrize("objective", ON_ROWS)
def test_an_objective_that_sees_no_labels_refuses_them(objective):
    embedding, reward = data(8)
    pairs = PreferencePairs.of([0, 2], [1, 3], label=[1.0, 0.7])
    with pytest.raises(DataError, match=f"objective {objective} is fitted on base rewards alone, so the pairs' label"):
        fit(embedding, reward, pairs, pairs_of(0), objective=objective)


def test_held_out_pairs_count_by_label_and_weight():
    head = quick_fit(epochs=1).head
    embedding, reward = data()
    held = pairs_of(30, first=50)
    plain = fit_module.validate(head, embedding, reward, held)
    swapped = PreferencePairs.of(held.rejected, held.chosen, label=torch.zeros(15), weight=torch.full((15,), 3.0))
    assert fit_module.validate(head, embedding, reward, swapped) == pytest.approx(plain)
    twice = torch.cat([torch.arange(15), torch.arange(5)])
    weighted = PreferencePairs.of(held.chosen, held.rejected, weight=1.0 + (torch.arange(15) < 5).double())
    expected = fit_module.validate(head, embedding, reward, held.select(twice))
    assert fit_module.validate(head, embedding, reward, weighted) == pytest.approx(expected, rel=1e-5)
    ties = PreferencePairs.of(held.chosen, held.rejected, label=torch.full((15,), 0.5))
    accuracy_, _, loss = fit_module.validate(head, embedding, reward, ties)
    assert math.isnan(accuracy_) and loss >= math.log(2) - 1e-6


@pytest.mark.parametrize(("beta", "fewest", "most"), [(0.0, 32, 32), (0.1, 100, 256), (1e-6, 256, 256)])
def test_a_cell_of_the_likelihood_is_no_wider_than_the_noise_on_the_positive(monkeypatch, beta, fewest, most):
    from ebrm.heads import LikelihoodConfig, TrainingConfig, fit_head, training

    seen, step = [], training.likelihood_step_losses

    def noted(*arguments, **options):
        seen.append((options["nodes"], options["support"]))
        return step(*arguments, **options)

    monkeypatch.setattr(training, "likelihood_step_losses", noted)
    draws = torch.Generator().manual_seed(0)
    config = EnergyConfig(
        network=NetworkConfig(reward_widths=(4,), joint_widths=(4,)),
        objective=LikelihoodConfig(beta=beta), training=TrainingConfig(epochs=1),
    )  # fmt: skip
    embedding, reward = torch.randn(40, 3, generator=draws), torch.randn(40, generator=draws)
    fit_head(config, embedding, reward, pairs_of(20), pairs_of(0))
    nodes, (low, high) = seen[0]
    assert fewest <= nodes <= most
    if beta == 0.1:
        assert (high - low) / nodes <= beta * 0.875
