"""Results in the layout of the reward-bench repository, so that its tools and those made for it can read ours.

Its scripts `run_rm.py` (RewardBench) and `run_v2.py` (RewardBench 2) write two JSON files a model, which
`analysis/utils.py` collects: `eval-set/OWNER/MODEL.json` with the score of every subset, and
`eval-set-scores/OWNER/MODEL.json` with every reward. Ours lie in `reward-bench/` and `reward-bench-2/`, which stand for
the two data sets of results upstream. What differs, because it is not known here: texts are message lists, as upstream
writes for models with a format of their own, not strings with a chat template; and `chat_template` is "tokenizer".
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebrm.benchmarks import Benchmark, Item
from ebrm.evaluation import Evaluation, Scored, ScorerResult
from ebrm.utils.files import write_text

Floats = NDArray[np.float64]

#: Our benchmarks with that layout, and their folders. The legacy weights make other sections, not other subsets.
FOLDERS: Mapping[str, str] = {
    "rewardbench": "reward-bench",
    "rewardbench-legacy": "reward-bench",
    "rewardbench2": "reward-bench-2",
}

# Scorers without an owner in their name: upstream's reader expects a folder of owners.
_NO_OWNER = "local"
_TIES = "Ties"


def write_rewardbench(out: str | Path, evaluation: Evaluation, scored: Sequence[Scored]) -> tuple[Path, ...]:
    """Write the files of RewardBench 1 and 2, if they are among the benchmarks.

    They hold the items that all scorers could score, the same that are behind our own numbers.

    Args:
        out: folder for `reward-bench/` and `reward-bench-2/`.
        evaluation: what was found.
        scored: the benchmarks and scores it was made from, in the same order.

    Returns:
        The files written.
    """
    files: list[Path] = []
    done: set[str] = set()
    for result, one in zip(evaluation.benchmarks, scored, strict=True):
        folder = FOLDERS.get(result.name)
        if folder is None or folder in done:
            continue
        done.add(folder)
        unscored = set(result.unscored_items)
        kept = np.array([row for row, item in enumerate(one.benchmark.items) if item.id not in unscored])
        benchmark = one.benchmark.take(kept)
        rows = _best_of_rows if folder == "reward-bench-2" else _pair_rows
        for scores, model in zip(one.scorers, model_names([scores.name for scores in one.scorers]), strict=True):
            about = {"model": model, "model_type": "Seq. Classifier", "chat_template": "tokenizer"}
            subsets = _subsets(benchmark, result.scorers[scores.name])
            columns = rows(benchmark, scores.reward[kept])
            for kind, values in (("eval-set", subsets), ("eval-set-scores", columns)):
                path = Path(out) / folder / kind / f"{model}.json"
                text = json.dumps({**values, **about}, indent=4, sort_keys=True, allow_nan=False)
                write_text(path, text)
                files.append(path)
    return tuple(files)


def model_names(names: Sequence[str]) -> list[str]:
    """Make `OWNER/MODEL` of each scorer's name, safe as a path and different from the others."""
    found: list[str] = []
    for name in names:
        owner, slash, model = name.strip("/").rpartition("/")
        parts = [re.sub(r"[^A-Za-z0-9._-]+", "-", part).lstrip(".") for part in (owner, model)]
        safe = f"{parts[0] if slash and parts[0] else _NO_OWNER}/{parts[1] or 'model'}"
        number = 1
        while (unique := safe if number == 1 else f"{safe}-{number}") in found:
            number += 1
        found.append(unique)
    return found


def _subsets(benchmark: Benchmark, scorer: ScorerResult) -> dict[str, float]:
    """The official score of every subset that has items."""
    groups = sorted({item.group for item in benchmark.items})
    return {group: scorer.cells[group].value.value for group in groups}


def _pair_rows(benchmark: Benchmark, reward: Floats) -> dict[str, Sequence[Any]]:
    """The columns of `eval-set-scores` of RewardBench 1."""
    chosen = [(item, int(np.argmax(item.gold)), int(np.argmin(item.gold))) for item in benchmark.items]
    right = [float(reward[row, one]) for row, (_, one, _) in enumerate(chosen)]
    wrong = [float(reward[row, other]) for row, (_, _, other) in enumerate(chosen)]
    return {
        "id": _numbers(_ids(benchmark.items)),
        "subset": [item.group for item in benchmark.items],
        "text_chosen": [_dialogue(item, one) for item, one, _ in chosen],
        "text_rejected": [_dialogue(item, other) for item, _, other in chosen],
        "scores_chosen": right,
        "scores_rejected": wrong,
        "results": [int(one > other) for one, other in zip(right, wrong, strict=True)],
    }


def _best_of_rows(benchmark: Benchmark, reward: Floats) -> dict[str, Sequence[Any]]:
    """The columns of `eval-set-scores` of RewardBench 2; items of Ties have no result of their own."""
    scores = [row[~np.isnan(row)].tolist() for row in reward]
    return {
        "id": _ids(benchmark.items),
        "subset": [item.group for item in benchmark.items],
        "num_correct": [sum(worth == 1.0 for worth in item.gold) for item in benchmark.items],
        "text": [[_dialogue(item, place) for place in range(len(item.responses))] for item in benchmark.items],
        "scores": scores,
        "results": list(_results(benchmark.items, scores)),
    }


def _results(items: Sequence[Item], scores: Sequence[Sequence[float]]) -> Iterator[float | None]:
    for item, values in zip(items, scores, strict=True):
        highest = max(values)
        if item.group == _TIES:
            yield None
        else:
            yield 1 / values.count(highest) if values[0] == highest else 0.0


def _dialogue(item: Item, place: int) -> list[dict[str, str]]:
    return [*item.prompt, {"role": "assistant", "content": item.responses[place]}]


def _ids(items: Sequence[Item]) -> list[str]:
    """The ids as upstream has them: without the subset that ours may have before them."""
    return [item.id.removeprefix(f"{item.group}/") for item in items]


def _numbers(names: list[str]) -> list[int] | list[str]:
    """RewardBench 1 has numbers for ids; what cannot be one stays as it is."""
    if all(name.isascii() and name.isdecimal() and str(int(name)) == name for name in names):
        return [int(name) for name in names]
    return names
