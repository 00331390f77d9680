"""The OpenAPI 3.1 document of all routes: pure, of what the protocols say of themselves.

The shape of an error is read off an error: each protocol words one, and its JSON is the example.

    document(protocols.ALL, "Bertha", version())
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from serving.http.messages import JSON, STATUSES, Kind, Protocol, Refusal, Route

_MEANINGS: dict[Kind, str] = {
    "malformed": "the request is not what the protocol says",
    "empty": "a text is empty",
    "unauthorized": "no key, or an unknown one",
    "forbidden": "the key may not do this",
    "no-model": "there is no such model",
    "no-method": "the endpoint cannot be changed",
    "wrong-task": "the model is for another task",
    "too-large": "too many bytes or texts",
    "too-long": "too many tokens, where cutting is forbidden",
    "unreadable": "a text cannot be encoded",
    "failed": "the model failed on this batch",
    "overloaded": "too much waits; see Retry-After",
    "late": "the request's deadline passed",
    "unready": "the model does not answer",
}
_ALWAYS: tuple[Kind, ...] = ("malformed", "too-large", "unauthorized", "forbidden", "overloaded")
_OF_MODELS: tuple[Kind, ...] = ("no-model", "wrong-task", "unready", "failed", "late")
_OF_TEXTS: tuple[Kind, ...] = ("empty", "too-long", "unreadable")
_VARIABLE = re.compile(r"\{(\w+)\}")
_PARAMETERS = {
    "model": "name, name:version or name@alias",
    "version": "version of the model",
}


def document(protocols: Sequence[Protocol], title: str, version: str) -> dict[str, Any]:
    """Every route. Of two at one address and method, the first has it."""
    paths: dict[str, dict[str, Any]] = {}
    schemas: dict[str, Any] = {}
    for protocol in protocols:
        for route in protocol.routes:
            operations = paths.setdefault(route.path, {})
            if route.method.lower() not in operations:
                operations[route.method.lower()] = _operation(protocol, route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version},
        "tags": [{"name": protocol.name} for protocol in protocols],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(protocol: Protocol, route: Route, schemas: dict[str, Any]) -> dict[str, Any]:
    """One call; what its schemas define goes to `schemas`."""
    words = re.findall(r"\w+", f"{protocol.name} {route.method.lower()} {route.path}")
    operation: dict[str, Any] = {
        "operationId": "_".join(words),
        "tags": [protocol.name],
        "summary": route.summary,
        "parameters": list(_parameters(route)),
        "responses": {"200": _answer(protocol, route, schemas), **_errors(protocol, route)},
        "security": [] if route.scope == "open" else [{"key": []}],
    }
    if route.body is not None:
        of_json = _hoisted(route.body, protocol.name, schemas)
        content = {kind: {"schema": _of_kind(kind, of_json)} for kind in route.media_types}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _parameters(route: Route) -> Iterator[dict[str, Any]]:
    for name in _VARIABLE.findall(route.path):
        yield {
            "name": name,
            "in": "path",
            "required": True,
            "description": _PARAMETERS.get(name, name),
            "schema": {"type": "string", "minLength": 1},
        }
    for name, meaning in route.query.items():
        yield {
            "name": name,
            "in": "query",
            "required": False,
            "description": meaning,
            "schema": {"type": "string"},
        }


def _of_kind(media_type: str, of_json: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema of a body that is sent as a media type."""
    if media_type == JSON:
        return of_json
    if media_type.startswith("text/"):
        return {"type": "string", "minLength": 1}
    if "form" in media_type:
        data = {"type": "string", "minLength": 1}
        return {"type": "object", "properties": {"data": data}, "required": ["data"]}
    return {}  # bytes


def _answer(protocol: Protocol, route: Route, schemas: dict[str, Any]) -> dict[str, Any]:
    if route.answer is None:
        return {"description": "the answer"}
    answer = _hoisted(route.answer, protocol.name, schemas)
    return {"description": "the answer", "content": {JSON: {"schema": answer}}}


def _errors(protocol: Protocol, route: Route) -> dict[str, Any]:
    """The errors of a route by status."""
    kinds = [*_ALWAYS, *(_OF_TEXTS if route.body is not None else ())]
    if route.scope == "open":
        kinds = ["malformed", "too-large", "unready"]
    elif "{" in route.path or route.body is not None:
        kinds += _OF_MODELS
    if route.scope == "management":
        kinds.append("no-method")
    found: dict[int, list[Kind]] = {}
    for kind in kinds:
        found.setdefault(protocol.statuses.get(kind, STATUSES[kind]), []).append(kind)
    return {str(status): _error(protocol, status, found[status]) for status in sorted(found)}


def _error(protocol: Protocol, status: int, kinds: Sequence[Kind]) -> dict[str, Any]:
    meanings = "; ".join(_MEANINGS[kind] for kind in kinds)
    example = json.loads(protocol.word(Refusal(kinds[0], _MEANINGS[kinds[0]]), status))
    content = {"schema": _shape(example), "example": example}
    return {"description": meanings, "content": {JSON: content}}


def _shape(value: Any) -> dict[str, Any]:
    """The schema of JSON like `value`."""
    if isinstance(value, dict):
        properties = {key: _shape(inner) for key, inner in value.items()}
        return {"type": "object", "properties": properties, "required": list(value)}
    types: dict[type, str] = {str: "string", int: "integer", type(None): "null"}
    return {"type": types[type(value)]}


def _hoisted(schema: Mapping[str, Any], owner: str, schemas: dict[str, Any]) -> dict[str, Any]:
    """A schema whose definitions are among `schemas`, under their owner's name."""
    for name, definition in schema.get("$defs", {}).items():
        schemas[f"{owner}.{name}"] = _renamed(definition, owner)
    return {key: _renamed(value, owner) for key, value in schema.items() if key != "$defs"}


def _renamed(value: Any, owner: str) -> Any:
    if isinstance(value, dict):
        return {key: _renamed(inner, owner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_renamed(inner, owner) for inner in value]
    if isinstance(value, str) and value.startswith("#/$defs/"):
        return f"#/components/schemas/{owner}.{value.removeprefix('#/$defs/')}"
    return value
