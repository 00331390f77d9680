"""Models that answer at once, and the same each time: what protocols are tested with."""

import math
import re
import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from serving.http.messages import HTTPError
from serving.interface import (
    Attribution,
    Explanation,
    Feedback,
    InferenceResult,
    Limits,
    MaskPrediction,
    ModelInfo,
    ModelStatistics,
    Prediction,
    TextInput,
    Token,
    Vector,
)

WIDTH = 8
VOCABULARY = 1000
PROMPTS = {"query": "search for: ", "document": "found: "}
OTHER_TOKENIZER = "another tokenizer: check_embedding_ctx_length=False"
TASKS = {
    "sentiment": ("classification", ("negative", "positive")),
    "topics": ("multi-label", ("plot", "cast", "music")),
    "stars": ("regression", ()),
    "mini": ("embedding", ()),
    "filler": ("masked-lm", ()),
}
_REFERENCE = re.compile(r"([a-z0-9][a-z0-9._-]*)(?::(\w+)|@(\w+))?")


def fake_model_info(name: str, version: str = "1", **changes: Any) -> ModelInfo:
    """What is known of a model of `TASKS`."""
    task, labels = TASKS[name]
    known = ModelInfo(
        name=name,
        version=version,
        task=task,
        labels=labels,
        max_length=64,
        engine="torch fp32",
        base_model="tiny-bert",
        metrics={"accuracy": 0.9},
        revision="abc",
        weights_sha256="0" * 64,
        created=1_700_000_000.0,
        width=WIDTH if task == "embedding" else 0,
        pooling="mean" if task == "embedding" else "",
        prompts=PROMPTS if task == "embedding" else {},
    )
    return replace(known, **changes)


def fake_prediction(text: str, task: str, num_labels: int) -> Prediction:
    """An answer that depends on the text alone; its numbers are whole in float32."""
    rng = np.random.default_rng(zlib.crc32(text.encode()))
    logits = rng.integers(-512, 512, max(1, num_labels)) / 128
    if task == "regression":
        return Prediction((float(logits[0]),), (float(logits[0]),))
    powers = [math.exp(logit) for logit in logits]
    scores = [
        power / (1 + power) if task == "multi-label" else power / sum(powers) for power in powers
    ]
    return Prediction(tuple(np.float32(scores).tolist()), tuple(logits.tolist()))


def fake_vector(text: str) -> Vector:
    """A direction that depends on the text alone."""
    raw = np.random.default_rng(zlib.crc32(text.encode())).normal(size=WIDTH)
    return (raw / np.linalg.norm(raw)).astype(np.float32)


class FakeManagement:
    """Remembers what was asked of it."""

    def __init__(self, models: "FakeModels") -> None:
        self.calls: list[tuple[object, ...]] = []
        self._models = models

    async def register(self, url: str, name: str | None) -> ModelInfo:
        self.calls.append(("register", url, name))
        info = fake_model_info("sentiment", "3")
        self._models.infos = [*self._models.infos, info]
        return info

    async def set_default(self, name: str, version: str) -> None:
        self._models.get_info(f"{name}:{version}")
        self.calls.append(("set_default", name, version))

    async def unregister(self, name: str, version: str | None) -> None:
        self._models.get_info(name if version is None else f"{name}:{version}")
        self.calls.append(("unregister", name, version))

    async def load_model(self, model: str) -> None:
        self._models.get_info(model)
        self.calls.append(("load", model))

    async def unload_model(self, model: str) -> None:
        self._models.get_info(model)
        self.calls.append(("unload", model))


class FakeModels:
    """One model of each task, and two versions of the first.

    refusal: what every question is refused with. sound: whether the default model answers.
    """

    def __init__(self, *names: str, limits: Limits | None = None) -> None:
        self.limits = limits or Limits(max_texts=4)
        self.refusal: HTTPError | None = None
        self.sound = True
        self.truncated: list[bool] = []
        self.inputs: Sequence[str] = ()  # of the last question
        self.feedback: list[Feedback] = []
        self.infos = [fake_model_info(name) for name in names or TASKS]
        if self.infos[0].name == "sentiment":
            self.infos[0] = fake_model_info("sentiment", "2", aliases=("live", "best"))
            self.infos.append(fake_model_info("sentiment", "1", state="cold"))
        self.managed: FakeManagement | None = FakeManagement(self)

    @property
    def management(self) -> FakeManagement | None:
        return self.managed

    async def keep_feedback(self, feedback: Feedback) -> ModelInfo:
        self.feedback.append(feedback)
        return self.get_info(feedback.model)

    def get_info(self, model: str | None) -> ModelInfo:
        if self.refusal is not None:
            raise self.refusal
        if model is None:
            return self.infos[0]
        parts = _REFERENCE.fullmatch(model)
        for known in self.infos if parts else ():
            name, version, alias = parts.groups()
            named = version in (None, known.version) and alias in (None, *known.aliases)
            if known.name == name and named:
                return known
        raise HTTPError("no-model", f"there is no model {model!r}")

    def list_models(self) -> Sequence[ModelInfo]:
        return self.infos

    def get_statistics(self, model: str | None) -> ModelStatistics:
        self.get_info(model)
        return ModelStatistics(12, 3, 10, 1, 0.5, 0.2, 0.3, 1_700_000_000.5)

    async def is_ready(self) -> bool:
        return self.sound

    async def predict(
        self, model: str | None, texts: Sequence[str], *, truncate: bool = True
    ) -> InferenceResult[Prediction]:
        known = self._check_request(
            model, texts, truncate, "classification", "multi-label", "regression"
        )
        values = [fake_prediction(text, known.task, len(known.labels)) for text in texts]
        return InferenceResult(known, values, self._rows(texts))

    async def embed(
        self, model: str | None, texts: Sequence[str], *, truncate: bool = True
    ) -> InferenceResult[Vector]:
        known = self._check_request(model, texts, truncate, "embedding")
        return InferenceResult(known, [fake_vector(text) for text in texts], self._rows(texts))

    async def embed_tokens(
        self, model: str | None, texts: Sequence[str], *, truncate: bool = True
    ) -> InferenceResult[np.ndarray]:
        known = self._check_request(model, texts, truncate, "embedding")
        rows = self._rows(texts)
        values = [
            np.array([fake_vector(f"{text} {place}") for place in range(len(row))])
            for text, row in zip(texts, rows, strict=True)
        ]
        return InferenceResult(known, values, rows)

    async def fill_mask(
        self,
        model: str | None,
        texts: Sequence[str],
        *,
        top_k: int = 5,
        targets: Sequence[str] | None = None,
    ) -> InferenceResult[tuple[tuple[MaskPrediction, ...], ...]]:
        known = self._check_request(model, texts, True, "masked-lm")
        words = list(targets or ("film", "plot", "cast", "scene", "story", "actor"))[:top_k]
        values = []
        for number, text in enumerate(texts, 1):
            if "[MASK]" not in text:
                raise HTTPError("unreadable", f"text {number} holds no [MASK]")
            fillings = tuple(
                MaskPrediction(2.0 ** -(rank + 1), rank, word, text.replace("[MASK]", word, 1))
                for rank, word in enumerate(words)
            )
            values.append((fillings,) * text.count("[MASK]"))
        return InferenceResult(known, values, self._rows(texts))

    async def explain(
        self, model: str | None, texts: Sequence[str], *, label: str | None = None
    ) -> InferenceResult[Explanation]:
        known = self._check_request(model, texts, True, "classification", "multi-label")
        values = []
        for text in texts:
            answer = fake_prediction(text, known.task, len(known.labels))
            likeliest = answer.scores.index(max(answer.scores))
            index = likeliest if label is None else known.labels.index(label)
            pieces = [
                Attribution(found.start(), found.end(), 0.5) for found in re.finditer(r"\S+", text)
            ]
            values.append(Explanation(index, answer, tuple(pieces)))
        return InferenceResult(known, values, self._rows(texts))

    async def tokenize(
        self, model: str | None, texts: Sequence[str], *, add_special_tokens: bool = True
    ) -> Sequence[Sequence[Token]]:
        self.get_info(model)
        first, last = [Token(1, "[CLS]", True)], [Token(2, "[SEP]", True)]
        words = [
            [
                Token(10 + number, word.group(), False, word.start(), word.end())
                for number, word in enumerate(re.finditer(r"\S+", text))
            ]
            for text in texts
        ]
        return [[*first, *each, *last] if add_special_tokens else each for each in words]

    async def detokenize(
        self, model: str | None, rows: Sequence[Sequence[int]], *, skip_special_tokens: bool = True
    ) -> Sequence[str]:
        self.get_info(model)
        for number, row in enumerate(rows, 1):
            if any(not 0 <= id_ < VOCABULARY for id_ in row):
                raise HTTPError("unreadable", f"text {number}: {OTHER_TOKENIZER}")
        special = (1, 2) if skip_special_tokens else ()
        return [" ".join(f"t{id_}" for id_ in row if id_ not in special) for row in rows]

    async def count_tokens(self, model: str | None, texts: Sequence[str]) -> list[int]:
        self.get_info(model)
        return [len(text.split()) + 2 for text in texts]

    def _check_request(
        self, model: str | None, texts: Sequence[str], truncate: bool, *tasks: str
    ) -> ModelInfo:
        known = self.get_info(model)
        if known.task not in tasks:
            raise HTTPError("wrong-task", f"{known.name} is for {known.task}, not {tasks[0]}")
        for number, text in enumerate(texts, 1):
            if isinstance(text, TextInput) and any(not 0 <= id_ < VOCABULARY for id_ in text.ids):
                raise HTTPError("unreadable", f"text {number}: {OTHER_TOKENIZER}")
        self.inputs = texts
        if not truncate and any(len(text.split()) > known.max_length for text in texts):
            raise HTTPError("too-long", f"a text has more than {known.max_length} tokens")
        self.truncated.append(truncate)
        return known

    @staticmethod
    def _rows(texts: Sequence[str]) -> list[np.ndarray]:
        return [np.zeros(len(text.split()) + 2, dtype=np.int32) for text in texts]
