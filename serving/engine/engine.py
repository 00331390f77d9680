"""Predict texts with a bundle: the cleaning, tokenizer, labels and weights that were evaluated.

engine = Engine.load(Path("runs/reviews/bundle"))
engine.predict(["A warm, funny film."])[0].scores
"""

import json
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from serving.engine.backends.backend import Backend, OverlappingBackend
from serving.engine.backends.load import load_backend
from serving.engine.backends.registry import BACKENDS, REFERENCE, STUDENT
from serving.engine.choice import choose_engine
from serving.engine.devices import CPU
from serving.engine.fill_mask import predict_masks
from serving.engine.text_inputs import clean_texts, detokenize, encode_inputs, tokenize
from serving.interface import MaskPrediction, Prediction, TextInput, Token, Vector
from trainers.data.ragged import RaggedArray
from trainers.data.tokenizer import Encoder, EncodingError, TextEncoder
from trainers.models import bundle
from trainers.models.card import ModelCard, read_card
from trainers.models.families import position_ids
from trainers.models.packed import PackedBatch
from trainers.models.window_pool import WindowPool

Value = Prediction | Vector | np.ndarray

MAX_COUNTED_CHARACTERS = 100_000  # of one request whose tokens are counted beyond max_length

log = logging.getLogger(__name__)


class Engine:
    """A loaded bundle, immutable. Call `infer_rows` from one thread at a time."""

    def __init__(
        self, card: ModelCard, encoder: Encoder, backend: Backend, config: Mapping[str, Any]
    ) -> None:
        """Bind a backend to a bundle. config: of the model, from Transformers' `config.json`."""
        self.card = card
        device = backend.device if isinstance(backend, OverlappingBackend) else None
        where = (CPU, "") if device is None else (device.kind, device.name)
        choice = choose_engine(card, *where, backend.name)
        self.batch_tokens, self.tokens_per_second = choice.batch_tokens, choice.tokens_per_second
        self.remark = choice.remark
        self._encoder = encoder
        self._backend = backend
        self._config = config
        self._num_features: int | None = config.get("num_features")  # of a linear model
        self._mask_id: int | None = None
        if card.task == "masked-lm" and isinstance(encoder, TextEncoder):
            self._mask_id = encoder.tokenizer.mask_token_id

    @classmethod
    def load(
        cls,
        directory: Path,
        backend: str | None = None,
        num_threads: int = 1,
        device: str = CPU,
    ) -> "Engine":
        """Read and verify a bundle.

        backend: a name of `BACKENDS`; default: the one chosen for this kind of `device`, or torch
        fp32 on it. Raises BundleError that names what is wrong, and DeviceError.
        """
        card = read_card(directory)
        encoder = bundle.load_encoder(directory, card)
        name = backend or choose_engine(card, device).name
        loaded = load_backend(directory, card, name, num_threads)
        engine = cls(card, encoder, loaded, load_model_config(directory, loaded.name))
        if engine.remark:
            log.warning("%s: %s", directory, engine.remark)
        return engine

    @property
    def backend(self) -> str:
        """The name of the backend, as "onnxruntime int8"."""
        return self._backend.name

    @property
    def overlaps(self) -> bool:
        """Whether the next batch may begin while one is computed (`start_rows`)."""
        return isinstance(self._backend, OverlappingBackend)

    @property
    def num_bytes(self) -> int:
        """Bytes of memory that the weights hold, on the device."""
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

    def encode(self, texts: Sequence[str]) -> tuple[RaggedArray, np.ndarray]:
        """Clean and encode raw texts; also return which [n] bool are longer than what is read.

        A `TextInput` says itself how it is read. Raises EncodingError that names a text which
        cannot be encoded; EmptyTextError where its cleaning leaves nothing of it.
        """
        if any(isinstance(text, TextInput) for text in texts):
            return encode_inputs(self._encoder, texts)
        return self.encode_cleaned(clean_texts(self._encoder, texts))

    def clean(self, text: str) -> str:
        """Clean a raw text as the training rows were cleaned; "" where nothing is left of it."""
        return self._encoder.clean(text)

    def encode_cleaned(self, texts: Sequence[str]) -> tuple[RaggedArray, np.ndarray]:
        """Encode what `clean` returned, as `encode` does."""
        samples, truncated = self._encoder.encode(texts)
        width = int(samples.lengths.max(initial=0))
        if self._num_features not in (None, width):
            raise EncodingError(
                f"text {texts[0][:60]!r} holds {width} numbers; this model reads "
                f"{self._num_features}"
            )
        return samples, truncated

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return how many tokens each raw text has before it is cut, special ones included.

        A text beyond its share of MAX_COUNTED_CHARACTERS has at least so many; one of which nothing
        is left has the special ones. Raises EncodingError as `encode` does otherwise.
        """
        if not isinstance(self._encoder, TextEncoder):
            return [int(length) for length in self.encode(texts)[0].lengths]
        limit = MAX_COUNTED_CHARACTERS // max(1, len(texts))
        uncut = self._encoder.tokenize_uncut([self.clean(text[:limit]) for text in texts])
        special = self._encoder.tokenizer.num_special_tokens_to_add()
        return [int(length) + special for length in uncut.lengths]

    def tokenize(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[Token]]:
        """Return the tokens of each raw text before it is cut, with offsets into the cleaned one.

        A text beyond its share of MAX_COUNTED_CHARACTERS is read so far. Raises EncodingError.
        """
        limit = MAX_COUNTED_CHARACTERS // max(1, len(texts))
        cleaned = clean_texts(self._encoder, [text[:limit] for text in texts])
        return tokenize(self._encoder, cleaned, add_special_tokens)

    def detokenize(
        self, rows: Sequence[Sequence[int]], skip_special_tokens: bool = True
    ) -> list[str]:
        """Return the text of each row of token ids. Raises EncodingError."""
        return detokenize(self._encoder, rows, skip_special_tokens)

    def infer_rows(self, rows: Sequence[np.ndarray]) -> list[Value]:
        """Compute the rows of `split_rows` as one packed batch; return a value each, in order.

        A Prediction; of an embedder a Vector; of a masked language model the logits
        [num_masks, vocabulary] of its masks. What a row is batched with changes only rounding.
        Raises FloatingPointError if the model computes infinity or NaN.
        """
        return self.start_rows(rows)()

    def start_rows(self, rows: Sequence[np.ndarray]) -> Callable[[], list[Value]]:
        """Begin to compute as `infer_rows` does; return what waits for the values and returns them.

        Where the engine `overlaps`, two batches may be under way; else all is done by the wait.
        """
        packed, backend = self.pack_rows(rows), self._backend
        if self._mask_id is not None and not len(packed.reads):
            return lambda: [np.empty((0, 0), dtype=np.float32) for _ in rows]
        if isinstance(backend, OverlappingBackend):
            wait = backend.start(packed)
            return lambda: self._to_values(packed, wait())
        return lambda: self._to_values(packed, backend.run(packed))

    def _to_values(self, packed: PackedBatch, outputs: np.ndarray) -> list[Value]:
        """Return a value for each text of a batch. Raises FloatingPointError."""
        if not np.isfinite(outputs).all():
            raise FloatingPointError("the model answered infinity or no number")
        if self._mask_id is not None:
            of_text = np.bincount(packed.texts[packed.reads], minlength=len(packed.lengths))
            return list(np.split(outputs, np.cumsum(of_text)[:-1]))
        if self.card.task == "embedding":
            return list(outputs)
        return self._to_predictions(outputs)

    def _to_predictions(self, outputs: np.ndarray) -> list[Value]:
        """Return the predictions of logits [n, num_labels]."""
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

    def pool_windows(self, values: Sequence[Any], samples: RaggedArray) -> list[Any]:
        """Return a value for each of `samples`, given one for each row of `split_rows`."""
        if samples.windows is None or self.card.windows is None or not len(samples):
            return list(values)
        pool = WindowPool.from_counts(samples.windows.lengths, self.card.windows.pool)
        logits = np.array([value.logits for value in values], dtype=np.float32)
        return self._to_predictions(pool(torch.from_numpy(logits)).numpy())

    def infer(self, samples: RaggedArray) -> list[Value]:
        """Compute any number of samples, in order, `batch_tokens` at a time; a value each."""
        values: list[Value] = []
        waits: deque[Callable[[], list[Value]]] = deque()
        for batch in batch_rows(split_rows(samples), self.batch_tokens):
            waits.append(self.start_rows(batch))
            if len(waits) == 2:
                values += waits.popleft()()
        values += [value for wait in waits for value in wait()]
        return self.pool_windows(values, samples)

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


def load_model_config(directory: Path, engine: str = REFERENCE) -> dict[str, Any]:
    """Read the `config.json` of the model that an engine of a bundle computes."""
    holder = directory / BACKENDS[STUDENT].directory if engine == STUDENT else directory
    config: dict[str, Any] = json.loads((holder / "config.json").read_text())
    return config


def split_rows(samples: RaggedArray) -> list[np.ndarray]:
    """Return what is computed one by one: the values of each sample, or of each of its windows."""
    sequences = samples.sequences
    return np.split(sequences.values, sequences.offsets[1:-1])


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
