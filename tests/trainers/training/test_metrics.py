"""Metrics against scikit-learn, and exact however the rows are split."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn import metrics as oracle

from trainers.tracking import progress
from trainers.training.metrics import MAX_MATRIX, MetricAccumulator, list_confused_pairs

LABELS = ("a", "b", "c", "never")


def accumulate(
    task: str, num_labels: int, logits: torch.Tensor, targets: torch.Tensor
) -> MetricAccumulator:
    found = MetricAccumulator(task, num_labels)  # type: ignore[arg-type]
    for start in range(0, len(logits), 7):
        found.add_batch(logits[start : start + 7], targets[start : start + 7])
    return found


def test_classification() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(100, 4, generator=generator)
    logits[:, 3] -= 100  # never predicted
    targets = torch.randint(0, 3, (100,), generator=generator)  # and never true
    found = accumulate("classification", 4, logits, targets).compute_metrics(LABELS)
    said = logits.argmax(dim=1)
    kind = {"average": "macro", "zero_division": 0.0}  # over the labels that are there
    assert found["accuracy"] == pytest.approx(oracle.accuracy_score(targets, said))
    assert found["precision"] == pytest.approx(oracle.precision_score(targets, said, **kind))
    assert found["recall"] == pytest.approx(oracle.recall_score(targets, said, **kind))
    assert found["f1"] == pytest.approx(oracle.f1_score(targets, said, **kind))
    expected = oracle.confusion_matrix(targets, said, labels=range(4))
    assert found["confusion"] == expected.tolist()
    assert found["loss"] == pytest.approx(
        torch.nn.functional.cross_entropy(logits, targets).item(), rel=1e-6
    )
    assert found["per_class"]["b"]["support"] == int((targets == 1).sum())
    assert found["per_class"]["never"] == {"precision": 0, "recall": 0, "f1": 0, "support": 0}
    assert found["absent_labels"] == 1 and found["never_predicted"] == []


def test_multi_label() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(60, 4, generator=generator)
    targets = (torch.rand(60, 4, generator=generator) > 0.6).float()
    found = accumulate("multi-label", 4, logits, targets).compute_metrics(LABELS)
    said = logits > 0
    assert found["accuracy"] == pytest.approx(oracle.accuracy_score(targets.bool(), said))
    for name in ("precision", "recall", "f1"):
        score = getattr(oracle, f"{name}_score")
        expected = score(targets.bool(), said, average="macro", zero_division=0.0)
        assert found[name] == pytest.approx(expected)
    assert found["confusion"] == oracle.multilabel_confusion_matrix(targets.bool(), said).tolist()


def test_regression() -> None:
    generator = np.random.default_rng(0)
    true = generator.normal(50, 10, 200).astype(np.float32)
    said = true + generator.normal(0, 3, 200).astype(np.float32)
    found = accumulate(
        "regression", 1, torch.from_numpy(said)[:, None], torch.from_numpy(true)
    ).compute_metrics(())
    assert found["loss"] == pytest.approx(oracle.mean_squared_error(true, said), rel=1e-5)
    assert found["mae"] == pytest.approx(oracle.mean_absolute_error(true, said), rel=1e-5)
    assert found["r2"] == pytest.approx(oracle.r2_score(true, said), rel=1e-4)
    assert found["rows"] == 200


def test_guessed_tokens() -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(90, 50, generator=generator)
    targets = torch.randint(0, 50, (90,), generator=generator)
    losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    found = MetricAccumulator("masked-lm", 1)
    for start in range(0, 90, 8):
        part = slice(start, start + 8)
        found.add_tokens(losses[part], logits[part].argmax(dim=1) == targets[part])
    found.add_tokens(losses[:0], targets[:0] == 0)
    metrics = found.compute_metrics(())
    assert metrics["tokens"] == 90
    assert metrics["loss"] == pytest.approx(losses.mean().item(), rel=1e-6)
    said = logits.argmax(dim=1)
    assert metrics["accuracy"] == pytest.approx(oracle.accuracy_score(targets, said))
    assert metrics["perplexity"] == pytest.approx(np.exp(losses.mean().item()), rel=1e-5)


def test_perplexity_stays_a_number_that_json_can_write() -> None:
    lost, idle = MetricAccumulator("masked-lm", 1), MetricAccumulator("masked-lm", 1)
    lost.add_tokens(torch.tensor([1e6]), torch.tensor([False]))
    assert 1e300 < lost.compute_metrics(())["perplexity"] < float("inf")
    assert np.isnan(idle.compute_metrics(())["loss"])


def test_the_summary_of_guessed_tokens(tmp_path: Path) -> None:
    found = MetricAccumulator("masked-lm", 1)
    found.add_tokens(torch.tensor([1.0, 2.0]), torch.tensor([True, False]))
    result = {"test": found.compute_metrics(()), "steps": 3, "best_step": 3, "stopped_early": False}
    said = "\n".join(progress.summarize_run(result, 1.0, str(tmp_path)))
    assert "held out, 2 hidden tokens of texts never trained on" in said
    assert "perplexity  4.4817" in said and "accuracy    0.5000" in said


def test_a_perfect_model_of_100_of_500_classes_is_perfect() -> None:
    targets = torch.arange(100).repeat(2)
    logits = torch.nn.functional.one_hot(targets, 500).float()
    found = accumulate("classification", 500, logits, targets)
    metrics = found.compute_metrics(tuple(map(str, range(500))))
    assert [metrics[name] for name in ("f1", "precision", "recall")] == [1.0, 1.0, 1.0]
    assert metrics["absent_labels"] == 400
    several = accumulate("multi-label", 500, logits * 2 - 1, logits)
    metrics = several.compute_metrics(tuple(map(str, range(500))))
    assert metrics["f1"] == 1.0 and metrics["absent_labels"] == 400


def test_a_label_that_is_only_predicted_counts_as_in_scikit_learn() -> None:
    targets, said = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 2, 1, 1])
    logits = torch.nn.functional.one_hot(said, 4).float()
    found = accumulate("classification", 4, logits, targets).compute_metrics(LABELS)
    for name in ("precision", "recall", "f1"):
        score = getattr(oracle, f"{name}_score")
        expected = score(targets, said, average="macro", zero_division=0.0)
        assert found[name] == pytest.approx(expected)


def test_many_classes_are_listed_by_their_cells_and_very_many_not_at_all() -> None:
    targets = torch.tensor([5, 5, 5, 7, 9])
    said = torch.tensor([5, 6, 6, 7, 0])
    names = tuple(map(str, range(150)))
    logits = torch.nn.functional.one_hot(said, 150).float()
    found = accumulate("classification", 150, logits, targets).compute_metrics(names)
    cells = found["confusion"]
    assert sorted(zip(cells["true"], cells["predicted"], cells["rows"], strict=True)) == [
        (5, 5, 1), (5, 6, 2), (7, 7, 1), (9, 0, 1),
    ]  # fmt: skip
    pairs = list(zip(*(each.tolist() for each in list_confused_pairs(cells)), strict=True))
    assert pairs == [(5, 6, 2), (9, 0, 1)]
    many = MAX_MATRIX + 1
    logits = torch.nn.functional.one_hot(said, many).float()
    huge = accumulate("classification", many, logits, targets)
    metrics = huge.compute_metrics(tuple(map(str, range(many))))
    assert "confusion" not in metrics and metrics["never_predicted"] == ["9"]
    for name in ("f1", "precision", "recall", "accuracy", "mcc", "kappa", "f1_weighted"):
        assert metrics[name] == pytest.approx(found[name]), name
