"""Score what a trainer gives: rows that cannot be scored are named with the reason, the others are scored."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import torch

from ebrm.backbone import Prompt
from ebrm.client import RefusedText
from ebrm.data import TokenizedText
from ebrm.errors import ModelError, TextError
from ebrm.model import EnergyRewardModel, RefinedReward

# A reward model is read with hooks on its layers, so two threads must not read at once; and one device does one thing
# at a time anyway.
_reading = threading.Lock()


class Scorer(Protocol):
    """What scores texts: an `EnergyRewardModel`, or a client of `ebrm serve` (`ebrm.Client`)."""

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> RefinedReward:
        """Refined rewards of responses, one prompt each."""


@dataclass(frozen=True)
class ScoredRows:
    """What became of n rows.

    Attributes:
        refined: rewards of the m rows that could be scored, in order.
        rows: where those rows stand among the n [m].
        refused: for each other row, why it cannot be scored.
    """

    refined: RefinedReward
    rows: list[int]
    refused: dict[int, str]


def open_scorer(model: Scorer | str | Path) -> Scorer:
    """The scorer itself, or the model loaded from a folder or the Hub.

    An energy model's RM is loaded now, so that a mistake shows before a training run begins.

    Raises:
        ModelError, BackboneError: no such model, or its reward model cannot be loaded.
    """
    if isinstance(model, str | Path):
        if "://" in str(model):
            raise ModelError(
                f"{model} is an address, not a model. Give a client of that server: ebrm.Client({str(model)!r})."
            )
        model = EnergyRewardModel.from_pretrained(model)
    if isinstance(model, EnergyRewardModel):
        _ = model.backbone
    return model


def score_rows(scorer: Scorer, prompts: Sequence[Prompt], responses: Sequence[str]) -> ScoredRows:
    """Score the rows that can be scored. May be called from several threads at once.

    Args:
        scorer: from :func:`open_scorer`.
        prompts: a string (one user turn) or a list of messages, each.
        responses: the assistant's answers, one to a prompt.

    Raises:
        EBRMError: what is no fault of a single row: a server that cannot be reached, a reward model that fails.
    """
    if isinstance(scorer, EnergyRewardModel):
        texts = [partial(scorer.backbone.tokenize, p, r) for p, r in zip(prompts, responses, strict=True)]
        return _score_here(scorer, texts)
    return _score_there(scorer, prompts, responses)


def score_rendered(model: EnergyRewardModel, texts: Sequence[str]) -> ScoredRows:
    """Score conversations that are already one text each (`ebrm.data.text.tokenize_rendered`); else as above."""
    return _score_here(model, [partial(model.backbone.tokenize_rendered, text) for text in texts])


def _score_here(model: EnergyRewardModel, texts: Sequence[Callable[[], TokenizedText | None]]) -> ScoredRows:
    rows, ids, refused = [], [], {}
    with _reading:
        for row, tokenize in enumerate(texts):
            try:
                tokens = tokenize()
            except TextError as error:
                refused[row] = str(error)
                continue
            if tokens is None:
                refused[row] = f"It is longer than the {model.backbone.text_rule.max_length} tokens that the RM reads."
                continue
            rows.append(row)
            ids.append(tokens.ids)
        reading = model.backbone.read(ids)
    return ScoredRows(model.refine(reading.embedding, reading.reward), rows, refused)


def _score_there(scorer: Scorer, prompts: Sequence[Prompt], responses: Sequence[str]) -> ScoredRows:
    rows, refused = list(range(len(prompts))), {}
    while rows:
        try:
            refined = scorer.score([prompts[row] for row in rows], [responses[row] for row in rows])
        except RefusedText as error:  # the first that the server cannot take; the others are asked for again
            refused[rows.pop(error.row)] = str(error)
            continue
        return ScoredRows(refined, rows, refused)
    none = torch.empty(0)
    return ScoredRows(RefinedReward(none, none, none, torch.empty(0, 2), none, none), rows, refused)
