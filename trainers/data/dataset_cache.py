"""Prepared data as a value, and its directory on disk.

Samples and targets of each split are an Arrow IPC file that is memory-mapped, not read; labels and
report are `prepared.json`. A directory that is not whole is as good as none. Knows no sources.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from trainers.data.readers import Skip
from trainers.data.tokenizer import Samples
from trainers.storage.atomic import digests, flaw, written_aside

INDEX = "prepared.json"
SPLITS = ("train", "validation", "test")
_SHOWN = 20


@dataclass(frozen=True)
class Split:
    """Rows on one side. targets: `[n]` int64 class indices, `[n, num_labels]` float32 of 0 and 1,
    or `[n]` float32; for masked-lm, whose rows are packed sequences, unused zeros `[n]` int64.
    teacher: `[n, num_labels]` float32, a teacher's logits (`teacher.py`). Arrays from a cache are
    read-only.
    """

    samples: Samples
    targets: np.ndarray
    teacher: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.samples)


@dataclass(frozen=True)
class DataReport:
    """What was read, what was left out and why, and what the texts are like.

    rows, sequences and label_counts are by split. sequences: that the rows were packed into, {}
    where they were not packed, or not all. duplicates: rows whose text stands in an earlier row;
    conflicting: texts with more than one label; held_out: training and validation rows left out
    because a held-out source has their text. lengths (tokens) and truncated (share of texts) are of
    the training texts, of `sampled` of them where not all were looked at; of packed texts, lengths
    are those of the sequences. numbers: of the training
    targets, for regression.
    """

    rows_read: int
    skipped: tuple[Skip, ...]
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

    def to_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "DataReport":
        """The report that `to_json` gave."""
        skipped = tuple(Skip(**skip) for skip in values["skipped"])
        return cls(**{**values, "skipped": skipped})

    def lines(self) -> list[str]:
        """The report for a person."""
        left_out = sum(skip.rows for skip in self.skipped) + self.held_out
        said = [f"data      {self.rows_read:,} rows read, {left_out:,} left out"]
        said += [
            f"          {skip.rows:,} by {skip.reason} (first: {skip.first})"
            for skip in self.skipped
        ]
        if self.held_out:
            said.append(f"          {self.held_out:,} because the held-out rows have their text")
        if self.duplicates:
            said.append(
                f"          {self.duplicates:,} rows repeat an earlier text; "
                f"{self.conflicting:,} texts have several labels"
            )
        said += self._table()
        if self.numbers:
            said.append(f"targets   {_figures(self.numbers, ',.4g')}")
        sampled = f" (of {self.sampled:,} training texts)" if self.sampled else ""
        cut = f"; {self.truncated:.1%} of the texts are longer and cut" if self.truncated else ""
        packed = " a sequence" if self.sequences else ""
        said.append(f"tokens    {_figures(self.lengths, ',.0f')}{packed}{cut}{sampled}")
        return said

    def _table(self) -> list[str]:
        """Rows by split, and under them rows by label."""
        table = {"": self.rows}
        if self.sequences:
            table["packed into sequences"] = self.sequences
        for name in list(self.label_counts.get("train", {}))[:_SHOWN]:
            table[name[:40]] = {split: self.label_counts[split][name] for split in SPLITS}
        width = max(map(len, table))
        said = [f"rows      {'':<{width}}  {'train':>10}  {'validation':>10}  {'test':>10}"]
        said += [
            f"          {name:<{width}}" + "".join(f"  {row[split]:>10,}" for split in SPLITS)
            for name, row in table.items()
        ]
        more = len(self.label_counts.get("train", {})) - _SHOWN
        return [*said, f"          and {more} labels more"] if more > 0 else said


@dataclass(frozen=True)
class Data:
    """All that a run reads. labels: class names by index, () for regression and masked-lm.
    fingerprint: of the sources, the settings and the encoder that made it. teacher: the digest of
    the one whose answers the splits carry.
    """

    train: Split
    validation: Split
    test: Split
    labels: tuple[str, ...]
    report: DataReport
    fingerprint: str
    teacher: str | None = None


def write(directory: Path, data: Data) -> None:
    """Write `data`; `directory` appears only when it is whole and on the disk."""
    with written_aside(directory) as aside:
        for name in SPLITS:
            _write_split(aside / f"{name}.arrow", getattr(data, name))
        index = {
            "fingerprint": data.fingerprint,
            "labels": data.labels,
            "report": data.report.to_json(),
            "files": digests(aside),
        }
        text = json.dumps({"index": index, "sha256": _seal(index)}, indent=2)
        (aside / INDEX).write_text(text + "\n", encoding="utf-8")


def load(directory: Path) -> Data | None:
    """The data in `directory`, memory-mapped; None where there is none, or it is not whole."""
    try:
        sealed = json.loads((directory / INDEX).read_text(encoding="utf-8"))
        index = sealed["index"]
        if sealed["sha256"] != _seal(index) or flaw(directory, index["files"]) is not None:
            return None
        train, validation, test = (_load_split(directory / f"{name}.arrow") for name in SPLITS)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    report = DataReport.from_json(index["report"])
    return Data(train, validation, test, tuple(index["labels"]), report, index["fingerprint"])


def _write_split(path: Path, split: Split) -> None:
    samples, targets = split.samples, split.targets
    column: pa.Array = pa.array(targets.ravel())
    if targets.ndim == 2:
        column = pa.FixedSizeListArray.from_arrays(column, targets.shape[1])
    texts = pa.LargeListArray.from_arrays(pa.array(samples.offsets), pa.array(samples.values))
    batch = pa.record_batch({"samples": texts, "targets": column})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)


def _load_split(path: Path) -> Split:
    batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
    texts, column = batch.column("samples"), batch.column("targets")
    samples = Samples(texts.values.to_numpy(), texts.offsets.to_numpy())
    if isinstance(column, pa.FixedSizeListArray):
        flat = column.values.to_numpy()
        return Split(samples, flat.reshape(len(column), column.type.list_size))
    return Split(samples, column.to_numpy())


def _seal(index: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()


def _figures(values: dict[str, float], form: str) -> str:
    return ", ".join(f"{name} {value:{form}}" for name, value in values.items())
