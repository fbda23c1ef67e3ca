"""`ebrm compare FEATURES --out DIR`: heads, ensembles and shapings on the same features and split, in one table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from ebrm.backbone import BackboneConfig
from ebrm.cli.common import out_folder
from ebrm.cli.console import Console
from ebrm.cli.heads import HeadChoice, chosen_head, config_parts, given_head, head_parts, heads_in, heads_with, refuse
from ebrm.cli.parser import Chosen, Command, Part
from ebrm.errors import ConfigError
from ebrm.heads import HEADS, FitConfig

if TYPE_CHECKING:
    from ebrm.evaluation import Comparison


@dataclass(frozen=True)
class CompareConfig:
    """What is compared, on what, and where the results go.

    Attributes:
        methods: methods, with commas between, or `all`; differences are to the first. Heads: energy, linear, silu,
            gaussian, bayesian, binary, anchored, min_norm, prototypes, directional. Ensembles of two-layer heads:
            silu-mean, silu-median, silu-worst-case, silu-uwo, silu-mean-std. Others: base, gaussian-worst-case,
            base-and-silu, base-neighbors, base-par, base-log-sigmoid, base-standardized, base-clipped, base-min-max,
            base-length, base-shorter.
        out: folder for results.json and table.md; written anew. Unset: only shown.
        save: folder for the heads that are compared, a model in a folder of its head's name for each; it must not exist
            yet, or be empty. Unset: they are not kept.
        pool: a benchmark by name or file whose prompts have several graded responses: gold of the best of n is
            measured on it. The features' reward model reads it, once.
        data: folder with benchmarks by name. Unset: EBRM_DATA if it is set, else the Hub.
        limit: sample so many prompts of the pool. Unset: all.
        cache: folder that keeps the reward model's reading of the pool. Unset: EBRM_CACHE if it is set, else ebrm in
            the user's cache folder.
        members: two-layer heads in an ensemble; they differ in their seed.
        resamples: bootstrap resamples of the prompts.
        seed: seed of the bootstrap and of sampling the pool.
    """

    methods: tuple[str, ...] = ("base", "energy", "linear", "silu")
    out: str | None = None
    save: str | None = None
    pool: str | None = None
    data: str | None = None
    limit: int | None = None
    cache: str | None = None
    members: int = 5
    resamples: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("limit", 1), ("members", 2), ("resamples", 100), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} is {value}; it must be at least {least}.")


def compare(
    console: Console,
    chosen: Chosen,
    features: Annotated[str, Parameter(name="FEATURES", help="A features folder that `ebrm features` wrote.")],
) -> None:
    """Fit and measure heads, ensembles and shapings on the same features, in one table.

    Every method is fitted on the same training pairs and measured on the same held-out ones: its accuracy, the
    calibration of its probabilities, the gold reward of the best of n responses (with --pool), and its cost. An option
    is for every head that has it; in the --config file a head's options can stand under its name (`silu: {epochs: 5}`).
    """
    import os

    settings, config = chosen.of(CompareConfig), chosen.of(FitConfig)
    heads = {kind: given_head(chosen, head()) for kind, head in HEADS.items()} | {"energy": chosen_head(chosen)}
    if settings.out is not None:
        out_folder(settings.out)
    if settings.save is not None and Path(settings.save).exists() and not _is_empty(Path(settings.save)):
        raise ConfigError(f"--save {settings.save} exists already and is not empty; it was left as it is.")
    from ebrm.evaluation import BenchmarkConfig, cache_folder, check_names, choose_items, compare_heads, read_pool
    from ebrm.features import open_features
    from ebrm.metrics import Bootstrap

    names = check_names(settings.methods)
    opened = open_features(features)
    pool = None
    if settings.pool is not None:
        from ebrm.benchmarks import open_benchmark

        data = settings.data or os.environ.get("EBRM_DATA")
        about = BenchmarkConfig(
            (settings.pool,), data=data, limit=settings.limit, seed=settings.seed, cache=settings.cache
        )
        benchmark, _ = choose_items(open_benchmark(settings.pool, Path(data) if data else None), about, frozenset())
        pool = read_pool(opened, benchmark, cache_folder(about), chosen.given(BackboneConfig))
    comparison = compare_heads(
        opened,
        names,
        heads=heads,
        config=config,
        members=settings.members,
        pool=pool,
        bootstrap=Bootstrap(settings.resamples, seed=settings.seed),
        save=settings.save,
    )
    console.note(
        f"{comparison.train:,} pairs to fit on, {comparison.validation:,} to choose by, {comparison.pairs:,} to "
        "measure on."
    )
    found = {
        "features": Path(features).name,
        "pool": None if settings.pool is None else Path(settings.pool).stem,
        **comparison.to_dict(),
    }
    console.table(*table(comparison))
    for line in notes(comparison):
        console.print(line)
    if settings.out is not None:
        from ebrm.report import Table, markdown
        from ebrm.utils.files import write_json, write_text

        write_json(Path(settings.out) / "results.json", found)
        head, rows = table(comparison)
        text = markdown([Table(f"Methods on {found['features']}", head, rows)], notes(comparison))
        write_text(Path(settings.out) / "table.md", text)
        console.facts([("written", settings.out)])
    if settings.save is not None:
        console.facts([("heads", settings.save)])
    console.result({"out": settings.out, "save": settings.save, **found})


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """The header and a row a method, as text."""
    from ebrm.report import decimal, interval

    first, pool = comparison.methods[0].name, comparison.n is not None
    head = ["method", "accuracy, %", "interval", f"minus {first}", "interval", "ECE, %", "log loss", "interval"]
    if pool:
        head += [f"best of {comparison.n}", f"minus {first}", "interval"]
    rows = []
    for m in comparison.methods:
        row = [m.name, decimal(100 * m.accuracy.value, 1), interval(100 * m.accuracy.low, 100 * m.accuracy.high, 1)]
        row += ["", ""]
        if m.difference is not None:
            ends = interval(100 * m.difference.low, 100 * m.difference.high, 1, sign=True)
            row[-2:] = [decimal(100 * m.difference.value, 1, sign=True), ends]
        row += [decimal(100 * m.ece.value, 1), decimal(m.log_loss.value, 3)]
        row += [interval(m.log_loss.low, m.log_loss.high, 3)]
        if pool:
            row += ["" if m.gold is None else decimal(m.gold.value, 3), "", ""]
            if m.gain is not None:
                row[-2:] = [decimal(m.gain.value, 3, sign=True), interval(m.gain.low, m.gain.high, 3, sign=True)]
        rows.append([*row, f"{m.parameters:,}", decimal(m.microseconds, 2)])
    return [*head, "parameters", "µs a row"], rows


def notes(comparison: Comparison) -> list[str]:
    """What has to be known to read the table."""
    from ebrm.report import count, decimal

    lines = [
        f"{count(comparison.pairs, 'held-out pair')} of {count(comparison.prompts, 'prompt')}; "
        f"{100 * comparison.bootstrap.level:g}% intervals over prompts, differences paired. A tie is ranked "
        "wrongly. P(chosen > rejected) of every method is calibrated alike, with one temperature fitted on the "
        "validation pairs."
    ]
    if comparison.n is not None:
        lines.append(
            f"Best of {comparison.n}: mean gold over {count(comparison.pool_prompts, 'prompt')}; any response: "
            f"{decimal(comparison.random, 3)}."
        )
    lines += [f"Left out: {count(n, 'prompt')} of the pool ({reason})." for reason, n in comparison.left_out.items()]
    return lines


def _parts(choice: Mapping[str, Any]) -> dict[str, Part]:
    """An option of several heads is for all of them; in the file, one under a head's name is for that head alone."""
    kinds = heads_in(choice["methods"] or CompareConfig().methods)
    parts = {"comparison": Part(CompareConfig)}
    if "energy" in kinds:
        parts |= head_parts({**choice, "head": "energy"})
        parts["head"] = Part(HeadChoice, ("objective", "paper"))
    for kind in kinds:
        if kind != "energy":
            parts |= {name: part for name, part in config_parts(HEADS[kind]()).items() if name == kind}
    return parts | {
        "fit": Part(FitConfig),
        "reward_model": Part(BackboneConfig, ("device", "token_budget", "trust_remote_code"), saved=True),
    }


def _refuse(key: str, choice: Mapping[str, Any]) -> str | None:
    if "energy" in heads_in(choice["methods"] or CompareConfig().methods) and "energy" in heads_with(key):
        return refuse(key, choice)
    flag, having = "--" + key.replace("_", "-"), " or ".join(heads_with(key))
    return f"{flag} is an option of head {having}, which none of the methods fits (--methods)." if having else None


command = Command("compare", compare, _parts, {"methods": "comparison", "objective": "head", "paper": "head"}, _refuse)
