"""Training speed against Hugging Face Trainer: same model, data, global batches and threads.

Every contender trains on the same global batches in the same order, in one process, in turns
(A B C, A B C, ...); the table gives medians over the rounds, and each round's ratio to the first
Trainer row. CPU seconds count all threads and are the fairer figure on a shared machine.

    python benchmarks/train.py imdb --rounds 3 --steps 2
    python benchmarks/train.py reviews batch.max_length=512 --rounds 2 --steps 3
    python benchmarks/train.py reviews --accuracy --seeds 3
"""

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Callable
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

from cluster.costmodel.layout import Layout
from trainers.config import recipe
from trainers.config.recipe import Recipe
from trainers.data import prepare
from trainers.data.microbatch import order
from trainers.data.packages import resolve_model
from trainers.data.prepare import Split
from trainers.data.tokenizer import Samples
from trainers.distributed.device import DEVICES
from trainers.distributed.mesh import Mesh
from trainers.models.build import build
from trainers.parallel.parallelize import parallelize
from trainers.tracking import provenance
from trainers.training.events import Step
from trainers.training.loop import Loop

RESULTS = Path(__file__).parent / "results"
WARMUP = 1  # steps not counted


@dataclass(frozen=True)
class Turn:
    """What one contender did in one round: the counted steps."""

    seconds: float
    cpu_seconds: float
    samples: int
    tokens: int
    computed_tokens: int


@dataclass(frozen=True)
class Contender:
    """A name, and how it trains for some steps."""

    name: str
    train: Callable[[Recipe, prepare.Data, int], Turn]


class Ordered(Dataset[dict[str, Any]]):
    """The rows of a split in a given order, as Trainer reads them."""

    def __init__(self, split: Split, rows: np.ndarray, pad_to: int | None) -> None:
        self.split, self.rows, self.pad_to = split, rows, pad_to

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        samples, row = self.split.samples, self.rows[index]
        ids = samples.values[samples.offsets[row] : samples.offsets[row + 1]].tolist()
        mask = [1] * len(ids)
        if self.pad_to:
            filler = [0] * (self.pad_to - len(ids))
            ids, mask = ids + filler, mask + filler
        return {"input_ids": ids, "attention_mask": mask, "labels": int(self.split.targets[row])}


class InOrder(Trainer):
    """Trainer without its shuffle, so that everyone sees the same batches."""

    def _get_train_sampler(self, *_: Any, **__: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


class Clock(TrainerCallback):
    """Reads both clocks at the end of each step."""

    def __init__(self) -> None:
        self.ticks: list[tuple[float, float]] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ticks.append((time.perf_counter(), time.process_time()))


def trainer_model(made: Recipe, labels: int, attention_dropout: float) -> Any:
    """The model as Trainer's users load it."""
    torch.manual_seed(made.seed)
    return BertForSequenceClassification.from_pretrained(
        resolve_model(made.model.name),
        num_labels=labels,
        hidden_dropout_prob=made.model.dropout,
        attention_probs_dropout_prob=attention_dropout,
    )


def collator(made: Recipe) -> DataCollatorWithPadding:
    """Pads a batch to its longest."""
    return DataCollatorWithPadding(AutoTokenizer.from_pretrained(resolve_model(made.model.name)))


def trainer_arguments(made: Recipe, directory: str, **more: Any) -> TrainingArguments:
    """Trainer with the recipe's optimizer and schedule, and nothing it writes."""
    return TrainingArguments(
        output_dir=directory,
        per_device_train_batch_size=made.batch.global_size,
        per_device_eval_batch_size=64,
        learning_rate=made.optimizer.learning_rate,
        weight_decay=made.optimizer.weight_decay,
        warmup_steps=made.schedule.warmup,
        max_grad_norm=made.optimizer.max_grad_norm or 0.0,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        seed=made.seed,
        **more,
    )


def with_trainer(
    pad: bool, attention_dropout: float
) -> Callable[[Recipe, prepare.Data, int], Turn]:
    """Trainer padding to max_length, or to the longest of its batch."""

    def train(made: Recipe, prepared: prepare.Data, steps: int) -> Turn:
        split, size = prepared.train, made.batch.global_size
        rows = order(made.seed, 0, len(split))[: (WARMUP + steps) * size]
        pad_to = made.batch.max_length if pad else None
        clock = Clock()
        with tempfile.TemporaryDirectory() as directory:
            trainer = InOrder(
                model=trainer_model(made, len(prepared.labels), attention_dropout),
                args=trainer_arguments(made, directory, max_steps=WARMUP + steps),
                train_dataset=Ordered(split, rows, pad_to),
                data_collator=collator(made),
                callbacks=[clock],
            )
            trainer.train()
        lengths = split.samples.lengths[rows[WARMUP * size :]]
        longest = [pad_to or max(batch) for batch in lengths.reshape(steps, size)]
        (start, cpu_start), (end, cpu_end) = clock.ticks[WARMUP - 1], clock.ticks[-1]
        return Turn(
            end - start,
            cpu_end - cpu_start,
            steps * size,
            int(lengths.sum()),
            int(sum(longest)) * size,
        )

    return train


def loop_of(made: Recipe, prepared: prepare.Data) -> Loop:
    """The loop of this project, in this process."""
    model, alone = build(made, prepared.labels, 0), Mesh.of(Layout(), "cpu")
    parallel = parallelize(model, alone, lambda part: part)
    return Loop(made, prepared, prepare.encoder_of(made), parallel, DEVICES["cpu"])


def with_bertha(attention_dropout: float) -> Callable[[Recipe, prepare.Data, int], Turn]:
    """The loop of this project."""

    def train(made: Recipe, prepared: prepare.Data, steps: int) -> Turn:
        changes = {"model": made.model.model_copy(update={"attention_dropout": attention_dropout})}
        stopping = made.stopping.model_copy(update={"max_steps": WARMUP + steps})
        evaluation = made.evaluation.model_copy(update={"every_steps": 10**6})
        made = made.model_copy(update={**changes, "stopping": stopping, "evaluation": evaluation})
        none = Samples(prepared.train.samples.values[:0], prepared.train.samples.offsets[:1])
        nothing = Split(none, prepared.train.targets[:0])
        empty = dataclasses.replace(prepared, validation=nothing)
        loop = loop_of(made, empty)
        counted: list[Step] = []
        start = cpu_start = end = cpu_end = 0.0
        for event in loop.run():
            if isinstance(event, Step):
                end, cpu_end = time.perf_counter(), time.process_time()
                if event.step == WARMUP:
                    start, cpu_start = end, cpu_end
                else:
                    counted.append(event)
        return Turn(
            end - start,
            cpu_end - cpu_start,
            sum(step.samples for step in counted),
            sum(step.tokens for step in counted),
            sum(step.computed_tokens for step in counted),
        )

    return train


CONTENDERS = [
    Contender("Trainer, dynamic padding", with_trainer(pad=False, attention_dropout=0.1)),
    Contender("Trainer, padded to max_length", with_trainer(pad=True, attention_dropout=0.1)),
    Contender("Trainer, dynamic, attention dropout 0", with_trainer(False, attention_dropout=0.0)),
    Contender("Bertha, attention dropout 0.1", with_bertha(attention_dropout=0.1)),
    Contender("Bertha, attention dropout 0 (default)", with_bertha(attention_dropout=0.0)),
]


def race(made: Recipe, prepared: prepare.Data, rounds: int, steps: int) -> dict[str, Any]:
    """Let every contender train `rounds` times in turns; the table and the raw turns."""
    turns: dict[str, list[Turn]] = {contender.name: [] for contender in CONTENDERS}
    for number in range(rounds):
        for contender in CONTENDERS:
            turn = contender.train(made, prepared, steps)
            turns[contender.name].append(turn)
            speed = turn.samples / turn.seconds
            print(f"round {number + 1}  {contender.name:<40} {speed:7.2f} samples/s", flush=True)
    first = turns[CONTENDERS[0].name]
    print(f"\n{'':<40} samples/s  CPU s/sample  padding   speed-up (wall)  speed-up (CPU)")
    for name, own in turns.items():
        wall = [a.seconds / b.seconds for a, b in zip(first, own, strict=True)]
        cpu = [a.cpu_seconds / b.cpu_seconds for a, b in zip(first, own, strict=True)]
        print(
            f"{name:<40} {statistics.median(t.samples / t.seconds for t in own):9.2f}"
            f"{statistics.median(t.cpu_seconds / t.samples for t in own):14.3f}"
            f"{1 - own[0].tokens / own[0].computed_tokens:9.1%}"
            f"{statistics.median(wall):16.2f}x{statistics.median(cpu):15.2f}x"
        )
    return {name: [dataclasses.asdict(turn) for turn in own] for name, own in turns.items()}


def accuracies(made: Recipe, prepared: prepare.Data, seeds: int) -> dict[str, list[float]]:
    """Held-out accuracy after the same epochs: Trainer as its documentation leaves it, and ours."""
    found: dict[str, list[float]] = {"Trainer": [], "Bertha": []}
    for seed in range(seeds):
        seeded = made.model_copy(update={"seed": seed})
        found["Trainer"].append(trainer_accuracy(seeded, prepared))
        loop = loop_of(seeded, prepared)
        for _ in loop.run():
            pass
        found["Bertha"].append(loop.evaluate(prepared.test)["accuracy"])
        print(
            f"seed {seed}  " + "  ".join(f"{k} {v[-1]:.4f}" for k, v in found.items()), flush=True
        )
    for name, values in found.items():
        print(f"{name:<8} mean {statistics.mean(values):.4f}")
    return found


def trainer_accuracy(made: Recipe, prepared: prepare.Data) -> float:
    """Accuracy on the test rows after Trainer's own shuffled epochs."""
    train, test = (Ordered(s, np.arange(len(s)), None) for s in (prepared.train, prepared.test))
    with tempfile.TemporaryDirectory() as directory:
        trainer = Trainer(
            model=trainer_model(made, len(prepared.labels), 0.1),
            args=trainer_arguments(made, directory, num_train_epochs=made.stopping.epochs),
            train_dataset=train,
            data_collator=collator(made),
        )
        trainer.train()
        said = trainer.predict(test).predictions.argmax(axis=1)
    return float((said == prepared.test.targets).mean())


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
    made = recipe.load(options.recipe, [f"stopping.epochs={options.epochs}", *options.overrides])
    prepared = prepare.prepare(made, Path(options.cache).expanduser())
    kind = "accuracy" if options.accuracy else "speed"
    if options.accuracy:
        figures: dict[str, Any] = accuracies(made, prepared, options.seeds)
    else:
        figures = race(made, prepared, options.rounds, options.steps)
    RESULTS.mkdir(exist_ok=True)
    stored = {"environment": provenance.environment(), "options": vars(options), "figures": figures}
    (RESULTS / f"train-{kind}-{options.recipe}.json").write_text(
        json.dumps(stored, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
