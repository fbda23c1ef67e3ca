"""Choose the library's defaults, on the training pairs alone.

    python recipes/evidence/choose_default.py --data DATA --cache CACHE

The rule (what was known of the test sets before it, and what was changed after it: docs/evidence.md):

1. Folds: each source of the training pairs is left out in turn (a shift, as between a user's pairs and what a policy
   writes), and each of two random quarters of the prompts. The base reward model (a linear head on the pooled top
   layer) and every candidate are trained on the rest, with none or a quarter of its labels turned round.
2. A candidate's figure is the mean over the two noise levels, the seeds and the two kinds of folds of its accuracy on
   the fold's pairs with their labels as published.
3. The default is the candidate with the highest figure; of those within one standard error of it (over folds and
   seeds, paired), the one that is nearest to what was tried first, which is the first row. The baselines' own settings
   (ridge, width, passes) are chosen in the same way.

Writes results/candidates.csv beside this file.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from heads import bradley_terry_head, silu_head
from methods import Method, Problem, Refined, ebrm, linear
from study import POOLED, Study, open_study

from ebrm.heads import EnergyConfig, Fusion, JointConfig, LikelihoodConfig, NetworkConfig, TrainingConfig
from ebrm.pairs import PreferencePairs
from ebrm.utils.files import atomic_path

RESULTS = Path(__file__).parent / "results"
#: Sources too small to be a fold of their own.
SMALL = ("prometheus-eval/prometheus-eval", "paul-rottger/exaggerated-safety", "Re-Align/just-eval")
BASE_RIDGE = 1e-3


def _silu(width: int, epochs: int) -> Method:
    return lambda p: Refined(silu_head(p.inputs(pooled=False), p.train, 100 * p.seed, width, epochs))


CANDIDATES: dict[str, Method] = {
    "EBRM": ebrm,
    "EBRM, pooled only": lambda p: ebrm(p, pooled=True),
    "EBRM, joint layer of 64": lambda p: ebrm(p, config=EnergyConfig(network=NetworkConfig(joint_widths=(64,)))),
    "EBRM, dropout 0.2": lambda p: ebrm(p, config=EnergyConfig(network=NetworkConfig(dropout=0.2))),
    "EBRM, no label flips": lambda p: ebrm(p, config=EnergyConfig(objective=JointConfig(label_noise=0.0))),
    "EBRM, no base reward": lambda p: ebrm(p, config=EnergyConfig(objective=JointConfig(reward_weight=0.0))),
    "EBRM, base reward weighs 1": lambda p: ebrm(p, config=EnergyConfig(objective=JointConfig(reward_weight=1.0))),
    "EBRM, conflict filter": lambda p: ebrm(p, p.agreeing()),
    "EBRM, density alone": lambda p: ebrm(p, fusion=Fusion()),
    "EBRM, reward only": lambda p: ebrm(
        p,
        p.agreeing(),
        config=EnergyConfig(objective=LikelihoodConfig(), training=TrainingConfig(patience=0, epochs=5)),
    ),
    "linear refit, ridge 0.3": lambda p: linear(p, p.train, 0.3),
    "linear refit, ridge 1": lambda p: linear(p, p.train, 1.0),
    "SiLU head of 128, 3 passes": _silu(128, 3),
    "SiLU head of 128, 6 passes": _silu(128, 6),
    "base": lambda p: Refined(p.reward),
}


def base_problem(
    study: Study, train: PreferencePairs, held_out: PreferencePairs, prompt: np.ndarray, seed: int
) -> Problem:
    """The base reward model of the study: a linear head on the pooled top layer, trained on the training pairs."""
    unrewarded = Problem(study.embedding, torch.zeros(len(study.embedding)), train, held_out, prompt, seed)
    inputs = unrewarded.inputs(pooled=True)
    assert inputs.shape[1] == POOLED
    reward = inputs @ bradley_terry_head(inputs, train, BASE_RIDGE)
    return Problem(study.embedding, reward, train, held_out, prompt, seed)


def folds(study: Study, seed: int) -> list[tuple[str, np.ndarray]]:
    """(kind, which pairs are measured) of every fold."""
    source = np.where(np.isin(study.source, SMALL), "small", study.source)
    found = [("source", source == name) for name in np.unique(source)]
    shuffled = np.random.default_rng((seed, 9)).permutation(np.unique(study.prompt))
    quarters = np.array_split(shuffled, 4)[:2]
    return found + [("prompts", np.isin(study.prompt, quarter)) for quarter in quarters]


def main() -> None:
    """Measure every candidate on every fold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    study = open_study(args.data, args.cache)
    accuracy: dict[str, dict[tuple, float]] = defaultdict(dict)
    for seed in range(args.seeds):
        for noise in (0.25, 0.0):
            train, held, places = study.split(noise, seed)
            for number, (kind, measured) in enumerate(folds(study, seed)):
                started = time.monotonic()
                keep = torch.from_numpy(~measured[places])
                gone = set(study.prompt[measured].tolist())
                rest = np.setdiff1d(np.arange(len(study.prompt)), places)
                still = torch.from_numpy(np.array([p not in gone for p in study.prompt[rest]]) & ~measured[rest])
                problem = base_problem(
                    study, train.select(keep),
                    held.select(still), study.prompt[places][keep.numpy()], seed,
                )  # fmt: skip
                chosen, rejected = (side[torch.from_numpy(measured)] for side in (study.chosen, study.rejected))
                for name, method in CANDIDATES.items():
                    reward = method(problem).reward
                    accuracy[name][kind, noise, seed, number] = float(
                        (reward[chosen] > reward[rejected]).double().mean()
                    )
                print(f"seed {seed} noise {noise} fold {number}: {time.monotonic() - started:.0f} s", flush=True)
        write(accuracy)


def write(accuracy: dict[str, dict[tuple, float]]) -> None:
    """The table of candidates: what each reached, and how far it is behind the best of its family."""
    RESULTS.mkdir(exist_ok=True)

    def figure(values: dict[tuple, float]) -> np.ndarray:
        """A value a fold, weighted so that its mean is the mean over both kinds of folds."""
        kinds = np.array([key[0] for key in values])
        shares = {kind: (kinds == kind).mean() for kind in np.unique(kinds)}
        return np.array([value * 0.5 / shares[kind] for value, kind in zip(values.values(), kinds, strict=True)])

    mean = {name: figure(values).mean() for name, values in accuracy.items()}
    with atomic_path(RESULTS / "candidates.csv") as path, open(path, "w", newline="") as handle:
        out = csv.writer(handle, lineterminator="\n")
        out.writerow(
            ["candidate", "figure", "behind", "error", "source_0", "source_25", "prompts_0", "prompts_25", "folds"]
        )
        for name, values in accuracy.items():
            family = [
                other for other in accuracy if other.split(",")[0].split(" ")[0] == name.split(",")[0].split(" ")[0]
            ]
            best = max(family, key=mean.__getitem__)
            gap = figure(accuracy[best]) - figure(values)
            parts = [
                np.mean([v for key, v in values.items() if key[:2] == (kind, noise)])
                for kind in ("source", "prompts")
                for noise in (0.0, 0.25)
            ]
            numbers = (mean[name], gap.mean(), gap.std(ddof=1) / len(gap) ** 0.5, *parts)
            out.writerow([name, *(f"{100 * number:.2f}" for number in numbers), len(values)])


if __name__ == "__main__":
    main()
