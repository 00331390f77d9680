"""A bundle answers texts: the same cleaning, tokenizer, labels and weights that were evaluated.

Loads the engine that the bundle's card has chosen, or the one that is named, and gives its outputs
their meaning. Knows no Ray and no HTTP.

    engine = Engine.load(Path("runs/reviews/bundle"))
    engine.predict(["A warm, funny film."])[0].scores
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from serving.engine.backends.backend import Backend
from serving.engine.backends.registry import KINDS, REFERENCE, STUDENT, Place
from serving.engine.fill_mask import fillings
from serving.engine.packed import Packed
from serving.interface import Filling, Prediction, Vector
from trainers.data.tokenizer import Encoder, EncodingError, Samples, TextEncoder
from trainers.models import bundle
from trainers.models.card import Built, BundleError, Card, read
from trainers.models.families import positions_of
from trainers.storage.atomic import flaw

Value = Prediction | Vector | np.ndarray


class Engine:
    """A loaded bundle. Nothing changes it; `infer_rows` is called from one thread at a time."""

    def __init__(
        self, card: Card, encoder: Encoder, backend: Backend, config: Mapping[str, Any]
    ) -> None:
        """config: the model's own, of Transformers' `config.json`."""
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
        """Read and verify a bundle. backend: a name of `KINDS`; default: the chosen one.

        Raises BundleError that names what is wrong.
        """
        card = read(directory)
        encoder = bundle.load_encoder(directory, card)
        loaded = load_backend(directory, card, backend, num_threads)
        return cls(card, encoder, loaded, config_of(directory, loaded.name))

    @property
    def backend(self) -> str:
        """What computes, as "onnxruntime int8"."""
        return self._backend.name

    @property
    def num_bytes(self) -> int:
        """Memory that the weights hold."""
        return self._backend.num_bytes

    @property
    def probe(self) -> str:
        """A text that a sound engine answers."""
        if self._num_features is not None:
            return " ".join("0" * self._num_features)
        return f"fine {self.mask}".strip()

    @property
    def mask(self) -> str:
        """What a text writes where a word is to be filled in; "" where none can be."""
        if isinstance(self._encoder, TextEncoder) and self._mask_id is not None:
            return str(self._encoder.tokenizer.mask_token)
        return ""

    def encode(self, texts: Sequence[str]) -> tuple[Samples, int]:
        """Raw texts cleaned and encoded, and how many of them were cut at max_length.

        Raises EncodingError that names the text where one cannot be encoded.
        """
        samples, num_cut = self._encoder.encode([self._encoder.clean(text) for text in texts])
        width = int(samples.lengths.max(initial=0))
        if self._num_features not in (None, width):
            raise EncodingError(
                f"text {texts[0][:60]!r} holds {width} numbers; this model reads "
                f"{self._num_features}"
            )
        return samples, num_cut

    def infer_rows(self, rows: Sequence[np.ndarray]) -> list[Value]:
        """The answers to samples that were `split`, computed together end to end, in order.

        A Prediction each; of an embedder a Vector; of a masked language model the logits
        [num_masks, vocabulary] of its masks. What a sample is batched with changes only rounding.
        Raises FloatingPointError where the model answers no number.
        """
        packed = self.packed(rows)
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
        scores = _scores(self.card.task, outputs)
        return [
            Prediction(tuple(of_text), tuple(raw))
            for of_text, raw in zip(scores.tolist(), outputs.tolist(), strict=True)
        ]

    def packed(self, rows: Sequence[np.ndarray]) -> Packed:
        """What a backend computes of samples that were `split`."""
        positions = [positions_of(self._config, row) for row in rows]
        if self._mask_id is None:
            return Packed.of(rows, positions)
        return Packed.of(rows, positions, np.flatnonzero(np.concatenate(rows) == self._mask_id))

    def infer(self, samples: Samples) -> list[Value]:
        """The answers to any number of samples, in order, some at a time."""
        values = map(self.infer_rows, batches(split(samples), self.batch_tokens))
        return list(itertools.chain.from_iterable(values))

    def predict(self, texts: Sequence[str]) -> list[Any]:
        """One value a text, in order: of a classifier or a regression, a Prediction."""
        return list(self.infer(self.encode(texts)[0])) if texts else []

    def fillings(
        self,
        text: str,
        row: np.ndarray,
        logits: np.ndarray,
        top_k: int = 5,
        targets: Sequence[str] | None = None,
    ) -> tuple[tuple[Filling, ...], ...]:
        """For each mask of a raw text, the likeliest tokens.

        row: the text encoded. logits: what `infer_rows` gave for it.
        """
        assert isinstance(self._encoder, TextEncoder)
        cleaned, tokenizer = self._encoder.clean(text), self._encoder.tokenizer
        return fillings(tokenizer, cleaned, row, logits, top_k, targets)


def load_backend(directory: Path, card: Card, name: str | None, num_threads: int) -> Backend:
    """The backend of a bundle by name, by default the chosen one, its files verified.

    Raises BundleError where there is none, or it is not as it was written.
    """
    built = {each.name: each for each in card.engines}
    chosen = next((each.name for each in card.engines if each.chosen), REFERENCE)
    kind = KINDS.get(name or chosen)
    if kind is None:
        raise BundleError(f"no engine {name!r}; there is {', '.join(KINDS)}")
    lacking = kind.lacking()
    if lacking is not None:
        raise BundleError(
            f"{directory}: {kind.name}: {lacking}; or name another engine, as {REFERENCE!r}"
        )
    if kind.directory:
        _verify(directory, kind.name, built.get(kind.name))
    return kind.load(Place(directory, card, directory / kind.directory, num_threads))


def _verify(directory: Path, name: str, entry: Built | None) -> None:
    """Raise a BundleError unless the bundle holds the files of an engine as they were written."""
    if entry is None or not entry.files:
        why = "was never built" if entry is None else f"was refused at {entry.agreement:.2%}"
        how = f"build {directory}" + (" --student BUNDLE" if name == STUDENT else "")
        raise BundleError(
            f"{directory}: {name!r} {why}; python -m serving {how}, with --allow where it is to "
            f"serve all the same, or name {REFERENCE!r}"
        )
    damage = flaw(directory, entry.files)
    if damage is not None:
        raise BundleError(
            f"{directory}: {damage}; build again: python -m serving build {directory}, "
            f"or name {REFERENCE!r}"
        )


def config_of(directory: Path, engine: str = REFERENCE) -> dict[str, Any]:
    """The configuration of the model that an engine of a bundle computes."""
    place = directory / KINDS[STUDENT].directory if engine == STUDENT else directory
    found: dict[str, Any] = json.loads((place / "config.json").read_text())
    return found


def split(samples: Samples) -> list[np.ndarray]:
    """The values of each sample."""
    return np.split(samples.values, samples.offsets[1:-1])


def batches(rows: Sequence[np.ndarray], num_tokens: int) -> list[list[np.ndarray]]:
    """Rows in their order, as many together as `num_tokens` hold, but at least one."""
    found: list[list[np.ndarray]] = [[]]
    for row in rows:
        if found[-1] and sum(map(len, found[-1])) + len(row) > num_tokens:
            found.append([])
        found[-1].append(row)
    return found


def join(rows: Sequence[np.ndarray]) -> Samples:
    """Samples of the values of each; the inverse of `split`."""
    offsets = np.cumsum([0, *(len(row) for row in rows)], dtype=np.int64)
    return Samples(np.concatenate(rows), offsets)


def _scores(task: str, logits: np.ndarray) -> np.ndarray:
    """What `objective.scores` gives, without the cost of tensors: [b, num_labels]."""
    if task == "classification":
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        return shares / shares.sum(axis=1, keepdims=True)  # type: ignore[no-any-return]
    if task == "multi-label":
        with np.errstate(over="ignore"):
            return 1 / (1 + np.exp(-logits))  # type: ignore[no-any-return]
    return logits
