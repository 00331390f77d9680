"""What a command says that stands alone: what a bundle is, the runs here, the names here."""

import shutil
from pathlib import Path

import pytest

import bertha
from serving import choices
from serving.__main__ import main
from serving.registry.registry import Registry


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_classifier: Path) -> Path:
    """Make a directory with a run, one whose bundle is damaged, and a registry of two names."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_classifier, tmp_path / "runs" / "mine" / "bundle")
    shutil.copytree(tiny_classifier, tmp_path / "runs" / "broken" / "bundle")
    (tmp_path / "runs" / "broken" / "bundle" / "bundle.json").write_text("{")
    (tmp_path / "runs" / "empty").mkdir()
    registry = Registry.open("registry")
    registry.deploy("answering", registry.register(tiny_classifier, "answering"))
    registry.register(tiny_classifier, "waiting")
    registry.register(tiny_classifier, "waiting")
    return tmp_path


@pytest.mark.parametrize("command", choices.USAGES)
def test_a_command_alone_lists_what_there_is(
    command: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command], "bertha") == 2
    said = capsys.readouterr().out
    usage = choices.USAGES[command]
    assert said.startswith(f"usage: bertha {command} {usage.operands}\n")
    assert f"as in   bertha {command} {usage.example}" in said
    lines = [" ".join(line.split()) for line in said.splitlines()]
    takes_bundle = "BUNDLE" in usage.operands
    assert ("A BUNDLE is a trained model" in said) == takes_bundle
    assert ("runs/mine classification: negative, positive" in lines) == takes_bundle
    assert ("runs/broken its bundle cannot be read" in lines) == takes_bundle
    takes_name = usage.operands in ("NAME", "BUNDLE|NAME") and command != "key"
    assert ("answering live 1" in lines) == takes_name
    assert ("waiting not deployed: bertha deploy waiting" in lines) == takes_name
    assert "empty" not in said


def test_run_is_the_same_as_serve(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run"], "python -m serving") == 2
    assert capsys.readouterr().out.startswith("usage: python -m serving serve BUNDLE|NAME\n")


def test_where_there_is_nothing_the_way_to_something_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["deploy"], "bertha") == 2
    said = capsys.readouterr().out
    assert "none yet; as in bertha train csv.yaml" in said
    assert "none yet; as in bertha register runs/mine --as sentiment" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["register", "deploy", "serve"])
def test_three_words_and_an_example_say_what_a_command_does(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = choices.USAGES[command]
    assert len(usage.purpose.split()) == 3
    with pytest.raises(SystemExit):
        main(["--help"], "bertha")
    assert f"  {command:<10}{usage.purpose:<18}bertha {command} " in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([command, "--help"], "bertha")
    said = " ".join(capsys.readouterr().out.split())
    assert f"as in: bertha {command} {usage.example}" in said
    assert bertha.main([]) == 0
    (line,) = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith(f"  {command} ")
    ]
    assert f"{usage.purpose}: bertha {command} " in line


def test_a_name_that_is_not_deployed_says_the_command(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "waiting"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(
        "error: waiting is registered, as waiting:1, waiting:2, and not deployed"
    )
    assert "`bertha deploy waiting` makes the newest version live" in said
    assert main(["run", "waiting", "--registry", str(place / "registry")]) == 2
    where = f"--registry {place / 'registry'}"
    assert f"`bertha serve waiting {where}` answers" in capsys.readouterr().err
    assert main(["deploy", "waiting"]) == 0
    assert main(["run", "waiting", "--dry-run"]) == 0
    assert main(["run", "answering:1"]) == 2
    assert "`bertha deploy answering:1` makes it that" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["run", "deploy"])
@pytest.mark.parametrize("what", ["wating", "Not A Name"])
def test_a_name_that_is_nothing_says_where_was_looked(
    command: str, what: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, what]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {what}: no run or bundle here, and no name in registry: ")
    assert "`bertha serve` lists what there is" in said
    assert ("waiting" in said) == (what == "wating")
