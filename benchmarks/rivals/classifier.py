"""The model of a rival: transformers, fast tokenizer, fp32, batches padded to the longest text.

Rivals import this file in virtual environments of their own. Where ENGINE is set it is the engine
that Bertha serves the same bundle by, so that servers are compared and not what they compute with.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

BUNDLE = "BUNDLE"  # the variable that names the bundle's directory
ENGINE = "ENGINE"  # set where the engine of that bundle computes
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


class EngineClassifier:
    """Classifies texts by the engine that the bundle has chosen, in one thread."""

    def __init__(self) -> None:
        from serving.engine.engine import Engine

        self._engine = Engine.load(Path(os.environ[BUNDLE]), num_threads=1)

    def __call__(self, texts: list[str]) -> list[dict[str, Any]]:
        """Return the most likely label of each text."""
        labels, answers = self._engine.card.labels, []
        for value in self._engine.predict(texts):
            best = max(range(len(labels)), key=value.scores.__getitem__)
            answers.append({"label": labels[best], "score": value.scores[best]})
        return answers


def load_classifier() -> Callable[[list[str]], list[dict[str, Any]]]:
    """Load the model that the environment asks for, to compute in one thread."""
    return EngineClassifier() if os.environ.get(ENGINE) else Classifier(num_threads=1)
