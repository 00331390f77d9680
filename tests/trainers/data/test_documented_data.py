"""Each row of the tables in docs/data.md is a file or a cell that is read as they say."""

import gzip
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from tests.support.paths import ROOT
from trainers.config.recipe import Task
from trainers.config.sections import DataConfig
from trainers.data import labels as labelling
from trainers.data.labels import Label
from trainers.data.readers import table_format
from trainers.data.rows.skips import SkipCounter
from trainers.data.sources import read_source

PLAIN = "text,label\ngood film,pos\nbad film,neg\n"
OBJECTS = '{"text": "good film", "label": "pos"}\n{"text": "bad film", "label": "neg"}\n'
FILES: dict[str, tuple[str | bytes, dict[str, Any]]] = {
    "rows.csv": (PLAIN, {}),
    "rows.tsv": (PLAIN.replace(",", "\t"), {}),
    "rows.jsonl": (OBJECTS, {}),
    "rows.ndjson": (OBJECTS, {}),
    "rows.json": (f"[{OBJECTS.strip().replace(chr(10), ',')}]", {}),
    "rows.parquet": (b"", {}),
    "rows.csv.gz": (gzip.compress(PLAIN.encode()), {}),
    "semicolon.csv": (PLAIN.replace(",", ";"), {"delimiter": ";"}),
    "no-header.tsv": (
        PLAIN.replace(",", "\t").partition("\n")[2],
        {"header": False, "text": 1, "label": 2},
    ),
    "backslash.csv": (PLAIN.replace("good film", '"good \\" film"'), {"quoting": "backslash"}),
    "stray-quote.csv": (PLAIN.replace("good", '"good'), {"quoting": "none"}),
    "latin.csv": (PLAIN.replace("good", "g\u00f3od").encode("cp1252"), {"encoding": "cp1252"}),
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
    path.write_bytes(contents.encode() if isinstance(contents, str) else contents)
    if table_format(name) == "parquet":
        rows = {"text": ["good film", "bad film"], "label": ["pos", "neg"]}
        pyarrow.parquet.write_table(pa.table(rows), path)
    data = DataConfig.model_validate({"source": str(path), **settings})
    read = read_source(str(path), data)
    assert read.labels == ["pos", "neg"]
    assert read.texts[1] == "bad film"
    assert read.texts[0].endswith("film")


@pytest.mark.parametrize("cell", CELLS)
def test_a_cell_is_read_as_documented(cell: str) -> None:
    others, task, label = CELLS[cell]
    cells = [cell, *others]
    data, skips = DataConfig(source="rows.csv"), SkipCounter("line")
    found = labelling.parse_cells(cells, range(len(cells)), task, data, skips)
    assert found[0] == label
