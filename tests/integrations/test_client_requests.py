from __future__ import annotations

import pytest

from ebrm.errors import ServerError
from ebrm.integrations.client_requests import Plan, Send, _cut


@pytest.mark.parametrize(
    ("sizes", "texts", "room", "parts"),
    [
        ([1, 1, 1], 2, 100, [(0, 2), (2, 3)]),
        ([60, 60, 60], 9, 130, [(0, 2), (2, 3)]),
        ([500, 1, 500], 9, 100, [(0, 1), (1, 2), (2, 3)]),  # one that is too large goes alone, for the server to refuse
        ([1] * 4, 4, 4, [(0, 4)]),
    ],
)
def test_parts_keep_order_and_limits(sizes, texts, room, parts):
    assert [(part.start, part.stop) for part in _cut(sizes, texts, room)] == parts


def test_a_plan_says_what_to_do_and_does_nothing_itself():
    steps = Plan(["http://a", "http://b"], tries=3).info()
    assert next(steps) == Send("GET", "http://a/info")
    assert steps.send(None) == Send("GET", "http://b/info")  # the other one, at once
    assert isinstance(steps.send(None), float)  # both are away: a pause
    assert steps.send(None) == Send("GET", "http://a/info")
    with pytest.raises(ServerError, match="3 tries"):
        steps.send(None)
