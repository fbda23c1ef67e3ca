"""Embedders give rows of numbers for texts, by models that are there."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch
from tests.tiny import save_rm, word_tokenizer
from transformers import BertConfig, BertModel

from ebrm import load_backbone
from ebrm.backbone import Backbone
from ebrm.data import TextConfig
from ebrm.errors import ConfigError, DataError
from ebrm.references import backbone_embedder, max_similarity, sentence_embedder, token_embedder

TEXTS = ["alpha beta", "gamma", "alpha alpha beta delta"]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return load_backbone(str(save_rm(tmp_path_factory.mktemp("rm") / "rm", "llama")))


def test_a_reward_model_embeds_each_text_as_a_prompt_without_a_response(backbone: Backbone) -> None:
    found = backbone_embedder(backbone)(TEXTS)
    assert found.shape == (3, backbone.embedding_size)
    alone = backbone_embedder(backbone)(TEXTS[1:2])
    torch.testing.assert_close(found[1:2], alone, atol=1e-5, rtol=0)


def test_tokens_are_rows_of_the_table_of_input_embeddings(backbone: Backbone) -> None:
    rows, mask = token_embedder(backbone)(TEXTS)
    table = backbone.model.get_input_embeddings().weight.detach()
    for row, text in enumerate(TEXTS):
        ids = backbone.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert mask[row].sum() == len(ids)
        torch.testing.assert_close(rows[row][mask[row]], table[ids].float())
    assert max_similarity(rows, rows, mask, mask).tolist() == pytest.approx([1.0] * 3)


def test_a_sentence_encoder_is_loaded_from_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    table = importlib.import_module("sentence_transformers.sentence_transformer.modules").StaticEmbedding(
        word_tokenizer()._tokenizer, embedding_weights=torch.randn(200, 8).numpy()
    )
    sentence_transformers.SentenceTransformer(modules=[table], device="cpu").save(str(tmp_path / "encoder"))
    embed = sentence_embedder(str(tmp_path / "encoder"), device="cpu")
    found = embed(TEXTS)
    assert found.dtype == torch.float32 and len(found) == 3 and not torch.equal(found[0], found[1])
    unit = sentence_embedder(str(tmp_path / "encoder"), device="cpu", normalize=True)(TEXTS)
    torch.testing.assert_close(unit, found / found.norm(dim=1, keepdim=True))
    monkeypatch.setitem(sys.modules, sentence_transformers.__name__, None)
    with pytest.raises(ConfigError, match="need sentence-transformers"):
        sentence_embedder("x")


def test_no_embedder_cuts_a_text_in_silence(tmp_path: Path) -> None:
    long = " ".join(["alpha"] * 60)
    cutting = load_backbone(str(save_rm(tmp_path / "rm", "llama")), TextConfig(truncation="prompt_left", max_length=64))
    with pytest.raises(DataError, match=r"texts\[1\] is [\d,]+ tokens longer than the text rule allows"):
        backbone_embedder(cutting)(["alpha", long])
    sentence_transformers = pytest.importorskip("sentence_transformers")
    modules = importlib.import_module("sentence_transformers.sentence_transformer.modules")
    tokenizer = word_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    BertModel(config).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    reading = modules.Transformer(str(tmp_path / "bert"), max_seq_length=32)
    encoder = sentence_transformers.SentenceTransformer(modules=[reading, modules.Pooling(8)], device="cpu")
    encoder.save(str(tmp_path / "encoder"))
    embed = sentence_embedder(str(tmp_path / "encoder"), device="cpu")
    assert embed(TEXTS).shape == (3, 8)
    with pytest.raises(DataError, match=r"texts\[1\] is [\d,]+ tokens long, and .* reads 32"):
        embed(["alpha", long])
