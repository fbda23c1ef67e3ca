"""All benchmarks by name, and a user's own files by path."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ebrm.benchmarks import (
    hhh,
    ifbench,
    judgebench,
    llmbar,
    rewardbench,
    rewardbench2,
    rewardmath,
    rm_bench,
    rmb,
    xstest,
)
from ebrm.benchmarks.benchmark import Benchmark
from ebrm.benchmarks.files import kind_of_columns, open_file, stem_of
from ebrm.benchmarks.read import Place, find_files
from ebrm.data import hash_position, reader_of
from ebrm.errors import ConfigError, DataError


@dataclass(frozen=True)
class Entry:
    """A public benchmark: how it is loaded (None: from the Hub) and where its rows are kept."""

    load: Callable[[Path | None], Benchmark]
    place: Place


NAMES: Mapping[str, Entry] = {
    "rmb": Entry(rmb.load, rmb.PLACE),
    "rm-bench": Entry(rm_bench.load, rm_bench.PLACE),
    "judgebench": Entry(judgebench.load, judgebench.PLACE),
    "rewardbench": Entry(rewardbench.load, rewardbench.PLACE),
    "rewardbench-legacy": Entry(rewardbench.load_legacy, rewardbench.PLACE),
    "rewardbench2": Entry(rewardbench2.load, rewardbench2.PLACE),
    "llmbar": Entry(llmbar.load, llmbar.PLACE),
    "xstest": Entry(xstest.load, xstest.PLACE),
    "hhh": Entry(hhh.load, hhh.PLACE),
    "ifbench": Entry(ifbench.load, ifbench.PLACE),
    "rewardmath": Entry(rewardmath.load, rewardmath.PLACE),
}

_VARIANTS = ("rewardbench-legacy",)  # the same items as another name, scored otherwise
_TRAINING = "train"  # files whose name begins so are no benchmarks


def open_benchmark(name: str, data: Path | None = None) -> Benchmark:
    """Load a benchmark.

    Args:
        name: one of `NAMES`; the stem of a file in the folder `data`; or a path to a file (see `files.open_file`).
        data: folder of prepared files or of clones; None loads named benchmarks from the Hub.

    Raises:
        ConfigError: no such benchmark (the nearest name is suggested and all are listed).
        DataError: it cannot be found or read.
    """
    if name in NAMES:
        return NAMES[name].load(data)
    others = _others(data) if data is not None and data.expanduser().is_dir() else {}
    if name in others:
        return open_file(others[name])
    path = Path(name).expanduser()
    if path.is_file():
        return open_file(path)
    if path.is_dir():
        raise DataError(
            f"{name} is a folder. Name one file, or a benchmark ({', '.join(NAMES)}) with this as its data."
        )
    if path.name != name or reader_of(path) is not None:
        raise DataError(f"There is no file {name} (looked for {path.absolute()}). Check the path.")
    known = [*NAMES, *others]
    near = _nearest(name, known)
    meant = f" Did you mean {near}?" if near else ""
    raise ConfigError(
        f"{name!r} is not a benchmark.{meant} There are {', '.join(known)}; or give the path of a file of your own."
    )


def _nearest(name: str, known: Sequence[str]) -> str | None:
    """The known name that is most like this one, whatever its dashes and capitals; None if none is like it."""
    plain = {re.sub(r"[^a-z0-9]", "", other.lower()): other for other in reversed(known)}
    wanted = re.sub(r"[^a-z0-9]", "", name.lower())
    near = difflib.get_close_matches(wanted, plain, n=1)
    begin = [other for other in plain if wanted and (other.startswith(wanted) or wanted.startswith(other))]
    return next((plain[other] for other in (*near, *reversed(begin))), None)


def available(data: Path) -> list[str]:
    """Names of all benchmarks in a folder, in a fixed order: public ones first, then other Parquet files by stem.

    Of names with the same items only the first is given (not rewardbench-legacy). Files whose name begins with "train",
    and those whose columns make no schema (see `files.SCHEMAS`), are no benchmarks.

    Raises:
        DataError: `data` is not a folder, or holds a benchmark more than once.
    """
    found = [name for name, entry in NAMES.items() if name not in _VARIANTS and find_files(entry.place, data)]
    return [*found, *(name for name, path in _others(data).items() if _is_benchmark(path))]


def _others(data: Path) -> dict[str, Path]:
    """Parquet files in a folder that belong to no public benchmark and are not for training, by stem."""
    patterns = [pattern for entry in NAMES.values() for patterns in entry.place.layouts for pattern in patterns]
    return {
        stem_of(path): path
        for path in sorted(data.expanduser().glob("*.parquet"))
        if not any(path.match(pattern) for pattern in patterns if "/" not in pattern)
        and not path.name.startswith((".", _TRAINING))
        and stem_of(path) not in NAMES
    }


def _is_benchmark(path: Path) -> bool:
    """Whether the columns make a schema, from the file's footer alone."""
    import pyarrow
    import pyarrow.parquet
    import pyarrow.types

    try:
        schema = pyarrow.parquet.read_schema(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as .parquet: {error}") from error
    lists = (pyarrow.types.is_list, pyarrow.types.is_large_list)
    row = {field.name: [] if any(is_list(field.type) for is_list in lists) else "" for field in schema}
    return kind_of_columns(row) is not None


def sample_prompts(benchmark: Benchmark, prompts: int, seed: int) -> Benchmark:
    """The items of a random sample of prompts (clusters).

    Which prompts are chosen depends on their content and the seed, not on the order or the number of items, and a
    larger sample contains a smaller one.

    Args:
        benchmark: what to sample from.
        prompts: how many to keep; all are kept if there are no more.
        seed: any integer.

    Raises:
        ConfigError: `prompts` is below 1.
    """
    if prompts < 1:
        raise ConfigError(f"The limit is {prompts} prompts; it must be at least 1.")
    clusters = benchmark.clusters()
    distinct = sorted(set(clusters), key=lambda cluster: (hash_position(f"sample {seed}: {cluster}"), cluster))
    if len(distinct) <= prompts:
        return benchmark
    kept = set(distinct[:prompts])
    sample = benchmark.take([number for number, cluster in enumerate(clusters) if cluster in kept])
    note = f"A random sample of {prompts:,} of {len(distinct):,} prompts (seed {seed})."
    return replace(sample, notes=(*benchmark.notes, note))
