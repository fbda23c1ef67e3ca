"""Tiny random reward models and tokenizers, built in code and saved to a folder like real ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|end|>\n{% endfor %}"
    "{% if thinking is defined %}<think>{{ thinking }}</think>{% endif %}"
)
DECODERS = ("llama", "qwen2", "qwen3", "mistral", "gemma", "gpt_neox")
ENCODERS = ("bert", "roberta", "deberta-v2", "electra")
FAMILIES = (*DECODERS, *ENCODERS)
MORE_FAMILIES = (
    "gpt2",
    "opt",
    "bloom",
    "phi3",
    "mixtral",
    "modernbert",
    "distilbert",
    "bart",
    "t5",
    "xlnet",
)

_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
    # Large enough that every token and position moves the reward far more than rounding does.
    "initializer_range": 0.3,
}
_MORE: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 1},
    "qwen2": {"num_key_value_heads": 1},
    "qwen3": {"num_key_value_heads": 1, "head_dim": 16},
    "mistral": {"num_key_value_heads": 1, "head_dim": 16},
    "gemma": {"num_key_value_heads": 1, "head_dim": 16, "initializer_range": 0.1},
    "gemma2": {"num_key_value_heads": 1, "head_dim": 16},
    "roberta": {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "type_vocab_size": 1},
    "electra": {"embedding_size": 32},
    "gpt2": {"n_embd": 32, "n_head": 2, "n_layer": 2, "n_positions": 128},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "bloom": {"n_head": 2, "n_layer": 2},
    "mixtral": {"num_key_value_heads": 1, "num_local_experts": 4},
    "modernbert": {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3},
    "distilbert": {"dim": 32, "n_heads": 2, "n_layers": 2, "hidden_dim": 48},
    "bart": {
        "d_model": 32,
        **{f"{part}_layers": 2 for part in ("encoder", "decoder")},
        **{f"{part}_attention_heads": 2 for part in ("encoder", "decoder")},
        **{f"{part}_ffn_dim": 48 for part in ("encoder", "decoder")},
    },
    "t5": {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 1},
    "xlnet": {"d_model": 32, "n_head": 2, "n_layer": 2, "d_inner": 48},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "norm_rel_ebd": "layer_norm"},
}


def byte_tokenizer(
    template: str | None = CHAT_TEMPLATE,
    *,
    bos: str | None = "<s>",
    eos: str = "</s>",
    pad: str | None = "<pad>",
    adds_bos: bool = True,
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with a few merges, as decoders have: 256 bytes, merges and special tokens."""
    specials = [token for token in dict.fromkeys((bos, pad, eos, "<|start|>", "<|end|>")) if token]
    vocabulary = {token: place for place, token in enumerate(specials)}
    for byte in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[byte] = len(vocabulary)
    merges = [("Ġ", "t"), ("h", "e"), ("i", "n"), ("Ġt", "he"), ("e", "r"), ("o", "u")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(specials)
    if bos and adds_bos:
        inner.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, vocabulary[bos])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        chat_template=template,
        model_max_length=10**30,
    )


def word_tokenizer(kind: str = "bert") -> PreTrainedTokenizerFast:
    """A character-level WordPiece tokenizer, as encoders have; for "roberta" with its special tokens and their ids."""
    names = {"roberta": ("<s>", "<pad>", "</s>", "<unk>")}.get(kind, ("[CLS]", "[PAD]", "[SEP]", "[UNK]"))
    if kind != "roberta":
        names = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
    characters = [chr(code) for code in range(33, 127)]
    words = ["hello", "the", "user", "assistant", "system"]
    vocabulary = {
        token: place for place, token in enumerate([*names, *characters, *(f"##{c}" for c in characters), *words])
    }
    cls, sep = ("<s>", "</s>") if kind == "roberta" else ("[CLS]", "[SEP]")
    unk, pad = ("<unk>", "<pad>") if kind == "roberta" else ("[UNK]", "[PAD]")
    inner = Tokenizer(models.WordPiece(vocabulary, unk_token=unk))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}", special_tokens=[(cls, vocabulary[cls]), (sep, vocabulary[sep])]
    )
    more = {"bos_token": cls, "eos_token": sep} if kind == "roberta" else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        cls_token=cls,
        sep_token=sep,
        unk_token=unk,
        pad_token=pad,
        model_max_length=10**30,
        **more,
    )


def tokenizer_for(family: str) -> PreTrainedTokenizerFast:
    """The kind of tokenizer that models of a family have."""
    return word_tokenizer(family) if family in ENCODERS else byte_tokenizer()


def model_config(family: str, **changes: Any) -> Any:
    """A tiny configuration of a transformers model type, with one label."""
    vocabulary = len(tokenizer_for(family))
    ids = {} if family in ENCODERS else {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    sizes = {} if family == "xlnet" else _SIZES  # XLNet refuses a limit of positions
    values = {**sizes, "vocab_size": vocabulary, "num_labels": 1, **ids, **_MORE.get(family, {}), **changes}
    return AutoConfig.for_model(family, **values)


def build_model(family: str, kind: str = "classifier", seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random model of a family: a "classifier" with one label, a bare "base", or a "causal" language model."""
    maker = {"classifier": AutoModelForSequenceClassification, "base": AutoModel, "causal": AutoModelForCausalLM}[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = maker.from_config(model_config(family, **changes))
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # zero by default: a lost bias would not show
                torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def save_rm(folder: Path, family: str = "llama", kind: str = "classifier", seed: int = 0, **changes: Any) -> Path:
    """Save a random model with its tokenizer to a folder, and give the folder back."""
    build_model(family, kind, seed, **changes).save_pretrained(folder)
    tokenizer_for(family).save_pretrained(folder)
    return folder


def edit_config(folder: Path, **changes: Any) -> None:
    """Change entries of a saved model's `config.json`; None removes one."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
