"""The web page of the real server, over a tiny engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from headless_browser import BrowsedPage, open_browser
from http_server_thread import RunningServer, running_server
from sparsespec.runtime.serving.http.app import create_app
from sparsespec.runtime.serving.http.server_config import ServerConfig
from tiny_llm import assert_all_pages_free, tiny_engine

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    config = ServerConfig(engine_dir=Path("tiny"), api_key="secret")
    with running_server(tiny_engine(), create_app, config) as running:
        yield running


@pytest.fixture
def page(server: RunningServer, tmp_path: Path) -> Iterator[BrowsedPage]:
    browser = open_browser(tmp_path)
    try:
        yield BrowsedPage(browser, server.url)
    finally:
        browser.quit()


def test_an_answer(page: BrowsedPage, server: RunningServer) -> None:
    """Without the key the server's words are shown; with it an answer, its drafts and no complaint of the browser."""
    page.ask("Hello", "Failed.")
    assert page.texts(".error")[0].startswith("401: ")
    page.fill("api_key", "secret")
    page.fill("max_tokens", "40")
    page.console()
    page.element("#send").click()
    page.until("#state", "Done.")
    accepted, own = (int(page.texts(f"#{each}")[0]) for each in ("accepted", "own"))
    assert accepted + own == 40
    assert accepted > 0
    assert page.texts(".note")[0].startswith(f"40 tokens · {accepted} of ")
    page.until("#model", "tiny")  # as the server says when it is asked for its state again, with the key
    assert page.console() == []
    page.until("#running", "0")
    assert_all_pages_free(server.llm)
