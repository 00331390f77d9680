"""A bundle answers texts: the same cleaning, tokenizer, labels and weights that were evaluated.

Knows no Ray and no HTTP.

    engine = Engine.load(Path("runs/reviews/bundle"))
    engine.predict(["A warm, funny film."])[0].scores
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from trainers import bundle
from trainers.card import BundleError, Card, read
from trainers.device import DEVICES
from trainers.encoding import Encoder, EncodingError, Samples
from trainers.model import LinearModel, predict
from trainers.objective import scores


@dataclass(frozen=True)
class Prediction:
    """The answer to one text.

    scores: a probability for each label in the order of the card (softmax, or the sigmoid of each
    for multi-label), or the one number of a regression. logits: what the model computed, raw.
    """

    scores: tuple[float, ...]
    logits: tuple[float, ...]


class Engine:
    """A loaded bundle. `predict` is `infer` of what `encode` gives; neither changes the engine."""

    def __init__(self, card: Card, encoder: Encoder, model: torch.nn.Module) -> None:
        self.card = card
        self._encoder = encoder
        self._model = model
        self._num_features = model.linear.in_features if isinstance(model, LinearModel) else None

    @property
    def probe(self) -> str:
        """A text that a sound engine answers."""
        return "fine" if self._num_features is None else " ".join("0" * self._num_features)

    @classmethod
    def load(cls, directory: Path) -> "Engine":
        """Read and verify a bundle. Raises BundleError that names what is wrong."""
        card = read(directory)
        if card.task == "masked-lm":
            raise BundleError(
                f"{directory}: a masked language model answers no labels yet; train on it with "
                f"model.name={directory}, and serve what comes of that"
            )
        encoder = bundle.load_encoder(directory, card)
        return cls(card, encoder, bundle.load_model(directory, card))

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

    def infer(self, samples: Samples) -> list[Prediction]:
        """One prediction a sample, in order; what a sample is batched with changes only rounding.

        Raises FloatingPointError where the model answers no number.
        """
        logits = predict(
            self._model,
            samples,
            self._encoder.pad,
            DEVICES["cpu"].token_budget,
            torch.device("cpu"),
        )
        if not np.isfinite(logits).all():
            raise FloatingPointError("the model answered infinity or no number")
        meant = scores(self.card.task, torch.from_numpy(logits))
        return [
            Prediction(tuple(of_text), tuple(raw))
            for of_text, raw in zip(meant.tolist(), logits.tolist(), strict=True)
        ]

    def infer_rows(self, rows: Sequence[np.ndarray]) -> list[Prediction]:
        """`infer` of samples that were `split`, of one request or of several."""
        return self.infer(join(rows))

    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        """One prediction a text, in order."""
        samples, _ = self.encode(texts)
        return self.infer(samples)


def split(samples: Samples) -> list[np.ndarray]:
    """The values of each sample."""
    return np.split(samples.values, samples.offsets[1:-1])


def join(rows: Sequence[np.ndarray]) -> Samples:
    """Samples of the values of each; the inverse of `split`."""
    offsets = np.cumsum([0, *(len(row) for row in rows)], dtype=np.int64)
    return Samples(np.concatenate(rows), offsets)
