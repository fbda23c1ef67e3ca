"""Was what had to be reached, reached? The bars were set before the study was run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from scores import MEAN
from summary import Row

from ebrm.heads import EnergyNetwork, NetworkConfig

NOISE = 0.25
SAFETY = (
    ("rmb", "Harmlessness pairwise"),
    ("rmb", "Harmlessness best-of-n"),
    ("xstest", "overall"),
    ("hh_harmless_test", "overall"),
)
ONE_HEAD, FIVE_HEADS = ("linear refit", "SiLU head"), ("5 SiLU heads",)
_WIDTH = 128

Bar = dict[str, object]


def parameters_ratio(embedding_size: int) -> float:
    """Parameters of the density's network over those of five SiLU heads."""
    network = EnergyNetwork(embedding_size, NetworkConfig())
    heads = 5 * (embedding_size * _WIDTH + _WIDTH + _WIDTH + 1)
    return sum(weight.numel() for weight in network.parameters()) / heads


def bars(rows: Iterable[Row], embedding_size: Mapping[str, int]) -> list[Bar]:
    """Every bar for every kind of base reward model (of which the size of the embedding is given)."""
    found: list[Bar] = []
    unique = {(row.base_rm, row.noise, row.method, row.benchmark, row.category, row.metric): row for row in rows}
    for base_rm, size in embedding_size.items():
        mine = [row for row in unique.values() if row.base_rm == base_rm]

        def pick(noise: float, metric: str, keep: Callable[[Row], bool], rows: Sequence[Row] = mine) -> list[Row]:
            return [row for row in rows if (row.noise, row.metric) == (noise, metric) and keep(row)]

        ours = [row for row in mine if row.method == "EBRM"]
        clean = pick(0.0, "gain", lambda row: row.category == "overall" and row.benchmark != MEAN, ours)
        noisy = pick(NOISE, "gain", lambda row: row.benchmark == MEAN, ours)
        safety = pick(NOISE, "gain", lambda row: (row.benchmark, row.category) in SAFETY, ours)
        ahead_one = pick(NOISE, "ahead", lambda row: row.method.startswith(ONE_HEAD))
        ahead_five = pick(NOISE, "ahead", lambda row: row.method.startswith(FIVE_HEADS))
        ratio = parameters_ratio(size)
        found += [
            {"base_rm": base_rm, **bar}
            for bar in (
                _bar("clean labels: worst gain on a test set", -0.3, _least(clean)),
                _bar("25% turned round: gain on the mean of the test sets", 2.5, _least(noisy), above_chance=True),
                _bar("25% turned round: ahead of the best single head on the mean", 0.0, _least(ahead_one)),
                _bar("25% turned round: ahead of the best five heads on the mean", 0.0, _least(ahead_five)),
                _ratio_bar("parameters, as a share of five heads'", 0.2, ratio),
                _bar("25% turned round: best gain of a safety group", 5.97, _most(safety)),
                _bar("25% turned round: worst gain of a safety group", 0.0, _least(safety)),
            )
        ]
    return found


def _bar(name: str, required: float, row: Row | None, above_chance: bool = False) -> Bar:
    """At least `required`; `above_chance`: and the interval above 0. Without a row there is nothing to judge by."""
    if row is None:
        empty = dict.fromkeys(("reached", "low", "high", "where", "met"))
        return {"bar": name, "required": f">= {required:g}", **empty}
    where = row.method if row.metric == "ahead" else f"{row.benchmark}, {row.category}"
    return {
        "bar": name,
        "required": f">= {required:g}" + (", low > 0" if above_chance else ""),
        "reached": round(row.value, 3),
        "low": round(row.low, 3),
        "high": round(row.high, 3),
        "where": where,
        "met": row.value >= required and (row.low > 0 or not above_chance),
    }


def _ratio_bar(name: str, required: float, ratio: float) -> Bar:
    numbers = {"reached": round(ratio, 4), "low": None, "high": None, "where": None, "met": ratio <= required}
    return {"bar": name, "required": f"<= {required:g}", **numbers}


def _least(rows: Sequence[Row]) -> Row | None:
    return min(rows, key=lambda row: row.value, default=None)


def _most(rows: Sequence[Row]) -> Row | None:
    return max(rows, key=lambda row: row.value, default=None)
