"""Agreement of an engine with torch fp32."""

from pathlib import Path

import numpy as np
import pytest

from serving.optimize import candidates
from serving.optimize.eval_texts import EvalRows
from tests.support.tiny_bundle import write_tiny_bundle
from trainers.data.tokenizer import load_encoder
from trainers.models.card import read_card
from trainers.training.metrics import predictions_agree


class TestAgreement:
    @pytest.mark.parametrize(
        ("task", "reference", "outputs", "expected"),
        [
            ("classification", [[1, 2], [3, 0]], [[1, 1.5], [0, 3]], [True, False]),
            ("multi-label", [[1, -2], [3, 4]], [[9, -1], [3, -0.1]], [True, False]),
            ("regression", [[10], [20]], [[10.019], [20.021]], [True, False]),
            ("embedding", [[1, 0], [1, 0]], [[0.9999, 0.01], [0.99, 0.14]], [True, False]),
            ("masked-lm", [[1, 2, 0], [3, 0, 1]], [[0, 9, 8], [1, 2, 0]], [True, False]),
        ],
    )
    def test_what_agrees(
        self,
        task: str,
        reference: list[list[float]],
        outputs: list[list[float]],
        expected: list[bool],
    ) -> None:
        found = predictions_agree(task, np.array(reference), np.array(outputs), deviation=2.0)
        assert found.tolist() == expected

    def test_labels_are_those_that_the_thresholds_of_the_card_choose(
        self, tmp_path: Path, tiny_bert: Path
    ) -> None:
        threshold = {"positive": 0.1}
        directory = write_tiny_bundle(tmp_path / "bundle", tiny_bert, thresholds=threshold)
        card = read_card(directory)
        encoder = load_encoder(str(directory), card.cleaning, card.max_length)
        texts, _ = encoder.encode(["a film", "a plot"])
        rows = EvalRows(texts, texts, np.array([1, 1]), "here")
        builder = candidates.CandidateEvaluator(directory, card, encoder, rows, tmp_path, print)
        # Odds of 1 to 4 for the second label are enough, and of 1 to 19 are not.
        builder._reference = np.array([[0, -np.log(4)], [0, -np.log(4)]], np.float32)
        near, far = np.float32([[1, 0], [1, 0]]), np.float32([[0, -np.log(19)], [1, 0]])
        assert [builder._compare(each)[0] for each in (near, far)] == [1.0, 0.5]
        metrics = candidates._compute_metrics(card, far, rows.targets)
        assert metrics["accuracy"] == 0.5

    def test_a_regression_is_judged_by_its_targets(self) -> None:
        reference, targets = np.array([[0.0], [2.0]]), np.array([0.0, 20.0])
        assert candidates.target_deviation(reference, targets) == 10.0
        assert candidates.target_deviation(reference, None) == 1.0
