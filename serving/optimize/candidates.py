"""Engines made and compared, one after another; nothing is written into the bundle.

Each is made in a directory aside, answers the held-out rows, and is compared with torch fp32. Int8
is tried in several ways until one is faithful. Knows no card to write, and nobody to print for.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from serving.engine import networks
from serving.engine.backends.backend import Backend
from serving.engine.backends.registry import (
    KINDS,
    ONNX_INT8,
    OPENVINO_INT8,
    REFERENCE,
    STUDENT,
    Place,
)
from serving.engine.engine import Engine, config_of, split
from serving.interface import Prediction
from serving.optimize import export, onnx_int8, openvino_int8
from serving.optimize.agreement import agreeing, deviation_of, metrics_of
from serving.optimize.eval_texts import Rows
from serving.optimize.int8 import Int8
from serving.optimize.smoothquant import Product
from trainers.data.tokenizer import Encoder
from trainers.models.card import Card

# Of weights on either side of 0. A processor without VNNI adds pairs of products in 16 bits, which
# weights of 8 bits overflow.
WEIGHT_LEVELS = {ONNX_INT8: 63, OPENVINO_INT8: 127}

Tell = Callable[[str], None]


@dataclass
class Candidate:
    """A kind of engine, measured, or why it was not.

    reason: why it was not made or is refused; "" where it may serve. agreement: with torch fp32.
    size_bytes: on disk.
    """

    name: str
    reason: str = ""
    engine: Engine | None = None
    agreement: float = 0.0
    max_logit_difference: float = 0.0
    metrics: dict[str, Any] = field(default_factory=dict)
    texts_per_second: dict[str, float] = field(default_factory=dict)
    batch_tokens: int = 0
    load_seconds: float = 0.0
    num_bytes: int = 0
    size_bytes: int = 0
    trials: list[dict[str, Any]] = field(default_factory=list)
    chosen: bool = False

    @property
    def speed(self) -> float:
        """One number for short and long texts: their geometric mean."""
        return _mean(self.texts_per_second)

    def offer(self, batch_tokens: int, texts_per_second: dict[str, float]) -> None:
        """Take so many tokens at once, where that is the fastest so far."""
        if _mean(texts_per_second) > self.speed:
            self.batch_tokens, self.texts_per_second = batch_tokens, texts_per_second


class Bench:
    """Makes and compares the engines of one bundle. aside: where files are made, and where a
    student's lie already.
    """

    def __init__(
        self, directory: Path, card: Card, encoder: Encoder, rows: Rows, aside: Path, tell: Tell
    ) -> None:
        self._directory, self._card, self._encoder = directory, card, encoder
        self._rows, self._aside, self._tell = rows, aside, tell
        self._network = networks.load(directory, card)
        self._masked_lm = card.task == "masked-lm"
        self._reference = self._outputs(self._load(REFERENCE)[0])

    @property
    def num_judged(self) -> int:
        """Rows, or masks, that an agreement is a share of."""
        return len(self._reference)

    def candidate(self, name: str, threshold: float) -> Candidate:
        """The engine `name`, made, loaded and compared; int8 in the first way at `threshold`."""
        kind, found = KINDS[name], Candidate(name)
        found.reason = kind.lacking(to_make=True) or ""
        if found.reason:
            return found
        if name in WEIGHT_LEVELS:
            found.trials = self._quantize(name, threshold)
        elif kind.directory:
            self._export(kind.directory)
        found.engine, found.load_seconds = self._load(name)
        outputs = self._outputs(found.engine)
        found.agreement, found.max_logit_difference = self._compared(outputs)
        found.metrics = metrics_of(self._card, outputs, self._rows.targets)
        found.num_bytes = found.engine.num_bytes
        found.size_bytes = _size(self._place(name) if kind.directory else self._directory)
        return found

    def _place(self, name: str) -> Path:
        return self._aside / KINDS[name].directory

    def _export(self, held: str) -> None:
        """Write the graph that the directory `held` holds, once."""
        place = self._aside / held
        if place.exists():
            return
        place.mkdir()
        if held == "onnx":
            export.save_onnx(self._network, place)
        else:
            export.save_openvino(export.to_openvino(self._network), place)

    def _quantize(self, kind: str, threshold: float) -> list[dict[str, Any]]:
        """Write the first int8 model at `threshold`, else the most faithful; what was tried."""
        reference, _ = self._load(REFERENCE)
        batches = [reference.packed([row]) for row in split(self._rows.calibration)]
        place, best = self._place(kind), -1.0
        tried: list[dict[str, Any]] = []
        for name, products in Int8.of(self._network, batches, WEIGHT_LEVELS[kind]).ways():
            attempt = self._aside / f"{KINDS[kind].directory}-{len(tried)}"
            attempt.mkdir()
            self._save_int8(kind, products, attempt)
            backend = KINDS[kind].load(Place(self._directory, self._card, attempt, 1))
            outputs = self._outputs(self._engine(backend))
            agreement, difference = self._compared(outputs)
            tried.append(
                {"trial": name, "agreement": agreement, "max_logit_difference": difference}
            )
            self._tell(f"  {kind}, {name}: {agreement:.2%} agree")
            if agreement > best:
                best, place = agreement, attempt
            if agreement >= threshold:
                break
        place.rename(self._place(kind))
        return tried

    def _save_int8(self, kind: str, products: dict[str, Product], place: Path) -> None:
        """Write the network with the layers `products` in int8."""
        if kind == OPENVINO_INT8:
            export.save_openvino(openvino_int8.rounded(self._network, products), place)
            return
        self._export("onnx")
        fp32 = self._aside / KINDS["onnxruntime fp32"].directory
        export.write_onnx(onnx_int8.rounded(fp32, self._network, products), place)

    def _load(self, name: str) -> tuple[Engine, float]:
        """The engine `name`, and the seconds until its first answer."""
        started = time.perf_counter()
        place = Place(self._directory, self._card, self._place(name), 1)
        engine = self._engine(KINDS[name].load(place))
        engine.predict([engine.probe])
        return engine, time.perf_counter() - started

    def _engine(self, backend: Backend) -> Engine:
        holder = self._aside if backend.name == STUDENT else self._directory
        return Engine(self._card, self._encoder, backend, config_of(holder, backend.name))

    def _outputs(self, engine: Engine) -> np.ndarray:
        """What an engine computes of the held-out rows: [n, width], of masks [num_masks, width]."""
        found = [
            value.logits if isinstance(value, Prediction) else value
            for value in engine.infer(self._rows.held_out)
        ]
        if self._masked_lm:
            return np.concatenate([value for value in found if len(value)])
        return np.array(found, dtype=np.float32)

    def _compared(self, outputs: np.ndarray) -> tuple[float, float]:
        """The agreement with torch fp32, and the largest difference of a logit."""
        deviation = deviation_of(self._reference, self._rows.targets)
        same = agreeing(self._card.task, self._reference, outputs, deviation)
        return float(same.mean()), float(np.abs(self._reference - outputs).max())


def _size(directory: Path) -> int:
    """Bytes of the model's files in a directory."""
    kinds = ("*.safetensors", "*.onnx", "*.xml", "*.bin")
    return sum(path.stat().st_size for kind in kinds for path in directory.glob(kind))


def _mean(speeds: dict[str, float]) -> float:
    """Their geometric mean; of none, 0."""
    return float(np.prod(list(speeds.values())) ** (1 / len(speeds))) if speeds else 0.0
