from __future__ import annotations

import pytest

from ebrm.errors import ConfigError
from ebrm.serve import ServeConfig


@pytest.mark.parametrize(
    ("field", "value"),
    [("port", -1), ("port", 65536), ("max_wait", -1.0), ("drain", float("nan")), ("deadline", 0.0),
     ("body_seconds", float("inf")), ("max_body", 0), ("max_texts", 0), ("queue", 0)],
)  # fmt: skip
def test_values_outside_their_range_are_refused(field, value):
    with pytest.raises(ConfigError, match=field):
        ServeConfig(**{field: value})


def test_a_request_that_would_never_fit_the_queue_is_refused():
    with pytest.raises(ConfigError, match="`queue` is 8 texts and `max_texts` is 9"):
        ServeConfig(queue=8, max_texts=9)


def test_the_token_comes_from_the_environment_and_is_not_shown(monkeypatch):
    monkeypatch.setenv("EBRM_TOKEN", "from-there")
    assert ServeConfig().token == "from-there"
    given = ServeConfig(token="secret-word")
    assert given.token == "secret-word" and "secret-word" not in repr(given) and "token" not in given.limits()


@pytest.mark.parametrize("token", ["", "two words", "é", "a\n"])
def test_a_token_that_no_client_could_send_does_not_open_the_server(token, monkeypatch):
    monkeypatch.setenv("EBRM_TOKEN", token)
    with pytest.raises(ConfigError) as said:
        ServeConfig()
    assert "EBRM_TOKEN" in str(said.value) and (not token or token not in str(said.value))
