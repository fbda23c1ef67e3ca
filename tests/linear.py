"""Features made in code: rewards linear in the embedding, and pairs labeled by a noisy reading of them."""

from __future__ import annotations

from dataclasses import replace

import torch

from ebrm.features import Features
from ebrm.heads import EnergyConfig, NetworkConfig, TrainingConfig
from ebrm.pairs import PreferencePairs

QUICK = EnergyConfig(
    network=NetworkConfig(joint_widths=(24, 12), dropout=0.0),
    training=TrainingConfig(epochs=12, learning_rate=1e-2, batch_rows=32, patience=0),
)
ONE_EPOCH = replace(QUICK, training=replace(QUICK.training, epochs=1))
IDENTITY = {
    "name": "made-in-code",
    "revision": None,
    "weights_fingerprint": "0" * 64,
    "architecture": "Made",
    "head_module": "score",
    "dtype": "float32",
    "attention": "own",
}


def linear_features(
    pairs: int = 300, size: int = 8, noise: float = 0.5, swapped: bool = False, seed: int = 0
) -> Features:
    """`pairs` pairs, one prompt each, over twice as many items; labels follow reward + noise (or its opposite)."""
    generator = torch.Generator().manual_seed(seed)
    embedding = torch.randn(2 * pairs, size, generator=generator)
    reward = 3 + 2 * embedding @ torch.randn(size, generator=generator) / size**0.5
    judged = reward + noise * torch.randn(2 * pairs, generator=generator)
    first = torch.arange(0, 2 * pairs, 2)
    better = (judged[first] > judged[first + 1]) != swapped
    chosen, rejected = torch.where(better, first, first + 1), torch.where(better, first + 1, first)
    table = PreferencePairs.of(chosen, rejected, category=["a", "b"] * (pairs // 2))
    return Features.from_tensors(embedding, reward, table, backbone=IDENTITY)
