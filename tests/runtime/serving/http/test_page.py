"""The web page, in a real browser, against scripted answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from headless_browser import WAIT_S, BrowsedPage, open_browser
from served_app import served
from stub_openai import Script, StubServer, StubToken

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytestmark = pytest.mark.browser


def own(text: str) -> StubToken:
    return StubToken(text.encode())


def draft(text: str) -> StubToken:
    return StubToken(text.encode(), accepted_draft=True)


EURO = "€".encode()
HTML = "<img src=x onerror=\"document.title='run'\"><b>bold</b> &amp;"
SCRIPTS = {
    "plain": Script(
        ([own("One")], [draft(" two"), draft(" three"), own(" four")], [own(" five")], [draft(" six"), own("\n7")])
    ),
    "split": Script(([StubToken(EURO[:1])], [StubToken(EURO[1:2], True), StubToken(EURO[2:] + b"!", True), own(" 5")])),
    "html": Script(([own(HTML[:9])], [draft(HTML[9:]), own(".")])),
    "slow": Script(([own("Begun")],), ending="endless"),
    "failing": Script(([own("Half")],), ending="error"),
    "lost": Script(([own("Half")],), ending="lost"),
    "crowded": Script(status=429),
}  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    browser = open_browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.quit()


@pytest.fixture
def server() -> StubServer:
    return StubServer(SCRIPTS)


@pytest.fixture
def page(browser: Chrome, server: StubServer) -> Iterator[BrowsedPage]:
    with served(server.app()) as url:
        yield BrowsedPage(browser, url)
        browser.get("about:blank")  # closes its connections


def test_an_answer_streams_in(page: BrowsedPage, server: StubServer) -> None:
    assert page.ask("plain") == SCRIPTS["plain"].text
    assert page.texts("mark") == [" two", " three", " six", "accepted drafts"]
    assert page.texts("#accepted") == [str(SCRIPTS["plain"].num_accepted)]
    assert page.texts("#own") == ["4"]
    assert page.texts(".note") == ["7 tokens · 3 of 4 drafts accepted · 3 verifications · cut at max_tokens"]
    assert page.texts("#accepted_mean") == ["1.00"]  # of 2, 0 and 1
    assert page.element("#lengths").get_attribute("d") == "M0.5 16v-15M1.5 16v-1M2.5 16v-8"
    (body,) = server.bodies
    assert body == {
        "model": "stub", "messages": [{"role": "user", "content": "plain"}], "stream": True, "return_tokens": True,
        "stream_options": {"include_usage": True}, "max_tokens": 256, "temperature": 0,
    }  # fmt: skip
    assert page.console() == []


def test_a_conversation_goes_on(page: BrowsedPage, server: StubServer) -> None:
    page.ask("plain")
    page.ask("html")
    assert [message["role"] for message in server.bodies[-1]["messages"]] == ["user", "assistant", "user"]
    assert server.bodies[-1]["messages"][1]["content"] == SCRIPTS["plain"].text
    page.element("#clear").click()
    assert page.texts("article") == []
    page.ask("split")
    assert server.bodies[-1]["messages"] == [{"role": "user", "content": "split"}]


def test_a_character_of_several_tokens_is_put_together(page: BrowsedPage) -> None:
    """And is marked as the token that completes it."""
    assert page.ask("split") == "€! 5"
    assert page.texts(".answer mark") == ["€!"]
    assert page.texts("#accepted") == ["2"]


def test_html_is_shown_as_text(page: BrowsedPage) -> None:
    assert page.ask("html") == SCRIPTS["html"].text
    assert page.browser.find_elements("css selector", "#log img, #log b") == []
    assert page.browser.title == "sparsespec"
    assert page.console() == []


def test_stop_ends_the_request_at_the_server(page: BrowsedPage, server: StubServer) -> None:
    page.send("slow")
    page.until(".answer .text", "Begun")
    assert not server.disconnected.is_set()
    page.element("#stop").click()
    page.until("#state", "Stopped.")
    assert server.disconnected.wait(WAIT_S)
    assert page.texts(".answer .text") == ["Begun"]
    assert page.texts(".error") == []
    page.ask("plain")
    assert server.bodies[-1]["messages"][1] == {"role": "assistant", "content": "Begun"}


def test_a_key_is_asked_for(page: BrowsedPage, server: StubServer) -> None:
    server.api_key = "secret"
    page.ask("plain", "Failed.")
    assert page.texts(".error") == ["401: expected an API key"]
    assert page.texts(".question") == []
    assert page.element("#prompt").get_property("value") == "plain"
    page.element("#api_key").send_keys("secret")
    page.element("#send").click()
    page.until("#state", "Done.")
    assert page.texts(".answer .text")[-1] == SCRIPTS["plain"].text
    kept = page.browser.execute_script("return [localStorage.length, sessionStorage.length, document.cookie.length]")
    assert kept == [0, 0, 0]


@pytest.mark.parametrize(
    ("prompt", "error", "answer"),
    [
        ("crowded", "429: scripted status 429 Try again in 2 s.", ""),
        ("failing", "scripted failure", "Half"),
        ("lost", "The connection ended before the answer did.", "Half"),
    ],
)
def test_errors_are_shown(page: BrowsedPage, prompt: str, error: str, answer: str) -> None:
    assert page.ask(prompt, "Failed.") == answer
    assert page.texts(".error") == [error]


def test_a_server_that_is_gone(browser: Chrome) -> None:
    with served(StubServer(SCRIPTS).app()) as url:
        page = BrowsedPage(browser, url)
        page.ask("plain")
    page.ask("plain", "Failed.")
    assert page.texts(".error") == ["The server cannot be reached."]
    page.until("#server_state", "The server cannot be reached.")


def test_the_servers_figures(page: BrowsedPage) -> None:
    page.until("#server_state", "ready")
    assert page.texts("#model") == ["stub"]
    assert page.texts("#server_accepted") == ["2.5 of 4.0"]
    assert page.texts("#running") + page.texts("#waiting") == ["3", "1"]
    assert page.texts("#kv_share") == ["25%"]
    assert page.element("#kv_cache").get_property("value") == 0.25


def test_the_keyboard_sends(page: BrowsedPage) -> None:
    from selenium.webdriver.common.keys import Keys

    page.element("#prompt").send_keys("plain", Keys.CONTROL, Keys.ENTER)
    page.until("#state", "Done.")
    assert page.texts(".answer .text") == [SCRIPTS["plain"].text]


def test_markup_is_refused_from_the_page_itself(page: BrowsedPage) -> None:
    from selenium.common.exceptions import JavascriptException

    with pytest.raises(JavascriptException, match="TrustedHTML"):
        page.browser.execute_script("document.body.innerHTML = '<b>bold</b>'")


@pytest.mark.parametrize(
    ("code", "directive"),
    [
        ("fetch('http://127.0.0.1:9/').catch(() => {})", "connect-src"),
        ("document.head.append(document.createElement('style'))", "style-src"),
        ("new Image().src = 'http://127.0.0.1:9/x.png'", "img-src"),
    ],
)
def test_nothing_else_is_loaded(page: BrowsedPage, code: str, directive: str) -> None:
    page.browser.execute_script(code)
    page.browser.execute_async_script("setTimeout(arguments[0], 50)")
    assert any(directive in message for message in page.console())


def test_a_narrow_screen(page: BrowsedPage) -> None:
    page.browser.set_window_size(380, 800)
    page.ask("plain")
    widths = page.browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert widths[0] <= widths[1]
    page.browser.set_window_size(1200, 800)
