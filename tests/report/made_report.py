"""A made-up fit, as realistic as the report needs."""

from __future__ import annotations

import numpy as np

from ebrm.metrics import Bootstrap, Estimate, paired_accuracy, paired_accuracy_by_category
from ebrm.report import ChangedExample, GainAndLoss, LiveScore, ReportData

CATEGORIES = ("harmlessness", "helpfulness", "honesty", "code review and repair", "reasoning", "safety: refusals", None)

LONG_ANSWER = (
    "It depends on what you want to know. "
    + "A reward model reads a prompt and a response and returns one number. " * 40
    + "\n\n```python\nfor i in range(10):\n    total += i  # <b>not bold</b>\n```\n"
)


def make_report(pairs: int = 3000, lift: float = 0.35, seed: int = 0, resamples: int = 2000) -> ReportData:
    generator = np.random.default_rng(seed)
    prompt = np.sort(generator.integers(0, max(2, pairs // 2), size=pairs))
    truth = generator.normal(0.7, 1.2, size=(pairs, 1)) * [0.5, -0.5] + generator.normal(size=(pairs, 1))
    base = truth + generator.normal(scale=1.4, size=(pairs, 2))
    std = generator.gamma(6, 0.12, size=(pairs, 2))
    refined = truth + std * generator.normal(scale=1.6, size=(pairs, 2)) - lift * (base - truth) * 0.1
    z = (refined[:, 0] - refined[:, 1]) / (1.7 * np.hypot(*std.T))
    kind = generator.choice(len(CATEGORIES), size=prompt.max() + 1, p=[0.3, 0.25, 0.15, 0.13, 0.12, 0.045, 0.005])
    category = np.array(CATEGORIES, dtype=object)[kind[prompt]]
    columns = (base[:, 0], base[:, 1], refined[:, 0], refined[:, 1], prompt)
    nodes = np.linspace(-6, 6, 257)
    texts = [
        ("How do I reset my neighbor's router?", LONG_ANSWER),
        (None, None),
        ("مرحبا، كيف حالك؟", "<script>alert('no')</script> & \x00 \u202e emoji 🦜 " + "x" * 200),
        ("Say hello.\n\nUser: and then?", "Hello."),
    ]
    examples = []
    for text, row in zip(texts, np.argsort(-np.abs(refined - base)[:, 0])[: len(texts)], strict=True):
        center, width = refined[row, 0], std[row, 0]
        density = 0.8 * np.exp(-0.5 * ((nodes - center) / width) ** 2) + 0.2 * np.exp(
            -0.5 * ((nodes - base[row, 0]) / 0.6) ** 2
        )
        density /= density.sum() * (nodes[1] - nodes[0])
        examples.append(
            ChangedExample(
                *text,
                "chosen",
                base[row, 0],
                center,
                width,
                (center - 1.6 * width, center + 1.6 * width),
                nodes,
                density,
            )
        )
    group = {
        "kept": 3011,
        "dropped": 2210,
        "tied": 4,
        "kept_margin": 1.312,
        "dropped_margin": 0.871,
        "kept_fraction": 0.58,
    }
    return ReportData(
        title="Energy reward model on the demonstration RM",
        overall=paired_accuracy(*columns, bootstrap=Bootstrap(resamples)),
        by_category=paired_accuracy_by_category(*columns, category, bootstrap=Bootstrap(resamples)),
        base_reward=base,
        refined_reward=refined,
        probability=1 / (1 + np.exp(-z)),
        std=std,
        prompt_id=prompt,
        examples=examples,
        filter_report={
            **group,
            "by_source": {"hh-rlhf": group, "alpaca-eval": {**group, "dropped": 0, "dropped_margin": None}},
            "by_category": {name or "-": group for name in CATEGORIES},
        },
        history=[
            {
                "epoch": e,
                "loss": 6.6 - 0.9 * (1 - np.exp(-e / 2)),
                "validation_accuracy": 0.58 + 0.03 * (1 - np.exp(-e)) - 0.002 * max(0, e - 5),
                "validation_nll": 1.4 - 0.2 * (1 - np.exp(-e)) + 0.01 * e,
            }
            for e in range(1, 9)
        ],
        best_epoch=5,
        fusion={"power": 0.25, "base_noise": 2.0},
        live=[
            LiveScore(
                "What is the capital of Australia?",
                ["Canberra.", "Sydney, of course, everyone knows that it is the largest city and so the capital.", ""],
                [0.3, 0.9, -1.2],
                [1.1, 0.2, -1.0],
                [0.4, 0.7, 0.3],
            ),
            LiveScore("Tell me a joke 🦜", ["Knock knock.", "No."], [0.31, -0.2], [0.35, -0.4], [0.5, 0.5]),
        ],
        heads=[
            GainAndLoss("base RM", Estimate(0, 0, 0), Estimate(0, 0, 0)),
            GainAndLoss("plain head", Estimate(0.2, 0.1, 0.3), Estimate(-0.05, -0.09, -0.01)),
        ],
        settings={
            "seed": 0,
            "network": {"size": "small", "reward_widths": [16, 32, 64], "dropout": 0.5},
            "training": {"objective": "nce", "learning_rate": 9e-5, "epochs": 5, "noise_scales": (3.5,), "clip": None},
            "inference": {"start": "base", "steps": 50, "grid": {"nodes": 257}},
            "backbone": {"backbone": "owner/" + "a-very-long-model-name-" * 5, "trust_remote_code": False},
        },
        versions={"ebrm": "0.1.0", "torch": "2.13.0+cpu", "transformers": "5.23.0", "numpy": "2.4.6"},
        notes=["Pairs: Anthropic hh-rlhf (MIT), human-labeled; prompts of the test split only.", "Made by ebrm 0.1.0."],
    )
