from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.integrations.policies import LONG

from ebrm.client import RefusedText
from ebrm.model import EnergyRewardModel, RefinedReward


class Remote:
    """Stands for a server's client: it names the first text that it cannot take."""

    def __init__(self, model: EnergyRewardModel) -> None:
        self.model, self.asked = model, 0

    def score(self, prompts: Sequence[Any], responses: Sequence[str]) -> RefinedReward:
        self.asked += 1
        for row, prompt in enumerate(prompts):
            if LONG in str(prompt):
                raise RefusedText(row, f"Text {row} is too long.")
        return self.model.score(prompts, responses)
