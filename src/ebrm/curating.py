"""curate_file: steps of curation on a file, its rows out again as pairs that a fit reads, and a report."""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ebrm.backbone import BackboneConfig, load_backbone
from ebrm.curate import (
    CurateConfig,
    adaptive_margin,
    best_worst_pairs,
    consensus,
    dual_consistency,
    filter_conflicts,
    flip_weakest,
    hard_subset,
    preference_strength,
    soften_labels,
)
from ebrm.data import (
    EXAMPLES,
    BadRow,
    Layout,
    PreferenceConfig,
    RowProblem,
    TextConfig,
    as_list,
    count_kinds,
    find_layout,
    load_preferences,
    message_words,
    prompt_id,
    read_rows,
)
from ebrm.errors import ConfigError, DataError, setting
from ebrm.features import Features, extract_features, open_features
from ebrm.groups import Groups
from ebrm.pairs import Done, PreferencePairs
from ebrm.scoring import find_shape, write_rows
from ebrm.utils.files import write_json, write_text
from ebrm.utils.outputs import results_folder

logger = logging.getLogger(__name__)

Format = Literal["jsonl", "csv", "parquet"]
Row = dict[str, Any]

#: Columns of the loss that are written, by the pairs' column, with the value that goes without saying.
_OF_LOSS = {"label": ("soft_label", 1.0), "weight": ("pair_weight", 1.0), "margin": ("reward_margin", 0.0)}
_SIDE = re.compile(r"(?<![A-Za-z])(chosen|rejected)(?![A-Za-z])")
_WIDTH = 72
_OF_PROMPT = ("prompt", "input", "system", "tools")


@dataclass
class _Given:
    """What is curated: pairs over items, the items' rewards, and a row for each pair.

    Attributes:
        pairs: over items; `origin` counts the rows.
        rewards: by name, of all items [n]; the first is the one that steps with a single reward take.
        rows: a row of the output for each pair, as it is unless a step changes it.
        sides: the columns of chosen and rejected in it.
        prompt: the columns that the prompt is made of, ours to theirs.
        texts: prompt, chosen and rejected of each pair in words, for examples.
        counts: rows, pairs and ties that were read, and rows left out by the reason.
    """

    pairs: PreferencePairs
    rewards: dict[str, Tensor]
    rows: list[Row]
    sides: tuple[str, str]
    prompt: dict[str, str]
    texts: list[tuple[str, str, str]]
    counts: dict[str, Any]
    skipped: dict[str, int] = field(default_factory=dict)


def curate_file(
    source: str | Path, out: str | Path, config: CurateConfig, data: PreferenceConfig | None = None, *,
    features: Features | str | Path | None = None, backbone: BackboneConfig | None = None,
    text: TextConfig | None = None, format: Format = "jsonl", overwrite: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Apply steps of :mod:`ebrm.curate` to a file and write its rows as preference pairs, with a report.

    In the folder `out`: `pairs.jsonl` (or .csv, .parquet), which `ebrm.fit` and `load_preferences` read; `report.txt`
    and `results.json`, what each step did with examples; `disputed.*`, the pairs that dual-consistency hands back. Rows
    keep all their columns. Where sides are exchanged, so are all columns whose names differ by chosen and rejected
    alone. Labels, weights and margins are the columns `soft_label`, `pair_weight` and `reward_margin`, there where one
    is not 1, 1 or 0.

    Args:
        source: rows of pairs as for :func:`ebrm.load_preferences`, with one pair a row; for the step best-worst rows of
            prompt and response, or prompt and responses, as for :func:`ebrm.score_file`.
        out: the folder.
        config: steps and their numbers.
        data: columns, labels, and what becomes of rows that cannot be used or have no reward.
        features: of these pairs by a reward model; their base rewards are the first reward.
        backbone: the reward model to read the pairs by, if there are no features; they are kept in `out/features`.
        text: its text rule.
        format: of the rows.
        overwrite: replace files in `out` that this did not write.

    Returns:
        `pairs_read`, `pairs` (written), `skipped` (rows left out, by the reason), `rewards` (their names), `steps`
        (each step's counts, sentence and examples), `columns` (what a fit has to be told of columns' names).

    Raises:
        ConfigError: settings that contradict each other. DataError: rows that cannot be used, no pair left, or `out`
            holds something else. What features and reward models raise.
    """
    data = data or PreferenceConfig()
    if features is not None and backbone is not None:
        raise ConfigError(
            "`features` and `backbone` are both given; rewards of one reward model come from one of them."
        )
    makes = config.steps[0] == "best-worst"
    if makes and features is not None:
        raise ConfigError(
            "`features` holds rewards of pairs; the step best-worst takes those of responses. Leave it out."
        )
    if features is None and backbone is None and not config.column_rewards:
        raise ConfigError(
            "No rewards are given: name `features`, a `backbone`, or columns of the file (`column_rewards`)."
        )
    rewards = len(config.column_rewards) + (features is not None) + (backbone is not None)
    if "dual-consistency" in config.steps:
        _refuse_not_two(rewards)
    out = Path(out)
    name = f"pairs.{format}"
    reads: dict[str, Any] = {"the data": source, "`features`": None if isinstance(features, Features) else features}
    reads["`backbone`"] = None if backbone is None else backbone.backbone
    with results_folder(out, "curate", [name, "report.txt", "results.json"], reads, overwrite) as new:
        read = _read_responses if makes else _read_pairs
        given = read(source, config, data, features, _Reader(backbone, text, out, data))
        steps, disputed = [], given.pairs.select(slice(0))
        pairs = given.pairs
        for step in config.steps:
            before = pairs
            pairs, report, rest = _STEPS[step](pairs, list(given.rewards.values()), config)
            disputed = rest if rest is not None else disputed
            steps.append({**report, "step": step, "examples": _examples(given, before, pairs)})
            logger.info("%s", report["sentence"])
            if not len(pairs):
                raise DataError(f"No pair is left after {step}: {report['sentence']} Choose other steps or numbers.")
        columns = _written_columns(given, data)
        _write(new / name, format, given, pairs, data)
        if len(disputed):
            _write(new / f"disputed.{format}", format, given, disputed, data)
        summary = {
            **given.counts, "pairs": len(pairs), "disputed": len(disputed), "skipped": given.skipped,
            "rewards": list(given.rewards), "steps": steps, "columns": columns,
        }  # fmt: skip
        write_text(new / "report.txt", _report(str(source), summary))
        write_json(new / "results.json", {"source": str(source), **summary})
    return summary


# ---- reading ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Reader:
    """How the reward model reads, if one is given."""

    backbone: BackboneConfig | None
    text: TextConfig | None
    out: Path
    data: PreferenceConfig


def _read_pairs(source: Any, config: CurateConfig, data: PreferenceConfig, features: Any, reader: _Reader) -> _Given:
    preferences = load_preferences(source, data)
    wanted = Counter(pair.row for pair in preferences)
    where, most = wanted.most_common(1)[0]
    if most > 1:
        raise DataError(
            f"{where} is where {most} pairs were read, and a curated file has one pair a row. Write a row for each, "
            "and give files names of their own; of scored responses the step best-worst makes pairs."
        )
    found = {where: row for where, row in read_rows(source, data) if where in wanted}
    rows = [found[pair.row] for pair in preferences]
    layout = find_layout(rows[0], data.columns, data.label_map)
    if layout is None or layout.kind not in ("pair", "labeled", "scored") or "label_b" in layout.fields:
        raise DataError(
            f"{source} is read as {layout or preferences.report.layout}, whose rows cannot be written as pairs. Give "
            "rows of chosen and rejected, or of two replies and a label."
        )
    places = range(0, 2 * len(rows), 2)
    columns: dict[str, Any] = {
        name: [getattr(pair, name) for pair in preferences] for name in ("source", "category", "split", "strength")
    }
    for name, (ours, usual) in _OF_LOSS.items():
        columns[name] = [usual if (value := getattr(pair, ours)) is None else value for pair in preferences]
    pairs = PreferencePairs.of(
        list(places), [place + 1 for place in places], prompt_id=[pair.prompt_id for pair in preferences],
        where=[pair.row for pair in preferences], **columns,
    )  # fmt: skip
    rewards: dict[str, Tensor] = {}
    if reader.backbone is not None:
        features = extract_features(
            load_backbone(reader.backbone, reader.text), preferences, reader.out / "features", bad_rows=data.bad_rows
        )
    if features is not None:
        opened = features if isinstance(features, Features) else open_features(features)
        rewards["base reward"] = _of_features(opened, pairs)
    for name in config.column_rewards:
        rewards[name] = _of_columns(name, rows, [str(where) for where in pairs.where], str(source))
    texts = [
        (message_words(pair.prompt[-1]), message_words(pair.chosen), message_words(pair.rejected))
        for pair in preferences
    ]
    sides = (layout.fields["chosen"], layout.fields["rejected"]) if layout.kind == "pair" else ("chosen", "rejected")
    if layout.kind != "pair":
        rows = [_with_sides(row, pair.chosen, layout, pair.row) for row, pair in zip(rows, preferences, strict=True)]
    prompt = {ours: theirs for ours, theirs in layout.fields.items() if ours in _OF_PROMPT}
    counts = {"rows_read": preferences.report.read, "pairs_read": len(rows), "ties": preferences.report.ties}
    skipped = dict(preferences.report.skipped)
    return _with_rewards(_Given(pairs, rewards, rows, sides, prompt, texts, counts, skipped), data, str(source))


def _with_sides(row: Row, chosen: Any, layout: Layout, where: str) -> Row:
    """A row of two replies and what says which is better, with the columns chosen and rejected put beside them."""
    if taken := {"chosen", "rejected"} & row.keys():
        raise DataError(f"{where} has a column {min(taken)}, which would be written. Name that column otherwise.")
    cells = [row[layout.fields[side]] for side in "ab"]
    a, b = (_likeness(cell, message_words(chosen)) for cell in cells)
    if a == b:
        raise DataError(
            f"{where}: which of {layout.fields['a']} and {layout.fields['b']} is the preferred reply is known by its "
            "label, but its text is not found in them. Give rows of chosen and rejected."
        )
    return {**row, "chosen": cells[a < b], "rejected": cells[a > b]}


def _likeness(cell: Any, reply: str) -> int:
    """2 where a cell is the reply, 1 where it ends with it, else 0."""
    messages = as_list(cell)
    if messages and isinstance(messages[-1], Mapping):
        cell = message_words(dict(messages[-1]))
    return 2 if cell == reply else int(isinstance(cell, str) and cell.rstrip().endswith(reply.rstrip()))


def _of_features(features: Features, pairs: PreferencePairs) -> Tensor:
    """Base rewards of the items of pairs [n], NaN for pairs that the features do not have."""
    known = {
        key: place
        for place, key in enumerate(zip(features.pairs.where, features.pairs.prompt_id.tolist(), strict=True))
    }
    reward = torch.full((2 * len(pairs),), math.nan, dtype=torch.float64)
    for place, key in enumerate(zip(pairs.where, pairs.prompt_id.tolist(), strict=True)):
        if (there := known.get(key)) is not None:
            reward[2 * place] = features.reward[features.pairs.chosen[there]]
            reward[2 * place + 1] = features.reward[features.pairs.rejected[there]]
    if len(pairs) and bool(reward.isnan().all()):
        raise DataError(
            "The features have none of these pairs: they are found again by file name, row and prompt. Make features "
            "of the same file (`ebrm features`), or name a reward model instead (`backbone`)."
        )
    return reward


def _of_columns(name: str, rows: Sequence[Row], where: Sequence[str], source: str) -> Tensor:
    """Rewards of both sides in columns [2p], NaN where there is none."""
    columns = [
        name.replace("{side}", side) if "{side}" in name else f"{side}_{name}" for side in ("chosen", "rejected")
    ]
    for column in columns:
        if not any(column in row for row in rows):
            raise DataError(
                f"`column_rewards` has {name}, and {source} has no column {column}. Its columns: "
                f"{', '.join(map(str, rows[0]))}."
            )
    values = [_number(row.get(column), column, at) for row, at in zip(rows, where, strict=True) for column in columns]
    return torch.tensor(values, dtype=torch.float64)


def _number(value: Any, column: str, where: str) -> float:
    if value is None or value == "":
        return math.nan
    try:
        number = float(value) if not isinstance(value, bool) else None
    except (TypeError, ValueError):
        number = None
    if number is None or math.isinf(number):
        raise DataError(f"{where}, {column}: {str(value)[:_WIDTH]!r} is no finite number; expected a reward.")
    return number


def _with_rewards(given: _Given, data: PreferenceConfig, source: str) -> _Given:
    """The same without pairs that lack a reward; DataError for these unless bad rows are skipped."""
    table = torch.stack(list(given.rewards.values()))
    lacking = table.isnan().any(0)
    bad = lacking[given.pairs.chosen] | lacking[given.pairs.rejected]
    if bool(bad.any()):
        places = bad.nonzero().flatten().tolist()
        if data.bad_rows == "stop" or len(places) == len(given.pairs):
            listed = ", ".join(str(given.pairs.where[place]) for place in places[:EXAMPLES])
            raise DataError(
                f"{source}: {len(places):,} of {len(given.pairs):,} pairs have no reward (the first: {listed}). Score "
                f"them, or leave them out with {setting('bad_rows', 'skip')}."
            )
        given.pairs = given.pairs.select(~bad)
        given.skipped["without a reward"] = len(places)
    given.rewards = {name: reward.nan_to_num(0) for name, reward in given.rewards.items()}
    return given


def _read_responses(source: Any, config: CurateConfig, data: PreferenceConfig, _: Any, reader: _Reader) -> _Given:
    """Responses and their rewards, as the one pair a prompt that best-worst makes of them."""
    listed = list(read_rows(source, data))
    if not listed:
        raise DataError(f"{source} holds no rows. Check that it is the file meant and is complete.")
    seen: Row = {}
    for _, row in listed:
        seen.update({name: value for name, value in row.items() if seen.get(name) is None})
    shape = find_shape(seen, data.columns, str(source), data.label_map)
    if shape.kind not in ("response", "responses"):
        raise DataError(
            f"{source} holds no single responses. The step best-worst takes rows of prompt and response, or of "
            "prompt and a list of responses; leave it out for pairs."
        )
    cells: list[Row] = []  # the columns of each response
    sides: list[Any] = []
    places: list[str] = []
    bad: list[BadRow] = []
    skipped: dict[str, int] = {}
    for where, row in listed:
        try:
            for number, side in enumerate(shape.sides(row, where)):
                if isinstance(side, RowProblem):
                    raise side
                cells.append(_of_response(row, shape.columns[shape.kind], number, shape.kind == "responses"))
                sides.append(side)
                places.append(where)
        except RowProblem as problem:
            bad.append(problem.at(where))
            skipped[problem.kind] = skipped.get(problem.kind, 0) + 1
    if bad and (data.bad_rows == "stop" or not sides):
        raise DataError(_bad_rows(str(source), bad, skipped, len(listed)))
    rewards: dict[str, Tensor] = {}
    if reader.backbone is not None:
        model = load_backbone(reader.backbone, reader.text)
        reading, _errors = model.read_texts([s.asked for s in sides], [s.response for s in sides], on_error="nan")
        rewards["base reward"] = reading.reward.double()
    for name in config.column_rewards:
        if not any(name in cell for cell in cells):
            raise DataError(f"`column_rewards` has {name}, and {source} has no such column.")
        values = [_number(cell.get(name), name, where) for cell, where in zip(cells, places, strict=True)]
        rewards[name] = torch.tensor(values, dtype=torch.float64)
    known = ~torch.stack(list(rewards.values())).isnan().any(0)
    if not bool(known.all()):
        lacking = int((~known).sum())
        if data.bad_rows == "stop" or not bool(known.any()):
            raise DataError(
                f"{source}: {lacking:,} of {len(sides):,} responses have no reward (the first: "
                f"{places[int((~known).nonzero()[0])]}). Score them, or leave them out with "
                f"{setting('bad_rows', 'skip')}."
            )
        skipped["responses without a reward"] = lacking
    keep = known.nonzero().flatten().tolist()
    rewards = {name: reward[known] for name, reward in rewards.items()}
    cells, sides, places = [cells[k] for k in keep], [sides[k] for k in keep], [places[k] for k in keep]
    ids = [prompt_id(side.prompt, side.tools) for side in sides]
    first, *evidence = rewards.values()
    made, _report = best_worst_pairs(
        first, Groups.of(ids), torch.stack(evidence) if evidence else None, least_gap=config.least_gap
    )
    if not len(made):
        raise DataError(f"{source}: no prompt has two responses whose rewards lie apart, so that there is no pair.")
    both = list(zip(made.chosen.tolist(), made.rejected.tolist(), strict=True))
    pairs = PreferencePairs.of(
        made.chosen, made.rejected, prompt_id=[ids[high] for high, _ in both], where=[places[high] for high, _ in both],
        step="best and worst",
    )  # fmt: skip
    reply = shape.columns[shape.kind]
    rows = [_pair_row(cells[high], cells[low], reply) for high, low in both]
    texts = [
        (message_words(sides[high].prompt[-1]), message_words(sides[high].response), message_words(sides[low].response))
        for high, low in both
    ]
    counts = {"rows_read": len(listed), "pairs_read": len(pairs), "ties": 0, "responses": len(sides)}
    counts["prompts"] = len(set(ids))
    prompt = {ours: theirs for ours, theirs in shape.columns.items() if ours in _OF_PROMPT}
    return _Given(pairs, rewards, rows, ("chosen", "rejected"), prompt, texts, counts, skipped)


def _bad_rows(source: str, bad: Sequence[BadRow], kinds: dict[str, int], count: int) -> str:
    listed = "".join(f"\n  {row}" for row in bad[:EXAMPLES])
    return (
        f"{source}: {len(bad):,} of {count:,} rows cannot be used ({count_kinds(kinds)}). The first (row, field: what "
        f"is wrong, value):{listed}\nMend them, or leave them out with {setting('bad_rows', 'skip')}."
    )


def _of_response(row: Row, reply: str, number: int, lists: bool) -> Row:
    """The columns of one response: of a row with several, the entries of its lists that are as long."""
    if not lists:
        return row
    size = len(as_list(row[reply]) or [])
    found = {}
    for name, value in row.items():
        entries = as_list(value)
        found[name] = entries[number] if entries is not None and len(entries) == size else value
    return found


def _pair_row(best: Row, worst: Row, reply: str) -> Row:
    """A row of the best and the worst response: what differs is under chosen_ and rejected_."""
    row: Row = {}
    for name in dict.fromkeys([*best, *worst]):
        if name == reply:
            row |= {"chosen": best[name], "rejected": worst[name]}
        elif best.get(name) == worst.get(name):
            row[name] = best.get(name)
        else:
            row |= {f"chosen_{name}": best.get(name), f"rejected_{name}": worst.get(name)}
    return row


# ---- steps --------------------------------------------------------------------------------------------------------

Stepped = tuple[PreferencePairs, dict[str, Any], PreferencePairs | None]


def _told(found: tuple[PreferencePairs, Any], rest: PreferencePairs | None = None) -> Stepped:
    pairs, report = found
    return pairs, {**report.to_dict(), "sentence": report.summary()}, rest


def _filter(pairs: PreferencePairs, rewards: Sequence[Tensor], _: CurateConfig) -> Stepped:
    kept, report = filter_conflicts(pairs, rewards[0])
    counts = {"given": len(pairs), "kept": len(kept), "dropped": len(pairs) - len(kept), "flipped": 0, "relabeled": 0}
    return kept, {**counts, "conflicts": report.to_dict(), "sentence": report.summary()}, None


def _strength(pairs: PreferencePairs, rewards: Sequence[Tensor]) -> Any:
    return preference_strength(pairs.difference(torch.stack(list(rewards))))


def _flip(pairs: PreferencePairs, rewards: Sequence[Tensor], config: CurateConfig) -> Stepped:
    below = math.inf if config.flip_below is None else config.flip_below
    return _told(flip_weakest(pairs, _strength(pairs, rewards), config.flip_fraction, below))


def _soften(pairs: PreferencePairs, rewards: Sequence[Tensor], config: CurateConfig) -> Stepped:
    smoothing = config.soft_smoothing or 0.0
    return _told(soften_labels(pairs, _strength(pairs, rewards), smoothing, config.soft_weak, config.soft_strongest))


def _consensus(pairs: PreferencePairs, rewards: Sequence[Tensor], config: CurateConfig) -> Stepped:
    probability = pairs.difference(torch.stack(list(rewards))).sigmoid()
    return _told(consensus(pairs, probability, config.consensus_confidence, config.consensus_soft))


def _best_worst(pairs: PreferencePairs, rewards: Sequence[Tensor], _: CurateConfig) -> Stepped:
    return _told((pairs, pairs.report(0)))  # made of the responses as they were read


def _hard(pairs: PreferencePairs, rewards: Sequence[Tensor], config: CurateConfig) -> Stepped:
    prompts = Groups.of(pairs.prompt_id.tolist())
    hard = torch.zeros(prompts.count, dtype=torch.bool)
    hard[hard_subset(prompts.mean(rewards[0][pairs.chosen]), config.hard_count or 0)] = True
    return _told(pairs.after("hard subset", keep=hard[prompts.index], numbers={"prompts": float(hard.sum())}))


def _refuse_not_two(count: int) -> None:
    if count != 2:
        raise ConfigError(
            f"`steps` has dual-consistency, which takes the rewards of two models, and there are {count}. Name two "
            "columns (`column_rewards`), or one beside a reward model."
        )


def _dual(pairs: PreferencePairs, rewards: Sequence[Tensor], config: CurateConfig) -> Stepped:
    _refuse_not_two(len(rewards))
    best, gold = (pairs.difference(reward).sigmoid() for reward in rewards)
    agreed, disputed, report = dual_consistency(pairs, best, gold, config.dual_threshold)
    return _told((agreed, report), disputed)


def _margin(pairs: PreferencePairs, rewards: Sequence[Tensor], _: CurateConfig) -> Stepped:
    return _told(adaptive_margin(pairs, _strength(pairs, rewards)))


_STEPS: Mapping[str, Callable[[PreferencePairs, Sequence[Tensor], CurateConfig], Stepped]] = {
    "filter-conflicts": _filter, "flip": _flip, "soft-labels": _soften, "consensus": _consensus,
    "best-worst": _best_worst, "hard-subset": _hard, "dual-consistency": _dual, "margin": _margin,
}  # fmt: skip


# ---- writing ------------------------------------------------------------------------------------------------------


def _write(path: Path, format: str, given: _Given, pairs: PreferencePairs, data: PreferenceConfig) -> None:
    flipped = (pairs.done & int(Done.FLIPPED) > 0).sum(1) % 2 == 1
    changed = {
        name: data.columns.get(ours) or ours
        for name, (ours, usual) in _OF_LOSS.items()
        if bool((getattr(pairs, name) != usual).any())
    }
    rows = []
    for place, origin in enumerate(pairs.origin.tolist()):
        row = _turned(given.rows[origin], given.sides) if bool(flipped[place]) else dict(given.rows[origin])
        row |= {column: float(getattr(pairs, name)[place]) for name, column in changed.items()}
        rows.append(row)
    write_rows(path, format, rows, [str(where) for where in pairs.where])


def _turned(row: Row, sides: tuple[str, str]) -> Row:
    """A row with its sides exchanged, and with them all columns whose names differ by chosen and rejected alone."""
    other = {sides[0]: sides[1], sides[1]: sides[0]}
    for name in row:
        partner = _SIDE.sub(lambda found: "rejected" if found[1] == "chosen" else "chosen", str(name))
        if partner != name and partner in row and name not in other:
            other[name] = partner
    turned = {name: row[other.get(name, name)] for name in row}
    p = row.get("p_chosen")
    return turned | ({"p_chosen": 1 - p} if isinstance(p, float) else {})


def _written_columns(given: _Given, data: PreferenceConfig) -> dict[str, str]:
    """What a fit has to be told of the names of columns."""
    kept = {
        ours: theirs
        for ours, theirs in data.columns.items()
        if ours not in ("a", "b", "label", "response", "responses")
    }
    layout = find_layout(given.rows[0], kept, {})
    found = {} if layout is None or layout.kind != "pair" else layout.fields
    meant = {**given.prompt, "chosen": given.sides[0], "rejected": given.sides[1]}
    return kept | {ours: theirs for ours, theirs in meant.items() if found.get(ours) != theirs}


def _examples(given: _Given, before: PreferencePairs, after: PreferencePairs) -> list[dict[str, Any]]:
    """The first pairs that a step dropped, flipped or changed otherwise."""
    left = {origin: place for place, origin in enumerate(after.origin.tolist())}
    stepped = after.done.shape[1] > before.done.shape[1]
    found: dict[str, list[dict[str, Any]]] = {}
    for place, origin in enumerate(before.origin.tolist()):
        now = left.get(origin)
        flags = int(after.done[now, -1]) if now is not None and stepped else 0
        what = "dropped" if now is None else next((word for flag, word in _WORDS.items() if flags & int(flag)), "")
        if what and len(found.setdefault(what, [])) < EXAMPLES:
            prompt, chosen, rejected = (_short(part) for part in given.texts[origin])
            found[what].append({
                "what": what, "where": before.where[place], "prompt": prompt, "chosen": chosen, "rejected": rejected,
                "difference": [float(d) for d in before.select([place]).difference(_table(given))[:, 0]],
                **({name: float(getattr(after, name)[now]) for name in _OF_LOSS} if now is not None else {}),
            })  # fmt: skip
    return [one for listed in found.values() for one in listed]


_WORDS = {Done.FLIPPED: "flipped", Done.LABELED: "relabeled", Done.WEIGHTED: "reweighted", Done.MARGIN: "new margin"}


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _WIDTH else line[: _WIDTH - 1] + "…"


def _table(given: _Given) -> Tensor:
    return torch.stack(list(given.rewards.values()))


def _report(source: str, summary: Mapping[str, Any]) -> str:
    """The report in words."""
    lines = [f"{source}: {summary['pairs']:,} pairs written of {summary['pairs_read']:,} read."]
    lines.append(f"Rewards: {', '.join(summary['rewards'])}.")
    if summary["skipped"]:
        lines.append(f"Left out: {count_kinds(summary['skipped'])}.")
    if summary["ties"]:
        lines.append(f"Ties left out: {summary['ties']:,}.")
    for step in summary["steps"]:
        lines += ["", f"{step['step']}: {step['sentence']}"]
        for one in step["examples"]:
            by = ", ".join(f"{value:+.3g}" for value in one["difference"])
            lines.append(f"  {one['what']}: {one['where']} (difference of rewards {by})")
            lines += [f"    {name}: {one[name]}" for name in ("prompt", "chosen", "rejected")]
    if summary["disputed"]:
        lines += ["", f"Disputed, in a file of their own: {summary['disputed']:,} pairs."]
    return "\n".join(lines) + "\n"
