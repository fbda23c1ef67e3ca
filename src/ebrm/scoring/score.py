"""score_file: refined rewards for every row of a file or of a features folder, streaming and resumable."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ebrm.backbone import DROPPED, Reading
from ebrm.data import BadRow, prompt_id
from ebrm.errors import DataError
from ebrm.features import MANIFEST, is_features, open_features
from ebrm.model import EnergyRewardModel
from ebrm.scoring.columns import Side
from ebrm.scoring.config import ScoreConfig
from ebrm.scoring.files import Chunk, Row, file_kind, read_chunks
from ebrm.scoring.rows import (
    DROPPED_ROW,
    NOT_FINITE,
    UNREADABLE,
    Rows,
    Texts,
    numbers_in,
    open_rows,
    place_for,
    reason,
    score_rows,
    short,
)
from ebrm.utils.files import sha256_json
from ebrm.utils.locks import lock_beside, locked

logger = logging.getLogger(__name__)

#: Rows a chunk: the unit of work that a killed run may have to redo. Fixed, so that a resumed run forms equal batches.
CHUNK_ROWS = 512

#: Columns added for each text, in this order.
MEASURES = ("reward", "base_reward", "std", "interval_low", "interval_high", "log_density", "delta")
# Those whose means are in the summary.
_AVERAGED = ("reward", "base_reward", "std", "delta")

#: Texts read and refined at a time.
_TEXTS = 2 * CHUNK_ROWS


@dataclass(frozen=True)
class _How:
    """How texts are read, and which rows have prompts that the model was fitted on."""

    read: Callable[[EnergyRewardModel, Sequence[Any]], tuple[Reading, Sequence[str | None]]]
    fitted_on: Callable[[EnergyRewardModel, Chunk], Sequence[bool | None]]


def score_file(
    model: EnergyRewardModel | str | Path, source: str | Path, out: str | Path,
    config: ScoreConfig = ScoreConfig(), *,  # noqa: B008 - frozen
    backbone: Mapping[str, Any] | None = None, on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write every row of a file with its refined reward, base reward and uncertainty, in the base RM's units.

    Rows keep their columns and order; added are `reward`, `base_reward`, `std`, `interval_low`, `interval_high`,
    `log_density`, `delta`, `fitted_on` and `error`; of pairs for each side (`chosen_reward`, …), `p_chosen`, P(chosen
    better), calibrated where the model has a calibration, and `confidence`, max(p_chosen, 1 - p_chosen). Of a row with
    a list `responses` the numbers are lists, one a response and in its order. An empty response is scored like any
    other. `fitted_on` says whether the model was fitted on the row's prompt, None where it does not know. A run that
    was stopped is continued and ends with the same bytes; a complete one gives its summary at once.

    Args:
        model: the model, or its folder or Hub name.
        source: rows of prompt and response, of prompt and a list of responses, messages or pairs (.jsonl, .json,
            .csv, .tsv, .parquet), or a features folder, whose pairs need no reward model.
        out: file to write, .jsonl, .csv or .parquet.
        config: columns, and what becomes of rows that cannot be scored.
        backbone: fields of `BackboneConfig` by which the model's RM is loaded, and `truncation` and `rendered` of
            `TextConfig`; others as saved. Under truncation="drop" a row that is too long has empty rewards and the
            reason; where prompts are cut, a column `truncated` says by how many tokens.
        on_progress: called with (rows done, rows) as the work goes on.

    Returns:
        `rows`, `scored` and `errors` (rows with something that could not be scored), `texts` and `empty` (responses
        with a reward, and empty ones), `mean_reward`, `mean_base_reward`, `mean_std`, `mean_abs_delta` (None for
        none); of pairs also `pairs`, `accuracy`, `base_accuracy` (share with chosen above rejected; None for none),
        `mean_p_chosen` and `mean_confidence`, of the pairs with prompts that the model was not fitted on. `fitted_on`:
        number of rows with prompts that it was fitted on, None where it does not know; of such pairs `training_pairs`,
        `training_accuracy` and `training_base_accuracy`, of such texts the same means as `training_mean_reward`, …,
        which are in no other number.

    Raises:
        DataError: rows that cannot be scored (`bad_rows="stop"`), a bad source, names that collide, values that
            Parquet cannot hold, or `out` taken, being written by another run, or one of the files that are read.
        ConfigError, FeaturesError, ModelError, BackboneError: `out`'s ending, other features, model or RM not loadable.
    """
    source, out = Path(source), Path(out)
    kind = file_kind(out)
    read = {"what is scored": source, "the model": None if isinstance(model, EnergyRewardModel) else model}
    read |= {f"`{name}`": (backbone or {}).get(name) for name in ("backbone", "base")}
    out = place_for(out, read)
    if not isinstance(model, EnergyRewardModel):
        model = EnergyRewardModel.from_pretrained(model)
    with locked(lock_beside(out), str(out)):
        return _score_file(model, source, out, kind, config, backbone, on_progress)


def _score_file(
    model: EnergyRewardModel, source: Path, out: Path, kind: str, config: ScoreConfig,
    backbone: Mapping[str, Any] | None, on_progress: Callable[[int, int], None] | None,
) -> dict[str, Any]:  # fmt: skip
    # The rows first: a mistake in them should not wait for a reward model to load.
    if (source / MANIFEST).is_file():
        opened, how = _open_pairs(source, model)
    else:
        opened = open_rows(source, config, kind, CHUNK_ROWS)
        how = _How(_read_texts, lambda model, chunk: _texts_fitted_on(opened, model, chunk))
    logger.info("%s: %s rows, %s.", opened.name, f"{opened.count:,}", opened.contents)
    truncation = (backbone or {}).get("truncation") or (model.record.text_rule or {}).get("truncation")
    cuts = str(truncation).startswith("prompt_left") and not is_features(source)
    reader: list[EnergyRewardModel] = []  # once it is needed

    def score(chunk: Chunk) -> tuple[list[Row], list[BadRow]]:
        if not reader:
            given = backbone and model.record.text_rule is not None
            reader.append(model.with_backbone(**backbone) if given and backbone else model)
        rows, bad = _score(reader[0], opened, how, chunk, config.prefix, cuts)
        return rows, [row for row in bad if row.kind != DROPPED_ROW]

    def summarize() -> dict[str, Any]:
        summary = _summarize(out, opened, config.prefix, cuts)
        if truncation is not None and not is_features(source):
            summary["truncation"] = truncation
        return summary

    job = {
        "model": model.fingerprint(), "settings": sha256_json(dict(backbone or {})),
        "prompts": None if model.prompts is None else sha256_json(model.prompts.fingerprints.tolist()),
    }  # fmt: skip
    shown = vars(model.record.head.inference) | dict(backbone or {})
    added = _added_names(opened.prefixes, config.prefix, cuts)
    return score_rows(
        opened, out, kind, config, added, job, shown, "model", CHUNK_ROWS, score=score, summarize=summarize,
        on_progress=on_progress,
    )  # fmt: skip


def _open_pairs(path: Path, model: EnergyRewardModel) -> tuple[Rows, _How]:
    """The pairs of a features folder: one row a pair, its texts known by their item numbers."""
    features = open_features(path)
    features.check(model.record.backbone, model.record.text_rule)
    pairs = features.pairs
    if not len(pairs):
        raise DataError(f"{path} holds no pairs to score.")
    columns = {
        "where": pairs.where, "prompt_id": pairs.prompt_id, "source": pairs.source, "category": pairs.category,
        "split": pairs.split, "chosen_item": pairs.chosen.numpy(), "rejected_item": pairs.rejected.numpy(),
    }  # fmt: skip

    fitted = model.fitted_on(pairs.prompt_id)  # of all at once: ids are of one kind

    def chunks() -> Iterator[Chunk]:
        for first in range(0, len(pairs), CHUNK_ROWS):
            block = range(first, min(first + CHUNK_ROWS, len(pairs)))
            values = (column[block.start : block.stop].tolist() for column in columns.values())
            rows = [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)]
            yield Chunk(first, rows, [f"pair {i}" for i in block])

    def texts(chunk: Chunk) -> Texts:
        items = [row[name] for row in chunk.rows for name in ("chosen_item", "rejected_item")]
        n = len(chunk.rows)
        return Texts(items, [k // 2 for k in range(2 * n)], [0, 1] * n, [2] * n, [None] * n)

    def read(_: EnergyRewardModel, items: Sequence[int]) -> tuple[Reading, Sequence[str | None]]:
        index = torch.tensor(items)
        return Reading(features.embedding(index), features.reward[index]), [None] * len(items)

    rows = Rows(
        str(path), "the pairs of a features folder", sha256_json(features.manifest["files"]), len(pairs),
        tuple(columns), ("chosen_", "rejected_"), False, chunks, texts, ("chosen", "rejected").__getitem__,
    )  # fmt: skip
    return rows, _How(
        read,
        lambda _, chunk: (
            [None] * len(chunk.rows) if fitted is None else fitted[chunk.first : chunk.first + len(chunk.rows)].tolist()
        ),
    )


def _texts_fitted_on(rows: Rows, model: EnergyRewardModel, chunk: Chunk) -> list[bool | None]:
    """Whether the model was fitted on the prompt of each row; None for rows that cannot be read too."""
    texts = rows.texts(chunk)
    ids = {row: prompt_id(side.prompt, side.tools) for row, side in zip(texts.row, texts.what, strict=True)}
    found = model.fitted_on(list(ids.values()))
    known = {} if found is None else dict(zip(ids, found.tolist(), strict=True))
    return [known.get(place) for place in range(len(chunk.rows))]


def _read_texts(model: EnergyRewardModel, sides: Sequence[Side]) -> tuple[Reading, Sequence[str | None]]:
    """Embeddings and base rewards of texts [t], NaN where they cannot be read, and why."""
    return model.backbone.read_texts([side.asked for side in sides], [side.response for side in sides], on_error="nan")


def _measures(cuts: bool) -> tuple[str, ...]:
    """The columns of a text; `truncated` where prompts may be cut."""
    return (*MEASURES, "truncated") if cuts else MEASURES


def _score(
    model: EnergyRewardModel, source: Rows, how: _How, chunk: Chunk, prefix: str, cuts: bool
) -> tuple[list[Row], list[BadRow]]:
    """The added columns of a chunk, one row a row, `error` last; and its rows with something that has no reward."""
    texts = source.texts(chunk)
    problems, pairs = list(texts.problems), source.pairs
    measured: list[dict[str, Any] | None] = []
    wins: dict[int, float] = {}
    for start in range(0, len(texts.what), _TEXTS):  # an even number, so that the sides of a pair stay together
        block = slice(start, start + _TEXTS)
        rows, numbers = texts.row[block], texts.number[block]
        reading, unread = how.read(model, texts.what[block])
        refined = model.refine(reading.embedding, reading.reward, on_error="nan")
        values = refined.to_rows()
        for k, (row, number) in enumerate(zip(rows, numbers, strict=True)):
            error, kind = unread[k], UNREADABLE
            if error is not None and DROPPED in error:
                kind = DROPPED_ROW
            if error is None:
                error, kind = refined.errors[k], NOT_FINITE
            if error is not None and problems[row] is None:
                problems[row] = BadRow(chunk.where[row], source.side(number), error, kind)
            cut = {"truncated": reading.truncated[k]} if cuts else {}
            measured.append(values[k] | cut if error is None else None)
        if pairs:
            good = torch.tensor([problems[row] is None for row in rows[::2]])
            embedding, reward = reading.embedding.unflatten(0, (-1, 2))[good], reading.reward.reshape(-1, 2)[good]
            found = model.prefer_rows(tuple(embedding.unbind(1)), tuple(reward.unbind(1)))  # type: ignore[arg-type]
            wins |= zip((row for row in rows[::2] if problems[row] is None), found.tolist(), strict=True)
    fitted = how.fitted_on(model, chunk)
    by_row: list[dict[int, dict[str, Any]]] = [{} for _ in chunk.rows]
    for row, number, one in zip(texts.row, texts.number, measured, strict=True):
        if one is not None:
            by_row[row][number] = one
    empty: Row = dict.fromkeys(_added_names(source.prefixes, prefix, cuts))
    added = []
    for row, problem in enumerate(problems):
        given = dict(empty)
        if source.lists and texts.sizes[row]:
            of_row = [by_row[row].get(number) for number in range(texts.sizes[row])]
            given |= {
                f"{prefix}{name}": [None if one is None else short(one[name]) for one in of_row]
                for name in _measures(cuts)
            }
        elif problem is None:
            for number, side in enumerate(source.prefixes):
                given |= {f"{prefix}{side}{name}": short(by_row[row][number][name]) for name in _measures(cuts)}
            if pairs:
                p = wins[row]
                given |= {f"{prefix}p_chosen": short(p), f"{prefix}confidence": short(max(p, 1 - p))}
        given[f"{prefix}fitted_on"] = fitted[row]
        given[f"{prefix}error"] = None if problem is None else reason(problem)
        added.append(given)
    return added, [problem for problem in problems if problem is not None]


def _added_names(prefixes: Sequence[str], prefix: str, cuts: bool) -> tuple[str, ...]:
    names = [f"{prefix}{side}{name}" for side in prefixes for name in _measures(cuts)]
    pair = [f"{prefix}p_chosen", f"{prefix}confidence"] if len(prefixes) == 2 else []
    return (*names, *pair, f"{prefix}fitted_on", f"{prefix}error")


def _summarize(out: Path, source: Rows, prefix: str, cuts: bool) -> dict[str, Any]:
    """Counts and means, read back from the finished output."""
    pair = source.pairs
    sums: Counter[str] = Counter()
    for chunk in read_chunks(out, CHUNK_ROWS):
        for row in chunk.rows:
            sums["rows"] += 1
            # CSV has text for all: "True", "False" or nothing.
            known = str(row[f"{prefix}fitted_on"]) in ("True", "False")
            fitted = known and str(row[f"{prefix}fitted_on"]) == "True"
            sums["known"] += known
            sums["fitted_on"] += fitted
            error = bool(row[f"{prefix}error"])
            sums["errors"] += error
            if error and not source.lists:
                continue
            sums["cut"] += cuts and any(any(numbers_in(row[f"{prefix}{side}truncated"])) for side in source.prefixes)
            training = "training_" if fitted else ""
            for side in source.prefixes:
                numbers = {name: numbers_in(row[f"{prefix}{side}{name}"]) for name in _AVERAGED}
                sums[f"{training}texts"] += len(numbers["reward"])
                for name, values in numbers.items():
                    total = math.fsum(abs(value) if name == "delta" else value for value in values)
                    sums[f"{training}{name}"] += total  # type: ignore[assignment]
            if pair:
                for name, count in (("base_reward", "base_right"), ("reward", "right")):
                    right = float(row[f"{prefix}chosen_{name}"]) > float(row[f"{prefix}rejected_{name}"])
                    sums[f"{training}{count}"] += right
                sums[f"{training}pairs"] += 1
                for name in () if fitted else ("p_chosen", "confidence"):
                    sums[name] += float(row[f"{prefix}{name}"])  # type: ignore[assignment]
        del chunk  # before the next is read
    if sums["rows"] != source.count:
        raise AssertionError(f"{out} has {sums['rows']} rows for {source.count} rows in")

    def share(key: str, of: str) -> float | None:
        return sums[key] / sums[of] if sums[of] else None

    texts = sums["texts"] + sums["training_texts"]
    summary: dict[str, Any] = {"rows": sums["rows"], "scored": sums["rows"] - sums["errors"], "errors": sums["errors"]}
    summary |= {"texts": texts, "empty": source.empty}
    means = {f"mean_{'abs_' * (name == 'delta')}{name}": name for name in _AVERAGED}
    summary |= {mean: share(name, "texts") for mean, name in means.items()}
    summary |= {"truncated": sums["cut"]} if cuts else {}
    summary["fitted_on"] = sums["fitted_on"] if sums["known"] else None
    shares = {"base_accuracy": "base_right", "accuracy": "right", "mean_p_chosen": "p_chosen"}
    shares["mean_confidence"] = "confidence"
    if pair:
        summary |= {"pairs": sums["pairs"]} | {name: share(key, "pairs") for name, key in shares.items()}
    if sums["training_texts"]:
        summary["training_texts"] = sums["training_texts"]
        summary |= {f"training_{mean}": share(f"training_{name}", "training_texts") for mean, name in means.items()}
    if sums["training_pairs"]:
        summary["training_pairs"] = sums["training_pairs"]
        for name in ("base_accuracy", "accuracy"):
            summary[f"training_{name}"] = share(f"training_{shares[name]}", "training_pairs")
    return summary
