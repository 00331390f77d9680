"""RUN/errors.csv: the test rows with text, truth and answer, the worst first."""

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from trainers.evaluation.held_out import HeldOut
from trainers.evaluation.intervals import Answers
from trainers.storage.atomic import atomic_file

ERRORS_FILE = "errors.csv"
MAX_ROWS = 1_000  # written
COLUMNS = {
    "regression": ("row", "text", "true", "answer", "error"),
    "classification": ("row", "text", "true", "answer", "confidence", "wrong"),
    "multi-label": ("row", "text", "true", "answer", "confidence", "wrong"),
}


def write_errors(
    path: Path, rows: HeldOut, answers: Answers, labels: tuple[str, ...], separator: str
) -> None:
    """Write the worst MAX_ROWS of the kept test rows, ranked by their loss.

    confidence: the probability of what was answered; of several labels, that of the one the model
    was least sure to give or withhold. error: answer minus truth. separator: between labels. Raises
    OSError.
    """
    with (
        atomic_file(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="replace", newline="") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(COLUMNS[answers.task])
        order = np.argsort(-answers.losses, kind="stable")[:MAX_ROWS]
        for row, cells in zip(order, _format_rows(answers, order, labels, separator), strict=True):
            writer.writerow([rows.numbers[row], rows.texts[row], *cells])


def _format_rows(
    answers: Answers, order: np.ndarray, labels: tuple[str, ...], separator: str
) -> Iterator[list[str]]:
    """Yield the cells after the text, of the rows in this order."""
    predicted, outputs = answers.predicted, answers.outputs.astype(np.float64)
    for row in order:
        true, answer, output = answers.targets[row], predicted[row], outputs[row]
        if answers.task == "regression":
            yield [f"{true:.6g}", f"{answer:.6g}", f"{answer - true:.6g}"]
        elif answers.task == "classification":
            share = np.exp(output[answer] - np.logaddexp.reduce(output))
            wrong = "yes" if answer != true else "no"
            yield [labels[true], labels[answer], f"{share:.4f}", wrong]
        else:
            share = (1 / (1 + np.exp(np.where(answer, -output, output)))).min()
            named = (
                separator.join(name for name, given in zip(labels, each, strict=True) if given)
                for each in (true > 0.5, answer)
            )
            wrong = "yes" if ((true > 0.5) != answer).any() else "no"
            yield [*named, f"{share:.4f}", wrong]
