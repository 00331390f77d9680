"""Tables in .zip and .xlsx, keys of nested objects, and the bounds of what is unpacked."""

import json
import sys
import zipfile
from datetime import date
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow as pa
import pyarrow.parquet
import pytest

from trainers.config.data_section import DataConfig
from trainers.data import files, readers
from trainers.data.files import DataError
from trainers.data.rows import workbook
from trainers.data.sources import RawRows, open_source, read_source

ROWS = "text,label\na film,pos\nanother,neg\n"


def read(path: Path, **settings: Any) -> RawRows:
    return read_source(str(path), DataConfig.model_validate({"source": str(path), **settings}))


def write_zip(path: Path, **members: str) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, contents in members.items():
            archive.writestr(name, contents)
    return path


def write_sheets(path: Path, **sheets: list[list[Any]]) -> Path:
    book = openpyxl.Workbook()
    del book["Sheet"]
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    book.save(path)
    return path


def replace_member(path: Path, name: str, change: Any) -> None:
    """Write a workbook anew, one file of it changed."""
    with zipfile.ZipFile(path) as archive:
        members = {each: archive.read(each) for each in archive.namelist()}
    members[name] = change(members[name])
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for each, contents in members.items():
            archive.writestr(each, contents)


@pytest.mark.parametrize(
    ("name", "contents", "first"),
    [
        ("in/rows.CSV", ROWS, "a film"),
        ("rows.tsv", 'text\tlabel\n"a film\tpos\nanother\tneg\n', '"a film'),
        ("rows.jsonl", '{"text": "a film", "label": "pos"}\n', "a film"),
        ("rows.json", '[{"text": "a film", "label": "pos"}]', "a film"),
    ],
)
def test_a_zip_holds_one_table(tmp_path: Path, name: str, contents: str, first: str) -> None:
    others = {"__MACOSX/._rows.csv": "x", ".rows.csv": "x", "README.md": "read me"}
    path = write_zip(tmp_path / "Archive.ZIP", **{name: contents}, **others)
    rows = read(path)
    assert rows.texts[0] == first and rows.labels[0] == "pos"
    assert rows.unit == ("row" if name.endswith("json") else "line")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.csv": ROWS, "b.csv": ROWS}, r"holds 2 tables, as a\.csv, b\.csv; .*unpack it"),
        ({"a.txt": ROWS}, r"holds 0 tables; a \.zip is read if it holds one of \.csv"),
    ],
)
def test_a_zip_of_several_tables_is_refused(
    tmp_path: Path, members: dict[str, str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read(write_zip(tmp_path / "a.zip", **members))


def test_what_is_no_zip_or_is_encrypted_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_text("PK")
    with pytest.raises(DataError, match="cannot be read"):
        read(path)
    write_zip(path, **{"a.csv": ROWS})
    contents = bytearray(path.read_bytes())
    contents[contents.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(contents)
    with pytest.raises(DataError, match="is encrypted; unpack it"):
        read(path)


def test_a_bomb_in_a_zip_is_refused_before_it_unpacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MIN_ZIP_BOMB", 1 << 20)
    path = write_zip(tmp_path / "a.zip", **{"a.csv": ROWS + "x" * (2 << 20)})
    with pytest.raises(DataError, match=r"a\.csv would be 2 MiB out of .*if that is meant"):
        read(path)


def test_lines_and_json_values_have_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_LINE", 1000)
    monkeypatch.setattr(readers, "MAX_JSON_CONTAINERS", 10)
    for name in ("a.csv", "a.tsv", "a.jsonl"):
        path = tmp_path / name
        path.write_text("x" * 1001)
        with pytest.raises(DataError, match="a line of over 1,000 characters"):
            read(path)
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"text": "x"}] * 11))
    with pytest.raises(DataError, match="12 objects and lists, and at most 10"):
        read(path)
    monkeypatch.setattr(readers, "MAX_JSON_CHARACTERS", 100)
    with pytest.raises(DataError, match=r"over 100 characters; write one object a line"):
        read(path)


def test_a_sheet_is_a_table(tmp_path: Path) -> None:
    path = write_sheets(
        tmp_path / "a.XLSX",
        Data=[[], ["label", "text", None], [1, "a film"], [], [0, "another"], [None, None, ""]],
    )
    rows = read(path)
    assert (rows.texts, rows.labels) == (["a film", "another"], [1, 0])
    assert (rows.numbers, rows.unit, rows.num_read) == ([3, 5], "row", 2)
    with pytest.raises(DataError, match="no column 'txt'; it has 'label', 'text'; did you mean"):
        read(path, text="txt")
    twice = write_sheets(tmp_path / "b.xlsx", Data=[["text", "text", "label"], ["a", "b", 1]])
    with pytest.raises(DataError, match="several columns are called 'text'"):
        read(twice)


def test_of_several_sheets_the_first_with_the_columns_is_read(tmp_path: Path) -> None:
    path = write_sheets(
        tmp_path / "a.xlsx",
        Empty=[],
        Notes=[["what this is"], ["made in spring"]],
        Data=[["text", "label"], ["a film", "pos"]],
        More=[["text", "label"], ["not read", "neg"]],
    )
    assert read(path).texts == ["a film"]
    with pytest.raises(DataError, match="no column 'body'; it has 'what this is'"):
        read(path, text="body")


def test_a_sheet_without_a_header_has_numbers(tmp_path: Path) -> None:
    path = write_sheets(tmp_path / "a.xlsx", Data=[["a film", "pos"], ["another", "neg"]])
    rows = read(path, header=False, text=1, label=2)
    assert (rows.texts, rows.labels, rows.numbers) == (
        ["a film", "another"],
        ["pos", "neg"],
        [1, 2],
    )


def test_an_empty_workbook_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no row with a text; it is empty"):
        read(write_sheets(tmp_path / "a.xlsx", Data=[]))


def test_a_wrong_dimension_hides_no_row(tmp_path: Path) -> None:
    path = write_sheets(tmp_path / "a.xlsx", Data=[["text", "label"], ["a film", "pos"]])
    replace_member(
        path, "xl/worksheets/sheet1.xml", lambda xml: xml.replace(b'ref="A1:B2"', b'ref="A1"')
    )
    assert read(path).labels == ["pos"]


def test_without_the_extra_an_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_sheets(tmp_path / "a.xlsx", Data=[["text", "label"]])
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(DataError, match=r'pip install "bertha-ray\[excel\]", or save the sheet'):
        read(path)


def test_a_workbook_that_unpacks_to_too_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_sheets(tmp_path / "a.xlsx", Data=[["text", "label"], ["a film", "pos"]])
    monkeypatch.setattr(workbook, "MAX_UNPACKED", 1000)
    with pytest.raises(DataError, match=r"and at most 1000 bytes are read; save the sheet as CSV"):
        read(path)


@pytest.mark.parametrize(
    ("member", "old", "new", "message"),
    [
        ("sheet1.xml", b'r="2"', b'r="999999999999"', "over 1,048,576 rows"),
        ("sheet1.xml", b'r="B2"', b'r="AAAAAA2"', "cannot be read as .xlsx"),
        ("sheet1.xml", b"<sheetData>", b"<sheetData", "cannot be read as .xlsx"),
    ],
)
def test_a_damaged_sheet_is_refused(
    tmp_path: Path, member: str, old: bytes, new: bytes, message: str
) -> None:
    path = write_sheets(tmp_path / "a.xlsx", Data=[["text", "label"], ["a film", "pos"]])
    replace_member(path, f"xl/worksheets/{member}", lambda xml: xml.replace(old, new))
    with pytest.raises(DataError, match=message):
        read(path)


def test_entities_in_a_workbook_are_refused(tmp_path: Path) -> None:
    path = write_sheets(tmp_path / "a.xlsx", Data=[["text", "label"], ["a film", "pos"]])
    bomb = b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>'
    replace_member(
        path, "xl/worksheets/sheet1.xml", lambda xml: bomb + xml.replace(b"a film", b"&b;")
    )
    with pytest.raises(DataError, match=r"cannot be read as \.xlsx: .*ntit"):
        read(path)


def test_dates_and_truths_of_a_sheet_are_cells(tmp_path: Path) -> None:
    path = write_sheets(
        tmp_path / "a.xlsx",
        Data=[["text", "label", "day"], ["x", True, date(2026, 5, 1)], ["y", False, None]],
    )
    assert read(path).labels == [True, False]
    assert read(path, text="day").texts == ["2026-05-01 00:00:00"]


def test_structs_of_parquet_have_paths(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rows = [{"review": {"body": "a film", "by": {"id": 1}}}, {"review": None}]
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    found = read(path, text="review.body", label="review.by.id")
    assert (found.texts, found.labels) == (["a film"], [1])
    with pytest.raises(DataError, match=r"no column 'review\.body\.more'; it has 'review'"):
        read(path, text="review.body.more", label="review.by.id")


def test_a_quote_that_is_never_closed_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainers.data.rows.delimited.MAX_FIELD", 1000)
    path = tmp_path / "a.csv"
    path.write_text('text,label\n"never closed\n' + "a line,pos\n" * 200)
    stream = open_source(str(path), DataConfig(source=str(path)))
    texts = [text for _, text, _ in stream]
    assert "a line" in texts and max(map(len, texts)) < 1000
    assert stream.skips.list_reasons()[0].first == "line 2"
