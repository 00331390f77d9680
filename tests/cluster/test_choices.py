"""What a command of a cluster says that stands alone: the cluster files, the instance types."""

from pathlib import Path

import pytest

from cluster import choices
from cluster.__main__ import main


@pytest.mark.parametrize("command", choices.EXAMPLES)
def test_a_command_alone_lists_what_there_is(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("provider: {type: local}\n")
    (tmp_path / "recipe.yaml").write_text("task: classification\n")
    (tmp_path / "broken.yaml").write_text("a: [")
    assert main([command], "bertha") == 2
    said = capsys.readouterr().out
    lines = [line.strip() for line in said.splitlines()]
    assert f"as in   bertha {command} {choices.EXAMPLES[command]}" in lines
    if command == "offers":
        assert said.startswith("usage: bertha offers TYPE\n") and "p5.48xlarge" in lines
    else:
        assert said.startswith(f"usage: bertha {command} FILE\n")
        assert {"mine.yaml", "onprem.yaml", "aws-gpu.yaml"} <= set(lines)
        assert not {"recipe.yaml", "broken.yaml"} & set(lines)


def test_where_no_file_lies_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["up"], "bertha")
    assert "None lies here." in capsys.readouterr().out
