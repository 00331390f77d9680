"""Files with labels as people keep them, from the file to the targets of a corpus."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from trainers.config.recipe import parse_recipe
from trainers.data.corpus import Corpus, gather_corpus
from trainers.data.files import DataError

VECTORS = [[1, 0, 0], [0, 1, 0], [0, 0, 0], [1, 1, 0]]
TEXTS = ("a film", "a plot", "an act", "a song")


def write_rows(path: Path, labels: Sequence[Any]) -> str:
    """Write rows of a text and a label, as JSONL, Parquet or CSV."""
    texts = [f"{TEXTS[row % 4]} {row}" for row in range(len(labels))]
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pa.table({"text": texts, "label": list(labels)}), path)
    elif path.suffix == ".jsonl":
        rows = [{"text": t, "label": label} for t, label in zip(texts, labels, strict=True)]
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        lines = [f'{text},"{label}"' for text, label in zip(texts, labels, strict=True)]
        path.write_text("\n".join(["text,label", *lines]))
    return str(path)


def gather(source: str, task: str = "multi-label", **data: Any) -> Corpus:
    data = {"source": source, "validation": 0.0, "test": 0.0, **data}
    return gather_corpus(parse_recipe({"task": task, "model": {"name": "any"}, "data": data}), str)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet", "rows.csv"])
@pytest.mark.parametrize("kind", [int, float, bool])
def test_vectors_are_targets(tmp_path: Path, name: str, kind: type) -> None:
    rows = [[kind(item) for item in vector] for vector in VECTORS]
    source = write_rows(tmp_path / name, rows)
    corpus = gather(source)
    assert corpus.names == ("label_0", "label_1", "label_2")  # the last is of no row
    assert corpus.build_targets("train").tolist() == VECTORS
    named = gather(source, labels=["b", "a", "c"])
    assert named.names == ("b", "a", "c")
    assert named.build_targets("train").tolist() == VECTORS
    assert named.count_labels("train") == {"b": 2, "a": 2, "c": 0}


def test_a_refused_column_names_its_file(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", VECTORS)
    with pytest.raises(DataError, match=r"rows\.jsonl: line 4: label = \[1, 1, 0\]"):
        gather(source, task="classification")


def test_sources_with_vectors_of_other_lengths_are_refused(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", VECTORS)
    (tmp_path / "more").mkdir()
    for other, said in (([[0, 0, 1, 1], [1, 0, 0, 0]], "of 4 numbers"), (["a", "b"], "names")):
        test = write_rows(tmp_path / "more/test.jsonl", other)
        with pytest.raises(DataError, match=rf"vectors of 3 numbers and .*{said}; name the"):
            gather(source, test=test)
    same = write_rows(tmp_path / "more/test.jsonl", [[0, 0, 1]])
    assert gather(source, test=same).names == ("label_0", "label_1", "label_2")


def test_columns_are_targets(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(
        "comment_text,toxic,obscene,threat\n"
        + "\n".join(
            f"{text},{','.join(map(str, row))}" for text, row in zip(TEXTS, VECTORS, strict=True)
        )
    )
    corpus = gather(str(path), text="comment_text", label=["toxic", "obscene", "threat"])
    assert corpus.names == ("toxic", "obscene", "threat")
    assert corpus.build_targets("train").tolist() == VECTORS


def test_missing_labels_leave_whole_numbers_whole(tmp_path: Path) -> None:
    cells = ["nan", *["1.0", "0.0"] * 40, "", "N/A", "null", "1"]
    corpus = gather(write_rows(tmp_path / "rows.csv", cells), task="classification")
    assert corpus.names == ("0", "1")
    assert corpus.count_labels("train") == {"0": 40, "1": 41}
    assert {skip.reason: (skip.rows, skip.first) for skip in corpus.skipped} == {
        "label 'nan' (data.missing)": (1, "line 2"),
        "no label": (1, "line 83"),
        "label 'N/A' (data.missing)": (1, "line 84"),
        "label 'null' (data.missing)": (1, "line 85"),
    }


def test_texts_of_two_columns_are_said_to_be_no_pairs(tmp_path: Path) -> None:
    path = tmp_path / "nli.csv"
    path.write_text("premise,hypothesis,label\na film,a plot,same\nan act,a song,other\n")
    note = (
        "the columns premise, hypothesis are joined into one text, and nothing tells the model "
        "where one ends: this is no training on pairs"
    )
    assert gather(str(path), "classification", text=["premise", "hypothesis"]).notes == (note,)
    assert not gather(str(path), "classification", text="premise").notes
