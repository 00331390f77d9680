"""A prepared data set as a value, and its directory on disk.

Samples and targets of each split are `.npy` files, which are written a block of rows at a time and
memory-mapped, not read, so that all processes of a machine share one copy; labels and report are
`prepared.json`.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainers.data.corpus import PARTS
from trainers.data.ragged import RaggedArray
from trainers.data.report import DataReport
from trainers.data.splits import SplitName
from trainers.storage.atomic import find_corruption, hash_files, json_sha256

INDEX = "prepared.json"


@dataclass(frozen=True)
class DatasetSplit:
    """The encoded rows of one split; arrays from a cache are read-only.

    targets: `[n]` int64 class indices, `[n, num_labels]` uint8 of 0 and 1, or `[n]` float32; for
    masked-lm, whose rows are packed sequences, unused zeros `[n]` int64. teacher: `[n, num_labels]`
    float32, a teacher's logits.
    """

    samples: RaggedArray
    targets: np.ndarray
    teacher: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def take_targets(self, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Return the targets of `rows` as losses take them: 0 and 1 as float32."""
        taken: np.ndarray = self.targets[rows]
        return taken.astype(np.float32) if taken.dtype == np.uint8 else taken


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


class SplitWriter:
    """Appends blocks of samples and targets to the files of one split; see `open_split`."""

    def __init__(self, directory: Path, part: SplitName) -> None:
        self._directory, self._part = directory, part
        self._files: dict[str, _ArrayFile] = {}
        self._ends: dict[str, int] = {}

    def append(self, samples: RaggedArray, targets: np.ndarray) -> None:
        """Append samples, and the targets of each."""
        self._append_ragged("samples", samples)
        if samples.windows is not None:
            self._append_ragged("windows", samples.windows)
        self._append_array("targets", targets)

    def close(self) -> None:
        """Write what the files hold into their headers, and close them."""
        for file in self._files.values():
            file.close()

    def _append_ragged(self, name: str, rows: RaggedArray) -> None:
        end = self._ends.setdefault(name, 0)
        if not end and f"{name}.offsets" not in self._files:
            self._append_array(f"{name}.offsets", rows.offsets[:1])
        self._append_array(f"{name}.offsets", rows.offsets[1:] + end)
        self._append_array(f"{name}.values", rows.values)
        self._ends[name] = end + len(rows.values)

    def _append_array(self, name: str, values: np.ndarray) -> None:
        if name not in self._files:
            path = self._directory / f"{self._part}.{name}.npy"
            self._files[name] = _ArrayFile(path, values)
        self._files[name].append(values)


@contextmanager
def open_split(directory: Path, part: SplitName) -> Iterator[SplitWriter]:
    """Yield a writer of the split `part` in `directory`; its files are whole after the block."""
    writer = SplitWriter(directory, part)
    try:
        yield writer
    finally:
        writer.close()


def write_index(
    directory: Path, labels: tuple[str, ...], report: DataReport, fingerprint: str
) -> None:
    """Write the index of a directory whose splits are written."""
    index = {
        "fingerprint": fingerprint,
        "labels": labels,
        "report": report.to_json(),
        "files": hash_files(directory),
    }
    # The index has the digests of the arrays' files, and a digest of its own: a damaged cache must
    # be built again, never trained on.
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
        train, validation, test = (load_split(directory, part) for part in PARTS)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    report = DataReport.from_json(index["report"])
    labels = tuple(index["labels"])
    return PreparedDataset(train, validation, test, labels, report, index["fingerprint"])


def load_split(directory: Path, part: SplitName) -> DatasetSplit:
    """Map one split of a directory."""

    def map_array(name: str) -> np.ndarray:
        return np.asarray(np.load(directory / f"{part}.{name}.npy", mmap_mode="r"))

    windows = None
    if (directory / f"{part}.windows.values.npy").exists():
        windows = RaggedArray(map_array("windows.values"), map_array("windows.offsets"))
    samples = RaggedArray(map_array("samples.values"), map_array("samples.offsets"), windows)
    return DatasetSplit(samples, map_array("targets"))


class _ArrayFile:
    """A `.npy` file to which arrays are appended that have the dtype and width of `first`."""

    def __init__(self, path: Path, first: np.ndarray) -> None:
        self._shape, self._dtype, self._rows = first.shape[1:], first.dtype, 0
        self._file = path.open("wb")
        self._write_header()

    def append(self, values: np.ndarray) -> None:
        assert values.dtype == self._dtype and values.shape[1:] == self._shape
        self._file.write(np.ascontiguousarray(values).data)
        self._rows += len(values)

    def close(self) -> None:
        # NumPy leaves room in a header for the first axis to grow.
        self._file.seek(0)
        self._write_header()
        self._file.close()

    def _write_header(self) -> None:
        header = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self._rows, *self._shape),
        }
        np.lib.format.write_array_header_1_0(self._file, header)
