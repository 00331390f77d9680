"""Rows of few shapes: every text whole in one row, and the same numbers as without rows."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.layouts import make_loop, tiny_recipe
from trainers.distributed import device as devices
from trainers.models.static_rows import lay_into_static_rows, round_up
from trainers.training.events import EvalEvent, StepEvent

WIDTHS = (8, 16, 32)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=40), st.booleans())
def test_every_text_is_whole_in_one_row(lengths: list[int], shares_rows: bool) -> None:
    rows = lay_into_static_rows(lengths, WIDTHS, shares_rows)
    assert sorted(rows.order.tolist()) == list(range(len(lengths)))
    assert rows.width == min((w for w in WIDTHS if w >= max(lengths)), default=max(lengths))
    ends = np.cumsum(np.array(lengths)[rows.order] + rows.pads)
    starts = np.concatenate([[0], ends[:-1]])
    last = starts + np.array(lengths)[rows.order] - 1
    assert (starts // rows.width == last // rows.width).all()
    count, left = divmod(int(ends[-1]), rows.width)
    assert (left, count) == (0, round_up(count))
    if not shares_rows:
        assert (starts == np.arange(len(lengths)) * rows.width).all()
        assert rows.order.tolist() == list(range(len(lengths)))


def test_counts_are_rounded_up_to_powers_of_two() -> None:
    assert [round_up(n) for n in (1, 2, 3, 4, 5, 64, 65)] == [1, 2, 4, 4, 8, 64, 128]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def run(
    bert: Path, corpus: Path, cache: Path, task: str, dropout: float
) -> tuple[list[StepEvent], EvalEvent, set[tuple[int, ...]]]:
    """Steps, the last evaluation, and the shapes that models were given."""
    settings = [f"model.name={bert}", f"task={task}", f"model.attention_dropout={dropout}"]
    loop = make_loop(tiny_recipe(corpus, *settings, "stopping.max_steps=12"), cache)
    shapes: set[tuple[int, ...]] = set()
    for module in loop.parallel.stage_modules.values():
        module.register_forward_pre_hook(
            lambda _, args: shapes.add((args[0].shape[1], args[1].width, len(args[1].reads)))
        )
    events = list(loop.run())
    last = [event for event in events if isinstance(event, EvalEvent)][-1]
    return [event for event in events if isinstance(event, StepEvent)], last, shapes


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("task", ["classification", "masked-lm"])
def test_numbers_are_those_without_rows_and_shapes_are_few(
    tiny_bert: Path, corpus: Path, cache: Path, monkeypatch: pytest.MonkeyPatch,
    task: str, dropout: float,
) -> None:  # fmt: skip
    plain, evaluated, many = run(tiny_bert, corpus, cache, task, dropout)
    static = dataclasses.replace(devices.DEVICES["cpu"], row_widths=WIDTHS)
    monkeypatch.setitem(devices.DEVICES, "cpu", static)
    found, other, few = run(tiny_bert, corpus, cache, task, dropout)
    assert [s.loss for s in found] == pytest.approx([s.loss for s in plain], rel=1e-5)
    assert [s.grad_norm for s in found] == pytest.approx([s.grad_norm for s in plain], rel=1e-4)
    assert other.metrics["loss"] == pytest.approx(evaluated.metrics["loss"], rel=1e-5)
    assert other.metrics["accuracy"] == evaluated.metrics["accuracy"]
    assert all(width in WIDTHS and not tokens % width for tokens, width, _ in few)
    assert len(few) < len(many) / 2
    assert all(s.computed_tokens > s.tokens for s in found)
    assert all(s.computed_tokens == s.tokens for s in plain)


def test_devices_that_compile_every_shape_have_rows() -> None:
    assert {kind for kind, row in devices.DEVICES.items() if row.row_widths} == {"neuron", "tpu"}
