"""What `bertha tune` says that stands alone: the recipes, and the searches here."""

from pathlib import Path

import pytest

from tuning.__main__ import FOLLOW_UPS, main


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a directory with a search that has ended, one that has not, and a plain run."""
    monkeypatch.chdir(tmp_path)
    for name in ("ended", "going", "plain"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    for name in ("ended", "going"):
        (tmp_path / "runs" / name / "plan.yaml").write_text("")
    (tmp_path / "runs" / "ended" / "result.json").write_text("{}")
    return tmp_path


def test_recipes_and_searches_are_listed(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([], "bertha") == 2
    said = capsys.readouterr().out
    assert said.startswith("usage: bertha tune RECIPE") and "\n  reviews " in said
    assert "runs/going                    not ended: bertha tune resume runs/going" in said
    assert "runs/ended                    ended\n" in said and "plain" not in said


@pytest.mark.parametrize("word", FOLLOW_UPS)
def test_a_follow_up_alone_lists_the_searches(
    word: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word], "bertha") == 2
    said = capsys.readouterr().out
    assert said.startswith(f"usage: bertha tune {word} RUN\n") and "runs/ended" in said


def test_a_flag_is_not_taken_for_another_that_begins_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["reviews", "--seed", "3", "--dry-run"], "bertha")
    assert ended.value.code == 2 and "write seed=3" in capsys.readouterr().err
