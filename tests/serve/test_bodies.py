"""Bodies: JSON read as Python reads it, within limits that are checked before what exceeds them is read."""

from __future__ import annotations

import asyncio
import json
import math
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.serve.routes import JSON, ask, client, run

from ebrm.serve import ServeConfig, bodies
from ebrm.serve.app import create_app
from ebrm.serve.bodies import MAX_DEPTH, MAX_FIELDS, MAX_NUMBER, JsonLimits, read_json
from ebrm.serve.requests import Refused

WIDE = JsonLimits(values=1000, characters=1000)
TEXT = st.text(st.characters(), max_size=12) | st.sampled_from(['"\\/\b', "\ud800", "\0", "\U0001f600", "\x7f\u2028"])
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4))


def refused(body: bytes, limits: JsonLimits = WIDE) -> Refused:
    with pytest.raises(Refused) as found:
        read_json(body, limits)
    return found.value


@settings(max_examples=100, deadline=None)
@given(value=VALUES, indent=st.sampled_from([None, 0, 2]), ascii=st.booleans())
def test_json_is_read_as_python_reads_it(value: Any, indent: int | None, ascii: bool) -> None:
    written = json.dumps(value, indent=indent, ensure_ascii=ascii).encode("utf-8", "replace")
    assert read_json(written, WIDE) == json.loads(written)


@settings(max_examples=200, deadline=None)
@given(value=VALUES, at=st.integers(0, 60), put=st.binary(max_size=3) | st.sampled_from(list('[]{}:,"\\0-.e tN\x01')))
def test_what_python_cannot_read_is_refused_and_nothing_else(value: Any, at: int, put: bytes | str) -> None:
    written = json.dumps({"a": value}).encode()
    changed = written[:at] + (put if isinstance(put, bytes) else put.encode()) + written[at + 1 :]
    try:
        expected = json.loads(changed.decode("utf-8-sig"), object_pairs_hook=once)
    except (ValueError, RecursionError):
        assert refused(changed).status_code in (400, 422)
    else:
        found = read_json(changed, WIDE)
        assert found == expected or repr(found) == repr(expected)  # NaN


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a name is given twice")
    return dict(pairs)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp500"])
def test_only_utf_8_is_read(encoding: str) -> None:
    assert refused('{"a": ["é"]}'.encode(encoding)).kind == "malformed_json"
    assert read_json(b'\xef\xbb\xbf{"a": ["\xc3\xa9"]}', WIDE) == {"a": ["é"]}  # with a byte order mark


@pytest.mark.parametrize(
    "body", ["[1, 01]", "[1,]", '{"a": 1,}', "[tru]", "[nul", "'a'", '"\n"', '"\\x"', '"a', "1 2", ""]
)
def test_where_it_goes_wrong_is_said(body: str) -> None:
    assert f"at byte {'1' if body.startswith('[nul') else ''}" in str(refused(body.encode()).detail)


def test_lone_surrogates_and_numbers_that_are_none_are_read_as_offline() -> None:
    assert read_json(b'["\\ud800", "\\ud83d\\ude00"]', WIDE) == ["\ud800", "\U0001f600"]
    found = read_json(b"[NaN, -Infinity, Infinity, 1e999, -0, -0.0]", WIDE)
    assert math.isnan(found[0]) and found[1:4] == [-math.inf, math.inf, math.inf] and str(found[4:]) == "[0, -0.0]"


def test_values_are_counted_and_none_is_read_after_the_last_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    scan = bodies.scanstring
    monkeypatch.setattr(bodies, "scanstring", lambda *given: read.append(1) or scan(*given))
    limits = JsonLimits(values=50, characters=100)
    assert len(read_json(b"[" + b'"a",' * 48 + b'"a"]', limits)) == 49  # and the list itself
    read.clear()
    assert refused(b"[" + b'"a",' * 100_000 + b'"a"]', limits).kind == "too_many_values"
    assert len(read) == 49


def test_texts_are_measured_before_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = JsonLimits(values=50, characters=10)
    assert read_json(json.dumps(["\u4f60" * 10]).encode(), limits) == ["\u4f60" * 10]  # six bytes each, escaped
    assert refused(json.dumps(["a" * 11]).encode(), limits).kind == "text"
    monkeypatch.setattr(bodies, "scanstring", None)
    for body in (b'["' + b"a" * 100_000 + b'"]', b'["' + b'\\"' * 100_000, b'["' + b"\\u0041" * 11 + b'"]'):
        assert refused(body, limits).kind == "text"


@pytest.mark.parametrize(
    ("body", "row", "place"),
    [
        ('{"prompts": ["a", "@"]}', 1, "prompts[1]: "),
        ('{"prompts": ["a", [{"role": "user", "content": "@"}]]}', 1, "prompts[1][0].content: "),
        ('{"rendered": ["@"]}', 0, "rendered[0]: "),
        ('{"prompt": "@"}', None, "prompt: "),
        ('{"prompt": [{"content": "a"}, {"content": "@"}]}', None, "prompt[1].content: "),
        ('{"messages": [[], [{"content": "@"}]]}', 1, "messages[1][0].content: "),
        ('{"messages": [{}, {}, {"content": "@"}]}', 0, "messages[2].content: "),
        ('{"query": ["a", "b", "@"]}', 2, "query[2]: "),
        ('{"input": "@"}', None, "input: "),
    ],
)
def test_a_text_that_is_too_long_is_named_by_its_row(body: str, row: int | None, place: str) -> None:
    found = refused(body.replace("@", "x" * 1001).encode())
    assert (found.kind, found.row) == ("text", row) and str(found.detail).startswith(place)


def test_levels_fields_numbers_and_names_have_limits() -> None:
    deep = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH
    assert read_json(deep, WIDE)
    assert refused(b"[" + deep + b"]").kind == "too_deep" == refused(b'{"a":' * 100_000).kind
    many = {f"f{i}": 1 for i in range(MAX_FIELDS)}
    assert read_json(json.dumps(many).encode(), WIDE) == many
    assert "fields" in str(refused(json.dumps(many | {"more": 1}).encode()).detail)
    for number in (b"9" * MAX_NUMBER, b"-0." + b"1" * (MAX_NUMBER - 3)):
        assert read_json(number, WIDE) == json.loads(number)
        assert refused(number + b"1").kind == "malformed_json"
    twice = refused(b'{"prompts": ["a"], "prompts": ["b"]}')
    assert (twice.status_code, twice.kind) == (422, "shape") and '"prompts" is given twice' in str(twice.detail)
    assert len(str(refused(b'{"%b": 1, "%b": 1}' % (b"x" * 900, b"x" * 900)).detail)) < 200


WRONG = [1, None, True, 1e400, {}, [], [[]], [1], [{}], "a"]
FIELDS = {
    "/v1/score": ("prompts", "responses", "messages", "rendered", "density", "other"),
    "/v1/rank": ("prompt", "responses", "density", "other"),
    "/classify": ("model", "input", "messages", "use_activation"),
    "/pooling": ("model", "input", "messages", "use_activation", "task"),
    "/get_reward": ("query", "prompts", "labels"),
}


@pytest.mark.parametrize("route", FIELDS)
def test_checking_stops_at_the_first_fault_of_each_field(
    energy: Any, monkeypatch: pytest.MonkeyPatch, route: str
) -> None:
    app, told = create_app(energy, ServeConfig(max_texts=200)), []
    refusal = bodies.shape_refused
    monkeypatch.setattr(bodies, "shape_refused", lambda faults: told.append(len(faults)) or refusal(faults))
    for field in FIELDS[route]:
        for wrong in WRONG:
            body = {"use_activation": False} if route in ("/classify", "/pooling") else {}
            content = json.dumps(body | {field: [wrong] * 300})
            answer = ask(app, "POST", route, content=content, headers=JSON)
            assert answer.status_code == 422, (field, wrong, answer.text)
            assert len(answer.text) < 1000
    assert max(told) <= 12, told


def test_large_bodies_are_read_on_a_thread_of_their_own(energy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    app, threads = create_app(energy), []
    read = bodies._read
    monkeypatch.setattr(bodies, "_read", lambda *given: threads.append(threading.current_thread()) or read(*given))
    for size in (10, 30_000):
        answer = ask(
            app, "POST", "/v1/score", content=b'{"prompts": [], "responses": []' + b" " * size + b"}", headers=JSON
        )
        assert answer.status_code == 200
    assert threads[0] is threading.current_thread() and threads[1].name == "ebrm-read" and threads[1].daemon


def test_a_body_whose_client_is_gone_is_not_read(energy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    app, go, read = create_app(energy, ServeConfig(deadline=0.05)), threading.Event(), []
    monkeypatch.setattr(bodies, "_read", lambda *given: read.append(1))
    body = b'{"prompts": [], "responses": []' + b" " * 30_000 + b"}"

    async def main() -> None:
        scoring = app.state.scoring
        busy = asyncio.ensure_future(scoring.on_reader(go.wait, 60))
        async with client(app) as c:
            late = await c.post("/v1/score", content=body, headers=JSON)
            assert (late.status_code, late.json()["error"]["kind"]) == (503, "deadline")
        go.set()
        assert await busy
        assert await scoring.on_reader(str, "after it") == "after it"

    run(main())
    assert not read


@pytest.mark.parametrize(
    ("kind", "status"),
    [("application/json", 200), ("Application/JSON; charset=utf-8", 200), ("application/vnd.x+json", 200),
     ("text/plain", 422), ("application/x-www-form-urlencoded", 422), ("multipart/form-data", 422), ("", 422)],
)  # fmt: skip
def test_a_body_is_declared_as_json(energy: Any, kind: str, status: int) -> None:
    body = b'{"prompts": [], "responses": []}'
    assert (
        ask(create_app(energy), "POST", "/v1/score", content=body, headers={"content-type": kind}).status_code == status
    )
