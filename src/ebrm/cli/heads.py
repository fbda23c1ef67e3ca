"""`--head KIND`: the options that a head and its objective have, and the config made of those that were given."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal, get_type_hints

from ebrm.cli.parser import Chosen, Part, key_of
from ebrm.cli.values import read
from ebrm.heads import HEADS, OBJECTIVES, AutoConfig, EnergyConfig, HeadConfig, ResidualConfig


@dataclass(frozen=True)
class HeadChoice:
    """Which head is fitted.

    Attributes:
        head: residual (unset, unless an objective or paper is given): the base reward plus a linear correction; energy:
            density p(r | e) of an energy-based model; linear, silu (two layers), bayesian, gaussian, min_norm,
            directional: Bradley-Terry heads; anchored: held near the base reward; prototypes: users' ideal points;
            binary: thumbs; attributes: ratings; auto: the simplest of base reward, residual, linear, silu and energy
            within one standard error of the best by cross-validation. Each has options of its own:
            `ebrm fit --head KIND --help`.
        objective: joint: the pairs' labels and the base reward; likelihood: the base reward alone, exact, log Z by
            quadrature on shared nodes; nce: the base reward alone, NCE+ with sampled noise (the paper).
        paper: defaults of the paper (arXiv 2504.13134) for its small or its large network: objective nce, conflict
            filter, gradient ascent, unless something else is given.
    """

    head: Literal[
        "residual", "energy", "linear", "silu", "gaussian", "bayesian", "attributes", "binary", "anchored", "min_norm",
        "prototypes", "directional", "auto",
    ] | None = None  # fmt: skip
    objective: Literal["joint", "likelihood", "nce"] | None = None
    paper: Literal["small", "large"] | None = None


def head_parts(choice: Mapping[str, Any]) -> dict[str, Part]:
    """The choice and the options of what is chosen."""
    config = _defaults(choice)
    return {"head": Part(HeadChoice, () if config.kind == "energy" else ("head",))} | config_parts(config)


def config_parts(config: HeadConfig) -> dict[str, Part]:
    """A head's own fields, under its kind, and those of the configs it holds, under their names."""
    inner = {name: Part(value) for name, value in _inner(config).items()}
    own = tuple(field.name for field in fields(config) if field.name not in inner)
    return ({config.kind: Part(config, own)} if own else {}) | inner


def chosen_head(chosen: Chosen, head: str | None = None) -> HeadConfig:
    """The config of the head that was chosen, or of `head`, with what was given."""
    choice = vars(chosen.of(HeadChoice))
    return given_head(chosen, _defaults(choice if head is None else {**choice, "head": head}))


def given_head(chosen: Chosen, config: HeadConfig) -> HeadConfig:
    """A head's config with what was given for it and for the configs it holds."""
    return chosen.of(config, **{name: chosen.of(value) for name, value in _inner(config).items()})


def refuse(key: str, choice: Mapping[str, Any]) -> str | None:
    """Why an option that another head or objective has is none of the chosen one's."""
    config, flag = _defaults(choice), "--" + key.replace("_", "-")
    objectives = [kind for kind, objective in OBJECTIVES.items() if _has(objective(), key)]
    if isinstance(config, EnergyConfig) and objectives:
        chosen = config.objective.kind
        return f"{flag} is an option of objective {_or(objectives)}; the objective is {chosen} (--objective)."
    heads = heads_with(key)
    return f"{flag} is an option of head {_or(heads)}; the head is {config.kind} (--head)." if heads else None


def heads_with(key: str) -> list[str]:
    """The heads that have an option."""
    objectives = [objective() for objective in OBJECTIVES.values()]
    return [
        kind
        for kind, head in HEADS.items()
        if (kind == "energy" and (key in ("objective", "paper") or any(_has(each, key) for each in objectives)))
        or any(_has(part, key) for part in (head(), *_inner(head()).values()))
    ]


def heads_in(methods: str | Iterable[str]) -> list[str]:
    """The kinds of head that methods such as `silu`, `silu-mean` and `base-and-silu` fit; all of them for `all`."""
    words = set(re.split("[-, ]", methods if isinstance(methods, str) else ",".join(methods)))
    return [kind for kind in HEADS if kind in words or "all" in words]


def _defaults(choice: Mapping[str, Any]) -> HeadConfig:
    """The config that a choice begins with."""
    hints = get_type_hints(HeadChoice)
    head, objective, paper = (
        None if choice.get(name) is None else read(choice[name], hints[name], f"--{name}")
        for name in ("head", "objective", "paper")
    )
    if head is None and objective is None and paper is None:
        return ResidualConfig()
    if head == "auto":
        return AutoConfig()
    if head not in (None, "energy"):
        return HEADS[head]()
    config = EnergyConfig.paper(paper) if paper else EnergyConfig()
    return replace(config, objective=OBJECTIVES[objective]()) if objective else config


def _inner(config: HeadConfig) -> dict[str, Any]:
    """The configs that a config holds."""
    return {name: value for name, value in vars(config).items() if is_dataclass(value)}


def _has(config: Any, key: str) -> bool:
    return any(key_of(type(config), field.name) == key for field in fields(config))


def _or(names: list[str]) -> str:
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))
