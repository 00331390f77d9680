"""Figures of labelled rows: as counted by hand, and refusals before anything is computed."""

import csv
import json
from pathlib import Path

import pytest

from serving.batch.evaluate import LabelledRowsError, evaluate_files
from serving.engine.engine import Engine
from serving.protocols.labels import choose_labels
from tests.serving.batch.conftest import MakeEngine
from trainers.data.files import DataError

TEXTS = ["a warm funny film", "dull", "a dull long film", "warm warm", "film", "a film", "long"]


def write_rows(path: Path, labels: list[str], texts: list[str] = TEXTS) -> str:
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "label"])
        writer.writerows(zip(texts, labels, strict=True))
    return str(path)


def answer(engine: Engine, text: str) -> tuple[str, ...]:
    scores = engine.predict([text])[0].scores
    return choose_labels(scores, engine.card.labels, engine.card.task, engine.card.thresholds)


@pytest.fixture(scope="module")
def engine(engine_of: MakeEngine) -> Engine:
    return engine_of("classification")


def test_right_answers_are_counted(engine: Engine, tmp_path: Path) -> None:
    labels = ["positive", "negative", "negative", "positive", "negative", "positive", "positive"]
    found = evaluate_files(engine, [write_rows(tmp_path / "rows.csv", labels)])
    right = sum(answer(engine, text) == (label,) for text, label in zip(TEXTS, labels, strict=True))
    accuracy = found.figures["accuracy"]
    assert accuracy.value == pytest.approx(right / 7)
    assert accuracy.low < accuracy.value < accuracy.high
    assert found.rows == 7 and found.skipped == ()
    assert {name: row["support"] for name, row in found.per_class.items()} == {
        "negative": 3,
        "positive": 4,
    }
    assert sum(map(sum, found.confusion)) == 7
    assert json.loads(json.dumps(found.to_json()))["figures"]["f1"]["value"] == pytest.approx(
        sum(row["f1"] for row in found.per_class.values()) / 2
    )


@pytest.mark.parametrize(("share", "label"), [(0.001, "positive"), (0.999, "negative")])
def test_the_threshold_of_the_card_decides(
    share: float, label: str, engine_of: MakeEngine, tmp_path: Path
) -> None:
    engine = engine_of("classification", thresholds={"positive": share})
    found = evaluate_files(engine, [write_rows(tmp_path / "rows.csv", [label] * 7)])
    assert found.figures["accuracy"].value == 1.0
    assert found.per_class[label]["recall"] == 1.0


def test_rows_without_text_or_label_are_left_out_and_counted(
    engine: Engine, tmp_path: Path
) -> None:
    source = write_rows(tmp_path / "rows.csv", ["positive", "", "negative"], ["film", "dull", ""])
    found = evaluate_files(engine, [source])
    assert found.rows == 1
    assert found.skipped == (
        "1 row left out: no label (first: row 2)",
        "1 row left out: no text",
    )


def test_labels_that_the_model_does_not_know_are_named_at_once(
    engine: Engine, tmp_path: Path
) -> None:
    labels = ["good", "bad", "good", "positive", "good", "bad", "so so"]
    source = write_rows(tmp_path / "rows.csv", labels)

    def fail(done: int, total: int) -> None:
        raise AssertionError("computed")

    with pytest.raises(
        LabelledRowsError, match=r"'good' \(3\), 'bad' \(2\), 'so so' \(1\); it know"
    ):
        evaluate_files(engine, [source], on_progress=fail)


def test_the_columns_can_be_named(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("body,truth\nfilm,positive\n")
    source = [str(tmp_path / "rows.csv")]
    assert evaluate_files(engine, source, text=["body"], label="truth").rows == 1
    with pytest.raises(DataError, match=r"no column 'label'.*set --label"):
        evaluate_files(engine, source, text=["body"])


def test_wrong_answers_are_written_the_worst_first(engine: Engine, tmp_path: Path) -> None:
    wrong = {"positive": "negative", "negative": "positive"}
    labels = [wrong[answer(engine, text)[0]] for text in TEXTS]
    labels[3] = wrong[labels[3]]
    source, out = write_rows(tmp_path / "rows.csv", labels), tmp_path / "errors.csv"
    evaluate_files(engine, [source], out=str(out))
    with out.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["text"] for row in rows} == {*TEXTS} - {TEXTS[3]}
    assert all(row["answer"] == wrong[row["label"]] for row in rows)
    certainty = [float(row["confidence"]) for row in rows]
    assert certainty == sorted(certainty, reverse=True)


def test_several_labels(engine_of: MakeEngine, tmp_path: Path) -> None:
    engine = engine_of("multi-label", thresholds={"plot": 0.001, "cast": 0.999, "music": 0.001})
    source = write_rows(tmp_path / "rows.csv", ["plot|music"] * 6 + ["cast"])
    out = tmp_path / "errors.jsonl"
    found = evaluate_files(engine, [source], out=str(out))
    assert found.figures["accuracy"].value == pytest.approx(6 / 7)
    assert found.per_class["plot"]["precision"] == pytest.approx(6 / 7)
    assert found.per_class["cast"]["recall"] == 0.0
    (row,) = [json.loads(line) for line in out.read_text().splitlines()]
    assert (row["text"], row["answer"]) == (TEXTS[6], "plot|music")


def test_a_regression_has_errors_in_its_unit(engine_of: MakeEngine, tmp_path: Path) -> None:
    engine = engine_of("regression")
    truth = [value.scores[0] + place for place, value in enumerate(engine.predict(TEXTS))]
    source, out = write_rows(tmp_path / "rows.csv", list(map(str, truth))), tmp_path / "errors.csv"
    found = evaluate_files(engine, [source], out=str(out))
    assert found.figures["mae"].value == pytest.approx(3.0, abs=1e-4)
    assert found.per_class == {} and found.confusion == []
    with out.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["text"] for row in rows[:2]] == [TEXTS[6], TEXTS[5]]
    assert float(rows[0]["error"]) == pytest.approx(-6.0, abs=1e-4)


@pytest.mark.parametrize("task", ["masked-lm", "embedding"])
def test_what_has_no_labels_is_refused(task: str, engine_of: MakeEngine, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.csv", ["positive"] * 7)
    with pytest.raises(LabelledRowsError, match="has no labels to compare with"):
        evaluate_files(engine_of(task), [source])


def test_a_file_without_a_usable_row_says_so(engine: Engine, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.csv", ["", ""], ["film", "dull"])
    with pytest.raises(LabelledRowsError, match="no row has both a text and a label"):
        evaluate_files(engine, [source])


def test_a_class_of_the_bundle_that_is_called_none_is_no_missing_label(
    engine_of: MakeEngine, tmp_path: Path
) -> None:
    engine = engine_of("classification", labels=("None", "positive"))
    source = write_rows(tmp_path / "rows.csv", ["None", "positive", "null"] + ["positive"] * 4)
    found = evaluate_files(engine, [source])
    assert {name: row["support"] for name, row in found.per_class.items()} == {
        "None": 1,
        "positive": 5,
    }
    assert found.skipped == ("1 row left out: label 'null' (data.missing) (first: row 3)",)
