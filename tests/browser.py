"""Debian's Chromium, driven, and a rater in front of it."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

DESKTOP, PHONE = (1280, 900), (390, 844)
WAIT_SEC = 60


@contextmanager
def chromium(size: tuple[int, int] = DESKTOP, download_dir: Path | None = None) -> Iterator[webdriver.Chrome]:
    """Start a browser of its own, or skip where there is none."""
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("no chromium or chromedriver (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    if size == PHONE:
        metrics = {"width": size[0], "height": size[1], "pixelRatio": 2.0, "touch": True, "mobile": True}
        options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
    else:
        options.add_argument(f"--window-size={size[0]},{size[1]}")
    if download_dir:
        options.add_experimental_option("prefs", {"download.default_directory": str(download_dir)})
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    browser.set_script_timeout(WAIT_SEC)
    try:
        yield browser
    finally:
        browser.quit()


class Page:
    """The ballot that a browser shows."""

    def __init__(self, browser: webdriver.Chrome):
        self.browser = browser

    def one(self, selector: str) -> WebElement:
        """Return the visible element of a CSS selector, once there is one."""

        def visible(browser: webdriver.Chrome) -> WebElement | None:
            found = [element for element in browser.find_elements(By.CSS_SELECTOR, selector) if element.is_displayed()]
            return found[0] if found else None

        return WebDriverWait(self.browser, WAIT_SEC).until(visible, f"{selector} does not show")

    def until_shown(self, text: str) -> None:
        """Wait for a text of the page's heading or status."""
        WebDriverWait(self.browser, WAIT_SEC).until(lambda browser: text in self.text, f"{text!r} does not show")

    @property
    def text(self) -> str:
        return str(self.browser.execute_script("return document.body.innerText"))

    @property
    def question(self) -> str:
        return str(self.one(".question").get_attribute("data-question"))

    def click_rank(self, candidate: str, rank: int) -> None:
        """Click the pill of a rank, as a person does: on what is seen, not on the hidden button."""
        pill = f"form.ballot:not([hidden]) input[name='{self.question}_{candidate}'][value='{rank}']"
        self.scroll_to(self.one(f"{pill} + span"))
        self.browser.find_element(By.CSS_SELECTOR, pill).click()

    def scroll_to(self, element: WebElement) -> None:
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)

    def ranks(self) -> Mapping[str, str | None]:
        """Return what is ranked now, by letter."""
        return self.browser.execute_script(
            """const form = [...document.querySelectorAll("form.ballot")].find((one) => !one.hidden);
            const chosen = (card) => card.querySelector("fieldset:not([hidden]) input:checked")?.value ?? null;
            const cards = [...form.querySelectorAll(".candidate")];
            return Object.fromEntries(cards.map((card) => [card.dataset.letter, chosen(card)]));"""
        )

    def submit(self) -> None:
        button = self.one("form.ballot:not([hidden]) [type=submit]")
        self.scroll_to(button)
        button.click()
