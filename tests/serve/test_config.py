from __future__ import annotations

import pytest

from ebrm.errors import ConfigError
from ebrm.serve import ServeConfig
from ebrm.serve.config import host_name


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


@pytest.mark.parametrize("name", ["", "a:80", "http://a", "a.b:80", "[::1]", "*.example.org", "a b", "a,b"])
def test_a_host_that_is_no_name_is_refused(name):
    with pytest.raises(ConfigError, match="allowed_hosts"):
        ServeConfig(allowed_hosts=(name,))


def test_names_of_hosts_without_port_case_and_brackets():
    for header, name in (
        ("A.b:80", "a.b"),
        ("[::1]:80", "::1"),
        ("::1", "::1"),
        ("a.b.", "a.b"),
        ("a.b.:80", "a.b"),
        ("", ""),
    ):
        assert host_name(header) == name
    assert ServeConfig(allowed_hosts=("::1", "127.0.0.1", "RM.example.org", "*")).allowed_hosts
