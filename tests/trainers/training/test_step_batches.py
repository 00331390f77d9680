"""Steps that are launched ahead: the same numbers, nothing read too early, nothing saved unseen."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.layouts import make_loop, tiny_recipe
from trainers.distributed.transfer import Readback, Transfer
from trainers.training import loop as loops
from trainers.training.events import EvalEvent, Event, SaveEvent, StepEvent, WarningEvent
from trainers.training.loop import TrainingError, TrainingLoop


class FakeAccelerator(Transfer):
    """The CPU, as a device that computes beside the host: what is read arrives when it is read."""

    is_immediate = False

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.copied_ahead, self.arrived, self._is_ahead = 0, 0, False

    @contextmanager
    def ahead(self) -> Iterator[None]:
        self._is_ahead = True
        yield
        self._is_ahead = False

    def to_device(self, array: Any) -> torch.Tensor:
        self.copied_ahead += self._is_ahead
        return super().to_device(array)

    def mark(self) -> int:
        return self.copied_ahead

    def wait_for(self, mark: Any, tensors: Any) -> None:
        assert all(isinstance(tensor, torch.Tensor) for tensor in tensors)
        self.arrived = max(self.arrived, mark)

    def begin_read(self, values: torch.Tensor) -> Readback:
        return Readback(values.detach())


class NoWaiting(TorchDispatchMode):
    """Fails on what makes the host wait for a device, such as `.item()` and conditions."""

    def __torch_dispatch__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.name().partition(".")[0]
        assert name not in ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero"), name
        return function(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def make(bert: Path, corpus: Path, cache: Path, *overrides: str) -> TrainingLoop:
    recipe = tiny_recipe(
        corpus,
        f"model.name={bert}",
        "evaluation.every_steps=4",
        "stopping.max_steps=10",
        *overrides,
    )
    return make_loop(recipe, cache)


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> list[FakeAccelerator]:
    """The transfers of loops that are made from here on."""
    opened: list[FakeAccelerator] = []

    def open_transfer(device: torch.device) -> FakeAccelerator:
        opened.append(FakeAccelerator(device))
        return opened[-1]

    monkeypatch.setattr(loops, "open_transfer", open_transfer)
    return opened


def order_of(events: list[Event]) -> list[tuple[str, int]]:
    return [(type(event).__name__, event.step) for event in events]


@pytest.mark.parametrize("task", ["classification", "masked-lm"])
def test_events_and_numbers_are_those_of_a_loop_that_waits(
    tiny_bert: Path, corpus: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    settings = [f"task={task}", "model.attention_dropout=0"]
    plain = list(make(tiny_bert, corpus, cache, *settings).run())
    monkeypatch.setattr(loops, "open_transfer", FakeAccelerator)
    found = list(make(tiny_bert, corpus, cache, *settings).run())
    assert order_of(found) == order_of(plain)
    assert order_of(plain)[3:6] == [("StepEvent", 4), ("EvalEvent", 4), ("SaveEvent", 4)]
    for one, other in zip(plain, found, strict=True):
        if isinstance(one, StepEvent) and isinstance(other, StepEvent):
            same = ("loss", "grad_norm", "tokens", "learning_rate", "micro_batches", "epoch")
            assert {n: getattr(one, n) for n in same} == {n: getattr(other, n) for n in same}
        elif isinstance(one, EvalEvent) and isinstance(other, EvalEvent):
            assert one.metrics == other.metrics


@pytest.mark.parametrize("task", ["classification", "masked-lm"])
def test_no_step_waits_for_the_device(
    tiny_bert: Path, corpus: Path, cache: Path, ahead: list[FakeAccelerator], task: str
) -> None:
    loop = make(tiny_bert, corpus, cache, f"task={task}", "model.attention_dropout=0")
    loop._launch_step(0)  # the optimizer makes its moments
    with NoWaiting():
        launched = loop._launch_step(1)
    assert all(map(float, launched.figures.get()))


def test_the_guard_fails_on_a_step_that_waits(
    tiny_bert: Path, corpus: Path, cache: Path, ahead: list[FakeAccelerator],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    loop = make(tiny_bert, corpus, cache, "model.attention_dropout=0")
    clip = loop.parallel.clip_gradients
    monkeypatch.setattr(
        loop.parallel, "clip_gradients", lambda *given: torch.tensor(clip(*given).item())
    )
    with NoWaiting(), pytest.raises(AssertionError, match="_local_scalar_dense"):
        loop._launch_step(0)


def test_the_next_step_is_copied_while_this_one_computes(
    tiny_bert: Path, corpus: Path, cache: Path, ahead: list[FakeAccelerator]
) -> None:
    loop = make(tiny_bert, corpus, cache)
    loop._launch_step(0)
    loop._preparer.forget()  # waits for the thread
    (transfer,) = ahead
    assert transfer.copied_ahead > transfer.arrived > 0


def test_what_fails_ahead_is_raised_where_the_step_is_asked_for(
    tiny_bert: Path, corpus: Path, cache: Path, ahead: list[FakeAccelerator],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    loop = make(tiny_bert, corpus, cache)
    loop._launch_step(0)
    loop._preparer.forget()

    def fail(*_: Any) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(loop._collator, "collate", fail)
    loop._preparer._begin(1)
    with pytest.raises(OSError, match="the disk is gone"):
        loop._launch_step(1)


def test_the_thread_ends_with_its_loop(
    tiny_bert: Path, corpus: Path, cache: Path, ahead: list[FakeAccelerator]
) -> None:
    loop = make(tiny_bert, corpus, cache)
    loop._launch_step(0)
    loop._preparer.forget()
    thread = loop._preparer._thread
    assert thread is not None and thread.is_alive()
    del loop
    gc.collect()
    thread.join(timeout=10)
    assert not thread.is_alive()


def test_a_step_is_told_when_the_next_has_been_launched(
    tiny_bert: Path, corpus: Path, cache: Path, ahead: list[FakeAccelerator],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    loop = make(tiny_bert, corpus, cache)
    launched: list[int] = []
    launch = loop._launch_step

    def watched(step: int) -> Any:
        launched.append(step + 1)
        return launch(step)

    monkeypatch.setattr(loop, "_launch_step", watched)
    seen = [(e.step, max(launched)) for e in loop.run() if isinstance(e, StepEvent)]
    assert seen == [
        (1, 2),
        (2, 3),
        (3, 4),
        (4, 4),
        (5, 6),
        (6, 7),
        (7, 8),
        (8, 8),
        (9, 10),
        (10, 10),
    ]


def test_a_loss_that_is_not_finite_is_neither_evaluated_nor_saved(
    tiny_bert: Path, corpus: Path, cache: Path, ahead: list[FakeAccelerator],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for bad in (2, 4):
        loop = make(tiny_bert, corpus, cache)
        accumulate = loop._accumulate_gradients

        def diverge(batches: Any, bad: int = bad, accumulate: Any = accumulate) -> torch.Tensor:
            loss: torch.Tensor = accumulate(batches)
            return loss * float("nan") if batches.step == bad - 1 else loss

        monkeypatch.setattr(loop, "_accumulate_gradients", diverge)
        events: list[Event] = []
        with pytest.raises(TrainingError, match=f"the loss of step {bad} is nan"):
            for event in loop.run():
                events.append(event)
        assert max(e.step for e in events) == bad
        assert not any(isinstance(event, EvalEvent | SaveEvent) for event in events)


def test_an_accelerator_evaluates_in_the_training_precision_but_for_the_final_figures(
    tiny_bert: Path, corpus: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def losses(precision: str) -> tuple[float, float]:
        loop = make(tiny_bert, corpus, cache, f"precision={precision}")
        rows = loop.data.test
        exact = loop.evaluate(rows, is_exact=True)["loss"]
        return loop.evaluate(rows, is_exact=False)["loss"], exact

    (full, exact), host = losses("fp32"), losses("bf16")
    assert full == exact == host[0] == host[1], "a CPU evaluates in fp32"
    monkeypatch.setattr(loops, "open_transfer", FakeAccelerator)
    half, final = losses("bf16")
    assert final == exact
    assert half != exact and half == pytest.approx(exact, rel=2e-2)
    loop, asked = make(tiny_bert, corpus, cache), []
    evaluate = loop.evaluate

    def watched(*given: Any, **named: Any) -> Any:
        asked.append(named)
        return evaluate(*given, **named)

    monkeypatch.setattr(loop, "evaluate", watched)
    list(loop.run())
    assert asked and all(named == {"is_exact": False} for named in asked)


def test_what_was_prepared_ahead_is_dropped_where_the_run_goes_elsewhere(
    tiny_bert: Path, corpus: Path, cache: Path, ahead: list[FakeAccelerator]
) -> None:
    loop = make(tiny_bert, corpus, cache)
    first = loop._preparer.get(0, is_last=False)
    later = loop._preparer.get(7, is_last=False)
    again = loop._preparer.get(0, is_last=True)
    assert (first.step, later.step, again.step) == (0, 7, 0)
    assert first.rows.tolist() == again.rows.tolist() != later.rows.tolist()
    for one, other in zip(first.batches, again.batches, strict=True):
        assert all(map(torch.equal, one.tensors, other.tensors))


def fail_above(loop: TrainingLoop, tokens: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let the device run out of memory at micro-batches of more tokens; return their sizes."""
    given: list[int] = []
    forward_backward = loop._pipeline.forward_backward

    def run(batches: Any, loss_fn: Any) -> torch.Tensor:
        fitting = [batch for batch in batches if batch.inputs.numel() <= tokens]
        given.append(max(batch.inputs.numel() for batch in batches))
        if fitting:  # the smallest come first
            total: torch.Tensor = forward_backward(fitting, loss_fn)
        if len(fitting) < len(batches):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return total

    monkeypatch.setattr(loop._pipeline, "forward_backward", run)
    return given


def test_out_of_memory_halves_the_budget_and_changes_no_number(
    tiny_bert: Path, corpus: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["model.attention_dropout=0", "stopping.max_steps=4", "batch.token_budget=416"]
    expected = [e for e in make(tiny_bert, corpus, cache, *settings).run()]
    loop = make(tiny_bert, corpus, cache, *settings)
    given = fail_above(loop, 110, monkeypatch)
    events = list(loop.run())
    warnings = [event for event in events if isinstance(event, WarningEvent)]
    assert [w.step for w in warnings] == [0, 0]
    assert "micro-batches of 208 tokens: from step 1 on they have 104" in warnings[1].text
    assert "batch.token_budget=104" in warnings[1].text
    assert (loop.token_budget, given[0] > 110, max(given[2:]) <= 104) == (104, True, True)
    losses = [e.loss for e in events if isinstance(e, StepEvent)]
    assert losses == pytest.approx([e.loss for e in expected if isinstance(e, StepEvent)], abs=1e-6)


def test_a_sample_that_does_not_fit_ends_the_run_with_the_way_out(
    tiny_bert: Path, corpus: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = make(tiny_bert, corpus, cache, "batch.token_budget=64")
    fail_above(loop, 1, monkeypatch)
    with pytest.raises(TrainingError, match=r"no memory .* 32 tokens .*lower batch.max_length"):
        list(loop.run())
