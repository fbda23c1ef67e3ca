"""An exported folder gives the same reward through every library that loads it and tokenizes by itself."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.integrations.autos import PROMPTS, RESPONSES, fitted, messages
from transformers import AutoTokenizer, BertTokenizer, LlamaTokenizer, RobertaTokenizer, T5Tokenizer, pipeline

from ebrm.data import TextConfig, make_text_rule, tokenize
from ebrm.integrations import EBRMConfig, export
from ebrm.integrations.tokenizer import make_tokenizer


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pipelines")


def exported(root: Path, family: str, kind: bool, **text: Any) -> tuple[Path, torch.Tensor, list[str]]:
    """An exported folder, what the model itself scores, and the texts as the folder's template writes them."""
    model = fitted(root, family, **text)
    folder = root / f"{family}-{kind}-{'-'.join(text.values())}"
    if not folder.exists():
        export(model, folder, standalone=kind)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    conversations = [messages(*pair) for pair in zip(PROMPTS, RESPONSES, strict=True)]
    texts = [tokenizer.apply_chat_template(turns, tokenize=False) for turns in conversations]
    return folder, model.score(PROMPTS, RESPONSES).reward, texts


@pytest.mark.parametrize(
    ("kind", "family", "text"),
    [
        (True, "llama", {}),
        (False, "llama", {}),
        (True, "bert", {}),
        (False, "llama", {"template": "plain", "eos": "append"}),
        (False, "llama", {"bos": "strip"}),
    ],
    ids=["standalone", "referring", "bert", "plain", "no start"],
)
def test_a_pipeline_gives_the_reward(root: Path, kind: bool, family: str, text: dict[str, str]) -> None:
    folder, expected, texts = exported(root, family, kind, **text)
    classify = pipeline("text-classification", model=str(folder))
    for options in ({}, {"batch_size": 4}, {"add_special_tokens": False}, {"truncation": True}):
        found = torch.tensor([answer["score"] for answer in classify(texts, **options)])
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", [True, False], ids=["standalone", "referring"])
def test_a_cross_encoder_gives_the_reward(root: Path, kind: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        CrossEncoder = pytest.importorskip("sentence_transformers").CrossEncoder
        folder, expected, _ = exported(root, "llama", kind)
        encoder = CrossEncoder(str(folder), device="cpu", local_files_only=True)
        conversations = [messages(*pair) for pair in zip(PROMPTS, RESPONSES, strict=True)]
        torch.testing.assert_close(torch.tensor(encoder.predict(conversations)), expected, atol=1e-5, rtol=0)
        strings = [k for k, prompt in enumerate(PROMPTS) if isinstance(prompt, str)]
        found = encoder.predict([(PROMPTS[k], RESPONSES[k]) for k in strings])
        torch.testing.assert_close(torch.tensor(found), expected[strings], atol=1e-5, rtol=0)


def test_every_folder_says_that_rewards_are_to_be_left_as_they_are(root: Path, tmp_path: Path) -> None:
    fitted(root).save_pretrained(tmp_path / "fit")
    for folder in (exported(root, "llama", True)[0], exported(root, "llama", False)[0], tmp_path / "fit"):
        config = json.loads((folder / "config.json").read_text())
        assert config["problem_type"] == "regression"
        assert config["sentence_transformers"] == {"activation_fn": "torch.nn.modules.linear.Identity"}
        del config["problem_type"], config["sentence_transformers"]  # as folders were written before
        assert EBRMConfig(**config).problem_type == "regression"


WORDS = ["<unk>", "<s>", "</s>", "<pad>", "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<mask>", "▁", "Ġ", *"abU:se"]
OWN: dict[str, Any] = {
    "BertTokenizer": lambda: BertTokenizer(vocab={word: k for k, word in enumerate(WORDS)}),
    "LlamaTokenizer": lambda: LlamaTokenizer({word: k for k, word in enumerate(WORDS)}, merges=[], add_bos_token=True),
    "RobertaTokenizer": lambda: RobertaTokenizer(vocab={word: k for k, word in enumerate(WORDS)}, merges=[]),
    "T5Tokenizer": lambda: T5Tokenizer(vocab=[(word, -1.0) for word in WORDS]),
}


@pytest.mark.parametrize("name", OWN)
def test_tokenizers_of_families_add_nothing_even_when_loaded_again(name: str, tmp_path: Path) -> None:
    tokenizer = OWN[name]()
    # Metaspace writes no space after a start token that stands in the text, so Llama's has to be the template's.
    template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}" if "Llama" in name else "plain"
    rule = make_text_rule(tokenizer, TextConfig(template=template, max_length=100), None)
    make_tokenizer(rule, tokenizer).save_pretrained(tmp_path)
    made = AutoTokenizer.from_pretrained(tmp_path)
    text = made.apply_chat_template(messages("a b", "b"), tokenize=False)
    expected = tokenize(rule, tokenizer, "a b", "b").ids
    assert made(text)["input_ids"] == made(text, add_special_tokens=False)["input_ids"] == expected
    assert tokenizer("a")["input_ids"] != tokenizer("a", add_special_tokens=False)["input_ids"]  # left as it was


def test_one_that_cannot_be_told_not_to_is_said(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = OWN["BertTokenizer"]()

    class Stubborn(type(tokenizer)):  # type: ignore[misc]
        backend_tokenizer = None

    tokenizer.__class__ = Stubborn
    make_tokenizer(make_text_rule(tokenizer, TextConfig(template="plain", max_length=100), None), tokenizer)
    assert "adds special tokens of its own to texts that have them already" in caplog.text
