"""Configuration of scoring a file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from ebrm.data import parse_label_map
from ebrm.errors import ConfigError

BadRows = Literal["stop", "mark"]


@dataclass(frozen=True)
class ScoreConfig:
    """Scoring of a file: its columns, rows that cannot be scored, names of the columns added.

    Attributes:
        columns: Where a column has another name in the data: our name = its name (response=answer). Our names:
            prompt, system, tools, response, responses, messages, chosen, rejected, a, b, label.
        label_map: What the values of a label say, as for `PreferenceConfig` (1=a, 0=b).
        bad_rows: Rows that cannot be scored (not text, too long): `stop` and list them, or `mark` them with
            empty rewards and the reason in the column `error`.
        prefix: Put before the names of the added columns, where the data has such names already.
        overwrite: Replace an output that is there already.
        restart: Discard unfinished work on this output, which another run left, and begin anew.

    Raises:
        ConfigError: a value that is none of those above.
    """

    columns: dict[str, str] = field(default_factory=dict)
    label_map: dict[str, str] = field(default_factory=dict)
    bad_rows: BadRows = "stop"
    prefix: str = ""
    overwrite: bool = False
    restart: bool = False

    def __post_init__(self) -> None:
        parse_label_map(self.label_map)
        if self.bad_rows not in get_args(BadRows):
            raise ConfigError(f"bad_rows is {self.bad_rows!r}; it must be one of {', '.join(get_args(BadRows))}.")
