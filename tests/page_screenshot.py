"""Takes docs/serving_page.png of a running server: python tests/page_screenshot.py http://HOST:PORT PICTURE"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from headless_browser import open_browser

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

SIZE = {"width": 1200, "height": 800}  # CSS pixels
WAIT_S = 300
QUESTION = "How is bread made? Give a numbered list of the steps, with a sentence about each."
NUM_TOKENS = 150  # that are to be in sight


def main(url: str, picture: Path) -> None:
    """Ask, and save what is seen while the answer comes in."""
    with tempfile.TemporaryDirectory() as profile:
        browser = open_browser(Path(profile))
        try:
            browser.execute_cdp_cmd(
                "Emulation.setDeviceMetricsOverride", {**SIZE, "deviceScaleFactor": 1, "mobile": False}
            )
            browser.get(url)
            ask(browser, QUESTION)
            browser.save_screenshot(str(picture))
        finally:
            browser.quit()


def ask(browser: Chrome, question: str) -> None:
    """Send it by the keyboard and wait for its first tokens, all of them if there are no more."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.wait import WebDriverWait

    browser.find_element(By.ID, "prompt").send_keys(question, Keys.CONTROL, Keys.ENTER)
    state = browser.find_element(By.ID, "state")
    tokens = [browser.find_element(By.ID, kind) for kind in ("accepted", "own")]
    WebDriverWait(browser, WAIT_S).until(
        lambda _: state.text in ("Done.", "Failed.") or sum(int(each.text) for each in tokens) >= NUM_TOKENS
    )
    if state.text == "Failed.":
        raise SystemExit(browser.find_element(By.CSS_SELECTOR, ".error").text)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
