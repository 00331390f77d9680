"""What the page shows of a model: examples, thresholds, scales, doubts, and what came of a file."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.keys import Keys

from serving.interface import Attribution, Explanation, InferenceResult, Limits, Prediction
from tests.e2e.test_page import CONTRAST
from tests.support.browser import PHONE, PageUser
from tests.support.fake_models import FakeModels, fake_model_info
from tests.support.pages import serving

pytestmark = pytest.mark.browser

HELD_OUT = ("the first held-out text", "a second one " * 60, "<b>the third</b>")
VERDICT: dict[str, Any] = {
    "metric": "f1",
    "rows": 35,
    "figures": {
        "f1": {"value": 0.93, "low": 0.85, "high": 0.98},
        "accuracy": {"value": 0.94, "low": 0.86, "high": 0.99},
    },
    "baselines": {
        "majority": {"f1": 0.31, "accuracy": 0.5},
        "bag-of-words": {
            "name": "TF-IDF + logistic regression",
            "f1": 0.9,
            "accuracy": 0.91,
            "seconds": 1.2,
            "difference": {"value": 0.03, "low": -0.02, "high": 0.08},
        },
    },
    "never_predicted": [],
    "confusions": [{"true": "negative", "predicted": "positive", "rows": 2}],
    "calibration": {"ece": 0.04},
    "loss_falling": False,
    "candidate": "fine-tuned",
    "sentences": ["It beats the bag of words, though not beyond chance."],
    "next": "bertha serve runs/mine",
}


class Told(FakeModels):
    """Models that have everything a card can say, and answer as the words of a text say.

    A number in a text is what a regression answers, and the probability of "positive" or of each
    topic in turn.
    """

    def __init__(self, verdict: Mapping[str, Any] = VERDICT) -> None:
        super().__init__(limits=Limits(max_texts=8))
        self.infos = [
            fake_model_info(
                "sentiment", thresholds={"positive": 0.35}, verdict=verdict, examples=HELD_OUT
            ),
            fake_model_info("topics", thresholds={"plot": 0.2, "cast": 0.9}),
            fake_model_info(
                "stars",
                metrics={"mae": 0.5, "r2": 0.7},
                target={"mean": 3.2, "deviation": 1.1, "low": 1.0, "high": 5.0},
            ),
        ]

    async def predict(
        self, model: str | None, texts: Sequence[str], *, truncate: bool = True
    ) -> InferenceResult[Prediction]:
        known = self.get_info(model)
        values = []
        for text in texts:
            numbers = [float(each) for each in re.findall(r"-?\d+\.\d+|-?\d+", text)] or [0.75]
            if known.task == "classification":
                numbers = [1 - numbers[0], numbers[0]]
            scores = (numbers + [0.1] * len(known.labels))[: max(1, len(known.labels))]
            values.append(Prediction(tuple(scores), tuple(scores)))
        return InferenceResult(known, values, self._rows(texts))

    async def explain(
        self, model: str | None, texts: Sequence[str], *, label: str | None = None
    ) -> InferenceResult[Explanation]:
        known, values = self.get_info(model), []
        for text in texts:
            pieces = [
                Attribution(each.start(), each.end(), -9.0 if each.group() == "." else 1.0)
                if not each.group().isalnum()
                else Attribution(each.start(), each.end(), -0.2 if each.group() == "dull" else 0.4)
                for each in re.finditer(r"\w+|[^\w\s]", text)
            ]
            values.append(Explanation(1, Prediction((0.4, 0.6), (0.0, 1.0)), tuple(pieces)))
        return InferenceResult(known, values, self._rows(texts))


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(Told()) as address:
        yield address


def move(person: PageUser, css: str, value: float) -> None:
    """Drag the handle of a slider."""
    script = (
        "const [one, value] = arguments; one.value = value;"
        "one.dispatchEvent(new Event('input', { bubbles: true }))"
    )
    person.driver.execute_script(script, person.find_all(css)[0], value)


def cells(person: PageUser, css: str) -> list[list[str]]:
    """The texts of a table, row by row."""
    script = (
        "return [...document.querySelectorAll(arguments[0] + ' tr')]"
        ".map((row) => [...row.cells].map((cell) => cell.textContent))"
    )
    found: list[list[str]] = person.driver.execute_script(script, css)
    return found


def test_examples_are_held_out_texts_of_the_models_own(person: PageUser, url: str) -> None:
    person.open_page(url)
    buttons = person.find_all("#examples button")
    assert [each.get_attribute("textContent") for each in buttons] == list(HELD_OUT)
    assert "never saw in training" in person.read_text("examples-title")
    assert buttons[1].size["height"] < 80, "a long one is cut to two lines"
    buttons[2].click()
    assert person.read_text("headline").startswith("positive")
    assert person.find_by_id("text").get_attribute("value") == HELD_OUT[2]
    person.choose_option("model", "topics")
    assert not person.find_all("#examples button") and not person.find_all("#examples b")
    assert not person.find_by_id("examples-title").is_displayed()


def test_the_answer_says_that_a_text_was_cut(person: PageUser, url: str) -> None:
    person.open_page(url)
    person.driver.execute_script(
        "document.getElementById('text').value = arguments[0]", "word " * 1338
    )
    person.find_by_id("ask").click()
    said = "Cut: the model read 64 of the 1,340 tokens of this text. The rest did not count."
    assert person.read_text("cut") == said
    assert said in person.find_by_id("said").get_attribute("textContent")
    person.ask_text("a short one")
    person.wait_until(lambda: not person.find_by_id("cut").is_displayed())


def test_a_threshold_decides_and_is_moved(person: PageUser, url: str) -> None:
    person.open_page(url)
    assert person.ask_text("film 0.4") == "positive, 40.0 %", "from 35 %, though not the likeliest"
    assert person.read_bars() == [("negative", "60.0 %"), ("positive", "40.0 %")]
    (handle,) = person.find_all("#scores input.threshold")
    assert handle.accessible_name == "Threshold of positive"
    assert handle.get_attribute("value") == "0.35"
    assert "positive from 35.0 %" in person.read_text("threshold-note")
    assert person.read_fact("answers from") == "positive 35.0 %"
    handle.send_keys(*[Keys.ARROW_RIGHT] * 6)
    assert person.read_text("headline") == "negative, 60.0 %"
    (chosen,) = person.find_all("#scores .chosen .name")
    assert chosen.text == "negative"
    assert "positive from 41.0 % (the model's own: 35.0 %)" in person.read_text("threshold-note")
    person.find_all("#threshold-note button")[0].click()
    assert person.read_text("headline") == "positive, 40.0 %"
    assert not person.find_all("#threshold-note button")
    assert handle.get_attribute("value") == "0.35"


def test_each_of_several_labels_has_a_threshold(person: PageUser, url: str) -> None:
    person.open_page(url, "topics")
    assert person.ask_text("film 0.3 0.8 0.6") == "music, 60.0 %; plot, 30.0 %"
    assert len(person.find_all("#scores input.threshold")) == 3
    move(person, '#scores [data-label="cast"] input', 0.7)
    assert person.read_text("headline") == "cast, 80.0 %; music, 60.0 %; plot, 30.0 %"
    person.choose_option("model", "sentiment")
    person.choose_option("model", "topics")
    assert person.ask_text("film 0.3 0.8 0.6") == "music, 60.0 %; plot, 30.0 %", "moved no more"


def test_a_number_stands_on_a_scale(person: PageUser, url: str) -> None:
    person.open_page(url, "stars")
    assert person.ask_text("film 4") == "4"
    assert [each.text for each in person.find_all("#scale .ends span")] == ["1", "5"]
    left = {
        name: person.find_all(f"#scale .{name}")[0].get_attribute("style")
        for name in ("value", "mean")
    }
    assert left == {"value": "left: 75%;", "mean": "left: 55%;"}
    told = person.read_text("scale")
    assert "from 1 to 5, on average 3.2 (dashed)" in told and "off by 0.5 either way" in told
    assert "beyond" not in told
    assert person.find_all("#scale .line")[0].accessible_name.startswith("4. Trained on values")
    person.ask_text("film 7.5")
    person.wait_until(lambda: "beyond all it has seen" in person.read_text("scale"))
    person.choose_option("model", "sentiment")
    person.ask_text("film")
    assert not person.find_by_id("scale").is_displayed()


def test_figures_stand_beside_baselines(person: PageUser, url: str) -> None:
    person.open_page(url)
    assert cells(person, "#verdict table") == [
        ["", "this model", "95 % interval", "always the commonest answer",
         "TF-IDF + logistic regression"],
        ["f1", "0.93", "0.85 to 0.98", "0.31", "0.9"],
        ["accuracy", "0.94", "0.86 to 0.99", "0.5", "0.91"],
    ]  # fmt: skip
    told = person.find_by_id("verdict").text
    assert "Of 35 rows" in told and "negative for positive (2 rows)" in told and "4.0 %" in told
    assert not person.find_by_id("doubt").is_displayed()
    person.choose_option("model", "topics")
    assert person.read_fact("accuracy") == "0.9", "without a verdict the figures alone"
    assert not person.find_all("#verdict table")


def changed(**figures: Any) -> dict[str, Any]:
    return json.loads(json.dumps(VERDICT)) | figures


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        (
            changed(figures={"f1": {"value": 0.4, "low": 0.3, "high": 0.5}}),
            [
                "No better than always the commonest answer: f1 0.4 (0.3 to 0.5) against 0.31.",
                "No better than TF-IDF + logistic regression, which learns in 1.2 s: f1 0.4 "
                "(0.3 to 0.5) against 0.9; the difference is 0.03 (-0.02 to 0.08).",
            ],
        ),
        (changed(never_predicted=["negative"]), ["It never answered negative."]),
        (
            changed(
                metric="mae",
                figures={"mae": {"value": 0.5, "low": 0.4, "high": 0.8}},
                baselines={"mean": {"mae": 0.7}},
            ),
            ["No better than always the commonest answer: mean absolute error 0.5 (0.4 to 0.8) "
             "against 0.7."],
        ),
    ],
)  # fmt: skip
def test_a_model_that_is_no_better_than_its_baseline_is_doubted(
    person: PageUser, verdict: dict[str, Any], said: list[str]
) -> None:
    with serving(Told(verdict)) as address:
        person.open_page(address)
        assert person.find_by_id("doubt").is_displayed()
        assert [each.text for each in person.find_all("#doubts li")] == said
        person.choose_option("model", "topics")
        assert not person.find_by_id("doubt").is_displayed()


def test_a_model_without_a_mistake_is_not_doubted_for_a_tie(person: PageUser) -> None:
    perfect = changed(figures={"f1": {"value": 1.0, "low": 0.84, "high": 1.0}})
    perfect["baselines"]["bag-of-words"]["f1"] = 1.0
    with serving(Told(perfect)) as address:
        person.open_page(address)
        assert "1" in person.find_by_id("verdict").text
        assert not person.find_by_id("doubt").is_displayed()


def test_punctuation_is_no_word_that_spoke(person: PageUser, url: str) -> None:
    person.open_page(url)
    person.ask_text("warm , funny . dull")
    person.find_by_id("explain").click()
    summary = person.read_text("why-summary")
    assert summary == "For positive spoke most: warm, funny. Against it: dull."
    assert len(person.find_all("#weights tr")) == 5, "the table has every piece"


def upload(person: PageUser, table: Path, text: str) -> None:
    table.write_text(text, encoding="utf-8")
    person.upload_file(table)
    person.read_text("sample")
    person.find_by_id("start").click()
    assert "Done in" in person.wait_until_done()
    person.wait_until(person.find_by_id("batch-results").is_displayed)


LABELLED = (
    "id,text,label\n"
    "1,film 0.9,positive\n2,film 0.4,positive\n3,film 0.2,negative\n4,film 0.36,negative\n"
    "5,film 0.1,unheard of\n6,film 0.7,\n"
)


def test_a_file_with_right_answers_is_counted_and_scored(
    person: PageUser, url: str, tmp_path: Path
) -> None:
    person.open_page(url)
    upload(person, tmp_path / "some.csv", LABELLED)
    assert person.find_by_id("truth-column").get_attribute("value") == "2", "found by itself"
    assert person.read_text("counts-title") == "Answers to 6 rows"
    counts = [row.text.splitlines() for row in person.find_all("#counts li")]
    assert counts == [["positive", "4 · 66.7 %"], ["negative", "2 · 33.3 %"]]
    assert person.read_fact("accuracy") == "75.0 %"
    assert person.read_fact("95 % interval") == "30.1 % to 95.4 %"
    assert "Over 4 rows; 2 rows say nothing" in person.read_text("figures-note")
    assert cells(person, ".matrix") == [
        ["right ↓ answered →", "negative", "positive"],
        ["negative", "1", "1"],
        ["positive", "", "2"],
    ]
    rows = cells(person, "#batch-rows")
    assert rows[0] == ["row", "text", "answer", "probability", "right answer"]
    assert rows[4] == ["4", "film 0.36", "✗ positive", "36.0 %", "negative"]
    assert len(rows) == 7
    person.choose_option("rows-shown", "wrong")
    assert [row[0] for row in cells(person, "#batch-rows")[1:]] == ["4"]
    person.find_all("#thresholds-part summary")[0].click()
    move(person, "#thresholds input", 0.38)
    person.wait_until(lambda: person.read_fact("accuracy") == "100.0 %")
    assert person.download_rows()[3]["answer_label"] == "negative", "the download says the same"
    person.choose_option("truth-column", "none")
    assert not person.find_by_id("truth-part").is_displayed()


def test_numbers_and_several_labels_are_scored_as_they_are(
    person: PageUser, url: str, tmp_path: Path
) -> None:
    person.open_page(url, "stars")
    upload(person, tmp_path / "stars.csv", "text,stars\nfilm 4,5\nfilm 2,2\nfilm 1,1\n")
    figures = person.find_by_id("figures").text.splitlines()
    assert figures[::2] == ["mean absolute error", "R²"]
    assert float(figures[1]) == pytest.approx(1 / 3, abs=1e-3)
    assert float(figures[3]) == pytest.approx(1 - 1 / (26 / 3), abs=1e-3)
    assert not person.find_by_id("counts-part").is_displayed()
    person.open_page(url, "topics")
    upload(
        person,
        tmp_path / "topics.csv",
        "text,topics\nfilm 0.3 0.1 0.1,plot\nfilm 0.3 0.95 0.1,cast|plot\nfilm 0.1 0.1 0.9,cast\n",
    )
    assert person.read_fact("all labels right") == "66.7 %"
    assert [row[0] for row in cells(person, "#batch-rows")] == ["row", "1", "2", "3"]
    assert cells(person, "#batch-rows")[2][2:5:2] == ["cast, plot", "cast, plot"]


def test_a_phone_shows_the_screens_without_scrolling_sideways(
    person: PageUser, url: str, tmp_path: Path
) -> None:
    person.use_phone_screen()
    person.open_page(url)
    person.ask_text("film 0.4")
    upload(person, tmp_path / "some.csv", LABELLED)
    width = "return document.documentElement.scrollWidth"
    assert person.driver.execute_script(width) <= PHONE[0]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_screens_stand_out(person: PageUser, tmp_path: Path, scheme: str) -> None:
    person.set_color_scheme(scheme)
    with serving(Told(changed(never_predicted=["negative"]))) as address:
        person.open_page(address)
        person.ask_text(f"film 0.4 {'word ' * 90}")
        upload(person, tmp_path / "some.csv", LABELLED)
        assert person.find_by_id("cut").is_displayed() and person.find_by_id("doubt").is_displayed()
        least, where = person.driver.execute_script(CONTRAST)
        assert least >= 4.5, where


# The bars and lines against what is painted behind them: WCAG's 3:1 for graphics.
GRAPHICS = """
const light = (colour) => {
  const paint = document.createElement("canvas").getContext("2d");
  paint.fillStyle = colour; paint.fillRect(0, 0, 1, 1);
  const [r, g, b] = [...paint.getImageData(0, 0, 1, 1).data].map((each) => each / 255)
    .map((each) => each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const style = getComputedStyle(document.documentElement);
return arguments[0].map(([one, other]) => {
  const both = [one, other].map((name) => light(style.getPropertyValue("--" + name)));
  return (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
});
"""
PAIRS = [("rest", "track"), ("accent", "track"), ("edge", "sheet"), ("edge", "ground"),
         ("for", "sheet"), ("against", "sheet"), ("ink", "rest"),
         ("doubt", "doubt-ground")]  # fmt: skip


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_bars_and_lines_stand_out(person: PageUser, url: str, scheme: str) -> None:
    person.set_color_scheme(scheme)
    person.open_page(url)
    found = person.driver.execute_script(GRAPHICS, PAIRS)
    assert min(found) >= 3, dict(zip(PAIRS, found, strict=True))


def test_the_documentation_finds_routes_first(person: PageUser, url: str) -> None:
    person.driver.get(f"{url}docs")
    person.wait_until(lambda: person.find_all("details"))

    def found(wanted: str) -> list[str]:
        person.find_by_id("filter").clear()
        person.find_by_id("filter").send_keys(wanted)
        return [each.text for each in person.find_all("summary") if each.is_displayed()]

    every = len(found(""))
    assert all("embeddings" in each.split()[1] for each in found("embeddings"))
    assert 2 <= len(found("embeddings")) < every / 4
    assert [each.split()[1] for each in found("get /info")] == ["/info"]
    assert any("/embed " in f"{each} " for each in found("Text Embeddings")), "else by protocol"
    assert found("Which words spoke"), "or by what a call is for"


def test_a_call_of_the_documentation_is_copied_and_sent(person: PageUser, url: str) -> None:
    person.driver.execute_cdp_cmd(
        "Browser.grantPermissions",
        {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]},
    )
    person.driver.get(f"{url}docs")
    person.wait_until(lambda: person.find_by_id("model-field").is_displayed())
    person.find_by_id("filter").send_keys("/predict")
    call = person.find_all('details[data-route="post /predict"]')[0]
    call.find_element("tag name", "summary").click()
    copy, send = call.find_elements("css selector", ".buttons")[0].find_elements(
        "tag name", "button"
    )
    assert (copy.text, send.text) == ("Copy", "Send")
    copy.click()
    note = call.find_element("css selector", ".buttons span")
    person.wait_until(lambda: note.text)
    copied = person.driver.execute_async_script(
        "navigator.clipboard.readText().then(arguments[0], () => arguments[0](null))"
    )
    command = call.find_element("css selector", "pre").text
    assert note.text == "copied" and copied in (command, None)
    assert command.startswith(f"curl {url}predict -H ")
    send.click()
    person.wait_until(lambda: note.text.startswith("200 in "))
    reply = json.loads(call.find_element("css selector", ".reply").text)
    assert {each["label"] for each in reply} == {"negative", "positive"}


def test_the_documentation_asks_the_model_that_is_chosen_and_changes_nothing(
    person: PageUser, url: str
) -> None:
    person.driver.get(f"{url}docs")
    person.wait_until(lambda: person.find_by_id("model-field").is_displayed())
    options = [each.text for each in person.find_all("#model option")]
    assert options == ["sentiment:1", "topics:1", "stars:1"]
    person.find_all("#model option")[1].click()
    commands = [each.get_attribute("textContent") for each in person.find_all("pre")]
    assert f"curl {url}hf/topics -H" in " ".join(str(each) for each in commands)
    assert f"curl {url}v2/models/topics/versions/1" in commands
    sent = {
        str(each.get_attribute("data-route"))
        for each in person.find_all("details")
        if "Send" in str(each.get_attribute("textContent"))
    }
    assert "post /hf/{model}" in sent and "get /info" in sent
    assert not [each for each in sent if each.startswith(("put", "delete"))]
    assert not [each for each in sent if "/repository/models/" in each]
    assert not [each for each in sent if "manage" in each and not each.startswith("get")]
