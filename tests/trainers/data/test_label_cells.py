"""What a label column may hold: vectors, several columns, lists of Python, what means missing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainers.config.recipe import Task
from trainers.config.sections import DataConfig
from trainers.data import labels as labelling
from trainers.data.files import DataError
from trainers.data.labels import Label, LabelColumn
from trainers.data.rows.label_cells import clean_name, parse_list
from trainers.data.rows.skips import SkipCounter
from trainers.data.sources import read_source

ONE_HOT = ([1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1], [0, 0, 0])
NAMED = [("label_0",), ("label_1",), ("label_2",), ("label_0", "label_2"), ()]


def parse(
    cells: list[Any], task: Task = "multi-label", **settings: Any
) -> tuple[list[Label | None], SkipCounter, tuple[str, ...]]:
    data, skips = DataConfig(source="rows.csv", **settings), SkipCounter("line")
    column, codes = LabelColumn.from_cells(cells, range(2, len(cells) + 2))
    labels, notes = labelling.parse_labels(column, task, data, skips)
    return [labels[code] for code in codes], skips, notes


@pytest.mark.parametrize(
    "written",
    [
        list,
        lambda vector: [float(item) for item in vector],
        lambda vector: [bool(item) for item in vector],
        str,
        lambda vector: str(np.array(vector)),
        lambda vector: str(np.array(vector, dtype=float)),
        lambda vector: str(tuple(vector)),
    ],
    ids=["ints", "floats", "truths", "text", "numpy", "numpy floats", "tuple"],
)
def test_vectors_of_0_and_1_are_classes_by_place(written: Any) -> None:
    labels, skips, notes = parse([written(vector) for vector in ONE_HOT])
    assert labels == NAMED
    assert not skips.list_reasons()
    assert notes == ("column 'label' holds vectors of 3 numbers 0 and 1",)
    named, *_ = parse([written(vector) for vector in ONE_HOT], labels=["a", "b", "c"])
    assert named == [("a",), ("b",), ("c",), ("a", "c"), ()]


def test_vectors_of_ten_classes_keep_their_order() -> None:
    vectors = [[int(place == one) for place in range(11)] for one in range(11)]
    labels, *_ = parse(vectors)
    found = labelling.class_names(
        [label for label in labels if label is not None], "multi-label", None
    )
    assert found == tuple(f"label_{place}" for place in range(11))


def test_a_vector_with_one_1_is_a_class() -> None:
    labels, skips, _ = parse([[1, 0], [0, 1], [1, 1]], "classification")
    assert labels == [("label_0",), ("label_1",), None]
    assert [(each.reason, each.first) for each in skips.list_reasons()] == [
        ("vector with 2 times 1 (task: multi-label?)", "line 4")
    ]


def test_lists_of_names_and_of_indices_are_no_vectors() -> None:
    assert parse([["a", "b"], ["b"], []])[0] == [("a", "b"), ("b",), ()]
    assert parse([[0, 1], [1], [2]], labels=["x", "y", "z"])[0] == [("x", "y"), ("y",), ("z",)]


@pytest.mark.parametrize("other", [[1, 0, 0, 1], [2], ["toxic"]])
def test_a_column_that_is_vectors_in_part_is_refused(other: list[Any]) -> None:
    with pytest.raises(DataError, match=r"row 2: column 'label' holds \[1, 0, 0\].* row 3 holds"):
        parse([[1, 0, 0], other])


def test_vectors_of_another_length_than_the_classes_are_refused() -> None:
    with pytest.raises(DataError, match=r"vectors of 3 numbers.* data.labels names 2 classes"):
        parse([[1, 0, 0], [0, 1, 0]], labels=["a", "b"])


def test_columns_of_0_and_1_are_the_classes(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(
        "text,toxic,obscene,threat\na film,0,1,0\na plot,1,1,0\na tale,0,0,0\n"
        "an act,1,,0\na joke,True,False,1.0\na song,5,0,0\n"
    )
    data = DataConfig(source=str(path), label=("toxic", "obscene", "threat"))
    rows, skips = read_source(str(path), data), SkipCounter("line")
    labels = labelling.parse_cells(rows.labels, rows.numbers, "multi-label", data, skips)
    assert labels == [("obscene",), ("toxic", "obscene"), (), None, ("toxic", "threat"), None]
    assert [(each.reason, each.first) for each in skips.list_reasons()] == [
        ("no label in column 'obscene'", "line 5"),
        ("column 'toxic' holds '5' and not 0 or 1", "line 7"),
    ]


def test_columns_of_a_classification_hold_one_1() -> None:
    labels, skips, _ = parse(
        [("1", "0"), ("0", "1"), ("1", "1")], "classification", label=["a", "b"]
    )
    assert labels == [("a",), ("b",), None]
    assert skips.list_reasons()[0].reason == "1 in 2 label columns (task: multi-label?)"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("['a', 'b']", ["a", "b"]),
        ('["a", "b"]', ["a", "b"]),
        ("('a',)", ["a"]),
        ("['a' 'b']", None),
        ("[a, b]", None),
        ("[" * 200_000, None),
        ("__import__('os')", None),
    ],
)
def test_lists_in_texts(text: str, found: list[str] | None) -> None:
    assert parse_list(text) == found


def test_python_lists_are_labels() -> None:
    labels, skips, _ = parse(["['a', 'b']", "['b']", "[]", "['a' 'b']"])
    assert labels == [("a", "b"), ("b",), (), None]
    assert skips.list_reasons()[0].reason == "label is no list of JSON or Python"


def test_another_separator_is_named() -> None:
    cells = ["sport, politics", "sport", "politics, art", "art"]
    with pytest.raises(DataError, match=r"set data\.label_separator=','"):
        parse(cells)
    assert parse(cells, label_separator=",")[0][0] == ("sport", "politics")
    assert parse(["Paris, France", "Rome, Italy"])[0] == [("Paris, France",), ("Rome, Italy",)]


@pytest.mark.parametrize("task", ["classification", "multi-label"])
def test_what_means_missing_is_no_class(task: Task) -> None:
    labels, skips, _ = parse(["nan", "1.0", "1", "N/A", "0", "None"], task)
    assert labels == [None, ("1",), ("1",), None, ("0",), None]
    assert [(each.reason, each.first) for each in skips.list_reasons()] == [
        ("label 'nan' (data.missing)", "line 2"),
        ("label 'N/A' (data.missing)", "line 5"),
        ("label 'None' (data.missing)", "line 7"),
    ]


def test_a_class_called_none_is_one_where_it_is_named() -> None:
    assert parse(["None", "a"], "classification", labels=["None", "a"])[0] == [("None",), ("a",)]
    assert parse(["None", "a"], "classification", missing=[])[0] == [("None",), ("a",)]


def test_a_number_that_is_missing_is_counted_as_such() -> None:
    data = DataConfig(source="rows.csv")
    assert labelling.parse_number("N/A", data) == (None, "label 'N/A' (data.missing)")
    assert labelling.parse_number("1.5", data) == (1.5, "")


def test_names_have_one_form() -> None:
    labels, *_ = parse(["cafe\u0301", "caf\u00e9 ", "\u200bcaf\u00e9\ufeff"], "classification")
    assert set(labels) == {("caf\u00e9",)}
    assert clean_name(" \u200b ") == ""
    given, *_ = parse(["caf\u00e9"], "classification", labels=["cafe\u0301", "bar"])
    names = labelling.class_names([], "classification", ("cafe\u0301", "bar"))
    assert given[0] is not None and given[0] == (names[0],)


def test_classes_that_may_be_one_are_noted() -> None:
    cells = ["Positive", "positive", *["negative"] * 40, "negativ", *["class 1"] * 40, "class 2"]
    notes = parse(cells, "classification")[2]
    assert notes == (
        "labels 'Positive', 'positive' differ in case or blanks only: one class?",
        "label 'negativ' (1 rows) is nearly 'negative': one class?",
    )
