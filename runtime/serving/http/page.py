"""The web page at `/`: one file, under a policy by which a browser runs what is in it and loads nothing else."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib import resources

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

# The page's one style and one script by their hashes, its icon as a data URL, requests to its own server. Text never
# becomes HTML, not even by mistake: trusted types refuse innerHTML and its like.
_POLICY = (
    "default-src 'none'; style-src '{style}'; script-src '{script}'; img-src data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)


def content_security_policy(page: str) -> str:
    """The header's value for a page with one `<style>` and one `<script>`; ValueError for another."""
    return _POLICY.format(style=_source_hash(page, "style"), script=_source_hash(page, "script"))


def _source_hash(page: str, tag: str) -> str:
    texts: list[str] = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    if len(texts) != 1:
        raise ValueError(f"expected 1 <{tag}>, found {len(texts)}")
    return "sha256-" + base64.b64encode(hashlib.sha256(texts[0].encode()).digest()).decode()


def page_router() -> APIRouter:
    """`GET /`; the file is read once, here. Needs no API key: the page asks for it."""
    page = resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    headers = {
        "Content-Security-Policy": content_security_policy(page),
        "Cache-Control": "no-cache",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    router = APIRouter()

    @router.get("/", response_class=HTMLResponse, include_in_schema=False)
    def page_at_root() -> HTMLResponse:
        return HTMLResponse(page, headers=headers)

    return router
