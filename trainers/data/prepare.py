"""Prepare a recipe's data: read, clean, split, label, encode (for masked-lm: and pack), cache.

The first process on a machine does the work; the others, and later runs, map the cached files. The
source is read once and encoded a block of rows at a time, so memory is a few numbers a row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cluster.spec import ClusterMetadata
from trainers.config.recipe import Recipe
from trainers.data import packing
from trainers.data.corpus import PARTS, Corpus, corpus_identity, gather_corpus
from trainers.data.dataset_cache import (
    PreparedDataset,
    SplitWriter,
    load_dataset,
    load_split,
    open_split,
    write_index,
)
from trainers.data.files import DataError
from trainers.data.packing import DocumentPacker
from trainers.data.ragged import RaggedArray, concat_ragged
from trainers.data.report import DataReport
from trainers.data.rows.spilled_texts import iter_blocks
from trainers.data.splits import SplitName, spread_indices
from trainers.data.tokenizer import Encoder, EncodingError, TextEncoder, load_encoder
from trainers.data.wordpiece import resolve_tokenizer
from trainers.storage.atomic import json_sha256
from trainers.storage.cache import build_once

FORMAT = 2  # of a cache entry; bump to invalidate existing entries
ESTIMATE_TEXTS = 1000  # training texts encoded for an estimate

# Called with the texts encoded so far, and of how many; while the source is read, with rows and 0.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class DatasetEstimate:
    """The size of a data set, for a dry run.

    num_train: training samples. lengths: tokens of each of them. Where the data is not encoded yet
    (report.sampled says so) the lengths are those of ESTIMATE_TEXTS texts, and num_train of packed
    texts is extrapolated.
    """

    report: DataReport
    labels: tuple[str, ...]
    num_train: int
    lengths: np.ndarray


def prepare_dataset(
    recipe: Recipe, cache: Path, progress: Progress | None = None
) -> PreparedDataset:
    """Load the data of `recipe` from the directory `cache`; build it where it is absent.

    Several processes may call this at once; one builds. A later call reads the source's fingerprint
    and not the source. Raises DataError, or EncodingError where there is no tokenizer.
    """
    encoder = load_recipe_encoder(recipe, cache)
    key = dataset_fingerprint(recipe, encoder)
    return load_or_build_dataset(recipe, encoder, key, cache, progress)


def load_or_build_dataset(
    recipe: Recipe, encoder: Encoder, key: str, cache: Path, progress: Progress | None = None
) -> PreparedDataset:
    """Load the data whose fingerprint is `key` from `cache`; build it where it is absent.

    The source is not read, not even hashed, where the cache has it: workers know the key from the
    process that started them. Raises DataError where the source here has another fingerprint.
    """

    def build(directory: Path) -> None:
        _build_dataset(recipe, encoder, key, directory, progress)

    try:
        return build_once(cache / key, build, load_dataset)
    except OSError as error:
        raise DataError(f"{cache}: cannot keep encoded data there: {error}") from None


def estimate_dataset(recipe: Recipe, cache: Path) -> DatasetEstimate:
    """Estimate what `prepare_dataset` would return from a sample. Raises what it would.

    A vocabulary that the recipe asks for is trained and kept.
    """
    encoder = load_recipe_encoder(recipe, cache)
    data = load_dataset(cache / dataset_fingerprint(recipe, encoder))
    if data is not None:
        lengths = data.train.samples.lengths
        return DatasetEstimate(data.report, data.labels, len(data.train), lengths)
    corpus = gather_corpus(recipe, encoder.clean, cache if cache.is_dir() else None)
    texts = corpus.splits["train"].texts
    sampled = [texts[int(row)] for row in spread_indices(len(texts), ESTIMATE_TEXTS)]
    samples, truncated = _encode_sample(recipe, encoder, sampled)
    report = DataReport.from_corpus(corpus, samples, truncated, len(sampled))
    num_train = round(len(samples) * len(texts) / len(sampled))
    return DatasetEstimate(report, corpus.names, num_train, samples.lengths)


def load_recipe_encoder(recipe: Recipe, cache: Path | None = None) -> Encoder:
    """Load the encoder that `recipe` asks for, after training its vocabulary if need be.

    cache: keeps that vocabulary; default: the cache of a cluster file that names none.
    """
    cache = Path(ClusterMetadata().cache).expanduser() if cache is None else cache
    model = resolve_tokenizer(recipe, cache).model
    data, length = recipe.data, recipe.batch.max_length
    return load_encoder(model.tokenizer or model.name, data.cleaning, length, data.windows)


def dataset_fingerprint(recipe: Recipe, encoder: Encoder) -> str:
    """Hash all that decides what `prepare_dataset` returns: the name of its cache entry."""
    identity = [FORMAT, *corpus_identity(recipe), encoder.fingerprint]
    if recipe.task == "masked-lm":
        identity.append(f"packed by rules {packing.FORMAT}")
    return json_sha256(identity)


def offset_progress(done: int, total: int, progress: Progress | None) -> Callable[[int], None]:
    """Return a callback that reports `done` texts more than it is called with."""
    return lambda more: progress(done + more, total) if progress is not None else None


def _build_dataset(
    recipe: Recipe, encoder: Encoder, key: str, directory: Path, progress: Progress | None
) -> None:
    """Write the data set of `recipe` into an empty directory, with temporary files beside it."""
    on_rows = offset_progress(0, 0, progress)
    corpus = gather_corpus(recipe, encoder.clean, directory.parent, on_rows)
    if dataset_fingerprint(recipe, encoder) != key:
        raise DataError(f"{recipe.data.source}: changed while it was read; start again")
    total, done = sum(len(split.texts) for split in corpus.splits.values()), 0
    truncated = {}
    for part in PARTS:
        on_progress = offset_progress(done, total, progress)
        with open_split(directory, part) as writer:
            truncated[part] = _encode_split(recipe, encoder, corpus, part, writer, on_progress)
        done += len(corpus.splits[part].texts)
    splits = {part: load_split(directory, part) for part in PARTS}
    _check_widths([split.samples for split in splits.values()])
    num_texts = len(corpus.splits["train"].texts)
    report = DataReport.from_corpus(corpus, splits["train"].samples, truncated["train"], num_texts)
    if recipe.task == "masked-lm":
        report = replace(report, sequences={part: len(splits[part]) for part in PARTS})
    write_index(directory, corpus.names, report, key)


def _encode_split(
    recipe: Recipe,
    encoder: Encoder,
    corpus: Corpus,
    part: SplitName,
    writer: SplitWriter,
    on_progress: Callable[[int], None],
) -> int:
    """Encode the rows of a split and write them, block by block; return how many were cut."""
    texts, num_cut = corpus.splits[part].texts, 0
    packer = _open_packer(encoder) if recipe.task == "masked-lm" else None
    num_samples = 0
    for rows in iter_blocks(texts):
        if packer is None:
            samples, cut = encoder.encode(texts[rows])
            num_cut += int(cut.sum())
            targets = corpus.build_targets(part, rows)
            # Of 1,000 labels a million rows take 1 GB of disk so, and not 4.
            writer.append(samples, targets.astype(np.uint8) if targets.ndim == 2 else targets)
        else:
            num_samples += _write_sequences(
                writer, packer.add(_tokenize_uncut(encoder, texts[rows]))
            )
        on_progress(rows.stop)
    if packer is not None:
        num_samples += _write_sequences(writer, packer.finish())
        _check_tokens(recipe, len(texts), num_samples)
    return num_cut


def _write_sequences(writer: SplitWriter, sequences: RaggedArray) -> int:
    writer.append(sequences, np.zeros(len(sequences), dtype=np.int64))
    return len(sequences)


def _encode_sample(
    recipe: Recipe, encoder: Encoder, texts: Sequence[str]
) -> tuple[RaggedArray, int]:
    """Encode texts as the recipe's task needs them; return how many were cut as well."""
    if recipe.task != "masked-lm":
        samples, cut = encoder.encode(texts)
        return samples, int(cut.sum())
    packer = _open_packer(encoder)
    full = packer.add(_tokenize_uncut(encoder, texts))
    samples = concat_ragged([full, packer.finish()])
    _check_tokens(recipe, len(texts), len(samples))
    return samples, 0


def _open_packer(encoder: Encoder) -> DocumentPacker:
    if not isinstance(encoder, TextEncoder):
        raise EncodingError("masked-lm reads words; name the tokenizer of a BERT")
    return encoder.document_packer()


def _tokenize_uncut(encoder: Encoder, texts: Sequence[str]) -> RaggedArray:
    assert isinstance(encoder, TextEncoder)
    return encoder.tokenize_uncut(texts)


def _check_tokens(recipe: Recipe, num_texts: int, num_samples: int) -> None:
    if num_texts and not num_samples:
        raise DataError(f"{recipe.data.source}: the tokenizer finds no token in any text")


def _check_widths(samples: Sequence[RaggedArray]) -> None:
    """Raise DataError where texts that are numbers hold more of them in one split than another."""
    widths = {int(width) for each in samples for width in np.unique(each.lengths)}
    if samples[0].values.dtype == np.float32 and len(widths) > 1:
        raise DataError(
            f"texts hold from {min(widths)} to {max(widths)} numbers; a linear model reads as many "
            "from every text"
        )
