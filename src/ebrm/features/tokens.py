"""The token ids of texts that are to be read, each different text once, in order of first appearance."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ebrm.data import Message
from ebrm.errors import TextError, TextTooLongError
from ebrm.features.distributed import Ranks

if TYPE_CHECKING:
    from ebrm.backbone import Backbone


class Text(NamedTuple):
    """A prompt with a response, the prompt's id, and where they stand in the data ("train.jsonl:12, chosen")."""

    prompt_id: str
    prompt: tuple[Message, ...]
    response: str
    where: str

    @property
    def id(self) -> str:
        """The first 16 hexadecimal digits of a SHA-256 over prompt id and response."""
        return text_id(self.prompt_id, self.response)


@dataclass(frozen=True)
class Texts:
    """The token ids of n different texts.

    Attributes:
        ids: int32, the token ids of all texts, one after the other.
        ends: int64 [n + 1], where each text begins, then the length of `ids`.
        truncated: int32 [n], tokens cut from the prompt.
        prompt_id: the prompt of each text.
        text_id: what each text is known by (see `Text.id`).
        where: each text's first place in the data.
    """

    ids: np.ndarray
    ends: np.ndarray
    truncated: np.ndarray
    prompt_id: list[str]
    text_id: list[str]
    where: list[str]

    def __len__(self) -> int:
        """Number of texts n."""
        return len(self.where)

    def item(self, number: int) -> list[int]:
        """Token ids of one text."""
        return self.ids[self.ends[number] : self.ends[number + 1]].tolist()

    def fingerprint(self) -> str:
        """SHA-256 of all token ids and where each text ends."""
        digest = hashlib.sha256(self.ids.astype("<i4").tobytes())
        digest.update(self.ends.astype("<i8").tobytes())
        return digest.hexdigest()

    @property
    def lengths(self) -> np.ndarray:
        """int64 [n], tokens of each text."""
        return np.diff(self.ends)

    def take(self, used: np.ndarray) -> Texts:
        """The texts at `used` (ascending, without repeats)."""
        if len(used) == len(self):
            return self
        keep = np.zeros(len(self), dtype=bool)
        keep[used] = True
        lengths = self.lengths
        return Texts(
            self.ids[np.repeat(keep, lengths)],
            np.concatenate([[0], np.cumsum(lengths[keep])]),
            self.truncated[used],
            [self.prompt_id[number] for number in used],
            [self.text_id[number] for number in used],
            [self.where[number] for number in used],
        )


def text_id(prompt_id: str, response: str) -> str:
    """What a response to a prompt is known by in features: 16 hexadecimal digits of a SHA-256."""
    return hashlib.sha256(f"{prompt_id}\n{response}".encode("utf-8", "surrogatepass")).hexdigest()[:16]


def tokenize_texts(
    backbone: Backbone, texts: Iterable[Text], count: int, ranks: Ranks, tolerant: bool = False
) -> tuple[Texts, list[int | None], dict[str, str]]:
    """Token ids of every different text that the text rule can take.

    Args:
        backbone: the reward model whose text rule is used.
        texts: the texts, repeats included.
        count: how many they are, for the progress.
        ranks: the main process shows the progress.
        tolerant: what a text that the rule refuses leads to: an entry among the refused, or (False) the error. A text
            that is too long under truncation="drop" is never an error.

    Returns:
        The different texts; for each text given, its number among them or None if refused; and the reason of each
        refusal by text id.

    Raises:
        TextError: A text that is refused, naming its place, unless `tolerant`.
    """
    found: dict[tuple[str, str], int | None] = {}
    ids, ends, truncated = array("i"), [0], []
    about: tuple[list[str], list[str], list[str]] = ([], [], [])
    numbers: list[int | None] = []
    refused: dict[str, str] = {}
    with ranks.progress("tokenizing", count, "texts") as advance:
        for text in texts:
            key = (text.prompt_id, text.response)
            if key not in found:
                tokens, reason = None, f"longer than the {backbone.text_rule.max_length} tokens that the RM reads"
                try:
                    tokens = backbone.tokenize(text.prompt, text.response, text.where)
                except TextError as error:
                    if not tolerant:
                        raise
                    if not isinstance(error, TextTooLongError):
                        reason = str(error).removeprefix(f"{text.where}: ")
                if tokens is None:
                    refused[text.id] = reason
                found[key] = None if tokens is None else len(about[0])
                if tokens is not None:
                    ids.extend(tokens.ids)
                    ends.append(len(ids))
                    truncated.append(tokens.truncated)
                    for column, value in zip(about, (text.prompt_id, text.id, text.where), strict=True):
                        column.append(value)
            numbers.append(found[key])
            advance(1)
    cut = np.array(truncated, dtype=np.int32)
    made = Texts(np.array(ids, dtype=np.int32), np.array(ends, dtype=np.int64), cut, *about)
    return made, numbers, refused
