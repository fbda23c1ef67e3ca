"""Read every prompt group with all-MiniLM-L6-v2, frozen or fine-tuned by `finetune.py`.

    python recipes/adaptation/minilm.py --data DATA --out CACHE/minilm [--model FOLDER]

Text layout and lengths are those of `gemma.py`. Shards of 256 groups are written whole; a stopped run goes on.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from rows import Group, groups
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer

from ebrm.backbone import MeanPooledBert, encoder_folder

#: Layers (of 6) whose hidden states are averaged over the response, and over the whole text.
RESPONSE_BLOCKS, TEXT_BLOCKS = (2, 3, 4, 5, 6), (2, 4)
LIMIT, RESPONSE_TOKENS, SHARD, BATCH_TOKENS = 512, 320, 256, 4096
ROLES = {"system": "System", "user": "User", "assistant": "Assistant"}


def tokens_of(group: Group, tokenizer) -> list[tuple[list[int], int]]:
    """Ids of each response with its prompt (the prompt's end, if it is long), and where the response begins."""
    text = "".join(f"{ROLES[turn['role']]}: {turn['content']}\n\n" for turn in group.prompt) + "Assistant:"
    prompt = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    sides = tokenizer(group.responses, add_special_tokens=False, verbose=False)["input_ids"]
    made = []
    for side in sides:
        response = side[:RESPONSE_TOKENS]
        head = prompt[-(LIMIT - 2 - len(response)) :]
        made.append(([tokenizer.cls_token_id, *head, *response, tokenizer.sep_token_id], 1 + len(head)))
    return made


def load(folder: Path | None) -> torch.nn.Module:
    """The encoder with a reward head; the frozen one's head is zero."""
    model = MeanPooledBert.from_pretrained(encoder_folder(), num_labels=1, dtype=torch.float32)
    if folder is None:
        torch.nn.init.zeros_(model.classifier.weight)
        torch.nn.init.zeros_(model.classifier.bias)
    else:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, folder).merge_and_unload()
    return model.eval().requires_grad_(False)


def read_batch(model: torch.nn.Module, batch: list[tuple[list[int], int]]) -> dict[str, Tensor]:
    """Pooled embedding (mean of the last layer over the text), means, and reward of every text."""
    width = max(len(ids) for ids, _ in batch)
    ids, mask, inside = (torch.zeros(len(batch), width, dtype=torch.long) for _ in range(3))
    for row, (tokens, start) in enumerate(batch):
        ids[row, : len(tokens)], mask[row, : len(tokens)] = torch.tensor(tokens), 1
        inside[row, min(start, len(tokens) - 2) : len(tokens) - 1] = 1
    states = model.bert(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states

    def mean(layer: int, weight: Tensor) -> Tensor:
        return (states[layer] * weight[..., None]).sum(1) / weight.sum(1, keepdim=True)

    found = {"pooled": mean(6, mask)}
    found |= {f"response{layer}": mean(layer, inside) for layer in RESPONSE_BLOCKS}
    found |= {f"text{layer}": mean(layer, mask) for layer in TEXT_BLOCKS}
    found["reward"] = model.classifier(found["pooled"])[:, :1]
    return found


@torch.inference_mode()
def main() -> None:
    """Read what is not in the cache yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--skip", nargs="*", default=[], help="kinds that are left out, as NaN")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    found, model, tokenizer = groups(args.data), load(args.model), AutoTokenizer.from_pretrained(encoder_folder())
    started, done = time.monotonic(), 0
    for first in range(0, len(found), SHARD):
        file = args.out / f"{first // SHARD:04}.safetensors"
        if file.exists():
            continue
        part = found[first : first + SHARD]
        texts = [text for group in part for text in tokens_of(group, tokenizer)]
        asked = [group.kind not in args.skip for group in part for _ in group.responses]
        order = sorted((row for row in range(len(texts)) if asked[row]), key=lambda row: -len(texts[row][0]))
        columns: dict[str, Tensor] = {}
        while order:
            many = max(1, BATCH_TOKENS // len(texts[order[0]][0]))
            rows, order = order[:many], order[many:]
            for name, value in read_batch(model, [texts[row] for row in rows]).items():
                column = columns.setdefault(name, torch.full((len(texts), value.shape[1]), torch.nan))
                column[rows] = value
        partial = file.with_suffix(".partial")
        save_file({n: v if n == "reward" else v.half() for n, v in columns.items()}, partial)
        partial.rename(file)
        done += len(texts)
        print(f"{first + SHARD} of {len(found)} prompts, {done / (time.monotonic() - started):.0f} texts/s", flush=True)


if __name__ == "__main__":
    main()
