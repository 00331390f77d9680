"""What the Open Inference Protocol, with Triton's extensions, tells of a server and its models."""

from collections.abc import Iterable, Sequence
from typing import Any

from serving.http.version import version
from serving.interface import Limits, ModelInfo, Statistics

EXTENSIONS = ("classification", "binary_tensor_data", "model_repository", "statistics")

_TRITON_TYPES = {"BYTES": "TYPE_STRING", "FP32": "TYPE_FP32", "INT64": "TYPE_INT64"}


def server() -> dict[str, Any]:
    """The server."""
    return {"name": "bertha", "version": version(), "extensions": list(EXTENSIONS)}


def tensors(model: ModelInfo) -> list[tuple[str, str, list[int]]]:
    """Name, type and shape of each output; -1 is whatever a request makes it."""
    if model.task == "regression":
        return [("value", "FP32", [-1])]
    if model.task == "embedding":
        return [("embedding", "FP32", [-1, model.width])]
    if model.task == "masked-lm":
        types = {"token": "INT64", "token_str": "BYTES", "score": "FP32", "sequence": "BYTES"}
        return [(name, of, [-1, -1, -1]) for name, of in types.items()]
    return [("label", "BYTES", [-1]), ("probabilities", "FP32", [-1, len(model.labels)])]


def metadata(model: ModelInfo, infos: Iterable[ModelInfo]) -> dict[str, Any]:
    """A model: what it reads and answers."""
    return {
        "name": model.name,
        "versions": [info.version for info in infos if info.name == model.name],
        "platform": model.engine,
        "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
        "outputs": [
            {"name": name, "datatype": datatype, "shape": shape}
            for name, datatype, shape in tensors(model)
        ],
        "properties": {"task": model.task, "labels": list(model.labels)},
    }


def config(model: ModelInfo, limits: Limits) -> dict[str, Any]:
    """A model's configuration, in Triton's words."""
    return {
        "name": model.name,
        "platform": model.engine,
        "backend": model.engine.partition(" ")[0],
        "max_batch_size": limits.max_texts,
        "version_policy": {"specific": {"versions": [model.version]}},
        "input": [{"name": "text", "data_type": "TYPE_STRING", "dims": [1]}],
        "output": [
            {"name": name, "data_type": _TRITON_TYPES[datatype], "dims": shape[1:] or [1]}
            for name, datatype, shape in tensors(model)
        ],
        "parameters": {
            "task": {"string_value": model.task},
            "labels": {"string_value": "\n".join(model.labels)},
            "max_length": {"string_value": str(model.max_length)},
        },
    }


def statistics(of_models: Sequence[tuple[ModelInfo, Statistics]]) -> dict[str, Any]:
    """What models have done, in Triton's words: counts and nanoseconds."""
    return {"model_stats": [_statistics(model, done) for model, done in of_models]}


def index(infos: Iterable[ModelInfo], only_ready: bool) -> list[dict[str, str]]:
    """Every version, and whether it is in memory."""
    return [
        {
            "name": info.name,
            "version": info.version,
            "state": "READY" if info.state == "ready" else "UNAVAILABLE",
            "reason": "" if info.state == "ready" else info.state,
        }
        for info in infos
        if info.state == "ready" or not only_ready
    ]


def _statistics(model: ModelInfo, done: Statistics) -> dict[str, Any]:
    nothing = {"count": 0, "ns": 0}
    return {
        "name": model.name,
        "version": model.version,
        "last_inference": int(done.last_inference * 1000),
        "inference_count": done.num_texts,
        "execution_count": done.num_executions,
        "inference_stats": {
            "success": _duration(done.num_answered, done.seconds),
            "fail": _duration(done.num_failed, 0.0),
            "queue": _duration(done.num_answered, done.queue_seconds),
            "compute_input": nothing,
            "compute_infer": _duration(done.num_answered, done.compute_seconds),
            "compute_output": nothing,
        },
        "batch_stats": [],
    }


def _duration(count: int, seconds: float) -> dict[str, int]:
    return {"count": count, "ns": int(seconds * 1e9)}
