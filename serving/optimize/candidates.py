"""Build the engines of a bundle and compare each with torch fp32 on the same kind of device.

The bundle stays as it is.

Each engine is built in a temporary directory and computes the held-out rows. Int8 is tried with
ever fewer layers until one variant is faithful.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from serving.engine.backends.backend import Backend
from serving.engine.backends.registry import (
    BACKENDS,
    ONNX_INT8,
    OPENVINO_INT8,
    REFERENCE,
    STUDENT,
    LoadContext,
    reference_backend,
)
from serving.engine.devices import CPU
from serving.engine.engine import Engine, load_model_config, split_rows
from serving.engine.networks import load_network
from serving.interface import Prediction
from serving.optimize import export, int8, int8_export
from serving.optimize.eval_texts import EvalRows
from serving.optimize.smoothquant import QuantizedLinear
from trainers.data.tokenizer import Encoder
from trainers.evaluation.calibration import thresholds_to_shift
from trainers.models.card import ModelCard
from trainers.training.metrics import MetricAccumulator, Metrics, predictions_agree

# Levels of int8 weights on either side of 0. ONNX Runtime's kernels also run on processors without
# VNNI, which add each pair of 8-bit products into 16 saturating bits: 2 * 255 * 127 overflows
# them, 2 * 255 * 63 fits, so these weights have 7 bits. OpenVINO int8 is not built without VNNI.
WEIGHT_LEVELS = {ONNX_INT8: 63, OPENVINO_INT8: 127}


@dataclass
class EngineCandidate:
    """An engine and what was measured of it, or why it was not.

    reason: why it was not built or is refused; "" if it may serve. agreement: with torch fp32.
    size_bytes: on disk.
    """

    name: str
    reason: str = ""
    engine: Engine | None = None
    agreement: float = 0.0
    max_logit_difference: float = 0.0
    metrics: dict[str, Any] = field(default_factory=dict)
    texts_per_second: dict[str, float] = field(default_factory=dict)
    tokens_per_second: float = 0.0
    batch_tokens: int = 0
    load_seconds: float = 0.0
    num_bytes: int = 0
    size_bytes: int = 0
    trials: list[dict[str, Any]] = field(default_factory=list)
    chosen: bool = False

    @property
    def speed(self) -> float:
        """One number for short and long texts: their geometric mean."""
        return _geometric_mean(self.texts_per_second)

    def keep_if_faster(
        self, batch_tokens: int, texts_per_second: dict[str, float], tokens_per_second: float
    ) -> None:
        """Compute so many tokens at once if that is the fastest so far."""
        if _geometric_mean(texts_per_second) > self.speed:
            self.batch_tokens, self.texts_per_second = batch_tokens, texts_per_second
            self.tokens_per_second = tokens_per_second


class CandidateEvaluator:
    """Builds and compares the engines of one bundle.

    build_directory: where files are written, and where a student's are already. device: the kind
    that all of them compute on.
    """

    def __init__(
        self,
        directory: Path,
        card: ModelCard,
        encoder: Encoder,
        rows: EvalRows,
        build_directory: Path,
        log: Callable[[str], None],
        device: str = CPU,
    ) -> None:
        self._directory, self._card, self._encoder = directory, card, encoder
        self._rows, self._build_directory, self._log = rows, build_directory, log
        self._network = load_network(directory, card)
        self._reference = self._compute_outputs(self._load_engine(reference_backend(device))[0])

    @property
    def num_compared(self) -> int:
        """Rows, or masks, that an agreement is a share of."""
        return len(self._reference)

    def evaluate(self, name: str, threshold: float) -> EngineCandidate:
        """Build, load and compare an engine; int8 in the first variant that meets `threshold`."""
        spec, candidate = BACKENDS[name], EngineCandidate(name)
        candidate.reason = spec.missing_requirement(to_build=True) or ""
        if candidate.reason:
            return candidate
        if name in WEIGHT_LEVELS:
            candidate.trials = self._quantize(name, threshold)
        elif spec.directory:
            self._export_graph(spec.directory)
        candidate.engine, candidate.load_seconds = self._load_engine(name)
        outputs = self._compute_outputs(candidate.engine)
        candidate.agreement, candidate.max_logit_difference = self._compare(outputs)
        candidate.metrics = _compute_metrics(self._card, outputs, self._rows.targets)
        candidate.num_bytes = candidate.engine.num_bytes
        holder = self._engine_directory(name) if spec.directory else self._directory
        candidate.size_bytes = sum(
            path.stat().st_size
            for pattern in ("*.safetensors", "*.onnx", "*.xml", "*.bin")
            for path in holder.glob(pattern)
        )
        return candidate

    def _engine_directory(self, name: str) -> Path:
        return self._build_directory / BACKENDS[name].directory

    def _export_graph(self, name: str) -> None:
        """Write the fp32 graph in the directory `name`, once for all engines that share it."""
        directory = self._build_directory / name
        if directory.exists():
            return
        directory.mkdir()
        if name == "onnx":
            export.export_onnx(self._network, directory)
        else:
            export.save_openvino(export.convert_to_openvino(self._network), directory)

    def _quantize(self, name: str, threshold: float) -> list[dict[str, Any]]:
        """Write the first int8 model that meets `threshold`, else the most faithful.

        Returns what was tried, in order.
        """
        reference, _ = self._load_engine(REFERENCE)
        batches = [reference.pack_rows([row]) for row in split_rows(self._rows.calibration)]
        layers = int8.quantize_linear_layers(self._network, batches, WEIGHT_LEVELS[name])
        best_directory, best = self._engine_directory(name), -1.0
        trials: list[dict[str, Any]] = []
        for title, subset in int8.layer_subsets(layers):
            directory = self._build_directory / f"{BACKENDS[name].directory}-{len(trials)}"
            directory.mkdir()
            self._save_int8(name, subset, directory)
            context = LoadContext(self._directory, self._card, directory, 1)
            engine = self._make_engine(BACKENDS[name].load(context))
            agreement, difference = self._compare(self._compute_outputs(engine))
            trials.append(
                {"trial": title, "agreement": agreement, "max_logit_difference": difference}
            )
            self._log(f"  {name}, {title}: {agreement:.2%} agree")
            if agreement > best:
                best, best_directory = agreement, directory
            if agreement >= threshold:
                break
        best_directory.rename(self._engine_directory(name))
        return trials

    def _save_int8(self, name: str, layers: dict[str, QuantizedLinear], directory: Path) -> None:
        if name == OPENVINO_INT8:
            export.save_openvino(int8_export.quantize_openvino(self._network, layers), directory)
            return
        self._export_graph("onnx")
        fp32 = self._engine_directory("onnxruntime fp32")
        export.save_onnx_model(int8_export.quantize_onnx(fp32, self._network, layers), directory)

    def _load_engine(self, name: str) -> tuple[Engine, float]:
        """Load an engine; also return the seconds until its first prediction."""
        started = time.perf_counter()
        context = LoadContext(self._directory, self._card, self._engine_directory(name), 1)
        engine = self._make_engine(BACKENDS[name].load(context))
        engine.predict([engine.probe_text])
        return engine, time.perf_counter() - started

    def _make_engine(self, backend: Backend) -> Engine:
        holder = self._build_directory if backend.name == STUDENT else self._directory
        return Engine(self._card, self._encoder, backend, load_model_config(holder, backend.name))

    def _compute_outputs(self, engine: Engine) -> np.ndarray:
        """Return outputs [n, width] for the held-out rows; for masks [num_masks, width]."""
        outputs = [
            value.logits if isinstance(value, Prediction) else value
            for value in engine.infer(self._rows.held_out)
        ]
        if self._card.task == "masked-lm":
            return np.concatenate([of_text for of_text in outputs if len(of_text)])
        return np.array(outputs, dtype=np.float32)

    def _compare(self, outputs: np.ndarray) -> tuple[float, float]:
        """Return the agreement with torch fp32, and the largest difference of a logit.

        Labels are compared as the thresholds of the card choose them.
        """
        deviation = target_deviation(self._reference, self._rows.targets)
        shift = thresholds_to_shift(self._card.thresholds, self._card.labels)
        one, other = (
            logits if shift is None else logits - shift for logits in (self._reference, outputs)
        )
        same = predictions_agree(self._card.task, one, other, deviation)
        return float(same.mean()), float(np.abs(self._reference - outputs).max())


def target_deviation(reference: np.ndarray, targets: np.ndarray | None) -> float:
    """Return the standard deviation of a regression's targets; without targets, of its outputs."""
    return float(np.std(reference if targets is None else targets))


def _compute_metrics(card: ModelCard, outputs: np.ndarray, targets: np.ndarray | None) -> Metrics:
    """Return the metrics of outputs [n, width] against targets; none without targets."""
    if targets is None or card.task == "embedding":
        return {}
    shift = thresholds_to_shift(card.thresholds, card.labels)
    accumulator = MetricAccumulator(card.task, max(1, len(card.labels)), shift)
    logits = torch.from_numpy(outputs)
    if card.task == "masked-lm":
        wanted = torch.from_numpy(targets)
        losses = torch.nn.functional.cross_entropy(logits, wanted, reduction="none")
        accumulator.add_tokens(losses, logits.argmax(dim=1) == wanted)
    else:
        accumulator.add_batch(logits, torch.from_numpy(targets))
    metrics = accumulator.compute_metrics(card.labels).items()
    return {k: v for k, v in metrics if isinstance(v, int | float) and math.isfinite(v)}


def _geometric_mean(speeds: dict[str, float]) -> float:
    return float(np.prod(list(speeds.values())) ** (1 / len(speeds))) if speeds else 0.0
