from __future__ import annotations

import pytest
from pydantic import ValidationError

from ebrm.serve.requests import MAX_NODES, Message, RankRequest, ScoreRequest


def test_what_a_message_holds_besides_is_not_looked_at():
    assert Message(role="user", content="a", tool_calls=None).model_dump() == {"role": "user", "content": "a"}


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "a"},
        {"prompt": "a", "responses": ["b"], "more": 1},
        {"prompt": "a", "responses": ["b"], "density": MAX_NODES + 1},
        {"prompt": [{"role": "r" * 65, "content": ""}], "responses": ["b"]},
        {"prompt": {"role": "user", "content": ""}, "responses": ["b"]},
    ],
)
def test_rankings_of_another_shape_are_refused(body):
    with pytest.raises(ValidationError):
        RankRequest(**body)


def test_the_two_forms_of_texts():
    assert ScoreRequest(prompts=["a"], responses=["b"]).messages is None
    turns = [{"role": "assistant", "content": "a"}]
    assert ScoreRequest(messages=[turns]).messages[0][0].content == "a"
    assert ScoreRequest(messages=[]).messages == []
