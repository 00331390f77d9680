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


class Person:
    """Somebody in front of a page."""

    def __init__(self, driver: webdriver.Chrome, downloads: Path) -> None:
        self.driver, self.downloads = driver, downloads

    def visit(self, url: str, model: str | None = None) -> None:
        """Open the page and wait until it has told of the model."""
        self.driver.get(url)
        self.until(lambda: self.named("card").is_displayed())
        if model is not None:
            self.choose("model", model)

    def choose(self, field: str, text: str) -> None:
        """Choose of a list; of models and versions, wait until the page tells of it."""
        Select(self.named(field)).select_by_visible_text(text)
        if field in ("model", "version"):
            self.until(lambda: text in self.fact("name" if field == "model" else "version"))

    def named(self, field: str) -> WebElement:
        """The element of an id."""
        return self.driver.find_element(By.ID, field)

    def all(self, css: str) -> list[WebElement]:
        """Every element that a selector means."""
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def read(self, field: str) -> str:
        """The text of an element once it is shown and holds any."""
        self.until(lambda: self.named(field).is_displayed() and self.named(field).text)
        return self.named(field).text

    def until(self, happened: Callable[[], Any], seconds: float = 20) -> None:
        """Wait for something."""
        WebDriverWait(self.driver, seconds, 0.05).until(lambda _: happened())

    def fact(self, name: str) -> str:
        """What the card says under a name, "" where it says nothing."""
        pairs = self.driver.execute_script(
            "return [...document.querySelectorAll('dl div')]"
            ".map((each) => [...each.children].map((child) => child.textContent))"
        )
        return str(dict(pairs).get(name, ""))

    def ask(self, text: str, other: str | None = None) -> str:
        """Type into the page and press Ctrl+Enter; the headline of the answer."""
        self.type(text, other)
        self.until(lambda: not self.named("ask").get_attribute("aria-disabled"))
        return self.read("headline")

    def type(self, text: str, other: str | None = None) -> None:
        """Type into the page and press Ctrl+Enter."""
        for field, typed in (("text", text), ("other", other)):
            if typed is not None:
                self.named(field).clear()
                self.named(field).send_keys(typed)
        self.named("text").send_keys(Keys.CONTROL, Keys.ENTER)

    def bars(self) -> list[tuple[str, str]]:
        """Labels and what is written beside them."""
        rows = [row.text.splitlines() for row in self.all(".bars li")]
        return [(name, number) for name, number in rows]

    def offer(self, path: Path) -> None:
        """Give the page a file."""
        self.named("file").send_keys(str(path))

    def finish(self, seconds: float = 60) -> str:
        """Wait until all rows were asked about, or nothing more will be; what the page says."""

        def over() -> bool:
            return not self.named("start").get_attribute("aria-disabled")

        self.until(over, seconds)
        return self.read("batch-status")

    def download(self, delimiter: str = ",") -> list[dict[str, str]]:
        """The rows of the file that the page offers, by the names of its columns."""
        target = self.downloads / self.named("download").get_attribute("download")
        target.unlink(missing_ok=True)
        self.named("download").click()
        self.until(target.exists)
        with target.open(encoding="utf-8-sig", newline="") as file:
            return list(csv.DictReader(file, delimiter=delimiter))

    def complaints(self) -> list[str]:
        """What the browser's console holds, but for refusals, which are the server's."""
        entries = self.driver.get_log("browser")
        return [each["message"] for each in entries if "Failed to load" not in each["message"]]

    def hold_phone(self) -> None:
        """See the page on a phone from here on."""
        width, height = PHONE
        metrics = {"width": width, "height": height, "deviceScaleFactor": 2, "mobile": True}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def sit_down(self) -> None:
        """See the page on a screen again, in light."""
        self.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        self.light("light")

    def light(self, scheme: str) -> None:
        """Prefer "dark" or "light"."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def photograph(self, target: Path, first: str, last: str) -> None:
        """Save a picture from one element to another, when nothing moves on the page any more."""
        self.until(lambda: not self.driver.execute_script("return document.getAnimations().length"))
        self.driver.execute_script("document.activeElement.blur(); scrollTo(0, 0)")
        top, _ = self._edges(first)
        _, bottom = self._edges(last)
        width = self.driver.execute_script("return innerWidth")
        clip = {"x": 0, "y": top - 20, "width": width, "height": bottom - top + 40, "scale": 1}
        options = {"clip": clip, "captureBeyondViewport": True}
        picture = self.driver.execute_cdp_cmd("Page.captureScreenshot", options)
        target.write_bytes(base64.b64decode(picture["data"]))

    def _edges(self, css: str) -> tuple[float, float]:
        script = "const box = arguments[0].getBoundingClientRect(); return [box.top, box.bottom]"
        top, bottom = self.driver.execute_script(script, self.all(css)[0])
        return top, bottom


@contextmanager
def browser() -> Iterator[Person]:
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
        yield Person(driver, downloads)
    finally:
        driver.quit()
        shutil.rmtree(profile, ignore_errors=True)


def browser_or_skip() -> Any:
    """As `browser`; the test is left out where there is none."""
    missing = [path for path in CHROMIUM if not Path(path).exists()]
    if missing:
        pytest.skip(f"no {' and no '.join(missing)}: apt-get install chromium chromium-driver")
    return browser()
