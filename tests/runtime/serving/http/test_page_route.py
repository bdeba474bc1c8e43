"""The page's route and its policy, without a browser."""

from __future__ import annotations

import base64
import hashlib
from html.parser import HTMLParser

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from sparsespec.runtime.serving.http.page import content_security_policy, page_router


class Parts(HTMLParser):
    """What a browser would run or load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources: dict[str, str] = {}
        self.attributes: list[tuple[str, str]] = []
        self._tag = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._tag = tag
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        self._tag = ""

    def handle_data(self, data: str) -> None:
        if self._tag in ("style", "script"):
            self.sources[self._tag] = self.sources.get(self._tag, "") + data


def fetch_page() -> tuple[str, dict[str, str]]:
    """The page, and its policy by directive."""
    app = FastAPI()
    app.include_router(page_router())
    response = TestClient(app).get("/")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    directives = [directive.partition(" ") for directive in response.headers["content-security-policy"].split("; ")]
    return response.text, {name: value for name, _, value in directives}


def test_the_policy_names_the_pages_own_sources() -> None:
    page, policy = fetch_page()
    sources = Parts(page).sources
    for tag in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(sources[tag].encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"


def test_nothing_is_loaded_from_elsewhere() -> None:
    """Nor is there anything that the policy would have to refuse: styles and handlers in attributes."""
    attributes = Parts(fetch_page()[0]).attributes
    assert [value for name, value in attributes if name in ("src", "href") and not value.startswith("data:")] == []
    assert [name for name, _ in attributes if name == "style" or name.startswith("on")] == []


@pytest.mark.parametrize("page", ["<style></style>", "<style></style><script></script><script></script>"])
def test_a_page_of_other_parts_has_no_policy(page: str) -> None:
    with pytest.raises(ValueError, match=r"1 <script>, found [02]"):
        content_security_policy(page)
