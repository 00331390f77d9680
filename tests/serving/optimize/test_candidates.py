"""Agreement of an engine with torch fp32."""

import numpy as np
import pytest

from serving.optimize import candidates
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

    def test_a_regression_is_judged_by_its_targets(self) -> None:
        reference, targets = np.array([[0.0], [2.0]]), np.array([0.0, 20.0])
        assert candidates.target_deviation(reference, targets) == 10.0
        assert candidates.target_deviation(reference, None) == 1.0
