"""What a user sees when something they gave cannot be used.

Every error that the user can mend derives from :class:`EBRMError`; the command line prints its text as one
paragraph and exits with code 2. Anything else that is raised is a defect of ours and keeps its traceback.
"""

from __future__ import annotations


class EBRMError(Exception):
    """A mistake or a limit on the user's side: what was seen, where, what was expected, what to do."""


class DataError(EBRMError):
    """Preference data that cannot be read or does not fit the schema."""


class TextError(EBRMError):
    """A text that cannot be turned into token ids under the text rule."""


class TextTooLongError(TextError):
    """A text with more tokens than the reward model reads."""


class BackboneError(EBRMError):
    """A reward model that cannot be loaded, or cannot be read as (embedding, reward)."""


class FeaturesError(EBRMError):
    """Features on disk that are damaged, incomplete, or made by another model, text rule or data set."""


class ModelError(EBRMError):
    """An energy reward model that is damaged, or does not fit what it is applied to."""


class ConfigError(EBRMError):
    """A setting outside its range, or settings that contradict each other."""


class ServerError(EBRMError):
    """A server that cannot be reached, does not answer, or answers something else than was asked for."""
