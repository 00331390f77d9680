"""A prepared data set as a value, and its directory on disk.

Samples and targets of each split are an Arrow IPC file that is memory-mapped, not read, so that all
processes of a machine share one copy; labels and report are `prepared.json`.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from trainers.data.corpus import PARTS
from trainers.data.ragged import RaggedArray
from trainers.data.report import DataReport
from trainers.storage.atomic import find_corruption, hash_files, json_sha256

INDEX = "prepared.json"


@dataclass(frozen=True)
class DatasetSplit:
    """The encoded rows of one split; arrays from a cache are read-only.

    targets: `[n]` int64 class indices, `[n, num_labels]` float32 of 0 and 1, or `[n]` float32; for
    masked-lm, whose rows are packed sequences, unused zeros `[n]` int64. teacher: `[n, num_labels]`
    float32, a teacher's logits.
    """

    samples: RaggedArray
    targets: np.ndarray
    teacher: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.samples)


@dataclass(frozen=True)
class PreparedDataset:
    """The data of a run.

    labels: class names by index, () for regression and masked-lm. fingerprint: of the sources, the
    settings and the encoder that made it. teacher: the digest of the one whose logits it has.
    """

    train: DatasetSplit
    validation: DatasetSplit
    test: DatasetSplit
    labels: tuple[str, ...]
    report: DataReport
    fingerprint: str
    teacher: str | None = None


def write_dataset(directory: Path, data: PreparedDataset) -> None:
    """Write `data` into an empty directory."""
    for part in PARTS:
        _write_split(directory / f"{part}.arrow", getattr(data, part))
    index = {
        "fingerprint": data.fingerprint,
        "labels": data.labels,
        "report": data.report.to_json(),
        "files": hash_files(directory),
    }
    # The index has the digests of the Arrow files, and a digest of its own: a damaged cache must be
    # built again, never trained on.
    text = json.dumps({"index": index, "sha256": json_sha256(index)}, indent=2)
    (directory / INDEX).write_text(text + "\n", encoding="utf-8")


def load_dataset(directory: Path) -> PreparedDataset | None:
    """Map the data set in `directory`; None where there is none, or a byte of it has changed."""
    try:
        document = json.loads((directory / INDEX).read_text(encoding="utf-8"))
        index = document["index"]
        if document["sha256"] != json_sha256(index):
            return None
        if find_corruption(directory, index["files"]) is not None:
            return None
        train, validation, test = (_load_split(directory / f"{part}.arrow") for part in PARTS)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    report = DataReport.from_json(index["report"])
    labels = tuple(index["labels"])
    return PreparedDataset(train, validation, test, labels, report, index["fingerprint"])


def _write_split(path: Path, split: DatasetSplit) -> None:
    samples, targets = split.samples, split.targets
    column: pa.Array = pa.array(targets.ravel())
    if targets.ndim == 2:
        column = pa.FixedSizeListArray.from_arrays(column, targets.shape[1])
    texts = pa.LargeListArray.from_arrays(pa.array(samples.offsets), pa.array(samples.values))
    batch = pa.record_batch({"samples": texts, "targets": column})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)


def _load_split(path: Path) -> DatasetSplit:
    # Arrow's IPC layout is its memory layout, so these NumPy arrays are views of the mapped file.
    batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
    texts, column = batch.column("samples"), batch.column("targets")
    samples = RaggedArray(texts.values.to_numpy(), texts.offsets.to_numpy())
    if isinstance(column, pa.FixedSizeListArray):
        flat = column.values.to_numpy()
        return DatasetSplit(samples, flat.reshape(len(column), column.type.list_size))
    return DatasetSplit(samples, column.to_numpy())
