"""HTML pages: the inspector at `/`, and the list of routes at `/docs`. Neither loads anything from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from functools import cache
from html import escape
from importlib import resources
from typing import Any

from starlette.responses import HTMLResponse

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}"
    "code,pre{font:14px ui-monospace,monospace}pre{overflow:auto;border:1px solid #8886;padding:.5rem}"
    "h2{margin-top:2rem}td{padding:.1rem 1rem .1rem 0;vertical-align:top}"
)


def inspector_page() -> HTMLResponse:
    """The inspector: one static page that needs no token, holds no secret, and sends what is typed to `v1/rank`."""
    page, policy = _inspector()
    headers = {"Cache-Control": "no-cache", "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff"}
    return HTMLResponse(page, headers={"Content-Security-Policy": policy, **headers})


@cache
def _inspector() -> tuple[str, str]:
    """The page, and its Content-Security-Policy: its own script and style, and requests to its own server."""
    page = (resources.files("ebrm.serve") / "inspector" / "index.html").read_text(encoding="utf-8")
    style, script = (_csp_hash(page, tag) for tag in ("style", "script"))
    return page, (
        f"default-src 'none'; style-src '{style}'; script-src '{script}'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _csp_hash(page: str, tag: str) -> str:
    (inside,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.S)
    return "sha256-" + base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()


def routes_page(openapi: dict[str, Any]) -> str:
    """The routes of an OpenAPI description, HTML without scripts."""
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
            statuses = ((code, status.get("description", "")) for code, status in route["responses"].items())
            parts += ["<table>", *(_row(*status) for status in statuses), "</table>"]
    return "\n".join([*parts, "</body></html>"])


def _body(route: dict[str, Any], schemas: dict[str, Any]) -> list[str]:
    content = route.get("requestBody", {}).get("content", {}).get("application/json", {})
    schema = schemas.get(content.get("schema", {}).get("$ref", "").rpartition("/")[2])
    if not schema:
        return []
    fields = [_row(name, field.get("description", "")) for name, field in schema.get("properties", {}).items()]
    examples = [json.dumps(example, indent=1, ensure_ascii=False) for example in schema.get("examples", [])]
    return ["<table>", *fields, "</table>", *(f"<pre>{escape(example)}</pre>" for example in examples)]


def _row(name: str, description: str) -> str:
    return f"<tr><td><code>{escape(name)}</code></td><td>{escape(description)}</td></tr>"
