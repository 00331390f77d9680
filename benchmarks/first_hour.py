"""The first hour: shipped defaults on a few hundred rows, beside a bag of words and Trainer.

Twelve data sets, as people bring them: made ones (`first_hour_data.py`), and subsamples of film
reviews and news. Each is trained with `csv.yaml` as shipped (source and task alone are set), with
TF-IDF and a linear model, and with Hugging Face Trainer's own defaults, on the same rows to train
on; 500 others judge all three. The table tells each figure, the 95% interval of the difference on
the same rows, and the seconds until the first answer.

    python benchmarks/first_hour.py                           # about an hour
    python benchmarks/first_hour.py --only tickets-300 --seeds 1
    python benchmarks/first_hour.py --surface                 # what comes of other settings
"""

import argparse
import csv
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from first_hour_data import MADE, Row, write_rows
from torch.utils.data import Dataset

from cluster.spec import load_cluster_spec
from trainers.config.recipe import Recipe, Task, load_recipe
from trainers.data import prepare
from trainers.data.corpus import gather_corpus
from trainers.data.packages import resolve_model
from trainers.evaluation.intervals import Answers, bootstrap_difference, compute_figures
from trainers.evaluation.predictions import PREDICTIONS_FILE, read_predictions
from trainers.runtime.fit import fit
from trainers.tracking import provenance

RESULTS = Path(__file__).parent / "results"
JUDGES = 500  # rows that judge, trained on by nobody
LEARNED = {"classification": "f1", "multi-label": "f1", "regression": "r2"}
SIZES = {
    "tickets": (100, 300),
    "hotel": (300,),
    "cars": (300,),
    "reviews": (100, 300, 1000, 5000),
    "news": (100, 300, 1000, 1700),
}
PROBLEMS = {  # Transformers' names
    "classification": "single_label_classification",
    "multi-label": "multi_label_classification",
    "regression": "regression",
}
# One setting at a time is moved away from the middle, which is about what `auto` takes.
MIDDLE = {"rate": 1.2e-4, "batch": 16, "epochs": 10}
MOVES: dict[str, tuple[float, ...]] = {
    "rate": (2.5e-5, 5e-5, 2.4e-4, 5e-4),
    "batch": (8, 32),
    "epochs": (3, 5, 20),
}
COLUMNS = ("case", "seed", "probe", "rate", "batch", "epochs")
FOUND = ("value", "steps", "best_step", "seconds")
Record = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A data set: its rows to train on and those that judge, in files."""

    name: str
    task: Task
    train: Path
    test: Path

    def recipe(self, *overrides: str) -> Recipe:
        """Return the shipped recipe for a file of one's own, on these files."""
        own = (f"task={self.task}", f"data.source={self.train}", f"data.test={self.test}")
        return load_recipe("csv.yaml", [*own, "precision=fp32", *overrides])


def write_case(kind: str, rows: int, seed: int, directory: Path) -> Case:
    """Write the files of `rows` rows of a kind, drawn with `seed`."""
    task, drawn = ("classification", _sample_package(kind, rows + JUDGES, seed))
    if kind in MADE:
        task, make = MADE[kind]
        drawn = list(make(2 * (rows + JUDGES), seed))
    texts: dict[str, Row] = {}
    for row in drawn:
        texts.setdefault(row[0], row)
    unique = list(texts.values())[: rows + JUDGES]
    case = Case(f"{kind}-{rows}", task, directory / "rows.csv", directory / "judges.csv")
    write_rows(case.train, iter(unique[:rows]))
    write_rows(case.test, iter(unique[rows:]))
    return case


def _sample_package(kind: str, rows: int, seed: int) -> list[Row]:
    if kind in MADE:
        return []
    recipe = load_recipe({"reviews": "reviews.yaml", "news": "bbc-news.yaml"}[kind])
    corpus = gather_corpus(recipe, lambda text: text)
    found = [
        (text, label[0])
        for split in corpus.splits.values()
        for text, label in zip(split.texts, split.labels, strict=True)
    ]
    order = np.random.default_rng(seed).permutation(len(found))
    return [found[place] for place in order[:rows]]


def train_ours(case: Case, place: Path, *overrides: str) -> tuple[Record, Answers]:
    """Train with the shipped defaults; return what is told of it, and the answers."""
    started, recipe = time.monotonic(), case.recipe(*overrides)
    cluster = load_cluster_spec("local.yaml").with_workers(0)
    outcome = fit(recipe, cluster, place / "run")
    seconds = time.monotonic() - started
    result = outcome.result
    found = read_predictions(place / "run" / PREDICTIONS_FILE, str(place))
    answers = found.predictions.to_answers(case.task, found.shift)
    told = {name: result[name] for name in ("steps", "best_step", "stopped_early")}
    record = json.loads((place / "run" / "record.json").read_text())
    return {"seconds": seconds, "settings": record["settings"], **told}, answers


def answer_by_words(case: Case, rows: np.ndarray) -> tuple[Record, Answers]:
    """Fit a bag of words to the same rows, and answer those that judge."""
    from trainers.evaluation.baseline import fit_baselines

    recipe = case.recipe("data.validation=0", "stopping.patience=null")
    started = time.monotonic()
    encoder = prepare.load_recipe_encoder(recipe)
    corpus = gather_corpus(recipe, encoder.clean)
    baseline = fit_baselines(corpus, case.task, rows)
    answers = Answers(case.task, baseline.words, corpus.build_targets("test")[rows])
    return {"seconds": time.monotonic() - started}, answers


class Rows(Dataset[dict[str, Any]]):
    """Tokenized rows, as Trainer reads them."""

    def __init__(self, tokens: Sequence[Any], targets: np.ndarray) -> None:
        self._tokens, self._targets = tokens, targets

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"input_ids": self._tokens[row], "labels": self._targets[row]}


def train_with_trainer(case: Case, seed: int, place: Path) -> tuple[Record, Answers]:
    """Train with Trainer and its own defaults: 3 epochs, batches of 8, 5e-5."""
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    started = time.monotonic()
    recipe = case.recipe("data.validation=0", "stopping.patience=null")
    corpus = gather_corpus(recipe, lambda text: text)
    source = resolve_model(recipe.model.name)
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForSequenceClassification.from_pretrained(
        source, num_labels=max(1, len(corpus.names)), problem_type=PROBLEMS[case.task]
    )
    parts = {}
    for part in ("train", "test"):
        texts = list(corpus.splits[part].texts)
        tokens = tokenizer(texts, truncation=True, max_length=recipe.batch.max_length)["input_ids"]
        parts[part] = Rows(tokens, corpus.build_targets(part))
    arguments = TrainingArguments(
        output_dir=str(place / "trainer"), seed=seed, report_to=[], save_strategy="no"
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=parts["train"],
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    trainer.train()
    outputs = trainer.predict(parts["test"]).predictions
    answers = Answers(case.task, np.asarray(outputs, np.float32), corpus.build_targets("test"))
    return {"seconds": time.monotonic() - started, "rows": len(parts["train"])}, answers


def compare(case: Case, seed: int, place: Path) -> Record:
    """Train all three on one case; return the record."""
    metric = LEARNED[case.task]
    own, ours = train_ours(case, place, f"seed={seed}")
    rows = np.arange(len(ours))
    record: Record = {"case": case.name, "seed": seed, "metric": metric}
    record["ours"] = own | {"value": compute_figures(ours)[metric]}
    for name, (told, theirs) in (
        ("bag of words", answer_by_words(case, rows)),
        ("trainer", train_with_trainer(case, seed, place)),
    ):
        low, high = bootstrap_difference(ours, theirs, metric)
        value = compute_figures(theirs)[metric]
        record[name] = told | {"value": value, "difference": [low, high]}
    return record


def measure(names: Sequence[str], seeds: int) -> Iterator[Record]:
    """Yield a record of each case and seed."""
    for seed in range(seeds):
        for kind, sizes in SIZES.items():
            for size in sizes:
                if names and f"{kind}-{size}" not in names:
                    continue
                with tempfile.TemporaryDirectory() as directory:
                    place = Path(directory)
                    yield compare(write_case(kind, size, seed, place), seed, place)


def surface_points() -> list[tuple[Any, ...]]:
    """Return (probe, rate, batch, epochs) of the points of the surface."""
    settings = [MIDDLE] + [MIDDLE | {key: value} for key in MOVES for value in MOVES[key]]
    return [(probe, *each.values()) for each in settings for probe in ("true", "false")]


def record_surface(names: Sequence[str], seeds: int, table: Path) -> None:
    """Append to `table` what each point comes to that it does not hold yet."""
    if not table.is_file():
        table.parent.mkdir(parents=True, exist_ok=True)
        table.write_text(",".join(COLUMNS + FOUND) + "\n")
    for seed in range(seeds):
        for kind, sizes in SIZES.items():
            for size in sizes:
                if names and f"{kind}-{size}" not in names:
                    continue
                for point in surface_points():
                    key = tuple(map(str, (f"{kind}-{size}", seed, *point)))
                    with table.open() as file:
                        done = {
                            tuple(row[name] for name in COLUMNS) for row in csv.DictReader(file)
                        }
                    if key not in done:
                        _append_point(table, kind, size, key)


def _append_point(table: Path, kind: str, size: int, key: tuple[str, ...]) -> None:
    _, seed, probe, rate, batch, epochs = key
    settings = [f"optimizer.learning_rate={rate}", f"batch.global_size={batch}", f"seed={seed}"]
    settings += [f"stopping.epochs={epochs}", "stopping.patience=null", "baseline=false"]
    with tempfile.TemporaryDirectory() as directory:
        case = write_case(kind, size, int(seed), Path(directory))
        told, answers = train_ours(case, Path(directory), *settings, f"linear_probe={probe}")
    value = compute_figures(answers)[LEARNED[case.task]]
    found = (f"{value:.4f}", told["steps"], told["best_step"], f"{told['seconds']:.1f}")
    with table.open("a") as file:
        file.write(",".join(map(str, (*key, *found))) + "\n")


def print_table(records: Sequence[Record]) -> None:
    """Print the medians over the seeds of each case, a line each."""
    print("| rows | ours | bag of words | Trainer | seconds ours, Trainer |\n|---|---|---|---|---|")
    for name in dict.fromkeys(record["case"] for record in records):
        own = [record for record in records if record["case"] == name]
        cells = [
            f"{statistics.median(record[who]['value'] for record in own):.3f}"
            for who in ("ours", "bag of words", "trainer")
        ]
        seconds = [
            f"{statistics.median(record[who]['seconds'] for record in own):.0f}"
            for who in ("ours", "trainer")
        ]
        print(f"| {name} | {' | '.join(cells)} | {', '.join(seconds)} |")


def main() -> None:
    """Measure, print, and keep the records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=[], metavar="CASE")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--surface", action="store_true", help="record the surface instead")
    parser.add_argument(
        "--table", type=Path, default=Path(__file__).parent / "data" / "surface-first-hour.csv"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "first-hour.json")
    options = parser.parse_args()
    if options.surface:
        record_surface(options.only, options.seeds, options.table)
        return
    records = []
    for record in measure(options.only, options.seeds):
        records.append(record)
        document = {"environment": provenance.describe_environment(), "records": records}
        options.out.write_text(json.dumps(document, indent=1) + "\n")
        print(json.dumps(record), flush=True)
    print_table(records)


if __name__ == "__main__":
    main()
