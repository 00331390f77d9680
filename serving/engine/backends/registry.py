"""The backends by name: what each needs, which directory holds its files, how it loads.

Which of them serves a bundle is measured (`serving.optimize`).
"""

import importlib.util
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from serving.engine.backends.accelerator import AcceleratorBackend
from serving.engine.backends.backend import Backend
from serving.engine.backends.onnx import OnnxBackend
from serving.engine.backends.openvino import OpenVinoBackend
from serving.engine.backends.pytorch import CompiledBackend, EagerBackend
from serving.engine.devices import (
    CPU,
    ENGINE_DEVICES,
    find_device_problem,
    open_device,
)
from serving.engine.networks import load_network
from trainers.distributed.device import DEVICES
from trainers.models.attention import HALF, has_varlen_attention
from trainers.models.card import ModelCard

REFERENCE = "torch fp32"  # what evaluation measured; on another device with its kind behind it
ONNX_INT8 = "onnxruntime int8"
OPENVINO_INT8 = "openvino int8"
STUDENT = "student fp32"  # a distilled model, from another bundle


@dataclass(frozen=True)
class LoadContext:
    """The bundle that an engine is loaded from, its card, and the engine's own directory."""

    bundle: Path
    card: ModelCard
    directory: Path
    num_threads: int


@dataclass(frozen=True)
class BackendSpec:
    """A backend that a bundle can run on.

    module: that it runs on. load: returns a Backend. directory: in the bundle; "" if it needs no
    files of its own. build_modules: that write the files. unsupported: returns why this machine
    cannot run it, or None. on_request: measured only if it is named, because it loads for minutes
    or is of another bundle. device: the kind that it computes on.
    """

    name: str
    module: str
    load: Callable[[LoadContext], Backend]
    directory: str = ""
    build_modules: tuple[str, ...] = ()
    unsupported: Callable[[], str | None] = lambda: None
    on_request: bool = False
    device: str = CPU

    def missing_requirement(self, to_build: bool = False) -> str | None:
        """Return why this backend cannot run here, or not be built here; None if it can."""
        for module in (self.module, *(self.build_modules if to_build else ())):
            if importlib.util.find_spec(module) is None:
                return f'{module} is not installed; pip install "bertha-ray[engines]"'
        return self.unsupported()


def _check_bf16() -> str | None:
    return None if DEVICES["cpu"].has_fast_bf16() else "the processor has no fast bf16"


def _check_vnni() -> str | None:
    # OpenVINO's int8 has 8-bit weights: without VNNI, sums of two 8-bit products overflow 16 bits.
    # ONNX Runtime's runs everywhere, because its weights are written in 7 bits.
    return None if torch.cpu._is_vnni_supported() else "the processor has no VNNI"


def _check_compiler() -> str | None:
    return None if shutil.which("g++") or shutil.which("clang++") else "no C++ compiler is here"


def _eager_spec(
    name: str, dtype: torch.dtype, unsupported: Callable[[], str | None] = lambda: None
) -> BackendSpec:
    def load(context: LoadContext) -> Backend:
        network = load_network(context.bundle, context.card)
        return EagerBackend(network, name, context.num_threads, dtype)

    return BackendSpec(name, "torch", load, unsupported=unsupported)


def _load_compiled(context: LoadContext) -> Backend:
    network = load_network(context.bundle, context.card)
    return CompiledBackend(network, "torch compiled", context.num_threads)


def _load_student(context: LoadContext) -> Backend:
    network = load_network(context.directory, context.card)
    return EagerBackend(network, STUDENT, context.num_threads)


def _onnx_spec(name: str, directory: str) -> BackendSpec:
    def load(context: LoadContext) -> Backend:
        return OnnxBackend(context.directory, name, context.num_threads)

    return BackendSpec(name, "onnxruntime", load, directory, ("onnx",))


def _openvino_spec(
    name: str,
    directory: str,
    precision: Callable[[], str],
    unsupported: Callable[[], str | None] = lambda: None,
) -> BackendSpec:
    def load(context: LoadContext) -> Backend:
        return OpenVinoBackend(context.directory, name, context.num_threads, precision())

    return BackendSpec(name, "openvino", load, directory, unsupported=unsupported)


def _check_accelerator(kind: str, dtype: torch.dtype, graphs: bool) -> str | None:
    """Return why a device of `kind` cannot compute fast in `dtype`, or replay graphs; or None."""
    problem = find_device_problem(kind)
    if problem is not None or kind != "cuda":
        return problem
    if dtype == torch.bfloat16 and not DEVICES[kind].has_fast_bf16():
        return "the card has no fast bf16"
    has_flash = has_varlen_attention(torch.device(kind), dtype)
    return "the card has no flash attention" if graphs and not has_flash else None


def _accelerator_specs(kind: str) -> Iterator[BackendSpec]:
    """Yield the backends of a kind of accelerator: in each dtype, and as captured graphs."""
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    for word, dtype in dtypes.items():
        yield _accelerator_spec(kind, f"torch {word} {kind}", dtype, graphs=False)
        if dtype in HALF and ENGINE_DEVICES[kind].has_graphs:
            yield _accelerator_spec(kind, f"torch {word} graphs {kind}", dtype, graphs=True)


def _accelerator_spec(kind: str, name: str, dtype: torch.dtype, graphs: bool) -> BackendSpec:
    def load(context: LoadContext) -> Backend:
        network = load_network(context.bundle, context.card)
        return AcceleratorBackend(network, name, open_device(kind), dtype, graphs)

    return BackendSpec(
        name,
        "torch",
        load,
        unsupported=lambda: _check_accelerator(kind, dtype, graphs),
        device=kind,
    )


def reference_backend(kind: str) -> str:
    """Return the name of torch fp32 on a kind of device."""
    return REFERENCE if kind == CPU else f"{REFERENCE} {kind}"


BACKENDS = {
    spec.name: spec
    for spec in (
        _eager_spec(REFERENCE, torch.float32),
        _eager_spec("torch bf16", torch.bfloat16, _check_bf16),
        BackendSpec(
            "torch compiled", "torch", _load_compiled, unsupported=_check_compiler, on_request=True
        ),
        _onnx_spec("onnxruntime fp32", "onnx"),
        _onnx_spec(ONNX_INT8, "onnx-int8"),
        _openvino_spec("openvino fp32", "openvino", lambda: "f32"),
        _openvino_spec("openvino bf16", "openvino", lambda: "bf16", _check_bf16),
        # The layers that are not int8 compute in bf16 where that is fast.
        _openvino_spec(
            OPENVINO_INT8, "openvino-int8", lambda: "f32" if _check_bf16() else "bf16", _check_vnni
        ),
        BackendSpec(STUDENT, "torch", _load_student, "student", on_request=True),
        *(spec for kind in ENGINE_DEVICES if kind != CPU for spec in _accelerator_specs(kind)),
    )
}
