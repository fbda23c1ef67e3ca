"""Cache of benchmark texts, one folder a reward model and text rule: each text is read once and refined once.

A folder has one features folder for each run that met new texts, and the refined rewards and densities beside them.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ebrm.benchmarks import Floats
from ebrm.errors import FeaturesError
from ebrm.features import (
    MANIFEST,
    FeatureConfig,
    Features,
    Text,
    extract_texts,
    open_features,
    read_items,
    read_manifest,
)
from ebrm.heads import Posterior
from ebrm.model import EnergyRewardModel
from ebrm.utils.files import sha256_json
from ebrm.utils.outputs import tidy
from ebrm.utils.progress_bar import progress
from ebrm.utils.tensors import load_tensors, save_tensors

if TYPE_CHECKING:
    from ebrm.backbone import Backbone

logger = logging.getLogger(__name__)

#: Embeddings a file; small, so that a long run that is stopped loses little.
_SHARD_ROWS = 1024


class ReadTexts:
    """Rewards and embeddings of texts that one reward model has read, from one or more features folders.

    Attributes:
        parts: the folders, in the order of `reward`.
        reward: base reward of every text of every part, float64 [n].
        refused: text id to why it could not be read.
    """

    def __init__(self, parts: Iterable[Features]) -> None:
        self.parts: list[Features] = []
        self.reward: NDArray[np.float64] = np.empty(0)
        self.refused: dict[str, str] = {}
        self._row: dict[str, int] = {}
        for part in parts:
            self._add(part)

    def _add(self, part: Features) -> None:
        assert part.path is not None
        ids = read_items(part.path / "items.parquet")["text_id"]
        if None in ids:
            raise FeaturesError(
                f"The features in {part.path} have no text ids: they were imported, or made by an older "
                "version. Make them anew with `ebrm features`, or give the reward model itself."
            )
        unread = set() if part.unread is None else set(part.unread.nonzero().flatten().tolist())
        for row, text in enumerate(ids):
            if row not in unread:
                self._row.setdefault(text, len(self.reward) + row)
        self.reward = np.concatenate([self.reward, part.reward.double().numpy()])
        self.refused |= part.manifest.get("refused") or {}
        self.parts.append(part)

    def rows(self, text_ids: Sequence[str]) -> NDArray[np.int64]:
        """Where texts stand in `reward` [m]; -1 for those that are not there."""
        find = self._row.get
        return np.fromiter((find(text, -1) for text in text_ids), np.int64, len(text_ids))

    def unread(self, texts: Iterable[Text]) -> list[Text]:
        """The texts that are neither here nor known to be refused, each once, in the order given."""
        new = {text.id: text for text in texts}
        return [text for name, text in new.items() if name not in self._row and name not in self.refused]

    def why_not(self, text_id: str) -> str:
        """Why a text has no reward."""
        return self.refused.get(text_id, "not in the features given")


class TextCache(ReadTexts):
    """Texts read so far by one reward model under one text rule, and the way to read more.

    Args:
        root: folder of all caches.
        identity: the reward model's, as in a features manifest.
        rule: the text rule's identity.
        others: further features of the same reward model and text rule, which are only looked into.

    Raises:
        FeaturesError: `others` of another reward model or text rule. (A damaged folder in the cache is removed.)
    """

    def __init__(
        self, root: Path, identity: dict[str, Any], rule: dict[str, Any], others: Sequence[Features] = ()
    ) -> None:
        self.path = root / _key(identity, rule)
        for other in others:
            other.check(identity, rule)
        super().__init__(others)
        for manifest in sorted((self.path / "texts").glob(f"*/{MANIFEST}")):
            folder = manifest.parent
            try:
                if not read_manifest(folder)["complete"]:  # it is continued when its texts are needed
                    continue
                part = open_features(folder)
                part.check(identity, rule)
                self._add(part)
            except FeaturesError as error:
                logger.warning("A part of the cache is damaged: its texts are read again. %s", error.args[0])
                shutil.rmtree(folder)

    def read(self, texts: Iterable[Text], load: Callable[[], Backbone], settings: FeatureConfig | None = None) -> int:
        """Read the texts that are not here yet, by what `load` returns, and count them; a stopped run is continued."""
        new = self.unread(texts)
        if new:
            settings = settings or FeatureConfig(shard_rows=_SHARD_ROWS)
            made_of = [[text.id for text in new], settings.embedding_dtype, settings.shard_rows]
            folder = self.path / "texts" / sha256_json(made_of)[:16]
            _clear(folder)
            self._add(extract_texts(load(), new, folder, settings))
        return len(new)


def _clear(folder: Path) -> None:
    """Remove a folder that lost its manifest: nobody can say what its files hold."""
    if folder.is_dir() and not (folder / MANIFEST).exists():
        if not any(not path.name.startswith(".") for path in folder.iterdir()):
            return  # of a run that is only beginning
        logger.warning("%s has lost its %s: its texts are read again.", folder, MANIFEST)
        shutil.rmtree(folder)


# What identities of one reward model may differ in: names, and rewards that are compared up to rounding.
_NOT_DECISIVE = ("name", "revision", "base", "probe")


def _key(identity: dict[str, Any], rule: dict[str, Any]) -> str:
    """Name of a cache: readable first, then what decides every number. The same weights share it under any name."""
    decisive = {name: value for name, value in identity.items() if name not in _NOT_DECISIVE}
    name = "".join(char if char.isalnum() else "-" for char in str(identity["name"]).rstrip("/").rpartition("/")[2])
    return f"{name[:40]}-{sha256_json([decisive, rule])[:16]}"


_ROWS = 1024
#: Pairs compared at a time, each with two densities.
_PAIRS = 65536


class RefinedTexts:
    """Refined rewards of `texts` in their order, computed folder by folder as needed, and kept in `folder` if given.

    Attributes:
        reward, std: float64 [n], in the base RM's units; NaN until `refine` has been asked for them.
        interval: float64 [n, 2].
    """

    def __init__(self, model: EnergyRewardModel, texts: ReadTexts, folder: Path | None, name: str) -> None:
        self._model, self._parts, self._name = model, texts.parts, name
        self._fingerprint = model.fingerprint()
        self._folder = None if folder is None else folder / self._fingerprint[:16]
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
        """P(text a is better than text b), calibrated as the model is, [p] for places [p] and [p], all refined."""
        wins = []
        for start in range(0, len(a), _PAIRS):
            one, other = (self._posterior(side[start : start + _PAIRS]) for side in (a, b))
            wins.append(one.prefer(other))
        found, known = torch.cat(wins).clamp(0, 1) if wins else torch.empty(0), self._model.record.calibration
        return (found if known is None else known(found)).double().numpy()

    def _posterior(self, rows: NDArray[np.int64]) -> Posterior:
        log_density = self._log_density[torch.from_numpy(rows)].double()
        return Posterior(self._nodes, log_density, torch.zeros(len(rows), dtype=torch.float64))

    def _kept(self, part: Features, advance: Callable[[int], None]) -> dict[str, Tensor]:
        path = None
        of = {"model": self._fingerprint, "texts": sha256_json(part.manifest["files"])}
        if self._folder is not None:
            path = self._folder / f"{of['texts'][:16]}.safetensors"
            if path.exists():
                try:
                    found, stated = load_tensors(path)
                    if stated != of:
                        raise ValueError("it is that of another model or of other texts")
                    self._check(found, part)
                except ValueError as error:
                    logger.warning("%s is damaged (%s): its %d texts are refined again.", path, error, len(part))
                else:
                    advance(len(part))
                    return found
        found = _refine(self._model, part, advance)
        if path is not None:
            tidy(path.parent)  # of runs that were killed
            save_tensors(path, found, of)
        return found

    def _check(self, found: dict[str, Tensor], part: Features) -> None:
        rows = len(part)
        shapes = {"reward": [rows], "std": [rows], "interval": [rows, 2], "log_density": [rows, len(self._nodes)]}
        if {name: list(tensor.shape) for name, tensor in found.items()} != shapes:
            raise ValueError(f"it holds {', '.join(sorted(found)) or 'nothing'} of other shapes")
        if wrong := sorted({str(tensor.dtype) for tensor in found.values()} - {"torch.float32"}):
            raise ValueError(f"it holds numbers of the type {wrong[0]}")
        read = part.reward.isfinite()
        if not all(bool(found[name][read].isfinite().all()) for name in ("reward", "std", "interval")):
            raise ValueError("it holds numbers that are not finite")


def _refine(model: EnergyRewardModel, part: Features, advance: Callable[[int], None]) -> dict[str, Tensor]:
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
