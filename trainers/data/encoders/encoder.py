"""The interface of encoders: from raw texts to what a model reads."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from cluster.errors import BerthaError
from trainers.data.ragged import RaggedArray

OnProgress = Callable[[int], None]  # called with the number of texts encoded so far
EncodedTexts = tuple[RaggedArray, np.ndarray]  # samples, and which of them [n] bool were cut


class EncodingError(BerthaError):
    """A text that cannot be encoded, or no encoder; the text says which and the way out."""


class EmptyTextError(EncodingError):
    """A text of which the cleaning leaves nothing."""


def ignore_progress(done: int) -> None:
    """Report nothing."""


class Encoder(Protocol):
    """From raw texts to token ids."""

    @property
    def pad_id(self) -> int:
        """The id of padding."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all that decides what comes out."""

    def clean(self, text: str) -> str:
        """Clean a raw text as `encode` expects it; "" where nothing is left of it."""

    def encode(
        self, texts: Sequence[str], on_progress: OnProgress = ignore_progress
    ) -> EncodedTexts:
        """Encode cleaned texts; return which of them are longer than what is read as well.

        Raises EncodingError that names the text where one cannot be encoded.
        """

    def save(self, directory: Path) -> None:
        """Write what `load_encoder(str(directory), ...)` needs to make this encoder again."""
