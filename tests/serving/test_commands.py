"""The command line of serving, where it starts no Ray."""

import re
from pathlib import Path

import pytest

from serving import client
from serving.__main__ import main
from tests.support.tiny_bundle import write_tiny_bundle

TEXTS = ["a warm funny film", "dull"]


@pytest.mark.parametrize(
    ("task", "line"),
    [
        ("classification", r"(negative|positive) \d+\.\d%"),
        ("multi-label", r"(plot|cast|music) \d+\.\d%(, (plot|cast|music) \d+\.\d%)*"),
        ("regression", r"-?\d[\d.e+-]*"),
    ],
)
def test_predict_answers_a_line_a_text(
    task: str, line: str, tmp_path: Path, tiny_bert: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle", tiny_bert, task)
    capsys.readouterr()
    assert main(["predict", str(bundle), *TEXTS]) == 0
    said = capsys.readouterr()
    for text, answer in zip(TEXTS, said.out.splitlines(), strict=True):
        assert re.fullmatch(rf'{line}  "{text}"', answer)
    assert said.err == ""


@pytest.mark.parametrize("command", [["predict", "BUNDLE", "a"], ["run", "BUNDLE"]])
def test_no_bundle_is_one_line(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = str(tmp_path / "nowhere")
    assert main([missing if word == "BUNDLE" else word for word in command]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {missing}: no such directory")
    assert said.count("\n") == 1


def test_an_altered_bundle_is_refused(
    tmp_path: Path, tiny_bert: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle", tiny_bert)
    weights = bundle / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert main(["run", str(bundle)]) == 2
    assert "model.safetensors is not the file that was written" in capsys.readouterr().err


def test_a_dry_run_says_what_would_be_served(
    tmp_path: Path, tiny_bert: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_tiny_bundle(tmp_path / "reviews" / "bundle", tiny_bert)
    capsys.readouterr()
    assert main(["run", str(bundle), "--dry-run", "--port", "8123"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("reviews: classification (negative, positive), texts of up to 16 tokens")
    assert re.search(r"http://127.0.0.1:8123, on \d+ replicas? of one thread", said)


def test_a_long_text_is_shortened_in_its_line() -> None:
    labels = [{"label": "positive", "score": 0.5}, {"label": "negative", "score": 0.5}]
    line = client.format_labels(labels, "classification", "film " * 100)
    assert line.startswith('positive 50.0%  "film film')
    assert line.endswith(' …"') and len(line) < 100


@pytest.mark.parametrize(
    ("host", "port", "expected"),
    [
        ("127.0.0.1", 8000, "http://127.0.0.1:8000"),
        ("0.0.0.0", 80, "http://127.0.0.1:80"),
        ("::", 80, "http://[::1]:80"),
    ],
)
def test_a_service_is_asked_where_it_can_be_reached(host: str, port: int, expected: str) -> None:
    assert client.service_url(host, port) == expected


def test_a_service_that_is_not_there_is_one_line() -> None:
    with pytest.raises(client.ServiceError, match="does not answer"):
        client.predict_text("http://127.0.0.1:9", "a film")


def said_by(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What a command prints, where it succeeds."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_versions_are_deployed_tried_promoted_and_rolled_back(
    tmp_path: Path, tiny_bert: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_tiny_bundle(tmp_path / "reviews" / "bundle", tiny_bert)
    place = ("--registry", tmp_path / "registry")
    assert "no models" in said_by(capsys, "list", *place)
    first = said_by(capsys, "deploy", bundle, *place)
    assert first == "reviews  live 1  versions 1@live\n"
    trial = said_by(capsys, "deploy", bundle, *place, "--canary", "0.1", "--rule", "min_requests=9")
    assert trial == "reviews  live 1  versions 1@live 2  canary 2 on 10.0%\n"
    assert said_by(capsys, "promote", "reviews", *place).startswith("reviews  live 2")
    assert said_by(capsys, "rollback", "reviews", *place).startswith("reviews  live 1")
    assert said_by(capsys, "deploy", "reviews:2", *place).startswith("reviews  live 2")
    assert said_by(capsys, "list", *place).endswith("(default)\n")
    past = said_by(capsys, "history", "reviews", *place).splitlines()
    assert len(past) == 7 and "register 1" in past[0] and "roll back" in past[5]
    assert main(["run", "reviews", "--registry", str(place[1]), "--dry-run"]) == 0


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["deploy", "sentimnet"], "sentimnet: no such model"),
        (["deploy", "Nice Name"], "names no model; write NAME"),
        (["promote", "reviews"], "reviews: no such model"),
    ],
)
def test_what_is_not_there_is_one_line_and_the_way_out(
    command: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--registry", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and words in said and said.count("\n") == 1


def test_a_key_is_shown_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "keys.jsonl"
    secret = said_by(capsys, "key", "reader", "--file", file, "--rate", "10").strip()
    assert secret.startswith("bertha_") and secret not in file.read_text()
    assert main(["key", "reader", "--file", str(file)]) == 2
    assert "there is a key 'reader' already" in capsys.readouterr().err
