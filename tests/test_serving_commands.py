"""The command line of serving, where it starts no Ray."""

import re
from pathlib import Path

import pytest
from tiny_bundle import write_tiny_bundle

from serving import client
from serving.__main__ import main

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
    assert "http://127.0.0.1:8123" in said


def test_a_long_text_is_shortened_in_its_line() -> None:
    labels = [{"label": "positive", "score": 0.5}, {"label": "negative", "score": 0.5}]
    line = client.line(labels, "classification", "film " * 100)
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
    assert client.url(host, port) == expected


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (2, 1), (4, 3), (64, 8)])
def test_the_engine_leaves_a_core_to_serve(cores: int, threads: int) -> None:
    from serving import app

    assert app.threads_for(cores) == threads


def test_a_service_that_is_not_there_is_one_line() -> None:
    with pytest.raises(client.AskError, match="does not answer"):
        client.ask("http://127.0.0.1:9", "a film")
