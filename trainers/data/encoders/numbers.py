"""The encoder of linear models, which read a text as numbers."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trainers.data.cleaning import clean_text
from trainers.data.encoders.encoder import (
    EncodedTexts,
    EncodingError,
    OnProgress,
    ignore_progress,
)
from trainers.data.ragged import ragged_from_rows
from trainers.storage.atomic import json_sha256

LARGEST_NUMBER = float(np.finfo(np.float32).max)


class NumberEncoder:
    """An encoder of texts that are numbers with white space between, as many in every text."""

    pad_id = 0

    def __init__(self, cleaning: str, max_length: int) -> None:
        self._cleaning, self._max_length = cleaning, max_length
        self.fingerprint = json_sha256(["numbers", cleaning, max_length])

    def clean(self, text: str) -> str:
        """Clean a raw text; "" where nothing is left of it."""
        return clean_text(self._cleaning, text)

    def encode(
        self, texts: Sequence[str], on_progress: OnProgress = ignore_progress
    ) -> EncodedTexts:
        """Parse the numbers of each text."""
        rows = [np.array(self._parse_numbers(text), dtype=np.float32) for text in texts]
        for text, row in zip(texts, rows, strict=True):
            if len(row) != len(rows[0]):
                raise EncodingError(
                    f"text {text[:60]!r} holds {len(row)} numbers, {texts[0][:60]!r} holds "
                    f"{len(rows[0])}; a linear model reads as many from every text"
                )
        on_progress(len(texts))
        return ragged_from_rows(rows, np.float32), np.zeros(len(rows), dtype=bool)

    def save(self, directory: Path) -> None:
        """Write nothing: `load_encoder("linear", ...)` makes this encoder again."""

    def _parse_numbers(self, text: str) -> list[float]:
        try:
            numbers = [float(word) for word in text.split()]
        except ValueError:
            numbers = []
        if not numbers or not all(abs(each) <= LARGEST_NUMBER for each in numbers):
            raise EncodingError(
                f"text {text[:60]!r} is not numbers with white space between them; "
                "a linear model reads nothing else"
            )
        if len(numbers) > self._max_length:
            raise EncodingError(
                f"text {text[:60]!r} holds {len(numbers)} numbers; raise batch.max_length = "
                f"{self._max_length} to take them all"
            )
        return numbers
