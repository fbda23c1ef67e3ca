"""Reading embeddings and rewards of texts of mixed lengths, beside a bare transformers forward.

`python -m benchmarks.features [--quick]` prints the figures; with `--budgets`, seconds by the most tokens in a batch.
The bare forward takes the texts in the order given, padded on the right, in batches of one size; it gives the reward
only, ebrm also the embedding with the means of two inner layers. Models are random, of real kinds, small enough for two
cores. Both sides read the same texts, so that padding counts for nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import median
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from benchmarks.timing import Figure, Ratio, seconds
from ebrm.backbone import Backbone, BackboneIdentity, Loaded, inner_layers
from ebrm.data import TextRule

#: Times the bare forward's tokens per second, at batch 1 and at the batch size that suits it best.
REQUIRED_ALONE, REQUIRED_BEST = 3.0, 1.2
BATCH_SIZES = (2, 4, 8, 16, 32, 64)
BUDGETS = (512, 1024, 2048, 4096, 16384)
VOCABULARY = 8192
LONGEST = 512


class Shape(NamedTuple):
    """A kind of model: transformers' name for it, the length of a hidden state, blocks, and precision."""

    kind: str
    width: int
    blocks: int
    dtype: str

    def __str__(self) -> str:
        return f"{self.kind}-{self.width}x{self.blocks} {self.dtype}"


SHAPES = (
    Shape("llama", 256, 4, "float32"),
    Shape("bert", 384, 6, "float32"),  # the demonstration RM's
    Shape("qwen3", 256, 8, "bfloat16"),
    Shape("llama", 512, 8, "float32"),
    Shape("llama", 512, 8, "bfloat16"),
)


def build(shape: Shape) -> Backbone:
    """A random reward model, read with the default settings."""
    sizes: dict[str, Any] = {"num_attention_heads": shape.width // (32 if shape.kind == "bert" else 64)}
    if shape.kind != "bert":
        sizes |= {"num_key_value_heads": shape.width // 128, "head_dim": 64}
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        shape.kind, hidden_size=shape.width, num_hidden_layers=shape.blocks, vocab_size=VOCABULARY, num_labels=1,
        intermediate_size=shape.width * (4 if shape.kind == "bert" else 3), max_position_embeddings=LONGEST,
        pad_token_id=0, **sizes,
    )  # fmt: skip
    model = AutoModelForSequenceClassification.from_config(config).to(getattr(torch, shape.dtype))
    name = "classifier" if shape.kind == "bert" else "score"
    head = model.get_submodule(name)
    assert isinstance(head, nn.Linear)
    layers = inner_layers(str(shape), model, (1 / 3, 2 / 3))
    return Backbone(
        Loaded(model, head, name), SimpleNamespace(pad_token_id=0, eos_token_id=1),
        TextRule("plain", {}, "auto", "auto", "error", LONGEST),
        BackboneIdentity(str(shape), None, "0" * 64, type(model).__name__, name, shape.dtype, "sdpa", layers.indices),
        device=torch.device("cpu"), token_budget=16384, limit=LONGEST, layers=layers,
    )  # fmt: skip


def log_normal(count: int) -> np.ndarray:
    """Lengths as in chats: half of them under 120 tokens, 8 to 512."""
    return np.exp(np.random.default_rng(0).normal(np.log(120), 0.7, count)).round().clip(8, LONGEST).astype(int)


def flat(count: int) -> np.ndarray:
    """Lengths from 8 to 512, each as likely."""
    return np.random.default_rng(0).integers(8, LONGEST + 1, count)


MIXES: dict[str, Callable[[int], np.ndarray]] = {"log-normal": log_normal, "flat": flat}


def texts(lengths: np.ndarray) -> list[list[int]]:
    """Random token ids, none of them padding."""
    draw = np.random.default_rng(1)
    return [draw.integers(5, VOCABULARY, length).tolist() for length in lengths]


def bare(model: nn.Module, token_ids: Sequence[list[int]], size: int) -> Tensor:
    """Rewards [n] by plain forwards of `size` texts each, in the order given."""
    rewards = []
    with torch.inference_mode():
        for start in range(0, len(token_ids), size):
            rows = token_ids[start : start + size]
            longest = max(map(len, rows))
            ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
            mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
            rewards.append(model(input_ids=ids, attention_mask=mask).logits[:, 0].float())
    return torch.cat(rewards)


def best_size(model: nn.Module, token_ids: Sequence[list[int]]) -> int:
    """The batch size above 1 at which the bare forward is fastest; the search ends after two that were slower."""
    taken: list[float] = []
    for size in BATCH_SIZES:
        taken.append(seconds(partial(bare, model, token_ids, size)))
        if len(taken) - 1 - taken.index(min(taken)) == 2:
            break
    return BATCH_SIZES[taken.index(min(taken))]


def matrix_seconds(model: nn.Module, tokens: int) -> float:
    """What the model's linear maps alone take for so many tokens, 1,024 at a time, where they are at their best."""
    maps = [module for module in model.modules() if isinstance(module, nn.Linear)]
    given = [torch.randn(1024, module.in_features).to(module.weight.dtype) for module in maps]

    def work() -> None:
        for module, rows in zip(maps, given, strict=True):
            module(rows)

    with torch.inference_mode():
        work()
        return min(seconds(work) for _ in range(5)) * tokens / 1024


def measure(shape: Shape, mix: str, count: int, turns: int) -> Iterator[Figure]:
    """Three figures of one model on one mix of lengths: beside batch 1, the best batch, and the products alone."""
    backbone, token_ids = build(shape), texts(MIXES[mix](count))
    bare(backbone.model, token_ids[:4], 1)  # warms up
    size = best_size(backbone.model, token_ids)
    reward = backbone.read(token_ids).reward
    tolerance = 1e-4 if shape.dtype == "float32" else 5e-2
    torch.testing.assert_close(reward, bare(backbone.model, token_ids, 1), atol=tolerance, rtol=tolerance)
    ways: dict[str, Callable[[], object]] = {
        "alone": lambda: bare(backbone.model, token_ids, 1),
        "best": lambda: bare(backbone.model, token_ids, size),
        "ours": lambda: backbone.read(token_ids),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    products = []
    for _ in range(turns):
        for name, work in ways.items():
            taken[name].append(seconds(work))
        products.append(matrix_seconds(backbone.model, sum(map(len, token_ids))))
    # Batch 1 may be the best there is.
    best, size = min((taken["best"], size), (taken["alone"], 1), key=lambda way: median(way[0]))
    for figure, plain, required in (
        ("features, batch 1", taken["alone"], REQUIRED_ALONE),
        (f"features, best batch ({size})", best, REQUIRED_BEST),
        ("features, share of the matrix rate", products, None),
    ):
        ratio = Ratio.of(plain, taken["ours"])
        network = f"{shape}, {mix}"
        yield Figure.from_ratio(
            figure, ratio, d=backbone.embedding_size, network=network, rows=count, required=required
        )


def by_budget(shape: Shape, budgets: Sequence[int], count: int, turns: int) -> dict[int, float]:
    """Median seconds of reading `count` texts of chat lengths, by the most tokens in a batch."""
    backbone, token_ids = build(shape), texts(log_normal(count))
    backbone.read(token_ids[:3])  # warms up, and checks the reading
    taken: dict[int, list[float]] = {budget: [] for budget in budgets}
    for _ in range(turns):
        for budget in budgets:
            backbone.token_budget = budget
            taken[budget].append(seconds(partial(backbone.read, token_ids)))
    return {budget: median(some) for budget, some in taken.items()}


def figures(quick: bool) -> Iterator[Figure]:
    """Every model on chat lengths, the first on flat ones as well; quick: two models on chat lengths, fewer texts."""
    for shape in SHAPES[:2] if quick else SHAPES:
        yield from measure(shape, "log-normal", 32 if quick else 64, 2 if quick else 3)
    if not quick:
        yield from measure(SHAPES[0], "flat", 64, 3)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--budgets", action="store_true")
    given = parser.parse_args()
    for shape in SHAPES if given.budgets else ():
        found = by_budget(shape, BUDGETS, 64, 3)
        print(f"{shape!s:24}", *(f"{budget}: {taken:.2f} s" for budget, taken in found.items()), sep="  ", flush=True)
    for made in () if given.budgets else figures(given.quick):
        print(f"{made.figure:36} {made.network:36} {made.ratio:.2f} [{made.ratio_low:.2f}, {made.ratio_high:.2f}] "
              f"plain {made.plain_seconds:.2f} s ours {made.ours_seconds:.2f} s", flush=True)  # fmt: skip
