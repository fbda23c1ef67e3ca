"""A running vLLM or SGLang pooling server: its model, vectors and scores of token ids, and checks of what it pools.

vLLM answers `POST /v1/embeddings` with its pooler's output (un-normalized by `use_activation`, base64 of float32), and
where it has a classifier `POST /classify` with the head's score. SGLang answers `POST /v1/score` with the score and, by
`return_pooled_hidden_states`, the head's input. Both name themselves in `GET /v1/models` (`owned_by`).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ebrm.backbone.model_server import ModelServer, prompt_tokens
from ebrm.errors import ServerError

#: Flags that make each server give what is read here.
FLAGS = {
    "vllm": (
        "vllm serve MODEL --runner pooling --convert embed --pooler-config "
        '\'{"pooling_type": "LAST", "use_activation": false}\''
    ),
    "sglang": "python -m sglang.launch_server --model-path MODEL --is-embedding",
}
_NOT_OFFERED = (400, 404, 405, 422, 501)

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


@dataclass(frozen=True)
class Answer:
    """A server's vectors for n texts as they came; its own scores and count of tokens, where it gives them."""

    vectors: list[NDArray[np.float32]]
    scores: list[list[float]] | None = None
    tokens: int | None = None


class PoolingServer(ModelServer):
    """A running pooling server."""

    flags = FLAGS
    started = "it was started to generate or to classify"

    def read(self, token_ids: Sequence[Sequence[int]], token_budget: int) -> Answer:
        """Vectors of n token sequences, in the order given, through several requests at once."""
        ask = self._ask_sglang if self.kind == "sglang" else self._ask_vllm
        answers = self._ask_all(ask, token_ids, token_budget)
        scores = [answer.scores for answer in answers]
        tokens = [answer.tokens for answer in answers]
        return Answer(
            [vector for answer in answers for vector in answer.vectors],
            None if None in scores else [score for part in scores for score in part or ()],
            None if None in tokens else sum(count or 0 for count in tokens),
        )

    def own_scores(self, token_ids: Sequence[Sequence[int]]) -> list[list[float]] | None:
        """Scores of the server's own head for n token sequences, without an activation; None where it has no head."""
        body = {"model": self.model, "input": [list(ids) for ids in token_ids], "use_activation": False}
        with self._client() as client:
            answer = self._send(client, "POST", "/classify", body)
        if answer.status_code in _NOT_OFFERED:
            return None
        rows = self._rows(self._parse(answer, "/classify"), "/classify", len(token_ids))
        return [_numbers(row.get("probs")) for row in rows]

    def _ask_vllm(self, client: httpx.Client, token_ids: list[list[int]]) -> Answer:
        path = "/v1/embeddings"
        body = {
            "model": self.model, "input": token_ids, "use_activation": False, "add_special_tokens": False,
            "encoding_format": "base64", "embed_dtype": "float32", "endianness": "little",
        }  # fmt: skip
        answer = self._json(client, "POST", path, body)
        vectors = [_vector(row.get("embedding")) for row in self._rows(answer, path, len(token_ids))]
        return Answer(vectors, None, prompt_tokens(answer))

    def _ask_sglang(self, client: httpx.Client, token_ids: list[list[int]]) -> Answer:
        path = "/v1/score"
        body = {
            "model": self.model, "query": [], "items": token_ids, "apply_softmax": False,
            "return_pooled_hidden_states": True,
        }  # fmt: skip
        answer = self._json(client, "POST", path, body)
        states, scores = answer.get("pooled_hidden_states"), answer.get("scores")
        if not isinstance(states, list) or not isinstance(scores, list):
            raise ServerError(
                f"{self.name} gives {path} without pooled_hidden_states, which are the embeddings. They were "
                "added in 2026 (return_pooled_hidden_states): use a newer SGLang, started as "
                f"{FLAGS['sglang']}, or vLLM."
            )
        if not len(states) == len(scores) == len(token_ids):
            raise ServerError(
                f"{self.name} gives {len(states)} embeddings and {len(scores)} scores for {len(token_ids)} "
                "texts. Start it without multi-item scoring (--enable-mis)."
            )
        return Answer([_vector(state) for state in states], [_numbers(row) for row in scores], prompt_tokens(answer))


def _vector(value: Any) -> NDArray[np.float32]:
    """Floats from base64 of float32 or from (nested) lists; empty where there are none."""
    try:
        if isinstance(value, str):
            return np.frombuffer(base64.b64decode(value, validate=True), dtype="<f4").astype(np.float32)
        return np.asarray(value if isinstance(value, list) else [], dtype=np.float32)
    except (binascii.Error, ValueError, TypeError):
        return np.empty(0, dtype=np.float32)


def _numbers(value: Any) -> list[float]:
    values = value if isinstance(value, list) else [value]
    return [float(x) if isinstance(x, int | float) else float("nan") for x in values]


def probe_texts(tokenizer: Any, limit: int | None) -> list[list[int]]:
    """Token ids that tell how a server pools: a text, it without its last 1 to 4 tokens, it without its first."""
    ids = list(tokenizer(_TEXT, verbose=False)["input_ids"])[: min(limit or _LONGEST, _LONGEST)]
    return [ids, *(ids[:-cut] for cut in range(1, _CUTS + 1) if len(ids) > cut), *([ids[1:]] if len(ids) > 1 else [])]


def embeddings(server: PoolingServer, answer: Answer, token_ids: Sequence[Sequence[int]], size: int) -> Tensor:
    """The vectors of an answer as one tensor [n, size], float32."""
    sent = sum(map(len, token_ids))
    if answer.tokens is not None and answer.tokens != sent:
        raise ServerError(
            f"{server.name} says it read {answer.tokens} tokens, and {sent} were sent ({len(token_ids)} texts): it "
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
    """Check the answer to `probe_texts` for all that is known to go wrong; whether its own score is head(e)."""
    vectors = embeddings(server, answer, texts, weight.shape[1])
    if not bool(vectors.isfinite().all()):
        raise ServerError(
            f"{server.name} gives embeddings that are not finite numbers (NaN or infinite) for an ordinary text. In "
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
            f"{server.name} gives {rows} vectors for one text of {tokens} tokens, one a token; one vector of {size} "
            f"numbers, that of the last token, was expected. {_mend(server)}"
        )
    if 0 < count < 8:
        bounded = bool(((vector >= 0) & (vector <= 1)).all())
        after = ", which have been through a softmax or a sigmoid" if bounded else ""
        numbers = "1 number" if count == 1 else f"{count} numbers"
        return (
            f"{server.name} gives scores of a classifier instead of embeddings: {numbers} a text ({_some(vector)}"
            f"{after}); the {size} numbers that go into the reward head were expected. {_mend(server)}"
        )
    return (
        f"{server.name} gives {count} numbers a text, and the reward head of the checkpoint takes {size}: it serves "
        "another model, or cuts its embeddings (dimensions). Give the checkpoint it serves, or start it with this one."
    )


def _refuse_probabilities(server: PoolingServer, vectors: Tensor) -> None:
    if bool((vectors < 0).any()) or bool((vectors > 1).any()):
        return
    sums = vectors.sum(dim=1)
    what = "a softmax (each sums to 1)" if bool(((sums - 1).abs() < 1e-2).all()) else "a sigmoid (all in 0 to 1)"
    raise ServerError(
        f"{server.name} gives vectors that have been through {what}, like {_some(vectors[0].numpy())}; the hidden "
        f"state itself was expected. {_mend(server)}"
    )


def _refuse_normalized(server: PoolingServer, vectors: Tensor) -> None:
    norms = vectors.norm(dim=1)
    if bool(((norms - 1).abs() <= _UNIT).all()):
        older = (
            " Versions that do not know use_activation call it normalize: --override-pooler-config "
            '\'{"pooling_type": "LAST", "normalize": false}\'.'
        ) * (server.kind == "vllm")
        raise ServerError(
            f"{server.name} gives L2-normalized embeddings (the lengths of {len(norms)} different ones are all "
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
        what = "an embedding that does not change with the end of a text, only with its beginning: the first token's"
        if float((vectors[-1] - vectors[0]).norm() / scale) < 1e-4:
            what = "the same embedding for different texts"
        raise ServerError(f"{server.name} gives {what}; the last token's was expected. {_mend(server)}")
    n = len(texts[0])
    if n >= 32 and float(cuts.max()) < 3 / n:
        raise ServerError(
            f"{server.name} gives embeddings that hardly change when the last token is taken off (by "
            f"{float(cuts.max()):.1%} in a text of {n}), like a mean over all tokens; the last token's was expected. "
            f"{_mend(server)}"
        )


def _compare_scores(server: PoolingServer, ours: Tensor, scores: list[list[float]], terms: Tensor) -> None:
    """The server's own scores against head(e), up to the rounding of half precision."""
    labels = {len(row) for row in scores}
    if labels != {1}:
        raise ServerError(
            f"{server.name} has a head with {max(labels)} labels, and the checkpoint's has one. It serves another "
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
        f"{server.name} scores a text {seen} (up to {float(tolerance[worst]):.2g} is rounding). {why} "
        f"{_mend(server) if 'through' in why else ''}".rstrip()
    )


def _mend(server: PoolingServer) -> str:
    return f"Start it as: {FLAGS[server.kind]}."


def _some(values: NDArray[np.float32]) -> str:
    return ", ".join(f"{value:.4g}" for value in values.ravel()[:_SHOWN]) + (", …" if values.size > _SHOWN else "")
