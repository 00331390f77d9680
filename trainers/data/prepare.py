"""Prepare a recipe's data: read, clean, split, label, encode (for masked-lm: and pack), cache.

The first process on a machine does the work; the others, and later runs, map the cached files.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cluster.spec import ClusterMetadata
from trainers.config.recipe import Recipe
from trainers.data import packing
from trainers.data.corpus import PARTS, corpus_identity, gather_corpus
from trainers.data.dataset_cache import (
    DatasetSplit,
    PreparedDataset,
    load_dataset,
    write_dataset,
)
from trainers.data.files import DataError
from trainers.data.ragged import RaggedArray
from trainers.data.report import DataReport
from trainers.data.splits import spread_indices
from trainers.data.tokenizer import Encoder, EncodingError, TextEncoder, load_encoder
from trainers.data.wordpiece import resolve_tokenizer
from trainers.storage.atomic import json_sha256
from trainers.storage.cache import build_once

FORMAT = 1  # of a cache entry; bump to invalidate existing entries
ESTIMATE_TEXTS = 1000  # training texts encoded for an estimate

Progress = Callable[[int, int], None]  # texts encoded, of how many


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
        write_dataset(directory, _build_dataset(recipe, encoder, key, progress))

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
    corpus = gather_corpus(recipe, encoder.clean)
    texts = corpus.splits["train"].texts
    sampled = [texts[row] for row in spread_indices(len(texts), ESTIMATE_TEXTS)]
    samples, truncated = _encode_texts(recipe, encoder, sampled)
    report = DataReport.from_corpus(corpus, samples, truncated, len(sampled))
    num_train = round(len(samples) * len(texts) / len(sampled))
    return DatasetEstimate(report, corpus.names, num_train, samples.lengths)


def load_recipe_encoder(recipe: Recipe, cache: Path | None = None) -> Encoder:
    """Load the encoder that `recipe` asks for, after training its vocabulary if need be.

    cache: keeps that vocabulary; default: the cache of a cluster file that names none.
    """
    cache = Path(ClusterMetadata().cache).expanduser() if cache is None else cache
    model = resolve_tokenizer(recipe, cache).model
    return load_encoder(
        model.tokenizer or model.name, recipe.data.cleaning, recipe.batch.max_length
    )


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
    recipe: Recipe, encoder: Encoder, key: str, progress: Progress | None
) -> PreparedDataset:
    corpus = gather_corpus(recipe, encoder.clean)
    if dataset_fingerprint(recipe, encoder) != key:
        raise DataError(f"{recipe.data.source}: changed while it was read; start again")
    texts = {part: corpus.splits[part].texts for part in PARTS}
    total, done = sum(map(len, texts.values())), 0
    packed = recipe.task == "masked-lm"
    splits, truncated = {}, {}
    for part in PARTS:
        on_progress = offset_progress(done, total, progress)
        samples, truncated[part] = _encode_texts(recipe, encoder, texts[part], on_progress)
        targets = np.zeros(len(samples), dtype=np.int64) if packed else corpus.targets[part]
        splits[part] = DatasetSplit(samples, targets)
        done += len(texts[part])
    _check_widths([split.samples for split in splits.values()])
    train, validation, test = (splits[part] for part in PARTS)
    report = DataReport.from_corpus(corpus, train.samples, truncated["train"], len(texts["train"]))
    if packed:
        report = replace(report, sequences={part: len(splits[part]) for part in PARTS})
    return PreparedDataset(train, validation, test, corpus.names, report, fingerprint=key)


def _encode_texts(
    recipe: Recipe,
    encoder: Encoder,
    texts: Sequence[str],
    on_progress: Callable[[int], None] = lambda done: None,
) -> tuple[RaggedArray, int]:
    """Encode texts as the recipe's task needs them; return how many were cut as well."""
    if recipe.task != "masked-lm":
        return encoder.encode(texts, on_progress)
    if not isinstance(encoder, TextEncoder):
        raise EncodingError("masked-lm reads words; name the tokenizer of a BERT")
    samples = encoder.pack_documents(encoder.tokenize_uncut(texts, on_progress))
    if texts and not len(samples):
        raise DataError(f"{recipe.data.source}: the tokenizer finds no token in any text")
    return samples, 0


def _check_widths(samples: Sequence[RaggedArray]) -> None:
    """Raise DataError where texts that are numbers hold more of them in one split than another."""
    widths = {int(width) for each in samples for width in np.unique(each.lengths)}
    if samples[0].values.dtype == np.float32 and len(widths) > 1:
        raise DataError(
            f"texts hold from {min(widths)} to {max(widths)} numbers; a linear model reads as many "
            "from every text"
        )
