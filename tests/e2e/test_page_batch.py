"""Many texts at once in the page, and what is unusual: files, refusals, keys, many labels.

Over models that answer at once, refuse or take their time, and over a real one.
"""

import asyncio
import csv
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.keys import Keys

from serving import protocols
from serving.deployment import admin_routes
from serving.deployment.config import EndpointConfig
from serving.deployment.server import ReplicaServer
from serving.engine.engine import Engine
from serving.http.asgi import App
from serving.http.keys import ApiKey
from serving.http.keys import ApiKeys as ApiKeys
from serving.http.messages import HTTPError
from serving.interface import InferenceResult, Limits, Prediction
from serving.protocols.embeddings import cosine_similarity
from tests.support.browser import PageUser
from tests.support.fake_models import FakeModels, fake_prediction, fake_vector
from tests.support.model_servers import make_registry
from tests.support.pages import serving
from tests.support.servers import serve_app
from tests.support.tiny import BAD, GOOD, PLAIN
from tests.support.tiny_bundle import LABELS, write_tiny_bundle

pytestmark = pytest.mark.browser

NAMES = LABELS["classification"]


class Moody(FakeModels):
    """Counts its questions; may be overloaded, slow, or unable to read some texts."""

    def __init__(self, *, busy: Sequence[int] = (), seconds: float = 0.0, **more: Any) -> None:
        """busy: the questions, from 1, that are too many."""
        super().__init__(**more)
        self.asked: list[Sequence[str]] = []
        self._busy, self._seconds = busy, seconds

    async def predict(
        self, model: str | None, texts: Sequence[str], *, truncate: bool = True
    ) -> InferenceResult[Prediction]:
        self.asked.append(texts)
        if len(self.asked) in self._busy:
            raise HTTPError("overloaded", "too much waits", 1)
        await asyncio.sleep(self._seconds)
        if any("unreadable" in text for text in texts):
            raise HTTPError("unreadable", "a text cannot be read")
        return await super().predict(model, texts, truncate=truncate)


def scores(text: str) -> dict[str, float]:
    """What the models of these tests answer."""
    answer = fake_prediction(text, "classification", 2)
    return dict(zip(("negative", "positive"), answer.scores, strict=True))


def write(path: Path, rows: Sequence[Sequence[str]], delimiter: str = ",", mark: str = "") -> Path:
    """A file as a spreadsheet writes it."""
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(mark)
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


def answer_all(person: PageUser, table: Path) -> str:
    """Give the page a file and have it all answered; what the page says then."""
    person.upload_file(table)
    person.read_text("sample")
    person.find_by_id("start").click()
    return person.wait_until_done()


def assert_answered(row: dict[str, str], expected: dict[str, float]) -> None:
    assert row["error"] == ""
    assert row["label"] == max(expected, key=lambda label: expected[label])
    assert float(row["score"]) == pytest.approx(max(expected.values()), abs=1e-5)
    for label, score in expected.items():
        assert float(row[f"probability_{label}"]) == pytest.approx(score, abs=1e-5)


@pytest.mark.parametrize(("delimiter", "mark"), [(",", ""), (";", "\ufeff"), ("\t", "")])
def test_a_hundred_rows_get_the_engines_answers(
    person: PageUser, tmp_path: Path, tiny_bert: Path, delimiter: str, mark: str
) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle", tiny_bert)
    registry = make_registry(tmp_path / "registry", bundle, "reviews")
    words = [*GOOD, *BAD, *PLAIN]
    texts = [
        f'"{words[n % 16]}" {words[n % 31]}, {words[n % 7]};\r\n{words[-n % 29]}\n\tü \U0001f3ac'
        for n in range(100)
    ]
    rows = [["id", "text", "label"], *([f"{n:03}", text, "?"] for n, text in enumerate(texts))]
    table = write(tmp_path / "reviews.csv", rows, delimiter, mark)
    listener = ReplicaServer(EndpointConfig(registry=registry.address), "127.0.0.1")
    listener.start()
    try:
        person.open_page(f"http://{listener.address}/")
        assert "Done in" in answer_all(person, table)
        assert person.find_by_id("batch-count").text == "100 of 100 rows"
        answers = person.download_rows(delimiter)
    finally:
        listener.stop()
    assert [[row["id"], row["text"], row["label"]] for row in answers] == rows[1:]
    predictions = Engine.load(bundle).predict(texts)
    for row, predicted in zip(answers, predictions, strict=True):
        assert row["model"] == "reviews:1"
        row["label"] = row["answer_label"]
        assert_answered(row, dict(zip(NAMES, predicted.scores, strict=True)))
    written = (person.downloads / "reviews-answers.csv").read_bytes()
    assert written.startswith(b"\xef\xbb\xbf") == bool(mark)


def test_an_overloaded_server_is_waited_for(person: PageUser, tmp_path: Path) -> None:
    texts = [f"film {number}" for number in range(24)]
    table = write(tmp_path / "films.csv", [["text"], *([text] for text in texts)])
    models = Moody(busy=(2, 3, 7), limits=Limits(max_texts=4))
    with serving(models) as url:
        person.open_page(url)
        person.upload_file(table)
        person.read_text("sample")
        person.find_by_id("start").click()
        person.wait_until(
            lambda: "busy; Going on in 1 second" in person.find_by_id("batch-status").text
        )
        assert "Done in" in person.wait_until_done()
        answers = person.download_rows()
    assert len(models.asked) == 6 + 3
    assert all(len(texts) <= 4 for texts in models.asked)
    for row, text in zip(answers, texts, strict=True):
        assert row["text"] == text
        assert_answered(row, scores(text))


def test_one_row_that_is_refused_costs_no_other(person: PageUser, tmp_path: Path) -> None:
    texts = ["a film", "unreadable", "", "a plot", "a cast", "  ", "a scene", "an unreadable one"]
    rows = [["number", "text"], *([str(number), text] for number, text in enumerate(texts, 1))]
    models = Moody(limits=Limits(max_texts=4))
    with serving(models) as url:
        person.open_page(url)
        said = answer_all(person, write(tmp_path / "some.csv", rows))
        answers = person.download_rows()
        errors = person.read_text("batch-errors")
    assert said.endswith("4 rows without an answer.")
    assert "row 2: a text cannot be read" in errors and "row 3: there is no text" in errors
    assert [row["error"] for row in answers] == [
        *("", "a text cannot be read", "there is no text", "", ""),
        *("there is no text", "", "a text cannot be read"),
    ]
    for row in answers:
        if row["error"]:
            assert row["label"] == row["score"] == ""
        else:
            assert_answered(row, scores(row["text"]))


def test_what_was_stopped_goes_on(person: PageUser, tmp_path: Path) -> None:
    texts = [f"film {number}" for number in range(40)]
    table = write(tmp_path / "films.csv", [["text"], *([text] for text in texts)])
    models = Moody(seconds=0.25, limits=Limits(max_texts=2))
    with serving(models) as url:
        person.open_page(url)
        person.upload_file(table)
        person.read_text("sample")
        person.find_by_id("start").send_keys(Keys.ENTER)
        person.wait_until(lambda: person.find_by_id("progress").get_property("value") >= 6)
        person.find_by_id("cancel").send_keys(Keys.ENTER)
        assert "Stopped: " in person.wait_until_done()
        assert person.driver.switch_to.active_element.text == "Go on"
        half = person.download_rows()
        person.find_by_id("start").send_keys(Keys.ENTER)
        assert "Done in" in person.wait_until_done()
        answers = person.download_rows()
    num_left = [row["error"] for row in half].count("not asked")
    assert 0 < num_left < 40
    for row, text in zip(answers, texts, strict=True):
        assert_answered(row, scores(text))
    assert sum(map(len, models.asked)) <= 40 + 3 * 2  # what was under way was asked twice


def test_the_user_chooses_the_column(person: PageUser, tmp_path: Path) -> None:
    rows = [["7", "short", "a longer text than that"], ["8", "brief", "and another long text"]]
    with serving(Moody()) as url:
        person.open_page(url)
        person.upload_file(write(tmp_path / "unnamed.csv", rows))
        person.find_by_id("named").click()
        assert "“a longer text than that”" in person.read_text("sample")
        person.choose_option("text-column", "column 2")
        assert person.read_text("sample") == "“short” “brief”"
        person.find_by_id("start").click()
        assert "Done in" in person.wait_until_done()
        answers = person.download_rows()
    assert [row["column 1"] for row in answers] == ["7", "8"]
    for row in answers:
        assert_answered(row, scores(row["column 2"]))


def test_no_cell_becomes_a_formula(person: PageUser, tmp_path: Path) -> None:
    formulas = ["=1+1", "@SUM(A1)", "+1+cmd", "-2+3", "\t=1", "\uff1d1", '="x"']
    harmless = ["-5", "+4.5e3", "a = b"]
    cells = [*formulas, *harmless]
    rows = [["=name", "text"], *([cell, f"text {n}"] for n, cell in enumerate(cells))]
    with serving(Moody()) as url:
        person.open_page(url)
        assert "Done in" in answer_all(person, write(tmp_path / "cells.csv", rows))
        answers = person.download_rows()
    expected = [f"'{cell}" for cell in formulas] + harmless
    assert [row["'=name"] for row in answers] == expected


def test_older_encodings_are_read_and_said(person: PageUser, tmp_path: Path) -> None:
    text = "schön; teuer \u2013 5 €"
    with serving(Moody()) as url:
        person.open_page(url)
        for encoding, said in (("cp1252", "windows-1252"), ("utf-16", "utf-16le")):
            table = tmp_path / f"{encoding}.csv"
            table.write_bytes(f'text;n\r\n"{text}";1\r\n'.encode(encoding))
            assert "Done in" in answer_all(person, table)
            expected = f"{encoding}.csv: 1 row, 2 columns, divided by semicolons, read as {said}"
            assert person.read_text("file-note") == expected
            (row,) = person.download_rows(";")
            assert_answered(row, scores(text))


@pytest.mark.parametrize(
    ("content", "words"), [("", "no rows"), ('text\n"a film\nand more', "row 2 is never closed")]
)
def test_a_file_that_is_no_table_is_refused(
    person: PageUser, tmp_path: Path, content: str, words: str
) -> None:
    table = tmp_path / "broken.csv"
    table.write_text(content)
    with serving(Moody()) as url:
        person.open_page(url)
        person.upload_file(table)
        assert words in person.read_text("batch-status")
        assert not person.find_by_id("start").is_displayed()


def test_every_task_answers_a_file(person: PageUser, tmp_path: Path) -> None:
    rows = [["text", "other"], ["a [MASK]", "a film"], ["my [MASK] and [MASK]", "a long plot"]]
    table = write(tmp_path / "pairs.csv", rows)
    found = {}
    with serving(Moody(limits=Limits(max_texts=4))) as url:
        for name in ("topics", "stars", "mini", "filler"):
            person.open_page(url, name)
            assert "Done in" in answer_all(person, table)
            found[name] = person.download_rows()
    for place, (text, other) in enumerate(rows[1:]):
        topics = fake_prediction(text, "multi-label", 3).scores
        labels = dict(zip(LABELS["multi-label"], topics, strict=True))
        chosen = [each for each in sorted(labels, key=lambda each: -labels[each])]
        expected = "|".join(each for each in chosen if labels[each] >= 0.5)
        assert found["topics"][place]["label"] == expected
        stars = float(found["stars"][place]["value"])
        assert stars == fake_prediction(text, "regression", 1).scores[0]
        nearness = float(found["mini"][place]["similarity"])
        assert nearness == pytest.approx(
            cosine_similarity(fake_vector(text), fake_vector(other)), abs=1e-6
        )
    assert [row["label"] for row in found["filler"]] == ["film", "film|film"]


def test_a_key_is_asked_for_and_forgotten(person: PageUser, tmp_path: Path) -> None:
    digest = hashlib.sha256(b"bertha-secret").hexdigest()
    keys = ApiKeys([ApiKey(name="reader", sha256=digest)])
    with serving(FakeModels(), keys) as url:
        person.driver.get(url)
        assert person.read_text("problem") == "give a valid key: Authorization: Bearer KEY"
        assert person.driver.switch_to.active_element.get_attribute("id") == "key"
        for given in ("wrong", "bertha-secret"):
            person.wait_until(person.find_by_id("key").is_displayed)
            person.find_by_id("key").send_keys(given, Keys.ENTER)
        person.wait_until(person.find_by_id("card").is_displayed)
        assert not person.find_by_id("key").is_displayed()
        assert person.ask_text("a film")
        assert answer_all(person, write(tmp_path / "one.csv", [["text"], ["a film"]]))
        stored = person.driver.execute_script("return localStorage.length + sessionStorage.length")
        assert stored == 0 and not person.driver.get_cookies()
        assert "bertha-secret" not in person.driver.page_source
        person.driver.get(url)
        person.wait_until(person.find_by_id("key").is_displayed)


def test_the_servers_own_time_is_told(person: PageUser) -> None:
    class Timed(App):
        """Says how long it took, as a server may."""

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            async def timed(said: Any) -> None:
                if said["type"] == "http.response.start":
                    said["headers"].append((b"server-timing", b"queue;dur=0.25, model;dur=3.5"))
                await send(said)

            await super().__call__(scope, receive, timed)

    async def counts() -> dict[Any, float]:
        return {}

    async def tallies() -> list[Any]:
        return []

    operators = admin_routes.admin_protocol(protocols.ALL, counts, tallies, lambda: True, "0")
    with serve_app(Timed([*protocols.ALL, operators], FakeModels())) as address:
        person.open_page(f"http://{address}/")
        person.ask_text("a film")
        assert "queue 0.25 ms, model 3.5 ms" in person.read_text("latency")


def test_many_labels_are_shown_when_all_are_wanted(person: PageUser) -> None:
    models = FakeModels()
    models.infos[0] = replace(models.infos[0], labels=tuple(f"label {n}" for n in range(20)))
    with serving(models) as url:
        person.open_page(url)
        person.ask_text("a film")
        assert len(person.read_bars()) == 8
        person.find_all("#scores button")[0].send_keys(Keys.ENTER)
        found = person.read_bars()
    expected = fake_prediction("a film", "classification", 20).scores
    ranked = sorted(range(20), key=lambda n: -expected[n])
    assert [label for label, _ in found] == [f"label {n}" for n in ranked]
    assert not person.find_all("#scores button")
