"""The page a person uses, in a real browser, over tiny models of every task.

Pictures of the page of a service that runs already, `page.png`, `page-phone.png` and
`page-batch.png` beside it:

    python -m tests.e2e.test_page http://127.0.0.1:8000 "A warm, funny film." docs/page.png [CSV]
"""

import shlex
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from serving.deployment.config import EndpointConfig
from serving.deployment.server import ReplicaServer
from serving.engine.engine import Engine
from serving.inference.attribution import Attributor
from serving.interface import Prediction
from serving.protocols.embeddings import cosine_similarity
from serving.registry.registry import Registry
from tests.support.browser import PHONE, PageUser, open_browser
from tests.support.tiny_bundle import LABELS, write_tiny_bundle

pytestmark = pytest.mark.browser

REVIEW = "a warm, funny film with a dull plot"
NAMES = {
    "reviews": "classification",
    "topics": "multi-label",
    "stars": "regression",
    "filler": "masked-lm",
    "mini": "embedding",
}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> dict[str, Path]:
    """A bundle of each task, by its name."""
    place = tmp_path_factory.mktemp("bundles")
    return {name: write_tiny_bundle(place / name, tiny_bert, task) for name, task in NAMES.items()}


@pytest.fixture(scope="module")
def registry(bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """All of them live, of the first an older version too."""
    registry = Registry.open(str(tmp_path_factory.mktemp("registry")))
    registry.register(bundles["reviews"], "reviews")
    for name, bundle in bundles.items():
        registry.deploy(name, registry.register(bundle, name))
    registry.make_default("reviews")
    return registry


@pytest.fixture(scope="module")
def url(registry: Registry) -> Iterator[str]:
    listener = ReplicaServer(EndpointConfig(registry=registry.address), "127.0.0.1")
    listener.start()
    yield f"http://{listener.address}/"
    listener.stop()


def percent(score: float) -> str:
    shown = f"{100 * score:.1f}"
    return {"100.0": "> 99.9 %", "0.0": "< 0.1 %"}.get(shown, f"{shown} %")


def test_a_typed_review_gets_the_engines_label(
    person: PageUser, url: str, bundles: dict[str, Path]
) -> None:
    person.open_page(url)
    headline = person.ask_text(REVIEW)
    (prediction,) = Engine.load(bundles["reviews"]).predict([REVIEW])
    pairs = zip(LABELS["classification"], prediction.scores, strict=True)
    expected = [
        (label, percent(score)) for label, score in sorted(pairs, key=lambda pair: -pair[1])
    ]
    assert headline == ", ".join(expected[0])
    assert person.find_by_id("said").get_attribute("textContent") == f"Answer: {headline}"
    assert person.read_bars() == expected
    assert person.read_text("latency").startswith("answered in ")
    assert person.read_text("latency").endswith("reviews, version 2 · torch fp32")


def test_the_card_tells_all_that_the_server_knows(person: PageUser, url: str) -> None:
    person.open_page(url)
    info = httpx.get(f"{url}info").json()
    told = {name: person.read_fact(name) for name in ("name", "version", "engine", "base model")}
    assert told == {
        "name": info["model_id"],
        "version": info["model_version"],
        "engine": info["engine"],
        "base model": info["base_model"],
    }
    assert person.read_fact("weights, SHA-256") == info["model_sha"]
    assert person.read_fact("made by code of revision") == info["sha"]
    assert person.read_fact("aliases") == ", ".join(info.get("aliases", []))
    assert (person.read_fact("accuracy"), person.read_fact("f1")) == ("0.875", "0.87")
    assert person.read_fact("registered")
    assert person.driver.title == "reviews · Bertha"


def test_an_older_version_answers_when_it_is_chosen(person: PageUser, url: str) -> None:
    person.open_page(url)
    assert [each.text for each in person.find_all("#version option")] == ["live (2)", "2", "1"]
    person.choose_option("version", "1")
    assert person.ask_text(REVIEW)
    assert "reviews, version 1" in person.read_text("latency")
    assert "/hf/reviews%3A1 " in person.find_by_id("curl").get_attribute("textContent")


def test_what_is_promoted_meanwhile_answers_and_is_told(
    person: PageUser, url: str, registry: Registry
) -> None:
    person.open_page(url)
    registry.deploy("reviews", "1")
    try:
        person.wait_until(
            lambda: person.ask_text(REVIEW) and "version 1" in person.read_text("latency")
        )
        assert person.read_fact("version") == "1"
        assert person.find_all("#version option")[0].text == "live (1)"
    finally:
        registry.deploy("reviews", "2")
    person.wait_until(
        lambda: person.ask_text(REVIEW) and "version 2" in person.read_text("latency")
    )
    assert person.read_fact("version") == "2"


def test_several_labels_may_be_right(person: PageUser, url: str, bundles: dict[str, Path]) -> None:
    person.open_page(url, "topics")
    headline = person.ask_text(REVIEW)
    (prediction,) = Engine.load(bundles["topics"]).predict([REVIEW])
    scores = dict(zip(LABELS["multi-label"], prediction.scores, strict=True))
    chosen = sorted(
        (each for each in scores if scores[each] >= 0.5), key=lambda each: -scores[each]
    )
    expected = "; ".join(f"{label}, {percent(scores[label])}" for label in chosen)
    assert headline == (expected or "no label")
    assert dict(person.read_bars()) == {label: percent(score) for label, score in scores.items()}


def test_a_regression_answers_a_number(
    person: PageUser, url: str, bundles: dict[str, Path]
) -> None:
    person.open_page(url, "stars")
    (prediction,) = Engine.load(bundles["stars"]).predict([REVIEW])
    assert isinstance(prediction, Prediction)
    assert float(person.ask_text(REVIEW)) == pytest.approx(prediction.scores[0], rel=1e-3)
    assert not person.find_by_id("explain").is_displayed()


def test_two_texts_are_compared(person: PageUser, url: str, bundles: dict[str, Path]) -> None:
    person.open_page(url, "mini")
    headline = person.ask_text(REVIEW, "an awful cast")
    one, other = Engine.load(bundles["mini"]).predict([REVIEW, "an awful cast"])
    assert headline == f"similarity {cosine_similarity(one, other):.3f}"


def test_hidden_words_are_filled_in(person: PageUser, url: str) -> None:
    person.open_page(url, "filler")
    text = "the [MASK] is very [MASK]"
    headline = person.ask_text(text)
    body = {"inputs": text}
    masks = httpx.post(f"{url}hf/filler", json=body).json()
    best = [f"{of_mask[0]['token_str']}, {percent(of_mask[0]['score'])}" for of_mask in masks]
    assert headline == "; ".join(best)
    assert len(person.find_all("#scores .bars")) == 2
    person.type_text("nothing is hidden")
    assert "[MASK]" in person.read_text("problem")


def test_words_are_marked_as_they_spoke(
    person: PageUser, url: str, bundles: dict[str, Path]
) -> None:
    text = "\U0001f3ac a warm <b>film</b> \U0001f600 with\na dull plot" + " and a cast" * 9
    person.open_page(url)
    person.driver.execute_script("document.getElementById('text').value = arguments[0]", text)
    person.find_by_id("ask").click()
    label = person.read_text("headline").partition(",")[0]
    person.find_by_id("explain").click()
    person.read_text("words")
    shown = person.driver.execute_script("return document.getElementById('words').textContent")
    assert shown == text
    explained = Attributor.from_bundle(bundles["reviews"]).explain(text, label)
    strongest = max(explained.attributions, key=lambda each: abs(each.weight))
    kind = "for" if strongest.weight > 0 else "against"
    words = [each.get_attribute("textContent") for each in person.find_all(f"#words .{kind}")]
    assert text[strongest.start : strongest.end] in words
    (unread,) = person.find_all("#words .unread")
    assert unread.get_attribute("textContent") == text[explained.attributions[-1].end :]
    assert f"For {label} spoke most: " in person.read_text("why-summary")
    assert person.find_by_id("said").get_attribute("textContent") == person.read_text("why-summary")
    assert len(person.find_all("#weights tr")) == len(explained.attributions)
    person.choose_option("target", next(each for each in LABELS["classification"] if each != label))
    person.wait_until(lambda: f"For {label}" not in person.read_text("why-summary"))


def test_everything_is_done_by_keyboard(person: PageUser, url: str) -> None:
    person.open_page(url)

    def press(key: str) -> None:
        ActionChains(person.driver).send_keys(key).perform()

    def go_to(field: str) -> None:
        for _ in range(30):
            at = person.driver.switch_to.active_element
            if at.get_attribute("id") == field:
                return
            press(Keys.TAB)
            at = person.driver.switch_to.active_element
            assert at.accessible_name, at.get_attribute("outerHTML")
            assert at.value_of_css_property("outline-style") != "none"
        raise AssertionError(f"{field} is not reached")

    assert person.driver.switch_to.active_element.get_attribute("id") == "text"
    press(REVIEW)
    press(Keys.TAB)
    press(Keys.ENTER)
    assert person.read_text("headline")
    go_to("explain")
    press(Keys.ENTER)
    assert person.read_text("words")
    go_to("target")
    press(Keys.ARROW_DOWN)
    go_to("words")
    go_to("file")


def test_a_phone_shows_it_without_scrolling_sideways(
    person: PageUser, url: str, tmp_path: Path
) -> None:
    person.use_phone_screen()
    table = tmp_path / "a rather long name of a file with reviews.csv"
    table.write_text(f"text,{'a-rather-long-name-of-a-column' * 3}\n{'word' * 200},2\n a film,\n")
    person.open_page(url)
    person.ask_text(f"{REVIEW} {'unbroken' * 40}")
    person.find_by_id("explain").click()
    assert person.read_text("words")
    person.upload_file(table)
    assert person.read_text("sample")
    person.find_by_id("start").click()
    assert "Done" in person.wait_until_done()
    width = "return document.documentElement.scrollWidth"
    assert person.driver.execute_script(width) <= PHONE[0]
    person.driver.get(f"{url}docs")
    person.wait_until(lambda: person.find_all("details"))
    for each in person.find_all("summary")[:8]:
        each.click()
    assert person.driver.execute_script(width) <= PHONE[0]


# Every text against what is painted behind it, layer by layer: WCAG's contrast, of the least.
CONTRAST = """
const paint = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const over = (colours) => {
  paint.clearRect(0, 0, 1, 1);
  for (const each of colours) { paint.fillStyle = each; paint.fillRect(0, 0, 1, 1); }
  const [r, g, b] = [...paint.getImageData(0, 0, 1, 1).data].map((each) => each / 255)
    .map((each) => each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = (node) =>
  node ? [...behind(node.parentElement), getComputedStyle(node).backgroundColor] : ["white"];
const texts = [...document.querySelectorAll("body *")].filter((each) =>
  each.checkVisibility() && [...each.childNodes].some((inner) => inner.nodeType === 3 &&
  inner.data.trim()));
return texts.map((each) => {
  const ground = behind(each);
  const [one, other] = [over([...ground, getComputedStyle(each).color]), over(ground)];
  return [(Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05), each.outerHTML];
}).sort((one, other) => one[0] - other[0])[0];
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out(person: PageUser, url: str, scheme: str) -> None:
    person.set_color_scheme(scheme)
    person.open_page(url)
    person.ask_text(REVIEW)
    person.find_by_id("explain").click()
    assert person.read_text("words")
    least, where = person.driver.execute_script(CONTRAST)
    assert least >= 4.5, where


def test_text_is_shown_as_text(person: PageUser, url: str) -> None:
    person.open_page(url)
    person.ask_text("<img src=x onerror=alert(1)>'\"")
    person.find_by_id("explain").click()
    assert person.read_text("words") == "<img src=x onerror=alert(1)>'\""
    assert not person.find_all("img")
    assert "<img" in person.find_by_id("curl").get_attribute("textContent")


def test_an_example_answers_when_it_is_clicked(person: PageUser, url: str) -> None:
    person.open_page(url)
    person.find_all("#examples button")[0].click()
    assert person.read_text("headline")


def test_no_text_is_explained(person: PageUser, url: str) -> None:
    person.open_page(url)
    person.find_by_id("ask").click()
    assert "no text yet" in person.read_text("problem")


def test_the_command_that_the_page_shows_answers(person: PageUser, url: str) -> None:
    for name in NAMES:
        person.open_page(url, name)
        person.find_by_id("text").send_keys("it's a [MASK]")
        command = shlex.split(person.find_by_id("curl").get_attribute("textContent"))
        assert command[0] == "curl" and command[2] == "-d"
        assert httpx.post(command[1], content=command[3]).status_code == 200


def test_the_documentation_lists_every_call(person: PageUser, url: str) -> None:
    paths = httpx.get(f"{url}openapi.json").json()["paths"]
    person.driver.get(f"{url}docs")
    person.wait_until(lambda: person.find_all("details"))
    told = [" ".join(each.text.split()) for each in person.find_all("summary")]
    assert sorted(told) == sorted(
        f"{method.upper()} {path} {described['summary']}"
        for path, methods in paths.items()
        for method, described in methods.items()
    )
    person.find_by_id("filter").send_keys("/v1/embeddings")
    shown = [each.text for each in person.find_all("summary") if each.is_displayed()]
    assert "POST /v1/embeddings The vectors of texts" in shown
    assert all("/v1/embeddings" in each for each in shown) and len(shown) < len(told) / 4


def test_the_commands_of_the_documentation_answer(person: PageUser, url: str) -> None:
    person.driver.get(f"{url}docs")
    person.wait_until(lambda: person.find_all("details"))
    commands = [each.get_attribute("textContent") for each in person.find_all("pre")]
    asked = [each for each in commands if each and " -d " in each]
    assert len(asked) > 20
    for command in asked:
        words = shlex.split(command)
        method = words[words.index("-X") + 1] if "-X" in words else "POST"
        address = next(each for each in words if each.startswith("http"))
        address = address.replace("NAME", "reviews").replace("VERSION", "2")
        response = httpx.request(
            method,
            address,
            content=words[words.index("-d") + 1],
            headers={"content-type": "application/json"},
        )
        is_other_task = (
            "classification" in response.text or "feedback is not taken" in response.text
        )
        assert response.status_code == 200 or is_other_task, (command, response.text)


def photograph(url: str, text: str, target: Path, table: Path | None = None) -> str:
    """Ask `text` at `url` and save pictures of the page; the headline of the answer.

    table: of texts, with a column of right answers; default: a few reviews, many times.
    """
    with open_browser() as person, tempfile.TemporaryDirectory() as place:
        for name, hold in (("", person.use_desktop_screen), ("-phone", person.use_phone_screen)):
            hold()
            person.open_page(url)
            headline = person.ask_text(text)
            person.find_by_id("explain").click()
            person.read_text("words")
            person.take_screenshot(target.with_stem(target.stem + name), "header", "#answer")
        person.use_desktop_screen()
        person.open_page(url)
        said = {
            text: "positive",
            "I left before the end.": "negative",
            "Slow at first, and then a joy, all of it.": "positive",
            "Not one good scene, and it goes on for hours.": "negative",
            "It made me laugh, though I did not want to.": "positive",
        }
        rows = [f'{number},"{each}",{said[each]}\r\n' for number, each in enumerate(said, 1)]
        reviews = Path(place) / "reviews.csv"
        reviews.write_text("".join(["id,text,label\r\n", *rows * 40, "201,,\r\n"]))
        person.upload_file(table or reviews)
        person.read_text("sample")
        person.find_by_id("start").click()
        person.wait_until_done()
        person.take_screenshot(target.with_stem(f"{target.stem}-batch"), "#batch", "#batch")
    return headline


if __name__ == "__main__":
    print(photograph(*sys.argv[1:3], *map(Path, sys.argv[3:5])))
