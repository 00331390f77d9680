"""What a label column may hold: vectors, several columns, lists of Python, what means missing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trainers.config.data_section import DataConfig
from trainers.config.recipe import Task
from trainers.data import labels as labelling
from trainers.data.files import DataError
from trainers.data.labels import Label
from trainers.data.rows.label_cells import clean_name
from trainers.data.rows.label_column import LabelColumn
from trainers.data.rows.label_lists import parse_list
from trainers.data.rows.skips import SkipCounter
from trainers.data.sources import read_source

ONE_HOT = ([1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1], [0, 0, 0])
NAMED = [("label_0",), ("label_1",), ("label_2",), ("label_0", "label_2"), ()]


def parse(
    cells: list[Any], task: Task = "multi-label", **settings: Any
) -> tuple[list[Label | None], SkipCounter, tuple[str, ...]]:
    data, skips = DataConfig(source="rows.csv", **settings), SkipCounter("line")
    column, codes = LabelColumn.from_cells(cells, range(2, len(cells) + 2))
    parsed = labelling.parse_labels(column, task, data, skips)
    return [parsed.labels[code] for code in codes], skips, parsed.notes


@pytest.mark.parametrize(
    "written",
    [
        list,
        lambda vector: [float(item) for item in vector],
        lambda vector: [bool(item) for item in vector],
        str,
        lambda vector: str(np.array(vector)),
        lambda vector: str(np.array(vector, dtype=float)),
        lambda vector: str(np.array(vector, dtype=bool)),
        lambda vector: repr(np.array(vector)),
        lambda vector: repr(torch.tensor(vector, dtype=torch.float32)),
        lambda vector: str([np.float64(item) for item in vector]),
        lambda vector: str([np.bool_(item) for item in vector]),
        lambda vector: str(tuple(vector)),
        lambda vector: "|".join(map(str, vector)),
        lambda vector: ", ".join(map(str, vector)),
        lambda vector: " ".join(map(str, vector)),
    ],
    ids=[
        "ints",
        "floats",
        "truths",
        "text",
        "numpy",
        "numpy floats",
        "numpy truths",
        "array",
        "tensor",
        "scalars",
        "truth scalars",
        "tuple",
        "bars",
        "commas",
        "blanks",
    ],
)
def test_vectors_of_0_and_1_are_classes_by_place(written: Any) -> None:
    labels, skips, notes = parse([written(vector) for vector in ONE_HOT])
    assert labels == NAMED
    assert not skips.list_reasons()
    assert notes == ("column 'label' holds vectors of 3 numbers 0 and 1, a class each",)
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
    labels, skips, _ = parse([[1, 0], [0, 1], [0, 0]], "classification")
    assert labels == [("label_0",), ("label_1",), None]
    assert [(each.reason, each.first) for each in skips.list_reasons()] == [
        ("no 1 among the classes", "line 4")
    ]


def test_vectors_with_several_1s_are_no_classification() -> None:
    cells = [[1, 0], [0, 1], [1, 1], [1, 1]]
    with pytest.raises(DataError, match=r"line 4: label = \[1, 1\].* 2 of 4 rows.* task=multi-l"):
        parse(cells, "classification")
    labels, skips, _ = parse([[1, 0], [0, 1]] * 100 + [[1, 1]], "classification")
    assert labels[-1] is None and skips.list_reasons()[0].rows == 1  # a slip


def test_one_class_may_be_a_vector_of_one_number() -> None:
    assert parse([[1], [0], [1]], labels=["toxic"])[0] == [("toxic",), (), ("toxic",)]
    assert parse([[0], []], labels=["toxic"])[0] == [("toxic",), ()]  # its index
    assert parse(["1", "1", "0"], labels=["toxic"])[0] == [("toxic",), ("toxic",), ()]


@pytest.mark.parametrize(
    "cells", [[[0.2, 0.8], [0.9, 0.1]], [[1, -1, 0], [0, 1, -1]], [[3, 3, 1], [1, 2, 2]]]
)
@pytest.mark.parametrize("task", ["classification", "multi-label"])
def test_vectors_of_other_numbers_are_refused(task: Task, cells: list[Any]) -> None:
    with pytest.raises(DataError, match=r"^line 2: column 'label' holds .* each is 0 or 1, so"):
        parse(cells, task)


def test_lists_of_names_and_of_indices_are_no_vectors() -> None:
    assert parse([["a", "b"], ["b"], []])[0] == [("a", "b"), ("b",), ()]
    assert parse([[0, 1], [1], [2]], labels=["x", "y", "z"])[0] == [("x", "y"), ("y",), ("z",)]


@pytest.mark.parametrize("other", [[1, 0, 0, 1], [2], ["toxic"], "toxic"])
def test_a_column_that_is_vectors_in_part_is_refused(other: list[Any]) -> None:
    with pytest.raises(DataError, match=r"line 2: column 'label' holds \[1, 0, 0\].* line 3 holds"):
        parse([[1, 0, 0], other])


def test_vectors_of_another_length_than_the_classes_are_refused() -> None:
    with pytest.raises(DataError, match=r"vectors of 3 numbers.* data.labels names 2 classes"):
        parse([[1, 0, 0], [0, 1, 0]], labels=["a", "b"])


def test_columns_of_0_and_1_are_the_classes(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(
        "text,toxic,obscene,threat\na film,0,1,0\na plot,1,1,0\na tale,0,0,0\n"
        "an act,1,,0\na joke,True,False,1.0\na song,-1,-1,-1\n"
    )
    data = DataConfig(source=str(path), label=("toxic", "obscene", "threat"))
    rows, skips = read_source(str(path), data), SkipCounter("line")
    labels = labelling.parse_cells(rows.labels, rows.numbers, "multi-label", data, skips)
    assert labels == [("obscene",), ("toxic", "obscene"), (), None, ("toxic", "threat"), None]
    assert [(each.reason, each.first) for each in skips.list_reasons()] == [
        ("no label in column 'obscene'", "line 5"),
        ("no label in column 'toxic'", "line 7"),
    ]


def test_columns_of_other_numbers_are_refused() -> None:
    names = ["toxic", "threat"]
    rows = [("0", "0"), ("0.166", "0"), ("0.2", "1")]
    with pytest.raises(DataError, match=r"line 3: toxic, threat = \('0\.166', '0'\).* 2 of 3 rows"):
        parse(rows, label=names)
    labels, skips, _ = parse([("0", "1")] * 200 + [("?", "0")], label=names)
    assert labels[0] == ("threat",) and labels[-1] is None
    assert skips.list_reasons()[0].reason == "neither 0 nor 1 in a label column"


def test_a_column_has_the_form_of_a_class_name() -> None:
    names = ("cafe\u0301", "bar ")
    labels, *_ = parse([("1", "1")], label=names)
    assert labels == [labelling.class_names([], "multi-label", names)]


def test_columns_of_a_classification_hold_one_1() -> None:
    labels, skips, _ = parse(
        [("1", "0"), ("0", "1"), ("0", "0")], "classification", label=["a", "b"]
    )
    assert labels == [("a",), ("b",), None]
    assert skips.list_reasons()[0].reason == "no 1 among the classes"
    with pytest.raises(DataError, match=r"line 3: a, b = \('1', '1'\): several 1s"):
        parse([("1", "0"), ("1", "1")], "classification", label=["a", "b"])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("['a', 'b']", ["a", "b"]),
        ('["a", "b"]', ["a", "b"]),
        ("('a',)", ["a"]),
        ("['a' 'b']", ["a", "b"]),
        ("['a'\n 'it\\'s']", ["a", "it's"]),
        ("['a', 'b' 'c']", None),
        ("[2 0 11]", [2, 0, 11]),
        ("[0 1 ... 1 0]", None),
        ("{'b', 'a'}", ["a", "b"]),
        ("['\\d']", ["\\d"]),
        ("(a) of two", None),
        ("[a, b]", None),
        ("[" * 200_000, None),
        ("__import__('os')", None),
    ],
)
def test_lists_in_texts(text: str, found: list[str] | None) -> None:
    assert parse_list(text) == found


def test_python_lists_are_labels() -> None:
    labels, skips, _ = parse(["['a', 'b']", "['b']", "[]", "['a' 'b', 'c']"])
    assert labels == [("a", "b"), ("b",), (), None]
    assert skips.list_reasons()[0].reason == "label is no list of JSON or Python"


def test_lists_are_no_classes() -> None:
    labels, skips, _ = parse(["a", "['a', 'b']", ["a"], "[18, 35]"], "classification")
    assert labels == [("a",), None, None, ("[18, 35]",)]
    assert skips.list_reasons()[0].reason == "label is a list (task: multi-label?)"
    named, *_ = parse(["['a']", "b"], "classification", labels=["['a']", "b"])
    assert named[0] == ("['a']",)


@pytest.mark.parametrize("task", ["classification", "multi-label"])
def test_objects_are_no_classes(task: Task) -> None:
    labels, skips, _ = parse([{"a": 1}, "b"], task)
    assert labels == [None, ("b",)]
    assert "data.label=[label.a, label.b]" in skips.list_reasons()[0].reason


def test_another_separator_is_named() -> None:
    cells = ["sport, politics", "sport", "politics, art", "art"]
    with pytest.raises(DataError, match=r"set data\.label_separator=','"):
        parse(cells)
    assert parse(cells, label_separator=",")[0][0] == ("sport", "politics")
    assert parse(cells, label_separator=" , ".strip())[0][0] == ("sport", "politics")
    with pytest.raises(DataError, match=r"set data\.label_separator=';'"):
        parse(["a; b", "b; c", "a; c"])
    assert parse(["Paris, France", "Rome, Italy"])[0] == [("Paris, France",), ("Rome, Italy",)]
    assert "label_separator=','" in parse(cells, "classification")[2][0]


@pytest.mark.parametrize(
    ("task", "cell", "said"),
    [
        ("multi-label", "a; b", r"its parts are: set data\.label_separator=';'"),
        ("classification", "a, b", r"set task=multi-label and data\.label_separator=','"),
        ("classification", "A", r"write it 'a' as in data\.labels"),
    ],
)
def test_an_unknown_label_says_what_it_may_be(task: Task, cell: str, said: str) -> None:
    (label,), *_ = parse([cell], task, labels=["a", "b"])
    assert label is not None
    with pytest.raises(DataError, match=said):
        labelling.build_targets([label], task, ("a", "b"), str)


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
    assert parse(["none", "a"], "classification")[0] == [("none",), ("a",)]


def test_what_may_be_a_class_and_is_read_as_missing_is_noted() -> None:
    notes = parse(["None", "None", "hate", "offensive"], "classification")[2]
    assert notes == (
        "2 of 4 rows have no label but 'None'; where that is a class, name all classes in "
        "data.labels, or set data.missing=[]",
    )
    assert not parse(["None", *["a", "b"] * 20], "classification")[2]


def test_missing_items_of_a_list_are_no_classes() -> None:
    labels, skips, _ = parse([["nan", "b"], "a|N/A", ["nan"], [], [None]])
    assert labels == [("b",), ("a",), None, (), ()]
    assert [each.reason for each in skips.list_reasons()] == ["label 'nan' (data.missing)"]


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
        "labels 'Positive', 'positive' differ in case, blanks or hyphens only: one class?",
        "label 'negativ' (1 row) is nearly 'negative': one class?",
    )


@pytest.mark.parametrize(
    ("frequent", "rare", "noted"),
    [
        ("neg", "negg", True),
        ("spam", "spam\u00a0 mail", False),
        ("very good", "very\u00a0good", True),
        ("sci-fi", "Sci_Fi", True),
        ("important", "unimportant", False),
        ("1", "-1", False),
        ("male", "female", False),
        ("class 1", "class 2", False),
    ],
)
def test_names_that_may_be_one(frequent: str, rare: str, noted: bool) -> None:
    notes = parse([*[frequent] * 10, rare, *["other"] * 5], "classification")[2]
    assert [("one class?" in note) for note in notes] == [True] * noted


def test_a_class_named_twice_is_refused() -> None:
    with pytest.raises(DataError, match="'a' twice"):
        labelling.class_names([], "classification", ("a", "b", "a "))
