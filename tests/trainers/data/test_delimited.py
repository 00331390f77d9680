"""CSV and TSV as people write them: quotes, delimiters, encodings, no header."""

from pathlib import Path

import pytest

from trainers.config.data_section import DataConfig
from trainers.data import readers
from trainers.data.files import DataError
from trainers.data.rows.skips import SkippedRows
from trainers.data.sources import RawRows, open_source, read_source

RAW_QUOTES = (
    'text\tlabel\n"It was great\tpos\nplain text in between\tneg\n'
    'another line\tneg\nso dull"\tpos\n'
)
MERGED = (
    "text,label\n"
    + "".join(f"a film {row},{'pos' if row % 2 else 'neg'}\n" for row in range(20))
    + '"It was great,pos\nplain text in between,neg\nso dull",pos\n'
)


def read(path: Path, contents: str | bytes, **settings: object) -> RawRows:
    data = contents.encode() if isinstance(contents, str) else contents
    path.write_bytes(data)
    return read_source(str(path), DataConfig.model_validate({"source": str(path), **settings}))


def test_a_quote_in_a_tsv_is_a_character(tmp_path: Path) -> None:
    rows = read(tmp_path / "a.tsv", RAW_QUOTES)
    assert rows.texts == ['"It was great', "plain text in between", "another line", 'so dull"']
    assert rows.labels == ["pos", "neg", "neg", "pos"]


def test_a_tsv_that_pandas_wrote_has_quotes(tmp_path: Path) -> None:
    contents = 'text\tlabel\n"He said ""no"""\tneg\n"two\nlines"\tpos\nplain\tpos\n'
    rows = read(tmp_path / "a.tsv", contents)
    assert rows.texts == ['He said "no"', "two\nlines", "plain"]
    assert read(tmp_path / "b.tsv", contents, quoting="none").texts[0] == '"He said ""no"""'


def test_rows_that_a_quote_swallowed_are_an_error_that_shows_the_first(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the first at line 22: 'It was great,pos'.*quoting=none"):
        read(tmp_path / "a.csv", MERGED)
    rows = read(tmp_path / "b.csv", MERGED, quoting="none")
    assert len(rows.texts) == 23
    assert rows.texts[20] == '"It was great'
    with pytest.raises(DataError, match=r"the first at line 2: 'It was great\\tpos'"):
        read(tmp_path / "c.tsv", RAW_QUOTES + "x\tpos\ny\tneg\n", quoting="quotes")


def test_a_line_break_inside_quotes_is_kept_and_noted(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text,label\n"Dear all,\nthank you, bye",pos\nplain,neg\n')
    stream = open_source(str(path), DataConfig(source=str(path)))
    assert [text for _, text, _ in stream] == ["Dear all,\nthank you, bye", "plain"]
    assert stream.skips.list_notes() == ("1 rows hold a line break inside quotes (first: line 2)",)


def test_quotes_that_a_backslash_escapes(tmp_path: Path) -> None:
    contents = 'text,label\n"He said \\"no\\", loudly",neg\nplain,pos\n'
    rows = read(tmp_path / "a.csv", contents)
    reason = "broken quotes; data.quoting=backslash reads such"
    assert rows.skipped == (SkippedRows(reason, 1, "line 2"),)
    assert read(tmp_path / "b.csv", contents, quoting="backslash").texts == [
        'He said "no", loudly',
        "plain",
    ]


@pytest.mark.parametrize("mark", [";", "|", "\t"])
def test_another_delimiter_is_named_and_a_setting(tmp_path: Path, mark: str) -> None:
    contents = f"text{mark}label\nx{mark}1\n"
    with pytest.raises(DataError, match=r"set data\.delimiter="):
        read(tmp_path / "a.csv", contents)
    assert read(tmp_path / "b.csv", contents, delimiter=mark).labels == ["1"]


def test_without_a_header_columns_have_numbers(tmp_path: Path) -> None:
    contents = "was for awful and a cold plot\tneg\nthat brilliant in a warm town\tpos\n"
    with pytest.raises(DataError, match=r"set data\.header=false, .* as data\.text=1"):
        read(tmp_path / "a.tsv", contents)
    rows = read(tmp_path / "b.tsv", contents, header=False, text=1, label=2)
    assert rows.labels == ["neg", "pos"]
    assert rows.numbers == [1, 2]


def test_an_encoding_is_a_setting(tmp_path: Path) -> None:
    contents = "text,label\ncaf\u00e9,1\n".encode("cp1252")
    with pytest.raises(DataError, match=r"data\.encoding=windows-1252"):
        read(tmp_path / "a.csv", contents)
    assert read(tmp_path / "b.csv", contents, encoding="cp1252").texts == ["caf\u00e9"]
    with pytest.raises(DataError, match=r"data\.encoding=utf-16 does not fit"):
        read(tmp_path / "c.csv", contents, encoding="utf-16")
    with pytest.raises(ValueError, match="'base64' is no encoding of text"):
        DataConfig(source="a.csv", encoding="base64")


@pytest.mark.parametrize(
    ("name", "contents"),
    [
        ("a.ndjson", '{"review": {"body": "x"}, "meta": {"label": "1"}}\n'),
        ("a.JSONL", '{"review": {"body": "x"}, "meta.label": "1"}\n'),
        ("a.json", '[{"review": {"body": "x"}, "meta": {"label": "1"}}]'),
        ("a.json", '{"review": [{"body": "x"}], "meta": [{"label": "1"}]}'),
    ],
)
def test_keys_of_nested_objects(tmp_path: Path, name: str, contents: str) -> None:
    rows = read(tmp_path / name, contents, text="review.body", label="meta.label")
    assert (rows.texts, rows.labels) == (["x"], ["1"])
    with pytest.raises(DataError, match=r"no column 'review\.txt'; .*, 'review\.body'"):
        read(tmp_path / name, contents, text="review.txt", label="meta.label")


def test_one_such_row_of_many_is_kept_and_noted(tmp_path: Path) -> None:
    plain = "".join(f"a film {row},{'pos' if row % 2 else 'neg'}\n" for row in range(200))
    rows = read(tmp_path / "a.csv", f'text,label\n{plain}"I wrote,\nso dull,neg\nand that",pos\n')
    assert len(rows.texts) == 201


def test_one_value_of_json_has_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = '[{"text": "x", "label": "1"}]'
    monkeypatch.setattr(readers, "MAX_JSON_CHARACTERS", len(contents))
    assert read(tmp_path / "a.json", contents).texts == ["x"]
    with pytest.raises(DataError, match=r"one object a line, as \.jsonl"):
        read(tmp_path / "b.json", contents + " ")
