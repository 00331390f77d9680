"""The data path: a recipe's source becomes encoded, split, labelled rows, once on every machine.

    read, clean, split by text, label (`corpus.py`), encode (for masked-lm: and pack), keep in a
    cache directory

The first process on a machine does the work; the others, and later runs, map the files. Knows no
model and no Ray.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from filelock import FileLock

from cluster.costmodel.microbatches import Lengths
from cluster.spec import Metadata
from trainers.config.recipe import Recipe
from trainers.data import dataset_cache, packing
from trainers.data.corpus import PARTS, Corpus, gather, identity, repeats
from trainers.data.dataset_cache import Data, DataReport, Split
from trainers.data.files import DataError
from trainers.data.labels import counts
from trainers.data.ragged import Samples, joined
from trainers.data.splits import spread
from trainers.data.tokenizer import CHUNK, Encoder, EncodingError, TextEncoder, load_encoder
from trainers.data.wordpiece import with_tokenizer

__all__ = ["Data", "DataError", "DataReport", "Sketch", "Split", "encoder_of", "fingerprint"]
__all__ += ["prepare", "sketch", "with_tokenizer"]

FORMAT = 1  # of what a cache entry holds; a new number makes strangers of the old entries
SKETCHED = 1000  # training texts that a sketch encodes

Progress = Callable[[int, int], None]  # texts encoded, of how many


@dataclass(frozen=True)
class Sketch:
    """What a dry run shows. num_train: training samples; lengths: tokens of each of them. Where the
    data is not encoded yet (report.sampled says so) the lengths are those of SKETCHED texts, and
    num_train of packed texts is an estimate.
    """

    report: DataReport
    labels: tuple[str, ...]
    num_train: int
    lengths: np.ndarray


def prepare(recipe: Recipe, cache: Path, progress: Progress | None = None) -> Data:
    """The data of `recipe`: from `cache` (a directory) where it is there and whole, else built.

    Several processes may ask at once; one builds. A later call reads the source's fingerprint and
    not the source. Raises DataError, or EncodingError where there is no tokenizer.
    """
    encoder = encoder_of(recipe, cache)
    key = fingerprint(recipe, encoder)
    data = dataset_cache.load(cache / key)
    if data is not None:
        return data
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f"{key}.lock"):
            data = dataset_cache.load(cache / key)
            if data is None:
                built = _build(recipe, encoder, key, progress)
                for leftover in cache.glob(f".{key}.*.tmp"):
                    shutil.rmtree(leftover)
                dataset_cache.write(cache / key, built)
                data = dataset_cache.load(cache / key)
    except OSError as error:
        raise DataError(f"{cache}: cannot keep encoded data there: {error}") from None
    if data is None:
        raise DataError(f"{cache / key}: not the data that was just written; is the disk sound?")
    return data


def sketch(recipe: Recipe, cache: Path) -> Sketch:
    """What `prepare` would give, encoding a sample at most. Raises what it would.

    A vocabulary that the recipe asks for is trained and kept.
    """
    encoder = encoder_of(recipe, cache)
    data = dataset_cache.load(cache / fingerprint(recipe, encoder))
    if data is not None:
        return Sketch(data.report, data.labels, len(data.train), data.train.samples.lengths)
    corpus = gather(recipe, encoder.clean)
    texts = corpus.sides["train"].texts
    some = [texts[row] for row in spread(len(texts), SKETCHED)]
    samples, truncated = _samples(recipe, encoder, some)
    report = _report(corpus, samples, truncated, len(some))
    num_train = round(len(samples) * len(texts) / len(some))
    return Sketch(report, corpus.names, num_train, samples.lengths)


def encoder_of(recipe: Recipe, cache: Path | None = None) -> Encoder:
    """The encoder that `recipe` asks for.

    cache: keeps a vocabulary that is trained on the recipe's texts; default: that of a cluster file
    that names none.
    """
    place = Path(Metadata().cache).expanduser() if cache is None else cache
    model = with_tokenizer(recipe, place).model
    return load_encoder(
        model.tokenizer or model.name, recipe.data.cleaning, recipe.batch.max_length
    )


def fingerprint(recipe: Recipe, encoder: Encoder) -> str:
    """A hash of all that decides what `prepare` gives: the name of its cache entry."""
    everything = [FORMAT, *identity(recipe), encoder.fingerprint]
    if recipe.task == "masked-lm":
        everything.append(f"packed by rules {packing.FORMAT}")
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()


def _build(recipe: Recipe, encoder: Encoder, key: str, progress: Progress | None) -> Data:
    corpus = gather(recipe, encoder.clean)
    if fingerprint(recipe, encoder) != key:
        raise DataError(f"{recipe.data.source}: changed while it was read; start again")
    texts = {part: corpus.sides[part].texts for part in PARTS}
    total, done = sum(map(len, texts.values())), 0
    splits, num_cut = {}, {}
    for part in PARTS:
        tell = _after(done, total, progress)
        samples, num_cut[part] = _samples(recipe, encoder, texts[part], tell)
        packed = recipe.task == "masked-lm"
        splits[part] = Split(samples, _zeros(samples) if packed else corpus.targets[part])
        done += len(texts[part])
    _same_width([split.samples for split in splits.values()])
    report = _report(corpus, splits["train"].samples, num_cut["train"], len(texts["train"]))
    if recipe.task == "masked-lm":
        report = replace(report, sequences={part: len(splits[part]) for part in PARTS})
    train, validation, test = (splits[part] for part in PARTS)
    return Data(train, validation, test, corpus.names, report, fingerprint=key)


def _after(done: int, total: int, progress: Progress | None) -> Callable[[int], None]:
    """Tells `progress` about texts encoded after `done` others."""
    return lambda more: progress(done + more, total) if progress is not None else None


def _samples(
    recipe: Recipe,
    encoder: Encoder,
    texts: Sequence[str],
    tell: Callable[[int], None] = lambda done: None,
) -> tuple[Samples, int]:
    """`texts` as the samples of the recipe's task, and how many were cut."""
    if recipe.task != "masked-lm":
        return _in_chunks(encoder.encode, texts, tell)
    reader = _text_encoder(encoder)
    documents, _ = _in_chunks(lambda chunk: (reader.whole(chunk), 0), texts, tell)
    samples = reader.pack(documents)
    if texts and not len(samples):
        raise DataError(f"{recipe.data.source}: the tokenizer finds no token in any text")
    return samples, 0


def _in_chunks(
    encode: Callable[[Sequence[str]], tuple[Samples, int]],
    texts: Sequence[str],
    tell: Callable[[int], None],
) -> tuple[Samples, int]:
    """`texts` encoded chunk by chunk, and how many were cut."""
    parts, truncated = [], 0
    for start in range(0, len(texts), CHUNK):
        samples, num_cut = encode(texts[start : start + CHUNK])
        parts.append(samples)
        truncated += num_cut
        tell(min(start + CHUNK, len(texts)))
    return joined(parts), truncated


def _text_encoder(encoder: Encoder) -> TextEncoder:
    if not isinstance(encoder, TextEncoder):
        raise EncodingError("masked-lm reads words; name the tokenizer of a BERT")
    return encoder


def _zeros(samples: Samples) -> np.ndarray:
    return np.zeros(len(samples), dtype=np.int64)


def _same_width(samples: Sequence[Samples]) -> None:
    """Raise a DataError where texts that are numbers hold more of them here than there."""
    widths = {int(width) for each in samples for width in np.unique(each.lengths)}
    if samples[0].values.dtype == np.float32 and len(widths) > 1:
        raise DataError(
            f"texts hold from {min(widths)} to {max(widths)} numbers; a linear model reads as many "
            "from every text"
        )


def _report(corpus: Corpus, samples: Samples, truncated: int, num_texts: int) -> DataReport:
    """The report on `corpus`, of whose training texts `samples` are `num_texts`, or all."""
    train, lengths = corpus.sides["train"], samples.lengths
    duplicates, conflicting = repeats(corpus.sides)
    targets = corpus.targets["train"]
    return DataReport(
        rows_read=corpus.rows_read,
        skipped=corpus.skipped,
        rows={part: len(corpus.sides[part].texts) for part in PARTS},
        label_counts={
            part: counts(corpus.sides[part].labels, corpus.names) for part in PARTS if corpus.names
        },
        numbers=_moments(targets) if targets.dtype == np.float32 and targets.ndim == 1 else {},
        duplicates=duplicates,
        conflicting=conflicting,
        held_out=corpus.held_out,
        truncated=truncated / len(lengths),
        lengths=_moments(lengths) | {"spread": Lengths.of(lengths).spread},
        sampled=None if num_texts == len(train.texts) else num_texts,
    )


def _moments(values: np.ndarray) -> dict[str, float]:
    return {
        "min": float(values.min()),
        "median": float(np.median(values)),
        "mean": float(values.mean()),
        "p95": float(np.percentile(values, 95)),
        "max": float(values.max()),
    }
