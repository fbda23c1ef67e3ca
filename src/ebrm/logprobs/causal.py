"""Log-probabilities of responses under a transformers causal language model on this machine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ebrm.backbone import (
    BackboneConfig,
    as_list,
    in_batches,
    is_prompt,
    load_causal_lm,
    model_limit,
    pad_id,
    token_budget_on,
    vocabulary_size,
)
from ebrm.data import Prompt, ResponseTokens, TextConfig, make_text_rule, warn_once
from ebrm.errors import BackboneError, ConfigError, TextError
from ebrm.logprobs.source import TextLogprobs, empty_table
from ebrm.logprobs.tokens import TokenLogprobs
from ebrm.utils.validation import check_setting

#: Logits that are held at once, where the head's input is at hand: 64 MiB of float32.
_LOGITS_AT_ONCE = 2**24
# Hooks sit on a model's modules, so a model is read by one thread at a time, whoever holds it.
_locks: WeakKeyDictionary[nn.Module, threading.Lock] = WeakKeyDictionary()

Finish = Callable[[Tensor], Tensor]


class CausalLogprobs(TextLogprobs):
    """Log-probabilities of responses under a causal language model: `(prompts, responses) -> TokenLogprobs`.

    Texts are written by the model's chat template, or in the plain format where it has none, by the text rule that
    reward models are read with. A token counts as the response's if it holds any of its characters. Rows are
    padded on the right behind an attention mask, so that batches, their order and the tokenizer's padding side say
    nothing. The softmax is in float32, over some positions at a time: no logits [n, T, V] are held. Thread-safe.

    Args:
        model: a Hub name, a folder, a `BackboneConfig` (precision, device, base of an adapter), or a loaded model,
            which is read in evaluation mode where it is, and left as it was.
        tokenizer: of a loaded model.
        text: how text becomes token ids; unset: the defaults.
        closing: whether the tokens that close the turn (its end token and what the template writes after it) count as
            the response's, as in DPO. Without them, the text alone.
        token_budget: most tokens in a batch, padding counted, at most 1,024 on a CPU; unset: the configuration's.
        chunk: positions whose logits are held at once; unset: 64 MiB of them.

    Raises:
        BackboneError: the model is not there, or is no causal language model with all its weights.
        ConfigError: text settings that do not fit the model; a loaded model without a tokenizer.
    """

    def __init__(
        self,
        model: str | BackboneConfig | nn.Module,
        tokenizer: Any = None,
        text: TextConfig | None = None,
        *,
        closing: bool = True,
        token_budget: int | None = None,
        chunk: int | None = None,
    ) -> None:
        for name, value in (("token_budget", token_budget), ("chunk", chunk)):
            if value is not None:
                check_setting(name, value, at_least=1)
        if isinstance(model, nn.Module):
            if tokenizer is None:
                raise ConfigError("A loaded model is given without its `tokenizer`; give both.")
            called, limit = str(getattr(model, "name_or_path", "") or type(model).__name__), model_limit(model)
            budget = token_budget
        else:
            if tokenizer is not None:
                raise ConfigError("`tokenizer` goes with a loaded model; a model by name is read with its own.")
            config = BackboneConfig(model) if isinstance(model, str) else model
            loaded = load_causal_lm(config)
            model, tokenizer, called, limit = loaded.model, loaded.tokenizer, loaded.name, loaded.limit
            budget = config.token_budget if token_budget is None else token_budget
        rule = make_text_rule(tokenizer, text or TextConfig(), limit)
        super().__init__(called, tokenizer, rule, limit, closing)
        self.model: Any = model
        self.device = next(model.parameters()).device
        self.token_budget = token_budget_on(self.device, BackboneConfig.token_budget if budget is None else budget)
        self._chunk, self._pad = chunk, pad_id(tokenizer, model)
        self._finish: Finish | None = None
        self._whole = False

    def answer_logits(
        self, prompts: Prompt | Sequence[Prompt], yes: Sequence[str] = ("Yes",), no: Sequence[str] = ("No",)
    ) -> tuple[Tensor, list[int], list[int]]:
        """Logits [n, V] of the token an answer to each prompt starts with, and the ids that "yes" and "no" start with.

        What `yes_no_log_odds` takes: `yes_no_log_odds(*source.answer_logits(prompts))`.

        Args:
            prompts: one prompt, or a list.
            yes, no: spellings; of each the first token, as it stands in an answer, counts.

        Raises:
            TextError: a prompt that cannot be written, or an answer that merges with what stands before it.
        """
        given = [prompts] if is_prompt(prompts) else as_list("prompts", prompts)
        sides: list[list[int]] = []
        texts: list[ResponseTokens] = []
        for answers in (yes, no):
            firsts = []
            for answer in answers:
                found = [self._tokens(row, (prompt, answer)) for row, prompt in enumerate(given)]
                texts = texts or [ResponseTokens(one.ids[: one.start + 1], one.start, one.start + 1) for one in found]
                for row, (one, other) in enumerate(zip(found, texts, strict=True)):
                    if one.ids[: one.start] != other.ids[:-1] or one.ids[one.start] != found[0].ids[found[0].start]:
                        raise TextError(f"Text {row}: the answer {answer!r} merges with what stands before it.")
                firsts += [found[0].ids[found[0].start]] if found else []
            sides.append(list(dict.fromkeys(firsts)))
        table = torch.empty(len(texts), self._vocabulary() or 0)

        def read(batch: list[int]) -> Tensor:
            return self._last_logits([texts[row] for row in batch])

        for batch, logits in in_batches([len(one.ids) for one in texts], self.token_budget, self.device, read):
            table = table if table.shape[1] == logits.shape[1] else table.new_empty(len(texts), logits.shape[1])
            table[batch] = logits
        return table, sides[0], sides[1]

    def _last_logits(self, texts: list[ResponseTokens]) -> Tensor:
        """Logits [n, V] of the last token of each text, float32 on the CPU."""
        with _reading(self.model):
            hidden, finish = self._hidden([text.ids for text in texts])
            rows = torch.arange(len(texts), device=hidden.device)
            return (
                finish(hidden[rows, torch.tensor([text.start - 1 for text in texts], device=hidden.device)])
                .float()
                .cpu()
            )

    def _vocabulary(self) -> int | None:
        return vocabulary_size(self.model)

    def _read(self, texts: Sequence[ResponseTokens], log_z: bool, temperature: float) -> TokenLogprobs:
        check_setting("temperature", temperature, above=0)
        logp, mask = empty_table(texts)
        normalizer = torch.zeros_like(logp) if log_z else None
        some = [row for row, text in enumerate(texts) if text.end > text.start]
        lengths = [texts[row].end for row in some]  # what follows says nothing of what is before

        def read(batch: list[int]) -> tuple[list[Tensor], list[Tensor]]:
            return self._batch([texts[some[place]] for place in batch], temperature)

        for batch, (values, normalizers) in in_batches(lengths, self.token_budget, self.device, read):
            for place, found, z in zip(batch, values, normalizers, strict=True):
                row = some[place]
                if not bool(found.isfinite().all() and z.isfinite().all()):
                    raise BackboneError(
                        f"{self.name} gives text {row} log-probabilities that are not finite numbers. In float16 this "
                        "is overflow, as a rule: use bfloat16 or float32; else its weights hold NaN or infinite "
                        "numbers."
                    )
                logp[row, : len(found)] = found
                if normalizer is not None:
                    normalizer[row, : len(z)] = z
        return TokenLogprobs(logp, mask, normalizer)

    def _batch(self, texts: list[ResponseTokens], temperature: float) -> tuple[list[Tensor], list[Tensor]]:
        """Log p and log Z of the response's tokens of each text, float32 on the CPU."""
        counts = [text.end - text.start for text in texts]
        # The state at a position gives the logits of the token after it.
        where = [(row, at - 1) for row, text in enumerate(texts) for at in range(text.start, text.end)]
        targets = [token for text in texts for token in text.ids[text.start : text.end]]
        with _reading(self.model):
            hidden, finish = self._hidden([text.ids[: text.end] for text in texts])
            at, target = torch.tensor(where, device=hidden.device), torch.tensor(targets, device=hidden.device)
            step = self._chunk or max(1, _LOGITS_AT_ONCE // (self._vocabulary() or 1))
            logp, log_z = [], []
            for part, wanted in zip(at.split(step), target.split(step), strict=True):
                logits = finish(hidden[part[:, 0], part[:, 1]]).float() / temperature
                log_z.append(logits.logsumexp(-1))
                logp.append(logits.gather(-1, wanted.to(logits.device)[:, None])[:, 0] - log_z[-1])
            # Rounding may put a certain token above 0.
            return list(torch.cat(logp).clamp_max(0).cpu().split(counts)), list(torch.cat(log_z).cpu().split(counts))

    def _hidden(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Finish]:
        """What the logits of each position are made of [n, L, ...], and the function that makes them."""
        longest = max(map(len, rows))
        ids = torch.tensor([[*row, *[self._pad] * (longest - len(row))] for row in rows], device=self.device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=self.device)
        head = None if self._whole else self._head()
        if head is None:
            return self._run(ids, mask), _as_they_are
        seen: list[Tensor] = []
        kept = int(self._finish is None)  # the model's own logits of one position, to compare with; then of none

        def keep_last(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if len(inputs) != 1 or not isinstance(inputs[0], Tensor) or inputs[0].shape[:2] != ids.shape:
                return None
            seen.append(inputs[0])
            return (inputs[0][:, inputs[0].shape[1] - kept :],)

        handle = head.register_forward_pre_hook(keep_last)
        try:
            own = self._run(ids, mask)
        finally:
            handle.remove()
        if len(seen) == 1 and own.shape[:2] == (len(rows), kept):
            if self._finish is None:
                self._finish = self._how_logits_are_made(head, seen[0][:, -1:], own)
            if self._finish is not None:
                return seen[0], self._finish
        self._whole = True
        warn_once(
            f"{self.name} makes its logits in a way that is not known here; those of a whole batch are held at once, "
            "which takes more memory and gives the same."
        )
        return self._run(ids, mask), _as_they_are

    def _head(self) -> nn.Module | None:
        try:
            head = self.model.get_output_embeddings()
        except (AttributeError, NotImplementedError):
            return None
        return head if isinstance(head, nn.Module) else None

    def _run(self, ids: Tensor, mask: Tensor) -> Tensor:
        logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        if not isinstance(logits, Tensor) or logits.dim() != 3:
            raise BackboneError(f"{self.name} gives no logits [n, T, V]: it is no causal language model.")
        return logits

    def _how_logits_are_made(self, head: nn.Module, hidden: Tensor, own: Tensor) -> Finish | None:
        """The function from hidden states to logits that gives the model's own; None where none of those known does."""
        config: Any = getattr(self.model, "config", None)
        config = config.get_text_config() if hasattr(config, "get_text_config") else config
        cap, scale, divisor = (
            getattr(config, name, None) for name in ("final_logit_softcapping", "logit_scale", "logits_scaling")
        )
        choices: list[Finish] = [lambda states: head(states)]
        if cap:  # Gemma 2
            choices.append(lambda states: (head(states) / cap).tanh() * cap)
        if scale:  # Cohere
            choices.append(lambda states: head(states) * scale)
        if divisor:  # Granite
            choices.append(lambda states: head(states) / divisor)
        theirs = own.float()
        fits: dict[Finish, float] = {}
        for finish in reversed(choices):
            found = finish(hidden)
            if found.shape == own.shape:  # a vocabulary that is cut has another
                fits[finish] = float((found.float() - theirs).nan_to_num(0, 0, 0).abs().max())
        best = min(fits, key=fits.__getitem__, default=None)
        share = 1e-4 if own.dtype == torch.float32 else 2e-2  # of the largest: rounding
        return (
            best if best is not None and fits[best] <= share * float(theirs.nan_to_num(0, 0, 0).abs().max()) else None
        )


def _as_they_are(logits: Tensor) -> Tensor:
    return logits


@contextmanager
def _reading(model: nn.Module) -> Iterator[None]:
    """Within, a model is in evaluation mode, without gradients and autocast, and read by one thread; then as it was."""
    with _locks.setdefault(model, threading.Lock()):
        training = [module for module in model.modules() if module.training]
        model.eval()
        try:
            with torch.no_grad(), torch.autocast(next(model.parameters()).device.type, enabled=False):
                yield
        finally:
            for module in training:
                module.training = True
