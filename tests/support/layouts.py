"""Layouts, and the loop run on them in bare gloo processes: for parity tests and their table."""

import dataclasses
import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from cluster.costmodel.layout import Layout
from tests.support.ranks import spawn_ranks
from trainers.config import recipe as recipes
from trainers.config.defaults import choose_settings
from trainers.config.recipe import Recipe
from trainers.data import prepare
from trainers.distributed.device import DEVICES
from trainers.distributed.mesh import Mesh
from trainers.models.build import build_on_meta, materialize
from trainers.parallel.parallelize import parallelize
from trainers.training.linear_probe import Head, set_head
from trainers.training.loop import TrainingLoop

TASKS = ("classification", "masked-lm")
LAYOUTS: dict[int, dict[str, dict[str, Any]]] = {
    2: {
        "DDP 2": {},
        "FSDP 2": {"dp_shard": 2},
        "FSDP 2, recompute selective": {"dp_shard": 2, "recompute": "selective"},
        "TP 2": {"tp": 2},
        "TP 2, recompute full": {"tp": 2, "recompute": "full"},
        "TP 2 SP": {"tp": 2, "sequence_parallel": True},
        "PP 2": {"pp": 2},
        "PP 2 interleaved": {"pp": 2, "stages_per_rank": 2},
        "PP 2, recompute full": {"pp": 2, "recompute": "full"},
    },
    4: {
        "FSDP 4": {"dp_shard": 4},
        "HSDP 2x2": {"dp_replicate": 2, "dp_shard": 2},
        "TP 4": {"tp": 4},
        "PP 4": {"pp": 4},
        "FSDPxTP 2x2": {"dp_shard": 2, "tp": 2},
        "DPxTP 2x2 SP": {"tp": 2, "sequence_parallel": True},
        "DPxPP 2x2": {"pp": 2},
        "FSDPxPP 2x2 interleaved": {"dp_shard": 2, "pp": 2, "stages_per_rank": 2},
        "PPxTP 2x2 SP": {"pp": 2, "tp": 2, "sequence_parallel": True},
    },
    8: {
        "DPxPPxTP 2x2x2": {"pp": 2, "tp": 2},
        "FSDPxPPxTP 2x2x2 SP": {"dp_shard": 2, "pp": 2, "tp": 2, "sequence_parallel": True},
    },
}


def tiny_recipe(corpus: Path, *overrides: str) -> Recipe:
    settings = [
        f"data.source={corpus}",
        "model.dropout=0.1",
        "model.attention_dropout=0.1",
        "batch.global_size=13",
        "batch.max_length=32",
        "batch.token_budget=96",
        "optimizer.learning_rate=2e-3",
        "optimizer.max_grad_norm=0.5",
        "stopping.max_steps=5",
        "stopping.patience=null",
        "evaluation.every_steps=5",
        "precision=fp32",
    ]
    return recipes.load_recipe("csv", [*settings, *overrides])


def fresh_recipe(tiny_bert: Path, corpus: Path, task: str, *overrides: str) -> Recipe:
    """A BERT of four layers from nothing: its weights are drawn where they are needed."""
    sizes = ["num_hidden_layers=4", "hidden_size=32", "num_attention_heads=4"]
    sizes += ["intermediate_size=64", "name=random", f"tokenizer={tiny_bert}"]
    if task == "classification":  # attention in rows, and with weights dropped in the other task
        sizes += ["attention_dropout=0"]
    settings = [f"task={task}", *(f"model.{size}" for size in sizes)]
    if task == "classification":
        settings += ["loss.class_weights=balanced", "loss.focal_gamma=1.5"]
        settings += ["loss.label_smoothing=0.1", "optimizer.layer_decay=0.8"]
    return tiny_recipe(corpus, *settings, *overrides)


def make_loop(
    recipe: Recipe, cache: Path, layout: Layout | None = None, head: Head | None = None
) -> TrainingLoop:
    """The loop of this process, on `layout`; without one, copies of the model.

    head: that the model begins with.
    """
    prepared, encoder = prepare.prepare_dataset(recipe, cache), prepare.load_recipe_encoder(recipe)
    recipe = choose_settings(recipe, len(prepared.train), 384).recipe
    model = build_on_meta(recipe, prepared.labels, int(prepared.train.samples.lengths[0]), encoder)
    if head is not None:
        set_head(model, head)
    mesh, place = Mesh.from_layout(layout or Layout(), "cpu"), torch.device("cpu")
    parallel = parallelize(model, mesh, lambda part: materialize(part, recipe.seed, place))
    return TrainingLoop(recipe, prepared, encoder, parallel, DEVICES["cpu"], head=head)


def full_weights(loop: TrainingLoop) -> dict[str, np.ndarray]:
    """The whole parameters that this rank holds parts of, by name; every rank calls this."""
    found = {}
    for name, parameter in loop.parallel.named_parameters():
        held = parameter.detach()
        whole = held.full_tensor() if isinstance(held, DTensor) else held
        found[name] = whole.numpy().copy()
    return found


Job = tuple[Recipe, Layout]
Run = tuple[list[dict[str, Any]], dict[str, np.ndarray]]  # events, and weights at the end


def run_alone(recipe: Recipe, cache: Path) -> Run:
    """What one process computes."""
    loop = make_loop(recipe, cache)
    events = [dataclasses.asdict(event) for event in loop.run()]
    return events, full_weights(loop)


def run_layouts(jobs: list[Job], size: int, cache: Path, out: Path) -> list[list[Run]]:
    """What each of `size` gloo processes computes for each job: [job][rank]."""
    spawn_ranks(_run_rank, (size, jobs, cache, out), nprocs=size)
    of_ranks = [pickle.loads((out / f"rank{rank}").read_bytes()) for rank in range(size)]
    return [list(of_job) for of_job in zip(*of_ranks, strict=True)]


def _run_rank(rank: int, size: int, jobs: list[Job], cache: Path, out: Path) -> None:
    torch.set_num_threads(1)
    logging.getLogger("torch.distributed.tensor").setLevel(logging.ERROR)
    dist.init_process_group("gloo", init_method=f"file://{out}/meet", rank=rank, world_size=size)
    runs: list[Run] = []
    for recipe, layout in jobs:
        loop = make_loop(recipe, cache, layout)
        events = [dataclasses.asdict(event) for event in loop.run()]
        runs.append((events, full_weights(loop)))
    (out / f"rank{rank}").write_bytes(pickle.dumps(runs))
    dist.destroy_process_group()
