"""Rows that a bag of words can learn, as CSV files."""

import csv
import random
from pathlib import Path

from trainers.config import recipe as recipes
from trainers.config.recipe import Recipe

TOPICS = {
    "billing": ["invoice", "refund", "charge", "payment", "price"],
    "delivery": ["parcel", "courier", "late", "box", "tracking"],
    "login": ["password", "account", "email", "reset", "locked"],
}
PLAIN = ["please", "help", "with", "my", "the", "is", "was", "today", "again", "and", "not"]


def write_tickets(path: Path, task: str = "classification", rows: int = 150) -> Path:
    """Write `text,label`: one topic a row, for multi-label one or two, for regression a number."""
    draw, lines = random.Random(3), []
    names = list(TOPICS)
    for row in range(rows):
        topics = [names[row % 3]] + ([names[(row + 1) % 3]] if row % 4 == 0 else [])
        if task == "classification":
            topics = topics[:1]
        words = [draw.choice(PLAIN) for _ in range(8)]
        for topic in topics:
            for _ in range(2):
                words.insert(draw.randrange(len(words)), draw.choice(TOPICS[topic]))
        label = "|".join(topics)
        if task == "regression":
            label = f"{100 + 50 * names.index(topics[0]) + draw.gauss(0, 3):.2f}"
        lines.append((" ".join(words), label))
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *lines])
    return path


def ticket_recipe(path: Path, tiny_bert: Path, task: str = "classification", *more: str) -> Recipe:
    settings = [
        f"task={task}",
        f"data.source={path}",
        f"model.name={tiny_bert}",
        "batch.global_size=16",
        "batch.max_length=32",
        "optimizer.learning_rate=1e-3",
        "stopping.epochs=2",
        "stopping.patience=null",
        "data.validation=0.2",
        "data.test=0.25",
        "precision=fp32",
    ]
    return recipes.load_recipe("csv", [*settings, *more])
