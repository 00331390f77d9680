"""The live page of a search: as an application, and in a real browser while a search runs.

Pictures of it go where the environment's BERTHA_PICTURES says, as `docs`; of another search, that
lies in a directory:

    BERTHA_PICTURES=docs python -m tests.tuning.results.test_dashboard runs/tuned
"""

import io
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import httpx
import pytest
import yaml

from cluster.errors import BerthaError
from tests.support.browser import PageUser, browser_or_skip, open_browser
from tests.support.searches import prepared_search, write_search
from tuning.__main__ import main
from tuning.algorithms.trial import rank_completed
from tuning.results import figures, report
from tuning.results.dashboard import (
    Dashboard,
    DashboardError,
    describe_status,
    make_dashboard_server,
)
from tuning.results.render import THEME, Section, render_html
from tuning.store import reader

# What TensorBoard says of libraries that it carries, and of its own answers.
pytestmark = [
    pytest.mark.filterwarnings("ignore:html5lib:DeprecationWarning"),
    pytest.mark.filterwarnings(r"ignore:\s*In 3.0, this warning will become an error"),
]

HERE = {"HTTP_HOST": "localhost:8080"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search that was killed in the middle."""
    run = tmp_path_factory.mktemp("place") / "search"
    write_search(run, prepared_search(budget="2h"), max_evals=20)
    return run


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search that has ended, with its figures in a report."""
    run = tmp_path_factory.mktemp("place") / "ended"
    write_search(run, prepared_search())
    (run / "result.json").write_text("{}")
    snapshot = reader.read_snapshot(run)
    curves = Section("Learning curves", figure=figures.plot_curves(snapshot, 1))
    (run / "report.html").write_text(render_html(f"Search {run.name}", [curves]))
    return run


@pytest.fixture(scope="module")
def pages(run: Path) -> Dashboard:
    return Dashboard(run)


def ask(pages: Dashboard, path: str, method: str = "GET", **more: str) -> tuple[int, bytes]:
    """The status and the body of an answer."""
    environ: dict[str, Any] = {"PATH_INFO": path, "REQUEST_METHOD": method, **HERE, **more}
    environ["wsgi.input"] = io.BytesIO(b"")
    setup_testing_defaults(environ)
    told: list[str] = []
    body = b"".join(pages(environ, lambda line, headers, *_: told.append(line)))  # type: ignore
    return int(told[0].split()[0]), body


def test_the_page_tells_what_was_spent(run: Path, pages: Dashboard) -> None:
    code, body = ask(pages, "/search/status")
    told = json.loads(body)
    assert code == 200 and told["run"] == "search"
    snapshot = reader.read_snapshot(run)
    said, states = told["status"], [trial.state for trial in snapshot.trials]
    assert said["trials"].startswith(f"{len(states)} of 12: ")
    for state in ("complete", "stopped", "running"):
        assert states.count(state) and f"{states.count(state)} {state}" in said["trials"]
    assert said["spent"] == str(snapshot.spent) and said["budget"].startswith("2h; ")
    best = rank_completed(snapshot.trials)[0]
    assert said["best so far"].startswith(f"trial {best.number}, f1 {best.score:.4f} on ")
    assert "expected to cost" in said["an even chance of better"]
    assert said["work"].endswith("whole runs") and "decision" in said["state"]


def test_the_status_of_a_search_that_has_ended(tmp_path: Path) -> None:
    trials = write_search(tmp_path, prepared_search(trials=4, seeds=2))
    (tmp_path / "result.json").write_text("{}")
    told = describe_status(reader.read_snapshot(tmp_path), now=0.0)
    again = sum(trial.repeats is not None for trial in trials)
    assert told["state"].startswith("ended") and told["trials"].startswith("4 of 4")
    assert told["other seeds"] == f"{again} runs: {again} complete" and "budget" not in told


def test_the_heat_map_is_drawn_anew(pages: Dashboard) -> None:
    code, body = ask(pages, "/search/heat")
    assert code == 200 and body.startswith(b"<svg") and b"learning rate" in body
    assert body.endswith(f"<p>{report.HEAT_MAP_TEXT}</p>".encode())


def test_the_report_is_a_link_once_there_is_one(tmp_path: Path) -> None:
    write_search(tmp_path, prepared_search(trials=4, seeds=1))
    pages = Dashboard(tmp_path)
    assert json.loads(ask(pages, "/search/status")[1])["report"] is False
    code, body = ask(pages, "/report")
    assert code == 404 and "written when the search ends" in json.loads(body)["reason"]
    (tmp_path / "report.html").write_text("<h1>Found</h1>")
    assert json.loads(ask(pages, "/search/status")[1])["report"] is True
    assert ask(pages, "/report") == (200, b"<h1>Found</h1>")
    headers: list[Any] = []
    environ: dict[str, Any] = {"PATH_INFO": "/report", "REQUEST_METHOD": "GET", **HERE}
    pages(environ, lambda _, given, *__: headers.extend(given))  # type: ignore
    assert dict(headers)["Content-Security-Policy"].startswith("default-src 'none'")


def test_the_page_has_the_style_of_the_report(pages: Dashboard) -> None:
    assert b'<link rel="stylesheet" href="theme.css">' in ask(pages, "/")[1]
    assert ask(pages, "/theme.css") == (200, THEME.read_bytes())


def test_optuna_shows_the_trials(run: Path, pages: Dashboard) -> None:
    code, body = ask(pages, "/api/studies/0", QUERY_STRING="after=0")
    trials = json.loads(body)["trials"]
    known = reader.read_snapshot(run).trials
    assert code == 200 and len(trials) == len(known)
    assert json.loads(body)["objective_names"] == ["f1"]
    values = [each["value"] for each in trials[0]["intermediate_values"]]
    assert values == [look.score for look in known[0].curve]
    code, body = ask(pages, "/dashboard/studies/0")
    assert code == 200 and b"/static/" in body
    assert b"https://" not in body and b'"//' not in body, "everything comes from this machine"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("DELETE", "/api/studies/0"),
        ("POST", "/api/studies"),
        ("PUT", "/api/studies/0/note"),
        ("POST", "/api/trials/0/tell"),
        ("POST", "/"),
    ],
    ids=lambda value: value.strip("/").replace("/", "-") or "root",
)
def test_a_page_changes_nothing(run: Path, pages: Dashboard, method: str, path: str) -> None:
    before = (run / "study.journal").read_bytes()
    code, body = ask(pages, path, method)
    assert code == 405 and "only shows it" in json.loads(body)["reason"]
    assert (run / "study.journal").read_bytes() == before


@pytest.mark.parametrize(
    "host", ["evil.example:8080", "evil.example", "", "127.0.0.1.evil.example"]
)
def test_a_name_from_elsewhere_is_not_answered(pages: Dashboard, host: str) -> None:
    for path in ("/", "/search/status", "/api/studies", "/tensorboard/"):
        assert ask(pages, path, HTTP_HOST=host)[0] == 403


@pytest.mark.parametrize("host", ["localhost", "localhost:9000", "127.0.0.1:8080", "[::1]:8080"])
def test_a_forwarded_port_may_have_another_number(pages: Dashboard, host: str) -> None:
    assert ask(pages, "/search/status", HTTP_HOST=host)[0] == 200


def test_a_port_that_is_taken(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with make_dashboard_server(run, 0) as server:
        port = server.server_port
        with pytest.raises(DashboardError, match=f"--port {port}: .*name another"):
            make_dashboard_server(run, port)
        assert main(["dashboard", str(run), "--port", str(port), "--no-browser"]) == 2
    assert "name another" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["dashboard", str(run), "--port", "99999", "--no-browser"])
    assert capsys.readouterr().err == (
        "error: --port: '99999': give a whole number from 0 to 65535\n"
    )


SETTINGS = {
    "batch": {"global_size": 16, "max_length": 32, "token_budget": 128},
    "optimizer": {"learning_rate": 5e-4},
    "stopping": {"epochs": 40, "patience": None},  # a trial lasts for several looks of the page
    "precision": "fp32",
    "tune": {"optimizer.learning_rate": "log 1e-4..3e-2", "batch.global_size": [8, 16, 32]},
}


@pytest.fixture(scope="module")
def searching(
    tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, corpus: Path
) -> Iterator[Path]:
    """A search that runs, in a process of its own."""
    place = tmp_path_factory.mktemp("searching")
    own = {"model": {"name": str(tiny_bert)}, "data": {"source": str(corpus)}}
    (place / "recipe.yaml").write_text(yaml.safe_dump(SETTINGS | own))
    metadata = {
        "devices_per_node": 1,
        "cache": str(place / "cache"),
        "price_usd_per_hour": 3.0,
        "power_watts": 100.0,
    }
    cluster = {"provider": {"type": "local"}, "metadata": metadata}
    (place / "cluster.yaml").write_text(yaml.safe_dump(cluster))
    run = place / "search"
    words = [str(place / "recipe.yaml"), "--cluster", str(place / "cluster.yaml")]
    command = [sys.executable, "-m", "tuning", *words, "--run", str(run), "--trials", "8"]
    with (place / "said.txt").open("w") as said:
        process = subprocess.Popen([*command, "--budget", "2h"], stdout=said, stderr=said)
        until(lambda: is_told(run) or process.poll() is not None)
        assert process.poll() is None, (place / "said.txt").read_text()
        yield run
        process.terminate()
        process.wait()


def is_told(run: Path) -> bool:
    """Whether something is written down of a search."""
    try:
        return bool(reader.read_snapshot(run).trials)
    except BerthaError:
        return False


def until(happened: Callable[[], bool], seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.2)


@contextmanager
def shown(run: Path) -> Iterator[str]:
    """The address of a dashboard that is served meanwhile."""
    with make_dashboard_server(run, 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def person() -> Iterator[PageUser]:
    with browser_or_skip() as person:
        person.driver.set_window_size(1280, 1200)
        yield person


@contextmanager
def inside(person: PageUser, panel: str) -> Iterator[None]:
    """Look into one of the pages within the page."""
    person.driver.switch_to.frame(person.find_by_id(panel))
    yield
    person.driver.switch_to.default_content()


def curves(person: PageUser) -> dict[str, int]:
    """How many evaluations of each trial are drawn."""
    drawn = """const graph = document.getElementById("graph-intermediate-values");
        return [graph?.querySelectorAll(".scatterlayer .trace").length ?? 0, graph?.data ?? []]"""
    lines, data = person.driver.execute_script(drawn)
    return {each["name"].split()[1]: len(each["x"]) for each in data if each["x"]} if lines else {}


def choose(person: PageUser, tab: str) -> None:
    person.find_all(f"[role=tab][aria-controls={tab}]")[0].click()


def sources(person: PageUser) -> set[str]:
    """From where everything was loaded."""
    script = "return performance.getEntriesByType('resource').map((each) => each.name)"
    return {"/".join(str(each).split("/")[:3]) for each in person.driver.execute_script(script)}


def photograph(person: PageUser, name: str) -> None:
    if "BERTHA_PICTURES" in os.environ:
        person.driver.save_screenshot(str(Path(os.environ["BERTHA_PICTURES"]) / name))


@pytest.mark.browser
def test_a_person_watches_a_search(searching: Path, person: PageUser) -> None:
    with shown(searching) as url:
        here = url.rstrip("/")
        person.driver.get(url)
        person.wait_until(lambda: "running" in person.read_fact("trials"), 60)
        assert "$" in person.read_fact("spent") and "kWh" in person.read_fact("spent")
        assert sources(person) == {here}
        with inside(person, "trials"):
            person.wait_until(lambda: curves(person), 120)
            seen = [curves(person)]
            person.wait_until(lambda: grows(seen, curves(person)), 240)
            person.wait_until(lambda: set(curves(person)) > set(seen[0]), 240)
            assert sources(person) == {here}
        photograph(person, "tuning-dashboard.png")
        person.wait_until(lambda: "complete" in person.read_fact("trials"), 240)
        person.wait_until(lambda: re.search(r"f1 [01]\.\d{4} on", person.read_fact("best so far")))
        choose(person, "heat")
        person.wait_until(lambda: person.find_all("#heat svg"), 60)
        before = person.find_by_id("heat").get_attribute("innerHTML")
        person.wait_until(
            lambda: person.find_by_id("heat").get_attribute("innerHTML") != before, 120
        )
        photograph(person, "tuning-heat.png")
        choose(person, "hparams")
        listing = f"{url}tensorboard/data/plugins_listing"
        until(lambda: bool(httpx.get(listing, timeout=60).json()["hparams"]["enabled"]))
        with inside(person, "hparams"):
            person.wait_until(lambda: "hparams" in person.find_all("body")[0].text.lower(), 60)
            assert sources(person) == {here}
        photograph(person, "tuning-hparams.png")


def grows(seen: list[dict[str, int]], now: dict[str, int]) -> bool:
    """Whether a curve has become longer since it was looked at; `now` becomes what was seen."""
    seen.append(now)
    return any(now.get(name, 0) > length for name, length in seen[-2].items())


# Text of a figure, and its lines, against what is painted behind the figure.
FIGURE = """
const light = (colour) => {
  const paint = document.createElement("canvas").getContext("2d");
  paint.fillStyle = colour; paint.fillRect(0, 0, 1, 1);
  const [r, g, b] = [...paint.getImageData(0, 0, 1, 1).data].map((each) => each / 255)
    .map((each) => each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const [figure, ground] = [...arguments].map((css) => document.querySelector(css));
const behind = light(getComputedStyle(ground).backgroundColor);
const apart = (colour) => (Math.max(behind, light(colour)) + 0.05)
  / (Math.min(behind, light(colour)) + 0.05);
const outside = [...figure.querySelectorAll("text")].filter((each) =>
  !/trial/.test(each.textContent) && !/^[01][.]\\d{4}/.test(each.textContent));
const lines = [...figure.querySelectorAll("path")].map((each) => getComputedStyle(each).stroke)
  .filter((stroke) => stroke !== "none");
return [Math.min(...outside.map((each) => apart(getComputedStyle(each).fill))),
  Math.min(...lines.map(apart))];
"""


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_heat_map_stands_out_in_light_and_in_dark(
    run: Path, person: PageUser, scheme: str
) -> None:
    person.set_color_scheme(scheme)
    with shown(run) as url:
        person.driver.get(url)
        choose(person, "heat")
        person.wait_until(lambda: person.find_all("#heat svg"), 60)
        texts, lines = person.driver.execute_script(FIGURE, "#heat svg", "#heat")
        assert texts >= 4.5 and lines >= 3
        ground = person.find_by_id("heat").value_of_css_property("background-color")
        assert ground == {"light": "rgba(255, 255, 255, 1)", "dark": "rgba(29, 33, 32, 1)"}[scheme]
    person.set_color_scheme("light")


@pytest.mark.browser
def test_the_report_is_a_link_that_opens(person: PageUser, ended: Path) -> None:
    with shown(ended) as url:
        person.driver.get(url)
        person.wait_until(lambda: person.read_fact("spent"))
        assert "ended" in person.read_fact("state")
        link = person.find_by_id("report")
        assert link.is_displayed() and link.accessible_name == "Report of the search"
        person.driver.get(link.get_attribute("href"))
        assert [each.text for each in person.find_all("h1")] == [f"Search {ended.name}"]
        texts, lines = person.driver.execute_script(FIGURE, "svg", "section")
        assert texts >= 4.5 and lines >= 3
        assert sources(person) == set(), "it needs nothing else"


@pytest.mark.browser
def test_a_page_whose_dashboard_has_ended_says_so(run: Path, person: PageUser) -> None:
    with shown(run) as url:
        person.driver.get(url)
        person.wait_until(lambda: person.read_fact("spent"))
        assert not person.find_by_id("silent").is_displayed()
    person.wait_until(lambda: person.find_by_id("silent").is_displayed())


if __name__ == "__main__":
    with shown(Path(sys.argv[1])) as address, open_browser() as somebody:
        somebody.driver.set_window_size(1280, 1200)
        somebody.driver.get(address)
        with inside(somebody, "trials"):
            somebody.wait_until(lambda: curves(somebody), 60)
        for panel in ("trials", "heat", "hparams"):
            choose(somebody, panel)
            time.sleep(8)  # until figures stand still, which no page tells
            name = "dashboard" if panel == "trials" else panel
            photograph(somebody, f"tuning-{name}.png")
