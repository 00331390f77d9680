"""The parity receipt: taken where a layout is new, true, harmless, and stern."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import multiprocessing

from tests.support import worker_processes
from tests.support.layouts import make_loop
from tests.support.ranks import spawn_ranks
from tests.support.worker_processes import run_workers, worker_config
from trainers.checkpoint import checkpoint
from trainers.config import recipe as recipes
from trainers.config.recipe import Recipe
from trainers.data import prepare
from trainers.distributed.device import DEVICES, Device
from trainers.parallel.parallelize import ParallelModel
from trainers.runtime.worker_config import WorkerConfig
from trainers.tracking.run_directory import RunDirectory
from trainers.training import parity_check
from trainers.training.events import EvalEvent, StepEvent
from trainers.training.linear_probe import Head
from trainers.training.loop import TrainingError
from trainers.training.parity_check import ParityReport

HEAD = Head(np.linspace(-1, 1, 64, dtype=np.float32).reshape(2, 32), np.float32([0.1, -0.1]))
DEGREES: dict[str, dict[str, int]] = {
    "DDP": {"dp_replicate": 2},
    "FSDP": {"dp_shard": 2},
    "TP": {"tp": 2},
    "PP": {"pp": 2},
}


def tiny(tiny_bert: Path, corpus: Path, *overrides: str) -> Recipe:
    settings = [
        f"model.name={tiny_bert}",
        f"data.source={corpus}",
        "model.attention_dropout=0.1",
        "batch.global_size=13",
        "batch.max_length=32",
        "batch.token_budget=96",
        "optimizer.learning_rate=2e-3",
        "stopping.max_steps=3",
        "stopping.patience=null",
        "evaluation.every_steps=3",
        "precision=fp32",
    ]
    return recipes.load_recipe("csv", [*settings, *overrides])


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def report_with(**differences: Any) -> ParityReport:
    judged = ("loss", "grad_norm", "gradient")
    held = ParityReport({}, 4, 1e-7, 1e-7, 1e-7, 2e-4, judged, 0.1)
    return replace(held, **differences)


def test_a_difference_beyond_rounding_is_a_flaw() -> None:
    assert report_with().find_violation() is None
    assert (
        report_with(gradient=0.3).find_violation() == "gradient differs by 3.00e-01, allowed 2e-04"
    )
    assert "loss differs by nan" in str(report_with(loss=float("nan")).find_violation())
    rounded = report_with(gradient=0.3, judged=("loss", "grad_norm"), tolerance=5e-2)
    assert rounded.find_violation() is None


class OtherDevice(Device):
    """The CPU under another name, as an accelerator that nothing is known of."""

    def torch_device(self) -> torch.device:
        return torch.device("cpu")


def test_one_accelerator_is_compared_with_a_cpu(
    tiny_bert: Path, corpus: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny(tiny_bert, corpus)
    loop, encoder = make_loop(recipe, cache), prepare.load_recipe_encoder(recipe)
    loop.device = OtherDevice(**asdict(DEVICES["cpu"]) | {"kind": "other"})
    report = parity_check.check_parity(loop, encoder, None)
    assert report is not None and report["gradient"] <= report["tolerance"]
    clean = ParallelModel.finalize_gradients

    def spoil(self: ParallelModel, ids: Any) -> None:
        clean(self, ids)
        if self is loop.parallel:
            next(p for _, p in self.named_parameters() if p.grad is not None).grad *= 1.1

    monkeypatch.setattr(ParallelModel, "finalize_gradients", spoil)
    with pytest.raises(TrainingError, match="does not compute what one device computes"):
        parity_check.check_parity(loop, encoder, None)


def test_one_rank_needs_no_receipt(tiny_bert: Path, corpus: Path, cache: Path) -> None:
    loop = make_loop(tiny(tiny_bert, corpus), cache)
    assert parity_check.check_parity(loop, None, None) is None  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def runs(
    tiny_bert: Path, corpus: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, RunDirectory]:
    """What two processes leave behind of each layout, with a receipt and without."""
    place = tmp_path_factory.mktemp("runs")
    made = {
        f"{name}{' without' * without}": worker_config(
            tiny(tiny_bert, corpus, *["parity=false"] * without),
            place / f"{name}-{without}",
            cache,
            **degrees,
        )
        for name, degrees in DEGREES.items()
        for without in (False, True)
    }
    sizes = ["num_hidden_layers=2", "hidden_size=32", "num_attention_heads=4", "name=random"]
    sizes += ["intermediate_size=64", f"tokenizer={tiny_bert}"]
    settings = ["task=masked-lm", "precision=bf16", *(f"model.{size}" for size in sizes)]
    settings += [f"data.source={corpus}", "batch.global_size=8", "batch.max_length=32"]
    settings += ["stopping.max_steps=1", "stopping.patience=null"]
    mixed = worker_config(recipes.load_recipe("csv", settings), place / "mixed", cache, dp_shard=2)
    made["mixed"] = mixed
    half = tiny(tiny_bert, corpus, "precision=fp16")
    made["half"] = worker_config(half, place / "half", cache, dp_shard=2)
    plain = worker_config(tiny(tiny_bert, corpus), place / "fitted", cache, dp_shard=2)
    made["fitted"] = replace(plain, head=HEAD)
    run_workers([(assignment, None) for assignment in made.values()], 2)
    return {name: assignment.run for name, assignment in made.items()}


@pytest.mark.multiprocess
@pytest.mark.parametrize("name", DEGREES)
def test_it_is_taken_and_changes_no_loss(runs: dict[str, RunDirectory], name: str) -> None:
    taken, without = runs[name], runs[f"{name} without"]
    parity = taken.read_record()["parity"]
    assert parity["samples"] == 4 and parity["tolerance"] == 2e-4
    assert all(parity[key] < 2e-5 for key in ("loss", "grad_norm", "gradient"))
    assert without.read_record()["parity"] is None
    assert [row["loss"] for row in taken.metric_rows("step")] == [
        row["loss"] for row in without.metric_rows("step")
    ]


@pytest.mark.multiprocess
def test_a_fitted_head_is_on_both_sides_and_judged_before_the_first_step(
    runs: dict[str, RunDirectory], tiny_bert: Path, corpus: Path, cache: Path
) -> None:
    fitted = runs["fitted"]
    parity = fitted.read_record()["parity"]
    assert all(parity[key] < 2e-5 for key in ("loss", "grad_norm", "gradient"))
    events = list(make_loop(tiny(tiny_bert, corpus), cache, head=HEAD).run())
    assert [row["loss"] for row in fitted.metric_rows("step")] == pytest.approx(
        [event.loss for event in events if isinstance(event, StepEvent)], abs=2e-5
    )
    first = next(fitted.metric_rows("evaluation"))
    assert first["step"] == 0 and isinstance(events[0], EvalEvent)
    assert first["metrics"]["loss"] == pytest.approx(events[0].metrics["loss"], abs=2e-5)


@pytest.mark.multiprocess
def test_bf16_has_a_wider_tolerance_and_masked_lm_its_receipt(
    runs: dict[str, RunDirectory],
) -> None:
    parity = runs["mixed"].read_record()["parity"]
    assert parity["tolerance"] == 5e-2
    assert 0 < parity["loss"] < 5e-2 and 0 < parity["grad_norm"] < 5e-2


@pytest.mark.multiprocess
def test_fp16_on_shards_trains_as_on_one_device(
    runs: dict[str, RunDirectory], tiny_bert: Path, corpus: Path, cache: Path
) -> None:
    loop = make_loop(tiny(tiny_bert, corpus, "precision=fp16"), cache)
    alone = [event.loss for event in loop.run() if isinstance(event, StepEvent)]
    assert [row["loss"] for row in runs["half"].metric_rows("step")] == pytest.approx(
        alone, abs=2e-3
    )
    assert runs["half"].read_record()["parity"]["tolerance"] == 5e-2
    assert checkpoint_of(runs["half"])["scale"] == {"factor": 2.0**16, "served": 3}


def checkpoint_of(run: RunDirectory) -> dict[str, Any]:
    """The state in the newest checkpoint."""
    newest = checkpoint.find_latest(run.checkpoints)
    assert newest is not None
    return newest.load_state()


@pytest.mark.multiprocess
def test_a_layout_that_computes_something_else_ends_the_run(
    tiny_bert: Path, corpus: Path, cache: Path, tmp_path: Path
) -> None:
    assignment = worker_config(tiny(tiny_bert, corpus), tmp_path / "run", cache, dp_replicate=2)
    with pytest.raises(multiprocessing.ProcessRaisedException) as caught:
        spawn_ranks(_run_without_sync, (assignment, tmp_path / "meet"), nprocs=2)
    said = str(caught.value)
    assert "layout (dp_replicate 2) does not compute what one device computes" in said
    assert "grad_norm differs by" in said and "set parity: false" in said
    assert assignment.run.read_record() == {}


def _run_without_sync(rank: int, assignment: WorkerConfig, meet: Path) -> None:
    """A rank that keeps its gradients to itself."""
    ParallelModel.set_gradient_sync = lambda self, stage, sync: setattr(  # type: ignore[method-assign]
        self.wrapped_modules[stage], "require_backward_grad_sync", False
    )
    worker_processes._run_rank(rank, 2, [(assignment, None)], meet, None)
