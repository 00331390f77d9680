"""Words on the command line: files where they are files, texts where they are texts."""

from pathlib import Path

import pytest

from serving.batch.arguments import ArgumentError, find_files


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with two tables, a folder of one, and a file that is no table."""
    (tmp_path / "films").mkdir()
    for name in ("rows.csv", "more.jsonl.gz", "films/part.parquet", "README.md"):
        (tmp_path / name).write_text("text\nfilm\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "words",
    [
        ["rows.csv"],
        ["./rows.csv"],
        ["films"],
        ["rows.csv", "more.jsonl.gz"],
        ["https://example.org/rows.csv"],
    ],
)
def test_what_is_there_is_a_file(words: list[str]) -> None:
    assert find_files(words) == tuple(words)


@pytest.mark.parametrize(
    "words",
    [
        ["A wonderful film."],
        ["a", "films"],  # a word of a sentence, and a folder of that name
        ["and/or"],
        ["see rows.csv"],
        [".csv"],
        ["https://example.org/"],
        ["/ not a path"],
        ["x" * 5000],
        ["nul \0 byte"],
        [""],
    ],
)
def test_anything_else_is_a_text(words: list[str]) -> None:
    assert find_files(words) == ()


@pytest.mark.parametrize(
    "word", ["nowhere.csv", "nowhere.parquet", "./nowhere", "/nowhere/at/all", "~/nowhere.tsv.gz"]
)
def test_a_name_without_a_file_is_no_text(word: str) -> None:
    with pytest.raises(ArgumentError, match=r"no such file; .* add --as-text"):
        find_files([word])


@pytest.mark.parametrize("word", ["README.md", "empty"])
def test_what_is_no_table_may_be_a_text(word: str, folder: Path) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(ArgumentError, match=r"ends in \.csv.*; or add --as-text"):
        find_files([word])


def test_files_do_not_mix_with_texts() -> None:
    with pytest.raises(ArgumentError, match=r"rows\.csv is a file and 'A film' is a text"):
        find_files(["rows.csv", "A film"])
