"""`/docs`: the routes from the OpenAPI description, as one page without scripts or anything from elsewhere."""

from __future__ import annotations

import json
from html import escape
from typing import Any

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}"
    "code,pre{font:14px ui-monospace,monospace}pre{overflow:auto;border:1px solid #8886;padding:.5rem}"
    "h2{margin-top:2rem}td{padding:.1rem 1rem .1rem 0;vertical-align:top}"
)


def listing(openapi: dict[str, Any]) -> str:
    """The page, HTML."""
    schemas = openapi.get("components", {}).get("schemas", {})
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width'>",
        f"<title>{escape(openapi['info']['title'])}: routes</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(openapi['info']['title'])} {escape(openapi['info']['version'])}</h1>",
        *(f"<p>{escape(paragraph)}</p>" for paragraph in openapi["info"].get("description", "").split("\n\n")),
        "<p>For programs: <a href='openapi.json'>openapi.json</a>.</p>",
    ]
    for path, methods in openapi["paths"].items():
        for method, route in methods.items():
            parts += [f"<h2><code>{method.upper()} {escape(path)}</code></h2>"]
            parts += [f"<p>{escape(route.get('description', ''))}</p>"]
            parts += _body(route, schemas)
            parts += ["<table>", *(_status(*status) for status in route["responses"].items()), "</table>"]
    return "\n".join([*parts, "</body></html>"])


def _body(route: dict[str, Any], schemas: dict[str, Any]) -> list[str]:
    """The fields of the body, and an example of it."""
    content = route.get("requestBody", {}).get("content", {}).get("application/json", {})
    schema = schemas.get(content.get("schema", {}).get("$ref", "").rpartition("/")[2])
    if not schema:
        return []
    fields = [
        f"<tr><td><code>{escape(name)}</code></td><td>{escape(field.get('description', ''))}</td></tr>"
        for name, field in schema.get("properties", {}).items()
    ]
    examples = [
        f"<pre>{escape(json.dumps(example, indent=1, ensure_ascii=False))}</pre>"
        for example in schema.get("examples", [])
    ]
    return ["<table>", *fields, "</table>", *examples]


def _status(code: str, said: dict[str, Any]) -> str:
    return f"<tr><td><code>{escape(code)}</code></td><td>{escape(said.get('description', ''))}</td></tr>"
