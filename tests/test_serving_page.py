"""The command that serves, and the page a person uses, in a real browser.

A picture of the page of a service that runs already:

    python tests/test_serving_page.py http://127.0.0.1:8000 "A warm, funny film." docs/page.png
"""

import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

REVIEW = "A warm, funny and beautifully acted film."
CHROMIUM = ("/usr/bin/chromium", "/usr/bin/chromedriver")
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


@contextmanager
def browser() -> Iterator[webdriver.Chrome]:
    """Debian's Chromium with a profile of its own."""
    profile = tempfile.mkdtemp(prefix="chromium-")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM[0]
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options, Service(CHROMIUM[1]))
    try:
        yield driver
    finally:
        driver.quit()
        shutil.rmtree(profile, ignore_errors=True)


def until(driver: webdriver.Chrome, css: str) -> str:
    """The text of an element once it is shown and not empty."""

    def shown(page: webdriver.Chrome) -> str:
        element = page.find_element(By.CSS_SELECTOR, css)
        return element.text if element.is_displayed() else ""

    return str(WebDriverWait(driver, 20).until(shown))


def ask_in_page(driver: webdriver.Chrome, url: str, text: str) -> str:
    """Type `text` into the page and press Ctrl+Enter; the headline of the answer."""
    driver.get(url)
    until(driver, "#metrics")
    driver.find_element(By.ID, "text").send_keys(text, Keys.CONTROL, Keys.ENTER)
    return until(driver, "#headline")


def photograph(url: str, text: str, target: Path) -> str:
    """Ask `text` in the page at `url` and save its picture; the headline of the answer."""
    with browser() as driver:
        headline = ask_in_page(driver, url, text)
        WebDriverWait(driver, 5).until(
            lambda page: not page.execute_script("return document.getAnimations().length")
        )
        height = driver.execute_script("return document.documentElement.scrollHeight")
        frame = driver.execute_script("return outerHeight - innerHeight")
        driver.set_window_size(960, height + frame)
        driver.save_screenshot(str(target))
    return headline


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    from tiny_bundle import write_tiny_bundle

    return write_tiny_bundle(tmp_path_factory.mktemp("page") / "reviews" / "bundle", tiny_bert)


@pytest.fixture(scope="module")
def url(bundle: Path) -> Iterator[str]:
    """The address that `python -m serving run` prints."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    terminal, stdin = os.openpty()
    server = subprocess.Popen(
        [sys.executable, "-m", "serving", "run", bundle, "--port", str(port), "--ask", REVIEW],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert server.stdout is not None
    address = f"http://127.0.0.1:{port}"
    try:
        said = list(itertools.takewhile(lambda line: "Ctrl-C" not in line, server.stdout))
        assert len(said) == 5, "".join(said)
        *addresses, answer = said[1:]
        assert addresses == [
            f"  page  {address}/\n",
            f"  API   {address}/predict\n",
            f"  docs  {address}/docs\n",
        ]
        assert re.fullmatch(rf'(positive|negative) \d+\.\d%  "{REVIEW}"\n', answer)
        yield address
        server.send_signal(signal.SIGINT)
        rest, _ = server.communicate(timeout=60)
        assert (server.returncode, rest) == (0, "ending …\n")
    finally:
        server.kill()
        server.wait()
        server.stdout.close()
        os.close(terminal)
        os.close(stdin)


@pytest.fixture(scope="module")
def driver() -> Iterator[webdriver.Chrome]:
    missing = [path for path in CHROMIUM if not Path(path).exists()]
    if missing:
        pytest.skip(f"no {' and no '.join(missing)}: apt-get install chromium chromium-driver")
    with browser() as opened:
        yield opened


@pytest.mark.slow
def test_a_typed_review_gets_the_engines_label(
    driver: webdriver.Chrome, url: str, bundle: Path, tmp_path: Path
) -> None:
    from serving.engine import Engine

    headline = ask_in_page(driver, url, REVIEW)
    engine = Engine.load(bundle)
    (prediction,) = engine.predict([REVIEW])
    score, label = max(zip(prediction.scores, engine.card.labels, strict=True))
    assert headline == f"{label}, {100 * score:.1f} %"
    shown = [row.text for row in driver.find_elements(By.CSS_SELECTOR, "#scores .name")]
    assert sorted(shown) == sorted(engine.card.labels)
    assert until(driver, "#latency").startswith("answered in ")
    assert until(driver, "#model") == "reviews · negative, positive"
    assert driver.save_screenshot(str(tmp_path / "page.png"))
    assert not driver.get_log("browser")


@pytest.mark.slow
def test_text_is_shown_as_text(driver: webdriver.Chrome, url: str) -> None:
    ask_in_page(driver, url, "<img src=x onerror=alert(1)>'\"")
    assert not driver.find_elements(By.CSS_SELECTOR, "img")
    assert "<img" in driver.find_element(By.ID, "curl").get_attribute("textContent")


@pytest.mark.slow
def test_an_example_answers_when_it_is_clicked(driver: webdriver.Chrome, url: str) -> None:
    driver.get(url)
    until(driver, "#examples")
    driver.find_element(By.CSS_SELECTOR, "#examples button").click()
    assert until(driver, "#headline")


@pytest.mark.slow
def test_no_text_is_explained(driver: webdriver.Chrome, url: str) -> None:
    driver.get(url)
    until(driver, "#metrics")
    driver.find_element(By.ID, "ask").click()
    assert "no text yet" in until(driver, "#problem")


@pytest.mark.slow
def test_the_documentation_shows_every_route(driver: webdriver.Chrome, url: str) -> None:
    driver.get(f"{url}/docs")
    until(driver, "section h2")
    titles = [each.text for each in driver.find_elements(By.CSS_SELECTOR, "section h2")]
    assert titles[:3] == ["POST /predict", "GET /health", "GET /info"]
    assert not driver.get_log("browser")


if __name__ == "__main__":
    print(photograph(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
