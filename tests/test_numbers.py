"""Numbers on the command line: one that cannot be is answered with one line, before any work."""

import argparse
from pathlib import Path
from typing import Any

import pytest

import bertha
from cluster.command_line import COUNT, FRACTION, PORT, POSITIVE, positive_number, whole_number
from cluster.settings import SettingsError
from serving.deployment.config import EndpointConfig
from serving.deployment.haproxy import NUM_SLOTS

NO_NUMBERS = ["", "abc", "nan", "inf", "-inf", "1e400", "0x10", "1,5", "9" * 5000]
NO_COUNTS = [*NO_NUMBERS, "0", "-1", "1.5"]
NO_POSITIVES = [*NO_NUMBERS, "0", "-0.5"]
NO_PORTS = [*NO_NUMBERS, "65536", "70000", "-1", "80.5"]
# Each option that takes a number, below a command that would do something.
OPTIONS: dict[str, tuple[list[str], list[str]]] = {
    "serve --port": (["serve", "x"], [*NO_PORTS, "0"]),
    "serve --replicas": (["serve", "x"], NO_COUNTS),
    "serve --max-replicas": (["serve", "x"], NO_COUNTS),
    "serve --gpus-per-replica": (["serve", "x"], [*NO_POSITIVES, "1.5"]),
    "serve --memory-gib": (["serve", "x"], NO_POSITIVES),
    "deploy --port": (["deploy", "x"], [*NO_PORTS, "0"]),
    "deploy --canary": (["deploy", "x"], [*NO_NUMBERS, "-0.1", "1.1"]),
    "build --threshold": (["build", "x"], [*NO_NUMBERS, "-0.1", "1.1"]),
    "build --rounds": (["build", "x"], NO_COUNTS),
    "key --rate": (["key", "x"], NO_POSITIVES),
    "embedder --max-length": (["embedder", "x", "y"], NO_COUNTS),
    "tune --trials": (["tune", "csv"], NO_COUNTS),
    "tune --seeds": (["tune", "csv"], NO_COUNTS),
    "tune resume --trials": (["tune", "resume", "x"], NO_COUNTS),
    "tune dashboard --port": (["tune", "dashboard", "x"], NO_PORTS),
    "train --devices": (["train", "csv", "--simulate"], NO_COUNTS),
    "train --devices-per-node": (["train", "csv", "--simulate"], NO_COUNTS),
    "train --vocabulary-size": (["train", "csv", "--simulate"], NO_COUNTS),
    "probe --workers": (["probe", "--out", "x"], NO_COUNTS),
    "probe --seconds": (["probe", "--out", "x"], NO_POSITIVES),
    "plan --pick": (["plan", "csv"], NO_COUNTS),
    "plan --rows": (["plan", "csv"], NO_COUNTS),
    "plan --tokens": (["plan", "csv"], NO_POSITIVES),
    "plan --serve": (["plan", "csv"], NO_POSITIVES),
}


@pytest.mark.parametrize("name", list(OPTIONS))
def test_a_number_that_cannot_be_is_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words, refused = OPTIONS[name]
    option = name.rpartition(" ")[2]
    for value in refused:
        with pytest.raises(SystemExit) as ended:
            bertha.main([*words, f"{option}={value}"])
        out, err = capsys.readouterr()
        assert ended.value.code == 2 and out == "", (value, out)
        (line,) = err.splitlines()
        assert line.startswith(f"error: {option}: {value[:60]!r}: give a "), line
        assert len(line) < 200
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [*bertha.COMMANDS, "tune dashboard", "tune resume"])
def test_every_option_that_takes_a_number_has_a_range(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    types: dict[str, Any] = {}
    add = argparse.ArgumentParser.add_argument

    def noted(self: Any, *names: str, **settings: Any) -> Any:
        types[names[0]] = settings.get("type")
        return add(self, *names, **settings)

    monkeypatch.setattr(argparse.ArgumentParser, "add_argument", noted)
    with pytest.raises(SystemExit):
        bertha.main([*command.split(), "--help"])
    assert {name for name, kind in types.items() if kind in (int, float)} == set()


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (PORT, "1", 1),
        (PORT, "65535", 65535),
        (COUNT, "1", 1),
        (FRACTION, "0", 0.0),
        (FRACTION, "1", 1.0),
        (POSITIVE, "1e-9", 1e-9),
        (positive_number(1), "1", 1.0),
        (whole_number(0, 65535), "0", 0),
    ],
)
def test_the_ends_of_a_range_belong_to_it(kind: Any, text: str, value: float) -> None:
    assert kind(text) == value


@pytest.mark.parametrize(
    "settings", [{"port": 70000}, {"port": 0}, {"max_replicas": NUM_SLOTS + 1}]
)
def test_from_python_it_is_an_error_of_the_settings(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        EndpointConfig(registry="r", **settings)


def test_serving_from_python_raises_and_does_not_exit(tiny_classifier: Path) -> None:
    with (
        pytest.raises(SettingsError, match="port = 70000"),
        bertha.serve(tiny_classifier, port=70000),
    ):
        pass
