"""Training speed against Hugging Face Trainer: same model, rows, batch size, precision and threads.

Every contender trains on the same rows in one process, in turns (A B C, A B C, ...). All but one
take the same global batches in the same order; Trainer grouped by length chooses its batches from
these rows, which changes what is learned, and leaves it little padding. The table gives medians of
real tokens a second over the rounds, and of each round's ratio to both. Attention dropout is 0 for
all. CPU seconds count all threads and are the fairer figure on a shared machine.

    python benchmarks/train.py reviews --rounds 3 --steps 49
    python benchmarks/train.py imdb --rounds 2 --steps 49
    python benchmarks/train.py reviews --accuracy --seeds 3
"""

import argparse
import dataclasses
import functools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, SequentialSampler
from transformers import (
    AutoTokenizer,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_pt_utils import get_length_grouped_indices

from cluster.costmodel.layout import Layout
from trainers.config.recipe import Recipe, load_recipe
from trainers.data import prepare
from trainers.data.dataset_cache import DatasetSplit, PreparedDataset
from trainers.data.microbatch import epoch_order
from trainers.data.packages import resolve_model
from trainers.data.ragged import RaggedArray
from trainers.distributed.device import DEVICES
from trainers.distributed.mesh import Mesh
from trainers.models.build import build_model
from trainers.parallel.parallelize import parallelize
from trainers.tracking import provenance
from trainers.training.events import StepEvent
from trainers.training.loop import TrainingLoop

RESULTS = Path(__file__).parent / "results"
WARMUP = 1  # steps not counted
GROUPED_BATCHES = 50  # that Trainer sorts together


@dataclass(frozen=True)
class Turn:
    """The counted steps of one contender in one round."""

    seconds: float
    cpu_seconds: float
    samples: int
    tokens: int
    computed_tokens: int


@dataclass(frozen=True)
class TrainingContender:
    """A name, and a function that trains for a number of steps."""

    name: str
    train: Callable[[Recipe, PreparedDataset, int], Turn]


class OrderedRows(Dataset[dict[str, Any]]):
    """The rows of a split in a given order, as Trainer reads them. taken: rows in its order."""

    def __init__(self, split: DatasetSplit, rows: np.ndarray) -> None:
        self.split, self.rows = split, rows
        self.taken: list[int] = []

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = int(self.rows[index])
        self.taken.append(row)
        ids = self.split.samples[row].tolist()
        label = int(self.split.targets[row])
        return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": label}


class OrderedTrainer(Trainer):
    """Trainer that takes its rows in their order, so that all contenders get the same batches."""

    def _get_train_sampler(self, *_: Any, **__: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


def group_by_length(rows: np.ndarray, lengths: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Return rows as Trainer groups them in a long run: each 50 batches sorted by length."""
    generator = torch.Generator().manual_seed(seed)
    many = min(GROUPED_BATCHES, len(rows) // size)
    order = get_length_grouped_indices(
        lengths.tolist(), size, mega_batch_mult=many, generator=generator
    )
    return rows[order]


class StepClock(TrainerCallback):
    """Records wall and CPU time at the end of each step."""

    def __init__(self) -> None:
        self.ticks: list[tuple[float, float]] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Read both clocks."""
        self.ticks.append((time.perf_counter(), time.process_time()))


def load_trainer_model(
    recipe: Recipe, labels: int, attention_dropout: float, attention: str = "sdpa"
) -> Any:
    """Load the model as users of Trainer do."""
    torch.manual_seed(recipe.seed)
    return BertForSequenceClassification.from_pretrained(
        resolve_model(recipe.model.name),
        num_labels=labels,
        hidden_dropout_prob=recipe.model.dropout,
        attention_probs_dropout_prob=attention_dropout,
        attn_implementation=attention,
    )


def build_collator(recipe: Recipe) -> DataCollatorWithPadding:
    """Return a collator that pads a batch to its longest row."""
    return DataCollatorWithPadding(AutoTokenizer.from_pretrained(resolve_model(recipe.model.name)))


def build_training_arguments(recipe: Recipe, directory: str, **more: Any) -> TrainingArguments:
    """Return arguments of the recipe's optimizer and schedule, without logs or checkpoints."""
    return TrainingArguments(
        output_dir=directory,
        per_device_train_batch_size=recipe.global_batch_size,
        per_device_eval_batch_size=64,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.optimizer.weight_decay,
        warmup_steps=recipe.schedule.warmup,
        max_grad_norm=recipe.optimizer.max_grad_norm or 0.0,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        seed=recipe.seed,
        **more,
    )


def make_trainer_run(
    is_grouped: bool, precision: str
) -> Callable[[Recipe, PreparedDataset, int], Turn]:
    """Return a run of Trainer that pads to the longest of its batch.

    On a CPU its fused attention is slow backwards in bf16, so there it takes the eager one.
    """

    def train(recipe: Recipe, prepared: PreparedDataset, steps: int) -> Turn:
        split, size = prepared.train, recipe.global_batch_size
        chosen = epoch_order(recipe.seed, 0, len(split))[: (WARMUP + steps) * size]
        if is_grouped:
            lengths = split.samples.lengths[chosen]
            chosen = group_by_length(chosen, lengths, size, recipe.seed)
        rows = OrderedRows(split, chosen)
        attention = "eager" if precision == "bf16" else "sdpa"
        more = {"max_steps": WARMUP + steps, "bf16": precision == "bf16"}
        clock = StepClock()
        with tempfile.TemporaryDirectory() as directory:
            trainer = OrderedTrainer(
                model=load_trainer_model(recipe, len(prepared.labels), 0.0, attention),
                args=build_training_arguments(recipe, directory, **more),
                train_dataset=rows,
                data_collator=build_collator(recipe),
                callbacks=[clock],
            )
            trainer.train()
        lengths = split.samples.lengths[rows.taken[WARMUP * size : (WARMUP + steps) * size]]
        longest = [max(batch) for batch in lengths.reshape(steps, size)]
        (start, cpu_start), (end, cpu_end) = clock.ticks[WARMUP - 1], clock.ticks[-1]
        return Turn(
            end - start,
            cpu_end - cpu_start,
            steps * size,
            int(lengths.sum()),
            int(sum(longest)) * size,
        )

    return train


def build_loop(recipe: Recipe, prepared: PreparedDataset) -> TrainingLoop:
    """Build the training loop of this project, in this process."""
    model, mesh = build_model(recipe, prepared.labels, 0), Mesh.from_layout(Layout(), "cpu")
    parallel = parallelize(model, mesh, lambda part: part)
    return TrainingLoop(
        recipe, prepared, prepare.load_recipe_encoder(recipe), parallel, DEVICES["cpu"]
    )


def make_bertha_run(precision: str) -> Callable[[Recipe, PreparedDataset, int], Turn]:
    """Return a run of the training loop of this project."""

    def train(recipe: Recipe, prepared: PreparedDataset, steps: int) -> Turn:
        changes = {
            "model": recipe.model.model_copy(update={"attention_dropout": 0.0}),
            "precision": precision,
        }
        stopping = recipe.stopping.model_copy(update={"max_steps": WARMUP + steps})
        evaluation = recipe.evaluation.model_copy(update={"every_steps": 10**6})
        recipe = recipe.model_copy(
            update={**changes, "stopping": stopping, "evaluation": evaluation}
        )
        no_rows = RaggedArray(prepared.train.samples.values[:0], prepared.train.samples.offsets[:1])
        no_split = DatasetSplit(no_rows, prepared.train.targets[:0])
        loop = build_loop(recipe, dataclasses.replace(prepared, validation=no_split))
        counted_steps: list[StepEvent] = []
        start = cpu_start = end = cpu_end = 0.0
        for event in loop.run():
            if isinstance(event, StepEvent):
                end, cpu_end = time.perf_counter(), time.process_time()
                if event.step == WARMUP:
                    start, cpu_start = end, cpu_end
                else:
                    counted_steps.append(event)
        return Turn(
            end - start,
            cpu_end - cpu_start,
            sum(step.samples for step in counted_steps),
            sum(step.tokens for step in counted_steps),
            sum(step.computed_tokens for step in counted_steps),
        )

    return train


DYNAMIC, GROUPED = "Trainer, dynamic padding", "Trainer, grouped by length"


def list_contenders(precisions: Sequence[str]) -> list[TrainingContender]:
    """Return the three ways to train in each precision."""
    return [
        TrainingContender(f"{name}, {precision}", make(precision))
        for precision in precisions
        for name, make in (
            (DYNAMIC, functools.partial(make_trainer_run, False)),
            (GROUPED, functools.partial(make_trainer_run, True)),
            ("Bertha", make_bertha_run),
        )
    ]


def race_contenders(
    recipe: Recipe, prepared: PreparedDataset, rounds: int, steps: int
) -> dict[str, Any]:
    """Train every contender `rounds` times in turns; print the table and return the turns."""
    precisions = ["fp32", "bf16"] if DEVICES["cpu"].has_fast_bf16() else ["fp32"]
    contenders = list_contenders(precisions)
    turns: dict[str, list[Turn]] = {contender.name: [] for contender in contenders}
    for number in range(rounds):
        for contender in contenders:
            turn = contender.train(recipe, prepared, steps)
            turns[contender.name].append(turn)
            speed = turn.tokens / turn.seconds
            print(f"round {number + 1}  {contender.name:<36} {speed:9,.0f} tokens/s", flush=True)
    print(f"\n{'':<36} tokens/s  CPU ms/token  padding   to dynamic       to grouped")
    for name, own in turns.items():
        precision = name.rpartition(" ")[2]
        print(
            f"{name:<36} {statistics.median(t.tokens / t.seconds for t in own):9,.0f}"
            f"{statistics.median(1000 * t.cpu_seconds / t.tokens for t in own):14.3f}"
            f"{1 - own[0].tokens / own[0].computed_tokens:9.1%}"
            f"   {format_ratio(own, turns[f'{DYNAMIC}, {precision}'])}"
            f"   {format_ratio(own, turns[f'{GROUPED}, {precision}'])}"
        )
    return {name: [dataclasses.asdict(turn) for turn in own] for name, own in turns.items()}


def format_ratio(own: list[Turn], others: list[Turn]) -> str:
    """Return the median of the rounds' ratios of real tokens a second, with their range."""
    ratios = [
        (a.tokens / a.seconds) / (b.tokens / b.seconds) for a, b in zip(own, others, strict=True)
    ]
    return f"{statistics.median(ratios):.2f}x ({min(ratios):.2f}-{max(ratios):.2f})"


def compare_accuracies(
    recipe: Recipe, prepared: PreparedDataset, seeds: int
) -> dict[str, list[float]]:
    """Held-out accuracy after the same epochs: Trainer as its documentation leaves it, and ours."""
    accuracies: dict[str, list[float]] = {"Trainer": [], "Bertha": []}
    for seed in range(seeds):
        seeded = recipe.model_copy(update={"seed": seed})
        accuracies["Trainer"].append(measure_trainer_accuracy(seeded, prepared))
        loop = build_loop(seeded, prepared)
        for _ in loop.run():
            pass
        accuracies["Bertha"].append(loop.evaluate(prepared.test)["accuracy"])
        print(
            f"seed {seed}  " + "  ".join(f"{k} {v[-1]:.4f}" for k, v in accuracies.items()),
            flush=True,
        )
    for name, values in accuracies.items():
        print(f"{name:<8} mean {statistics.mean(values):.4f}")
    return accuracies


def measure_trainer_accuracy(recipe: Recipe, prepared: PreparedDataset) -> float:
    """Return the test accuracy after Trainer's own shuffled epochs."""
    train, test = (OrderedRows(s, np.arange(len(s))) for s in (prepared.train, prepared.test))
    with tempfile.TemporaryDirectory() as directory:
        trainer = Trainer(
            model=load_trainer_model(recipe, len(prepared.labels), 0.1),
            args=build_training_arguments(recipe, directory, num_train_epochs=recipe.epochs),
            train_dataset=train,
            data_collator=build_collator(recipe),
        )
        trainer.train()
        predicted = trainer.predict(test).predictions.argmax(axis=1)
    return float((predicted == prepared.test.targets).mean())


def main() -> None:
    """Run one comparison and store it under results/."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", choices=["imdb", "reviews", "bbc-news"])
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5, help="counted steps a turn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--accuracy", action="store_true", help="compare held-out accuracy instead")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--cache", default="~/.cache/bertha")
    options = parser.parse_intermixed_args()
    torch.set_num_threads(options.threads)
    recipe = load_recipe(options.recipe, [f"stopping.epochs={options.epochs}", *options.overrides])
    prepared = prepare.prepare_dataset(recipe, Path(options.cache).expanduser())
    kind = "accuracy" if options.accuracy else "speed"
    if options.accuracy:
        figures: dict[str, Any] = compare_accuracies(recipe, prepared, options.seeds)
    else:
        figures = race_contenders(recipe, prepared, options.rounds, options.steps)
    RESULTS.mkdir(exist_ok=True)
    stored = {
        "environment": provenance.describe_environment(),
        "options": vars(options),
        "figures": figures,
    }
    (RESULTS / f"train-{kind}-{options.recipe}.json").write_text(
        json.dumps(stored, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
