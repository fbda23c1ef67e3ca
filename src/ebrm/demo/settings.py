"""Settings of the demonstration that differ from the defaults, and why."""

from __future__ import annotations

from ebrm.energy.settings import NetworkSettings

#: A network a tenth of the published size: the embedding has 384 coordinates, and the demonstration must be quick.
DEMO_NETWORK = NetworkSettings(joint_widths=(256, 128))
