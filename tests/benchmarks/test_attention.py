"""The benchmark of attention times both ways, each the way that it says."""

import sys

import pytest
import torch

from tests.support.paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import attention


def test_both_ways_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    kernel = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda *given, **named: calls.append(1) or kernel(*given, **named),
    )
    timing = attention.compare_paths(torch.float32, 32, rounds=2)
    assert timing["fused_ms"] > 0 and timing["multiplied_out_ms"] > 0
    assert timing["ratio"] == pytest.approx(timing["fused_ms"] / timing["multiplied_out_ms"])
    assert len(calls) == attention.WARMUP + 2
