"""The rewards that `run.py` kept, beside what they are rewards of."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import load_file

from ebrm.errors import DataError

if TYPE_CHECKING:
    from study import TestSet

_STD, _WINS, _TRUST = "std of ", "wins of EBRM in ", "fusion"
#: How the names of the paper's method and of its variants begin.
PAPER = "paper"
#: Training pairs that no reward model was trained on, as a test set's name.
HELD_OUT = "held-out"


@dataclass(frozen=True)
class Pairs:
    """Pairs of responses: places of the better and the worse one among the texts [p, 2], and their prompts [p]."""

    place: np.ndarray
    prompt: np.ndarray


@dataclass(frozen=True)
class HeldOut:
    """Held-out training pairs [h] with labels as published, and their places [h, 2] with labels as given."""

    published: Pairs
    given: np.ndarray


@dataclass(frozen=True)
class Texts:
    """What a reward model of the study was asked about.

    Attributes:
        tests: test sets by name, in the order in which they are averaged and resampled.
        pools: pools by name.
        embedding_size: numbers in an embedding.
        count: texts n.
        pairs: the pairs of the test sets that have any.
    """

    tests: Mapping[str, TestSet]
    pools: Mapping[str, TestSet]
    embedding_size: int
    count: int
    pairs: Mapping[str, Pairs] = field(init=False)

    def __post_init__(self) -> None:
        found = {name: _pairs(test) for name, test in self.tests.items()}
        object.__setattr__(self, "pairs", {name: pairs for name, pairs in found.items() if len(pairs.prompt)})


@dataclass(frozen=True)
class Refinements:
    """Everything that was made of one base reward model.

    Attributes:
        base_rm, noise, seed: which base reward model.
        texts, held_out: what it was asked about.
        reward: method to the rewards of all texts [n], the base's first.
        std: method to its standard deviations [n], where it has any.
        wins: test set (or `HELD_OUT`) to the density's P(better > worse) of its pairs [p].
    """

    base_rm: str
    noise: float
    seed: int
    texts: Texts
    held_out: HeldOut
    reward: Mapping[str, np.ndarray]
    std: Mapping[str, np.ndarray]
    wins: Mapping[str, np.ndarray]


def reward_paths(folder: Path, base_rm: str) -> dict[tuple[float, int], Path]:
    """(noise, seed) to the file of each base reward model of a kind, by rising noise and seed."""
    name = re.compile(re.escape(base_rm) + r"-(\d\.\d\d)-(\d+)\.safetensors")
    found = {}
    for path in folder.glob("*.safetensors"):
        if match := name.fullmatch(path.name):
            found[float(match[1]), int(match[2])] = path
    return dict(sorted(found.items()))


def open_refinements(path: Path, about: tuple[str, float, int], texts: Texts, held_out: HeldOut) -> Refinements:
    """Read the file of the base reward model `about` (kind, noise, seed), and that of the paper's variants, if any.

    Raises:
        DataError: rewards of other texts than these, or no rewards of the base.
    """
    tensors = load_file(path)
    paper = path.with_name(f"paper-{path.name}")
    if paper.exists():
        tensors |= load_file(paper)
    reward = {name: tensors[name] for name in sorted(tensors) if not name.startswith((_STD, _WINS)) and name != _TRUST}
    std = {name.removeprefix(_STD): value for name, value in tensors.items() if name.startswith(_STD)}
    wins = {name.removeprefix(_WINS): value for name, value in tensors.items() if name.startswith(_WINS)}
    if "base" not in reward:
        raise DataError(f"{path} has no rewards under the name base; it has {', '.join(reward)}.")
    for name, value in (*reward.items(), *((_STD + name, value) for name, value in std.items())):
        if value.shape != (texts.count,):
            raise DataError(
                f"{path}: {name} has shape {value.shape}, but there are {texts.count:,} texts. It was written for "
                "another cache or other data; write it again with run.py."
            )
    pairs = {**texts.pairs, HELD_OUT: held_out.published}
    for name in list(wins):
        if name not in pairs:  # a pool
            del wins[name]
        elif wins[name].shape != pairs[name].prompt.shape:
            raise DataError(
                f"{path}: {name} has {len(wins[name]):,} pairs, but there are {len(pairs[name].prompt):,}. It was "
                "written for other data; write it again with run.py."
            )
    return Refinements(*about, texts, held_out, {"base": reward["base"], **reward}, std, wins)


def method_groups(cells: Sequence[Refinements]) -> list[tuple[list[Refinements], list[str]]]:
    """Base reward models that are averaged over, with the methods that are measured on all of them, base first.

    The paper's variants, which are slow, may be there for some seeds only: these make a group of their own, in which
    base and EBRM come again, for comparison.

    Raises:
        DataError: seeds that differ in other methods.
    """
    names = [list(cell.reward) for cell in cells]
    for cell, others in zip(cells, names, strict=True):
        differing = [name for name in sorted(set(others) ^ set(names[0])) if not name.startswith(PAPER)]
        if differing:
            raise DataError(
                f"{cell.base_rm} with noise {cell.noise} and seed {cell.seed} was refined by other methods than with "
                f"seed {cells[0].seed}: only one has {', '.join(differing)}. Write the older file again."
            )
    common = [name for name in names[0] if all(name in others for others in names)]
    groups = [(list(cells), common)]
    some = [cell for cell, others in zip(cells, names, strict=True) if len(others) > len(common)]
    if some:
        rest = [name for name in some[0].reward if name not in common and all(name in cell.reward for cell in some)]
        groups.append((some, [*(name for name in ("base", "EBRM") if name in common), *rest]))
    return groups


def _pairs(test: TestSet) -> Pairs:
    """The items with exactly two responses, in order; their first must be the better one."""
    two = [number for number, item in enumerate(test.benchmark.items) if len(item.responses) == 2]
    for number in two:
        item = test.benchmark.items[number]
        if not item.gold[0] > item.gold[1]:
            raise DataError(f"{item.where}: gold is {item.gold}; the better response of a pair must come first.")
    return Pairs(test.place[two][:, :2], np.array(test.benchmark.clusters())[two])
