"""The inspector: one static page, which may run its own script and style, and talk to its own server, and no more."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib import resources

from starlette.responses import HTMLResponse


def inspector_page() -> HTMLResponse:
    """The page at `/`: it holds no secret, needs no token, and sends what is typed to `v1/rank` beside it."""
    page, policy = _page()
    return HTMLResponse(
        page,
        headers={
            "Content-Security-Policy": policy,
            "Cache-Control": "no-cache",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        },
    )


@cache
def _page() -> tuple[str, str]:
    """The page, and the policy that names its style and its script by their hashes."""
    page = (resources.files("ebrm.serve") / "inspector" / "index.html").read_text(encoding="utf-8")
    style, script = (_hash_of(page, tag) for tag in ("style", "script"))
    return page, (
        f"default-src 'none'; style-src '{style}'; script-src '{script}'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _hash_of(page: str, tag: str) -> str:
    """What a policy calls the one element `tag` of the page."""
    (inside,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.S)
    return "sha256-" + base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
