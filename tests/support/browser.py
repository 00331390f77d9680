"""A person at the page: Debian's Chromium, what they see, press and download."""

import base64
import csv
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

CHROMIUM = ("/usr/bin/chromium", "/usr/bin/chromedriver")
PHONE = (360, 740)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--window-size=960,1000",
)


class PageUser:
    """Somebody in front of a page."""

    def __init__(self, driver: webdriver.Chrome, downloads: Path) -> None:
        self.driver, self.downloads = driver, downloads

    def open_page(self, url: str, model: str | None = None) -> None:
        """Open the page and wait until it has told of the model."""
        self.driver.get(url)
        self.wait_until(lambda: self.find_by_id("card").is_displayed())
        if model is not None:
            self.choose_option("model", model)

    def choose_option(self, field: str, text: str) -> None:
        """Choose of a list; of models and versions, wait until the page tells of it."""
        Select(self.find_by_id(field)).select_by_visible_text(text)
        if field in ("model", "version"):
            self.wait_until(
                lambda: text in self.read_fact("name" if field == "model" else "version")
            )

    def find_by_id(self, field: str) -> WebElement:
        """The element of an id."""
        return self.driver.find_element(By.ID, field)

    def find_all(self, css: str) -> list[WebElement]:
        """Every element that a selector means."""
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def read_text(self, field: str) -> str:
        """The text of an element once it is shown and holds any."""
        self.wait_until(
            lambda: self.find_by_id(field).is_displayed() and self.find_by_id(field).text
        )
        return self.find_by_id(field).text

    def wait_until(self, happened: Callable[[], Any], seconds: float = 20) -> None:
        """Wait for something."""
        WebDriverWait(self.driver, seconds, 0.05).until(lambda _: happened())

    def read_fact(self, name: str) -> str:
        """What the card says under a name, "" where it says nothing."""
        pairs = self.driver.execute_script(
            "return [...document.querySelectorAll('dl div')]"
            ".map((each) => [...each.children].map((child) => child.textContent))"
        )
        return str(dict(pairs).get(name, ""))

    def ask_text(self, text: str, other: str | None = None) -> str:
        """Type into the page and press Ctrl+Enter; the headline of the answer."""
        self.type_text(text, other)
        self.wait_until(lambda: not self.find_by_id("ask").get_attribute("aria-disabled"))
        return self.read_text("headline")

    def type_text(self, text: str, other: str | None = None) -> None:
        """Type into the page and press Ctrl+Enter."""
        for field, typed in (("text", text), ("other", other)):
            if typed is not None:
                self.find_by_id(field).clear()
                self.find_by_id(field).send_keys(typed)
        self.find_by_id("text").send_keys(Keys.CONTROL, Keys.ENTER)

    def read_bars(self) -> list[tuple[str, str]]:
        """Labels and what is written beside them."""
        rows = [row.text.splitlines() for row in self.find_all("#scores .bars li")]
        return [(name, number) for name, number in rows]

    def upload_file(self, path: Path) -> None:
        """Give the page a file."""
        self.find_by_id("file").send_keys(str(path))

    def wait_until_done(self, seconds: float = 60) -> str:
        """Wait until all rows were asked about, or nothing more will be; what the page says."""

        def over() -> bool:
            return not self.find_by_id("start").get_attribute("aria-disabled")

        self.wait_until(over, seconds)
        return self.read_text("batch-status")

    def download_rows(self, delimiter: str = ",") -> list[dict[str, str]]:
        """The rows of the file that the page offers, by the names of its columns."""
        target = self.downloads / self.find_by_id("download").get_attribute("download")
        target.unlink(missing_ok=True)
        self.find_by_id("download").click()
        self.wait_until(target.exists)
        with target.open(encoding="utf-8-sig", newline="") as file:
            return list(csv.DictReader(file, delimiter=delimiter))

    def console_errors(self) -> list[str]:
        """What the browser's console holds, but for refusals, which are the server's."""
        entries = self.driver.get_log("browser")
        return [each["message"] for each in entries if "Failed to load" not in each["message"]]

    def use_phone_screen(self) -> None:
        """See the page on a phone from here on."""
        width, height = PHONE
        metrics = {"width": width, "height": height, "deviceScaleFactor": 2, "mobile": True}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def use_desktop_screen(self) -> None:
        """See the page on a screen again, in light."""
        self.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        self.set_color_scheme("light")

    def set_color_scheme(self, scheme: str) -> None:
        """Prefer "dark" or "light"."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def take_screenshot(self, target: Path, first: str, last: str) -> None:
        """Save a picture from one element to another, when nothing moves on the page any more."""
        self.wait_until(
            lambda: not self.driver.execute_script("return document.getAnimations().length")
        )
        self.driver.execute_script("document.activeElement.blur(); scrollTo(0, 0)")
        top, _ = self._element_edges(first)
        _, bottom = self._element_edges(last)
        width = self.driver.execute_script("return innerWidth")
        clip = {"x": 0, "y": top - 20, "width": width, "height": bottom - top + 40, "scale": 1}
        options = {"clip": clip, "captureBeyondViewport": True}
        picture = self.driver.execute_cdp_cmd("Page.captureScreenshot", options)
        target.write_bytes(base64.b64decode(picture["data"]))

    def _element_edges(self, css: str) -> tuple[float, float]:
        script = "const box = arguments[0].getBoundingClientRect(); return [box.top, box.bottom]"
        top, bottom = self.driver.execute_script(script, self.find_all(css)[0])
        return top, bottom


@contextmanager
def open_browser() -> Iterator[PageUser]:
    """A person with a browser of their own."""
    profile = Path(tempfile.mkdtemp(prefix="chromium-"))
    downloads = profile / "downloads"
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM[0]
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    driver = webdriver.Chrome(options, Service(CHROMIUM[1]))
    try:
        yield PageUser(driver, downloads)
    finally:
        driver.quit()
        shutil.rmtree(profile, ignore_errors=True)


def browser_or_skip() -> Any:
    """As `browser`; the test is left out where there is none."""
    missing = [path for path in CHROMIUM if not Path(path).exists()]
    if missing:
        pytest.skip(f"no {' and no '.join(missing)}: apt-get install chromium chromium-driver")
    return open_browser()
