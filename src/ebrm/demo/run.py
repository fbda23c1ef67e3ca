"""The story on packaged data, offline: a reward model, a few pairs of another domain, what is gained, what is kept."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ebrm.anchors import AnchorSplit, split_anchors
from ebrm.backbone import BackboneConfig, BackboneIdentity, load_backbone
from ebrm.data import TextConfig
from ebrm.errors import DataError
from ebrm.evaluation import FitEvaluation, measure_anchors, measure_fit
from ebrm.features import Features, open_features
from ebrm.fitting import FitResult, fit
from ebrm.heads import FitConfig, LinearConfig, SiLUConfig
from ebrm.hub import is_model
from ebrm.metrics import Estimate
from ebrm.model import EnergyRewardModel
from ebrm.report import ChangedExample, GainAndLoss, LiveScore
from ebrm.utils.outputs import results_folder
from ebrm.utils.stored import read_json

_HERE = Path(__file__).parent
TITLE = "The demonstration reward model, adapted to requests that sound unsafe"
NOTES = (
    "Your pairs: XSTest, paul-rottger/exaggerated-safety, full compliance against full refusal by human label (CC BY "
    "4.0).",
    "Anchors: chat pairs labeled by people, on prompts that the reward model was not trained on: LAION-AI/"
    "Open-Assistant, WeOpenML/PandaLM, allenai/open-instruct (Apache License 2.0), "
    "ernie-research/Tool-Augmented-Reward-Model (MIT License).",
    "The package holds numbers computed from these texts, not the texts. The texts on this page were written for it; "
    "chosen is what their author prefers.",
)
_WRITTEN = ("report.html", "metrics.json", "model/config.json", "model/energy.safetensors")
#: What a model says it was fitted on, by which a demonstration is known.
_ORIGIN = "demo/features"
#: The reward model was trained on chat, and on none of these pairs.
CONFIG = FitConfig(pairs_seen="no")


@dataclass(frozen=True)
class Demonstration:
    """Result of the demonstration.

    Attributes:
        metrics: as `ebrm fit` writes them.
        live: the live scores; the first response of each prompt is the one a person prefers.
        heads: gain and loss of heads fitted on the same pairs.
        model: the adapted reward model.
        out: where all was written.
    """

    metrics: dict[str, Any]
    live: tuple[LiveScore, ...]
    heads: tuple[GainAndLoss, ...]
    model: EnergyRewardModel
    out: Path


def run(out: str | Path, overwrite: bool = False) -> Demonstration:
    """Run the demonstration and write `metrics.json`, `model/` and `report.html` into `out`.

    Args:
        out: folder that is not there, is empty, or holds an earlier demonstration, which is replaced.
        overwrite: replace what has these names in any other folder, too.

    Raises:
        BackboneError: the extra `demo` is not installed. DataError: `out` holds something else.
    """
    out = Path(out)
    if (out / "model").exists() and not is_model(out / "model"):
        raise DataError(f"out is {out}, whose `model` is no model, so it is not replaced. Choose another name.")
    with results_folder(out, "demo", _WRITTEN, {}, overwrite, lambda _: _is_demonstration(out)) as new:
        metrics, live, heads, model = _run(new)
    return Demonstration(metrics, live, heads, model, out)


def _run(
    new: Path,
) -> tuple[dict[str, Any], tuple[LiveScore, ...], tuple[GainAndLoss, ...], EnergyRewardModel]:
    features, anchors = open_features("demo"), open_features("demo-anchors")
    # First, so that a missing extra is said before the work, not after it. Read as the packaged features were.
    layers = BackboneIdentity.from_dict(features.manifest["backbone"]).layers
    backbone = load_backbone(BackboneConfig(backbone="demo"), TextConfig(truncation="drop"), blocks=layers)
    fitted = fit(features, keep=anchors, config=CONFIG)
    model = EnergyRewardModel(fitted.model.head, fitted.model.record, backbone, prompts=fitted.model.prompts)
    started = time.monotonic()
    entries = read_json(_HERE / "live.json", "Live", error=DataError, do="Install ebrm again.")
    live = tuple(score_live(model, entry["prompt"], entry["responses"]) for entry in entries)
    fitted.seconds["live"] = time.monotonic() - started
    started = time.monotonic()
    heads = compare_heads(fitted, features, anchors)
    fitted.seconds["heads"] = time.monotonic() - started
    measured = _with_texts(measure_fit(fitted, title=TITLE, live=live, notes=NOTES), model, live, heads)
    metrics = fitted.save(new / "model", measured).metrics
    model.record = fitted.model.record
    for name in ("report.html", "metrics.json"):
        (new / "model" / name).replace(new / name)
    return metrics, live, heads, model


def _is_demonstration(out: Path) -> bool:
    """Whether the model in a folder is that of a demonstration."""
    try:
        config = read_json(out / "model" / "config.json", "ModelConfig", error=DataError, do="")
    except DataError:
        return False
    return bool(config["data"].get("origin") == _ORIGIN)


def score_live(model: EnergyRewardModel, prompt: str, responses: list[str]) -> LiveScore:
    """Score the responses to one prompt through the reward model."""
    scored = model.score([prompt] * len(responses), responses)
    return LiveScore(prompt, responses, scored.base_reward.tolist(), scored.reward.tolist(), scored.std.tolist())


def as_preferred(live: LiveScore) -> bool:
    """Whether the refined reward puts the response that a person prefers first."""
    return max(live.refined[1:]) < live.refined[0]


def compare_heads(fitted: FitResult, features: Features, anchors: Features) -> tuple[GainAndLoss, ...]:
    """Gain on the test pairs and change on the anchors held out: the base reward, plain heads, and the default.

    Args:
        fitted: the default head's fit with these anchors.
        features: what it was fitted on.
        anchors: all of them.
    """
    split = split_anchors(anchors, CONFIG.seed)
    nothing = Estimate(0.0, 0.0, 0.0)
    with _quiet():
        others = (
            ("linear head", fit(features, head=LinearConfig(), config=CONFIG)),
            ("SiLU head", fit(features, head=SiLUConfig(), config=CONFIG)),
            ("residual head, no anchors", fit(features, config=CONFIG)),
            ("residual head, anchors", fitted),
        )
    return (GainAndLoss("base RM", nothing, nothing), *(_gain_and_loss(name, one, split) for name, one in others))


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress of fits that only stand for comparison; warnings stay."""
    logger = logging.getLogger("ebrm")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _gain_and_loss(name: str, fitted: FitResult, anchors: AnchorSplit) -> GainAndLoss:
    gain = fitted.evaluation.difference
    held = measure_anchors(fitted.model, anchors.features, anchors.rows, anchors.pairs, prompt_id=anchors.prompt_id)
    assert gain is not None
    assert held.accuracy is not None
    return GainAndLoss(name, gain, held.accuracy.difference)


def _with_texts(
    measured: FitEvaluation, model: EnergyRewardModel, live: tuple[LiveScore, ...], heads: tuple[GainAndLoss, ...]
) -> FitEvaluation:
    """The report with the heads' figure, and with the live texts as what moved most: features hold no texts."""
    assert measured.report is not None
    texts = [
        (abs(r - b), one.prompt, i) for one in live for i, (b, r) in enumerate(zip(one.base, one.refined, strict=True))
    ]
    responses = {one.prompt: one.responses for one in live}
    most = sorted(texts, reverse=True)[: len(measured.report.examples)]
    examples = [_example(model, prompt, responses[prompt][place], place == 0) for _, prompt, place in most]
    return replace(measured, report=replace(measured.report, examples=examples, heads=heads))


def _example(model: EnergyRewardModel, prompt: str, response: str, chosen: bool) -> ChangedExample:
    scored = model.score(prompt, response)
    assert model.backbone is not None
    reading, _ = model.backbone.read_texts(prompt, response)
    nodes, density = model.density(reading.embedding, reading.reward)
    low, high = scored.interval.reshape(-1, 2)[0].tolist()
    return ChangedExample(
        prompt=prompt, response=response, label="chosen" if chosen else "rejected",
        base_reward=float(scored.base_reward), refined_reward=float(scored.reward), std=float(scored.std),
        interval=(low, high), density_nodes=nodes.numpy(), density=density.reshape(-1).numpy(),
    )  # fmt: skip
