"""`ebrm compare FEATURES --out DIR`: heads, ensembles and shapings on the same features and split, in one table."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from ebrm.backbone import BackboneConfig
from ebrm.cli.common import at_least, out_folder, show_summary
from ebrm.cli.console import Console
from ebrm.cli.heads import HeadChoice, chosen_head, config_parts, given_head, head_parts, heads_in, heads_with, refuse
from ebrm.cli.parser import Chosen, Command, Part
from ebrm.errors import ConfigError
from ebrm.heads import HEADS, FitConfig

if TYPE_CHECKING:
    from ebrm.evaluation import ReadPool
    from ebrm.features import Features


@dataclass(frozen=True)
class CompareConfig:
    """What is compared, on what, and where the results go.

    Attributes:
        methods: methods, with commas between, or `all`; differences are to the first. Heads: residual, energy, linear,
            silu, gaussian, bayesian, binary, anchored, min_norm, prototypes, directional. Ensembles of two-layer heads:
            silu-mean, silu-median, silu-worst-case, silu-uwo, silu-mean-std. Others: base, gaussian-worst-case,
            base-and-silu, base-neighbors, base-par, base-log-sigmoid, base-standardized, base-clipped, base-min-max,
            base-length, base-shorter.
        out: folder for results.json and table.md; written anew. Unset: only shown.
        save: folder for the heads that are compared, a model in a folder of its head's name for each; it must not exist
            yet, or be empty. Unset: they are not kept.
        pool: a benchmark by name or file whose prompts have several graded responses: gold of the best of n is
            measured on it. The features' reward model reads it, once. Prompts that the heads are fitted on are left out
            and counted.
        data: folder with benchmarks by name. Unset: EBRM_DATA if it is set, else the Hub.
        limit: sample so many prompts of the pool. Unset: all.
        cache: folder that keeps the reward model's reading of the pool. Unset: EBRM_CACHE if it is set, else ebrm in
            the user's cache folder.
        members: two-layer heads in an ensemble; they differ in their seed.
        resamples: bootstrap resamples of the prompts.
        seed: seed of the bootstrap and of sampling the pool.
    """

    methods: tuple[str, ...] = ("base", "residual", "energy", "linear", "silu")
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
        at_least(self, limit=1, members=2, resamples=100, seed=0)


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
    settings, config = chosen.of(CompareConfig), chosen.of(FitConfig)
    heads = {kind: given_head(chosen, head()) for kind, head in HEADS.items()} | {
        "energy": chosen_head(chosen, "energy")
    }
    out = None if settings.out is None else out_folder(settings.out)
    save = None if settings.save is None else Path(settings.save)
    if save is not None and save.exists() and not (save.is_dir() and not any(save.iterdir())):
        raise ConfigError(f"--save {save} exists already and is not empty; it was left as it is.")
    from ebrm.evaluation import check_names, compare_heads
    from ebrm.features import open_features
    from ebrm.metrics import Bootstrap
    from ebrm.report import comparison_summary, write_comparison

    names, opened = check_names(settings.methods), open_features(features)
    comparison = compare_heads(
        opened, names, heads=heads, config=config, members=settings.members,
        pool=_pool(settings, opened, chosen.given(BackboneConfig)),
        bootstrap=Bootstrap(settings.resamples, seed=settings.seed), save=save,
    )  # fmt: skip
    console.note(
        f"{comparison.train:,} pairs to fit on, {comparison.validation:,} to choose by, {comparison.pairs:,} to "
        "measure on."
    )
    what = {"features": Path(features).name, "pool": None if settings.pool is None else Path(settings.pool).stem}
    show_summary(console, comparison_summary(comparison))
    if out is not None:
        write_comparison(out, comparison, f"Methods on {what['features']}", what)
    console.facts([(name, path) for name, path in (("written", out), ("heads", save)) if path is not None])
    console.result({"out": settings.out, "save": settings.save, **what, **comparison.to_dict()})


def _pool(settings: CompareConfig, features: Features, reward_model: dict[str, Any]) -> ReadPool | None:
    """The pool, read by the features' reward model."""
    if settings.pool is None:
        return None
    from ebrm.benchmarks import open_benchmark
    from ebrm.evaluation import BenchmarkConfig, cache_folder, choose_items, read_pool

    data = settings.data or os.environ.get("EBRM_DATA")
    about = BenchmarkConfig((settings.pool,), data, settings.limit, seed=settings.seed, cache=settings.cache)
    chosen = choose_items(open_benchmark(settings.pool, Path(data) if data else None), about)
    return read_pool(features, chosen.benchmark, cache_folder(about), reward_model)


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
        "reward_model": Part(BackboneConfig, ("backbone", "device", "token_budget", "trust_remote_code"), saved=True),
    }


def _refuse(key: str, choice: Mapping[str, Any]) -> str | None:
    if "energy" in heads_in(choice["methods"] or CompareConfig().methods) and "energy" in heads_with(key):
        return refuse(key, choice)
    flag, having = "--" + key.replace("_", "-"), " or ".join(heads_with(key))
    return f"{flag} is an option of head {having}, which none of the methods fits (--methods)." if having else None


command = Command("compare", compare, _parts, {"methods": "comparison", "objective": "head", "paper": "head"}, _refuse)
