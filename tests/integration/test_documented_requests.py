"""Every curl of the README and the pages, run as a shell runs it: the answer is the engine's own.

The server is a replica of a tiny bundle called `mine`, behind a socket of this machine.
"""

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from serving.deployment.config import EndpointConfig
from serving.deployment.server import ReplicaServer
from serving.engine.engine import Engine
from serving.registry.registry import Registry
from tests.support.paths import ROOT

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed"),
]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DOCUMENTED = "localhost:8000"
HEADER = "-H 'Content-Type: {}'"
ROUNDING = 1e-5  # what a text is batched with changes no more


def documented() -> list[str]:
    """Return the curl commands of all pages, each once."""
    lines = (line for page in PAGES for line in page.read_text("utf-8").splitlines())
    commands = (line.strip() for line in lines if re.match(r"\s*curl ", line))
    return list(dict.fromkeys(commands))


class Served(NamedTuple):
    """A server and the engine of its model."""

    address: str
    engine: Engine

    def ask(self, command: str) -> Any:
        """Run a documented command in bash, at this server instead of the documented one."""
        assert DOCUMENTED in command
        run = command.replace(DOCUMENTED, self.address)
        done = subprocess.run(["bash", "-c", run], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def scores(self, text: str) -> dict[str, float]:
        """Return what the engine says of a text, by label."""
        (prediction,) = self.engine.predict([text])
        return dict(zip(self.engine.card.labels, prediction.scores, strict=True))


@pytest.fixture(scope="module")
def served(tiny_classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    registry = Registry.open(str(tmp_path_factory.mktemp("registry")))
    registry.deploy("mine", registry.register(tiny_classifier, "mine"))
    listener = ReplicaServer(EndpointConfig(registry=registry.address), "127.0.0.1")
    listener.start()
    yield Served(listener.address, Engine.load(tiny_classifier))
    listener.stop()


def check_labels(answer: Any, served: Served, text: str) -> None:
    expected = served.scores(text)
    assert {each["label"]: each["score"] for each in answer} == pytest.approx(
        expected, abs=ROUNDING
    )


def check_predict(answer: Any, served: Served, body: Any) -> None:
    texts = body["inputs"]
    if isinstance(texts, str):
        check_labels(answer, served, texts)
        return
    assert len(answer) == len(texts)
    for each, text in zip(answer, texts, strict=True):
        check_labels(each, served, text)


def check_classify(answer: Any, served: Served, body: Any) -> None:
    (found,), expected = answer["data"], served.scores(body["input"])
    assert found["probs"] == pytest.approx(list(expected.values()), abs=ROUNDING)
    assert found["label"] in expected and answer["model"] == body["model"]


def check_explanation(answer: Any, served: Served, body: Any) -> None:
    words = re.findall(r"\w+", body["data"])
    assert [word for word in answer["words"] if word.strip(".,!? ")] == words
    assert len(answer["importances"]) == len(answer["words"])
    expected = served.scores(body["data"])
    assert answer["score"] == pytest.approx(expected[answer["label"]], abs=ROUNDING)


def check_own_explanation(answer: Any, served: Served, body: Any) -> None:
    (explained,) = answer["explanations"]
    words = re.findall(r"\w+", body["inputs"])
    assert [each["text"].strip(".") for each in explained["words"] if each["text"] != "."] == words
    expected = served.scores(body["inputs"])
    assert explained["score"] == pytest.approx(expected[explained["label"]], abs=ROUNDING)


def check_info(answer: Any, served: Served, body: Any) -> None:
    card = served.engine.card
    assert body is None and answer["model_id"] == "mine"
    assert (answer["labels"], answer["max_input_length"]) == (list(card.labels), card.max_length)


def check_predictions(answer: Any, served: Served, body: Any) -> None:
    assert answer == pytest.approx(served.scores(body), abs=ROUNDING)


CHECKS: dict[str, Callable[[Any, Served, Any], None]] = {
    "/predict": check_predict,
    "/classify": check_classify,
    "/explanations/mine": check_explanation,
    "/explain/mine": check_own_explanation,
    "/predictions/mine": check_predictions,
    "/info": check_info,
}


def check_answer(command: str, answer: Any, served: Served) -> None:
    """Compare the answer to a command with what the engine says of the same texts."""
    words = shlex.split(command)
    (url,) = (word for word in words if word.startswith(DOCUMENTED))
    sent = words[words.index("-d") + 1] if "-d" in words else "null"
    body = json.loads(sent) if sent.startswith(("{", "null")) else sent
    CHECKS[url.removeprefix(DOCUMENTED)](answer, served, body)


def test_pages_show_requests_of_each_kind() -> None:
    found = {command.partition(DOCUMENTED)[2].split()[0] for command in documented()}
    assert found == set(CHECKS)


@pytest.mark.parametrize("command", documented())
def test_a_documented_request_is_answered_as_the_engine_answers(
    command: str, served: Served
) -> None:
    check_answer(command, served.ask(command), served)


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", ""])
@pytest.mark.parametrize("command", [each for each in documented() if " -d '{" in each])
def test_the_content_type_changes_no_answer(
    command: str, content_type: str, served: Served
) -> None:
    """An empty one takes away the header that curl sends."""
    header = HEADER.format(content_type) if content_type else "-H 'Content-Type:'"
    check_answer(command, served.ask(f"{command} {header}"), served)


@pytest.mark.parametrize("call", ["predictions", "explanations"])
def test_plain_text_is_asked_as_it_is(call: str, served: Served) -> None:
    text = "A wonderful film."
    plain = served.ask(f"curl -s {DOCUMENTED}/{call}/mine -d '{text}'")
    wrapped = served.ask(f"""curl -s {DOCUMENTED}/{call}/mine -d '{{"data": "{text}"}}'""")
    if call == "predictions":
        for answer in (plain, wrapped):
            assert answer == pytest.approx(served.scores(text), abs=ROUNDING)
    else:
        check_explanation(plain, served, {"data": text})
        assert plain["words"] == wrapped["words"] and plain["label"] == wrapped["label"]


def test_an_envelope_that_no_route_knows_is_refused(served: Served) -> None:
    told = served.ask(f"""curl -s {DOCUMENTED}/predictions/mine -d '{{"inputs": "A film."}}'""")
    assert (told["code"], "neither data nor body" in told["message"]) == (400, True)
