"""Leverage: an epistemic standard deviation in closed form, larger the farther a row is from the training rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ebrm.errors import ConfigError, DataError, ModelError
from ebrm.heads import Leverage


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def closed_form(phi: torch.Tensor, weight: torch.Tensor, ridge: float, rows: torch.Tensor) -> np.ndarray:
    a, w, x = (tensor.double().numpy() for tensor in (phi, weight, rows))
    precision = ridge * np.eye(a.shape[1]) + a.T @ np.diag(w) @ a
    return np.sqrt(np.einsum("nd,nd->n", x, np.linalg.solve(precision, x.T).T))


@pytest.mark.parametrize(("n", "d"), [(50, 8), (8, 50), (20, 20), (1, 5)])
@pytest.mark.parametrize("ridge", [1e-3, 1.0, 100.0])
def test_it_is_the_laplace_standard_deviation(n, d, ridge):
    phi, rows, weight = normal(n, d), normal(30, d, seed=1), torch.rand(n, generator=torch.Generator().manual_seed(2))
    found = Leverage.fit(phi, weight, ridge=ridge)(rows)
    np.testing.assert_allclose(found.numpy(), closed_form(phi, weight, ridge, rows), rtol=2e-5)


@given(st.integers(0, 20), st.floats(1.0, 10.0), st.floats(1.01, 5.0))
def test_it_grows_along_every_ray(seed, start, factor):
    made = Leverage.fit(normal(40, 6))
    ray = normal(1, 6, seed=100 + seed)
    near, far = made(start * ray), made(start * factor * ray)
    assert float(far) == pytest.approx(float(near) * factor, rel=1e-5) and float(far) > float(near)


def test_it_is_larger_in_directions_that_no_training_row_has():
    phi = normal(200, 10)
    phi[:, 5:] = 0
    seen, unseen = torch.eye(10)[:1], torch.eye(10)[9:]
    made = Leverage.fit(phi, ridge=4.0)
    assert float(made(unseen)) == pytest.approx(0.5)
    assert float(made(seen)) < 0.1


def test_more_training_rows_make_it_smaller_and_never_larger():
    phi, rows = normal(100, 7), normal(20, 7, seed=1)
    some, all_of_them = Leverage.fit(phi[:30])(rows), Leverage.fit(phi)(rows)
    assert bool((all_of_them < some).all())


def test_without_training_rows_it_is_the_prior_s():
    made = Leverage.fit(torch.empty(0, 3), ridge=4.0)
    assert made(torch.tensor([[3.0, 4.0, 0.0]])).tolist() == [2.5]
    assert made(torch.empty(0, 3)).shape == (0,)


def test_directions_left_out_count_as_unseen():
    phi, rows = normal(100, 40), normal(25, 40, seed=1)
    full, few = Leverage.fit(phi), Leverage.fit(phi, rank=5)
    assert few.directions.shape == (5, 40)
    assert bool((few(rows) >= full(rows)).all())


def test_a_row_s_result_does_not_depend_on_the_others():
    made, rows = Leverage.fit(normal(60, 12)), normal(33, 12, seed=1)
    alone = torch.cat([made(rows[k : k + 1]) for k in range(len(rows))])
    assert torch.allclose(alone, made(rows), rtol=1e-6, atol=0)
    assert torch.allclose(made(rows.flip(0)).flip(0), made(rows), rtol=1e-6, atol=0)


def test_repeated_rows_are_the_same_as_weights():
    phi, rows = normal(20, 5), normal(9, 5, seed=1)
    torch.testing.assert_close(Leverage.fit(phi.repeat(3, 1))(rows), Leverage.fit(phi, torch.full((20,), 3.0))(rows))


def test_a_sign_says_nothing():
    phi, rows = normal(20, 5), normal(9, 5, seed=1)
    torch.testing.assert_close(Leverage.fit(-phi)(-rows), Leverage.fit(phi)(rows))


def test_its_state_is_all_there_is_to_it():
    made, rows = Leverage.fit(normal(30, 6), ridge=0.3), normal(9, 6, seed=1)
    back = Leverage.of_state(made.state_dict())
    assert torch.equal(back(rows), made(rows))


def test_two_thousand_numbers_of_a_thousand_rows_are_small():
    made = Leverage.fit(normal(1000, 2000))
    assert sum(tensor.numel() * tensor.element_size() for tensor in made.state_dict().values()) < 2.1 * 2**20


def test_a_state_of_something_else_is_refused():
    state = Leverage.fit(normal(30, 6)).state_dict()
    with pytest.raises(ModelError, match="cannot be put together"):
        Leverage.of_state({name: state[name] for name in ("directions", "ridge")})
    with pytest.raises(ModelError, match="cannot be put together"):
        Leverage.of_state({})


def test_bad_numbers_are_refused():
    with pytest.raises(ConfigError, match="`ridge` is 0"):
        Leverage.fit(normal(3, 2), ridge=0.0)
    with pytest.raises(ConfigError, match="`rank` is 0"):
        Leverage.fit(normal(3, 2), rank=0)
    with pytest.raises(DataError, match="not finite"):
        Leverage.fit(torch.full((3, 2), torch.nan))
    with pytest.raises(DataError, match="weight"):
        Leverage.fit(normal(3, 2), torch.tensor([1.0, -1.0, 1.0]))
    with pytest.raises(ModelError, match=r"\[n, 2\] were expected, and \[4, 3\]"):
        Leverage.fit(normal(3, 2))(normal(4, 3))
