"""The report on a data set: what was read, what was left out and why, what the texts are like."""

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from cluster.costmodel.microbatches import Lengths
from trainers.data.corpus import PARTS, Corpus, count_repeats
from trainers.data.ragged import RaggedArray
from trainers.data.rows.skips import SkippedRows

_MAX_LABELS = 20  # shown
_MAX_NAMED = 3  # in a warning
_FEW_ROWS = 30  # of a held-out side that a warning tells of
_LEAST_ROWS = {"train": 1, "validation": 2, "test": 2}  # of a class


@dataclass(frozen=True)
class DataReport:
    """Counts of rows, labels and tokens; rows, sequences and label_counts are by split.

    sequences: that the rows were packed into, {} where they were not packed, or not all.
    duplicates: rows whose text stands in an earlier row. conflicting: texts with more than one
    label. held_out: training and validation rows left out because a held-out source has their text.
    lengths (tokens) and truncated (share of texts) are of the training texts, of `sampled` of them
    where not all were encoded; of packed texts, lengths are those of the sequences. windows: of a
    training text, {} where texts are cut; the lengths are then those of all windows of a text.
    numbers: of the training targets, for regression. notes: how the labels were read.
    """

    rows_read: int
    skipped: tuple[SkippedRows, ...]
    rows: dict[str, int]
    label_counts: dict[str, dict[str, int]]
    numbers: dict[str, float]
    duplicates: int
    conflicting: int
    held_out: int
    truncated: float
    lengths: dict[str, float]
    sampled: int | None = None
    sequences: dict[str, int] = field(default_factory=dict)
    windows: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @classmethod
    def from_corpus(
        cls, corpus: Corpus, samples: RaggedArray, truncated: int, num_texts: int
    ) -> "DataReport":
        """Describe a corpus, of whose training texts `num_texts` were encoded into `samples`."""
        train = corpus.splits["train"]
        duplicates, conflicting = count_repeats(corpus.splits)
        return cls(
            rows_read=corpus.rows_read,
            skipped=corpus.skipped,
            rows={part: len(corpus.splits[part].texts) for part in PARTS},
            label_counts={part: corpus.count_labels(part) for part in PARTS if corpus.names},
            numbers=_summarize(corpus.build_targets("train"))
            if corpus.task == "regression"
            else {},
            duplicates=duplicates,
            conflicting=conflicting,
            held_out=corpus.held_out,
            truncated=truncated / len(samples),
            lengths=_summarize(samples.lengths)
            | {"spread": Lengths.from_samples(samples.lengths).spread},
            sampled=None if num_texts == len(train.texts) else num_texts,
            windows=_count_windows(samples),
            notes=corpus.notes,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "DataReport":
        """Rebuild the report that `to_json` returned."""
        skipped = tuple(SkippedRows(**skip) for skip in values["skipped"])
        notes = tuple(values.get("notes", ()))
        return cls(**{**values, "skipped": skipped, "notes": notes})

    def to_lines(self) -> list[str]:
        """Format the report for the terminal."""
        left_out = sum(skip.rows for skip in self.skipped) + self.held_out
        lines = [f"data      {self.rows_read:,} rows read, {left_out:,} left out"]
        lines += [
            f"          {skip.rows:,} by {skip.reason} (first: {skip.first})"
            for skip in self.skipped
        ]
        if self.held_out:
            lines.append(f"          {self.held_out:,} because the held-out rows have their text")
        if self.duplicates:
            lines.append(
                f"          {self.duplicates:,} rows repeat an earlier text; "
                f"{self.conflicting:,} texts have several labels"
            )
        lines += self._format_table()
        lines += [f"note      {note}" for note in self.notes]
        lines += [f"warning   {warning}" for warning in self.list_warnings()]
        if self.numbers:
            lines.append(f"targets   {_format_figures(self.numbers, ',.4g')}")
        sampled = f" (of {self.sampled:,} training texts)" if self.sampled else ""
        cut = f"; {self.truncated:.1%} of the texts are longer and cut" if self.truncated else ""
        packed = " a sequence" if self.sequences else ""
        if self.windows:
            lines.append(
                f"windows   {self.windows['texts']:.1%} of the texts are read in several windows, "
                f"at most {self.windows['max']:.0f}; {self.windows['mean']:.2f} a text"
            )
        lines.append(f"tokens    {_format_figures(self.lengths, ',.0f')}{packed}{cut}{sampled}")
        return lines

    def list_warnings(self) -> list[str]:
        """List what is wrong with the sides: few rows, and classes with few rows or none."""
        warnings = []
        for part in ("validation", "test"):
            rows = self.rows.get(part, 0)
            if 0 < rows < _FEW_ROWS:
                warnings.append(
                    f"only {rows} {part} rows, whose figures say little; raise data.{part}, which "
                    "is a share of the texts, or another source of them"
                )
        for part, counts in self.label_counts.items():
            lacking = [name for name, count in counts.items() if count < _LEAST_ROWS[part]]
            if not self.rows[part] or not lacking:
                continue
            shown = ", ".join(repr(name[:40]) for name in lacking[:_MAX_NAMED])
            more = f" and {len(lacking) - _MAX_NAMED} more" if len(lacking) > _MAX_NAMED else ""
            absent = sum(not counts[name] for name in lacking)
            if part == "train":
                what = f"{len(lacking)} of {len(counts)} classes have no training row"
                way_out = "no model learns them: add rows, or leave them out of the other sources"
            else:
                what = (
                    f"{len(lacking)} of {len(counts)} classes have fewer than 2 {part} rows "
                    f"({absent} have none)"
                )
                way_out = f"their figures say little: add rows, or raise data.{part}"
            warnings.append(f"{what}, as {shown}{more}; {way_out}")
        return warnings

    def _format_table(self) -> list[str]:
        """Format rows by split, and under them rows by label."""
        table = {"": self.rows}
        if self.sequences:
            table["packed into sequences"] = self.sequences
        labels = list(self.label_counts.get("train", {}))
        for name in labels[:_MAX_LABELS]:
            table[name[:40]] = {part: self.label_counts[part][name] for part in PARTS}
        width = max(map(len, table))
        lines = [f"rows      {'':<{width}}  {'train':>10}  {'validation':>10}  {'test':>10}"]
        lines += [
            f"          {name:<{width}}" + "".join(f"  {row[part]:>10,}" for part in PARTS)
            for name, row in table.items()
        ]
        more = len(labels) - _MAX_LABELS
        return [*lines, f"          and {more} labels more"] if more > 0 else lines


def _count_windows(samples: RaggedArray) -> dict[str, float]:
    if samples.windows is None:
        return {}
    counts = samples.windows.lengths
    several = float((counts > 1).mean())
    return {"texts": several, "mean": float(counts.mean()), "max": float(counts.max())}


def _summarize(values: np.ndarray) -> dict[str, float]:
    return {
        "min": float(values.min()),
        "median": float(np.median(values)),
        "mean": float(values.mean()),
        "p95": float(np.percentile(values, 95)),
        "max": float(values.max()),
    }


def _format_figures(values: dict[str, float], form: str) -> str:
    return ", ".join(f"{name} {value:{form}}" for name, value in values.items())
