"""Refined rewards of texts that have been read, kept beside them: a second statistic costs no second ascent."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ebrm.evaluation.cache import ReadTexts
from ebrm.features import Features
from ebrm.heads import Posterior
from ebrm.model import EnergyRewardModel
from ebrm.utils.files import atomic_path, sha256_json
from ebrm.utils.progress_bar import progress

logger = logging.getLogger(__name__)
Floats = NDArray[np.float64]

_ROWS = 1024
#: Pairs compared at a time, each with two densities.
_PAIRS = 65536


class RefinedTexts:
    """Refined rewards of the texts of `texts`, in their order; computed folder by folder, as they are needed.

    Args:
        model: the energy model.
        texts: the texts its reward model has read.
        folder: where results are kept; None keeps nothing.
        name: what the progress calls it.

    Attributes:
        reward, std: float64 [n], in the base RM's units; NaN until `refine` has been asked for them.
        interval: float64 [n, 2].
    """

    def __init__(self, model: EnergyRewardModel, texts: ReadTexts, folder: Path | None, name: str) -> None:
        self._model, self._parts, self._name = model, texts.parts, name
        self._folder = None if folder is None else folder / model.fingerprint()[:16]
        self._ends = np.cumsum([0, *(len(part) for part in texts.parts)])
        count = int(self._ends[-1])
        self.reward: Floats = np.full(count, np.nan)
        self.std: Floats = np.full(count, np.nan)
        self.interval: Floats = np.full((count, 2), np.nan)
        none = torch.empty(0, model.embedding_size)
        self._nodes = model.posterior(none, torch.empty(0)).nodes.cpu()
        self._log_density = torch.full((count, len(self._nodes)), torch.nan)

    def refine(self, rows: NDArray[np.int64]) -> None:
        """Have the texts at `rows` [m] refined, and with them all others of their features folders."""
        wanted = np.unique(np.searchsorted(self._ends, rows, side="right") - 1)
        todo = [int(part) for part in wanted if np.isnan(self.reward[self._ends[part]])]
        with progress(f"refine {self._name}", sum(len(self._parts[part]) for part in todo), "texts") as bar:
            for part in todo:
                found = self._kept(self._parts[part], bar.advance)
                place = slice(self._ends[part], self._ends[part + 1])
                for name in ("reward", "std", "interval"):
                    getattr(self, name)[place] = found[name].double().numpy()
                self._log_density[place] = found["log_density"]

    def prefer(self, a: NDArray[np.int64], b: NDArray[np.int64]) -> Floats:
        """P(reward of text a > reward of text b) under their densities, [p] for places [p] and [p], all refined."""
        wins = []
        for start in range(0, len(a), _PAIRS):
            one, other = (self._posterior(side[start : start + _PAIRS]) for side in (a, b))
            wins.append(one.prefer(other))
        return torch.cat(wins).clamp(0, 1).numpy() if wins else np.empty(0)

    def _posterior(self, rows: NDArray[np.int64]) -> Posterior:
        log_density = self._log_density[torch.from_numpy(rows)].double()
        return Posterior(self._nodes, log_density, torch.zeros(len(rows), dtype=torch.float64))

    def _kept(self, part: Features, advance: Callable[[int], None]) -> dict[str, Tensor]:
        """Refined rewards of one features folder, from the folder of results or computed and put there."""
        path = None
        if self._folder is not None:
            path = self._folder / f"{sha256_json(part.manifest['files'])[:16]}.safetensors"
            if path.exists():
                try:
                    found = load_file(path)
                except (SafetensorError, OSError):
                    logger.warning("%s is damaged; it is made again.", path)
                else:
                    advance(len(part))
                    return found
        found = _refine(self._model, part, advance)
        if path is not None:
            with atomic_path(path) as partial:
                save_file(found, partial)
        return found


def _refine(model: EnergyRewardModel, part: Features, advance: Callable[[int], None]) -> dict[str, Tensor]:
    """Refined rewards and densities of one features folder."""
    generator = model.head.draws()
    found: dict[str, list[Tensor]] = {"reward": [], "std": [], "interval": [], "log_density": []}
    for start in range(0, len(part), _ROWS):
        rows = slice(start, min(start + _ROWS, len(part)))
        embedding = part.embedding(rows)
        refined = model.refine(embedding, part.reward[rows], generator)
        posterior = model.posterior(embedding, part.reward[rows])
        for name in ("reward", "std", "interval"):
            found[name].append(getattr(refined, name))
        found["log_density"].append(posterior.log_density.float().cpu())
        advance(len(embedding))
    return {name: torch.cat(values) for name, values in found.items()}
