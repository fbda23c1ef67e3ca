"""Exceptions for what a user can correct, and how their texts name settings.

Every such exception derives from :class:`EBRMError`; the command line prints its text as one paragraph and exits with
code 2. Anything else that is raised is a defect of ours and keeps its traceback. A text names a setting by its field or
argument, in backticks; the command line shows the option instead.
"""

from __future__ import annotations

import json
from typing import Any


class EBRMError(Exception):
    """Base of all errors that the user can mend: what was seen, where, what was expected, what to do."""


class DataError(EBRMError):
    """Preference data that cannot be read or does not fit the schema."""


class TextError(EBRMError):
    """A text that cannot be turned into token ids under the text rule: the fact, and what to do where that is known."""

    #: The kind of problem, where texts are counted.
    kind = "not readable"

    def __init__(self, fact: str, advice: str = "") -> None:
        super().__init__(f"{fact} {advice}" if advice else fact)
        self.fact, self.advice = fact, advice


class TextTooLongError(TextError):
    """A text with more tokens than the reward model reads."""

    kind = "too long"


class TextRefusedError(TextError):
    """A conversation that the chat template refuses, or of which it would leave something out."""

    kind = "refused by the chat template"


class BackboneError(EBRMError):
    """A reward model that cannot be loaded, or cannot be read as (embedding, reward)."""


class FeaturesError(EBRMError):
    """Features on disk that are damaged, incomplete, or made by another model, text rule or data set."""


class ModelError(EBRMError):
    """An energy reward model that is damaged, or does not fit its use."""


class ConfigError(EBRMError):
    """A setting outside its range, or settings that contradict each other."""


class ServerError(EBRMError):
    """A server that cannot be reached, does not answer, or gives an unexpected answer."""


def setting(name: str, value: Any) -> str:
    """A field or argument with a value, as error texts write it: `bad_rows="skip"`, in backticks."""
    return f"`{name}={json.dumps(value, ensure_ascii=False)}`"
