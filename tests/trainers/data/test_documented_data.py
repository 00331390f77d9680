"""Each row of the tables in docs/data.md is a file or a cell that is read as they say."""

import gzip
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import openpyxl
import pyarrow as pa
import pyarrow.parquet
import pytest

from tests.support.paths import ROOT
from trainers.config.data_section import DataConfig
from trainers.config.recipe import Task
from trainers.data import labels as labelling
from trainers.data.labels import Label
from trainers.data.rows.skips import SkipCounter
from trainers.data.sources import read_source

PLAIN = "text,label\ngood film,pos\nbad film,neg\n"
OBJECTS = '{"text": "good film", "label": "pos"}\n{"text": "bad film", "label": "neg"}\n'
ROWS: dict[str, list[Any]] = {"text": ["good film", "bad film"], "label": ["pos", "neg"]}


def write_parquet(path: Path) -> None:
    pyarrow.parquet.write_table(pa.table(ROWS), path)


def write_workbook(path: Path) -> None:
    book = openpyxl.Workbook()
    for row in (ROWS.keys(), *zip(*ROWS.values(), strict=True)):
        book.worksheets[0].append([*row])
    book.save(path)


def write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("reviews.csv", PLAIN)


def write_parts(path: Path) -> None:
    header, *lines = PLAIN.splitlines(keepends=True)
    for number, line in enumerate(lines):
        path.with_name(path.name.replace("*", str(number))).write_text(header + line)


def write_tables(path: Path) -> None:
    path.mkdir()
    (path / "train.csv").write_text(PLAIN)
    (path / "test.csv").write_text("text,label\nfair film,pos\n")


def write_texts(path: Path) -> None:
    for text, label in zip(*ROWS.values(), strict=True):
        (path / label).mkdir(parents=True)
        (path / label / "1.txt").write_text(text)


def write_saved(path: Path) -> None:
    datasets.Dataset.from_dict(ROWS).save_to_disk(path)


FILES: dict[str, tuple[str | bytes | Callable[[Path], None], dict[str, Any]]] = {
    "rows.csv": (PLAIN, {}),
    "rows.tsv": (PLAIN.replace(",", "\t"), {}),
    "rows.jsonl": (OBJECTS, {}),
    "rows.ndjson": (OBJECTS, {}),
    "rows.json": (f"[{OBJECTS.strip().replace(chr(10), ',')}]", {}),
    "rows.parquet": (write_parquet, {}),
    "rows.xlsx": (write_workbook, {}),
    "rows.zip": (write_zip, {}),
    "rows.csv.gz": (gzip.compress(PLAIN.encode()), {}),
    "semicolon.csv": (PLAIN.replace(",", ";"), {"delimiter": ";"}),
    "no-header.tsv": (
        PLAIN.replace(",", "\t").partition("\n")[2],
        {"header": False, "text": 1, "label": 2},
    ),
    "backslash.csv": (PLAIN.replace("good film", '"good \\" film"'), {"quoting": "backslash"}),
    "stray-quote.csv": (PLAIN.replace("good", '"good'), {"quoting": "none"}),
    "latin.csv": (PLAIN.replace("good", "g\u00f3od").encode("cp1252"), {"encoding": "cp1252"}),
    "rows-*.csv": (write_parts, {}),
    "tables/": (write_tables, {}),
    "texts/": (write_texts, {}),
    "saved/": (write_saved, {}),
}
# Written as in the table; what else is in the column; the label.
CELLS: dict[str, tuple[list[str], Task, Label | None]] = {
    "good": (["bad"], "classification", ("good",)),
    "1.0": (["0"], "classification", ("1",)),
    "N/A": (["a", "b"], "classification", None),
    "a|b": (["c"], "multi-label", ("a", "b")),
    '["a", "b"]': ([], "multi-label", ("a", "b")),
    "['a', 'b']": ([], "multi-label", ("a", "b")),
    "[1, 0, 1]": (["[0, 1, 0]"], "multi-label", ("label_0", "label_2")),
    "['a' 'c']": (["['b']"], "multi-label", ("a", "c")),
    "1,0,1": (["0,1,0"], "multi-label", ("label_0", "label_2")),
    "array([1, 0, 0])": (["array([0, 1, 0])"], "multi-label", ("label_0",)),
    "[0 1 0]": (["[1 0 0]"], "classification", ("label_1",)),
    "3.5": (["1"], "regression", 3.5),
}


def documented(section: str) -> list[str]:
    text = (ROOT / "docs/data.md").read_text().partition(f"## {section}")[2].partition("\n## ")[0]
    return [cell.replace("\\|", "|") for cell in re.findall(r"^\| `(.+?)` \|", text, re.MULTILINE)]


def test_the_tables_are_those_that_are_tried() -> None:
    assert documented("Files") == list(FILES)
    assert sorted(documented("Labels")) == sorted(CELLS)


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_read_as_documented(tmp_path: Path, name: str) -> None:
    contents, settings = FILES[name]
    path = tmp_path / name
    if callable(contents):
        contents(path)
    else:
        path.write_bytes(contents.encode() if isinstance(contents, str) else contents)
    data = DataConfig.model_validate({"source": str(path), **settings})
    read = read_source(str(path), data)
    rows = dict(zip(read.labels, read.texts, strict=True))
    assert rows["neg"] == "bad film" and rows["pos"].endswith("film")
    assert len(rows) == len(read.texts)


@pytest.mark.parametrize("cell", CELLS)
def test_a_cell_is_read_as_documented(cell: str) -> None:
    others, task, label = CELLS[cell]
    cells = [cell, *others]
    data, skips = DataConfig(source="rows.csv"), SkipCounter("line")
    found = labelling.parse_cells(cells, range(len(cells)), task, data, skips)
    assert found[0] == label
