"""Debian's Chromium without a screen, driven by selenium; nothing is downloaded, and nothing but the page is loaded."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

CHROMIUM = Path("/usr/bin/chromium")
CHROMEDRIVER = Path("/usr/bin/chromedriver")
WAIT_S = 60  # for what comes at once unless something is broken

# Chromium's own traffic is off; as root, in a container, its sandbox is not to be had.
_FLAGS = (
    "headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "disable-quic", "no-first-run",
    "disable-background-networking", "disable-component-update", "disable-sync", "hide-scrollbars",
)  # fmt: skip


def missing_browser() -> str | None:
    """What is not here of what the browser needs; None if all is."""
    if find_spec("selenium") is None:
        return "the package selenium"
    return next((str(each) for each in (CHROMIUM, CHROMEDRIVER) if not each.exists()), None)


def open_browser(profile: Path) -> Chrome:
    """A browser with an empty profile, whose console is kept; `quit` ends it."""
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*_FLAGS, f"user-data-dir={profile}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return Chrome(options, Service(str(CHROMEDRIVER)))


class BrowsedPage:
    """The server's page as a person uses it."""

    def __init__(self, browser: Chrome, url: str) -> None:
        self.browser = browser
        browser.get_log("browser")  # what pages before this one left there
        browser.get(url)

    def element(self, selector: str) -> Any:
        return self.browser.find_element("css selector", selector)

    def texts(self, selector: str) -> list[str]:
        """As the document has them: what is out of sight too, and with its line breaks."""
        found = self.browser.find_elements("css selector", selector)
        return [str(each.get_property("textContent")) for each in found]

    def until(self, selector: str, text: str) -> None:
        """Waits until the last of these elements has that text in it."""
        from selenium.webdriver.support.wait import WebDriverWait

        WebDriverWait(self.browser, WAIT_S).until(lambda _: text in "".join(self.texts(selector)[-1:]))

    def fill(self, name: str, text: str) -> None:
        """A setting."""
        self.browser.execute_script("document.getElementById('settings').open = true")
        self.element(f"#{name}").clear()
        self.element(f"#{name}").send_keys(text)

    def send(self, prompt: str) -> None:
        self.element("#prompt").send_keys(prompt)
        self.element("#send").click()

    def ask(self, prompt: str, state: str = "Done.") -> str:
        """Sends, waits for the end, and returns the answer as it is shown."""
        self.send(prompt)
        self.until("#state", state)
        return self.texts(".answer .text")[-1]

    def console(self) -> list[str]:
        return [str(entry["message"]) for entry in self.browser.get_log("browser")]
