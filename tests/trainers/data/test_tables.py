"""Whole tables: every column and row of several files, as they are."""

import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow
import pyarrow.parquet
import pytest

from trainers.data.files import DataError
from trainers.data.rows.delimited import Dialect
from trainers.data.tables import cell_at, list_tables, open_table


def write_jsonl(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, 2, None], pyarrow.int64()),
        ([1, 2.5], pyarrow.float64()),
        ([True, None], pyarrow.bool_()),
        ([True, 1], pyarrow.string()),
        ([1, "two"], pyarrow.string()),
        ([None, None], pyarrow.string()),
        ([2**70], pyarrow.string()),
        ([["a"], {}], pyarrow.string()),
    ],
)
def test_json_gets_the_narrowest_type_that_holds_all(
    values: list[Any], kind: pyarrow.DataType, tmp_path: Path
) -> None:
    table = open_table([write_jsonl(tmp_path / "rows.jsonl", *({"x": each} for each in values))])
    assert table.schema.field("x").type == kind
    assert [row[0] for row in table.iter_rows()] == values


def test_rows_of_json_may_lack_columns(tmp_path: Path) -> None:
    first = write_jsonl(tmp_path / "a.jsonl", {"a": 1}, {"b": "x"})
    second = write_jsonl(tmp_path / "b.jsonl", {"c": 2.5, "a": 0.5})
    table = open_table([first, second])
    assert table.columns == ("a", "b", "c")
    assert table.schema.field("a").type == pyarrow.float64()
    assert list(table.iter_rows()) == [(1, None, None), (None, "x", None), (0.5, None, 2.5)]
    assert table.num_rows == 3


def test_columns_are_found_by_name_whatever_their_order(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    (tmp_path / "b.tsv").write_text("y\tx\n3\t4\n")
    table = open_table([str(tmp_path / "a.csv"), str(tmp_path / "b.tsv")])
    assert list(table.iter_rows()) == [("1", "2"), ("4", "3")]
    assert table.find_columns(["y"], "--text") == [1]


def test_types_of_parquet_are_kept(tmp_path: Path) -> None:
    given = pyarrow.table({"n": pyarrow.array([1, 2], pyarrow.int16()), "d": [[1.5], None]})
    pyarrow.parquet.write_table(given, tmp_path / "rows.parquet")
    table = open_table([str(tmp_path / "rows.parquet")])
    assert table.schema == given.schema
    assert list(table.iter_rows()) == [(1, [1.5]), (2, None)]


def test_what_is_left_out_is_said_of_each_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,y\n1,2\n3\n4,5,6\n")
    (tmp_path / "b.jsonl").write_text('{"x": 1, "y": 2}\nno json\n')
    table = open_table([str(tmp_path / "a.csv"), str(tmp_path / "b.jsonl")])
    assert table.skipped == (
        f"{tmp_path}/a.csv: 2 rows left out: wrong number of fields (first: line 3)",
        f"{tmp_path}/b.jsonl: 1 row left out: not JSON (first: line 2)",
    )
    assert table.num_rows == len(list(table.iter_rows())) == 2


def test_a_file_without_columns_is_refused(tmp_path: Path) -> None:
    for name, said in (("a.csv", "must name the columns"), ("a.jsonl", "a JSON object a line")):
        (tmp_path / name).write_text("")
        with pytest.raises(DataError, match=said):
            open_table([str(tmp_path / name)])


def test_files_of_a_directory_are_sorted_and_hidden_ones_left_out(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv", "_temporary/c.csv", ".d.csv", "sub/e.csv.gz", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x\n")
    names = [f"{tmp_path}/{name}" for name in ("a.csv", "b.csv", "sub/e.csv.gz")]
    assert list_tables([str(tmp_path)]) == tuple(names)
    assert list_tables([f"{tmp_path}/"]) == tuple(names)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.csv: no such file"):
        open_table([str(tmp_path / "nowhere.csv")])


def test_an_array_of_json_is_a_table(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('[{"text": "x", "stars": 3}, {"text": "y"}]')
    table = open_table([str(path)])
    assert table.columns == ("text", "stars")
    assert list(table.iter_rows()) == [("x", 3), ("y", None)]


def test_packed_and_excel_tables_are_text(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    for row in (["text", "n"], ["a film", 1], [None, None], ["another", None]):
        book.worksheets[0].append(row)
    book.save(tmp_path / "a.xlsx")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("rows.csv", "text,n\na third,3\n")
    table = open_table([str(tmp_path)])
    assert list(table.iter_rows()) == [("a film", "1"), ("another", ""), ("a third", "3")]
    assert table.num_rows == 3 and set(table.schema.types) == {pyarrow.string()}


def test_keys_of_nested_objects_are_places(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", {"review": {"body": "x"}, "n": 1}, {"n": 2})
    table = open_table([source])
    places = table.find_columns(["review.body", "n"], "--text")
    cells = [[cell_at(row, place) for place in places] for row in table.iter_rows()]
    assert cells == [["x", 1], [None, 2]]
    with pytest.raises(DataError, match=r"no column 'rview\.body'"):
        table.find_columns(["rview.body"], "--text")


def test_a_dialect_is_of_all_files_and_its_settings_are_named(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_bytes("text;label\ncaf\u00e9;1\n".encode("cp1252"))
    dialect = Dialect(";", "quotes", "cp1252", True, "--")
    table = open_table([str(tmp_path)], dialect)
    assert list(table.iter_rows()) == [("caf\u00e9", "1")] * 2
    plain = open_table([str(tmp_path / "a.csv")], replace(dialect, delimiter=None))
    with pytest.raises(DataError, match="set --delimiter=';'"):
        plain.find_columns(["text"], "--text")
    numbered = open_table([str(tmp_path / "a.csv")], replace(dialect, header=False))
    assert numbered.columns == ("1", "2") and numbered.num_rows == 2
