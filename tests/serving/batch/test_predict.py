"""Rows with their answers: the same rows in the same order, whatever the format and the window."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from cluster.errors import BerthaError
from serving.batch.answers import AnswerError
from serving.batch.outputs import OutputError
from serving.batch.predict import Summary, iter_windows, predict_files
from serving.engine.engine import Engine
from serving.protocols.labels import choose_labels
from tests.serving.batch.conftest import MakeEngine
from tests.support.blank_texts import BLANK, MARKUP_ONLY, VISIBLE
from trainers.data.files import DataError
from trainers.storage.store import open_store

TEXTS = ["a warm funny film", "dull", "a dull, long film " * 3, "warm warm warm", "film", "a film"]


def write_csv(path: Path, texts: list[str], column: str = "text") -> str:
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", column, "note"])
        writer.writerows([number, text, "ä|ö"] for number, text in enumerate(texts))
    return str(path)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def expected(engine: Engine, texts: list[str]) -> list[Any]:
    """Each text by itself."""
    return [engine.predict([text])[0] for text in texts]


@pytest.fixture(scope="module")
def engine(engine_of: MakeEngine) -> Engine:
    return engine_of("classification")


class TestRows:
    def test_they_keep_their_order_and_columns(self, engine: Engine, tmp_path: Path) -> None:
        source = write_csv(tmp_path / "rows.csv", TEXTS)
        summary = predict_files(engine, [source], str(tmp_path / "out.csv"))
        rows = read_csv(tmp_path / "out.csv")
        given = [{key: row[key] for key in ("id", "text", "note")} for row in rows]
        assert given == read_csv(Path(source))
        assert summary.rows == len(TEXTS)
        for row, answer in zip(rows, expected(engine, TEXTS), strict=True):
            assert (
                row["label"]
                == choose_labels(answer.scores, engine.card.labels, "classification", {})[0]
            )
            scores = [float(row[f"probability_{label}"]) for label in engine.card.labels]
            assert scores == pytest.approx(answer.scores, abs=1e-6)

    def test_windows_change_nothing(
        self, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source = write_csv(tmp_path / "rows.csv", TEXTS * 5)
        predict_files(engine, [source], str(tmp_path / "whole.csv"))
        monkeypatch.setattr("serving.batch.predict.iter_windows", _windows_of_four)
        predict_files(engine, [source], str(tmp_path / "cut.csv"))
        whole, cut = (read_csv(tmp_path / name) for name in ("whole.csv", "cut.csv"))
        assert [row["id"] for row in cut] == [row["id"] for row in whole]
        ours, theirs = (
            [float(row["probability_positive"]) for row in each] for each in (whole, cut)
        )
        assert ours == pytest.approx(theirs, abs=1e-6)

    def test_one_without_text_has_an_empty_answer(self, engine: Engine, tmp_path: Path) -> None:
        source = write_csv(tmp_path / "rows.csv", ["film", "", "  ", "<br>", "dull"])
        summary = predict_files(engine, [source], str(tmp_path / "out.csv"))
        rows = read_csv(tmp_path / "out.csv")
        assert [bool(row["label"]) for row in rows] == [True, False, False, False, True]
        assert rows[1]["probability_positive"] == ""
        assert (summary.rows, summary.empty) == (5, 3)
        assert summary.describe(16) == ["3 without text: their answers are empty"]

    def test_those_that_serving_refuses_as_empty_are_those_without_text(
        self, engine: Engine, tmp_path: Path
    ) -> None:
        path = tmp_path / "rows.jsonl"
        texts = [*BLANK, *MARKUP_ONLY, *VISIBLE]
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        predict_files(engine, [str(path)], str(tmp_path / "out.jsonl"))
        rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_bytes().splitlines()]
        answered = [row["text"] for row in rows if row["label"] is not None]
        assert answered == list(VISIBLE)

    def test_a_file_of_nothing_but_a_header_is_answered_by_one(
        self, engine: Engine, tmp_path: Path
    ) -> None:
        source = write_csv(tmp_path / "rows.csv", [])
        assert predict_files(engine, [source], str(tmp_path / "out.csv")).rows == 0
        header = "id,text,note,label,probability_negative,probability_positive\n"
        assert (tmp_path / "out.csv").read_text() == header

    def test_those_that_cannot_be_read_are_named(self, engine: Engine, tmp_path: Path) -> None:
        path = tmp_path / "rows.csv"
        path.write_text("id,text\n1,film\n2,dull,more\n3,warm\n")
        summary = predict_files(engine, [str(path)], str(tmp_path / "out.csv"))
        assert [row["id"] for row in read_csv(tmp_path / "out.csv")] == ["1", "3"]
        assert summary.skipped == (
            f"{path}: 1 row left out: wrong number of fields (first: line 3)",
        )

    def test_long_ones_are_counted(self, engine: Engine, tmp_path: Path) -> None:
        source = write_csv(tmp_path / "rows.csv", ["film", "film " * 40])
        summary = predict_files(engine, [source], str(tmp_path / "out.csv"))
        assert summary.describe(16) == ["1 longer than 16 tokens: the rest was not read (row 2)"]

    def test_several_columns_are_joined_as_in_training(
        self, engine_of: MakeEngine, tmp_path: Path
    ) -> None:
        engine = engine_of("classification")
        (tmp_path / "rows.csv").write_text("title,body\na warm,film\n,dull\n")
        predict_files(
            engine, [str(tmp_path / "rows.csv")], str(tmp_path / "out.csv"), text=["title", "body"]
        )
        found = [float(row["probability_positive"]) for row in read_csv(tmp_path / "out.csv")]
        wanted = [answer.scores[1] for answer in expected(engine, ["a warm\nfilm", "dull"])]
        assert found == pytest.approx(wanted, abs=1e-6)


def _windows_of_four(rows: Any, places: Any) -> Iterator[Any]:
    return iter_windows(rows, places, num_rows=4)


class TestFormats:
    @pytest.mark.parametrize("end", [".csv", ".tsv", ".jsonl", ".csv.gz", ".jsonl.xz", ".parquet"])
    def test_each_is_read_back_as_it_was_written(
        self, end: str, engine: Engine, tmp_path: Path
    ) -> None:
        source = write_csv(tmp_path / "rows.csv", TEXTS)
        first, second = tmp_path / f"first{end}", tmp_path / "second.csv"
        predict_files(engine, [source], str(first))
        predict_files(engine, [str(first)], str(second), prefix="again_")
        for row, text in zip(read_csv(second), TEXTS, strict=True):
            assert (row["text"], row["note"]) == (text, "ä|ö")
            assert row["label"] == row["again_label"] != ""

    def test_types_of_json_and_parquet_survive(self, engine: Engine, tmp_path: Path) -> None:
        rows = [
            {"text": "film", "stars": 5, "price": 1.5, "seen": True, "tags": ["a", "b"]},
            {"text": "dull", "stars": None, "price": 2, "seen": False, "tags": []},
        ]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        predict_files(engine, [str(tmp_path / "rows.jsonl")], str(tmp_path / "a.parquet"))
        predict_files(
            engine, [str(tmp_path / "a.parquet")], str(tmp_path / "b.jsonl"), prefix="again_"
        )
        table = pyarrow.parquet.read_table(tmp_path / "a.parquet")
        assert table.column("stars").to_pylist() == [5, None]
        assert table.column("price").to_pylist() == [1.5, 2.0]
        assert table.column("tags").to_pylist() == ['["a", "b"]', "[]"]
        found = [json.loads(line) for line in (tmp_path / "b.jsonl").read_text().splitlines()]
        assert [row["seen"] for row in found] == [True, False]
        assert found[0]["probability_positive"] == found[0]["again_probability_positive"]

    def test_half_a_surrogate_pair_does_not_end_it(self, engine: Engine, tmp_path: Path) -> None:
        (tmp_path / "rows.jsonl").write_text('{"text": "film \\ud83d"}\n')
        for name in ("out.jsonl", "out.csv", "out.parquet"):
            assert predict_files(engine, [str(tmp_path / "rows.jsonl")], str(tmp_path / name)).rows
        assert json.loads((tmp_path / "out.jsonl").read_text())["text"] == "film \ud83d"

    def test_a_directory_is_its_tables_in_order(self, engine: Engine, tmp_path: Path) -> None:
        folder = tmp_path / "parts"
        (folder / "sub").mkdir(parents=True)
        write_csv(folder / "a.csv", ["film"])
        write_csv(folder / "sub" / "b.csv", ["dull"])
        (folder / "_SUCCESS.csv").write_text("")
        (folder / "notes.txt").write_text("no table")
        predict_files(engine, [str(folder)], str(tmp_path / "out.csv"))
        assert [row["text"] for row in read_csv(tmp_path / "out.csv")] == ["film", "dull"]

    def test_a_store_is_read_and_written(self, engine: Engine, tmp_path: Path) -> None:
        pytest.importorskip("s3fs")
        from tests.support.s3 import emulated_s3

        source = write_csv(tmp_path / "rows.csv", TEXTS)
        with emulated_s3("tables") as bucket:
            store = open_store(bucket)
            store.put_file(Path(source), "in/rows.csv")
            predict_files(engine, [f"{bucket}/in"], f"{bucket}/out.jsonl")
            lines = store.read_bytes("out.jsonl").decode().splitlines()
            assert [json.loads(line)["text"] for line in lines] == TEXTS
            with pytest.raises(OutputError, match="exists; add --overwrite"):
                predict_files(engine, [f"{bucket}/in"], f"{bucket}/out.jsonl")


class TestTasks:
    def test_several_labels_are_joined_or_a_list(
        self, engine_of: MakeEngine, tmp_path: Path
    ) -> None:
        engine = engine_of("multi-label", thresholds={"plot": 0.0, "cast": 1.0, "music": 0.0})
        source = write_csv(tmp_path / "rows.csv", ["film", ""])
        predict_files(engine, [source], str(tmp_path / "out.csv"))
        predict_files(engine, [source], str(tmp_path / "out.parquet"))
        assert [row["label"] for row in read_csv(tmp_path / "out.csv")] == ["plot|music", ""]
        column = pyarrow.parquet.read_table(tmp_path / "out.parquet").column("label")
        assert column.to_pylist() == [["plot", "music"], None]

    def test_a_threshold_decides_between_two(self, engine_of: MakeEngine, tmp_path: Path) -> None:
        source = write_csv(tmp_path / "rows.csv", TEXTS)
        for share, label in ((0.0, "positive"), (1.0, "negative")):
            engine = engine_of("classification", thresholds={"positive": share})
            out = tmp_path / f"{label}.csv"
            predict_files(engine, [source], str(out))
            assert {row["label"] for row in read_csv(out)} == {label}

    def test_a_regression_has_a_score(self, engine_of: MakeEngine, tmp_path: Path) -> None:
        engine = engine_of("regression")
        predict_files(engine, [write_csv(tmp_path / "r.csv", TEXTS)], str(tmp_path / "out.csv"))
        rows = read_csv(tmp_path / "out.csv")
        assert list(rows[0]) == ["id", "text", "note", "score"]
        wanted = [answer.scores[0] for answer in expected(engine, TEXTS)]
        assert [float(row["score"]) for row in rows] == pytest.approx(wanted, abs=1e-5)

    def test_an_embedder_has_a_vector(self, engine_of: MakeEngine, tmp_path: Path) -> None:
        engine = engine_of("embedding")
        source = write_csv(tmp_path / "rows.csv", TEXTS)
        predict_files(engine, [source], str(tmp_path / "out.csv"))
        predict_files(engine, [source], str(tmp_path / "out.parquet"))
        wanted = np.array(expected(engine, TEXTS))
        flat = np.array([json.loads(row["embedding"]) for row in read_csv(tmp_path / "out.csv")])
        nested = pyarrow.parquet.read_table(tmp_path / "out.parquet").column("embedding")
        assert flat == pytest.approx(wanted, abs=1e-5)
        assert np.array(nested.to_pylist()) == pytest.approx(wanted, abs=1e-5)

    def test_a_masked_language_model_is_refused(
        self, engine_of: MakeEngine, tmp_path: Path
    ) -> None:
        source = write_csv(tmp_path / "rows.csv", TEXTS)
        with pytest.raises(AnswerError, match="fills masks"):
            predict_files(engine_of("masked-lm"), [source], str(tmp_path / "out.csv"))


class TestRefusals:
    """Each before a text is computed, and with nothing written."""

    @pytest.fixture
    def source(self, tmp_path: Path) -> str:
        return write_csv(tmp_path / "rows.csv", TEXTS)

    def test_an_output_that_exists(self, engine: Engine, source: str, tmp_path: Path) -> None:
        out = tmp_path / "out.csv"
        out.write_text("mine")
        with pytest.raises(OutputError, match=r"out\.csv: exists; add --overwrite"):
            predict_files(engine, [source], str(out))
        assert out.read_text() == "mine"
        assert predict_files(engine, [source], str(out), overwrite=True).rows == len(TEXTS)
        assert len(read_csv(out)) == len(TEXTS)

    def test_an_output_that_is_read(self, engine: Engine, source: str) -> None:
        with pytest.raises(OutputError, match="is read as well"):
            predict_files(engine, [source], source, overwrite=True)

    @pytest.mark.parametrize("name", ["out.txt", "out", "out.parquet.gz"])
    def test_an_output_of_no_format(
        self, name: str, engine: Engine, source: str, tmp_path: Path
    ) -> None:
        with pytest.raises(OutputError, match=r"end it in \.csv"):
            predict_files(engine, [source], str(tmp_path / name))

    def test_a_column_that_is_there(self, engine: Engine, tmp_path: Path) -> None:
        (tmp_path / "rows.csv").write_text("text,label\nfilm,positive\n")
        source, out = str(tmp_path / "rows.csv"), str(tmp_path / "out.csv")
        with pytest.raises(AnswerError, match=r"column 'label' already; add --prefix answer_"):
            predict_files(engine, [source], out)
        predict_files(engine, [source], out, prefix="answer_")
        assert list(read_csv(tmp_path / "out.csv")[0])[:3] == ["text", "label", "answer_label"]

    def test_a_column_that_is_not_there(self, engine: Engine, tmp_path: Path) -> None:
        source = write_csv(tmp_path / "rows.csv", TEXTS, column="body")
        with pytest.raises(DataError, match=r"no column 'text'; it has 'body'.*set --text"):
            predict_files(engine, [source], str(tmp_path / "out.csv"))

    def test_files_with_different_columns(self, engine: Engine, tmp_path: Path) -> None:
        first = write_csv(tmp_path / "a.csv", TEXTS)
        second = write_csv(tmp_path / "b.csv", TEXTS, column="body")
        with pytest.raises(DataError, match=r"b\.csv: column 'body' is not in all files"):
            predict_files(engine, [first, second], str(tmp_path / "out.csv"))

    def test_what_is_no_table(self, engine: Engine, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("film")
        for path in (tmp_path / "notes.txt", tmp_path):
            with pytest.raises(DataError, match=r"ends in \.csv"):
                predict_files(engine, [str(path)], str(tmp_path / "out.csv"))

    def test_one_that_fails_halfway_leaves_nothing(
        self, engine: Engine, source: str, tmp_path: Path
    ) -> None:
        folder = tmp_path / "out"

        def fail(done: int, total: int) -> None:
            raise BerthaError("stop")

        with pytest.raises(BerthaError, match="stop"):
            predict_files(engine, [source], str(folder / "out.csv"), on_progress=fail)
        assert list(folder.iterdir()) == []


def test_progress_reaches_the_number_of_rows(engine: Engine, tmp_path: Path) -> None:
    said: list[tuple[int, int]] = []
    source = write_csv(tmp_path / "rows.csv", [*TEXTS, ""])
    predict_files(
        engine,
        [source],
        str(tmp_path / "out.csv"),
        on_progress=lambda done, total: said.append((done, total)),
    )
    assert said[-1] == (7, 7)
    assert [done for done, _ in said] == sorted(done for done, _ in said)


def test_a_window_ends_at_its_rows_or_its_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("a" * 10,)] * 7
    assert [len(each.rows) for each in iter_windows(rows, [0], num_rows=3)] == [3, 3, 1]
    monkeypatch.setattr("serving.batch.predict.WINDOW_CHARACTERS", 20)
    assert [len(each.rows) for each in iter_windows(rows, [0])] == [2, 2, 2, 1]


def test_no_more_than_a_window_is_read_ahead() -> None:
    read: list[int] = []
    rows = ((read.append(number) or "film",) for number in range(100))
    windows = iter_windows(rows, [0], num_rows=8)
    assert len(next(windows).rows) == 8
    assert len(read) == 8


def test_a_summary_without_notes_says_nothing() -> None:
    assert Summary(5).describe(16) == []
