"""The benchmark of the probe: real steps are seen, and their tensors are what arithmetic says."""

import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

from real_steps import run_real_steps


@pytest.mark.multiprocess
@pytest.mark.parametrize("workers", [1, 2])
def test_tensors_of_real_steps_are_predicted(tiny_bert: Path, corpus: Path, workers: int) -> None:
    overrides = (
        f"model.name={tiny_bert}",
        f"data.source={corpus}",
        "batch.max_length=32",
        "batch.global_size=8",
        "batch.token_budget=48",  # several micro-batches, as recipes have
    )
    steps = run_real_steps("csv", overrides, workers, 2)
    assert steps.seconds > 0 and steps.resident > 0
    assert steps.predicted == pytest.approx(steps.tensors, rel=0.05)
