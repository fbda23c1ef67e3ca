"""Train the demonstration RM: a LoRA adapter and a linear head on all-MiniLM-L6-v2, by Bradley-Terry.

    python recipes/demo_rm/train.py --data DATA --out src/ebrm/demo/rm

DATA holds train_mix, hh_harmless_test, xstest_pairs, hhh_alignment and rm_bench as .parquet files.
One thread, bfloat16 autocast: about half an hour on one core of a two-core machine. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from rows import Row, rm_training_rows
from torch.nn import functional as F  # noqa: N812
from transformers import AutoTokenizer

from ebrm.backbone import MeanPooledBert, encoder_folder
from ebrm.data import TextConfig, make_text_rule, tokenize

#: Tokens, padding included, a step (both sides of a pair count).
STEP_TOKENS = 4096
#: Longest response, in tokens; the rest of the 512 is the prompt's end.
RESPONSE_TOKENS = 507
LORA = {"r": 32, "lora_alpha": 32, "lora_dropout": 0.0}
TARGETS = r".*encoder\.layer\.\d+\..*(query|key|value|dense)"
LEARNING_RATE, HEAD_LEARNING_RATE, WEIGHT_DECAY, WARM_UP = 4e-4, 1e-3, 0.01, 0.06
#: Weight of (r_chosen + r_rejected)², which only fixes the arbitrary zero of the reward.
CENTRE = 0.01


def read_pairs(rows: list[Row], seed: int) -> list[tuple[list[int], list[int]]]:
    """Token ids (chosen, rejected) of every pair whose responses fit, shuffled."""
    tokenizer = AutoTokenizer.from_pretrained(encoder_folder())
    rule = make_text_rule(tokenizer, TextConfig(template="plain", truncation="prompt_left"), 512)
    pairs, left_out = [], 0
    for row in rows:
        sides = (row["chosen"], row["rejected"])
        if any(
            len(tokenizer(side, add_special_tokens=False, verbose=False)["input_ids"]) > RESPONSE_TOKENS
            for side in sides
        ):
            left_out += 1
            continue
        chosen, rejected = (tokenize(rule, tokenizer, json.loads(row["prompt"]), side) for side in sides)
        pairs.append((chosen.ids, rejected.ids))
    print(f"{len(pairs)} pairs; {left_out} left out because a response is longer than {RESPONSE_TOKENS} tokens")
    random.Random(seed).shuffle(pairs)
    return pairs


def batches(pairs: list[tuple[list[int], list[int]]], rng: random.Random) -> list[list[int]]:
    """Pairs of like length together, at most STEP_TOKENS padded tokens a batch, in random order."""
    order = list(range(len(pairs)))
    rng.shuffle(order)
    made = []
    for first in range(0, len(order), 1024):
        window = sorted(order[first : first + 1024], key=lambda i: max(map(len, pairs[i])))
        batch: list[int] = []
        for i in window:
            longest = max(len(side) for j in (*batch, i) for side in pairs[j])
            if batch and longest * 2 * (len(batch) + 1) > STEP_TOKENS:
                made.append(batch)
                batch = []
            batch.append(i)
        made.append(batch)
    rng.shuffle(made)
    return made


def pad(texts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, both [n, L], padded on the right with 0."""
    ids = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.tensor(text)
        mask[row, : len(text)] = 1
    return ids, mask


def train(rows: list[Row], out: Path, epochs: float, seed: int) -> None:
    """Train on pairs and save the adapter and the head."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    base = MeanPooledBert.from_pretrained(
        encoder_folder(), num_labels=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    config = LoraConfig(task_type="SEQ_CLS", target_modules=TARGETS, modules_to_save=["classifier"], **LORA)
    model = get_peft_model(base, config)
    pairs = read_pairs(rows, seed)
    steps = int(len(batches(pairs, random.Random(1))) * epochs)
    head = [p for n, p in model.named_parameters() if p.requires_grad and "classifier" in n]
    lora = [p for n, p in model.named_parameters() if p.requires_grad and "classifier" not in n]
    optimizer = torch.optim.AdamW(
        [{"params": lora, "lr": LEARNING_RATE}, {"params": head, "lr": HEAD_LEARNING_RATE}], weight_decay=WEIGHT_DECAY
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1.0, (s + 1) / (WARM_UP * steps)) * max(0.02, 1 - s / steps)
    )
    rng, step, started, recent = random.Random(seed), 0, time.monotonic(), []
    model.train()
    while step < steps:
        for batch in batches(pairs, rng):
            if step == steps:
                break
            ids, mask = pad([side for i in batch for side in pairs[i]])
            with torch.autocast("cpu", dtype=torch.bfloat16):
                reward = model(input_ids=ids, attention_mask=mask).logits[:, 0]
            chosen, rejected = reward.view(-1, 2).unbind(1)
            loss = -F.logsigmoid(chosen - rejected).mean() + CENTRE * (chosen + rejected).square().mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step += 1
            recent = [*recent[-99:], float((chosen > rejected).float().mean())]
            if step % 50 == 0:
                left = (time.monotonic() - started) / step * (steps - step) / 60
                print(
                    f"step {step} of {steps}, training accuracy {sum(recent) / len(recent):.3f}, {left:.0f} min left",
                    flush=True,
                )
    model.save_pretrained(out)
    written = out / "adapter_config.json"
    settings = json.loads(written.read_text())
    settings["base_model_name_or_path"] = "sentence-transformers/all-MiniLM-L6-v2"
    written.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    (out / "README.md").unlink(missing_ok=True)  # peft's empty template; the card is written by hand


def main() -> None:
    """Train the demonstration RM on its rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=float, default=1.5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    train(rm_training_rows(args.data), args.out, args.epochs, args.seed)


if __name__ == "__main__":
    main()
