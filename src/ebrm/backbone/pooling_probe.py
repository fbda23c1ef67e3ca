"""Whether a pooling server gives what goes into the reward head: checked on the first read, and in part on each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ebrm.backbone.pooling import FLAGS, Answer, PoolingServer
from ebrm.errors import ServerError

# Ordinary words, so that hidden states differ from token to token as they do in texts that are scored.
_TEXT = (
    "A farmer in the north keeps forty sheep, two old dogs and one very loud rooster. Every morning she walks to the "
    "river, counts the boats, and writes their names into a small blue book. Last year the water rose twice; nobody "
    "was hurt, but the bridge had to be built again from stone."
)
_LONGEST = 128  # tokens of it
_CUTS = 4
# Of ‖e‖: normalized in float32, or rounded to half precision afterwards.
_UNIT = 5e-3
# Of |score| + ‖weight ∘ embedding‖₂: the rounding of a dot product in half precision, as in `check`.
_HALF_PRECISION = 4e-2
_SHOWN = 4


def probe_texts(tokenizer: Any, limit: int | None) -> list[list[int]]:
    """Token ids that tell how a server pools: a text, it without its last 1 to 4 tokens, it without its first."""
    ids = list(tokenizer(_TEXT, verbose=False)["input_ids"])[: min(limit or _LONGEST, _LONGEST)]
    return [ids, *(ids[:-cut] for cut in range(1, _CUTS + 1) if len(ids) > cut), *([ids[1:]] if len(ids) > 1 else [])]


def embeddings(server: PoolingServer, answer: Answer, token_ids: Sequence[Sequence[int]], size: int) -> Tensor:
    """The vectors of an answer as one tensor [n, size], float32.

    Args:
        server: who gave it, for messages.
        answer: what it gave for `token_ids`.
        token_ids: n sequences.
        size: d, what goes into the head.

    Raises:
        ServerError: vectors of another size, one a token, or other tokens read than were sent.
    """
    sent = sum(map(len, token_ids))
    if answer.tokens is not None and answer.tokens != sent:
        raise ServerError(
            f"{_the(server)} says it read {answer.tokens} tokens, and {sent} were sent ({len(token_ids)} texts): it "
            "adds special tokens or cuts texts, so its embeddings are those of other texts. Start it without "
            "truncation and with a --max-model-len (vLLM) or --context-length (SGLang) for the longest text."
        )
    for vector, ids in zip(answer.vectors, token_ids, strict=True):
        if vector.shape != (size,):
            raise ServerError(_wrong_shape(server, vector, len(ids), size))
    return torch.from_numpy(np.stack(answer.vectors))


def probe(
    server: PoolingServer, head: Callable[[Tensor], Tensor], weight: Tensor, texts: list[list[int]], answer: Answer
) -> bool:
    """Check what the server gives for `probe_texts` against all that is known to go wrong.

    Args:
        server: the server.
        head: rewards [n] of embeddings [n, d].
        weight: the head's, [1, d].
        texts: of :func:`probe_texts`.
        answer: what the server gave for them.

    Returns:
        Whether the server also gave its own score of the texts, and it is head(e).

    Raises:
        ServerError: what was seen, what was expected, and the flag that mends it.
    """
    vectors = embeddings(server, answer, texts, weight.shape[1])
    if not bool(vectors.isfinite().all()):
        raise ServerError(
            f"{_the(server)} gives embeddings that are not finite numbers (NaN or infinite) for an ordinary text. In "
            "float16 this is overflow: start it with --dtype bfloat16; else its weights are damaged."
        )
    _refuse_probabilities(server, vectors)
    _refuse_normalized(server, vectors)
    _refuse_other_token(server, vectors, texts)
    scores = answer.scores if answer.scores is not None else server.own_scores(texts)
    if scores is None:
        return False
    _compare_scores(server, head(vectors), scores, (vectors * weight).norm(dim=-1))
    return True


def _wrong_shape(server: PoolingServer, vector: NDArray[np.float32], tokens: int, size: int) -> str:
    count = int(vector.size)
    if vector.ndim > 1 or (tokens > 1 and count == tokens * size):
        rows = vector.shape[0] if vector.ndim > 1 else tokens
        return (
            f"{_the(server)} gives {rows} vectors for one text of {tokens} tokens, one a token; one vector of {size} "
            f"numbers, that of the last token, was expected. {_mend(server)}"
        )
    if 0 < count < 8:
        bounded = bool(((vector >= 0) & (vector <= 1)).all())
        after = ", which have been through a softmax or a sigmoid" if bounded else ""
        numbers = "1 number" if count == 1 else f"{count} numbers"
        return (
            f"{_the(server)} gives scores of a classifier instead of embeddings: {numbers} a text ({_some(vector)}"
            f"{after}); the {size} numbers that go into the reward head were expected. {_mend(server)}"
        )
    return (
        f"{_the(server)} gives {count} numbers a text, and the reward head of the checkpoint takes {size}: it serves "
        "another model, or cuts its embeddings (dimensions). Give the checkpoint it serves, or start it with this one."
    )


def _refuse_probabilities(server: PoolingServer, vectors: Tensor) -> None:
    if bool((vectors < 0).any()) or bool((vectors > 1).any()):
        return
    sums = vectors.sum(dim=1)
    what = "a softmax (each sums to 1)" if bool(((sums - 1).abs() < 1e-2).all()) else "a sigmoid (all in 0 to 1)"
    raise ServerError(
        f"{_the(server)} gives vectors that have been through {what}, like {_some(vectors[0].numpy())}; the hidden "
        f"state itself was expected. {_mend(server)}"
    )


def _refuse_normalized(server: PoolingServer, vectors: Tensor) -> None:
    norms = vectors.norm(dim=1)
    if bool(((norms - 1).abs() <= _UNIT).all()):
        older = (
            " Versions that do not know use_activation call it normalize: --override-pooler-config "
            '\'{"pooling_type": "LAST", "normalize": false}\'.'
            if server.kind == "vllm"
            else ""
        )
        raise ServerError(
            f"{_the(server)} gives L2-normalized embeddings (the lengths of {len(norms)} different ones are all "
            f"{float(norms.mean()):.4f}), from which the reward cannot be computed; the hidden state as it is was "
            f"expected. {_mend(server)}{older}"
        )


def _refuse_other_token(server: PoolingServer, vectors: Tensor, texts: list[list[int]]) -> None:
    """A causal model's last token is known by this: its state changes when the text is cut, and by more than 1/n."""
    if len(texts) < 2 + _CUTS:
        return  # too short a limit to tell
    scale = vectors[0].norm()
    cuts = vectors[: _CUTS + 1].diff(dim=0).norm(dim=1) / scale  # by how much each cut of one token moves it
    if float(cuts.max()) < 1e-4:
        if float((vectors[-1] - vectors[0]).norm() / scale) < 1e-4:
            what = "the same embedding for different texts"
        else:
            what = (
                "an embedding that does not change with the end of a text, only with its beginning: the first token's"
            )
        raise ServerError(f"{_the(server)} gives {what}; the last token's was expected. {_mend(server)}")
    n = len(texts[0])
    if n >= 32 and float(cuts.max()) < 3 / n:
        raise ServerError(
            f"{_the(server)} gives embeddings that hardly change when the last token is taken off (by "
            f"{float(cuts.max()):.1%} in a text of {n}), like a mean over all tokens; the last token's was expected. "
            f"{_mend(server)}"
        )


def _compare_scores(server: PoolingServer, ours: Tensor, scores: list[list[float]], terms: Tensor) -> None:
    """The server's own scores against head(e), up to the rounding of half precision."""
    labels = {len(row) for row in scores}
    if labels != {1}:
        raise ServerError(
            f"{_the(server)} has a head with {max(labels)} labels, and the checkpoint's has one. It serves another "
            "model; give the checkpoint it serves, or start it with this one."
        )
    theirs = torch.tensor([row[0] for row in scores])
    tolerance = _HALF_PRECISION * (theirs.abs() + terms) + 1e-4
    if bool(((ours - theirs).abs() <= tolerance).all()):
        return
    worst = int(((ours - theirs).abs() - tolerance).argmax())  # NaN counts as largest
    seen = f"{float(theirs[worst]):.6g}, where the checkpoint's head on its embedding gives {float(ours[worst]):.6g}"
    if bool((theirs == 1).all()):
        why = "It has been through a softmax over one label, which is always 1."
    elif bool(((ours.sigmoid() - theirs).abs() < 2e-2).all()):
        why = "It has been through a sigmoid."
    else:
        why = (
            "Its head or its weights are not the checkpoint's (or its scores are shifted and scaled: logit_mean, "
            "logit_sigma). Give the checkpoint it serves, or start it with this one."
        )
    raise ServerError(
        f"{_the(server)} scores a text {seen} (up to {float(tolerance[worst]):.2g} is rounding). {why} "
        f"{_mend(server) if 'through' in why else ''}".rstrip()
    )


def _mend(server: PoolingServer) -> str:
    return f"Start it as: {FLAGS[server.kind]}."


def _some(values: NDArray[np.float32]) -> str:
    return ", ".join(f"{value:.4g}" for value in values.ravel()[:_SHOWN]) + (", …" if values.size > _SHOWN else "")


def _the(server: PoolingServer) -> str:
    return server.name[:1].upper() + server.name[1:]
