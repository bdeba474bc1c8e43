"""Debian's Chromium without a screen, driven by selenium; nothing is downloaded, and nothing but the page is loaded."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

CHROMIUM = Path("/usr/bin/chromium")
CHROMEDRIVER = Path("/usr/bin/chromedriver")

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
