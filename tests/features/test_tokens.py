from __future__ import annotations

import hashlib

import numpy as np
import pytest
from tests.features.fakes import FakeBackbone, ask

from ebrm.data import prompt_id
from ebrm.errors import TextError
from ebrm.features import Text
from ebrm.features.distributed import Ranks
from ebrm.features.tokens import text_id, tokenize_texts


def text(prompt: str, response: str, where: str = "here") -> Text:
    return Text(prompt_id(ask(prompt)), ask(prompt), response, where)


def test_a_text_is_known_by_its_prompt_and_response():
    one = text("p", "a")
    assert one.id == text_id(one.prompt_id, "a") == text("p", "a", "elsewhere").id
    assert one.id == hashlib.sha256(f"{one.prompt_id}\na".encode()).hexdigest()[:16]
    assert len({one.id, text("p", "b").id, text("q", "a").id}) == 3
    assert text("p", "\ud83d").id  # half an emoji has an id, too


def test_each_different_text_is_tokenized_once():
    backbone = FakeBackbone()
    given = [text("p", "a", "1"), text("p", "b", "2"), text("p", "a", "3"), text("q", "a", "4")]
    made, numbers, refused = tokenize_texts(backbone, given, len(given), Ranks())
    assert numbers == [0, 1, 0, 2] and refused == {}
    assert backbone.tokenized == len(made) == 3
    assert made.where == ["1", "2", "4"]
    assert made.text_id == [given[0].id, given[1].id, given[3].id]
    for number, of in enumerate((given[0], given[1], given[3])):
        assert made.item(number) == backbone.tokenize(of.prompt, of.response).ids


def test_what_the_rule_refuses_is_named_or_stops_the_run():
    given = [text("p", "a", "1"), text("p", "long " * 9, "2"), text("p", "b", "3")]
    for truncation in ("error", "drop"):
        backbone = FakeBackbone(max_length=10, truncation=truncation)
        made, numbers, refused = tokenize_texts(backbone, given, 3, Ranks(), tolerant=True)
        assert numbers == [0, None, 1] and len(made) == 2
        assert list(refused) == [given[1].id]
    assert refused[given[1].id] == "longer than the 10 tokens that the RM reads"
    with pytest.raises(TextError, match=r"^2: "):
        tokenize_texts(FakeBackbone(max_length=10), given, 3, Ranks())


def test_taking_some_texts_keeps_their_tokens():
    given = [text("p", "x" * n, str(n)) for n in (3, 1, 4, 2)]
    made, _, _ = tokenize_texts(FakeBackbone(), given, 4, Ranks())
    some = made.take(np.array([1, 3]))
    assert [some.item(0), some.item(1)] == [made.item(1), made.item(3)]
    assert (some.where, some.text_id) == (["1", "2"], [given[1].id, given[3].id])
    assert some.lengths.tolist() == made.lengths[[1, 3]].tolist()
    assert some.fingerprint() != made.fingerprint() == made.take(np.arange(4)).fingerprint()
