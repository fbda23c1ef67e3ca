"""What refinement adds to scoring texts with the demonstration RM: base score beside refined score.

`python -m benchmarks.end_to_end [--quick]` prints the figure. The model is fitted on the features that come with ebrm,
with the default settings.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Iterator

import torch

from benchmarks.timing import Figure, Ratio
from ebrm.backbone import adapter_folder
from ebrm.fitting import fit
from ebrm.model import EnergyRewardModel

#: Refinement may take less than 2% of what the base score takes.
REQUIRED = 0.98
_WORDS = (
    "the", "a", "to", "of", "and", "in", "is", "that", "for", "you", "with", "this", "be", "are", "not", "can", "or",
    "as", "if", "your", "will", "from", "they", "use", "one", "time", "file", "code", "water", "system", "when", "how",
    "which", "because", "first", "then", "more", "model", "answer", "example", "number", "please", "explain", "write",
    "list", "compare", "nothing", "always", "never", "maybe", "really", "important", "different", "people", "world",
)  # fmt: skip


def texts(count: int) -> tuple[list[str], list[str]]:
    """Prompts and responses in words at random: half the responses under 100 words, at most 350."""
    draw = random.Random(0)

    def words(median: int, most: int) -> str:
        return " ".join(draw.choices(_WORDS, k=int(min(most, 3 + draw.lognormvariate(0, 0.7) * median))))

    return [words(25, 100) + "?" for _ in range(count)], [words(100, 350) + "." for _ in range(count)]


def turn(model: EnergyRewardModel, prompts: list[str], responses: list[str]) -> tuple[float, float, torch.Tensor]:
    """Seconds until the base scores are there and until the refined ones are, in one run of both, and the latter.

    `model.score` is `Backbone.read_texts`, then `refine`. Two runs of the reward model differ by more than refinement
    takes; one run does not differ from itself.
    """
    started = time.perf_counter()
    reading, _ = model.backbone.read_texts(prompts, responses)
    read = time.perf_counter() - started
    refined = model.refine(reading.embedding, reading.reward)
    return read, time.perf_counter() - started, refined.reward


def figures(quick: bool) -> Iterator[Figure]:
    """One figure."""
    with tempfile.TemporaryDirectory(prefix="ebrm-end-to-end-") as work:
        model = fit(adapter_folder().parent / "features", work=work, device="cpu").model
    prompts, responses = texts(128 if quick else 400)
    expected = model.score(prompts, responses).reward  # warms up
    base, refined = [], []
    for _ in range(3 if quick else 5):
        read, both, reward = turn(model, prompts, responses)
        torch.testing.assert_close(reward, expected, atol=1e-4, rtol=1e-4)
        base.append(read)
        refined.append(both)
    yield Figure.from_ratio(
        "end to end", Ratio.of(base, refined), d=model.backbone.embedding_size, network="demo RM, default model",
        rows=len(prompts), required=REQUIRED,
    )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    for made in figures(parser.parse_args().quick):
        more = 1e3 * (made.ours_seconds - made.plain_seconds)
        print(f"{made.figure}, {made.rows} texts: {made.ratio:.4f} [{made.ratio_low:.4f}, {made.ratio_high:.4f}], base "
              f"{made.plain_seconds:.2f} s, refined {more:.1f} ms more")  # fmt: skip
