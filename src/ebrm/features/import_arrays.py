"""Import of features computed elsewhere: embeddings, rewards, pairs and ratings from arrays. No text is needed.

Read are npy, npz, safetensors and Parquet files; nothing pickled ever is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import safe_open
from torch import Tensor

from ebrm.errors import DataError, FeaturesError, setting
from ebrm.features import manifest as manifests
from ebrm.features.config import FeatureConfig
from ebrm.features.distributed import World
from ebrm.features.store import Features
from ebrm.features.writer import ItemReader, Plan, item_prompts, write_features
from ebrm.pairs import PreferencePairs
from ebrm.utils.files import sha256_file, sha256_json
from ebrm.utils.neutral import shorten_line

logger = logging.getLogger(__name__)

SUFFIXES = (".npy", ".npz", ".safetensors", ".parquet")
PAIRING_COLUMNS = ("chosen", "rejected", "pair_id", "is_chosen", "group_id", "rank", "gold")
_NUMBERS = ("strength", "label", "weight", "margin")
PAIR_COLUMNS = ("prompt_id", "source", "category", *_NUMBERS, "split", "rm_training", "where")
_RATINGS = ("rating", "ratings")  # and `ratings_NAME`, one column an attribute
_HEAD = ("head_weight", "head_bias")
_KNOWN = ("embedding", "reward", *PAIRING_COLUMNS, *PAIR_COLUMNS, *_RATINGS, *_HEAD)
# How far head(e) may be from the reward: rounding of the stored embedding, and of a reward computed in bfloat16.
_ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-5, torch.float16: 2**-10, torch.bfloat16: 2**-7}
_REWARD_ROUNDING = 2**-8


def import_features(
    source: str | Path | Sequence[str | Path], out: str | Path, config: FeatureConfig | None = None, *,
    columns: Mapping[str, str] | None = None, backbone_name: str | None = None,
    head_weight: Tensor | np.ndarray | None = None, head_bias: Tensor | np.ndarray | float | None = None,
) -> Features:  # fmt: skip
    """Import features made elsewhere into the folder `out`; they can be fitted and scored without text or backbone.

    Needed: `embedding` [n, d] (in Parquet a list column) and `reward` [n]. Pairs are, by the first that is there:
    `chosen` and `rejected` (row numbers from 0); `pair_id` and `is_chosen`; `group_id` and `rank` (1 is best) or `gold`
    (more is better), the best of a group against every strictly worse row; with ratings only, none; else rows 0, 2, …
    against rows 1, 3, …. Kept, one entry a row (a pair takes the chosen row's) or a pair: `prompt_id` (else groups, or
    pairs that share a row, are prompts), `source`, `category`, `split`, `where`, `rm_training`, `strength`, `label`
    (probability that chosen is better), `weight`, `margin`. Ratings, NaN where there is none: `rating` [n],
    `ratings` [n, a] or one `ratings_NAME` an attribute. npy and safetensors may be larger than memory.

    Args:
        source: npz, safetensors or Parquet files with named arrays, npy files named `embedding.npy`, …, or a folder of
            them. The same name in several files is one array, in the order of the files.
        out: The folder; an import that was stopped is continued.
        config: Number type and shard size.
        columns: Our name -> the name in the files, where they differ.
        backbone_name: The reward model these come from, for the identity; "imported" if not given.
        head_weight: [d'] or [1, d'], the reward model's last linear map, over the first d' ≤ d numbers of an embedding.
            With it every row is checked: reward = head_weight · embedding[:d'] + head_bias.
        head_bias: A number, 0 if not given.

    Raises:
        FeaturesError: Unreadable files, arrays that are missing or do not fit, numbers that are not finite, a reward
            that is not the head's, or a folder that holds something else.
    """
    config = config or FeatureConfig()
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
                "numbers over all files in one file, or `pair_id` and `is_chosen`."
            )
    attributes, ratings = _ratings(found, len(embedding))
    columns_of_pairs = {name: found[name].values() for name in (*PAIRING_COLUMNS, *PAIR_COLUMNS) if name in found}
    pairs, how = make_pairs(columns_of_pairs, len(embedding), ratings)
    fingerprint = sha256_json([[sha256_file(file) for file in files], dict(columns or {})])
    more: dict[str, Any] = {"pairing": how} | ({"ratings": attributes} if attributes else {})
    manifest = manifests.describe(
        origin="imported", backbone={"name": backbone_name or "imported"}, data={"fingerprint": fingerprint},
        embedding_dtype=config.embedding_dtype, embedding_size=embedding.shape[1], shard_rows=config.shard_rows,
        items=len(embedding), pairs=len(pairs), **more,
    )  # fmt: skip

    def read(start: int, stop: int, advance: Callable[[int], None]) -> tuple[Tensor, Tensor]:
        rows, rewards = embedding.tensor(start, stop), reward.tensor(start, stop).reshape(-1)
        if head is not None:
            _check_head(rows, rewards, *head, _ROUNDING[_number_type(embedding)], start)
        advance(stop - start)
        return rows, rewards

    items = {"prompt_id": item_prompts(pairs, len(embedding))}
    reader = ItemReader(read, lambda item: f"row {item}")
    plan = Plan(manifest, items, pairs, reader, np.ones(len(embedding), np.int64), "rows")
    return write_features(Path(out), manifest, lambda: plan, World(), config.restart)


def _rename(found: dict[str, Column], columns: Mapping[str, str]) -> dict[str, Column]:
    attributes = [name for name in (*found, *columns) if name.startswith("ratings_") and name not in columns.values()]
    unknown = sorted(set(columns) - {*_KNOWN, *attributes})
    if unknown:
        raise FeaturesError(
            f"There is no column {unknown[0]!r} to map; the names are {', '.join(_KNOWN)}, ratings_NAME."
        )
    wanted = {name: columns.get(name, name) for name in (*_KNOWN, *attributes)}
    for ours, theirs in wanted.items():
        if theirs not in found and (ours in ("embedding", "reward") or ours in columns):
            raise FeaturesError(
                f"There is no array `{theirs}` to import as `{ours}`; the files hold "
                f"{', '.join(sorted(found)) or 'nothing'}. Name the array it is in, for example "
                f"{setting('columns', {ours: next(iter(sorted(found)), 'name')})}."
            )
    ignored = sorted(set(found) - set(wanted.values()))
    if ignored:
        logger.warning(
            "Not imported: %s (map the array to one of our names to keep it: %s).",
            ", ".join(ignored), ", ".join(name for name in (*_KNOWN, "ratings_NAME") if name not in wanted.values()),
        )  # fmt: skip
    return {ours: found[theirs] for ours, theirs in wanted.items() if theirs in found}


def _ratings(found: Mapping[str, Column], items: int) -> tuple[list[str], np.ndarray | None]:
    """Names of the attributes, and ratings of rows float64 [n, a]; None where there are none."""
    names = [name for name in found if name in _RATINGS or name.startswith("ratings_")]
    kinds = {name if name in _RATINGS else "ratings_NAME" for name in names}
    if len(kinds) > 1:
        raise FeaturesError(f"Ratings are in {' and in '.join(sorted(kinds))}; give one of them.")
    attributes, parts = [], []
    for name in names:
        values, shape = found[name].values(), found[name].shape
        if len(shape) > 1 + (name == "ratings") or shape[0] != items:
            expected = f"[{items}, attributes]" if name == "ratings" else f"[{items}] (one entry a row)"
            raise FeaturesError(f"`{name}` has shape {list(shape)}; expected {expected}.")
        try:
            part = values.astype(np.float64).reshape(items, -1)  # a missing entry (None) becomes NaN
        except (TypeError, ValueError):
            raise FeaturesError(f"`{name}` holds {values.dtype}; expected numbers, NaN where there is none.") from None
        if np.isinf(part).any():
            raise FeaturesError(f"Row {int(np.isinf(part).any(1).argmax())} has an infinite `{name}`.")
        parts.append(part)
        single = name.removeprefix("ratings_")
        attributes += [single] if part.shape[1] == 1 else [f"rating_{k}" for k in range(part.shape[1])]
    return attributes, np.concatenate(parts, 1) if parts else None


def _head(
    found: Mapping[str, Column], weight: Tensor | np.ndarray | None, bias: Tensor | np.ndarray | float | None, size: int
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
            "not the input of this head, or rewards were changed (normalized, clipped) after it."
        )


def _number_type(column: Column) -> torch.dtype:
    """The coarsest number type among a column's parts."""
    kinds = (p.dtype if isinstance(p, Tensor) else torch.from_numpy(np.empty(0, p.dtype)).dtype for p in column.parts)
    return max(kinds, key=lambda kind: _ROUNDING.get(kind, 1e-5))


class Column:
    """One named array of one or more files, in their order; npy and safetensors stay on disk until a part is read."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.parts: list[Any] = []  # NumPy arrays or tensors, joined along their first axis
        self.files: list[Path] = []

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def require_numbers(self) -> None:
        """Refuse text, dates and objects, naming the file."""
        for part, file in zip(self.parts, self.files, strict=True):
            kind = "f" if isinstance(part, Tensor) else part.dtype.kind
            if kind not in "fiu":
                raise FeaturesError(f"{file}: `{self.name}` holds {part.dtype}; expected numbers.")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole; parts of different shapes were refused when read."""
        return (len(self), *self.parts[0].shape[1:])

    def tensor(self, start: int, stop: int) -> Tensor:
        """Entries start..stop as float32."""
        rows, begin = [], 0
        for part in self.parts:
            low, high = max(start - begin, 0), min(stop - begin, len(part))
            if low < high:
                piece = part[low:high]
                if not isinstance(piece, Tensor):
                    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused as such
                        piece = torch.from_numpy(np.array(piece, np.float32))
                rows.append(piece.to(torch.float32))
            begin += len(part)
        return torch.cat(rows) if rows else torch.empty(0, *self.shape[1:])

    def values(self) -> np.ndarray:
        """The whole as a NumPy array: numbers as they are, text as str objects, missing as None or NaN."""
        parts = []
        for part in self.parts:
            if isinstance(part, Tensor):
                part = part.float().numpy() if part.dtype == torch.bfloat16 else part.numpy()
            if part.dtype.kind == "S":
                part = np.char.decode(part, "utf-8")
            parts.append(part.astype(object) if part.dtype.kind == "U" else part)
        return np.concatenate(parts)


def list_files(source: str | Path | Sequence[str | Path]) -> list[Path]:
    """The files of a source: itself, those of a folder by name, or several of either."""
    files: list[Path] = []
    for entry in [source] if isinstance(source, (str, Path)) else source:
        path = Path(entry)
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
            if not inside:
                raise FeaturesError(f"The folder {path} holds no {', '.join(SUFFIXES)} file to import.")
            files += inside
        elif not path.is_file():
            raise FeaturesError(f"There is no file {path} to import.")
        elif path.suffix not in SUFFIXES:
            raise FeaturesError(f"{path} is not a format that is imported; expected one of {', '.join(SUFFIXES)}.")
        else:
            files.append(path)
    return files


def read_columns(files: Sequence[Path]) -> dict[str, Column]:
    """All named arrays of `files`; an npy file's array is named by the file."""
    columns: dict[str, Column] = {}
    for file in files:
        for name, part in _read_file(file).items():
            if len(part.shape) == 0:
                raise FeaturesError(f"{file}: `{name}` is a single value; expected an array with one entry a row.")
            column = columns.setdefault(name, Column(name))
            if column.parts and column.parts[0].shape[1:] != part.shape[1:]:
                raise FeaturesError(
                    f"`{name}` has shape {list(column.parts[0].shape)} in {column.files[0]} and {list(part.shape)} in "
                    f"{file}; parts of one array must agree in all but their number of rows."
                )
            column.parts.append(part)
            column.files.append(file)
    return columns


def _read_file(file: Path) -> dict[str, Any]:
    try:
        if file.suffix == ".npy":
            return {file.stem: np.load(file, mmap_mode="r", allow_pickle=False)}
        if file.suffix == ".npz":
            # Opened here: where the archive is damaged, NumPy leaves a file that it opened itself open.
            with open(file, "rb") as handle, np.load(handle, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as tensors:
                return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
        with open(file, "rb") as handle:
            table = pq.read_table(handle)
        return {name: _from_arrow(table.column(name), name, file) for name in table.column_names}
    except FeaturesError:
        raise
    except Exception as error:  # noqa: BLE001 - what NumPy, zipfile, zlib and Arrow raise on damaged files is no list
        if isinstance(error, OSError) and error.errno:
            raise  # the disk's fault, not the file's
        hint = " Save text as a str array, not as objects." if "object" in str(error).lower() else ""
        hint = hint or " Copy it again, or write it anew (`numpy.savez`, plain or compressed, or safetensors)."
        said = shorten_line(str(error).rstrip("."), 300) or type(error).__name__
        raise FeaturesError(f"{file} cannot be read as {file.suffix[1:]}: {said}.{hint}") from None


def _from_arrow(column: pa.ChunkedArray, name: str, file: Path) -> np.ndarray:
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        if pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind):
            return column.to_numpy()
        values = np.empty(len(column), dtype=object)
        values[:] = column.to_pylist()
        return values
    joined = column.combine_chunks()
    lengths = joined.value_lengths().to_numpy(zero_copy_only=False)
    wrong = np.flatnonzero(lengths != lengths[:1])  # a missing row has the length NaN, which is not equal to itself
    if len(wrong):
        found, first = ("nothing" if np.isnan(lengths[row]) else f"{lengths[row]:g} entries" for row in (wrong[0], 0))
        raise FeaturesError(
            f"{file}, row {wrong[0]}: `{name}` holds {found}, and row 0 holds {first}; expected the same number of "
            "entries in every row."
        )
    flat = joined.flatten()
    if flat.null_count:
        raise FeaturesError(f"{file}: `{name}` has missing entries inside its rows; expected numbers only.")
    return flat.to_numpy(zero_copy_only=False).reshape(len(column), int(lengths[0]) if len(column) else 0)


def make_pairs(
    columns: Mapping[str, np.ndarray], items: int, ratings: np.ndarray | None = None
) -> tuple[PreferencePairs, str]:
    """Preference pairs over `items` rows as `import_features` says, and how they were found (for the manifest)."""
    if "chosen" in columns or "rejected" in columns:
        _require(columns, "chosen", "rejected")
        chosen, rejected = _index(columns, "chosen"), _index(columns, "rejected")
        if len(chosen) != len(rejected):
            raise FeaturesError(f"`chosen` has {len(chosen)} entries and `rejected` {len(rejected)}; expected as many.")
        for name, side in (("chosen", chosen), ("rejected", rejected)):
            wrong = np.flatnonzero((side < 0) | (side >= items))
            if len(wrong):
                raise FeaturesError(
                    f"Entry {wrong[0]} of `{name}` is {side[wrong[0]]}, but there are {items} rows (0 to {items - 1})."
                )
        prompts, how = _shared_rows(chosen, rejected, items), "by the row numbers in `chosen` and `rejected`"
    elif "pair_id" in columns or "is_chosen" in columns:
        _require(columns, "pair_id", "is_chosen")
        chosen, rejected, prompts = _by_pair_id(columns, items)
        how = "by `pair_id` and `is_chosen`"
    elif "group_id" in columns:
        order = [name for name in ("rank", "gold") if name in columns]
        if len(order) != 1:
            raise FeaturesError(
                f"`group_id` needs one of `rank` (1 is best) and `gold` (more is better) beside it; there are "
                f"{'both' if order else 'neither'}."
            )
        chosen, rejected, prompts, tied = _by_group(columns, order[0], items)
        how = f"best of each `group_id` by `{order[0]}` against every worse one ({tied} tied with the best left out)"
    elif ratings is not None:
        chosen, rejected, prompts = np.empty(0, np.int64), np.empty(0, np.int64), []
        how = "no pairs, ratings only"
    else:
        if items % 2:
            raise FeaturesError(
                f"There are no columns that say which rows are pairs ({', '.join(PAIRING_COLUMNS)}), so rows are taken "
                f"as chosen, rejected, chosen, rejected, …; but their number is odd ({items}). Add such columns."
            )
        chosen, rejected = np.arange(0, items, 2), np.arange(1, items, 2)
        prompts, how = [f"pair-{row:06d}" for row in range(len(chosen))], "rows taken as chosen, rejected, chosen, …"
    if len(chosen) == 0 and ratings is None:
        raise FeaturesError(f"The import holds no pair ({how}).")
    same = np.flatnonzero(chosen == rejected)
    if len(same):
        raise FeaturesError(f"Pair {same[0]} has row {chosen[same[0]]} as both chosen and rejected.")
    logger.info("%d pairs of %d rows: %s", len(chosen), items, how)
    per_pair, there = "chosen" in columns, [name for name in PAIR_COLUMNS if name in columns]
    given: dict[str, Any] = {n: _of_pairs(n, columns[n], chosen, rejected, items, per_pair) for n in there}
    prompt_id = [str(value) for value in given.pop("prompt_id", prompts)]
    given.setdefault("where", [f"rows {c}, {r}" for c, r in zip(chosen.tolist(), rejected.tolist(), strict=True)])
    for name in ("source", "category", "split", "where"):
        if name in given:
            given[name] = [None if _missing(value) else str(value) for value in given[name]]
    for name in _NUMBERS:
        _check_values(name, given, lambda value: isinstance(value, (int, float)), "a number", name == "strength")
    _check_values("rm_training", given, lambda value: value in (0, 1), "true or false (1 or 0)")
    if "rm_training" in given:
        given["rm_training"] = [not _missing(value) and bool(value) for value in given["rm_training"]]
    try:
        return PreferencePairs.of(chosen, rejected, prompt_id=prompt_id, ratings=ratings, **given), how
    except DataError as error:
        raise FeaturesError(f"The pairs cannot be used: {error}") from None


def _check_values(
    name: str, given: Mapping[str, list[Any]], fits: Callable[[Any], bool], expected: str, optional: bool = True
) -> None:
    for pair, value in enumerate(given.get(name, ())):
        if not (optional if _missing(value) else fits(value)):
            more = ", or nothing" if optional else ""
            raise FeaturesError(f"Pair {pair} has {name} = {value!r}; expected {expected}{more}.")


def _by_pair_id(columns: Mapping[str, np.ndarray], items: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    names, pair = _numbered(columns["pair_id"], "pair_id", items)
    flag = _per_item(columns, "is_chosen", items)
    values = np.array([value is not None and bool(value == 1) for value in flag.tolist()])
    wrong = np.flatnonzero([value not in (0, 1) for value in flag.tolist()])
    if len(wrong):
        raise FeaturesError(
            f"Row {wrong[0]} has is_chosen = {flag.tolist()[wrong[0]]!r}; expected true or false (1 or 0)."
        )
    wins, losses = np.bincount(pair[values], minlength=len(names)), np.bincount(pair[~values], minlength=len(names))
    bad = np.flatnonzero((wins != 1) | (losses != 1))
    if len(bad):
        raise FeaturesError(
            f"{len(bad)} of {len(names)} pair ids do not have one chosen and one rejected row; the first is "
            f"{names[bad[0]]!r}, with {wins[bad[0]]} chosen and {losses[bad[0]]} rejected."
        )
    chosen, rejected = np.empty(len(names), np.int64), np.empty(len(names), np.int64)
    rows = np.arange(items)
    chosen[pair[values]], rejected[pair[~values]] = rows[values], rows[~values]
    return chosen, rejected, [str(name) for name in names]


def _by_group(
    columns: Mapping[str, np.ndarray], order: str, items: int
) -> tuple[np.ndarray, np.ndarray, list[str], int]:
    names, group = _numbered(columns["group_id"], "group_id", items)
    merit = _per_item(columns, order, items).astype(np.float64)
    if np.isnan(merit).any():
        raise FeaturesError(f"Row {int(np.flatnonzero(np.isnan(merit))[0])} has no `{order}`; expected a number.")
    merit = -merit if order == "rank" else merit
    best = np.full(len(names), -1, np.int64)
    for row in range(items):  # the first of the best
        if best[group[row]] < 0 or merit[row] > merit[best[group[row]]]:
            best[group[row]] = row
    winner = best[group]
    worse = np.flatnonzero(merit < merit[winner])
    worse = worse[np.argsort(group[worse], kind="stable")]
    tied = items - len(names) - len(worse)
    return winner[worse], worse, [str(names[number]) for number in group[worse]], tied


def _numbered(values: np.ndarray, name: str, items: int) -> tuple[list[Any], np.ndarray]:
    """Different values in order of first appearance, and the number of each row's value."""
    values = _per_item({name: values}, name, items)
    number: dict[Any, int] = {}
    rows = np.empty(items, np.int64)
    for row, value in enumerate(values.tolist()):
        if _missing(value):
            raise FeaturesError(f"Row {row} has no `{name}`.")
        rows[row] = number.setdefault(value, len(number))
    return list(number), rows


def _shared_rows(chosen: np.ndarray, rejected: np.ndarray, items: int) -> list[str]:
    """A prompt for every pair: pairs that share a row, directly or through others, have the same."""
    parent = list(range(items))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for left, right in zip(chosen.tolist(), rejected.tolist(), strict=True):
        a, b = root(left), root(right)
        parent[max(a, b)] = min(a, b)
    return [f"row-{root(row):06d}" for row in chosen.tolist()]


def _of_pairs(
    name: str, values: np.ndarray, chosen: np.ndarray, rejected: np.ndarray, items: int, may_be_per_pair: bool
) -> list[Any]:
    if may_be_per_pair and values.shape == chosen.shape:
        return values.tolist()
    values = _per_item({name: values}, name, items, len(chosen) if may_be_per_pair else None)
    won, lost = values[chosen].tolist(), values[rejected].tolist()
    if name == "prompt_id":
        for pair, (left, right) in enumerate(zip(won, lost, strict=True)):
            if left != right or _missing(left):
                raise FeaturesError(
                    f"Pair {pair} (rows {chosen[pair]} and {rejected[pair]}) has the prompt ids {left!r} and "
                    f"{right!r}; expected one prompt for both."
                )
    return won


def _per_item(columns: Mapping[str, np.ndarray], name: str, items: int, pairs: int | None = None) -> np.ndarray:
    values = columns[name]
    if values.shape != (items,):
        also = "" if pairs is None else f" or [{pairs}] (one a pair)"
        raise FeaturesError(f"`{name}` has shape {list(values.shape)}; expected [{items}] (one entry a row){also}.")
    return values


def _index(columns: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    values = columns[name]
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise FeaturesError(
            f"`{name}` has shape {list(values.shape)} and type {values.dtype}; expected row numbers, one whole number "
            "a pair."
        )
    return values.astype(np.int64)


def _require(columns: Mapping[str, np.ndarray], *names: str) -> None:
    missing = [name for name in names if name not in columns]
    if missing:
        raise FeaturesError(f"`{missing[0]}` is missing; {' and '.join(names)} go together.")


def _missing(value: Any) -> bool:
    return value is None or value != value
