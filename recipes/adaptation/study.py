"""The study's data: a cache of embeddings with its pairs, splits by prompt, scenarios, and base reward models."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from finetune import PART, SALT
from numpy.typing import NDArray
from ridge import Floats, cross_validated, newton
from rows import Group, groups, share
from safetensors import safe_open

Rows = NDArray[np.int64]

#: Prompt groups a shard, and what is concatenated: the last token (or mean) of the last layer, and means over the text
#: at a third and two thirds of the blocks. The alternates are compared in one table.
SHARD = {"minilm": 256, "gemma": 32}
EMBEDDING = {"minilm": ("pooled", "text2", "text4"), "gemma": ("pooled", "text6", "text12")}
ALTERNATES = {
    "minilm": {
        "pooled": ("pooled",),
        "pooled, response at 1/2 and 5/6": ("pooled", "response3", "response5"),
    },
    "gemma": {
        "pooled": ("pooled",),
        "pooled, response at 4/9 and 7/9": ("pooled", "response8", "response14"),
    },
}
VENDOR, USER = PART, 0.35 / 0.6  # the user's share is of the prompts that are not the vendor's
#: Sources whose labels people gave, and sources with labels of models that judge.
PEOPLE = ("Open-Assistant", "PandaLM", "open-instruct", "Tool-Augmented-Reward-Model")
JUDGES = ("ultrafeedback-dpo-noise-study", "auto-j", "arena-hard-auto", "LLaMA-Factory")


@dataclass(eq=False)
class Study:
    """Embeddings of all responses that were read, and pairs of them.

    Attributes:
        columns: embeddings by name [rows, d], float32.
        chosen, rejected: rows of both sides [p].
        prompt: number of a pair's prompt, the same for the same text whatever set it is in [p].
        kind, source, category: of a pair [p]; `source` without its owner.
        ids: hash of each prompt number's text.
        length: characters of a response [rows].
        row_prompt, row_kind: of a response [rows].
        pools: of best-of-n pools, (rows, gold scores).
        read, asked: number of prompt groups in the cache, and of the study.
    """

    columns: dict[str, NDArray[np.float32]]
    chosen: Rows
    rejected: Rows
    prompt: Rows
    kind: NDArray[np.str_]
    source: NDArray[np.str_]
    category: NDArray[np.str_]
    ids: list[str]
    length: Rows
    row_prompt: Rows
    row_kind: NDArray[np.str_]
    pools: list[tuple[Rows, Floats]] = field(default_factory=list)
    read: int = 0
    asked: int = 0

    def embedding(self, names: tuple[str, ...]) -> NDArray[np.float32]:
        """Columns side by side [rows, d]."""
        return np.concatenate([self.columns[name] for name in names], 1)

    def shares(self, salt: str) -> Floats:
        """A number in [0, 1) for each pair, by its prompt [p]."""
        return np.array([share(one, salt) for one in self.ids])[self.prompt]


def load(cache: Path, backbone: str, data: Path, names: tuple[str, ...] | None = None) -> Study:
    """What is in the cache by now. `names`: the columns to load, besides `reward`; None: those of EMBEDDING."""
    every, wanted = groups(data), (*(names or EMBEDDING[backbone]), "reward")
    parts: dict[str, list[NDArray[np.float32]]] = {}
    found: list[Group] = []
    for file in sorted(cache.glob("*.safetensors")):
        number = int(file.stem)
        with safe_open(file, "np") as shard:
            present = [name for name in wanted if name in shard.keys()]  # noqa: SIM118 - not a dict
            if not present:  # only kinds that were left out
                continue
            for name in present:
                parts.setdefault(name, []).append(shard.get_tensor(name).astype(np.float32))
        found += every[number * SHARD[backbone] : (number + 1) * SHARD[backbone]]
    if not found:
        raise SystemExit(f"{cache} has no shards. Make them with {backbone}.py first.")
    return assembled(found, {name: np.concatenate(part) for name, part in parts.items()}, len(every))


def assembled(found: list[Group], columns: dict[str, NDArray[np.float32]], asked: int) -> Study:
    """The study of these groups, whose responses have these columns in turn; groups that are NaN are left out."""
    counts = np.array([len(group.responses) for group in found])
    ends = np.cumsum(counts)
    if ends[-1] != len(columns["pooled"]):
        raise SystemExit(f"The cache has {len(columns['pooled'])} responses, its groups {ends[-1]}: other data?")
    there = np.isfinite(columns["pooled"][ends - 1, 0])
    rows = np.repeat(there, counts)
    found = [group for group, whether in zip(found, there, strict=True) if whether]
    columns = {name: column[rows] for name, column in columns.items()}
    number: dict[str, int] = {}
    pairs: list[tuple[int, int, int, str, str, str]] = []
    length, row_prompt, row_kind, pools, first = [], [], [], [], 0
    for group in found:
        own = number.setdefault(group.id, len(number))
        source = group.source.rpartition("/")[2]
        for chosen, rejected, category in group.pairs:
            pairs.append((first + chosen, first + rejected, own, group.kind, source, category))
        if group.gold is not None:
            pools.append((np.arange(first, first + len(group.responses)), np.array(group.gold, dtype=np.float64)))
        length += map(len, group.responses)
        row_prompt += [own] * len(group.responses)
        row_kind += [group.kind] * len(group.responses)
        first += len(group.responses)
    chosen, rejected, prompt, kind, source, category = (np.array(column) for column in zip(*pairs, strict=True))
    return Study(
        columns, chosen, rejected, prompt, kind, source, category, list(number), np.array(length),
        np.array(row_prompt), np.array(row_kind), pools, len(found), asked,
    )  # fmt: skip


# -- scenarios -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scenario:
    """What the vendor's model was trained on, what the user brings, and what is measured.

    Attributes:
        name: for tables.
        vendor, target: kinds of pairs, or sources where `by_source`.
        sizes: numbers of pairs that the user brings; 0: all.
        labels: clean; random (a coin); flipped (30% turned round); longer (only pairs whose longer response is chosen,
            and tests on the others).
        seen: whether the user's pairs are the vendor's own, as the vendor labeled them.
        wrong: share of the vendor's labels that are turned round.
        shifted: whether the target is another domain, so that anchors (texts of the vendor's) make sense.
    """

    name: str
    vendor: tuple[str, ...]
    target: tuple[str, ...]
    sizes: tuple[int, ...]
    labels: str = "clean"
    seen: bool = False
    wrong: float = 0.0
    shifted: bool = False
    by_source: bool = False


CHAT = ("chat",)
SCENARIOS = (
    Scenario("same domain", CHAT, CHAT, (30, 100, 300, 1000)),
    Scenario("chat to grounded", CHAT, ("grounded",), (30, 100, 300, 1000), shifted=True),
    Scenario("chat to HH-harmless", CHAT, ("hh-harmless",), (30, 150, 300), shifted=True),
    Scenario("chat to XSTest", CHAT, ("xstest",), (30, 150), shifted=True),
    Scenario("grounded to chat", ("grounded",), CHAT, (100, 300, 1000), shifted=True),
    Scenario("judges to people", JUDGES, PEOPLE, (100, 300), shifted=True, by_source=True),
    Scenario("longer is better", CHAT, CHAT, (100, 300), labels="longer"),
    Scenario("seen", CHAT, CHAT, (300, 0), seen=True),
    Scenario("seen, 25% wrong", CHAT, CHAT, (300, 0), seen=True, wrong=0.25),
    Scenario("random labels", CHAT, CHAT, (100, 300), labels="random"),
    Scenario("30% flipped", CHAT, CHAT, (100, 300), labels="flipped"),
)


@dataclass(frozen=True, eq=False)
class Case:
    """A scenario with its pairs, as positions among the study's.

    Attributes:
        vendor: the vendor's training pairs, and whether the vendor has each turned round.
        user: the user's pairs, and whether the user has each turned round.
        test: pairs of the target.
        elsewhere: every other set by name.
        anchors: rows of the vendor's texts, or None.
    """

    vendor: Rows
    vendor_turned: NDArray[np.bool_]
    user: Rows
    user_turned: NDArray[np.bool_]
    test: Rows
    elsewhere: dict[str, Rows]
    anchors: Rows | None


ANCHORS = 400


def case_of(study: Study, scenario: Scenario, n: int, seed: int, fixed: bool = False) -> Case:
    """The case of a seed. `fixed`: the vendor's part is that of a fine-tuned model, the same for every seed."""
    rng = np.random.default_rng((seed, n))
    vendors = study.shares(SALT if fixed else f"{SALT} {seed}") < VENDOR
    users = ~vendors & (study.shares(f"user {seed}") < USER)
    unit = study.source if scenario.by_source else study.kind
    inside = np.isin(study.kind, CHAT) if scenario.by_source else np.ones(len(unit), dtype=bool)
    own, target = np.isin(unit, scenario.vendor) & inside, np.isin(unit, scenario.target) & inside
    vendor = np.flatnonzero(own & vendors)
    turned = np.zeros(len(unit), dtype=bool)
    for at in vendor:
        key = f"{study.ids[study.prompt[at]]} {study.chosen[at]} {study.rejected[at]} {seed}"
        turned[at] = share(key, "wrong") < scenario.wrong
    longer = study.length[study.chosen] > study.length[study.rejected]
    test = target & ~vendors & ~users
    if scenario.seen:
        bring, test = own & vendors, target & ~vendors
    else:
        bring = target & users
    if scenario.labels == "longer":
        bring, test = bring & longer, test & ~longer
    user = rng.permutation(np.flatnonzero(bring))[: n or None]
    user_turned = turned[user]
    if scenario.labels in ("random", "flipped"):
        user_turned = rng.random(len(user)) < (0.5 if scenario.labels == "random" else 0.3)
    known = np.isin(study.prompt, study.prompt[user]) | np.isin(study.prompt, study.prompt[vendor])
    sets = {
        kind: np.flatnonzero((study.kind == kind) & ~target & ~known)
        for kind in dict.fromkeys(study.kind.tolist())
        if kind not in scenario.target
    }
    if scenario.by_source:
        sets["chat"] = np.flatnonzero(own & ~known)
    anchors = None
    if scenario.shifted:
        rows = np.unique(np.r_[study.chosen[vendor], study.rejected[vendor]])
        anchors = np.sort(rng.permutation(rows)[:ANCHORS])
    return Case(
        vendor, turned[vendor], user, user_turned, np.flatnonzero(test & ~np.isin(study.prompt, study.prompt[user])),
        {name: pairs for name, pairs in sets.items() if len(pairs)}, anchors,
    )  # fmt: skip


# -- base reward models ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Base:
    """A reward model: rewards of all rows [rows], mean 0 and deviation 1 on the vendor's, and their slope as logits."""

    reward: Floats
    slope: float


def ridge_base(study: Study, case: Case) -> Base:
    """A linear head on the pooled embedding, fitted on the vendor's labels, its ridge by cross-validation."""
    rows = np.unique(np.r_[study.chosen[case.vendor], study.rejected[case.vendor]])
    x = study.columns["pooled"].astype(np.float64)
    x = (x - x[rows].mean(0)) / (x[rows].std(0) + 1e-9) / np.sqrt(x.shape[1])
    sign = np.where(case.vendor_turned, -1.0, 1.0)[:, None]
    difference = sign * (x[study.chosen[case.vendor]] - x[study.rejected[case.vendor]])
    none = np.zeros(len(difference))
    found = cross_validated(difference, none, study.prompt[case.vendor])
    weights = found.coefficients
    if not weights.any():  # nothing is better than a coin: still a reward model, of the strongest penalty
        weights = newton(difference, none, 10.0 * len(difference), weights)
    return in_units(x @ weights, rows)


def fine_tuned_base(study: Study, case: Case) -> Base:
    """The rewards that `minilm.py --model` read."""
    rows = np.unique(np.r_[study.chosen[case.vendor], study.rejected[case.vendor]])
    return in_units(study.columns["reward"][:, 0].astype(np.float64), rows)


def in_units(reward: Floats, rows: Rows) -> Base:
    """Rewards in standard deviations of some rows."""
    center, spread = reward[rows].mean(), reward[rows].std()
    return Base((reward - center) / spread, float(spread))


def base_of(study: Study, scenario: Scenario, seed: int, fine_tuned: bool) -> Base:
    """The base of a scenario's vendor, which is the same whatever the user brings."""
    plain = Scenario("base", scenario.vendor, scenario.vendor, (1,), wrong=scenario.wrong, by_source=scenario.by_source)
    return _base(study, plain, seed, fine_tuned)


@lru_cache(maxsize=8)
def _base(study: Study, scenario: Scenario, seed: int, fine_tuned: bool) -> Base:
    case = case_of(study, scenario, 1, seed, fine_tuned)
    return fine_tuned_base(study, case) if fine_tuned else ridge_base(study, case)
