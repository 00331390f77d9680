"""The Open Inference Protocol (KServe V2), with Triton's extensions: `tritonclient`, `kserve`.

One input, a tensor of BYTES that holds the texts; `oip_outputs` tells what answers it. Binary
tensors in and out, the classification extension, metadata, configuration, statistics, the index of
the repository, and loading and unloading. There is no gRPC.
"""

from typing import Any

from pydantic import Field, StrictBool

from serving.http.messages import JSON, Handler, Protocol, Refusal, Reply, Request, Route
from serving.interface import Management, Models
from serving.protocols import oip_metadata
from serving.protocols.json_bodies import Body, dump, parse, said, schema
from serving.protocols.oip_outputs import outputs, wanted
from serving.protocols.oip_tensors import BINARY, InferRequest, read, reply
from serving.protocols.paths import model_of


class IndexRequest(Body):
    """The body of the repository's index; it may be empty."""

    ready: StrictBool = Field(False, description="only versions that are in memory")


async def infer(http: Request, models: Models) -> Reply:
    """The outputs for the texts."""
    request, texts = read(http, models.limits)
    model, tensors = await outputs(request, texts, models, model_of(http))
    head: dict[str, Any] = {"model_name": model.name, "model_version": model.version}
    if request.id is not None:
        head["id"] = request.id
    return reply(head, wanted(tensors, request, model))


async def live(_: Request, __: Models) -> Reply:
    """Whether the server answers at all."""
    return Reply(dump({"live": True}))


async def ready(_: Request, models: Models) -> Reply:
    """Whether the default model answers."""
    if not await models.ready():
        raise Refusal("unready", "the default model does not answer yet")
    return Reply(dump({"ready": True}))


async def model_ready(http: Request, models: Models) -> Reply:
    """Whether a model would answer; one that is loaded when first asked would."""
    model = models.find(model_of(http))
    if model.state == "loading":
        raise Refusal("unready", f"{model.name} is loading")
    return Reply(dump({"name": model.name, "ready": True}))


async def server(_: Request, __: Models) -> Reply:
    """The server."""
    return Reply(dump(oip_metadata.server()))


async def listed(_: Request, models: Models) -> Reply:
    """The names of the models."""
    return Reply(dump({"models": list(dict.fromkeys(info.name for info in models.all()))}))


async def metadata(http: Request, models: Models) -> Reply:
    """What a model reads and answers."""
    return Reply(dump(oip_metadata.metadata(models.find(model_of(http)), models.all())))


async def config(http: Request, models: Models) -> Reply:
    """A model's configuration."""
    return Reply(dump(oip_metadata.config(models.find(model_of(http)), models.limits)))


async def statistics(http: Request, models: Models) -> Reply:
    """What a model has done, or all of them."""
    model = model_of(http)
    infos = models.all() if model is None else [models.find(model)]
    done = [(info, models.statistics(f"{info.name}:{info.version}")) for info in infos]
    return Reply(dump(oip_metadata.statistics(done)))


async def index(http: Request, models: Models) -> Reply:
    """Every version of every model."""
    only_ready = parse(IndexRequest, http.body).ready if http.body.strip() else False
    return Reply(dump(oip_metadata.index(models.all(), only_ready)))


async def load(http: Request, models: Models) -> Reply:
    """Have a model in memory before anybody asks it."""
    await _management(models).load(http.names["model"])
    return Reply()


async def unload(http: Request, models: Models) -> Reply:
    """Give a model's memory back."""
    await _management(models).unload(http.names["model"])
    return Reply()


def _management(models: Models) -> Management:
    if models.management is None:
        raise Refusal("no-method", "this endpoint serves one bundle; nothing is loaded or unloaded")
    return models.management


def _of_model(call: str, handle: Handler, summary: str) -> tuple[Route, ...]:
    """The two addresses of a call about a model: with a version and without."""
    paths = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
    return tuple(Route("GET", path + call, handle, summary) for path in paths)


def _infer(path: str) -> Route:
    return Route(
        "POST",
        path,
        infer,
        "Ask a model",
        body=schema(InferRequest),
        media_types=(JSON, BINARY),
    )


PROTOCOL = Protocol(
    "oip",
    (
        _infer("/v2/models/{model}/infer"),
        _infer("/v2/models/{model}/versions/{version}/infer"),
        Route("GET", "/v2/health/live", live, "Whether the server answers", "open"),
        Route("GET", "/v2/health/ready", ready, "Whether the default model answers", "open"),
        Route("GET", "/v2", server, "The server"),
        Route("GET", "/v2/models", listed, "The names of the models"),
        Route("GET", "/v2/models/stats", statistics, "What all models have done"),
        *_of_model("/ready", model_ready, "Whether a model would answer"),
        *_of_model("/config", config, "A model's configuration, as Triton has it"),
        *_of_model("/stats", statistics, "What a model has done, as Triton has it"),
        *_of_model("", metadata, "What a model reads and answers"),
        Route("POST", "/v2/repository/index", index, "Every version", body=schema(IndexRequest)),
        Route(
            "POST",
            "/v2/repository/models/{model}/load",
            load,
            "Have a model in memory",
            "management",
        ),
        Route(
            "POST",
            "/v2/repository/models/{model}/unload",
            unload,
            "Give a model's memory back",
            "management",
        ),
    ),
    said,
    {"wrong-task": 400, "failed": 500},
)
