"""Texts per CPU-second, and the batch size that is chosen by them."""

import numpy as np
import pytest
import torch

from serving.optimize import throughput
from serving.optimize.candidates import EngineCandidate

pytestmark = pytest.mark.slow


class TestSpeed:
    def test_short_and_long_texts_fill_what_is_computed_at_once(self) -> None:
        rows = [np.arange(length, dtype=np.int32) for length in range(3, 90)]
        work = throughput.make_workload(rows, 256, max_length=128)
        assert [[len(row) for row in batch] for batch in work["long"]] == [[128, 128]] * 2
        assert max(len(row) for batch in work["short"] for row in batch) == throughput.SHORT
        assert sum(map(len, work["short"])) == throughput.NUM_SHORT
        filled = [sum(map(len, batch)) for batch in work["short"]]
        assert max(filled) <= 256 < min(filled[:-1]) + throughput.SHORT

    def test_the_median_of_turns(self) -> None:
        work = {"short": [[np.zeros(3, dtype=np.int32)]]}
        slow = torch.nn.Linear(2000, 2000)
        found = throughput.measure_interleaved(
            {
                ("slow", 64): (lambda rows: slow(torch.zeros(64, 2000)), work),
                ("fast", 64): (lambda rows: None, work),
            },
            rounds=3,
            seconds=0.01,
        )
        assert found["fast", 64]["short"] > found["slow", 64]["short"] > 0

    def test_a_candidate_takes_at_once_what_is_fastest(self) -> None:
        found = EngineCandidate("torch fp32")
        for budget, short in ((64, 100.0), (128, 120.0), (256, 90.0)):
            found.keep_if_faster(budget, {"short": short, "long": 10.0})
        assert found.batch_tokens == 128 and found.texts_per_second["short"] == 120
