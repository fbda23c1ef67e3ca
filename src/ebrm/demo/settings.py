"""Settings of the demonstration that differ from the defaults, and why."""

from __future__ import annotations

from ebrm.energy.settings import FitSettings

#: Under two thousand pairs: more, smaller steps than the defaults, which are made for tens of thousands.
DEMO_TRAINING = FitSettings()
