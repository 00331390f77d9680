"""A bag of words learns what words tell, and whatever rows there are, no run fails for it."""

from pathlib import Path

import numpy as np
import pytest

from tests.support.tickets import ticket_recipe, write_tickets
from trainers.config.recipe import Task
from trainers.data.corpus import Corpus, SplitRows, gather_corpus
from trainers.data.rows.source_rows import CodedLabels
from trainers.evaluation import baseline
from trainers.evaluation.baseline import Baseline, fit_baselines
from trainers.evaluation.intervals import Answers, compute_figures


def fit(tmp_path: Path, task: Task, rows: int = 150) -> tuple[Baseline, np.ndarray]:
    """The baselines of the tickets, and the targets of their test rows."""
    path = write_tickets(tmp_path / "tickets.csv", task, rows)
    corpus = gather_corpus(ticket_recipe(path, tmp_path, task), str)
    targets = corpus.build_targets("test")
    return fit_baselines(corpus, task, np.arange(len(targets))), targets


def corpus_of(train: list[tuple[str, str]], test: list[tuple[str, str]]) -> Corpus:
    names = tuple(sorted({label for _, label in train + test}))
    parts = {"train": train, "validation": [], "test": test}
    values, nothing = [(name,) for name in names], np.empty(0, dtype=np.int64)
    splits = {
        part: SplitRows(
            "line",
            [text for text, _ in rows],
            CodedLabels(values, np.array([names.index(label) for _, label in rows], np.int32)),
            nothing,
            nothing,
        )
        for part, rows in parts.items()
    }
    return Corpus("classification", splits, names, 0, (), 0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("task", "metric", "words", "simple"),
    [
        ("classification", "f1", 0.95, 0.30),
        ("multi-label", "f1", 0.9, 0.25),
        ("regression", "r2", 0.5, 0.05),
    ],
)
def test_words_beat_the_commonest_answer(
    tmp_path: Path, task: Task, metric: str, words: float, simple: float
) -> None:
    found, targets = fit(tmp_path, task)
    assert compute_figures(Answers(task, found.words, targets))[metric] > words
    assert compute_figures(Answers(task, found.majority, targets))[metric] < simple
    assert found.name == f"TF-IDF + {'ridge' if task == 'regression' else 'logistic regression'}"
    assert not found.reason and found.seconds > 0
    assert found.words.dtype == np.float32 and len(found.words) == len(targets)


def test_the_same_rows_give_the_same_answers(tmp_path: Path) -> None:
    one, _ = fit(tmp_path, "classification")
    other, _ = fit(tmp_path, "classification")
    assert np.array_equal(one.words, other.words)


def test_of_many_rows_a_selection_is_fitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, targets = fit(tmp_path, "classification", 300)
    monkeypatch.setattr(baseline, "MAX_TRAINING_ROWS", 60)
    some, _ = fit(tmp_path, "classification", 300)
    assert some.train_rows == 60 < whole.train_rows
    assert compute_figures(Answers("classification", some.words, targets))["f1"] > 0.8


def test_texts_without_words_have_a_reason() -> None:
    rows = [("a", "x"), ("b", "y")] * 5
    found = fit_baselines(corpus_of(rows, rows[:2]), "classification", np.arange(2))
    assert found.name == "" and "empty vocabulary" in found.reason
    assert found.majority.shape == (2, 2) and len(found.words) == 0


def test_too_many_labels_have_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baseline, "MAX_LABELS", 1)
    rows = [("good film", "x"), ("bad film", "y")] * 5
    found = fit_baselines(corpus_of(rows, rows[:2]), "classification", np.arange(2))
    assert found.reason == "it is fitted for at most 1 labels, and there are 2"


def test_numbers_are_no_words() -> None:
    rows = [("1.5", "x"), ("2.5", "y")] * 5
    found = fit_baselines(corpus_of(rows, rows[:2]), "classification", np.arange(2), True)
    assert (found.name, found.reason) == ("", "the texts are numbers")


def test_a_class_of_one_row_and_one_that_is_only_tested() -> None:
    train = [("good film", "x"), ("bad film", "y")] * 6 + [("odd film", "rare")]
    test = [("good film", "x"), ("bad film", "y"), ("new film", "unseen")]
    found = fit_baselines(corpus_of(train, test), "classification", np.arange(3))
    assert found.words.shape == (3, 4)
    assert found.words[:2].argmax(axis=1).tolist() == [2, 3]  # of rare, unseen, x, y
    assert (found.words[:, 1] == -30).all()


def test_a_label_that_all_rows_have(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    lines = [
        f"word{row} {'good' if row % 2 else 'bad'},all{'|odd' * (row % 2)}" for row in range(60)
    ]
    path.write_text("\n".join(["text,label", *lines]) + "\n")
    corpus = gather_corpus(ticket_recipe(path, tmp_path, "multi-label"), str)
    targets = corpus.build_targets("test")
    found = fit_baselines(corpus, "multi-label", np.arange(len(targets)))
    assert found.name and np.isfinite(found.words).all()
    assert compute_figures(Answers("multi-label", found.words, targets))["f1"] > 0.9
