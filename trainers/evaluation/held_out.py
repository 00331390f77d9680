"""What a prepared dataset does not keep of the test rows, and a verdict needs: texts and baselines.

Read once more from the source and kept beside the dataset, under its fingerprint, by the driver
before a run starts. A machine that lacks it makes it again, as it does with the dataset.
"""

import hashlib
import json
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from cluster.errors import BerthaError
from trainers.config.recipe import Recipe
from trainers.data.corpus import SplitRows, gather_corpus
from trainers.data.dataset_cache import PreparedDataset
from trainers.data.rows.spilled_texts import iter_blocks
from trainers.data.splits import text_digest
from trainers.evaluation.baseline import Baseline, fit_baselines
from trainers.evaluation.predictions import select_rows
from trainers.storage.atomic import find_corruption, hash_files, json_sha256
from trainers.storage.cache import build_once

FORMAT = 1  # of a cache entry
INDEX, ARRAYS = "held_out.json", "held_out.npz"
MAX_SOURCE_ROWS = 2_000_000  # read again
MAX_CHARACTERS = 5_000  # of a text that is kept


@dataclass(frozen=True)
class HeldOut:
    """The kept test rows, in the order of `predictions.select_rows`.

    texts: cleaned, and cut at MAX_CHARACTERS. origin, numbers: row i is `origin` numbers[i], as in
    "data.csv line" 7. digests: [n] uint64 of text and label. reason: why there are no rows, ""
    where there are. baseline: None where it was turned off, or there are no rows.
    """

    texts: tuple[str, ...] = ()
    origin: str = ""
    numbers: tuple[int, ...] = ()
    digests: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.uint64))
    baseline: Baseline | None = None
    reason: str = ""

    def __len__(self) -> int:
        return len(self.texts)


def load_held_out(
    recipe: Recipe, prepared: PreparedDataset, clean: Callable[[str], str], cache: Path
) -> HeldOut:
    """Load the kept test rows of `prepared` from `cache`, or read and keep them there.

    A source that cannot be read again, or a disk without room, makes a `reason` and no error: a run
    goes without.
    """
    if recipe.task == "masked-lm" or not len(prepared.test):
        return HeldOut(reason="there are no test rows with a label")
    if prepared.report.rows_read > MAX_SOURCE_ROWS:
        return HeldOut(reason=f"more than {MAX_SOURCE_ROWS:,} rows are not read a second time")

    def build(directory: Path) -> None:
        _write(directory, _read_again(recipe, prepared, clean, cache))

    kind = "baseline" if recipe.baseline else "rows"
    directory = cache / f"{prepared.fingerprint}-{kind}-{FORMAT}"
    try:
        return build_once(directory, build, _load)
    except (BerthaError, OSError) as error:
        return HeldOut(reason=" ".join(f"the source could not be read again: {error}".split()))


def _read_again(
    recipe: Recipe, prepared: PreparedDataset, clean: Callable[[str], str], cache: Path
) -> HeldOut:
    corpus = gather_corpus(recipe, clean, cache)
    test, num_test = corpus.splits["test"], len(prepared.test)
    if (
        corpus.names != prepared.labels
        or len(test.texts) != num_test
        or not all(
            np.array_equal(corpus.build_targets("test", rows), prepared.test.targets[rows])
            for rows in iter_blocks(test.texts)
        )
    ):
        raise BerthaError(f"{recipe.data.source} has changed since it was encoded")
    kept = select_rows(len(test.texts), max(1, len(corpus.names)))
    return HeldOut(
        tuple(test.texts[int(row)][:MAX_CHARACTERS] for row in kept),
        test.origin,
        tuple(int(test.numbers[row]) for row in kept),
        np.array([_row_digest(test, int(row)) for row in kept], dtype=np.uint64),
        fit_baselines(corpus, recipe.task, kept, recipe.model.name == "linear")
        if recipe.baseline
        else None,
    )


def _row_digest(rows: SplitRows, row: int) -> int:
    label = rows.labels[row]
    named = sorted(label) if isinstance(label, tuple) else label
    digest = hashlib.sha256(text_digest(rows.texts[row]) + json.dumps(named).encode()).digest()
    return int.from_bytes(digest[:8], "big")


def _write(directory: Path, rows: HeldOut) -> None:
    arrays, baseline = {"digests": rows.digests}, rows.baseline
    facts: dict[str, Any] | None = None
    if baseline is not None:
        arrays |= {"majority": baseline.majority, "words": baseline.words}
        none = np.empty(0)
        facts = asdict(replace(baseline, majority=none, words=none))
        del facts["majority"], facts["words"]
    np.savez(directory / ARRAYS, **arrays)  # type: ignore[arg-type]
    index = {
        "texts": rows.texts,
        "origin": rows.origin,
        "numbers": rows.numbers,
        "baseline": facts,
        "files": hash_files(directory),
    }
    # Sealed as a prepared dataset is: what is damaged is made again.
    text = json.dumps({"index": index, "sha256": json_sha256(index)})
    (directory / INDEX).write_text(text, encoding="utf-8")


def _load(directory: Path) -> HeldOut | None:
    try:
        document = json.loads((directory / INDEX).read_text(encoding="utf-8"))
        index = document["index"]
        if document["sha256"] != json_sha256(index) or find_corruption(directory, index["files"]):
            return None
        with (
            (directory / ARRAYS).open("rb") as file,
            np.load(file, allow_pickle=False) as arrays,
        ):
            kept = dict(arrays)
        facts, baseline = index["baseline"], None
        if facts is not None:
            baseline = Baseline(kept["majority"], kept["words"], **facts)
        texts, numbers = tuple(index["texts"]), tuple(index["numbers"])
        return HeldOut(texts, index["origin"], numbers, kept["digests"], baseline)
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return None
