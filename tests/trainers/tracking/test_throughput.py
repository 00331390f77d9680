"""FLOP/s and MFU of steps: by hand, and nothing where something is not known."""

from pathlib import Path

import pytest
import torch

from cluster.costmodel.model_shape import ModelShape
from tests.support.metric_rows import step_row, to_line
from trainers.tracking.metric_logger import MetricLogger
from trainers.tracking.metric_rows import parse_rows
from trainers.tracking.progress import format_steps
from trainers.tracking.run_directory import RunDirectory
from trainers.tracking.throughput import ThroughputMeter, device_peak_flops
from trainers.training.events import StepEvent

# Two layers of width 4, their feed-forward 8 wide, and a classifier of two classes.
TINY = ModelShape(4, 2, 1, 8, 10, 16, 2, 4, "classification", 2)


def step(squared: int = 0, memory: int = 0) -> StepEvent:
    """Return a step of texts of 3 and 5 tokens that took half a second."""
    return StepEvent(1, 0, 0.5, 1e-4, 1.0, 2, 8, 8, 1, 0.5, squared, memory)


def test_model_flops_are_those_of_the_texts_and_mfu_is_their_share_of_the_peak() -> None:
    whole = 8 * 8 * 4**2 + 4 * 8 * 4 * 8 + 4 * (9 + 25) * 4  # projections, feed-forward, attention
    cls_only = 4 * 8 * 4**2 + 2 * (4 * 4**2 + 4 * 4 * 8) + 4 * 8 * 4  # keys, values; two [CLS]
    head = 2 * 2 * 4 * (4 + 2)
    flops = 3 * (whole + cls_only + head)
    found = ThroughputMeter(TINY, 4, peak_flops=1e5).measure(step(squared=9 + 25))
    assert found == {
        "tokens_per_second_per_device": 8 / 0.5 / 4,
        "tflops_per_device": pytest.approx(flops / 0.5 / 4 / 1e12),
        "mfu": pytest.approx(flops / 0.5 / 4 / 1e5),
    }


def test_what_is_not_known_is_left_out() -> None:
    unpublished = ThroughputMeter(TINY, 1).measure(step(squared=34))
    assert set(unpublished) == {"tokens_per_second_per_device", "tflops_per_device"}
    uncounted = ThroughputMeter(TINY, 1, 1e5).measure(step())
    assert uncounted == {"tokens_per_second_per_device": 16}


def test_a_masked_language_model_counts_its_head_for_the_masked_tokens() -> None:
    shape = ModelShape(4, 1, 1, 8, 1000, 16, 2, 4, "masked-lm")
    none, some = (ThroughputMeter(shape, 1, 1.0, share).measure(step(34)) for share in (0.0, 0.25))
    decoder = 3 * 2 * 2 * 4 * (4 + 1000)  # of 2 tokens in 8
    assert some["mfu"] - none["mfu"] == pytest.approx(decoder / 0.5)


def test_the_peak_is_found_by_the_name_and_the_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_peak_flops("cpu", None) is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    assert device_peak_flops("cuda", torch.bfloat16) == pytest.approx(989.4e12)
    assert device_peak_flops("cuda", None) == pytest.approx(67e12)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    assert device_peak_flops("cuda", torch.float16) == pytest.approx(65e12)
    assert device_peak_flops("cuda", torch.bfloat16) is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200 MIG 1g.18gb")
    assert device_peak_flops("cuda", torch.bfloat16) is None


def test_the_columns_reach_the_file_and_the_trackers(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    recorder = MetricLogger(run, 0, ["tensorboard"], meter=ThroughputMeter(TINY, 1, 1e5))
    recorder.log_event(step(squared=34, memory=3 * 2**29))
    recorder.close()
    (row,) = run.metric_rows("step")
    assert row["memory_gib"] == 1.5 and "memory_bytes" not in row
    assert 0 < row["mfu"] < 1 and row["tflops_per_device"] > 0
    events = b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").iterdir())
    for name in ("mfu", "tflops_per_device", "tokens_per_second_per_device", "memory_gib"):
        assert f"train/{name}".encode() in events


def test_progress_says_mfu_and_memory_or_flops_where_no_peak_is_known() -> None:
    faster = step_row(1, mfu=0.5, tflops_per_device=495.0, memory_gib=12.0, seconds=0.5)
    slower = step_row(2, mfu=0.2, tflops_per_device=198.0, memory_gib=12.5, seconds=1.0)
    said = format_steps([faster, slower], 10)
    assert "  120 tokens/s  MFU 30.0%  12.5 GiB  padding 10.0%  " in said
    plain = step_row(1, tflops_per_device=0.0312, computed_tokens=90)
    assert "  180 tokens/s  31.2 GFLOP/s a device  4s left" in format_steps([plain], 10)
    fast = step_row(1, tflops_per_device=31.2)
    assert "  31.2 TFLOP/s a device  " in format_steps([fast], 10)


@pytest.mark.parametrize("name", ["mfu", "tflops_per_device", "memory_gib"])
def test_a_damaged_figure_is_no_row(name: str) -> None:
    assert list(parse_rows(to_line(step_row(1, **{name: "fast"})))) == []
    assert list(parse_rows(to_line(step_row(1, **{name: 0.5}))))
