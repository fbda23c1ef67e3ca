"""Energy-based reward models: a frozen reward model made sturdier, each reward with its uncertainty.

Names listed here are imported when first used, so that `import ebrm` is quick and touches neither torch nor a GPU.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ebrm.connect.register import register_with_transformers

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ebrm.backbone.load import load_backbone as load_backbone
    from ebrm.backbone.settings import BackboneSettings as BackboneSettings
    from ebrm.connect.config import EBRMConfig as EBRMConfig
    from ebrm.connect.transformers import EBRMForSequenceClassification as EBRMForSequenceClassification
    from ebrm.curate.conflict import filter_conflicts as filter_conflicts
    from ebrm.energy.settings import FitSettings as FitSettings
    from ebrm.energy.settings import InferenceSettings as InferenceSettings
    from ebrm.energy.settings import NetworkSettings as NetworkSettings
    from ebrm.errors import EbrmError as EbrmError
    from ebrm.features.extract import extract_features as extract_features
    from ebrm.features.imports import import_features as import_features
    from ebrm.features.settings import FeatureSettings as FeatureSettings
    from ebrm.features.store import open_features as open_features
    from ebrm.model import EnergyRewardModel as EnergyRewardModel
    from ebrm.model import RefinedReward as RefinedReward
    from ebrm.preferences.load import load_preferences as load_preferences
    from ebrm.preferences.settings import PreferenceSettings as PreferenceSettings
    from ebrm.preferences.settings import TextSettings as TextSettings

_HOME = {
    "BackboneSettings": "ebrm.backbone.settings",
    "EBRMConfig": "ebrm.connect.config",
    "EBRMForSequenceClassification": "ebrm.connect.transformers",
    "EbrmError": "ebrm.errors",
    "EnergyRewardModel": "ebrm.model",
    "FeatureSettings": "ebrm.features.settings",
    "FitSettings": "ebrm.energy.settings",
    "InferenceSettings": "ebrm.energy.settings",
    "NetworkSettings": "ebrm.energy.settings",
    "PreferenceSettings": "ebrm.preferences.settings",
    "RefinedReward": "ebrm.model",
    "TextSettings": "ebrm.preferences.settings",
    "extract_features": "ebrm.features.extract",
    "filter_conflicts": "ebrm.curate.conflict",
    "import_features": "ebrm.features.imports",
    "load_backbone": "ebrm.backbone.load",
    "load_preferences": "ebrm.preferences.load",
    "open_features": "ebrm.features.store",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})


register_with_transformers()
