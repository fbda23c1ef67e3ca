"""Names of splits: which part of a fit a split's rows may enter, and the splits that names of files and folders say.

The words are those that `datasets` knows (`data_files.SPLIT_KEYWORDS`), so that a folder divides here as it would with
`datasets.load_dataset(folder)`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePath
from typing import Literal

from ebrm.errors import DataError, setting

Part = Literal["train", "validation", "test"]

_WORDS: dict[Part, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_PART_OF: dict[str, Part] = {word: part for part, words in _WORDS.items() for word in words}
# What data sets write before or after one of the words (`train_prefs`, `test_gen`, `dpo_train`, `train_1`): it says of
# what kind the rows are, not what they are for. Another word beside one of these (`holdout_train`) is not understood.
_KINDS = frozenset(
    ("prefs", "pref", "preference", "preferences", "gen", "sft", "dpo", "ppo", "rm", "rlhf", "kto", "orpo", "pairs",
     "pair", "binarized", "data", "set", "split", "part", "full", "small", "large", "mini", "tiny", "subset", "sample",
     "filtered", "clean", "cleaned", "raw", "shard", "fold")
)  # fmt: skip
_BREAKS = re.compile(r"[-._ /\\:\[\]()]+|(?<=[a-z])(?=[0-9])|(?<=[0-9])(?=[a-z])")
_SHARD = re.compile(r"(?:.*/)?data/(?P<split>[^/]+)-\d{5}-of-\d{5}[^/]*\.[^/]*")
_BREAK = r"[-._ 0-9]"

#: Files beside the data that `datasets` does not read as data either.
NOT_DATA = frozenset(
    ("config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "README.md")
)


def part_of(split: object) -> Part | None:
    """The part of a fit that a split's name means, as `train_prefs`, `val`, `Testing`; None if none is meant.

    A name means a part if one of the words of `datasets` stands in it and everything else in it is a number or says of
    what kind the rows are (prefs, gen, sft, …).
    """
    words = [word for word in _BREAKS.split(str(split).strip().lower()) if word]
    parts = {_PART_OF[word] for word in words if word in _PART_OF}
    others = [word for word in words if word not in _PART_OF and word not in _KINDS and not word.isdigit()]
    return next(iter(parts)) if len(parts) == 1 and not others else None


def parts_of(splits: Iterable[str | None]) -> list[Part | None]:
    """The part of a fit that each pair's split means, None for pairs of no split.

    Raises:
        DataError: a name that means no part: its pairs may be held out for something, so they are not trained on; or
            none that may be trained on.
    """
    named = list(splits)
    meant = {name: part_of(name) for name in set(named) if name}
    ignored = setting("columns", {"split": ""})
    if unknown := {name for name, part in meant.items() if part is None}:
        counts = Counter(name for name in named if name in unknown)
        shown = ", ".join(f"{name!r} ({count:,} pairs)" for name, count in counts.most_common(8))
        more = f" and {len(counts) - 8:,} more" if len(counts) > 8 else ""
        raise DataError(
            f"The pairs name splits that are not known: {shown}{more}. Known are train, validation and test, and what "
            "`datasets` takes for them (training, val, valid, dev, testing, eval, evaluation, train_prefs, …). Pairs "
            "that may be held out for something are never trained on: rename the splits, read one of them with "
            f"{setting('split', 'train')}, or have all pairs divided by prompt whatever their split, with {ignored}."
        )
    parts = [meant[name] if name else None for name in named]
    if parts and not {None, "train"} & {*parts}:
        raise DataError(
            f"All {len(parts):,} pairs are held out ({', '.join(sorted(meant))}), so that there is none to train on. "
            "Give the pairs of the training split, too, or have all pairs divided by prompt whatever their split, with "
            f"{ignored}."
        )
    return parts


@dataclass(frozen=True)
class FileSplits:
    """Splits of a folder's files.

    Attributes:
        split: the split of each file, in the order given; None for all where no name says one.
        left_out: whether a file is in no split although others are, so that it is not read.
    """

    split: tuple[str | None, ...]
    left_out: tuple[bool, ...]


def file_splits(names: Sequence[str], card: str = "") -> FileSplits:
    """Splits by the names of files relative to their folder, as `datasets.load_dataset(folder)` finds them.

    What the data `card` (README.md) says of files of splits goes before their names. Else, first shards
    (`data/train_prefs-00000-of-00001.parquet`), then folders (`test/…`), then files (`a_val.csv`): the first of these
    that matches any file decides, and files that it does not match are not read.

    Raises:
        DataError: some files are held out by their names, none is for training, and others are named neither.
    """
    if said := _splits_of_card(card):
        found = [next((s for s, pattern in said if fnmatchcase(name, pattern)), None) for name in names]
        if any(found):
            return FileSplits(tuple(found), tuple(split is None for split in found))
    for rule in (_split_of_shard, _split_of_folder, _split_of_file):
        found = [rule(name) for name in names]
        if not any(found):
            continue
        rest = [name for name, split in zip(names, found, strict=True) if split is None]
        if rest and not any(split and part_of(split) == "train" for split in found):
            held = next(name for name, split in zip(names, found, strict=True) if split)
            raise DataError(
                f"By its name {held} is held out, and {rest[0]} is of no split, so it is not clear what is to be "
                f"trained on. Name the files to read, or rename them: train.…, validation.…, test.…"
            )
        return FileSplits(tuple(found), tuple(split is None for split in found))
    return FileSplits((None,) * len(names), (False,) * len(names))


def _splits_of_card(card: str) -> list[tuple[str, str]]:
    """(split, pattern of files) of the `configs` in the front matter of a data card; none where it names no splits."""
    if not card.startswith("---"):
        return []
    import yaml

    try:
        front = yaml.safe_load(card.split("\n---", 1)[0].removeprefix("---"))
    except yaml.YAMLError:
        return []
    found: list[tuple[str, str]] = []
    configs = front.get("configs") if isinstance(front, dict) else None
    for config in configs if isinstance(configs, list) else ():
        files = config.get("data_files") if isinstance(config, dict) else None
        for entry in files if isinstance(files, list) else ():
            if isinstance(entry, dict) and "split" in entry and "path" in entry:
                paths = entry["path"] if isinstance(entry["path"], list) else [entry["path"]]
                found += [(str(entry["split"]), str(path).removeprefix("./")) for path in paths]
    return found


def named_splits(names: Sequence[str]) -> FileSplits:
    """Splits by the names of files that are all to be read, where the names differ in them; None for all where not."""
    for rule in (_split_of_shard, _split_of_folder, _split_of_file):
        found = tuple(rule(name) for name in names)
        if len({part_of(split) or split for split in found if split}) > 1:
            return FileSplits(found, (False,) * len(names))
    return FileSplits((None,) * len(names), (False,) * len(names))


def _split_of_shard(name: str) -> str | None:
    found = _SHARD.fullmatch(name)
    return found["split"] if found else None


def _split_of_folder(name: str) -> str | None:
    return next(
        (split for folder in PurePath(name).parts[:-1] if (split := _keyword(folder, "(?:$|" + _BREAK + ")"))), None
    )


def _split_of_file(name: str) -> str | None:
    return _keyword(PurePath(name).name, _BREAK)


def _keyword(name: str, after: str) -> str | None:
    for part, words in _WORDS.items():
        if re.search(rf"(?:^|{_BREAK})(?:{'|'.join(words)}){after}", name.lower()):
            return part
    return None
