"""The main job on packaged data, offline: fit, refine, evaluate, score live texts, save, report."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ebrm.backbone import BackboneConfig, BackboneIdentity, load_backbone
from ebrm.data import TextConfig
from ebrm.evaluation import measure_fit
from ebrm.features import open_features
from ebrm.fitting import fit
from ebrm.model import EnergyRewardModel
from ebrm.report import LiveScore
from ebrm.utils.files import read_json

_HERE = Path(__file__).parent
TITLE = "Energy-based refinement of the demonstration reward model"
NOTES = (
    "HH harmless: anthropics/hh-rlhf, harmless-base test split, labels by people (MIT License).",
    "XSTest: paul-rottger/exaggerated-safety, full compliance against full refusal by human label (CC BY 4.0).",
    "HHH: Anthropic's HHH alignment questions as packaged in prometheus-eval (Apache License 2.0).",
    "LLMBar: princeton-nlp/LLMBar, labels by its authors (MIT License).",
    "Other human labels, training only: LAION-AI/Open-Assistant, WeOpenML/PandaLM, allenai/open-instruct (Apache "
    "License 2.0), ernie-research/Tool-Augmented-Reward-Model (MIT License).",
    "The package holds numbers computed from these texts, not the texts.",
)


@dataclass(frozen=True)
class Demonstration:
    """Result of the demonstration: its metrics, the live scores, the model, and where they were written."""

    metrics: dict[str, Any]
    live: tuple[LiveScore, ...]
    model: EnergyRewardModel
    out: Path


def run(out: str | Path) -> Demonstration:
    """Run the demonstration and write `metrics.json`, `model/` and `report.html` into `out`, replacing earlier ones.

    Raises:
        BackboneError: the extra `demo` is not installed.
    """
    out = Path(out)
    features = open_features("demo")
    # First, so that a missing extra is said before the work, not after it. Read as the packaged features were.
    layers = BackboneIdentity.from_dict(features.manifest["backbone"]).layers
    backbone = load_backbone(BackboneConfig(backbone="demo"), TextConfig(truncation="drop"), blocks=layers)
    fitted = fit(features)
    model = EnergyRewardModel(fitted.model.head, fitted.model.record, backbone, prompts=fitted.model.prompts)
    started = time.monotonic()
    live = tuple(score_live(model, entry["prompt"], entry["responses"]) for entry in read_json(_HERE / "live.json"))
    seconds = time.monotonic() - started
    fitted.seconds["live"] = seconds
    metrics = fitted.save(out / "model", measure_fit(fitted, title=TITLE, live=live, notes=NOTES)).metrics
    model.record = fitted.model.record
    for name in ("report.html", "metrics.json"):
        (out / "model" / name).replace(out / name)
    return Demonstration(metrics, live, model, out)


def score_live(model: EnergyRewardModel, prompt: str, responses: list[str]) -> LiveScore:
    """Score the responses to one prompt through the reward model."""
    scored = model.score([prompt] * len(responses), responses)
    return LiveScore(prompt, responses, scored.base_reward.tolist(), scored.reward.tolist(), scored.std.tolist())
