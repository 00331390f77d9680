"""Tables row by row: which format, which columns, and what is counted as skipped."""

import csv
from pathlib import Path

import pyarrow as pa
import pytest

from trainers.data.files import DataError
from trainers.data.readers import (
    iter_arrow_rows,
    read_rows,
    require_columns,
    row_unit,
    table_format,
)
from trainers.data.rows.skips import SkipCounter, SkippedRows

COLUMNS = {"text": "data.text", "label": "data.label"}


def read(path: Path, columns: dict[str, str] | None = None) -> tuple[list, SkipCounter]:
    skips = SkipCounter(row_unit(str(path)))
    return list(read_rows(str(path), columns or COLUMNS, skips)), skips


@pytest.mark.parametrize(
    ("source", "kind", "unit"),
    [
        ("a.csv", "csv", "line"),
        ("a.tsv.gz", "tsv", "line"),
        ("a.b.jsonl.xz", "jsonl", "line"),
        ("a.parquet", "parquet", "row"),
        ("a.parquet.gz", None, "row"),
        ("https://host/a.csv?version=1.txt", "csv", "line"),
        ("what?/a.csv", "csv", "line"),
        ("user/data-set", None, "row"),
    ],
)
def test_the_suffix_decides_the_format(source: str, kind: str | None, unit: str) -> None:
    assert (table_format(source), row_unit(source)) == (kind, unit)


def test_skipped_rows_are_counted_by_reason_with_the_first_place() -> None:
    skips = SkipCounter("line", [SkippedRows("no text", 2, "line 4")])
    skips.count_skipped("not JSON", 7, rows=3)
    skips.count_skipped("no text", 9)
    skips.count_skipped("not JSON", 1)
    assert skips.list_reasons() == (
        SkippedRows("no text", 3, "line 4"),
        SkippedRows("not JSON", 4, "line 7"),
    )


def test_values_come_in_the_order_of_the_columns_that_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("label,other,text\n1,x,good\n")
    assert read(path)[0] == [(2, ("good", "1"))]
    batch = pa.table({"label": [1, 0], "text": ["a", "b"]})
    assert list(iter_arrow_rows([batch], COLUMNS)) == [("a", 1), ("b", 0)]


def test_a_row_has_the_line_that_it_starts_on(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text('text\tlabel\n"two\nlines"\t1\n\none\t0\na, b\t1\n')
    rows, skips = read(path)
    assert rows == [(2, ("two\nlines", "1")), (5, ("one", "0")), (6, ("a, b", "1"))]
    assert skips.list_reasons() == ()


def test_long_fields_are_allowed_only_while_a_file_is_read(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    path = tmp_path / "a.csv"
    path.write_text(f"text,label\n{'x' * (before + 1)},1\n")
    (row,), skips = read(path)
    assert len(row[1][0]) == before + 1 and skips.list_reasons() == ()
    assert csv.field_size_limit() == before


def test_a_key_that_some_record_has_is_a_column(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n\n{"text": "b", "label": 1}\n')
    assert read(path)[0] == [(1, ("a", None)), (3, ("b", 1))]
    with pytest.raises(DataError, match=r"no column 'score'; it has 'label', 'text'"):
        read(path, {"text": "data.text", "score": "data.label"})


def test_a_missing_column_names_the_file_the_columns_and_the_setting() -> None:
    with pytest.raises(DataError) as raised:
        require_columns("a.csv", COLUMNS, ["lable", "text", "id"])
    assert str(raised.value) == (
        "a.csv: no column 'label'; it has 'id', 'lable', 'text'; did you mean 'lable'? set "
        "data.label"
    )
    require_columns("a.csv", COLUMNS, ["label", "text"])


@pytest.mark.parametrize("header", ["text;label", "text\tlabel"])
def test_a_header_of_one_column_asks_for_another_separator(header: str) -> None:
    with pytest.raises(DataError, match=r"columns are separated by .*; set data\.delimiter="):
        require_columns("a.csv", COLUMNS, [header])
