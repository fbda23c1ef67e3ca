"""Anchors of a fit: texts whose reward should not move, read with the same reward model, divided by prompt."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ebrm.data import (
    BadRows,
    PreferenceConfig,
    Preferences,
    Prompt,
    Reply,
    RowProblem,
    as_reply,
    check_messages,
    check_prompt,
    check_reply,
    check_text,
    check_tools,
    load_preferences,
    messages_in,
    prompt_id,
    read_rows,
    split_by_prompt,
)
from ebrm.errors import DataError
from ebrm.features import (
    FeatureConfig,
    Features,
    Text,
    extract_features,
    extract_texts,
    is_features,
    open_features,
    read_items,
)
from ebrm.heads import Anchors
from ebrm.pairs import PreferencePairs

if TYPE_CHECKING:
    from ebrm.backbone import Backbone

logger = logging.getLogger(__name__)

#: Counts in the manifest of what was left out or cut, and what is said of it.
_LEFT_OUT = {
    "dropped": "%d pairs of anchors are left out because a text is too long.",
    "dropped_texts": "%d anchors are left out because the reward model cannot read them, such as too long ones.",
    "truncated": "%d anchors had their prompt's beginning cut.",
}
#: Share of the anchors' prompts that is held out to measure the drift on.
HELD_OUT = 0.3


@dataclass(frozen=True, eq=False)
class AnchorSplit:
    """Anchors fitted on, and those held out to measure the drift on.

    Attributes:
        features: of all of them.
        fitted: what the head keeps to.
        rows: rows held out.
        prompt_id: their prompts.
        pairs: pairs held out, with the labels they came with.
    """

    features: Features
    fitted: Anchors
    rows: Tensor
    prompt_id: list[str]
    pairs: PreferencePairs


def open_anchors(keep: Any, data: PreferenceConfig, backbone: bool) -> Features | Preferences | list[Text]:
    """What is given as anchors, before the reward model reads it, so that mistakes are found first.

    Args:
        keep: features of the same reward model or their folder; or, with a reward model, preference pairs
            (as of :func:`ebrm.load_preferences`; labels are not fitted on) or rows of prompt and response.
        data: how rows are read; all of them, whatever its `limit`.
        backbone: whether there is a reward model.

    Raises:
        DataError: texts without a reward model, no rows, or rows that are neither.
    """
    if isinstance(keep, str | Path) and is_features(keep):
        return open_features(keep)
    if isinstance(keep, Features):
        return keep
    if not backbone:
        raise DataError(
            f"The anchors are given as {type(keep).__name__}, and there is no reward model to read texts with. Give "
            "features of them (`ebrm features`), or a reward model and preferences instead of features."
        )
    if isinstance(keep, Preferences):
        return keep
    data = replace(data, limit=None)  # which is of the pairs to fit on
    texts = _texts(keep, data)
    return load_preferences(keep, data) if texts is None else texts


def read_anchors(
    opened: Features | Preferences | list[Text], features: Features, backbone: Backbone | None, folder: Path,
    config: FeatureConfig, bad_rows: BadRows = "stop",
) -> Features:  # fmt: skip
    """Features of the anchors that :func:`open_anchors` gave; what is left out or cut is logged.

    Args:
        opened: the anchors.
        features: those of the pairs that are fitted, by which the anchors' are checked.
        backbone: the reward model, to read texts with.
        folder: where features that are read here go.
        config: how they are stored.
        bad_rows: of pairs that the reward model cannot read, as in `extract_features`.

    Raises:
        DataError: embeddings of another size. FeaturesError: features of another reward model or text rule.
    """
    if isinstance(opened, Features):
        opened.check(features.manifest["backbone"], features.manifest["text"])
        if opened.embedding_size != features.embedding_size:
            raise DataError(
                f"The anchors' embeddings have {opened.embedding_size} numbers, the pairs' {features.embedding_size}. "
                "Read both with the same reward model and the same `layers`."
            )
        return opened
    assert backbone is not None
    if isinstance(opened, list):
        found = extract_texts(backbone, opened, folder, config)
    else:
        found = extract_features(backbone, opened, folder, config, bad_rows=bad_rows)
    for name, message in _LEFT_OUT.items():
        if found.manifest.get(name):
            logger.warning(message, found.manifest[name])
    return found


def _texts(keep: Any, data: PreferenceConfig) -> list[Text] | None:
    """Rows of prompt and response; None where the first row has no such columns."""
    columns = {"prompt": "prompt", "response": "response"} | dict(data.columns)
    rows = read_rows(keep, data)
    first = next(rows, None)
    if first is None:
        raise DataError("The anchors have no rows. Give texts or pairs whose reward should not move.")
    if columns["response"] not in first[1]:
        return None

    def found() -> Iterator[Text]:
        for where, row in (first, *rows):
            try:
                prompt = row.get(columns["prompt"])
                turns = None
                if isinstance(prompt, str) and messages_in(prompt, "prompt") is None:
                    turns = [{"role": "user", "content": check_text(prompt, "prompt")}]
                messages = check_prompt(turns or check_messages(prompt, "prompt"), "prompt")
                tools = check_tools(row.get(columns.get("tools", "tools")), "tools")
                asked: Prompt = {"messages": messages, "tools": tools} if tools else messages
                yield Text(prompt_id(messages, tools), asked, _reply(row.get(columns["response"])), where)
            except RowProblem as problem:
                raise DataError(f"An anchor cannot be read: {problem.at(where)}") from None

    return list(found())


def _reply(value: Any) -> Reply:
    """A response: text, or one assistant's message (alone, or in a list)."""
    if value is None or (isinstance(value, str) and messages_in(value, "response") is None):
        return check_reply(value, "response")
    messages = check_messages(value, "response")
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        raise RowProblem("reply is not an assistant message", "response", value)
    return as_reply(messages[0])


def split_anchors(features: Features, seed: int) -> AnchorSplit:
    """Divide anchors by prompt; a row in no pair has its prompt from the features, or is a prompt of its own.

    Raises:
        DataError: no rows, or one prompt only.
    """
    prompts = [f"row {row}" for row in range(len(features))]
    if features.path is not None:
        names = read_items(features.path / "items.parquet")["prompt_id"]
        prompts = [own if name is None else str(name) for own, name in zip(prompts, names, strict=True)]
    pairs = features.pairs
    for sides in (pairs.chosen, pairs.rejected):
        for row, name in zip(sides.tolist(), pairs.prompt_id.tolist(), strict=True):
            prompts[row] = name
    parts = split_by_prompt(prompts, {"fitted": 1 - HELD_OUT, "held": HELD_OUT}, seed)
    fitted, held = (torch.from_numpy(parts[name]) for name in ("fitted", "held"))
    if features.unread is not None:
        fitted, held = (rows[~features.unread[rows]] for rows in (fitted, held))
    if not len(fitted) or not len(held):
        raise DataError(
            f"The anchors have {len(set(prompts))} different prompts in {len(prompts)} rows; some are held out to "
            "measure how far rewards move there, so more are needed. Give anchors of 20 prompts or more."
        )
    names = np.array(prompts, dtype=object)
    inside = np.isin(pairs.prompt_id, names[held.numpy()])
    return AnchorSplit(
        features,
        Anchors(features.embedding(fitted), features.reward[fitted], names[fitted.numpy()].tolist()),
        held,
        names[held.numpy()].tolist(),
        pairs.select(np.flatnonzero(inside)),
    )
