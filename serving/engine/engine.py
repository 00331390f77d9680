"""Predict texts with a bundle: the cleaning, tokenizer, labels and weights that were evaluated.

engine = Engine.load(Path("runs/reviews/bundle"))
engine.predict(["A warm, funny film."])[0].scores
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cluster.errors import BerthaError
from serving.engine.backends.backend import Backend
from serving.engine.backends.registry import BACKENDS, REFERENCE, STUDENT, LoadContext
from serving.engine.fill_mask import predict_masks
from serving.interface import MaskPrediction, Prediction, Vector
from trainers.data.ragged import RaggedArray
from trainers.data.tokenizer import Encoder, EncodingError, TextEncoder
from trainers.models import bundle
from trainers.models.card import (
    CARD_FILE,
    BundleError,
    EngineRecord,
    ModelCard,
    list_bundle_files,
    read_card,
)
from trainers.models.families import position_ids
from trainers.models.packed import PackedBatch
from trainers.storage.atomic import find_corruption

Value = Prediction | Vector | np.ndarray

MAX_COUNTED_CHARACTERS = 100_000  # of one request whose tokens are counted beyond max_length


class Engine:
    """A loaded bundle, immutable. Call `infer_rows` from one thread at a time."""

    def __init__(
        self, card: ModelCard, encoder: Encoder, backend: Backend, config: Mapping[str, Any]
    ) -> None:
        """Bind a backend to a bundle. config: of the model, from Transformers' `config.json`."""
        self.card = card
        self.batch_tokens = card.batch_tokens(backend.name)
        self._encoder = encoder
        self._backend = backend
        self._config = config
        self._num_features: int | None = config.get("num_features")  # of a linear model
        self._mask_id: int | None = None
        if card.task == "masked-lm" and isinstance(encoder, TextEncoder):
            self._mask_id = encoder.tokenizer.mask_token_id

    @classmethod
    def load(cls, directory: Path, backend: str | None = None, num_threads: int = 1) -> "Engine":
        """Read and verify a bundle. backend: a name of `BACKENDS`; default: the chosen one.

        Raises BundleError that names what is wrong.
        """
        card = read_card(directory)
        encoder = bundle.load_encoder(directory, card)
        loaded = load_backend(directory, card, backend, num_threads)
        return cls(card, encoder, loaded, load_model_config(directory, loaded.name))

    @property
    def backend(self) -> str:
        """The name of the backend, as "onnxruntime int8"."""
        return self._backend.name

    @property
    def num_bytes(self) -> int:
        """Bytes of memory that the weights hold."""
        return self._backend.num_bytes

    @property
    def probe_text(self) -> str:
        """A text that every healthy engine answers."""
        if self._num_features is not None:
            return " ".join("0" * self._num_features)
        return f"fine {self.mask_token}".strip()

    @property
    def mask_token(self) -> str:
        """The mask token that texts write; "" if the model fills no masks."""
        if isinstance(self._encoder, TextEncoder) and self._mask_id is not None:
            return str(self._encoder.tokenizer.mask_token)
        return ""

    def encode(self, texts: Sequence[str]) -> tuple[RaggedArray, int]:
        """Clean and encode raw texts; also return how many of them were cut at max_length.

        Raises EncodingError that names a text which cannot be encoded.
        """
        return self.encode_cleaned([self.clean(text) for text in texts])

    def clean(self, text: str) -> str:
        """Clean a raw text as the training rows were cleaned; "" where nothing is left of it."""
        return self._encoder.clean(text)

    def encode_cleaned(self, texts: Sequence[str]) -> tuple[RaggedArray, int]:
        """Encode what `clean` returned, as `encode` does."""
        samples, num_cut = self._encoder.encode(texts)
        width = int(samples.lengths.max(initial=0))
        if self._num_features not in (None, width):
            raise EncodingError(
                f"text {texts[0][:60]!r} holds {width} numbers; this model reads "
                f"{self._num_features}"
            )
        return samples, num_cut

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return how many tokens each raw text has before it is cut, special ones included.

        A text beyond its share of MAX_COUNTED_CHARACTERS has at least so many. Raises
        EncodingError as `encode` does.
        """
        if not isinstance(self._encoder, TextEncoder):
            return [int(length) for length in self.encode(texts)[0].lengths]
        limit = MAX_COUNTED_CHARACTERS // max(1, len(texts))
        uncut = self._encoder.tokenize_uncut([self.clean(text[:limit]) for text in texts])
        special = self._encoder.tokenizer.num_special_tokens_to_add()
        return [int(length) + special for length in uncut.lengths]

    def infer_rows(self, rows: Sequence[np.ndarray]) -> list[Value]:
        """Compute the rows of `split_rows` as one packed batch; return a value each, in order.

        A Prediction; of an embedder a Vector; of a masked language model the logits
        [num_masks, vocabulary] of its masks. What a row is batched with changes only rounding.
        Raises FloatingPointError if the model computes infinity or NaN.
        """
        packed = self.pack_rows(rows)
        if self._mask_id is not None and not len(packed.reads):
            return [np.empty((0, 0), dtype=np.float32) for _ in rows]
        outputs = self._backend.run(packed)
        if not np.isfinite(outputs).all():
            raise FloatingPointError("the model answered infinity or no number")
        if self._mask_id is not None:
            of_text = np.bincount(packed.texts[packed.reads], minlength=len(rows))
            return list(np.split(outputs, np.cumsum(of_text)[:-1]))
        if self.card.task == "embedding":
            return list(outputs)
        scores = _logits_to_scores(self.card.task, outputs)
        return [
            Prediction(tuple(of_text), tuple(raw))
            for of_text, raw in zip(scores.tolist(), outputs.tolist(), strict=True)
        ]

    def pack_rows(self, rows: Sequence[np.ndarray]) -> PackedBatch:
        """Pack the rows of `split_rows` for a backend."""
        positions = [position_ids(self._config, row) for row in rows]
        if self._mask_id is None:
            return PackedBatch.from_rows(rows, positions)
        return PackedBatch.from_rows(
            rows, positions, np.flatnonzero(np.concatenate(rows) == self._mask_id)
        )

    def infer(self, samples: RaggedArray) -> list[Value]:
        """Compute any number of samples, in order, `batch_tokens` at a time."""
        values = map(self.infer_rows, batch_rows(split_rows(samples), self.batch_tokens))
        return list(itertools.chain.from_iterable(values))

    def predict(self, texts: Sequence[str]) -> list[Any]:
        """Return one value a text, in order, as `infer_rows` does."""
        return list(self.infer(self.encode(texts)[0])) if texts else []

    def predict_masks(
        self,
        text: str,
        row: np.ndarray,
        logits: np.ndarray,
        top_k: int = 5,
        targets: Sequence[str] | None = None,
    ) -> tuple[tuple[MaskPrediction, ...], ...]:
        """Return the likeliest tokens for each mask of a raw text.

        row: the text encoded. logits: of `infer_rows` for it.
        """
        assert isinstance(self._encoder, TextEncoder)
        cleaned, tokenizer = self._encoder.clean(text), self._encoder.tokenizer
        return predict_masks(tokenizer, cleaned, row, logits, top_k, targets)


def load_backend(directory: Path, card: ModelCard, name: str | None, num_threads: int) -> Backend:
    """Load the backend of a bundle by name, by default the chosen one, and verify its files.

    Raises BundleError if there is none, or its files are not as they were written.
    """
    chosen = next((each.name for each in card.engines if each.chosen), REFERENCE)
    spec = BACKENDS.get(name or chosen)
    if spec is None:
        raise BundleError(f"no engine {name!r}; there is {', '.join(BACKENDS)}")
    missing = spec.missing_requirement()
    if missing is not None:
        raise BundleError(
            f"{directory}: {spec.name}: {missing}; or name another engine, as {REFERENCE!r}"
        )
    if spec.directory:
        record = next((each for each in card.engines if each.name == spec.name), None)
        _verify_files(directory, spec.name, record)
    try:
        return spec.load(LoadContext(directory, card, directory / spec.directory, num_threads))
    except (BerthaError, OSError):
        raise
    except Exception as error:  # each library has kinds of its own, some of them no more than this
        reason = " ".join(str(error).split())[:300]
        raise BundleError(
            f"{directory}: {spec.name!r} cannot be loaded ({type(error).__name__}: {reason}); "
            f"build again: bertha build {directory}, or name another engine"
        ) from None


def _verify_files(directory: Path, name: str, record: EngineRecord | None) -> None:
    """Raise a BundleError unless the bundle holds the files of an engine as they were written."""
    if record is None or not record.files:
        why = "was never built" if record is None else f"was refused at {record.agreement:.2%}"
        how = f"build {directory}" + (" --student BUNDLE" if name == STUDENT else "")
        raise BundleError(
            f"{directory}: {name!r} {why}; bertha {how}, with --allow where it is to "
            f"serve all the same, or name {REFERENCE!r}"
        )
    folder = BACKENDS[name].directory
    unlisted = set(list_bundle_files(directory, folder)) - set(record.files)
    if unlisted:
        raise BundleError(
            f"{directory}: {CARD_FILE} does not list {min(unlisted)} as a file of {name!r}, so "
            f"nobody has verified it; build again: bertha build {directory}, or name "
            f"{REFERENCE!r}"
        )
    damage = find_corruption(directory, record.files)
    if damage is not None:
        raise BundleError(
            f"{directory}: {damage}; build again: bertha build {directory}, or name {REFERENCE!r}"
        )


def load_model_config(directory: Path, engine: str = REFERENCE) -> dict[str, Any]:
    """Read the `config.json` of the model that an engine of a bundle computes."""
    holder = directory / BACKENDS[STUDENT].directory if engine == STUDENT else directory
    config: dict[str, Any] = json.loads((holder / "config.json").read_text())
    return config


def split_rows(samples: RaggedArray) -> list[np.ndarray]:
    """Return the values of each sample."""
    return np.split(samples.values, samples.offsets[1:-1])


def batch_rows(rows: Sequence[np.ndarray], num_tokens: int) -> list[list[np.ndarray]]:
    """Group rows in their order, up to `num_tokens` in a batch, but at least one row."""
    batches: list[list[np.ndarray]] = [[]]
    for row in rows:
        if batches[-1] and sum(map(len, batches[-1])) + len(row) > num_tokens:
            batches.append([])
        batches[-1].append(row)
    return batches


def _logits_to_scores(task: str, logits: np.ndarray) -> np.ndarray:
    """Return probabilities [b, num_labels], or the numbers of a regression, as training does."""
    if task == "classification":
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)  # type: ignore[no-any-return]
    if task == "multi-label":
        with np.errstate(over="ignore"):
            return 1 / (1 + np.exp(-logits))  # type: ignore[no-any-return]
    return logits
