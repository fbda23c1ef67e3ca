from __future__ import annotations

from ebrm.serve.docs_page import listing


def test_routes_fields_and_statuses_are_listed_and_escaped():
    page = listing(
        {
            "info": {"title": "ebrm", "version": "1", "description": "First <b>.\n\nSecond."},
            "paths": {
                "/v1/score": {
                    "post": {
                        "description": "Scores & more.",
                        "requestBody": {"content": {"application/json": {"schema": {"$ref": "#/x/Ask"}}}},
                        "responses": {"200": {"description": "Fine"}, "503": {"description": "Busy"}},
                    }
                },
                "/health": {"get": {"responses": {"200": {"description": "Alive"}}}},
            },
            "components": {"schemas": {"Ask": {"properties": {"prompts": {"description": "<one> each"}},
                                               "examples": [{"prompts": ["<hi>"]}]}}},
        }
    )  # fmt: skip
    for part in ("POST /v1/score", "GET /health", "Scores &amp; more.", "&lt;one&gt; each", "&lt;hi&gt;", "Busy",
                 "First &lt;b&gt;.", "<p>Second.</p>"):  # fmt: skip
        assert part in page, part
