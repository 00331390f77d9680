"""TorchServe's management API below `/manage`, for keys that may manage.

List, describe, register, unregister, choose the default version. A bundle takes the place of a
model archive: `url` is its directory, as the server sees it. `handler`, `runtime`, `batch_size`
and the like are ignored, for the bundle and the measured engine decide them. `PUT` of workers
changes nothing: Ray Serve scales replicas between the bounds that the endpoint was deployed with;
the answer says so. `workers` are of the replica that answers.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from serving.http.messages import Protocol, Refusal, Reply, Request, Route
from serving.interface import Limits, Management, ModelInfo, Models
from serving.protocols.json_bodies import dump, shown
from serving.protocols.paths import model_of
from serving.protocols.torchserve import STATUSES, word

DEFAULT_LIMIT = 100


async def listed(http: Request, models: Models) -> Reply:
    """The models, a page of them."""
    names = list(dict.fromkeys(info.name for info in models.all()))
    start = _number(http.query, "next_page_token", 0)
    end = start + max(1, _number(http.query, "limit", DEFAULT_LIMIT))
    page: dict[str, Any] = {
        "models": [
            {"modelName": info.name, "modelUrl": f"{info.name}:{info.version}"}
            for info in map(models.find, names[start:end])
        ]
    }
    if end < len(names):
        page["nextPageToken"] = str(end)
    return Reply(dump(page))


async def described(http: Request, models: Models) -> Reply:
    """One version of a model: the live one, or that of the path."""
    info = models.find(model_of(http))
    return Reply(dump(_descriptions([info], models.limits, http.query)))


async def described_all(http: Request, models: Models) -> Reply:
    """Every version of a model."""
    name = models.find(http.names["model"]).name
    infos = [info for info in models.all() if info.name == name]
    return Reply(dump(_descriptions(infos, models.limits, http.query)))


async def register(http: Request, models: Models) -> Reply:
    """Add a bundle as the next version of a name."""
    url = http.query.get("url", "")
    if not url:
        raise Refusal("malformed", "url is missing; expected the directory of a bundle")
    info = await _management(models).register(url, http.query.get("model_name") or None)
    return _status(f'Model "{info.name}" Version: {info.version} registered with 0 initial workers')


async def set_default(http: Request, models: Models) -> Reply:
    """Make a version the one that answers for the bare name."""
    name, version = http.names["model"], http.names["version"]
    await _management(models).set_default(name, version)
    return _status(f'Default version successfully updated for model "{name}" to "{version}"')


async def scale(http: Request, models: Models) -> Reply:
    """Nothing, and say so."""
    info = models.find(model_of(http))
    return _status(
        f'Workers of model "{info.name}" are as they were: the endpoint scales its replicas itself'
    )


async def unregister(http: Request, models: Models) -> Reply:
    """Take away a version."""
    name = http.names["model"]
    await _management(models).unregister(name, http.names.get("version"))
    return _status(f'Model "{name}" unregistered')


def _status(text: str) -> Reply:
    return Reply(dump({"status": text}))


def _management(models: Models) -> Management:
    if models.management is None:
        raise Refusal("no-method", "this endpoint serves one bundle; nothing can be changed")
    return models.management


def _descriptions(
    infos: Sequence[ModelInfo], limits: Limits, query: Mapping[str, str]
) -> list[dict[str, Any]]:
    customized = query.get("customized", "").lower() == "true"
    return [_description(info, limits, customized) for info in infos]


def _description(info: ModelInfo, limits: Limits, customized: bool) -> dict[str, Any]:
    started = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(info.created))
    ready = {"id": "replica", "startTime": started, "status": "READY", "gpu": False}
    described = {
        "modelName": info.name,
        "modelVersion": info.version,
        "modelUrl": f"{info.name}:{info.version}",
        "engine": info.engine,
        "runtime": "python",
        "minWorkers": 1,
        "maxWorkers": 1,
        "batchSize": limits.max_texts,
        "maxBatchDelay": 0,
        "loadedAtStartup": info.state != "cold",
        "workers": [ready | {"memoryUsage": 0}] if info.state == "ready" else [],
    }
    if customized:
        described["customizedMetadata"] = {
            "task": info.task,
            "labels": list(info.labels),
            "aliases": list(info.aliases),
            "metrics": dict(info.metrics),
            "baseModel": info.base_model,
            "revision": info.revision,
        }
    return described


def _number(query: Mapping[str, str], key: str, default: int) -> int:
    """A number from 0 of the query."""
    given = query.get(key)
    if given is None:
        return default
    if not (given.isascii() and given.isdecimal() and len(given) < 10):
        raise Refusal("malformed", f"{key} = {shown(given)}: expected a number, from 0")
    return int(given)


_PAGING = {"limit": "models of a page", "next_page_token": "where the last page ended"}
_REGISTERING = {
    "url": "a bundle's directory, as the server sees it",
    "model_name": "the name to register it under; by default the bundle's own",
}
_CUSTOMIZED = {"customized": "true: the task, labels and metrics too"}
_MODEL = "/manage/models/{model}"
_VERSION = "/manage/models/{model}/{version}"

PROTOCOL = Protocol(
    "torchserve-management",
    (
        Route("GET", "/manage/models", listed, "The models", "management", query=_PAGING),
        Route("POST", "/manage/models", register, "Add a bundle", "management", query=_REGISTERING),
        Route(
            "GET",
            f"{_MODEL}/all",
            described_all,
            "Every version of a model",
            "management",
            query=_CUSTOMIZED,
        ),
        Route("GET", _MODEL, described, "A model", "management", query=_CUSTOMIZED),
        Route("GET", _VERSION, described, "A version", "management", query=_CUSTOMIZED),
        Route(
            "PUT", f"{_VERSION}/set-default", set_default, "Choose the live version", "management"
        ),
        Route("PUT", _MODEL, scale, "Changes nothing", "management"),
        Route("PUT", _VERSION, scale, "Changes nothing", "management"),
        Route("DELETE", _MODEL, unregister, "Take away the live version", "management"),
        Route("DELETE", _VERSION, unregister, "Take away a version", "management"),
    ),
    word,
    STATUSES,
)
