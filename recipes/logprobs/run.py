"""Rewards from a language model's log-probabilities on real prompts, beside the packaged reward model's.

    python recipes/logprobs/run.py --data DATA --model GEMMA --cache CACHE [--padded 24] [--pairs 16] [--minutes 15]
    python recipes/logprobs/page.py

DATA is the folder of preference sets, GEMMA a transformers folder of a language model (the page: Gemma 3 270M, base).
Two things are read: right answers to short questions, as they are, padded with sentences that say nothing, and twice in
a row; and preference pairs of several sets. Each item is written to CACHE when it is done, and a run that was stopped
goes on after the last one. Only ids and numbers go into results/, no texts.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import torch

from ebrm.backbone import BackboneConfig, load_backbone
from ebrm.data import Prompt
from ebrm.logprobs import (
    FOLLOWUPS,
    SIX_DIMENSIONS,
    CausalLogprobs,
    endogenous_reward,
    followup_likelihood,
    log_density_ratio,
    self_aligned,
    self_aligned_attribution,
    yes_no_log_odds,
)
from ebrm.utils.files import write_json

RESULTS = Path(__file__).parent / "results"
SETS = ("hhh_alignment", "hh_harmless_test", "xstest_pairs", "llmbar")
#: The source of questions with right answers, in the training mix.
QUESTIONS = "benedictflorance/truthfulqa_experiments"
#: Most characters of a prompt with its response.
LONGEST = 160
#: What the strong side of the density ratio is told: Dr. SoW customizes the strong model by its context.
INSTRUCTION = "You are a helpful, honest and harmless assistant. Answer what is asked, correctly, and do no harm."
#: Sentences that say nothing about any prompt.
BEFORE = "This is an interesting question. Let us look at it calmly and step by step."
AFTER = "I hope that this is what you wanted to know. Feel free to ask me again."
#: The prompt on which every reward is shown.
EXAMPLE = "What is the capital of Australia?"
ANSWERS = ("The capital of Australia is Canberra.", "I like bananas, and Sydney has many beaches.")


@dataclass(frozen=True)
class Item:
    """One prompt with responses that are compared.

    Attributes:
        kind: "padded" or the set's name.
        id: of the row in its file.
        prompt: messages.
        responses: name to text.
    """

    kind: str
    id: str
    prompt: list[dict[str, str]]
    responses: dict[str, str]

    @property
    def key(self) -> str:
        """What the item is called in the cache."""
        return f"{self.kind}/{self.id}"


def rows(data: Path, name: str) -> list[dict[str, Any]]:
    """Rows of a set whose texts are short, in an order that their ids give."""
    found = []
    for row in parquet.read_table(data / f"{name}.parquet").to_pylist():
        row["messages"] = json.loads(row["prompt"])
        around = sum(len(turn["content"]) for turn in row["messages"])
        if around + max(len(row["chosen"]), len(row["rejected"])) <= LONGEST:
            found.append(row)
    return sorted(found, key=lambda row: hashlib.sha256(str(row["id"]).encode()).hexdigest())


def padded_items(data: Path, count: int) -> Iterator[Item]:
    """Right answers to questions of TruthfulQA, each question once."""
    seen: set[str] = set()
    for row in rows(data, "train_mix"):
        if (
            row["source"] == "benedictflorance/truthfulqa_experiments"
            and row["prompt"] not in seen
            and len(seen) < count
        ):
            seen.add(row["prompt"])
            right = row["chosen"].strip()
            responses = {"concise": right, "padded": f"{BEFORE}\n{right}\n{AFTER}", "twice": f"{right}\n{right}"}
            yield Item("padded", row["id"], row["messages"], responses)


def pair_items(data: Path, count: int) -> Iterator[Item]:
    """Pairs of all sets by turns, so that a run that is stopped has as many of each."""
    sets = [rows(data, name)[:count] for name in SETS]
    for place in range(count):
        for name, own in zip(SETS, sets, strict=True):
            if place < len(own):
                row = own[place]
                yield Item(name, row["id"], row["messages"], {side: row[side] for side in ("chosen", "rejected")})


def instructed(prompt: list[dict[str, str]]) -> list[dict[str, str]]:
    """The prompt after the instruction."""
    return [{"role": "system", "content": INSTRUCTION}, *prompt]


def rewards(source: CausalLogprobs, reward_model: Any, item: Item) -> dict[str, dict[str, float]]:
    """Every reward of every response of an item, by the reward's name and the response's."""
    prompt: Any = item.prompt
    texts = list(item.responses.values())
    plain = source(prompt, texts, log_z=True)
    alone = source(prompt, texts, unconditional=True)
    found = {
        "log-likelihood": plain.sum(),
        "log-likelihood a token": plain.mean(),
        "self-aligned": self_aligned(plain, alone),
        "endogenous": endogenous_reward(plain).sum(1),
        "endogenous a token": endogenous_reward(plain).sum(1) / plain.lengths,
        "tokens": plain.lengths.float(),
        "packaged RM": reward_model.read_texts(prompt, texts, on_error="nan")[0].reward,
    }
    if item.kind != "padded":
        strong = source(instructed(item.prompt), texts)
        found["density ratio"] = log_density_ratio(strong, plain, reduction="sum")
        found["density ratio a token"] = log_density_ratio(strong, plain, reduction="mean")
    return {
        name: {response: round(float(value), 6) for response, value in zip(item.responses, values, strict=True)}
        for name, values in found.items()
    }


def example(source: CausalLogprobs) -> dict[str, Any]:
    """Every reward on one prompt, a right and a useless answer, and the tokens that the prompt says most about."""
    answers = list(ANSWERS)
    plain, alone = source(EXAMPLE, answers, log_z=True), source(EXAMPLE, answers, unconditional=True)
    strong = source(instructed([{"role": "user", "content": EXAMPLE}]), answers)
    question = "Does the response answer the question? Say Yes or No."
    asked: list[Prompt] = [f"{EXAMPLE}\n\nResponse: {answer}\n\n{question}" for answer in answers]
    sides = []
    for kind in ("positive", "negative"):
        said = [getattr(FOLLOWUPS[name], kind)[0] for name in SIX_DIMENSIONS]
        sides.append(torch.stack([source.followup(EXAMPLE, answers, one).mean() for one in said], 1))
    gain = self_aligned_attribution(plain, alone)[0]
    ids = source._tokens(0, (EXAMPLE, answers[0]))
    tokens = [source.tokenizer.decode([token]) for token in ids.ids[ids.start : ids.end]]
    shown = {
        "log-likelihood a token": plain.mean(),
        "self-aligned": self_aligned(plain, alone),
        "endogenous": endogenous_reward(plain).sum(1),
        "density ratio": log_density_ratio(strong, plain, reduction="sum"),
        "follow-up likelihood": followup_likelihood(*sides, SIX_DIMENSIONS, SIX_DIMENSIONS),
        "yes-no log odds": yes_no_log_odds(*source.answer_logits(asked)),
    }
    return {
        "prompt": EXAMPLE,
        "answers": answers,
        "rewards": {name: [round(float(value), 4) for value in values] for name, values in shown.items()},
        "attribution": [[token, round(float(value), 3)] for token, value in zip(tokens, gain, strict=False)],
    }


def done_before(file: Path, settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Items of earlier runs of the same settings; a line that was cut short is read again."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(settings) + "\n", encoding="utf-8")
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    if not whole or json.loads(whole[0]) != settings:
        raise SystemExit(f"{file} is of another model or other texts ({lines[:1]}); give another cache.")
    if len(whole) < len(lines):
        file.write_text("".join(whole), encoding="utf-8")
    return {item["key"]: item for item in map(json.loads, whole[1:])}


def main(argv: list[str] | None = None) -> None:
    """Read all items and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", required=True, help="folder or Hub name of a causal language model")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--padded", type=int, default=24, help="questions")
    parser.add_argument("--pairs", type=int, default=16, help="pairs of each set")
    parser.add_argument("--minutes", type=float, default=15.0, help="after which no new item is begun")
    parser.add_argument("--dtype", default="float32", help="bfloat16 where the processor has it")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    source = CausalLogprobs(BackboneConfig(arguments.model, dtype=arguments.dtype))
    reward_model = load_backbone("demo")
    model = {"model": Path(source.name).name, "dtype": arguments.dtype, "longest": LONGEST}
    file = arguments.cache / "rewards.jsonl"
    done = done_before(file, model)
    parts = list(padded_items(arguments.data, arguments.padded)), list(pair_items(arguments.data, arguments.pairs))
    # By turns, so that a run that is stopped has some of both.
    placed = [((place + 1) / len(part), item.key, item) for part in parts for place, item in enumerate(part)]
    items = [item for _, _, item in sorted(placed, key=lambda one: one[:2])]
    left = [item for item in items if item.key not in done]
    print(f"{len(items)} items, {len(items) - len(left)} of them done before", flush=True)
    started = time.monotonic()
    for number, item in enumerate(left):
        spent = time.monotonic() - started
        if spent > 60 * arguments.minutes:
            print(f"stopped after {spent / 60:.1f} minutes; {len(left) - number} items are left")
            break
        line = {"key": item.key, "kind": item.kind, "prompt": sha(item), "rewards": rewards(source, reward_model, item)}
        with file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(line) + "\n")
        done[item.key] = line
        spent = time.monotonic() - started
        each = spent / (number + 1)
        print(f"{number + 1}/{len(left)} {item.key}: {each:.1f} s an item, {each * (len(left) - number - 1) / 60:.1f} "
              "minutes left", flush=True)  # fmt: skip
    arguments.out.mkdir(parents=True, exist_ok=True)
    read = [done[item.key] for item in items if item.key in done]
    write_json(arguments.out / "rewards.json", {**model, "asked": len(items), "items": read})
    write_json(arguments.out / "example.json", example(source))


def sha(item: Item) -> str:
    """The prompt, as what intervals resample."""
    return hashlib.sha256(json.dumps(item.prompt).encode()).hexdigest()[:12]


if __name__ == "__main__":
    main()
