"""Make the demonstration RM: a linear reward head on the frozen all-MiniLM-L6-v2, by Bradley-Terry, on chat pairs.

    python recipes/demo_rm/train.py --data DATA --out src/ebrm/demo/rm

DATA holds train_mix as a .parquet file. One thread, minutes. The head is saved as ebrm reads reward models in parts: a
LoRA adapter whose update is zero, with the head among its `modules_to_save`. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from rows import Row, rm_training_rows
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from transformers import AutoTokenizer

from ebrm.backbone import MeanPooledBert, encoder_folder
from ebrm.data import TextConfig, make_text_rule, tokenize

#: Longest text, in tokens; pairs with a longer one are left out, for speed.
TEXT_TOKENS = 400
BATCH_TOKENS = 4096
#: Penalties |u|²/2C of the head over standardized embeddings, chosen by the log loss with prompts left out.
PENALTIES = tuple(10.0**step for step in np.arange(-6, -0.9, 0.5))
FOLDS = 5


def read_pairs(rows: list[Row]) -> tuple[list[tuple[int, ...]], np.ndarray, list[str]]:
    """Token ids of the different texts, the pairs [p, 2] over them (chosen, rejected), and the pairs' prompts."""
    tokenizer = AutoTokenizer.from_pretrained(encoder_folder())
    rule = make_text_rule(tokenizer, TextConfig(template="plain", truncation="drop"), TEXT_TOKENS)
    texts: dict[tuple[int, ...], int] = {}
    pairs, prompts = [], []
    for row in rows:
        sides = [tokenize(rule, tokenizer, json.loads(row["prompt"]), row[side]) for side in ("chosen", "rejected")]
        if all(side is not None for side in sides):
            pairs.append([texts.setdefault(tuple(side.ids), len(texts)) for side in sides if side is not None])
            prompts.append(row["prompt"])
    print(f"{len(pairs)} pairs; {len(rows) - len(pairs)} left out because a text is longer than {TEXT_TOKENS} tokens")
    return list(texts), np.array(pairs), prompts


@torch.inference_mode()
def embed(model: torch.nn.Module, texts: list[tuple[int, ...]]) -> np.ndarray:
    """Means of the last hidden states [n, d], as the head reads them."""
    found = np.zeros((len(texts), model.config.hidden_size))
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    while order:
        size = max(1, BATCH_TOKENS // len(texts[order[0]]))
        batch, order = order[:size], order[size:]
        ids = torch.zeros(len(batch), len(texts[batch[0]]), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, i in enumerate(batch):
            ids[row, : len(texts[i])] = torch.tensor(texts[i])
            mask[row, : len(texts[i])] = 1
        hidden = model.bert(input_ids=ids, attention_mask=mask).last_hidden_state
        found[batch] = ((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)).numpy()
        print(f"\r{len(order)} of {len(texts)} texts to read ", end="", flush=True)
    print()
    return found


def fit(embeddings: np.ndarray, pairs: np.ndarray, prompts: list[str]) -> tuple[np.ndarray, float]:
    """Weight and bias of the head: rewards of mean 0 and standard deviation 1 over the texts."""
    mean, std = embeddings.mean(0), embeddings.std(0)
    std[std < 1e-6] = np.inf  # a hidden unit that never changes
    x = (embeddings - mean) / std
    # Both directions of a pair, so that the classes are balanced; there is no intercept.
    difference = x[pairs[:, 0]] - x[pairs[:, 1]]

    def fitted(rows: np.ndarray, penalty: float) -> np.ndarray:
        both, label = np.concatenate([difference[rows], -difference[rows]]), np.repeat([1, 0], len(rows))
        return LogisticRegression(C=penalty, fit_intercept=False, max_iter=2000).fit(both, label).coef_[0]

    losses = np.zeros((len(PENALTIES), len(pairs)))
    right = np.zeros_like(losses)
    for train, held in GroupKFold(FOLDS).split(difference, groups=prompts):
        for number, penalty in enumerate(PENALTIES):
            margin = difference[held] @ fitted(train, penalty)
            losses[number, held], right[number, held] = np.logaddexp(0, -margin), margin > 0
    best = int(losses.mean(1).argmin())
    print(f"C = {PENALTIES[best]:g}: log loss {losses[best].mean():.3f}, accuracy {right[best].mean():.3f} left out")
    weight = fitted(np.arange(len(pairs)), PENALTIES[best])
    weight = weight / (x @ weight).std() / std
    return weight, float(-mean @ weight)


def save(model: torch.nn.Module, weight: np.ndarray, bias: float, out: Path) -> None:
    """Save the head, within an adapter that changes nothing (peft starts LoRA's B at zero)."""
    config = LoraConfig(
        task_type="SEQ_CLS", r=1, lora_alpha=1, target_modules=r".*layer\.5\.attention\.self\.query",
        modules_to_save=["classifier"],
    )  # fmt: skip
    adapted = get_peft_model(model, config)
    head = adapted.base_model.model.classifier.modules_to_save["default"]
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight)[None])
        head.bias.fill_(bias)
    adapted.save_pretrained(out)
    written = out / "adapter_config.json"
    settings = json.loads(written.read_text())
    settings["base_model_name_or_path"] = "sentence-transformers/all-MiniLM-L6-v2"
    written.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    (out / "README.md").unlink(missing_ok=True)  # peft's empty template; the card is written by hand


def main() -> None:
    """Fit the head on the RM's rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    texts, pairs, prompts = read_pairs(rm_training_rows(args.data))
    model = MeanPooledBert.from_pretrained(encoder_folder(), num_labels=1, dtype=torch.float32).eval()
    weight, bias = fit(embed(model, texts), pairs, prompts)
    save(model, weight, bias, args.out)


if __name__ == "__main__":
    main()
