"""The calls of GRPCInferenceService, each as a route: a message in, a message out.

A call is what `oip` does over HTTP, and its errors are the same, as codes of gRPC.
"""

import json
from collections.abc import Awaitable, Callable
from typing import Any, Literal

from serving.http.messages import (
    GRPC_CODES,
    Handler,
    HTTPError,
    Request,
    Response,
    Route,
    Scope,
    WireProtocol,
)
from serving.interface import Models
from serving.protocols import oip
from serving.protocols.json_bodies import dump_json
from serving.protocols.oip_grpc.messages import (
    SERVICE,
    build_message,
    message_class,
    parameters_to_dict,
    parse_message,
)
from serving.protocols.oip_grpc.tensors import model_params, to_http_request, to_infer_response

MEDIA_TYPE = "application/grpc"

Call = Callable[[Any, Request, Models], Awaitable[Any]]  # of a message; returns one


async def infer(message: Any, http: Request, models: Models) -> Any:
    """Ask a model."""
    return to_infer_response(await oip.infer(to_http_request(message, http), models))


async def infer_in_stream(message: Any, http: Request, models: Models) -> Any:
    """Answer one request of a stream, which goes on when one of them is refused."""
    answer = message_class("ModelStreamInferResponse")()
    try:
        answer.infer_response.CopyFrom(await infer(message, http, models))
    except HTTPError as error:
        answer.error_message = error.message
        answer.infer_response.id = message.id  # by which its client finds what it asked
    return answer


async def check_live(_: Any, __: Request, ___: Models) -> Any:
    """Answer that the server runs."""
    return message_class("ServerLiveResponse")(live=True)


async def check_ready(_: Any, http: Request, models: Models) -> Any:
    """Say whether the default model answers."""
    ready = await _succeeds(oip.check_ready, http, models)
    return message_class("ServerReadyResponse")(ready=ready)


async def check_model_ready(message: Any, http: Request, models: Models) -> Any:
    """Say whether a model would answer; one that is not there would not."""
    ready = await _succeeds(oip.check_model_ready, _about_model(message, http), models)
    return message_class("ModelReadyResponse")(ready=ready)


async def get_server(_: Any, http: Request, models: Models) -> Any:
    """Describe the server."""
    return build_message("ServerMetadataResponse", await _ask(oip.get_server, http, models))


async def get_metadata(message: Any, http: Request, models: Models) -> Any:
    """Describe the inputs and outputs of a model."""
    found = await _ask(oip.get_metadata, _about_model(message, http), models)
    return build_message("ModelMetadataResponse", found)


async def get_config(message: Any, http: Request, models: Models) -> Any:
    """Return a model's configuration."""
    found = await _ask(oip.get_config, _about_model(message, http), models)
    return build_message("ModelConfigResponse", {"config": found})


async def get_statistics(message: Any, http: Request, models: Models) -> Any:
    """Return the statistics of one model, or of all where it names none."""
    about = _about_model(message, http) if message.name else http
    return build_message("ModelStatisticsResponse", await _ask(oip.get_statistics, about, models))


async def list_repository(message: Any, http: Request, models: Models) -> Any:
    """List every version of every model."""
    _check_repository(message)
    body = dump_json({"ready": message.ready})
    found = await _ask(oip.list_repository, http._replace(body=body), models)
    return build_message("RepositoryIndexResponse", {"models": found})


async def load_model(message: Any, http: Request, models: Models) -> Any:
    """Load a model before its first request."""
    await oip.load_model(_about_repository_model(message, http), models)
    return message_class("RepositoryModelLoadResponse")()


async def unload_model(message: Any, http: Request, models: Models) -> Any:
    """Free a model's memory."""
    await oip.unload_model(_about_repository_model(message, http), models)
    return message_class("RepositoryModelUnloadResponse")()


async def _ask(handler: Handler, http: Request, models: Models) -> Any:
    """Return the JSON that a call over HTTP answers."""
    return json.loads((await handler(http, models)).body)


async def _succeeds(handler: Handler, http: Request, models: Models) -> bool:
    """Return whether a call over HTTP that asks for readiness says so."""
    try:
        await handler(http, models)
    except HTTPError as error:
        if error.kind in ("unready", "no-model"):
            return False
        raise
    return True


def _about_model(message: Any, http: Request) -> Request:
    return http._replace(path_params=model_params(message.name, message.version))


def _about_repository_model(message: Any, http: Request) -> Request:
    _check_repository(message)
    parameters = {
        key: "bytes" if isinstance(value, bytes) else value
        for key, value in parameters_to_dict(message.parameters).items()
    }
    return http._replace(
        path_params=model_params(message.model_name, ""),
        body=dump_json({"parameters": parameters}),
    )


def _check_repository(message: Any) -> None:
    if message.repository_name:
        raise HTTPError(
            "malformed",
            f"repository_name = {message.repository_name[:60]!r}: there is one; leave it out",
        )


def _route(name: str, call: Call, scope: Scope | Literal["open"] = "inference") -> Route:
    request_name = "ModelInferRequest" if name == "ModelStreamInfer" else f"{name}Request"

    async def handle(http: Request, models: Models) -> Response:
        message = parse_message(request_name, http.body)
        answer = await call(message, http._replace(body=b""), models)
        return Response(answer.SerializeToString(), media_type=MEDIA_TYPE)

    summary = (call.__doc__ or "").rstrip(".")
    return Route("POST", f"/{SERVICE}/{name}", handle, summary, scope)


def _error_json(error: HTTPError, _: int) -> bytes:
    return dump_json({"code": GRPC_CODES[error.kind], "message": error.message})


STREAMS = (_route("ModelStreamInfer", infer_in_stream),)
PROTOCOL = WireProtocol(
    "grpc",
    (
        _route("ServerLive", check_live, "open"),
        _route("ServerReady", check_ready, "open"),
        _route("ServerMetadata", get_server),
        _route("ModelReady", check_model_ready),
        _route("ModelMetadata", get_metadata),
        _route("ModelInfer", infer),
        *STREAMS,
        _route("ModelConfig", get_config),
        _route("ModelStatistics", get_statistics),
        _route("RepositoryIndex", list_repository),
        _route("RepositoryModelLoad", load_model, "management"),
        _route("RepositoryModelUnload", unload_model, "management"),
    ),
    _error_json,
)
