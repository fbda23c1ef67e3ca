"""Read every prompt group with a frozen Gemma 3 270M, each prompt once for all of its responses.

    python recipes/adaptation/gemma.py --data DATA --model GEMMA --out CACHE/gemma

GEMMA is a transformers folder of the base model. A prompt and its responses are one sequence in which no response sees
another (a mask, and positions that go on from the prompt's end), so tokens of a prompt are computed once. Shards of 32
groups are written whole, and a run that was stopped goes on after the last one. Beside the embeddings, the hidden
states after block 12 of 18 are kept in bfloat16, so that models fine-tuned in the upper blocks are read in a third of
the time.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from rows import Group, groups
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

#: Blocks whose hidden states are averaged over the response, and over the whole text.
RESPONSE_BLOCKS, TEXT_BLOCKS = (4, 6, 8, 10, 12, 14, 16, 18), (6, 12)
#: After this block the hidden states are kept.
CUT = 12
PROMPT_TOKENS, RESPONSE_TOKENS, SHARD, PACK = 320, 320, 32, 512
ROLES = {"system": "System", "user": "User", "assistant": "Assistant"}


def tokens_of(group: Group, tokenizer) -> tuple[list[int], list[list[int]]]:
    """Ids of the prompt (its end, if it is long) and of each response (its beginning)."""
    text = "".join(f"{ROLES[turn['role']]}: {turn['content']}\n\n" for turn in group.prompt) + "Assistant:"
    prompt = tokenizer(text, add_special_tokens=False)["input_ids"][-PROMPT_TOKENS + 1 :]
    sides = tokenizer([" " + response for response in group.responses], add_special_tokens=False)["input_ids"]
    return [tokenizer.bos_token_id, *prompt], [side[:RESPONSE_TOKENS] for side in sides]


class Packed:
    """Prompt groups in one sequence of S tokens.

    Attributes:
        ids, position: token ids and positions [S].
        prompt: which group's prompt a token belongs to (or its response's) [S].
        response: number of the response, counted over all groups; -1 in prompts [S].
        count: how many responses.
    """

    def __init__(self, texts: list[tuple[list[int], list[list[int]]]]) -> None:
        ids, position, prompt, response, owner = [], [], [], [], []
        for number, (head, sides) in enumerate(texts):
            ids += head
            position += range(len(head))
            prompt += [number] * len(head)
            response += [-1] * len(head)
            for side in sides:
                ids += side
                position += range(len(head), len(head) + len(side))
                prompt += [number] * len(side)
                response += [len(owner)] * len(side)
                owner.append(number)
        self.ids, self.position = torch.tensor(ids), torch.tensor(position)
        self.prompt, self.response, self.owner = torch.tensor(prompt), torch.tensor(response), torch.tensor(owner)
        self.count = len(owner)

    def masks(self, window: int, dtype: torch.dtype) -> dict[str, Tensor]:
        """Additive attention masks [1, 1, S, S] of full and of sliding attention."""
        order = torch.arange(len(self.ids))
        same = self.prompt[:, None] == self.prompt[None]
        own = (self.response[:, None] == self.response[None]) | (self.response[None] == -1)
        full = same & own & (order[:, None] >= order[None])
        near = full & (self.position[:, None] - self.position[None] < window)
        lowest = torch.finfo(dtype).min
        return {
            name: torch.where(allowed, 0.0, lowest).to(dtype)[None, None]
            for name, allowed in (("full_attention", full), ("sliding_attention", near))
        }

    def response_mean(self, hidden: Tensor) -> Tensor:
        """[S, h] -> [count, h], response only."""
        inside = self.response >= 0
        total = torch.zeros(self.count, hidden.shape[1]).index_add_(0, self.response[inside], hidden[inside].float())
        return total / torch.bincount(self.response[inside], minlength=self.count).clamp_min(1)[:, None]

    def text_mean(self, hidden: Tensor) -> Tensor:
        """[S, h] -> [count, h], prompt and response."""
        inside = self.response >= 0
        own = torch.zeros(self.count, hidden.shape[1]).index_add_(0, self.response[inside], hidden[inside].float())
        count = torch.bincount(self.response[inside], minlength=self.count)
        heads = torch.zeros(int(self.prompt.max()) + 1, hidden.shape[1])
        heads.index_add_(0, self.prompt[~inside], hidden[~inside].float())
        lengths = torch.bincount(self.prompt[~inside], minlength=len(heads))
        return (own + heads[self.owner]) / (count + lengths[self.owner])[:, None]

    def last(self) -> Tensor:
        """Where each response ends [count]."""
        return torch.tensor([int((self.response == number).nonzero()[-1]) for number in range(self.count)])


def run_blocks(model, packed: Packed, hidden: Tensor, first: int, last: int) -> list[Tensor]:
    """Hidden states [S, h] after blocks first+1 … last."""
    masks = packed.masks(model.config.sliding_window, hidden.dtype)
    position = packed.position[None]
    rotary = {kind: model.rotary_emb(hidden, position, kind) for kind in set(model.config.layer_types)}
    found = []
    for number in range(first, last):
        kind = model.config.layer_types[number]
        out = model.layers[number](
            hidden, attention_mask=masks[kind], position_embeddings=rotary[kind], position_ids=position
        )
        hidden = out[0] if isinstance(out, tuple) else out
        found.append(hidden[0])
    return found


def embeddings(model, packed: Packed, states: list[Tensor], first: int = 0) -> dict[str, Tensor]:
    """Last token after the final norm, and means, of every response; `states` are of blocks first+1, …."""
    last = packed.last()
    found = {"pooled": model.norm(states[-1][last]).float()}
    for block in RESPONSE_BLOCKS:
        if block > first:
            found[f"response{block}"] = packed.response_mean(states[block - first - 1])
    for block in TEXT_BLOCKS:
        if block > first:
            found[f"text{block}"] = packed.text_mean(states[block - first - 1])
    return found


def packs(texts: list[tuple[list[int], list[list[int]]]]) -> list[list[int]]:
    """Numbers of groups that are read together: at most PACK tokens, or one group."""
    made: list[list[int]] = []
    size = PACK
    for number, (head, sides) in enumerate(texts):
        tokens = len(head) + sum(map(len, sides))
        if size + tokens > PACK:
            made.append([])
            size = 0
        made[-1].append(number)
        size += tokens
    return made


def load(folder: Path, threads: int):
    """The frozen model and its tokenizer, float32."""
    torch.set_num_threads(threads)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
    return model, AutoTokenizer.from_pretrained(folder)


def check(model, tokenizer, texts: list[tuple[list[int], list[list[int]]]]) -> None:
    """A packed reading is the plain one."""
    packed = Packed(texts)
    states = run_blocks(model, packed, model.embed_tokens(packed.ids[None]), 0, model.config.num_hidden_layers)
    ours, number = embeddings(model, packed, states)["pooled"], 0
    for head, sides in texts:
        for side in sides:
            plain = model(input_ids=torch.tensor([[*head, *side]]), use_cache=False).last_hidden_state[0, -1]
            gap = float((plain - ours[number]).norm() / plain.norm())
            if gap > 1e-4:
                raise SystemExit(f"packed and plain readings differ by {gap:.2g}")
            number += 1


@torch.inference_mode()
def main() -> None:
    """Read what is not in the cache yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    found = groups(args.data)
    model, tokenizer = load(args.model, args.threads)
    check(model, tokenizer, [tokens_of(group, tokenizer) for group in found[:3]])
    started, tokens = time.monotonic(), 0
    shards = range(0, len(found), SHARD)
    for first in [first for offset in range(8) for first in shards[offset::8]]:  # a part of them is of use too
        file = args.out / f"{first // SHARD:04}.safetensors"
        if file.exists():
            continue
        texts = [tokens_of(group, tokenizer) for group in found[first : first + SHARD]]
        parts: dict[str, list[Tensor]] = {}
        for pack in packs(texts):
            packed = Packed([texts[number] for number in pack])
            states = run_blocks(model, packed, model.embed_tokens(packed.ids[None]), 0, model.config.num_hidden_layers)
            now = {name: value.half() for name, value in embeddings(model, packed, states).items()}
            now["hidden"] = states[CUT - 1].bfloat16()
            for name, value in now.items():
                parts.setdefault(name, []).append(value)
            tokens += len(packed.ids)
        partial = file.with_suffix(".partial")
        save_file({name: torch.cat(values) for name, values in parts.items()}, partial)
        partial.rename(file)
        rate = tokens / (time.monotonic() - started)
        done = len(list(args.out.glob("*.safetensors")))
        print(f"{done} of {len(shards)} shards, {tokens:,} tokens, {rate:.0f} tokens/s", flush=True)


if __name__ == "__main__":
    main()
