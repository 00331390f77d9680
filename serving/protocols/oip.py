"""The Open Inference Protocol (KServe V2), with Triton's extensions: `tritonclient`, `kserve`.

One input, a tensor of BYTES that holds the texts; `oip_outputs` lists the outputs of each task.
Binary tensors in and out, the classification extension, metadata, configuration, statistics, the
index of the repository, and loading and unloading. `oip_grpc` has the same calls over gRPC.
"""

import json
import time
from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import Field, StrictBool

from serving.http.messages import (
    JSON,
    Handler,
    HTTPError,
    Request,
    Response,
    Route,
    WireProtocol,
    bertha_version,
    request_deadline,
    truncated_texts,
)
from serving.interface import ModelInfo, ModelManagement, Models, ModelStatistics
from serving.protocols.json_bodies import (
    PLAIN_STATUSES,
    JSONBody,
    error_json,
    json_response,
    json_schema,
    parse_body,
    parse_json,
    validate_body,
)
from serving.protocols.oip_outputs import compute_outputs, select_outputs
from serving.protocols.oip_tensors import (
    BINARY,
    OIPInferRequest,
    infer_response,
    parse_infer_request,
)
from serving.protocols.requests import requested_model

EXTENSIONS = ("classification", "binary_tensor_data", "model_repository", "statistics")

_TRITON_TYPES = {
    "BYTES": "TYPE_STRING",
    "FP32": "TYPE_FP32",
    "INT64": "TYPE_INT64",
    "BOOL": "TYPE_BOOL",
}


class RepositoryIndexRequest(JSONBody):
    """The body of the repository's index; it may be empty."""

    ready: StrictBool = Field(False, description="only versions that answer")


class LoadRequest(JSONBody):
    """The options of loading and unloading; all may be left out."""

    refused: ClassVar[dict[str, str]] = {
        "config": "a bundle has its own configuration; leave it out"
    }
    meaningless: ClassVar[dict[str, str]] = {"unload_dependents": "no model depends on another"}


class RepositoryModelRequest(JSONBody):
    """The body of a load or an unload."""

    parameters: LoadRequest | None = Field(None, description="options")


async def infer(http: Request, models: Models) -> Response:
    """Compute the outputs for the texts."""
    request, texts = parse_infer_request(http, models.limits)
    if request.parameters.timeout:
        until = time.perf_counter() + request.parameters.timeout / 1e6
        request_deadline.set(min(until, request_deadline.get() or until))
    model, tensors = await compute_outputs(request, texts, models, requested_model(http))
    head: dict[str, Any] = {"model_name": model.name, "model_version": model.version}
    if request.id is not None:
        head["id"] = request.id
    if request.parameters.count_tokens:
        num_tokens = await models.count_tokens(f"{model.name}:{model.version}", texts)
        head["parameters"] = {"num_tokens": num_tokens, "max_tokens": model.max_length}
    if truncated := truncated_texts.get():
        head.setdefault("parameters", {})["truncated"] = truncated
    return infer_response(head, select_outputs(tensors, request, model))


async def check_live(_: Request, __: Models) -> Response:
    """Answer that the server runs."""
    return json_response({"live": True})


async def check_ready(_: Request, models: Models) -> Response:
    """Answer 200 if the default model answers."""
    if not await models.is_ready():
        raise HTTPError("unready", "the default model does not answer yet")
    return json_response({"ready": True})


async def check_model_ready(http: Request, models: Models) -> Response:
    """Answer 200 if a model would answer; one that is loaded on its first request would."""
    model = models.get_info(requested_model(http))
    if model.state == "loading":
        raise HTTPError("unready", f"{model.name} is loading")
    return json_response({"name": model.name, "ready": True})


async def get_server(_: Request, __: Models) -> Response:
    """Describe the server."""
    return json_response(
        {"name": "bertha", "version": bertha_version(), "extensions": list(EXTENSIONS)}
    )


async def list_models(_: Request, models: Models) -> Response:
    """List the names of the models."""
    return json_response({"models": list(dict.fromkeys(i.name for i in models.list_models()))})


async def get_metadata(http: Request, models: Models) -> Response:
    """Describe the inputs and outputs of a model."""
    model = models.get_info(requested_model(http))
    return json_response(
        {
            "name": model.name,
            "versions": [i.version for i in models.list_models() if i.name == model.name],
            "platform": model.engine,
            "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
            "outputs": [
                {"name": name, "datatype": datatype, "shape": shape}
                for name, datatype, shape in _output_specs(model)
            ],
            "properties": {
                "task": model.task,
                "labels": list(model.labels),
                "thresholds": dict(model.thresholds),
                "verdict": dict(model.verdict),
                "target": dict(model.target),
            },
        }
    )


async def get_config(http: Request, models: Models) -> Response:
    """Return a model's configuration as Triton has it."""
    model = models.get_info(requested_model(http))
    return json_response(
        {
            "name": model.name,
            "platform": model.engine,
            "backend": model.engine.partition(" ")[0],
            "max_batch_size": models.limits.max_texts,
            "version_policy": {"specific": {"versions": [model.version]}},
            "input": [{"name": "text", "data_type": "TYPE_STRING", "dims": [1]}],
            "output": [
                {"name": name, "data_type": _TRITON_TYPES[datatype], "dims": shape[1:] or [1]}
                for name, datatype, shape in _output_specs(model)
            ],
            "parameters": {
                "task": {"string_value": model.task},
                "labels": {"string_value": "\n".join(model.labels)},
                "max_length": {"string_value": str(model.max_length)},
                "thresholds": {"string_value": json.dumps(dict(model.thresholds))},
            },
        }
    )


async def get_statistics(http: Request, models: Models) -> Response:
    """Return the statistics of one model or of all, as Triton has them."""
    model = requested_model(http)
    infos = models.list_models() if model is None else [models.get_info(model)]
    statistics = [
        _format_statistics(info, models.get_statistics(f"{info.name}:{info.version}"))
        for info in infos
    ]
    return json_response({"model_stats": statistics})


async def list_repository(http: Request, models: Models) -> Response:
    """List every version of every model, and whether it answers."""
    only_ready = parse_body(RepositoryIndexRequest, http.body).ready if http.body.strip() else False
    index = [
        {
            "name": info.name,
            "version": info.version,
            # One that was never asked answers when it is.
            "state": "UNAVAILABLE" if info.state == "loading" else "READY",
            "reason": info.state if info.state == "loading" else "",
        }
        for info in models.list_models()
        if info.state != "loading" or not only_ready
    ]
    return json_response(index)


async def load_model(http: Request, models: Models) -> Response:
    """Load a model before its first request."""
    _check_load_request(http)
    await _require_management(models).load_model(http.path_params["model"])
    return Response()


async def unload_model(http: Request, models: Models) -> Response:
    """Free a model's memory."""
    _check_load_request(http)
    await _require_management(models).unload_model(http.path_params["model"])
    return Response()


def _check_load_request(http: Request) -> None:
    """Raise HTTPError for options that a bundle does not have."""
    if not http.body.strip():
        return
    value = parse_json(http.body)
    given = value.get("parameters") if isinstance(value, dict) else None
    for name in given if isinstance(given, dict) else ():
        if name.startswith("file:"):
            raise HTTPError(
                "malformed", f"{name[:60]!r}: files are not taken; register a bundle instead"
            )
    validate_body(RepositoryModelRequest, value)


async def refuse_shared_memory(_: Request, __: Models) -> Response:
    """Say that there is none."""
    raise HTTPError("wrong-task", "shared memory is not offered; send tensors in the request")


def _require_management(models: Models) -> ModelManagement:
    if models.management is None:
        raise HTTPError(
            "no-method", "this endpoint serves one bundle; nothing is loaded or unloaded"
        )
    return models.management


def _output_specs(model: ModelInfo) -> list[tuple[str, str, list[int]]]:
    """Return name, type and shape of each output; -1 is a size that the request decides."""
    if model.task == "regression":
        return [("value", "FP32", [-1])]
    if model.task == "embedding":
        return [("embedding", "FP32", [-1, model.width or -1])]
    if model.task == "masked-lm":
        types = {"token": "INT64", "token_str": "BYTES", "score": "FP32", "sequence": "BYTES"}
        return [(name, datatype, [-1, -1, -1]) for name, datatype in types.items()]
    shape = [-1, len(model.labels)]
    outputs = [("label", "BYTES", [-1]), ("probabilities", "FP32", shape)]
    return [*outputs, ("chosen", "BOOL", shape)] if model.task == "multi-label" else outputs


def _format_statistics(model: ModelInfo, statistics: ModelStatistics) -> dict[str, Any]:
    def duration(count: int, seconds: float) -> dict[str, int]:
        return {"count": count, "ns": int(seconds * 1e9)}

    num_answered = statistics.num_answered
    return {
        "name": model.name,
        "version": model.version,
        "last_inference": int(statistics.last_inference * 1000),
        "inference_count": statistics.num_texts,
        "execution_count": statistics.num_executions,
        "inference_stats": {
            "success": duration(num_answered, statistics.seconds),
            "fail": duration(statistics.num_failed, 0.0),
            "queue": duration(num_answered, statistics.queue_seconds),
            "compute_input": duration(0, 0.0),
            "compute_infer": duration(num_answered, statistics.compute_seconds),
            "compute_output": duration(0, 0.0),
        },
        "batch_stats": [],
    }


def _model_routes(call: str, handler: Handler, summary: str) -> tuple[Route, ...]:
    """Return the two routes of a call about a model: without a version and with one."""
    paths = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
    return tuple(Route("GET", path + call, handler, summary) for path in paths)


def _infer_route(path: str) -> Route:
    body = json_schema(OIPInferRequest)
    return Route("POST", path, infer, "Ask a model", body_schema=body, media_types=(JSON, BINARY))


def _shared_memory_routes(kind: str) -> Iterator[Route]:
    """Yield Triton's calls about a kind of shared memory, which refuse it by name."""
    path = f"/v2/{kind}sharedmemory"
    for region in ("", "/region/{region}"):
        yield Route("GET", f"{path}{region}/status", refuse_shared_memory, "Not offered")
        yield Route("POST", f"{path}{region}/unregister", refuse_shared_memory, "Not offered")
    yield Route("POST", f"{path}/region/{{region}}/register", refuse_shared_memory, "Not offered")


_INDEX_BODY = json_schema(RepositoryIndexRequest)
_REPOSITORY_MODEL = "/v2/repository/models/{model}"

PROTOCOL = WireProtocol(
    "oip",
    (
        _infer_route("/v2/models/{model}/infer"),
        _infer_route("/v2/models/{model}/versions/{version}/infer"),
        *_shared_memory_routes("system"),
        *_shared_memory_routes("cuda"),
        Route("GET", "/v2/health/live", check_live, "Whether the server answers", "open"),
        Route("GET", "/v2/health/ready", check_ready, "Whether the default model answers", "open"),
        Route("GET", "/v2", get_server, "The server"),
        Route("GET", "/v2/models", list_models, "The names of the models"),
        Route("GET", "/v2/models/stats", get_statistics, "What all models have done"),
        *_model_routes("/ready", check_model_ready, "Whether a model would answer"),
        *_model_routes("/config", get_config, "A model's configuration, as Triton has it"),
        *_model_routes("/stats", get_statistics, "What a model has done, as Triton has it"),
        *_model_routes("", get_metadata, "What a model reads and answers"),
        Route(
            "POST",
            "/v2/repository/index",
            list_repository,
            "Every version",
            body_schema=_INDEX_BODY,
        ),
        Route(
            "POST", f"{_REPOSITORY_MODEL}/load", load_model, "Have a model in memory", "management"
        ),
        Route(
            "POST",
            f"{_REPOSITORY_MODEL}/unload",
            unload_model,
            "Give a model's memory back",
            "management",
        ),
    ),
    error_json,
    PLAIN_STATUSES,
)
