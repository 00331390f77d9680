"""Texts per CPU-second, and the batch size that is chosen by them."""

import time

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
            found.keep_if_faster(budget, {"short": short, "long": 10.0}, 32 * short)
        assert found.batch_tokens == 128 and found.texts_per_second["short"] == 120
        assert found.tokens_per_second == 32 * 120

    @pytest.mark.parametrize("budget", [*throughput.CPU_BUDGETS, *throughput.DEVICE_BUDGETS])
    @pytest.mark.parametrize("num_rows", [3, 90])
    def test_texts_are_enough_for_a_full_batch(self, budget: int, num_rows: int) -> None:
        rows = [np.arange(40, dtype=np.int32) for _ in range(num_rows)]
        for batches in throughput.make_workload(rows, budget, max_length=128).values():
            assert sum(map(len, batches[0])) + 128 > budget

    def test_tokens_are_those_of_the_slower_kind_of_texts(self) -> None:
        rows = [np.arange(length, dtype=np.int32) for length in (10, 20)]
        work = throughput.make_workload(rows, 512, max_length=128)
        found = throughput.slowest_tokens_per_second(work, {"short": 100.0, "long": 10.0})
        assert found == 10 * 128
        found = throughput.slowest_tokens_per_second(work, {"short": 10.0, "long": 10.0})
        assert found == pytest.approx(10 * 15)

    def test_a_device_beside_the_host_is_timed_by_the_wall(self) -> None:
        work = {"short": [[np.zeros(3, dtype=np.int32)]]}

        def sleep(_: object) -> None:  # as a host does while a device computes
            time.sleep(0.002)

        engines = {"device": (sleep, work)}
        found = throughput.measure_interleaved(engines, 1, 0.02, time.perf_counter)
        assert found["device"]["short"] < 500
