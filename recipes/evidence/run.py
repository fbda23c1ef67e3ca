"""Refine every base reward model with every method, and keep the rewards of all texts.

    python recipes/evidence/run.py --data DATA --cache CACHE --out OUT [--workers 2]
    python recipes/evidence/run.py --data DATA --cache CACHE --out OUT --model FOLDER --noise 0.25

Base reward models: a linear head on the frozen encoder for every share of wrong labels and seed; or a fine-tuned model
with the share its labels were turned round by, for every seed of the refinement. Each is one file,
OUT/rewards/MODEL-NOISE-SEED.safetensors, with the rewards [n] of all texts by every method; a file that is there is not
made again, so a stopped run goes on. The paper's variants are files of their own, OUT/rewards/paper-….
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from dataclasses import replace
from pathlib import Path

import torch
from choose_default import base_problem
from features import POOLS
from methods import METHODS, Problem, Refined, paper_variants
from safetensors.torch import save_file
from study import Study, open_study

from ebrm.pairs import PreferencePairs
from ebrm.utils.files import atomic_path

NOISES = (0.0, 0.1, 0.25, 0.4)


def pair_places(study: Study) -> dict[str, torch.Tensor]:
    """The two responses of every pair [p, 2], by test set: gold first, then the other."""
    found = {}
    for name, test in study.tests.items():
        two = [i for i, item in enumerate(test.benchmark.items) if len(item.responses) == 2]
        if two:
            found[name] = torch.from_numpy(test.place[two][:, :2])
    return found


def few_texts(study: Study) -> torch.Tensor:
    """Texts of all test sets but the pools."""
    places = [torch.from_numpy(test.place).reshape(-1) for name, test in study.tests.items() if name not in POOLS]
    rows = torch.unique(torch.cat(places))
    return rows[rows >= 0]


def run_cell(study: Study, problem: Problem, published: PreferencePairs, path: Path) -> None:
    """All methods but the paper's on one base reward model; `published`: held-out pairs, labels as published."""
    results: dict[str, Refined] = {}
    for name, method in METHODS.items():
        started = time.monotonic()
        results[name] = method(problem)
        print(f"{path.stem} {name}: {time.monotonic() - started:.1f} s", flush=True)
    found = {name: result.reward.float() for name, result in results.items()}
    found |= {f"std of {name}": result.std.float() for name, result in results.items() if result.std is not None}
    density = results["EBRM"].density
    assert density is not None
    places = pair_places(study) | {"held-out": torch.stack([published.chosen, published.rejected], 1)}
    for test, place in places.items():
        wins = []
        for a, b in (part.unbind(1) for part in place.split(4096)):
            embedding, reward = (problem.embedding[a], problem.embedding[b]), (problem.reward[a], problem.reward[b])
            wins.append(density.prefer(embedding, reward, 65))
        found[f"wins of EBRM in {test}"] = torch.cat(wins)
    found["fusion"] = torch.tensor([density.fusion.power, density.fusion.base_noise])
    with atomic_path(path) as partial:
        save_file(found, partial)


def run_paper(problem: Problem, path: Path) -> None:
    """The paper's variants on one base reward model."""
    started = time.monotonic()
    found = {name: result.reward.float() for name, result in paper_variants(problem).items()}
    print(f"{path.stem}: {time.monotonic() - started:.1f} s", flush=True)
    with atomic_path(path) as partial:
        save_file(found, partial)


def _work(args: argparse.Namespace, cells: list[tuple[float, int]]) -> None:
    torch.set_num_threads(1)
    study = open_study(args.data, args.cache, args.model)
    for noise, seed in cells:
        path = (
            args.out
            / "rewards"
            / f"{'paper-' if args.paper else ''}{Path(args.model).name}-{noise:.2f}-{seed}.safetensors"
        )
        if path.exists():
            continue
        if args.model == "frozen":
            train, held, places = study.split(noise, seed)
            problem = base_problem(study, train, held, study.prompt[places], seed)
        else:  # labels and held-out prompts are those it was trained with
            train, held, places = study.split(noise, 0)
            problem = Problem(study.embedding, study.reward, train, held, study.prompt[places], seed)
        published = study.split(0.0, seed if args.model == "frozen" else 0)[1]
        if args.paper:
            run_paper(replace(problem, few=few_texts(study)), path)
        else:
            run_cell(study, problem, published, path)


def main() -> None:
    """Run what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="frozen")
    parser.add_argument("--paper", action="store_true", help="run the paper's variants instead, which are slow")
    parser.add_argument("--noise", nargs="*", type=float, default=list(NOISES))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    (args.out / "rewards").mkdir(parents=True, exist_ok=True)
    cells = [(noise, seed) for seed in range(args.seeds) for noise in args.noise]
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_work, args=(args, cells[k :: args.workers])) for k in range(args.workers)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise SystemExit("A worker failed; what it wrote before is kept. See above.")


if __name__ == "__main__":
    main()
