"""`ebrm inspect DATA`: preference pairs as they are read, and as a reward model's tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter

from ebrm.backbone import BackboneConfig
from ebrm.cli.console import Console
from ebrm.cli.parser import Chosen, Command, Part
from ebrm.data import PreferenceConfig, TextConfig


@dataclass(frozen=True)
class InspectJob:
    """What is shown.

    Attributes:
        rows: how many pairs to show in full, spread over the data.
    """

    rows: int = 3


def inspect(
    console: Console,
    chosen: Chosen,
    data: Annotated[
        str,
        Parameter(
            name="DATA",
            help="Preference pairs: a file, folder, pattern or Hub data set (owner/name[:config][@revision]).",
        ),
    ],
) -> None:
    """Look at preference pairs as `ebrm fit` reads them: layout, labels, splits, what is left out, some pairs in full.

    With --backbone also how many tokens they have, what its chat template makes of them, and which pairs it cannot
    tell apart. Its weights are not read.
    """
    from ebrm.inspection import inspect_data  # not before: it loads torch

    given = "backbone" in chosen.given(BackboneConfig)
    found = inspect_data(
        data, chosen.of(BackboneConfig) if given else None,
        config=chosen.of(PreferenceConfig), text=chosen.of(TextConfig), rows=chosen.of(InspectJob).rows,
    )  # fmt: skip
    console.facts(found.facts())
    for place, lines in found.pages():
        console.print("", place)
        console.facts([(f"  {name}", text) for name, text in lines])
    console.result({"data": data, **found.to_dict()})


command = Command(
    "inspect",
    inspect,
    {
        "job": Part(InspectJob),
        "reward_model": Part(BackboneConfig, only=("backbone", "revision", "base", "trust_remote_code")),
        "data": Part(PreferenceConfig),
        "text": Part(TextConfig),
    },
)
