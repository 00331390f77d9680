"""TorchServe's management API below `/manage`, for keys that may manage.

List, describe, register, unregister, choose the default version. A bundle takes the place of a
model archive: `url` is its directory, as the server sees it. With `initial_workers` it is loaded,
and the first version of a name answers at once. `handler`, `runtime`, `batch_size` and the like
change nothing, for the bundle and the measured engine decide them. `PUT` of workers changes
nothing: Ray Serve scales replicas between the bounds that the endpoint was deployed with;
the answer says so. `workers` are of the replica that answers.
"""

import time
from collections.abc import Mapping
from typing import Any, Literal

from serving.http.messages import HTTPError, Request, Response, Route, WireProtocol
from serving.interface import ModelInfo, ModelManagement, Models
from serving.protocols.json_bodies import PLAIN_STATUSES, json_response, truncate_repr
from serving.protocols.requests import requested_model
from serving.protocols.torchserve import error_body

DEFAULT_LIMIT = 100


async def list_models(http: Request, models: Models) -> Response:
    """List the models, a page of them."""
    names = list(dict.fromkeys(info.name for info in models.list_models()))
    start = _query_number(http.query, "next_page_token", 0)
    end = start + max(1, _query_number(http.query, "limit", DEFAULT_LIMIT))
    page: dict[str, Any] = {
        "models": [
            {"modelName": info.name, "modelUrl": f"{info.name}:{info.version}"}
            for info in map(models.get_info, names[start:end])
        ]
    }
    if end < len(names):
        page["nextPageToken"] = str(end)
    return json_response(page)


async def describe_model(http: Request, models: Models) -> Response:
    """Describe one version of a model: the live one, or that of the path."""
    info = models.get_info(requested_model(http))
    return json_response([_describe_version(info, http, models)])


async def describe_versions(http: Request, models: Models) -> Response:
    """Describe every version of a model."""
    name = models.get_info(http.path_params["model"]).name
    infos = [info for info in models.list_models() if info.name == name]
    return json_response([_describe_version(info, http, models) for info in infos])


async def register_model(http: Request, models: Models) -> Response:
    """Add a bundle as the next version of a name."""
    url = http.query.get("url", "")
    if not url:
        raise HTTPError("malformed", "url is missing; expected the directory of a bundle")
    num_workers = _query_number(http.query, "initial_workers", 0)
    management = _require_management(models)
    info = await management.register(url, http.query.get("model_name") or None)
    text = (
        f'Model "{info.name}" Version: {info.version} registered with {num_workers} initial workers'
    )
    if not num_workers:
        return _status_response(f"{text}. Use scale workers API to add workers for the model.")
    if all(each.version == info.version for each in models.list_models() if each.name == info.name):
        await management.set_default(info.name, info.version)
    await management.load_model(f"{info.name}:{info.version}")
    # Done already; who does not wait for workers is told what TorchServe tells.
    if _is_synchronous(http):
        return _status_response(text)
    return _status_response("Processing worker updates...")._replace(status=202)


async def set_default(http: Request, models: Models) -> Response:
    """Make a version the one that answers for the bare name."""
    name, version = http.path_params["model"], http.path_params["version"].removesuffix(".0")
    await _require_management(models).set_default(name, version)
    return _status_response(
        f'Default version successfully updated for model "{name}" to "{version}"'
    )


async def scale_workers(http: Request, models: Models) -> Response:
    """Change nothing, and say so."""
    info = models.get_info(requested_model(http))
    told = _status_response(
        f'Workers of model "{info.name}" are as they were: the endpoint scales its replicas itself'
    )
    return told if _is_synchronous(http) else told._replace(status=202)


async def unregister_model(http: Request, models: Models) -> Response:
    """Remove a version."""
    name, version = http.path_params["model"], http.path_params.get("version")
    version = None if version is None else version.removesuffix(".0")
    try:
        await _require_management(models).unregister(name, version)
    except HTTPError as error:
        if error.kind != "malformed":
            raise
        raise HTTPError("forbidden", error.message) from None  # as TorchServe of a default version
    return _status_response(f'Model "{name}" unregistered')


def _is_synchronous(http: Request) -> bool:
    return http.query.get("synchronous", "").lower() == "true"


def _status_response(text: str) -> Response:
    return json_response({"status": text})


def _require_management(models: Models) -> ModelManagement:
    if models.management is None:
        raise HTTPError("no-method", "this endpoint serves one bundle; nothing can be changed")
    return models.management


def _describe_version(info: ModelInfo, http: Request, models: Models) -> dict[str, Any]:
    started = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(info.created))
    worker = {
        "id": "replica",
        "startTime": started,
        "status": "READY",
        "gpu": False,
        "memoryUsage": 0,
    }
    description = {
        "modelName": info.name,
        "modelVersion": info.version,
        "modelUrl": f"{info.name}:{info.version}",
        "engine": info.engine,
        "runtime": "python",
        "minWorkers": 1,
        "maxWorkers": 1,
        "batchSize": models.limits.max_texts,
        "maxBatchDelay": 0,
        "loadedAtStartup": info.state != "cold",
        "workers": [worker] if info.state == "ready" else [],
    }
    if http.query.get("customized", "").lower() == "true":
        description["customizedMetadata"] = {
            "task": info.task,
            "labels": list(info.labels),
            "aliases": list(info.aliases),
            "metrics": dict(info.metrics),
            "baseModel": info.base_model,
            "revision": info.revision,
        }
    return description


def _query_number(query: Mapping[str, str], key: str, default: int) -> int:
    """Return a whole number of the query, from 0. Raises HTTPError for anything else."""
    given = query.get(key)
    if given is None:
        return default
    if not (given.isascii() and given.isdecimal() and len(given) < 10):
        raise HTTPError("malformed", f"{key} = {truncate_repr(given)}: expected a number, from 0")
    return int(given)


_PAGING = {"limit": "models of a page", "next_page_token": "where the last page ended"}
_REGISTERING = {
    "url": "a bundle's directory, as the server sees it",
    "model_name": "the name to register it under; by default the bundle's own",
    "initial_workers": "1 or more: load it now, and let the first version of a name answer",
    "synchronous": "true: 200 in place of 202; either way it is done",
}
# What else TorchServe reads there, and why it changes nothing.
MEANINGLESS_QUERY = {
    "handler": "the bundle says what is computed",
    "runtime": "the measured engine computes it",
    "batch_size": "batches are made of whatever waits",
    "max_batch_delay": "no batch waits for more requests",
    "response_timeout": "the header x-request-timeout-seconds says when a client stops waiting",
    "startup_timeout": "a version that does not load is refused, and says why",
    "s3_sse_kms": "bundles are read from the server's own disk",
}
_CUSTOMIZED = {"customized": "true: the task, labels and metrics too"}
_ALL = "/manage/models"
_MODEL = "/manage/models/{model}"
_VERSION = "/manage/models/{model}/{version}"
_SCOPE: Literal["management"] = "management"

PROTOCOL = WireProtocol(
    "torchserve-management",
    (
        Route("GET", _ALL, list_models, "The models", _SCOPE, query=_PAGING),
        Route("POST", _ALL, register_model, "Add a bundle", _SCOPE, query=_REGISTERING),
        Route(
            "GET",
            f"{_MODEL}/all",
            describe_versions,
            "Every version of a model",
            _SCOPE,
            query=_CUSTOMIZED,
        ),
        Route("GET", _MODEL, describe_model, "A model", _SCOPE, query=_CUSTOMIZED),
        Route("GET", _VERSION, describe_model, "A version", _SCOPE, query=_CUSTOMIZED),
        Route("PUT", f"{_VERSION}/set-default", set_default, "Choose the live version", _SCOPE),
        Route("PUT", _MODEL, scale_workers, "Changes nothing", _SCOPE),
        Route("PUT", _VERSION, scale_workers, "Changes nothing", _SCOPE),
        Route("DELETE", _MODEL, unregister_model, "Take away the live version", _SCOPE),
        Route("DELETE", _VERSION, unregister_model, "Take away a version", _SCOPE),
    ),
    error_body,
    PLAIN_STATUSES,
)
