"""The checks of `gpu.py` that measure: speed beside Trainer, dropout, evaluation, memory."""

import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from gpu_models import (
    BASE,
    TINY,
    VOCABULARY,
    Row,
    draw_lengths,
    make_dataset,
    make_loop,
    make_recipe,
    run_steps,
    synchronize,
    time_call,
)
from torch.utils.data import Dataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from cluster.costmodel.layout import Layout
from cluster.costmodel.memory import TrainingSetup, memory_by_rank
from cluster.costmodel.model_shape import ModelShape
from trainers.config.recipe import Recipe
from trainers.data.dataset_cache import PreparedDataset
from trainers.models.config import build_config
from trainers.models.shape import shape_from_config
from trainers.planning.fake import FakeTokenizer
from trainers.tracking.throughput import device_peak_flops
from trainers.training.events import StepEvent, WarningEvent

WARMUP = 3
# name: (length of texts, longest, samples a step)
SHAPES = {
    "128 full": ("full", 128, 256), "512 full": ("full", 512, 64), "reviews": ("reviews", 512, 64),
    "default batch": ("full", 128, 32),
}  # fmt: skip


def race_trainer(device: str, tiny: bool) -> Iterator[Row]:
    """Train BERT-base in turns with Trainer: padded dynamically, grouped by length, compiled."""
    rounds, steps = (1, 2) if tiny else (2, 12)
    for name, (kind, longest, batch) in SHAPES.items():
        if tiny:
            longest, batch = longest // 8, batch // 8
        lengths = draw_lengths(kind, (WARMUP + steps) * batch, longest)
        data = make_dataset(lengths)
        recipe = make_recipe(TINY if tiny else BASE, batch, longest, precision="bf16")
        contenders = list_contenders(recipe, data, device, steps, tiny, name)
        turns: dict[str, list[float]] = {each: [] for each in contenders}
        peaks: dict[str, float] = {}
        for _ in range(rounds):
            for contender, run in contenders.items():
                free(device)
                turns[contender].append(run())
                peaks[contender] = peak_gib(device)
        of_token = flops_per_token(recipe, lengths)
        peak = device_peak_flops(device, torch.bfloat16)
        for contender, speeds in turns.items():
            speed = statistics.median(speeds)
            yield {
                "shape": name,
                "contender": contender,
                "tokens_per_second": speed,
                "samples_per_second": speed / float(lengths.mean()),
                "tflops": speed * of_token / 1e12,
                "mfu": None if peak is None else speed * of_token / peak,
                "peak_gib": peaks[contender],
                "rounds": speeds,
            }


def list_contenders(
    recipe: Recipe, data: PreparedDataset, device: str, steps: int, tiny: bool, name: str
) -> dict[str, Callable[[], float]]:
    """Return what trains on one shape: functions that return real tokens a second."""

    def ours() -> float:
        done = run_steps(make_loop(recipe, data, device), WARMUP + steps)[WARMUP:]
        return sum(step.tokens for step in done) / sum(step.seconds for step in done)

    def theirs(**settings: Any) -> Callable[[], float]:
        return lambda: train_with_trainer(recipe, data, device, steps, **settings)

    contenders = {"Bertha": ours, "Trainer, bf16, dynamic padding": theirs()}
    if name == "reviews":
        contenders["Trainer, bf16, grouped by length"] = theirs(is_grouped=True)
    if name == "128 full" and not tiny:
        contenders["Trainer, bf16, compiled"] = theirs(torch_compile=True)
    return contenders


class RowsOfSplit(Dataset[dict[str, Any]]):
    """The rows of a dataset as Trainer reads them."""

    def __init__(self, data: PreparedDataset) -> None:
        self.split = data.train

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids = self.split.samples[index].tolist()
        return {"input_ids": ids, "labels": int(self.split.targets[index])}


def pad_rows(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Pad rows to the longest of them, as DataCollatorWithPadding does."""
    longest = max(len(row["input_ids"]) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
    labels = torch.tensor([row["labels"] for row in rows])
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": labels}


class StepClock(TrainerCallback):
    """Records the time at the end of each step, the device done."""

    def __init__(self, device: str) -> None:
        self.device, self.ticks = device, list[float]()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Read the clock."""
        if len(self.ticks) in (0, WARMUP - 1) or self.device == "cpu":
            synchronize(self.device)
        self.ticks.append(time.perf_counter())


def train_with_trainer(
    recipe: Recipe,
    data: PreparedDataset,
    device: str,
    steps: int,
    is_grouped: bool = False,
    **settings: Any,
) -> float:
    """Return Trainer's real tokens a second: bf16, SDPA, fused AdamW, batches of the recipe."""
    sizes = {name: getattr(recipe.model, name) for name in TINY}
    config = BertConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=512,
        attention_probs_dropout_prob=0.0,
        hidden_dropout_prob=recipe.model.dropout,
        **sizes,
    )
    clock, size = StepClock(device), recipe.global_batch_size
    with tempfile.TemporaryDirectory() as directory:
        arguments = TrainingArguments(
            output_dir=directory,
            per_device_train_batch_size=size,
            max_steps=WARMUP + steps,
            bf16=True,
            optim="adamw_torch_fused",
            train_sampling_strategy="group_by_length" if is_grouped else "sequential",
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=device == "cpu",
            **settings,
        )
        trainer = Trainer(
            model=BertForSequenceClassification._from_config(config, attn_implementation="sdpa"),
            args=arguments,
            train_dataset=RowsOfSplit(data),
            data_collator=pad_rows,
            callbacks=[clock],
        )
        trainer.train()
        synchronize(device)
        ended = time.perf_counter()
    counted = data.train.samples.lengths.sum() * steps / (WARMUP + steps)
    return float(counted / (ended - clock.ticks[WARMUP - 1]))


def flops_per_token(recipe: Recipe, lengths: np.ndarray) -> float:
    """Return the model's FLOPs of training one token of these texts."""
    tokens, squares = int(lengths.sum()), int(np.square(lengths).sum())
    return find_shape(recipe).batch_training_flops(len(lengths), tokens, squares) / tokens


def find_shape(recipe: Recipe) -> ModelShape:
    """Return the sizes of the recipe's model, without making its weights."""
    config = build_config(recipe, ("no", "yes"), FakeTokenizer(VOCABULARY))
    return shape_from_config(config, recipe.task, 2)


def measure_dropout(device: str, tiny: bool) -> Iterator[Row]:
    """Measure what keyed dropout costs a step."""
    batch, longest = (8, 16) if tiny else (128, 128)
    data, times = make_dataset(draw_lengths("full", 4 * batch, longest)), {}
    for rate in (0.0, 0.1):
        model = {"dropout": rate}
        recipe = make_recipe(TINY if tiny else BASE, batch, longest, precision="bf16", model=model)
        steps = run_steps(make_loop(recipe, data, device), 3 if tiny else 12)
        times[rate] = statistics.median(step.seconds for step in steps[2:])
        free(device)
    yield {"share_of_a_step": 1 - times[0.0] / times[0.1], "seconds": times[0.1]}


def compare_evaluations(device: str, tiny: bool) -> Iterator[Row]:
    """Compare evaluation in the training precision with the exact one: time, loss and labels."""
    rows = 64 if tiny else 2048
    data = make_dataset(draw_lengths("reviews", rows + 64, 64 if tiny else 512), num_test=rows)
    recipe = make_recipe(TINY if tiny else BASE, 16, 64 if tiny else 512, precision="bf16")
    loop = make_loop(recipe, data, device)
    found: dict[bool, Any] = {}
    for is_exact in (False, True):
        seconds = time_call(
            lambda exact=is_exact: found.update({exact: loop.evaluate(data.test, is_exact=exact)}),
            device,
            1,
        )
        yield {"is_exact": is_exact, "seconds": seconds, "loss": found[is_exact]["loss"]}
    differs = abs(found[False]["loss"] - found[True]["loss"])
    yield {"loss_differs": differs, "holds": differs <= 2e-2}


def compare_memory(device: str, tiny: bool) -> Iterator[Row]:
    """Compare the peak of a token budget with the memory model; then run out of memory."""
    if device != "cuda":
        yield {"skipped": "the CPU counts no peak of tensors; trainers/planning has a test of it"}
        return
    for budget in (8192, 32768):
        batch = 2 * budget // 128
        recipe = make_recipe(BASE, batch, 128, precision="bf16", batch={"token_budget": budget})
        data = make_dataset(draw_lengths("full", 2 * batch, 128))
        free(device)
        run_steps(make_loop(recipe, data, device), 2)
        setup = TrainingSetup(budget // 128, 128, 2, "bf16", "adamw")
        (predicted,) = memory_by_rank(find_shape(recipe), Layout().resolve_for(1), setup)
        ratio = predicted.total / 2**30 / peak_gib(device)
        holds = 0.85 <= ratio <= 1.25
        yield {"budget": budget, "peak_gib": peak_gib(device), "predicted": ratio, "holds": holds}
    yield run_out_of_memory(device)


def run_out_of_memory(device: str) -> Row:
    """Begin with a token budget that no device can hold; the run must lower it and go on."""
    budget = 2**22
    recipe = make_recipe(BASE, budget // 512, 512, precision="bf16", batch={"token_budget": budget})
    loop = make_loop(recipe, make_dataset(draw_lengths("full", budget // 512, 512)), device)
    warnings = 0
    for event in loop.run(waits=True):
        warnings += isinstance(event, WarningEvent)
        if isinstance(event, StepEvent):
            break
    holds = warnings > 0 and loop.token_budget < budget
    return {"asked_budget": budget, "lowered_to": loop.token_budget, "holds": holds}


def free(device: str) -> None:
    """Give back what ended runs held, and begin to count the peak anew."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gib(device: str) -> float:
    """Return the most memory of tensors since `free`, 0 on the CPU."""
    return torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0.0
