"""The model of every rival: transformers, fast tokenizer, fp32, batches padded to the longest text.

Rivals import this file in virtual environments of their own, so it imports nothing of this project.
"""

import os
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

BUNDLE = "BUNDLE"  # the variable that names the bundle's directory
MAX_LENGTH = 256


class Classifier:
    """Classifies texts: labels with scores."""

    def __init__(self, num_threads: int | None = None) -> None:
        """Load the model. num_threads: of torch; default: torch's own."""
        if num_threads:
            torch.set_num_threads(num_threads)
        directory = os.environ[BUNDLE]
        self._tokenizer = AutoTokenizer.from_pretrained(directory)
        self._model = AutoModelForSequenceClassification.from_pretrained(directory).eval()
        self._labels = self._model.config.id2label

    def __call__(self, texts: list[str]) -> list[dict[str, Any]]:
        """Return the most likely label of each text."""
        encoded = self._tokenizer(
            texts, padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt"
        )
        with torch.inference_mode():
            shares = self._model(**encoded).logits.softmax(-1)
        best = shares.max(-1)
        return [
            {"label": self._labels[index], "score": score}
            for index, score in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
