"""A small server that answers as vLLM or SGLang do when asked for log-probabilities, well, late or badly."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from tests.backbone.pooling_server import FakeServer
from transformers import AutoModelForCausalLM


@cache
def _load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


class FakeLogprobServer(FakeServer):
    """One tiny language model behind the HTTP of vLLM or SGLang; `wrong` says what it does wrong."""

    def load(self, folder: Path) -> Any:
        return _load(folder)

    def answer(self, path: str, body: Any) -> tuple[int, Any]:
        if path == "/v1/models":
            return 200, {"object": "list", "data": [self.card]}
        if path == "/v1/completions" and self.kind == "vllm":
            assert (body["model"], body["max_tokens"], body["prompt_logprobs"]) == (self.card["id"], 1, 0)
            rows = [self._entries(ids) for ids in body["prompt"]]
            choices = [{"index": i, "text": "x", "prompt_logprobs": row} for i, row in enumerate(rows)]
            if self.wrong == "old":
                choices = [{"index": choice["index"], "text": "x"} for choice in choices]
            return 200, {"choices": choices[::-1][self.wrong == "one less" :]}
        if path == "/generate" and self.kind == "sglang":
            assert (body["return_logprob"], body["logprob_start_len"]) == (True, 0)
            rows = [self._entries(ids) for ids in body["input_ids"]]
            meta = [{} if self.wrong == "old" else {"input_token_logprobs": row} for row in rows]
            return 200, [{"text": "x", "meta_info": one} for one in meta][self.wrong == "one less" :]
        return 404, {"detail": "Not Found"}

    def _entries(self, ids: list[int]) -> list[Any]:
        with torch.no_grad():
            logp = self.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        values = [None, *(float(logp[at - 1, token]) for at, token in enumerate(ids) if at)]
        tokens = [token + (self.wrong == "other tokens") for token in ids]
        if self.wrong == "nan":
            values = [None] * len(ids)
        if self.wrong == "minus infinity":
            values = [None, *[-9999.0] * (len(ids) - 1)]
        if self.wrong == "special tokens":
            tokens, values = [0, *tokens], [None, -1.0, *values[1:]]
        if self.kind == "sglang":
            return [[value, token, None] for value, token in zip(values, tokens, strict=True)]
        more = {"999": {"logprob": -0.1, "rank": 1}} if self.wrong == "more" else {}
        entries = [more | {str(t): {"logprob": v, "rank": 2}} for v, t in zip(values, tokens, strict=True)]
        return [None, *entries[1:]]
