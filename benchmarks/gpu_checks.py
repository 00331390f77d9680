"""The checks of `gpu.py` that compare numbers. Each takes (device, tiny) and returns rows.

`holds` false fails a check.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from gpu_models import (
    BASE,
    SMALL,
    TINY,
    Row,
    draw_lengths,
    make_dataset,
    make_loop,
    make_recipe,
    run_steps,
    time_call,
)
from torch.utils._python_dispatch import TorchDispatchMode

from trainers.checkpoint import checkpoint
from trainers.checkpoint.stores import CheckpointStore
from trainers.training.events import SaveEvent

# Largest relative differences of a loss from fp32 on the CPU that rounding explains.
TOLERANCES = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 1e-2}


def measure_ceilings(device: str, tiny: bool) -> list[Row]:
    """Measure what the device can do at best: products, memory, launches."""
    size, rows = 256 if tiny else 8192, []
    for dtype in (torch.bfloat16, torch.float32):
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        seconds = time_call(lambda a=a, b=b: a @ b, device, 5)
        name = str(dtype).removeprefix("torch.")
        rows.append(
            {"what": f"product {size}", "dtype": name, "tflops": 2 * size**3 / seconds / 1e12}
        )
    numbers = torch.empty((2**20 if tiny else 2**28), device=device)
    seconds = time_call(lambda: numbers.clone(), device, 5)
    rows.append({"what": "copy", "tb_per_second": 2 * numbers.nbytes / seconds / 1e12})
    one, launches = torch.zeros(1, device=device), 1000

    def launch() -> None:
        for _ in range(launches):
            one.add_(1)

    rows.append({"what": "launch", "microseconds": 1e6 * time_call(launch, device, 3) / launches})
    return rows


def compare_with_cpu(device: str, tiny: bool) -> list[Row]:
    """Compare losses of some steps with those of one CPU in fp32, dropout on."""
    steps, rows = 3 if tiny else 10, []
    precisions = ["fp32", "bf16"] if device == "cpu" else ["fp32", "bf16", "fp16"]
    lengths = draw_lengths("reviews", 64, 48)
    for task in ("classification", "masked-lm"):
        recipe = make_recipe(TINY if tiny else SMALL, 16, 48, task=task, precision="fp32")
        data = make_dataset(lengths)
        expected = [step.loss for step in run_steps(make_loop(recipe, data, "cpu"), steps)]
        for precision in precisions:
            other = recipe.model_copy(update={"precision": precision})
            losses = [step.loss for step in run_steps(make_loop(other, data, device), steps)]
            worst = max(abs(a / b - 1) for a, b in zip(losses, expected, strict=True))
            holds = worst <= TOLERANCES[precision]
            rows.append(
                {"task": task, "precision": precision, "loss_differs": worst, "holds": holds}
            )
    return rows


def compare_resumed(device: str, tiny: bool) -> list[Row]:
    """Save a run at half of its steps, go on in a new loop, and compare with one process."""
    half = 3
    settings: Row = {"precision": "fp32", "checkpoints": {"every_steps": half}}
    recipe = make_recipe(
        TINY if tiny else SMALL, 16, 48, stopping={"max_steps": 2 * half}, **settings
    )
    data = make_dataset(draw_lengths("reviews", 64, 48))
    expected = [step.loss for step in run_steps(make_loop(recipe, data, device), 2 * half)]
    with tempfile.TemporaryDirectory() as directory:
        store, first = CheckpointStore(Path(directory)), make_loop(recipe, data, device)
        for event in first.run():
            if isinstance(event, SaveEvent):
                checkpoint.save_checkpoint(
                    store, event.step, first.parallel, first.optimizer, first.state_dict()
                )
                break
        second, saved = make_loop(recipe, data, device), checkpoint.find_latest(store)
        assert saved is not None
        saved.restore(second.parallel, second.optimizer)
        second.load_state_dict(saved.load_state())
        found = [step.loss for step in run_steps(second, half)]
    worst = max(abs(a - b) for a, b in zip(found, expected[half:], strict=True))
    return [{"loss_differs": worst, "bitwise": worst == 0, "holds": worst <= 1e-5}]


class WaitCounter(TorchDispatchMode):
    """Counts operations that make the host wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.name().partition(".")[0]
        self.count += name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero")
        return function(*args, **(kwargs or {}))


@contextmanager
def refuse_waits(device: str) -> Iterator[None]:
    """Let CUDA raise where the host would wait for it."""
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    yield
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("default")


def count_waits(device: str, tiny: bool) -> list[Row]:
    """Count the times that a step waits for the device, which should be none."""
    rows = []
    for task in ("classification", "masked-lm"):
        recipe = make_recipe(TINY if tiny else BASE, 16, 48, task=task, precision="bf16")
        loop = make_loop(recipe, make_dataset(draw_lengths("reviews", 64, 48)), device)
        for step in range(2):  # moments, and tables of dropout
            loop._launch_step(step).figures.get()
        clipping = 0 if device == "cuda" else 1  # on the host the norm may be looked at
        with refuse_waits(device), WaitCounter() as counter:
            launched = loop._launch_step(2)
        launched.figures.get()
        waits = counter.count - clipping
        rows.append({"task": task, "waits_a_step": waits, "holds": waits <= 0})
    return rows
