"""Take in features that something else computed: embeddings, rewards, and which rows are pairs. No text is needed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ebrm.errors import FeaturesError
from ebrm.features import manifest as manifests
from ebrm.features.arrays import Column, list_files, read_columns
from ebrm.features.config import FeatureConfig
from ebrm.features.distributed import Ranks
from ebrm.features.lock import claim, missing_files
from ebrm.features.pairing import PAIR_COLUMNS, PAIRING_COLUMNS, make_pairs
from ebrm.features.store import Features, open_features
from ebrm.features.writer import Plan, Source, item_prompts, write_folder
from ebrm.utils.files import sha256_file, sha256_json

logger = logging.getLogger(__name__)

_HEAD = ("head_weight", "head_bias")
_KNOWN = ("embedding", "reward", *PAIRING_COLUMNS, *PAIR_COLUMNS, *_HEAD)
# How far head(e) may be from the reward: rounding of the stored embedding, and of a reward computed in bfloat16.
_ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-5, torch.float16: 2**-10, torch.bfloat16: 2**-7}
_REWARD_ROUNDING = 2**-8


def import_features(
    source: str | Path | Sequence[str | Path],
    out: str | Path,
    settings: FeatureConfig | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    backbone_name: str | None = None,
    head_weight: Tensor | np.ndarray | None = None,
    head_bias: Tensor | np.ndarray | float | None = None,
) -> Features:
    """Import features made elsewhere into the folder `out`; they can be fitted and scored without text or backbone.

    Args:
        source: npz, safetensors or Parquet files with named arrays, or npy files named `embedding.npy`, `reward.npy`
            and so on; one, several, or a folder of them. The same name in several files is one array, in the order of
            the files. Needed: `embedding` [n, d] (in Parquet a list column) and `reward` [n]. Which rows are pairs: see
            `ebrm.features.pairing.make_pairs`. Kept if there: `prompt_id`, `source`, `category`, `strength`, `split`,
            `rm_training`, `where`. npy and safetensors may be larger than memory.
        out: The folder; an import that was stopped is continued.
        settings: Number type and shard size.
        columns: Our name -> the name in the files, where they differ.
        backbone_name: The reward model these come from, for the identity; "imported" if not given.
        head_weight: [d'] or [1, d'], the reward model's last linear map, over the first d' ≤ d numbers of an embedding;
            what follows them is free (means of inner layers, say). With it (or an array of that name in the files)
            every row is checked: reward = head_weight · embedding[:d'] + head_bias.
        head_bias: A number, 0 if not given.

    Raises:
        FeaturesError: Files that cannot be read, arrays that are missing or do not fit each other, numbers that are not
            finite, a reward that is not the head's, or a folder that holds something else.
    """
    settings, out, ranks = settings or FeatureConfig(), Path(out), Ranks()
    files = list_files(source)
    found = _rename(read_columns(files), columns or {})
    embedding, reward = found["embedding"], found["reward"]
    if len(embedding.shape) != 2 or reward.shape not in ((len(embedding),), (len(embedding), 1)):
        raise FeaturesError(
            f"`embedding` has shape {list(embedding.shape)} and `reward` {list(reward.shape)}; expected [n, d] and [n] "
            "with the same n."
        )
    for name in ("embedding", "reward", *_HEAD):
        if name in found:
            found[name].require_numbers()
    head = _head(found, head_weight, head_bias, embedding.shape[1])
    for name in ("chosen", "rejected"):
        if name in found and len(found[name].parts) > 1:
            raise FeaturesError(
                f"`{name}` is in {len(found[name].parts)} files, so it is not clear which rows it counts. Give row "
                "numbers "
                "over all files in one file, or `pair_id` and `is_chosen`."
            )
    pairs, how = make_pairs(
        {name: found[name].values() for name in (*PAIRING_COLUMNS, *PAIR_COLUMNS) if name in found}, len(embedding)
    )
    manifest = manifests.describe(
        origin="imported",
        backbone={"name": backbone_name or "imported"},
        text=None,
        data={"fingerprint": sha256_json([[sha256_file(file) for file in files], dict(columns or {})])},
        embedding_dtype=settings.embedding_dtype,
        embedding_size=embedding.shape[1],
        shard_rows=settings.shard_rows,
        items=len(embedding),
        pairs=len(pairs),
        pairing=how,
    )

    def read(start: int, stop: int, advance: Callable[[int], None]) -> tuple[Tensor, Tensor]:
        rows, rewards = embedding.tensor(start, stop), reward.tensor(start, stop).reshape(-1)
        if head is not None:
            _check_head(rows, rewards, *head, _ROUNDING[_number_type(embedding)], start)
        advance(stop - start)
        return rows, rewards

    plan = Plan(
        manifest,
        items={"prompt_id": item_prompts(pairs, len(embedding))},
        pairs=pairs,
        source=Source(read, lambda item: f"row {item}"),
        amounts=np.ones(len(embedding), np.int64),
        unit="rows",
    )
    with claim(out, manifests.identity(manifest), ranks) as there:
        if there is not None and there["complete"] and not missing_files(out, there):
            return open_features(out, verify=False)  # verified while it was claimed
        return write_folder(out, plan, there, ranks)


def _rename(found: dict[str, Column], columns: Mapping[str, str]) -> dict[str, Column]:
    unknown = sorted(set(columns) - set(_KNOWN))
    if unknown:
        raise FeaturesError(f"There is no column {unknown[0]!r} to map; the names are {', '.join(_KNOWN)}.")
    wanted = {name: columns.get(name, name) for name in _KNOWN}
    for ours, theirs in wanted.items():
        if theirs not in found and (ours in ("embedding", "reward") or ours in columns):
            raise FeaturesError(
                f"There is no array `{theirs}` to import as `{ours}`; the files hold "
                f"{', '.join(sorted(found)) or 'nothing'}. "
                f"Say where it is by mapping columns, for example {ours}={next(iter(sorted(found)), 'name')}."
            )
    ignored = sorted(set(found) - set(wanted.values()))
    if ignored:
        logger.info("Not imported: %s", ", ".join(ignored))
    return {ours: found[theirs] for ours, theirs in wanted.items() if theirs in found}


def _head(
    found: Mapping[str, Column],
    weight: Tensor | np.ndarray | None,
    bias: Tensor | np.ndarray | float | None,
    size: int,
) -> tuple[Tensor, float] | None:
    given = {"head_weight": weight, "head_bias": bias}
    flat = {
        name: found[name].tensor(0, len(found[name])).reshape(-1)
        if value is None and name in found
        else torch.as_tensor(0.0 if value is None else value).to(torch.float32).reshape(-1)
        for name, value in given.items()
    }
    if weight is None and "head_weight" not in found:
        if bias is not None or "head_bias" in found:
            raise FeaturesError("There is a `head_bias` but no `head_weight`; give both, or neither.")
        return None
    if not 0 < len(flat["head_weight"]) <= size or len(flat["head_bias"]) != 1:
        raise FeaturesError(
            f"`head_weight` has {len(flat['head_weight'])} entries and `head_bias` {len(flat['head_bias'])}; expected "
            f"at most {size} (the length of an embedding, whose first numbers are the head's input) and 1."
        )
    return flat["head_weight"], float(flat["head_bias"])


def _check_head(rows: Tensor, reward: Tensor, weight: Tensor, bias: float, rounding: float, start: int) -> None:
    rows = rows[:, : len(weight)]
    own = rows @ weight + bias
    allowed = rounding * (rows.abs() @ weight.abs() + abs(bias)) + _REWARD_ROUNDING * reward.abs() + 1e-6
    excess = (own - reward).abs() - allowed
    wrong = excess > 0
    if bool(wrong.any()):
        row = int(excess.argmax())
        raise FeaturesError(
            f"The reward of row {start + row} is {float(reward[row]):.5g}, but head_weight · embedding + head_bias is "
            f"{float(own[row]):.5g} ({int(wrong.sum())} of {len(rows)} rows from {start} on differ). The embedding is "
            "not the "
            "input of this head, or rewards were changed (normalized, clipped) after it."
        )


def _number_type(column: Column) -> torch.dtype:
    """The coarsest number type among a column's parts."""
    kinds = [
        part.dtype if isinstance(part, Tensor) else torch.from_numpy(np.empty(0, part.dtype)).dtype
        for part in column.parts
    ]
    return max(kinds, key=lambda kind: _ROUNDING.get(kind, 1e-5))
