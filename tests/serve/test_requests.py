"""Requests of another shape, and the one shape of errors."""

from __future__ import annotations

import pytest
from tests.serve.routes import ask

from ebrm.serve import ServeConfig
from ebrm.serve.app import create_app
from ebrm.serve.requests import Message, prompt_of


@pytest.fixture(scope="module")
def app(energy):
    return create_app(energy, ServeConfig(max_texts=3))


def refusal(answer, code, kind, row=None):
    assert answer.status_code == code, answer.text
    assert set(answer.json()) == {"error"} and set(answer.json()["error"]) == {"kind", "message", "row"}
    assert (answer.json()["error"]["kind"], answer.json()["error"]["row"]) == (kind, row)
    return answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "row", "said"),
    [
        # To /v1/rank, by their prompt; the others to /v1/score.
        ({"prompt": "a"}, None, "responses: Field required."),
        ({"prompt": "a", "responses": ["b"], "more": 1}, None, "more: Extra inputs are not permitted."),
        ({"prompt": "a", "responses": ["b"], "density": 1026}, None, "density: Input should be less than or equal"),
        ({"prompt": {"role": "user", "content": ""}, "responses": ["b"]}, None, "prompt: Input should be a valid"),
        (
            {"prompt": [{"role": "r" * 65, "content": ""}], "responses": ["b"]},
            None,
            "prompt[0].role: String should have",
        ),
        ([], None, "valid dictionary"),
        ({}, None, "Give prompts and responses, or messages, or rendered."),
        ({"prompts": ["a"]}, None, "Give prompts and responses, or messages, or rendered."),
        ({"prompts": ["a"], "responses": []}, None, "1 prompts but 0 responses"),
        ({"prompts": ["a", 3], "responses": ["b", "c"]}, 1, "prompts[1]: Input should be a valid string."),
        ({"prompts": [[{"content": "a"}]], "responses": ["b"]}, 0, "prompts[0][0].role: Field required."),
        ({"prompts": "ab", "responses": ["b", "c"]}, None, "prompts is one string; give a list, one prompt a row."),
        ({"prompt": "a", "responses": "bc"}, None, "responses is one string; give a list, one response a row."),
        ({"prompts": ["a"], "responses": [None]}, 0, "responses[0]: Input should be a valid string."),
        ({"prompts": ["a"], "responses": ["b"], "densty": 5}, None, "densty: Extra inputs are not permitted."),
        ({"prompts": ["a"], "responses": ["b"], "density": 2}, None, "density: Input should be greater than or equal"),
        ({"prompts": ["a"], "responses": ["b"], "density": 1026}, None, "density: Input should be less than or equal"),
        ({"prompts": ["a"], "responses": ["b"], "messages": []}, None, "not several"),
        ({"prompts": ["a"], "rendered": []}, None, "not several"),
        ({"rendered": "a"}, None, "rendered is one string; give a list, one text a row."),
        ({"messages": [[{"role": "assistant", "content": "a"}], []]}, 1, "Conversation 1 does not end"),
        ({"messages": [[{"role": "user", "content": "a"}]]}, 0, "Conversation 0 does not end"),
    ],
)
def test_another_shape_is_422_with_its_place(app, body, row, said):
    route = "/v1/rank" if "prompt" in body else "/v1/score"
    message = refusal(ask(app, "POST", route, json=body), 422, "shape", row)
    assert said in message and "Value error" not in message


def test_many_faults_are_told_in_a_few_words(app):
    body = {"prompts": [1] * 100, "responses": [2] * 100}
    message = refusal(ask(app, "POST", "/v1/score", json=body), 422, "shape", 0)
    assert len(message) < 300 and message.endswith("more like these)")
    assert message.count("prompts[0]: ") == 3 and "[1]" not in message
    body = {"prompts": ["a"], "responses": ["b"], **{f"k{k}" + "x" * 500: 1 for k in range(100)}}
    message = refusal(ask(app, "POST", "/v1/score", json=body), 422, "shape")
    assert len(message) < 300 and "97 more like these" in message


def test_json_without_its_content_type_is_422(app):
    answer = ask(app, "POST", "/v1/score", content=b'{"prompts": [], "responses": []}')
    assert "Content-Type: application/json" in refusal(answer, 422, "shape")


def test_a_text_that_cannot_be_read_is_named(app):
    body = {"prompts": ["a", [{"role": "user", "content": "b"}]], "responses": ["c", "eta theta " * 60]}
    message = refusal(ask(app, "POST", "/v1/score", json=body), 422, "text", 1)
    assert message.startswith("Text 1: The response alone has")


def test_too_many_texts_unknown_paths_and_methods(app):
    body = {"prompts": ["a"] * 4, "responses": ["b"] * 4}
    assert "limit is 3" in refusal(ask(app, "POST", "/v1/score", json=body), 422, "too_many_texts")
    refusal(ask(app, "GET", "/v1/nothing"), 404, "not_found")
    answer = ask(app, "GET", "/v1/score")
    refusal(answer, 405, "method")
    assert answer.headers["allow"] == "POST"


def test_prompts_as_the_model_takes_them():
    assert prompt_of("a") == "a"
    assert prompt_of([Message(role="user", content="a", tool_calls=None)]) == [{"role": "user", "content": "a"}]
