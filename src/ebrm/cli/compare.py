"""`ebrm compare FEATURES --out DIR`: heads, ensembles and shapings on the same features and split, in one table."""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from ebrm.backbone import BackboneConfig
from ebrm.cli.common import at_least, out_folder, show_summary
from ebrm.cli.console import Console
from ebrm.cli.heads import HeadChoice, chosen_head, config_parts, given_head, head_parts, heads_in, heads_with, refuse
from ebrm.cli.parser import Chosen, Command, Part
from ebrm.errors import ConfigError, ModelError
from ebrm.heads import HEADS, FitConfig
from ebrm.hub import is_model
from ebrm.utils.locks import lock_beside, locked
from ebrm.utils.outputs import place_of, results_folder, tidy
from ebrm.utils.stored import read_json

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
        out: folder for results.json and table.md; those of an earlier comparison are replaced. Unset: only shown.
        save: folder for the heads that are compared, a model in a folder of its head's name for each; it must not exist
            yet, be empty, or hold the same heads. Unset: they are not kept.
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
        overwrite: replace files of these names that something else wrote, or that were changed.
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
    overwrite: bool = False

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
    save = None if settings.save is None else out_folder(settings.save)
    from ebrm.evaluation import check_names, compare_heads
    from ebrm.features import open_features
    from ebrm.metrics import Bootstrap
    from ebrm.report import comparison_summary, write_comparison

    names = check_names(settings.methods)
    what = {"features": Path(features).name, "pool": None if settings.pool is None else Path(settings.pool).stem}
    inputs = {"FEATURES": features, "`pool`": settings.pool}
    with ExitStack() as held:
        new = None
        if out is not None:
            files = ("results.json", "table.md", "timing.json")
            new = held.enter_context(results_folder(out, "compare", files, inputs, settings.overwrite))
        kept = None if save is None else held.enter_context(_saved_heads(save, names))
        opened = open_features(features)
        comparison = compare_heads(
            opened, names, heads=heads, config=config, members=settings.members,
            pool=_pool(settings, opened, chosen.given(BackboneConfig)),
            bootstrap=Bootstrap(settings.resamples, seed=settings.seed), save=kept,
        )  # fmt: skip
        if new is not None:
            write_comparison(new, comparison, f"Methods on {what['features']}", what)
    console.note(
        f"{comparison.train:,} pairs to fit on, {comparison.validation:,} to choose by, {comparison.pairs:,} to "
        "measure on."
    )
    console.print(*(f"Warning: {said}" for said in comparison.warnings))
    show_summary(console, comparison_summary(comparison))
    console.facts([(name, path) for name, path in (("written", out), ("heads", save)) if path is not None])
    console.result({"out": settings.out, "save": settings.save, **what, **comparison.to_dict()})


@contextmanager
def _saved_heads(save: Path, names: Sequence[str]) -> Iterator[Path]:
    """A folder to save heads in, and the way from there to `save`: heads that are there already must be the same."""
    place = place_of(save)
    others = [] if not place.is_dir() else [path for path in place.iterdir() if path.name not in names]
    if others or (place.is_dir() and not all(is_model(path) for path in place.iterdir())):
        raise ConfigError(
            f"--save {save} exists already and holds something other than heads of this comparison; it was left as it "
            "is. Choose another name."
        )
    with locked(lock_beside(place), str(save)):
        tidy(place.parent, glob.escape(place.name))
        new = place.with_name(f".{place.name}.{os.getpid()}.partial")
        try:
            new.mkdir(parents=True)
            yield new
            for made in sorted(new.iterdir()):
                if (there := place / made.name).exists() and not _same_head(made, there):
                    raise ConfigError(
                        f"--save {save} holds another head {made.name}, fitted with other settings or on other pairs; "
                        "it was left as it is. Choose another name."
                    )
            place.mkdir(exist_ok=True)
            for made in sorted(new.iterdir()):
                if not (place / made.name).exists():
                    made.rename(place / made.name)
        finally:
            shutil.rmtree(new, ignore_errors=True)


def _same_head(one: Path, other: Path) -> bool:
    """Whether two models have the same weights and were fitted on the same pairs."""
    again = "Compare again with --overwrite."
    first, second = (
        read_json(path / "config.json", "ModelConfig", error=ModelError, do=again) for path in (one, other)
    )
    names = ("weights_sha256", "head", "fit", "backbone", "data")
    return all(first.get(name) == second.get(name) for name in names)


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
