"""Whatever comes in, the server answers with 2xx, 4xx or 503, in one shape, and goes on as before."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.serve.live import Live, serving

from ebrm.model import EnergyRewardModel

# Each example is a request over a socket; how long one takes is not what is tested.
BOUNDED = {"deadline": None, "suppress_health_check": list(HealthCheck)}
MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "there"}]
RIGHT: list[tuple[str, dict[str, Any]]] = [
    ("/v1/score", {"prompts": ["Hi", MESSAGES[:1]], "responses": ["there", ""], "density": 5}),
    ("/v1/score", {"messages": [MESSAGES]}),
    ("/v1/score", {"rendered": ["<|user|>Hi", ""]}),
    ("/v1/rank", {"prompt": "Hi", "responses": ["there", "no"], "density": 3}),
    ("/v1/rank", {"prompt": MESSAGES[:1], "responses": ["there"]}),
    ("/classify", {"model": "m", "input": ["Hi there"], "use_activation": False}),
    ("/classify", {"messages": MESSAGES, "use_activation": False}),
    ("/pooling", {"input": "Hi there", "task": "classify", "use_activation": False}),
    ("/get_reward", {"query": ["Hi there"], "prompts": ["Hi"], "labels": [None]}),
]
ROUTES = sorted({route for route, _ in RIGHT})


@pytest.fixture(scope="module")
def live(model: Path) -> Iterator[Live]:
    with serving(EnergyRewardModel.from_pretrained(model)) as server:
        yield server


@pytest.fixture(scope="module")
def client(live: Live) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live.url, trust_env=False, timeout=60) as opened:
        yield opened


@pytest.fixture(autouse=True)
def goes_on_as_before(client: httpx.Client) -> Iterator[None]:
    before = known(client)
    yield
    assert known(client) == before


def known(client: httpx.Client) -> Any:
    body = {"prompts": ["Say it"] * 2, "responses": ["yes", "no"]}
    return client.post("/v1/score", json=body).raise_for_status().json()["results"]


def send(client: httpx.Client, route: str, body: bytes) -> httpx.Response:
    """Post a body and hold the answer against what the server promises."""
    answer = client.post(route, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (200, 400, 413, 422, 503), (route, body, answer.text)
    if answer.status_code == 200:
        assert finite(answer.json())
    else:
        assert set(answer.json()) == {"error"} and set(answer.json()["error"]) == {"kind", "message", "row"}
        assert answer.json()["error"]["kind"] != "defect", (route, body)
    return answer


def finite(value: Any) -> bool:
    """Whether no number in a JSON value is NaN or infinite."""
    if isinstance(value, dict):
        return all(map(finite, value.values()))
    if isinstance(value, list):
        return all(map(finite, value))
    return not isinstance(value, float) or abs(value) < float("inf")


def written(value: Any) -> bytes:
    """JSON with escapes for all that is not ASCII, so that lone surrogates can be sent, and with NaN and Infinity."""
    return json.dumps(value).encode()


ANY_TEXT = st.text(st.characters(), max_size=20) | st.sampled_from(["\ud800", "\0", "\ufeff", "", "Hi\n\n", "😀" * 80])
NUMBERS = st.integers() | st.floats() | st.sampled_from([10**400, -(10**30), 1e308, -0.0])
LEAVES = st.none() | st.booleans() | NUMBERS | ANY_TEXT
ANYTHING = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ANY_TEXT, inner, max_size=4), max_leaves=12
)


def places(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something stands in a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [here, *(place for key, one in inside for place in places(one, (*here, key)))]


@st.composite
def almost_right(draw: st.DrawFn) -> tuple[str, Any]:
    """A right request with something else in a place or two, a field too many, or one too few."""
    route, body = draw(st.sampled_from(RIGHT))
    body = json.loads(json.dumps(body))
    for _ in range(draw(st.integers(1, 2))):
        *parents, last = draw(st.sampled_from([place for place in places(body) if place]))
        holder = reduce(lambda value, key: value[key], parents, body)
        change = draw(st.sampled_from(["replace", "drop", "add"]))
        if change == "replace":
            holder[last] = draw(ANYTHING)
        elif change == "drop":
            del holder[last]
        elif isinstance(holder, dict):
            holder[draw(ANY_TEXT | st.sampled_from(["messages", "density", "task"]))] = draw(ANYTHING)
        else:
            holder.insert(last, draw(ANYTHING))
        if not any(places(body)):
            break
    return route, body


@settings(max_examples=150, **BOUNDED)
@given(asked=almost_right())
def test_requests_that_are_almost_right(client: httpx.Client, asked: tuple[str, Any]) -> None:
    send(client, asked[0], written(asked[1]))


@settings(max_examples=60, **BOUNDED)
@given(route=st.sampled_from(ROUTES), body=ANYTHING)
def test_bodies_of_any_json(client: httpx.Client, route: str, body: Any) -> None:
    assert send(client, route, written(body)).status_code != 200


@settings(max_examples=60, **BOUNDED)
@given(asked=st.sampled_from(RIGHT), cut=st.integers(0, 200), junk=st.binary(max_size=8))
def test_bodies_of_any_bytes(client: httpx.Client, asked: tuple[str, Any], cut: int, junk: bytes) -> None:
    body = written(asked[1])
    send(client, asked[0], body[:cut] + junk + body[cut + len(junk) :])


@settings(max_examples=40, **BOUNDED)
@given(prompt=ANY_TEXT, responses=st.lists(ANY_TEXT, max_size=5), role=ANY_TEXT)
def test_any_text_is_scored_or_refused(client: httpx.Client, prompt: str, responses: list[str], role: str) -> None:
    answer = send(client, "/v1/rank", written({"prompt": prompt, "responses": responses}))
    if answer.status_code == 200:
        results = answer.json()["results"]
        assert sorted(row["index"] for row in results) == list(range(len(responses)))
        assert not results or sum(row["p_best"] for row in results) == pytest.approx(1, abs=1e-6)
    else:
        assert answer.status_code == 422
        assert answer.json()["error"]["row"] is None or answer.json()["error"]["row"] < max(len(responses), 1)
    send(client, "/v1/score", written({"messages": [[{"role": role, "content": prompt}, MESSAGES[1]]]}))


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"{", 400),
        (b"\xff\xfe{}", 400),
        (b'{"query": ["\xc3\x28"]}', 400),
        (b"[" * 100_000, 400),
        (b"[" * 100_000 + b"]" * 100_000, 400),
        (b'{"density": ' + b"9" * 10_000 + b"}", 400),
        (b'{"prompt": NaN, "responses": [Infinity]}', 422),
        (b"null", 422),
        (b'"text"', 422),
    ],
    ids=lambda value: str(value)[:20],
)
def test_bodies_that_are_no_request(client: httpx.Client, route: str, body: bytes, status: int) -> None:
    assert send(client, route, body).status_code == status


def test_schemathesis_finds_no_server_error(live: Live) -> None:
    """Requests made from the OpenAPI description, right and wrong ones: each answer is one that it announces."""
    import schemathesis
    from schemathesis.checks import load_all_checks
    from schemathesis.specs.openapi import checks

    load_all_checks()
    schema = schemathesis.openapi.from_url(f"{live.url}/openapi.json")
    seen = set()
    for found in schema.get_all_operations():
        operation = found.ok()

        @settings(max_examples=25, **BOUNDED)
        @given(case=operation.as_strategy())
        def answers_as_announced(case: Any) -> None:
            answer = case.call(base_url=live.url)
            assert answer.status_code < 500 or answer.status_code == 503
            conformance = ("status_code", "content_type", "response_schema")
            case.validate_response(answer, checks=[getattr(checks, f"{name}_conformance") for name in conformance])
            seen.add(case.operation.path)

        answers_as_announced()
    assert {*ROUTES, "/health", "/ready", "/info", "/metrics"} <= seen
