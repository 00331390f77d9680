"""A bundle answers texts: the same cleaning, tokenizer, labels and weights that were evaluated.

Loads the engine that the bundle's card has chosen, or the one that is named, and gives its outputs
their meaning. Knows no Ray and no HTTP.

    engine = Engine.load(Path("runs/reviews/bundle"))
    engine.predict(["A warm, funny film."])[0].scores
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from serving.backends.backend import Backend
from serving.fillings import fillings
from serving.kinds import KINDS, REFERENCE, Place
from serving.models import Filling, Prediction, Vector
from trainers import bundle
from trainers.batching import Cost, cut
from trainers.card import Built, BundleError, Card, read
from trainers.device import DEVICES
from trainers.encoding import Encoder, EncodingError, Samples, TextEncoder
from trainers.sealed import flaw

Value = Prediction | Vector | np.ndarray

_CPU = DEVICES["cpu"]


class Engine:
    """A loaded bundle. Nothing changes it; `infer_rows` is called from one thread at a time."""

    def __init__(
        self, card: Card, encoder: Encoder, backend: Backend, num_features: int | None = None
    ) -> None:
        """num_features: numbers in every text of a linear model, else None."""
        self.card = card
        self._encoder = encoder
        self._backend = backend
        self._num_features = num_features
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
        return cls(card, encoder, loaded, num_features(directory))

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
        """The answers to samples that were `split`, padded and computed together, in order.

        A Prediction each; of an embedder a Vector; of a masked language model the logits
        [num_masks, vocabulary] of its masks. What a sample is batched with changes only rounding.
        Raises FloatingPointError where the model answers no number.
        """
        ids, mask = _padded(rows, self._encoder.pad)
        if self._mask_id is not None:
            return self._at_masks(ids, mask)
        outputs = self._run(ids, mask, None)
        if self.card.task == "embedding":
            return list(outputs)
        scores = _scores(self.card.task, outputs)
        return [
            Prediction(tuple(of_text), tuple(raw))
            for of_text, raw in zip(scores.tolist(), outputs.tolist(), strict=True)
        ]

    def infer(self, samples: Samples) -> list[Value]:
        """The answers to any number of samples, in order, batched by length."""
        rows = split(samples)
        budget = max(_CPU.token_budget, int(samples.lengths.max(initial=1)))
        (batches,) = cut(
            np.arange(len(rows)), samples.lengths, 1, budget, Cost(_CPU.overhead_tokens)
        )
        answers: dict[int, Value] = {}
        for batch in batches:
            members = batch.rows.tolist()
            values = self.infer_rows([rows[row] for row in members])
            answers.update(zip(members, values, strict=True))
        return [answers[row] for row in range(len(rows))]

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

    def _run(
        self, ids: np.ndarray, mask: np.ndarray | None, positions: np.ndarray | None
    ) -> np.ndarray:
        outputs = self._backend.run(ids, mask, positions)
        if not np.isfinite(outputs).all():
            raise FloatingPointError("the model answered infinity or no number")
        return outputs

    def _at_masks(self, ids: np.ndarray, mask: np.ndarray | None) -> list[Value]:
        """The logits at the masks of each row; only they meet the vocabulary."""
        masked = ids == self._mask_id
        if mask is not None:
            masked &= mask
        positions = np.flatnonzero(masked)
        counts = masked.sum(axis=1)
        if not len(positions):
            return [np.empty((0, 0), dtype=np.float32) for _ in ids]
        return list(np.split(self._run(ids, mask, positions), np.cumsum(counts)[:-1]))


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
        raise BundleError(
            f"{directory}: {name!r} {why}; python -m serving build {directory}, with --allow where "
            f"it is to serve all the same, or name {REFERENCE!r}"
        )
    damage = flaw(directory, entry.files)
    if damage is not None:
        raise BundleError(
            f"{directory}: {damage}; build again: python -m serving build {directory}, "
            f"or name {REFERENCE!r}"
        )


def num_features(directory: Path) -> int | None:
    """Numbers in every text of a linear model's bundle; None of any other."""
    found: int | None = json.loads((directory / "config.json").read_text()).get("num_features")
    return found


def split(samples: Samples) -> list[np.ndarray]:
    """The values of each sample."""
    return np.split(samples.values, samples.offsets[1:-1])


def join(rows: Sequence[np.ndarray]) -> Samples:
    """Samples of the values of each; the inverse of `split`."""
    offsets = np.cumsum([0, *(len(row) for row in rows)], dtype=np.int64)
    return Samples(np.concatenate(rows), offsets)


def _padded(rows: Sequence[np.ndarray], pad: int) -> tuple[np.ndarray, np.ndarray | None]:
    """The rows side by side [b, s], and which of it they are [b, s]; None where all of it."""
    lengths = np.array([len(row) for row in rows])
    longest = int(lengths.max())
    dtype = np.int64 if rows[0].dtype.kind == "i" else rows[0].dtype
    ids = np.full((len(rows), longest), pad, dtype=dtype)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
    if (lengths == longest).all():
        return ids, None
    return ids, np.arange(longest) < lengths[:, None]


def _scores(task: str, logits: np.ndarray) -> np.ndarray:
    """What `objective.scores` gives, without the cost of tensors: [b, num_labels]."""
    if task == "classification":
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        return shares / shares.sum(axis=1, keepdims=True)  # type: ignore[no-any-return]
    if task == "multi-label":
        with np.errstate(over="ignore"):
            return 1 / (1 + np.exp(-logits))  # type: ignore[no-any-return]
    return logits
