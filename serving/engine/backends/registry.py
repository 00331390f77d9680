"""The kinds of engine there are, one row each: what it needs, where its files lie, how it loads.

Knows no speeds: which of them answers is measured (`serving/build`).
"""

import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from serving.engine import networks
from serving.engine.backends.backend import Backend
from serving.engine.backends.compiled import CompiledBackend
from serving.engine.backends.eager import EagerBackend
from serving.engine.backends.onnx import OnnxBackend
from serving.engine.backends.openvino import OpenVinoBackend
from trainers.distributed.device import DEVICES
from trainers.models.card import Card

REFERENCE = "torch fp32"  # what evaluation measured
ONNX_INT8 = "onnxruntime int8"
OPENVINO_INT8 = "openvino int8"
STUDENT = "student fp32"  # another model: see `serving/optimize/distilled.py`


@dataclass(frozen=True)
class Place:
    """Where an engine is loaded from: the bundle, its card, and the engine's own directory."""

    bundle: Path
    card: Card
    directory: Path
    num_threads: int


@dataclass(frozen=True)
class Kind:
    """A kind of engine.

    module: what it runs on. load: a Backend of a Place. directory: in the bundle, "" where it needs
    no more than the bundle itself. makers: modules that write the files. machine: why this machine
    cannot run it, or None. on_request: measured only where it is named, as it loads for minutes, or
    is of another bundle.
    """

    name: str
    module: str
    load: Callable[[Place], Backend]
    directory: str = ""
    makers: tuple[str, ...] = ()
    machine: Callable[[], str | None] = lambda: None
    on_request: bool = False

    def lacking(self, to_make: bool = False) -> str | None:
        """Why this kind cannot run here, or not be made here; None where it can."""
        for module in (self.module, *(self.makers if to_make else ())):
            if importlib.util.find_spec(module) is None:
                return f'{module} is not installed; pip install "bertha[engines]"'
        return self.machine()


def _eager(dtype: torch.dtype, name: str) -> Callable[[Place], Backend]:
    return lambda place: EagerBackend(
        networks.load(place.bundle, place.card), name, place.num_threads, dtype
    )


def _compiled(place: Place) -> Backend:
    network = networks.load(place.bundle, place.card)
    return CompiledBackend(network, "torch compiled", place.num_threads)


def _student(place: Place) -> Backend:
    network = networks.load(place.directory, place.card)
    return EagerBackend(network, STUDENT, place.num_threads)


def _openvino(precision: str, name: str) -> Callable[[Place], Backend]:
    return lambda place: OpenVinoBackend(place.directory, name, place.num_threads, precision)


def _openvino_int8(place: Place) -> Backend:
    """What is not int8 computes in bf16 where that is fast."""
    precision = "f32" if _no_bf16() else "bf16"
    return OpenVinoBackend(place.directory, OPENVINO_INT8, place.num_threads, precision)


def _onnx(name: str) -> Callable[[Place], Backend]:
    return lambda place: OnnxBackend(place.directory, name, place.num_threads)


def _no_bf16() -> str | None:
    return None if DEVICES["cpu"].fast_bf16() else "the processor has no fast bf16"


def _no_vnni() -> str | None:
    """Without it, sums of two 8-bit products overflow: ONNX Runtime's int8 has 7-bit weights."""
    return None if torch.cpu._is_vnni_supported() else "the processor has no VNNI"


def _no_compiler() -> str | None:
    return None if shutil.which("g++") or shutil.which("clang++") else "no C++ compiler is here"


KINDS = {
    kind.name: kind
    for kind in (
        Kind(REFERENCE, "torch", _eager(torch.float32, REFERENCE)),
        Kind("torch bf16", "torch", _eager(torch.bfloat16, "torch bf16"), machine=_no_bf16),
        Kind("torch compiled", "torch", _compiled, machine=_no_compiler, on_request=True),
        Kind("onnxruntime fp32", "onnxruntime", _onnx("onnxruntime fp32"), "onnx", ("onnx",)),
        Kind(ONNX_INT8, "onnxruntime", _onnx(ONNX_INT8), "onnx-int8", ("onnx",)),
        Kind("openvino fp32", "openvino", _openvino("f32", "openvino fp32"), "openvino"),
        Kind(
            "openvino bf16",
            "openvino",
            _openvino("bf16", "openvino bf16"),
            "openvino",
            machine=_no_bf16,
        ),
        Kind(OPENVINO_INT8, "openvino", _openvino_int8, "openvino-int8", machine=_no_vnni),
        Kind(STUDENT, "torch", _student, "student", on_request=True),
    )
}
