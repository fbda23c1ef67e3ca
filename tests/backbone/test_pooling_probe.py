"""Every way in which a pooling server is known to give something else than the input of the reward head."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.backbone.pooling_server import FakeServer, serving
from tests.tiny import byte_tokenizer, save_rm, word_tokenizer

from ebrm.backbone import float32_head
from ebrm.backbone.pooling import PoolingServer, embeddings, probe, probe_texts
from ebrm.errors import ServerError

TEXTS = probe_texts(byte_tokenizer(), 128)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_rm(tmp_path_factory.mktemp("probe") / "tiny", "llama")


def run(fake: FakeServer, texts: list[list[int]] = TEXTS) -> bool:
    with serving(fake):
        server = PoolingServer(fake.url)
        head = float32_head(fake.model.score)
        return probe(server, head, head.weight, texts, server.read(texts, 1024))


def test_texts_are_one_text_cut_at_its_end_and_at_its_beginning() -> None:
    whole = TEXTS[0]
    assert len(whole) == 128
    assert len(TEXTS) == 6
    assert [text == whole[: 128 - cut] for cut, text in enumerate(TEXTS[1:5], 1)] == [True] * 4
    assert TEXTS[5] == whole[1:]
    assert probe_texts(byte_tokenizer(), 3) == [whole[:3], whole[:2], whole[:1], whole[1:3]]
    assert len(probe_texts(word_tokenizer(), None)[0]) == 128


@pytest.mark.parametrize(
    ("kind", "classifies", "compared"), [("vllm", False, False), ("vllm", True, True), ("sglang", False, True)]
)
def test_what_is_right_passes(folder: Path, kind: str, classifies: bool, compared: bool) -> None:
    assert run(FakeServer(folder, kind, classifies=classifies)) is compared
    assert run(FakeServer(folder, kind, classifies=classifies), [TEXTS[0][:1]]) is compared  # nothing to cut


EITHER = [
    ("softmax", ["been through a softmax", "hidden state itself was expected"]),
    ("sigmoid", ["been through a sigmoid", "hidden state itself was expected"]),
    ("normalized", ["L2-normalized", "all 1.0000", "hidden state as it is was expected"]),
    ("short", ["31 numbers a text", "head of the checkpoint takes 32", "Give the checkpoint it serves"]),
    ("nested", ["128 vectors for one text of 128 tokens", "one vector of 32"]),
    ("first", ["only with its beginning: the first token's; the last token's was expected"]),
    ("mean", ["hardly change when the last token is taken off", "like a mean over all tokens"]),
    ("constant", ["the same embedding for different texts"]),
    ("nan", ["not finite", "--dtype bfloat16"]),
    ("infinite", ["not finite", "--dtype bfloat16"]),
    ("score", ["scores of a classifier instead of embeddings: 1 number a text", "a softmax or a sigmoid", "the 32"]),
]  # fmt: skip
SCORES = [
    ("softmaxed score", ["scores a text 1, where", "softmax over one label, which is always 1"]),
    ("sigmoid score", ["where the checkpoint's head on its embedding gives", "been through a sigmoid"]),
    ("other head", ["Its head or its weights are not the checkpoint's"]),
    ("shifted score", ["logit_mean"]),
    ("nan score", ["scores a text nan, where", "Its head or its weights"]),
    ("two labels", ["a head with 2 labels, and the checkpoint's has one"]),
]
VLLM_ONLY = [
    ("tokens", ["128 vectors for one text of 128 tokens, one a token"]),
    ("special tokens", ["says it read 763 tokens, and 757 were sent (6 texts)", "--max-model-len"]),
]


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
@pytest.mark.parametrize(
    ("wrong", "said"), [*EITHER, *SCORES], ids=lambda value: value if isinstance(value, str) else ""
)
def test_what_is_wrong_is_said_with_the_flag_that_mends_it(
    folder: Path, kind: str, wrong: str, said: list[str]
) -> None:
    with pytest.raises(ServerError) as error:
        run(FakeServer(folder, kind, wrong, classifies=True))
    for words in [*said, "server http://127.0.0.1:", str(folder)]:
        assert words in str(error.value)
    flag = {"vllm": "--runner pooling --convert embed --pooler-config", "sglang": "--is-embedding"}[kind]
    mended_otherwise = ("short", "nan", "infinite", "other head", "shifted score", "nan score", "two labels")
    assert (flag in str(error.value)) == (wrong not in mended_otherwise)


@pytest.mark.parametrize(("wrong", "said"), VLLM_ONLY)
def test_what_only_vllm_can_do_wrong(folder: Path, wrong: str, said: list[str]) -> None:
    with pytest.raises(ServerError) as error:
        run(FakeServer(folder, "vllm", wrong))
    for words in said:
        assert words in str(error.value)


def test_old_names_of_a_flag_are_told(folder: Path) -> None:
    with pytest.raises(ServerError, match="--override-pooler-config"):
        run(FakeServer(folder, "vllm", "normalized"))


def test_rounding_to_half_precision_passes(folder: Path) -> None:
    fake = FakeServer(folder, "sglang")
    exact = fake.pooled
    fake.pooled = lambda ids, activation: torch.tensor(exact(ids, activation)).bfloat16().float().tolist()  # type: ignore[method-assign]
    assert run(fake)


def test_each_answer_is_checked_for_its_shape(folder: Path) -> None:
    fake = FakeServer(folder)
    with serving(fake):
        server = PoolingServer(fake.url)
        assert embeddings(server, server.read([[5, 6], [7]], 64), [[5, 6], [7]], 32).shape == (2, 32)
        with pytest.raises(ServerError, match="32 numbers a text, and the reward head of the checkpoint takes 16"):
            embeddings(server, server.read([[5]], 64), [[5]], 16)
