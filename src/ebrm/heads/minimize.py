"""Optimizers: L-BFGS with the held-out best of a grid of ridge penalties, and AdamW with early stopping."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from ebrm.errors import ModelError

logger = logging.getLogger(__name__)

#: Penalties that are tried, the strongest first, and the one taken where nothing is held out.
PENALTIES = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4)
UNMEASURED_PENALTY = 0.1


def lowest(loss: Callable[[Tensor], Tensor], start: Tensor, l2: float, iterations: int = 500) -> Tensor:
    """Where loss(w) + l2/2 |w|² is lowest: full-batch L-BFGS in float64, from `start`; deterministic."""
    weights = start.detach().double().clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=iterations, history_size=20, tolerance_grad=1e-8, tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(weights) + 0.5 * l2 * weights.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(closure)
    if not bool(weights.isfinite().all()):
        raise ModelError("The head cannot be fitted: its loss is not finite. Check the features for extreme values.")
    return weights.detach()


def best_penalty(
    loss: Callable[[Tensor], Tensor], held_out: Callable[[Tensor], float] | None, start: Tensor, l2: float | None
) -> tuple[Tensor, float]:
    """(weights, penalty): of `l2` where given, else of the lowest `held_out` loss, from the strongest on."""
    if l2 is not None or held_out is None:
        penalty = UNMEASURED_PENALTY if l2 is None else l2
        return lowest(loss, start, penalty), penalty
    best, best_value, best_l2, worse = start, float("inf"), PENALTIES[0], 0
    weights = start
    for penalty in PENALTIES:
        weights = lowest(loss, weights, penalty)
        value = held_out(weights)
        logger.info("Penalty %g: held-out loss %.4f.", penalty, value)
        if value < best_value:
            best, best_value, best_l2, worse = weights, value, penalty, 0
        else:
            worse += 1
        if worse == 2:
            break
    return best, best_l2


def early_stopping(
    network: nn.Module,
    batches: Callable[[torch.Generator], Iterable[Tensor]],
    loss: Callable[[Tensor], Tensor],
    held_out: Callable[[], float] | None,
    *,
    learning_rate: float,
    weight_decay: float,
    epochs: int,
    patience: int,
    generator: torch.Generator,
) -> int:
    """AdamW over `batches` (places of pairs); keeps the pass with the lowest `held_out` loss, whose number it gives."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay)
    best, best_value, best_epoch = copy.deepcopy(network.state_dict()), float("inf"), 0
    for epoch in range(1, epochs + 1):
        for batch in batches(generator):
            optimizer.zero_grad(set_to_none=True)
            with torch.enable_grad():
                value = loss(batch)
                value.backward()
            if not bool(value.isfinite()):
                raise ModelError(
                    f"The loss is not finite in pass {epoch}. Lower the learning rate, or check the features for "
                    "extreme values."
                )
            optimizer.step()
        if held_out is None:
            best, best_epoch = network.state_dict(), epoch
            continue
        with torch.no_grad():
            measured = held_out()
        logger.info("Pass %d: held-out loss %.4f.", epoch, measured)
        if measured < best_value:
            best, best_value, best_epoch = copy.deepcopy(network.state_dict()), measured, epoch
        elif patience and epoch - best_epoch >= patience:
            break
    network.load_state_dict(best)
    network.zero_grad(set_to_none=True)
    return best_epoch
