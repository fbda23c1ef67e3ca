from __future__ import annotations

import re
from importlib import resources

from ebrm.serve.pages import inspector_page, routes_page


def test_routes_fields_and_statuses_are_listed_and_escaped():
    asked = {"properties": {"prompts": {"description": "<one> each"}}, "examples": [{"prompts": ["<hi>"]}]}
    body = {"content": {"application/json": {"schema": {"$ref": "#/x/Ask"}}}}
    busy = {"200": {"description": "Fine"}, "503": {"description": "Busy"}}
    score = {"description": "Scores & more.", "requestBody": body, "responses": busy}
    paths = {"/v1/score": {"post": score}, "/health": {"get": {"responses": {}}}}
    info = {"title": "ebrm", "version": "1", "description": "First <b>.\n\nSecond."}
    page = routes_page({"info": info, "paths": paths, "components": {"schemas": {"Ask": asked}}})
    for part in ("POST /v1/score", "GET /health", "Scores &amp; more.", "&lt;one&gt; each", "&lt;hi&gt;", "Busy",
                 "First &lt;b&gt;.", "<p>Second.</p>"):  # fmt: skip
        assert part in page, part


def test_the_inspector_loads_nothing_from_elsewhere_and_cannot_write_markup():
    text = (resources.files("ebrm.serve") / "inspector" / "index.html").read_text(encoding="utf-8")
    assert inspector_page().body.decode() == text
    assert set(re.findall(r"\w+://[^\s\"'<>]+", text)) == {"http://www.w3.org/2000/svg"}
    ways = ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "@import", "url(//")
    assert [way for way in ways if way in text] == []
    assert not re.search(r"\son\w+=|\sstyle=|javascript:", text)
    assert len(text.encode()) < 40_000
