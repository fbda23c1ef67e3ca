"""Fine-tune MiniLM with LoRA into a reward model on the vendor's pairs: a base that is not a head on frozen embeddings.

    python recipes/adaptation/finetune.py --data DATA --out FOLDER --wrong 0.25

The vendor's prompts are those of `SALT` and `PART`; `minilm.py --model FOLDER` then reads all prompts with it. A few
minutes on one core.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import torch
from minilm import tokens_of
from peft import LoraConfig, get_peft_model
from rows import groups, share
from torch.nn import functional as F  # noqa: N812
from transformers import AutoTokenizer

from ebrm.backbone import MeanPooledBert, encoder_folder

#: Padded tokens a step, both sides of a pair counted.
STEP_TOKENS = 4096
#: Pairs with a longer side, in tokens, are left out: they would take half of the time.
LONGEST = 320
LORA = {"r": 32, "lora_alpha": 32, "lora_dropout": 0.0}
TARGETS = r".*encoder\.layer\.\d+\..*(query|key|value|dense)"
LEARNING_RATE, HEAD_LEARNING_RATE, WEIGHT_DECAY, WARM_UP = 4e-4, 1e-3, 0.01, 0.06
#: Weight of (r_chosen + r_rejected)², which only fixes the arbitrary zero of the reward.
CENTERING = 0.01
#: The part of the prompts that a fine-tuned model is trained on, whatever the seed of the study: `share` under this
#: salt below that number.
SALT, PART = "vendor", 0.4


def training_pairs(data: Path, kind: str, wrong: float) -> list[tuple[list[int], list[int]]]:
    """Token ids (chosen, rejected) of the vendor's pairs, a share `wrong` of them turned round."""
    tokenizer = AutoTokenizer.from_pretrained(encoder_folder())
    made = []
    for group in groups(data):
        if group.kind != kind or share(group.id, SALT) >= PART:
            continue
        ids = [ids for ids, _ in tokens_of(group, tokenizer)]
        for chosen, rejected, _ in group.pairs:
            sides = (ids[chosen], ids[rejected])
            if max(map(len, sides)) > LONGEST:
                continue
            turned = share(f"{group.id} {chosen} {rejected}", "wrong") < wrong
            made.append((sides[1], sides[0]) if turned else sides)
    return made


def batches(pairs: list[tuple[list[int], list[int]]], rng: random.Random) -> list[list[int]]:
    """Pairs of like length together, at most STEP_TOKENS padded tokens a batch, in random order."""
    order = list(range(len(pairs)))
    rng.shuffle(order)
    made: list[list[int]] = []
    for first in range(0, len(order), 512):
        batch: list[int] = []
        for i in sorted(order[first : first + 512], key=lambda i: max(map(len, pairs[i]))):
            longest = max(len(side) for j in (*batch, i) for side in pairs[j])
            if batch and longest * 2 * (len(batch) + 1) > STEP_TOKENS:
                made.append(batch)
                batch = []
            batch.append(i)
        made.append(batch)
    rng.shuffle(made)
    return made


def padded(texts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, both [n, L], padded on the right with 0."""
    ids = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, : len(text)], mask[row, : len(text)] = torch.tensor(text), 1
    return ids, mask


def main() -> None:
    """Train, and save the adapter with its head."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kind", default="chat")
    parser.add_argument("--wrong", type=float, default=0.0)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    base = MeanPooledBert.from_pretrained(
        encoder_folder(), num_labels=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    config = LoraConfig(task_type="SEQ_CLS", target_modules=TARGETS, modules_to_save=["classifier"], **LORA)
    model = get_peft_model(base, config)
    pairs, rng = training_pairs(args.data, args.kind, args.wrong), random.Random(args.seed)
    plan = [batch for _ in range(args.epochs) for batch in batches(pairs, rng)]
    named = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [v for n, v in named if "classifier" not in n], "lr": LEARNING_RATE},
            {"params": [v for n, v in named if "classifier" in n], "lr": HEAD_LEARNING_RATE},
        ],
        weight_decay=WEIGHT_DECAY,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1.0, (s + 1) / (WARM_UP * len(plan))) * max(0.02, 1 - s / len(plan))
    )
    print(f"{len(pairs)} pairs, {len(plan)} steps", flush=True)
    started, recent = time.monotonic(), []
    model.train()
    for step, batch in enumerate(plan, 1):
        ids, mask = padded([side for i in batch for side in pairs[i]])
        reward = model(input_ids=ids, attention_mask=mask).logits[:, 0]
        chosen, rejected = reward.view(-1, 2).unbind(1)
        loss = -F.logsigmoid(chosen - rejected).mean() + CENTERING * (chosen + rejected).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        recent = [*recent[-99:], float((chosen > rejected).float().mean())]
        if step % 25 == 0:
            left = (time.monotonic() - started) / step * (len(plan) - step) / 60
            print(f"step {step}, training accuracy {sum(recent) / len(recent):.3f}, {left:.1f} min left", flush=True)
    model.save_pretrained(args.out)


if __name__ == "__main__":
    main()
