from __future__ import annotations

import dataclasses
import logging
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from tests.energy.toys import KNOWN, pairs_of
from torch import Tensor

import ebrm.energy.fit as fit_module
from ebrm.energy.density import RewardDensity
from ebrm.energy.fit import Epoch, Fit, PairRows, fit_density, log_density
from ebrm.energy.settings import FitSettings, InferenceSettings, NetworkSettings
from ebrm.errors import ModelError

TINY = NetworkSettings(reward_widths=(4,), joint_widths=(6, 5), dropout=0.5)
QUICK = FitSettings(beta=0.1, epochs=4, batch_rows=16, nodes=16, negatives=16, learning_rate=1e-2, patience=0)
OBJECTIVES = ["likelihood", "nce"]


def data(rows: int = 80, d: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(rows, d, generator=generator)
    return embedding, 3 + 2 * embedding[:, 0] + 0.5 * torch.randn(rows, generator=generator)


def quick_fit(rows: int = 80, held_out: int = 30, **options) -> Fit:
    """A few seconds' worth of nothing: 50 training rows, 30 validation rows, four epochs."""
    embedding, reward = data(rows)
    training = dataclasses.replace(QUICK, **{k: options.pop(k) for k in list(options) if hasattr(QUICK, k)})
    pairs = pairs_of(rows - held_out), pairs_of(held_out, first=rows - held_out)
    return fit_density(embedding, reward, *pairs, network=TINY, training=training, **options)


def same_weights(one: RewardDensity, other: RewardDensity) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return all(torch.equal(a[name], b[name]) for name in a)


# Same seed, same bytes.


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_same_seed_gives_the_same_weights_and_another_does_not(objective):
    before = torch.get_rng_state()
    one, same = (quick_fit(objective=objective) for _ in range(2))
    assert same_weights(one.density, same.density)
    assert [dataclasses.replace(e, seconds=0.0) for e in one.history] == [
        dataclasses.replace(e, seconds=0.0) for e in same.history
    ]
    assert not same_weights(one.density, quick_fit(objective=objective, seed=1).density)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_an_interrupted_fit_goes_on_to_the_same_weights(objective, tmp_path):
    class Interrupted(KeyboardInterrupt):
        pass

    def stop_after_two(epoch: Epoch) -> None:
        if epoch.epoch == 2:
            raise Interrupted

    whole = quick_fit(objective=objective)
    file = tmp_path / "fit.safetensors"
    with pytest.raises(Interrupted):
        quick_fit(objective=objective, checkpoint=file, on_epoch=stop_after_two)
    seen: list[int] = []
    resumed = quick_fit(objective=objective, checkpoint=file, on_epoch=lambda epoch: seen.append(epoch.epoch))
    assert seen == [3, 4]
    assert same_weights(whole.density, resumed.density)
    assert resumed.best_epoch == whole.best_epoch
    assert [(e.epoch, e.loss, e.validation_accuracy, e.validation_nll) for e in resumed.history] == [
        (e.epoch, e.loss, e.validation_accuracy, e.validation_nll) for e in whole.history
    ]


def test_a_finished_fit_is_not_done_again_and_can_be_continued(tmp_path):
    file = tmp_path / "fit.safetensors"
    first = quick_fit(checkpoint=file, epochs=2, held_out=0, rows=50)
    seen: list[int] = []
    again = quick_fit(checkpoint=file, epochs=2, held_out=0, rows=50, on_epoch=lambda epoch: seen.append(epoch.epoch))
    assert seen == [] and same_weights(first.density, again.density)
    assert [epoch.seconds for epoch in again.history] == [epoch.seconds for epoch in first.history]
    longer = quick_fit(checkpoint=file, epochs=4, held_out=0, rows=50)
    assert same_weights(longer.density, quick_fit(epochs=4, held_out=0, rows=50).density)


def test_a_checkpoint_with_other_settings_or_data_is_refused_naming_them(tmp_path):
    file = tmp_path / "fit.safetensors"
    quick_fit(checkpoint=file)
    embedding, reward = data()
    train, validation = pairs_of(50), pairs_of(30, first=50)

    def resume(embedding=embedding, reward=reward, train=train, validation=validation, **options):
        options = {"network": TINY, "training": QUICK} | options
        fit_density(embedding, reward, train, validation, checkpoint=file, **options)

    resume()
    swapped = reward.clone()
    swapped[[0, 1]] = reward[[1, 0]]  # the same sums
    other = {
        r"network\.dropout is 0\.5, this run's is 0\.25": {"network": dataclasses.replace(TINY, dropout=0.25)},
        r"training\.learning_rate is 0\.01, this run's is 0\.02": {
            "training": dataclasses.replace(QUICK, learning_rate=0.02)
        },
        r"training\.seed is 0, this run's is 7": {"training": dataclasses.replace(QUICK, seed=7)},
        r"inference\.estimate is ascent, this run's is mean": {"inference": InferenceSettings(estimate="mean")},
        r"embedding_shape is \[80, 3\], this run's is \[80, 2\]": {"embedding": embedding[:, :2]},
        "embeddings is": {"embedding": embedding + 1},
        "rewards is": {"reward": swapped},
        "training_pairs is": {"train": pairs_of(48)},
        "validation_pairs is": {"validation": PairRows(validation.rejected, validation.chosen)},
    }
    for said, changed in other.items():
        with pytest.raises(ModelError, match=f"is of another run: its {said}.*Delete it"):
            resume(**changed)


# What counts as a training row.


def test_a_response_in_several_pairs_is_one_row_and_the_label_is_not_seen():
    embedding, reward = data(40)
    once = pairs_of(40)
    chosen, rejected = once.chosen, once.rejected
    often = PairRows(torch.cat([rejected, chosen, chosen]), torch.cat([chosen, rejected, rejected.flip(0)]))
    one, other = (
        fit_density(embedding, reward, pairs, pairs_of(0), network=TINY, training=QUICK).density
        for pairs in (once, often)
    )
    assert same_weights(one, other)


def test_rows_outside_the_training_pairs_do_not_reach_the_fit():
    embedding, reward = data(60)
    one = fit_density(embedding, reward, pairs_of(40), pairs_of(0), network=TINY, training=QUICK).density
    embedding[40:], reward[40:] = 1e6, -1e6
    other = fit_density(embedding, reward, pairs_of(40), pairs_of(0), network=TINY, training=QUICK).density
    assert same_weights(one, other)
    assert float(one.standardizer.reward_mean) == pytest.approx(reward[:40].double().mean().item())


def test_every_row_is_seen_once_an_epoch_in_a_new_order(monkeypatch):
    embedding, reward = torch.arange(50.0).unsqueeze(1), torch.arange(50.0)
    batches: list[list[float]] = []
    monkeypatch.setattr(fit_module, "_step", lambda _, e, r, *rest: batches.append(r.tolist()) or float(len(r)))
    fit = fit_density(embedding, reward, pairs_of(50), pairs_of(0), network=TINY, training=QUICK)
    epochs = [sum(batches[i : i + 4], []) for i in range(0, 16, 4)]
    assert [len(batch) for batch in batches] == [16, 16, 16, 2] * 4
    assert all(sorted(epoch) == reward.tolist() for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert fit.history[0].loss == pytest.approx((3 * 16 * 16 + 2 * 2) / 50)  # batches weigh by their rows


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
    got = fit_density(reader, reward, *pairs, network=TINY, training=QUICK)
    assert same_weights(got.density, fit_density(embedding, reward, *pairs, network=TINY, training=QUICK).density)


# Which epoch is kept.


def scripted(monkeypatch, scores: list[tuple[float, float]]) -> None:
    """Let validation return (accuracy, -log p) from a list."""
    left = iter(scores)
    monkeypatch.setattr(fit_module, "_validate", lambda *_: next(left))


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([(0.5, 1.0), (0.7, 1.0), (0.7, 0.9), (0.6, 0.1)], 3),  # highest accuracy, then lowest -log p
        ([(0.7, 1.0), (0.7, 1.0), (0.6, 0.5), (0.5, 0.5)], 1),  # the earlier of equals
        ([(0.5, 1.0), (0.6, 1.0), (0.7, 1.0), (0.8, 9.0)], 4),
        ([(math.nan, math.nan)] * 4, 4),  # nothing held out: the last
    ],
)
def test_the_best_epoch_is_kept(monkeypatch, scores, best):
    scripted(monkeypatch, scores)
    fit = quick_fit()
    assert fit.best_epoch == best and len(fit.history) == 4
    scripted(monkeypatch, [(0.1 * epoch, 1.0) for epoch in range(9)])
    assert same_weights(fit.density, quick_fit(epochs=best).density)
    assert not fit.density.training


def test_fitting_stops_when_patience_is_out(monkeypatch):
    scripted(monkeypatch, [(0.5, 1.0), (0.7, 1.0), (0.6, 1.0), (0.7, 1.0), (0.9, 1.0)])
    fit = quick_fit(epochs=5, patience=2)
    assert (len(fit.history), fit.best_epoch) == (4, 2)
    scripted(monkeypatch, [(0.5, 1.0), (0.4, 1.0), (0.6, 1.0), (0.5, 1.0), (0.4, 1.0)])
    assert len(quick_fit(epochs=5, patience=0).history) == 5


def test_without_validation_pairs_the_last_epoch_is_kept_and_patience_waits():
    fit = quick_fit(rows=50, held_out=0, patience=1)
    assert (len(fit.history), fit.best_epoch) == (4, 4)
    assert all(math.isnan(epoch.validation_accuracy) for epoch in fit.history)


@pytest.mark.parametrize(
    "inference",
    [InferenceSettings(), InferenceSettings(estimate="mean"), InferenceSettings(start="random", seed=3)],
    ids=["ascent", "mean", "random"],
)
def test_validation_is_the_deployed_inference(inference, monkeypatch):
    monkeypatch.setattr(fit_module, "_READ_ROWS", 7)  # several reads, which must not change a thing
    embedding, reward = data()
    fit = quick_fit(inference=inference)
    held_out = slice(50, 80)
    refined = fit.density.refine(embedding[held_out], reward[held_out], inference).reward
    best = fit.history[fit.best_epoch - 1]
    assert best.validation_accuracy == pytest.approx(float((refined[0::2] > refined[1::2]).double().mean()))
    nodes, p = fit.density.density(embedding[held_out])
    at_base = [np.interp(reward[50 + i], nodes, p[i].log()) for i in range(30)]
    assert best.validation_nll == pytest.approx(-np.mean(at_base), abs=1e-3)


def test_validation_pairs_may_share_rows_and_ties_are_not_right():
    embedding, reward = data()
    pairs = PairRows(torch.tensor([60, 60, 70, 70]), torch.tensor([61, 62, 61, 70]))
    fit = fit_density(embedding, reward, pairs_of(50), pairs, network=TINY, training=QUICK)
    refined = fit.density.refine(embedding, reward, InferenceSettings()).reward
    right = [refined[c] > refined[r] for c, r in zip(pairs.chosen, pairs.rejected, strict=True)]
    assert not right[-1]
    assert fit.history[fit.best_epoch - 1].validation_accuracy == sum(map(float, right)) / 4


def test_log_density_counts_rewards_outside_the_support_as_on_its_edge():
    density = quick_fit().density
    embedding, _ = data(1)
    nodes, p = density.density(embedding)
    got = log_density(density, embedding.expand(3, 3), torch.tensor([-1e6, 1e6, nodes[10].item()]), 257)
    assert got.tolist() == pytest.approx(p[0, [0, -1, 10]].log().tolist(), abs=1e-3)


# Units.


@settings(max_examples=8)
@given(st.floats(0.01, 100), st.floats(-1000, 1000), st.sampled_from(OBJECTIVES))
def test_an_affine_change_of_the_base_rewards_changes_only_units(a, b, objective):
    embedding, reward = data(40)
    reward = reward.double()  # so that a·r + b is not rounded
    training = dataclasses.replace(QUICK, objective=objective, epochs=1)
    one, other = (
        fit_density(embedding, r, pairs_of(40), pairs_of(0), network=TINY, training=training).density
        for r in (reward, a * reward + b)
    )
    before = one.refine(embedding, reward, InferenceSettings())
    after = other.refine(embedding, a * reward + b, InferenceSettings())
    tolerance = 1e-3 * a + 1e-6 * abs(b)
    for name in ("reward", "mean", "mode", "interval"):
        assert torch.allclose(getattr(after, name), a * getattr(before, name) + b, rtol=0, atol=tolerance), name
    assert torch.allclose(after.std, a * before.std, rtol=1e-3)
    assert torch.allclose(after.log_density, before.log_density - math.log(a), atol=1e-2)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("a", [0.25, 1024.0])
def test_a_power_of_two_times_the_base_rewards_changes_only_units_exactly(a, objective):
    embedding, reward = data(40)
    training = dataclasses.replace(QUICK, objective=objective)
    one, other = (
        fit_density(embedding, r, pairs_of(40), pairs_of(0), network=TINY, training=training).density
        for r in (reward, a * reward)
    )
    before, after = (
        density.refine(embedding, r, InferenceSettings()).reward for density, r in ((one, reward), (other, a * reward))
    )
    assert torch.equal(after, a * before)


# One step.


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_activation_budget_does_not_change_the_weights(objective, monkeypatch):
    whole = quick_fit(objective=objective)
    monkeypatch.setattr(fit_module, "_ACTIVATIONS", 6 * 16 * 5)  # five rows at a time
    split = quick_fit(objective=objective)
    for name, value in whole.density.state_dict().items():
        assert torch.allclose(value, split.density.state_dict()[name], rtol=1e-3, atol=1e-4), name
    assert [e.loss for e in whole.history] == pytest.approx([e.loss for e in split.history], rel=1e-4)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_loss_falls(objective):
    history = quick_fit(objective=objective, epochs=12, held_out=0, rows=80).history
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


def test_without_a_number_of_epochs_the_planned_ones_are_made(monkeypatch):
    monkeypatch.setattr(FitSettings, "planned_epochs", lambda _, rows: rows // 10)
    assert len(quick_fit(epochs=None, rows=60, held_out=30).history) == 3  # 30 training rows


def test_no_gradients_are_left_behind():
    assert all(parameter.grad is None for parameter in quick_fit(epochs=1).density.parameters())


def test_gradients_are_clipped():
    embedding, reward = data(16)
    density = RewardDensity(3, TINY, torch.Generator().manual_seed(0))
    density.fit_units(reward, [embedding], QUICK, centre=True)
    before = density.network.output.bias.detach().clone(), density.network.output.weight.detach().clone()
    training = dataclasses.replace(QUICK, clip_norm=1e-3)
    optimizer = torch.optim.SGD(density.network.parameters(), lr=1.0)
    fit_module._step(density, embedding, reward, training, optimizer, torch.Generator().manual_seed(0))
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in density.network.parameters()))
    assert norm == pytest.approx(1e-3, rel=1e-3)
    moved = (density.network.output.weight.detach() - before[1]).norm()
    assert 0 < moved <= 1.01e-3  # and the step is a step


# What cannot be fitted.


def test_no_pairs_at_all():
    embedding, reward = data()
    with pytest.raises(ModelError, match=r"No training pairs are left to fit the energy on \(0 given\)"):
        fit_density(embedding, reward, pairs_of(0), pairs_of(4))


@pytest.mark.parametrize("value", [0.0, 0.1])
def test_equal_rewards(value):
    embedding, _ = data()
    with pytest.raises(ModelError, match="The 10 training rewards are all equal"):
        fit_density(embedding, torch.full((80,), value), pairs_of(10), pairs_of(0), network=TINY, training=QUICK)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_gradient_that_is_not_finite(objective):
    embedding, reward = data()
    embedding[7, 1] = math.nan
    network = dataclasses.replace(TINY, standardize_embedding=False)
    with pytest.raises(ModelError, match=f"The gradient of the {objective} objective is not finite .*--learning-rate"):
        fit_density(
            embedding, reward, pairs_of(10), pairs_of(0), network=network,
            training=dataclasses.replace(QUICK, objective=objective),
        )  # fmt: skip


def test_two_rows_can_be_fitted():
    fit = fit_density(
        torch.tensor([[0.0], [1.0]]), torch.tensor([0.0, 1.0]), pairs_of(2), pairs_of(2), network=TINY, training=QUICK
    )
    assert all(math.isfinite(epoch.loss) for epoch in fit.history)


# What is reported.


def test_every_epoch_is_reported(caplog):
    seen: list[Epoch] = []
    with caplog.at_level(logging.INFO, logger="ebrm"):
        fit = quick_fit(on_epoch=seen.append)
    assert tuple(seen) == fit.history
    assert [epoch.epoch for epoch in seen] == [1, 2, 3, 4]
    assert all(epoch.seconds > 0 for epoch in seen)
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("Epoch")]
    assert len(lines) == 4 and f"held-out accuracy {seen[0].validation_accuracy:.4f}" in lines[0]


# What is fitted is the density that the data came from.


@pytest.fixture(scope="module", params=[(name, objective) for name in KNOWN for objective in OBJECTIVES], ids="-".join)
def fitted_to_known(request):
    name, objective = request.param
    embedding, reward = KNOWN[name].sample(4000, seed=0)
    fit = fit_density(
        embedding,
        reward,
        pairs_of(4000),
        pairs_of(0),
        network=NetworkSettings(reward_widths=(16,), joint_widths=(32, 16), dropout=0.0),
        training=FitSettings(
            objective=objective, noise_scales=(0.3, 1.0), beta=1e-6, regularization=0.0, learning_rate=3e-3,
            weight_decay=0.0, epochs=12, batch_rows=100, negatives=32, nodes=32, patience=0,
        ),
    )  # fmt: skip
    return KNOWN[name], fit.density


def divergence(truth, density: RewardDensity, shift: float = 0.0) -> float:
    """Mean KL(truth ‖ fitted) over e, in nats."""
    e = torch.linspace(-0.9, 0.9, 13)
    nodes, p = density.density(e.unsqueeze(1), nodes=513)
    log_truth = truth.log_density(e, nodes - shift)
    log_fitted = p.double().clamp_min(1e-30).log()
    return torch.trapezoid(log_truth.exp() * (log_truth - log_fitted), nodes.double(), dim=1).mean().item()


def probability_integral(truth, density: RewardDensity) -> np.ndarray:
    """P(r ≤ its held-out draw | e) under the fitted density, for 1000 draws."""
    embedding, reward = truth.sample(1000, seed=1)
    nodes, p = (value.double().numpy() for value in density.density(embedding, nodes=513))
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


def test_refined_rewards_in_inference_mode_are_those_outside(fitted_to_known):
    truth, density = fitted_to_known
    embedding, reward = truth.sample(20, seed=2)
    outside = density.refine(embedding, reward, InferenceSettings()).reward
    with torch.inference_mode():
        assert torch.allclose(density.refine(embedding, reward, InferenceSettings()).reward, outside, atol=1e-3)
