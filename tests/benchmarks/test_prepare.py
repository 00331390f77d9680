"""The benchmark of preparing data measures what it says, on a few rows."""

import json
import sys
from pathlib import Path

import pytest

from tests.support.paths import BENCHMARKS

sys.path.insert(0, str(BENCHMARKS))

import prepare


@pytest.mark.parametrize("task", prepare.TASKS)
def test_rows_have_distinct_texts_and_labels_of_the_task(tmp_path: Path, task: str) -> None:
    path = tmp_path / "rows.jsonl"
    prepare.write_rows(path, task, 50)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len({row["text"] for row in rows}) == 50
    kind = {"regression": float, "multi-label": list}.get(task, str)
    assert {type(row["label"]) for row in rows} == {kind}


def test_a_child_prepares_its_own_rows(tmp_path: Path) -> None:
    record = prepare.measure_in_child("classification", 300, tmp_path)
    assert record["rows"] == 300 and record["tokens"] > 240 * 20
    assert 0 < record["libraries_mib"] <= record["peak_mib"]
    assert 0 < record["reading_seconds"] < record["seconds"]
    assert record["rows_per_second"] == pytest.approx(300 / record["seconds"])
    assert list(tmp_path.iterdir()) == []


def test_growth_is_from_one_size_of_a_task_to_the_next() -> None:
    records = [
        {"task": "classification", "rows": rows, "peak_mib": 300 + rows / 1024 * 100 / 1024}
        for rows in (1000, 5000, 25_000)
    ] + [{"task": "regression", "rows": 9000, "peak_mib": 1.0}]
    prepare.add_growth(records)
    assert [record.get("bytes_per_row") for record in records] == [
        None,
        pytest.approx(100),
        pytest.approx(100),
        None,
    ]
