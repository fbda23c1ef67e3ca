"""Log-probabilities of responses from a running vLLM or SGLang server.

vLLM answers `POST /v1/completions` with `prompt_logprobs`, SGLang `POST /generate` with `input_token_logprobs` (its
OpenAI routes do not promise them): both with the ids of the tokens they read, which are compared with those sent.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import torch

from ebrm.backbone import BackboneConfig, ModelServer, load_served_tokenizer
from ebrm.data import ResponseTokens, TextConfig, make_text_rule
from ebrm.errors import ConfigError, ServerError
from ebrm.logprobs.source import TextLogprobs, empty_table
from ebrm.logprobs.tokens import TokenLogprobs

FLAGS = {"vllm": "vllm serve MODEL", "sglang": "python -m sglang.launch_server --model-path MODEL"}
# What vLLM writes for minus infinity.
_NO_PROBABILITY = -9999.0


class ServerLogprobs(TextLogprobs):
    """Log-probabilities of responses under the language model of a vLLM or SGLang server, as `CausalLogprobs` has them.

    Texts are written and tokenized here, and token ids are sent. Log Z and temperatures other than 1 need all
    logits, which a server does not give: they are refused. The API key is in the variable EBRM_SERVER_TOKEN.

    Args:
        url: of the server, without a path or with /v1.
        tokenizer: the folder or Hub name of the model that is served, of which the tokenizer alone is read; or the
            tokenizer itself, which nothing can check.
        text, closing: as of `CausalLogprobs`.
        token_budget: most tokens in a request; several are sent at once.

    Raises:
        ServerError: the server cannot be reached, or serves another model. BackboneError: there is no such tokenizer.
        ConfigError: text settings that do not fit the model.
    """

    def __init__(
        self,
        url: str,
        tokenizer: Any,
        text: TextConfig | None = None,
        *,
        closing: bool = True,
        token_budget: int = BackboneConfig.token_budget,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.server = LogprobServer(url, pause=pause)
        self.token_budget = token_budget
        reader = load_served_tokenizer(self.server, tokenizer) if isinstance(tokenizer, str) else tokenizer
        # A token is generated after the text, and has to fit, too.
        limit = None if self.server.limit is None else self.server.limit - 1
        rule = make_text_rule(reader, text or TextConfig(), limit)
        super().__init__(self.server.name, reader, rule, limit, closing)

    def _read(self, texts: Sequence[ResponseTokens], log_z: bool, temperature: float) -> TokenLogprobs:
        for given, default, name in ((log_z, False, "log_z"), (temperature, 1.0, "temperature")):
            if given != default:
                raise ConfigError(
                    f"`{name}` is {given}, which takes all logits of the model, and a server gives the "
                    "log-probabilities of tokens only. Read the model with CausalLogprobs, or leave it out."
                )
        logp, mask = empty_table(texts)
        some = [row for row, text in enumerate(texts) if text.end > text.start]
        answers = self.server.read([texts[row].ids[: texts[row].end] for row in some], self.token_budget)
        for row, values in zip(some, answers, strict=True):
            start, end = texts[row].start, texts[row].end
            bad = [at for at in range(start, end) if not math.isfinite(values[at]) or values[at] <= _NO_PROBABILITY]
            if bad:
                raise ServerError(
                    f"{self.name} gives token {bad[0]} of text {row} no finite log-probability. In float16 this is "
                    "overflow, as a rule: start it with --dtype bfloat16; else its weights are damaged."
                )
            logp[row, : end - start] = torch.tensor(values[start:end]).clamp_max(0)
        return TokenLogprobs(logp, mask)


class LogprobServer(ModelServer):
    """A running server that generates, asked for the log-probabilities of what it is given."""

    flags = FLAGS
    started = "it was started to embed or to classify, or another program answers there"

    def read(self, token_ids: Sequence[Sequence[int]], token_budget: int) -> list[list[float]]:
        """Log-probability of each token after those before it; NaN for the first of a sequence, and where unknown."""
        if not token_ids:
            return []
        ask = self._ask_sglang if self.kind == "sglang" else self._ask_vllm
        return [row for rows in self._ask_all(ask, token_ids, token_budget) for row in rows]

    def _ask_vllm(self, client: httpx.Client, token_ids: list[list[int]]) -> list[list[float]]:
        path = "/v1/completions"
        body = {
            "model": self.model, "prompt": token_ids, "max_tokens": 1, "temperature": 1.0, "prompt_logprobs": 0,
            "add_special_tokens": False,
        }  # fmt: skip
        rows = self._rows(self._json(client, "POST", path, body), path, len(token_ids), "choices")
        read = []
        for row, sent in zip(rows, token_ids, strict=True):
            listed = row.get("prompt_logprobs")
            if not isinstance(listed, list):
                raise ServerError(
                    f"{self.name} answers {path} without prompt_logprobs, which are what is asked for. Start it as: "
                    f"{self.flags['vllm']} (a version that knows prompt_logprobs), without speculative decoding."
                )
            wanted = [*sent, *[0] * (len(listed) - len(sent))]
            read.append([_of_vllm(entry, token) for entry, token in zip(listed, wanted, strict=False)])
        return self._checked(read, token_ids, path)

    def _ask_sglang(self, client: httpx.Client, token_ids: list[list[int]]) -> list[list[float]]:
        path = "/generate"
        body = {
            "input_ids": token_ids, "sampling_params": {"max_new_tokens": 1, "temperature": 1.0},
            "return_logprob": True, "logprob_start_len": 0, "top_logprobs_num": 0,
        }  # fmt: skip
        rows = self._json(client, "POST", path, body)
        rows = rows if isinstance(rows, list) else [rows]
        read = []
        for row in rows:
            meta = row.get("meta_info") if isinstance(row, dict) else None
            listed = meta.get("input_token_logprobs") if isinstance(meta, dict) else None
            if not isinstance(listed, list):
                raise ServerError(
                    f"{self.name} answers {path} without input_token_logprobs, which are what is asked for. Start it "
                    f"as: {self.flags['sglang']}."
                )
            read.append([_of_sglang(entry) for entry in listed])
        return self._checked(read, token_ids, path)

    def _checked(
        self, read: list[list[tuple[int | None, float]]], token_ids: list[list[int]], path: str
    ) -> list[list[float]]:
        """The log-probabilities, if they are of the tokens sent."""
        if len(read) != len(token_ids):
            raise ServerError(f"{self.name} answers {path} with {len(read)} results for {len(token_ids)} texts.")
        for row, (tokens, sent) in enumerate(zip(read, token_ids, strict=True)):
            if len(tokens) != len(sent):
                raise ServerError(
                    f"{self.name} gives {len(tokens)} log-probabilities for a text of {len(sent)} tokens: it adds "
                    "special tokens, or cuts texts. Start it without truncation, and with a --max-model-len (vLLM) or "
                    "--context-length (SGLang) for the longest text."
                )
            other = [at for at, ((token, _), own) in enumerate(zip(tokens, sent, strict=True)) if at and token != own]
            if other:
                at = other[0]
                raise ServerError(
                    f"{self.name} gives the log-probability of the token {tokens[at][0]} where {sent[at]} was sent "
                    f"(place {at} of text {row} in a request): it read another text."
                )
        return [[value for _, value in tokens] for tokens in read]


def _of_vllm(entry: Any, wanted: int) -> tuple[int | None, float]:
    """Token id and log-probability of one entry {"id": {"logprob": …}, …}, of the wanted token if it is there."""
    if not isinstance(entry, dict) or not entry:
        return None, math.nan
    token = str(wanted) if str(wanted) in entry else str(next(iter(entry)))
    value = entry[token].get("logprob") if isinstance(entry[token], dict) else None
    return (int(token) if token.isdigit() else None), _number(value)


def _of_sglang(entry: Any) -> tuple[int | None, float]:
    """Token id and log-probability of one entry: [log-probability, id, text]; (None, NaN) for anything else."""
    if not isinstance(entry, list) or len(entry) < 2 or not isinstance(entry[1], int):
        return None, math.nan
    return entry[1], _number(entry[0])


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
