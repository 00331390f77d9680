"""Labels as columns hold them, and the targets that a model learns."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from trainers.config.data_section import DataConfig
from trainers.data.files import DataError
from trainers.data.labels import (
    Label,
    build_targets,
    class_names,
    count_labels,
    parse_cells,
    parse_labels,
)
from trainers.data.rows.label_checks import check_label_column, check_training_labels
from trainers.data.rows.label_column import LabelColumn
from trainers.data.rows.skips import SkipCounter


def parse(
    values: list[Any], task: Any = "classification", named: tuple[str, ...] = (), **data: Any
) -> tuple[list[Label | None], dict[str, tuple[int, str]]]:
    """The labels of `values`, which stand in rows 10, 11 and so on, and what is skipped."""
    skips, numbers = SkipCounter("row"), list(range(10, 10 + len(values)))
    settings = DataConfig(source="x", **data)
    if task in ("classification", "multi-label"):
        column, codes = LabelColumn.from_cells(values, numbers, named)
        parsed = parse_labels(column, task, settings, skips)
        labels = [parsed.labels[code] for code in codes]
    else:
        labels = parse_cells(values, numbers, task, settings, skips)
    return labels, {skip.reason: (skip.rows, skip.first) for skip in skips.list_reasons()}


def test_a_column_has_each_distinct_cell_once_with_its_rows() -> None:
    cells = ["b", 1, "a", 1.0, "b", True, "1", [1], [1], None, "b"]
    column, codes = LabelColumn.from_cells(cells, range(10, 21))
    assert [repr(cell) for cell in column.values] == [
        "'b'", "1", "'a'", "1.0", "True", "'1'", "[1]", "None"
    ]  # fmt: skip
    assert column.counts.tolist() == [3, 1, 1, 1, 1, 1, 2, 1]
    assert column.numbers.tolist() == [10, 11, 12, 13, 15, 16, 17, 19]
    assert [repr(column.values[code]) for code in codes] == [repr(cell) for cell in cells]


def test_whole_numbers_lose_their_decimals_only_where_all_are_whole() -> None:
    assert parse([1.0, "2.00", -3])[0] == [("1",), ("2",), ("-3",)]
    assert parse([1.0, "2.5"])[0] == [("1.0",), ("2.5",)]
    assert parse(["1.0", "one"])[0] == [("1.0",), ("one",)]


def test_a_withheld_label_is_none_only_where_the_source_names_classes() -> None:
    named, skipped = parse([0, -1, 1, -1], named=("neg", "pos"))
    assert named == [("neg",), None, ("pos",), None]
    assert skipped == {"no label": (2, "row 11")}
    assert parse([0, -1, 1]) == ([("0",), ("-1",), ("1",)], {})


def test_indices_become_the_names_that_are_given_or_those_of_the_source() -> None:
    assert parse([1, 0], labels=["no", "yes"])[0] == [("yes",), ("no",)]
    assert parse(["1", "0"], labels=["1", "0"])[0] == [("1",), ("0",)], "they are the names"
    # All names of the source are given, in another order: the source knows which index is which.
    assert parse([1, 0], named=("neg", "pos"), labels=["pos", "neg"])[0] == [("pos",), ("neg",)]
    assert parse([1, 0], named=("neg", "pos"), labels=["bad", "good"])[0] == [("good",), ("bad",)]


def test_labels_of_one_cell_are_split_cleaned_and_counted_once() -> None:
    values = ["a| b |a|", '["b", null, "b"]', ["c", ""], "", "[a]", None]
    labels, skipped = parse(values, "multi-label")
    assert labels == [("a", "b"), ("b",), ("c",), (), None, None]
    assert skipped == {
        "label is no list of JSON or Python": (1, "row 14"),
        "no label": (1, "row 15"),
    }


def test_numbers_must_be_finite_in_single_precision() -> None:
    labels, skipped = parse(["1.5", True, "-3e38", "4e38", "x", " "], "regression")
    assert labels == [1.5, 1.0, -3e38, None, None, None]
    assert skipped == {"label is not a finite number": (2, "row 13"), "no label": (1, "row 15")}


def test_a_masked_language_model_reads_no_labels() -> None:
    assert parse([None, "x"], "masked-lm") == ([(), ()], {})
    assert build_targets([(), ()], "masked-lm", (), str).tolist() == [0, 0]


def test_classes_are_sorted_as_numbers_where_all_are() -> None:
    assert class_names([("10",), ("9",)], "classification", None) == ("9", "10")
    assert class_names([("10",), ("9",), ("a",)], "classification", None) == ("10", "9", "a")
    assert class_names([("b",), ("a",)], "classification", ("c", "b", "a")) == ("c", "b", "a")
    assert class_names([1.0], "regression", None) == ()


def test_there_must_be_something_to_tell_apart() -> None:
    with pytest.raises(DataError, match=r"label 'a'; a classifier needs two.* data\.label the"):
        check_training_labels([("a",), ("a",)], "classification")
    with pytest.raises(DataError, match=r"no training row has a label; is data\.label"):
        check_training_labels([(), ()], "multi-label")
    check_training_labels([("a",), ()], "multi-label")
    assert class_names([("a",), ()], "multi-label", None) == ("a",)


def test_targets_are_indices_or_one_column_a_class() -> None:
    indices = build_targets([("b",), ("a",)], "classification", ("a", "b"), str)
    assert indices.tolist() == [1, 0] and indices.dtype == np.int64
    hot = build_targets([("b", "a"), (), ("b",)], "multi-label", ("a", "b"), str)
    assert hot.tolist() == [[1, 1], [0, 0], [0, 1]] and hot.dtype == np.float32
    assert build_targets([0.5], "regression", (), str).dtype == np.float32
    counted = count_labels([("b", "a"), ("b",), ("d",)], np.array([1, 4, 0]), ("c", "b", "a"))
    assert counted == {"c": 0, "b": 5, "a": 1}


def test_an_unknown_label_names_its_row_and_twenty_classes_at_most() -> None:
    names = tuple(f"c{n}" for n in range(21))
    with pytest.raises(DataError) as raised:
        build_targets([("c0",), ("x" * 99,)], "classification", names, lambda row: f"line {row}")
    said = str(raised.value)
    assert said.startswith(f"line 1: label '{'x' * 60}' is not one of 'c0', ")
    assert "'c19', ...." in said and "c20" not in said
    assert said.endswith("fix the row, or name every class in data.labels")


def check(values: list[Any], task: Any, data: DataConfig, source: str) -> None:
    """Check a column whose cells have the labels `values`."""
    counts = Counter((value,) if isinstance(value, str) else value for value in values)
    check_label_column(list(counts), np.array(list(counts.values())), task, data, source)


@pytest.mark.parametrize(
    ("values", "asked"),
    [
        ([str(1000 + row) for row in range(60)], "a number to predict (then set task=regression)"),
        ([f"{row % 30}.5" for row in range(90)], "a number to predict (then set task=regression)"),
        ([f"ticket-{row}" for row in range(60)], "is it an id (then set data.label"),
        ([f"ticket-{row // 2 if row < 20 else row}" for row in range(60)], "is it an id"),
    ],
    ids=["whole numbers", "fractions", "ids", "ids that repeat"],
)
@pytest.mark.parametrize("task", ["classification", "multi-label"])
def test_a_column_of_other_values_in_each_row_is_asked_about(
    task: Any, values: list[str], asked: str
) -> None:
    data = DataConfig(source="x", label="price")
    with pytest.raises(DataError) as error:
        check(values, task, data, "x.csv")
    said = str(error.value)
    assert said.startswith(f"x.csv: column 'price' holds {len(set(values))} different values in ")
    assert asked in said


def test_columns_of_classes_are_not_asked_about() -> None:
    data = DataConfig(source="x")
    check([str(row % 5) for row in range(20)], "classification", data, "x")
    check(["a", "b", "c", "d"], "classification", data, "few rows")
    check([float(row) for row in range(50)], "regression", data, "numbers")
    vouched = DataConfig(source="x", labels=tuple(map(str, range(60))))
    check([str(row) for row in range(60)], "classification", vouched, "x")


def test_the_text_is_not_its_own_label() -> None:
    with pytest.raises(DataError, match=r"data\.label are the same column, 'body'"):
        check([], "classification", DataConfig(source="x", text="body", label="body"), "x")
