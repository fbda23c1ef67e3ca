"""Log-probabilities of response tokens, as language models give them: what every reward of this package reads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ebrm.errors import DataError
from ebrm.utils.validation import as_tensor, check_mask, match_dtype

#: How far above 0 rounding may put the logarithm of a probability.
_ROUNDING = 1e-3


@dataclass(frozen=True, eq=False)
class TokenLogprobs:
    """Log-probabilities log p(y_t | x, y_<t) of the tokens of n responses.

    Tensors, arrays and lists are taken; float types are kept (the producers give float32), whole numbers become floats.
    What stands at masked places is not looked at, and 0 afterwards.

    Attributes:
        logp: log-probabilities [n, T], in nats, at most 0.
        mask: which places hold a token of the response, bool [n, T]; a row may have none.
        log_z: [n, T] or None: the logarithm of the softmax's denominator, log Σ_a exp f(a), of the logits f that each
            token was drawn from.

    Raises:
        DataError: a number that is not finite, or a log-probability above 0, where there is a token.
        TypeError, ValueError: not numbers, a mask that is not bool, or shapes other than these.
    """

    logp: Tensor
    mask: Tensor
    log_z: Tensor | None = None

    def __post_init__(self) -> None:
        logp = as_tensor(self.logp, "logp [n, T]")
        if logp.dim() != 2:
            raise ValueError(f"logp [n, T]: expected a tensor of 2 dimensions, got the shape {tuple(logp.shape)}")
        n, places = logp.shape
        mask = check_mask(self.mask, "mask [n, T]", logp.device, n=n, T=places)
        logp = _kept(logp, mask, "log-probabilities")
        above = (logp > _ROUNDING).nonzero()
        if len(above):
            row, place = above[0].tolist()
            raise DataError(
                f"{len(above)} log-probabilities are above 0, the first in row {row} at place {place}: "
                f"{float(logp[row, place]):g}. A log-probability is at most 0: give log-probabilities in nats, not "
                "probabilities or logits."
            )
        object.__setattr__(self, "logp", logp)
        object.__setattr__(self, "mask", mask)
        if self.log_z is not None:
            log_z = as_tensor(self.log_z, "log_z [n, T]", logp.device)
            if log_z.shape != logp.shape:
                raise ValueError(f"log_z [n, T]: expected {tuple(logp.shape)} as logp, got {tuple(log_z.shape)}")
            object.__setattr__(self, "log_z", _kept(log_z, mask, "values of log Z"))

    def __len__(self) -> int:
        """Number of responses, n."""
        return len(self.logp)

    @property
    def lengths(self) -> Tensor:
        """Tokens of each response, int64 [n]."""
        return self.mask.sum(1)

    def sum(self) -> Tensor:
        """Log-likelihood of each response, Σ_t log p(y_t) [n]; 0 for one without tokens."""
        return match_dtype(self.logp.double().sum(1), self.logp)

    def mean(self) -> Tensor:
        """Log-likelihood a token [n]; a response without tokens has none, which is a DataError."""
        return match_dtype(self.logp.double().sum(1) / self.counted(), self.logp)

    def counted(self) -> Tensor:
        """`lengths`, of responses that all have tokens; else a DataError that names the first without."""
        empty = (self.lengths == 0).nonzero()
        if len(empty):
            raise DataError(
                f"{len(empty)} of {len(self)} responses have no tokens, the first in row {int(empty[0])}: there is no "
                "mean over tokens. Leave those rows out."
            )
        return self.lengths


def _kept(values: Tensor, mask: Tensor, what: str) -> Tensor:
    """The values at tokens, 0 elsewhere, in a float type; DataError where one is not finite."""
    values = values if values.is_floating_point() else values.to(torch.get_default_dtype())
    bad = (~values.isfinite() & mask).nonzero()
    if len(bad):
        row, place = bad[0].tolist()
        raise DataError(
            f"{len(bad)} {what} are not finite, the first in row {row} at place {place}: {float(values[row, place])}. "
            "Find out why (a model in float16 may overflow), or leave those rows out."
        )
    return torch.where(mask, values, 0.0).to(values.dtype)


def check_same_tokens(one: TokenLogprobs, other: TokenLogprobs, names: tuple[str, str]) -> None:
    """Raise DataError, naming the first row, unless both have their tokens at the same places."""
    if one.mask.shape[0] == other.mask.shape[0]:
        if one.mask.shape == other.mask.shape and bool((one.mask == other.mask).all()):
            return
        unlike = (one.lengths != other.lengths).nonzero()
        row = int(unlike[0]) if len(unlike) else 0
        seen = f"row {row} has {int(one.lengths[row])} and {int(other.lengths[row])} tokens"
        why = seen if len(unlike) else f"masks {list(one.mask.shape)} and {list(other.mask.shape)} that differ"
    else:
        why = f"{len(one)} and {len(other)} responses"
    raise DataError(
        f"`{names[0]}` and `{names[1]}` are not of the same tokens: {why}. Tokens are compared one by one, which takes "
        "the same responses under the same tokenizer."
    )
