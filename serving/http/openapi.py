"""Build the OpenAPI 3.1 document of all routes from what the protocols declare.

The schema of an error is inferred from one: each protocol writes an example as JSON.

    build_openapi(protocols.ALL, "Bertha", bertha_version())
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from serving.http.messages import DEFAULT_STATUSES, JSON, ErrorKind, HTTPError, Route, WireProtocol

_Kinds = tuple[ErrorKind, ...]

_MEANINGS: dict[ErrorKind, str] = {
    "malformed": "the request is not what the protocol says",
    "empty": "a text is empty",
    "unauthorized": "no key, or an unknown one",
    "forbidden": "the key may not do this",
    "misdirected": "the server does not answer to the name in Host",
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
_ALWAYS: _Kinds = ("malformed", "too-large", "misdirected")
_OF_KEYS: _Kinds = ("unauthorized", "forbidden", "overloaded")
_OF_MODELS: _Kinds = ("no-model", "wrong-task", "unready", "failed", "late")
_OF_TEXTS: _Kinds = ("empty", "too-long", "unreadable")
_VARIABLE = re.compile(r"\{(\w+)\}")
_PARAMETERS = {
    "model": "name, name:version or name@alias",
    "version": "version of the model",
    "asked": "the model of the path, by any name of its",
}


def build_openapi(
    protocols: Sequence[WireProtocol], title: str, version: str, prefix: str = ""
) -> dict[str, Any]:
    """Return the document; of two routes with one path and method, the first counts.

    prefix: the path below which clients reach the server.
    """
    paths: dict[str, dict[str, Any]] = {}
    schemas: dict[str, Any] = {}
    for protocol in protocols:
        for route in protocol.routes:
            operations = paths.setdefault(route.path, {})
            if route.method.lower() not in operations:
                operations[route.method.lower()] = _build_operation(protocol, route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version},
        "servers": [{"url": prefix or "/"}],
        "tags": [{"name": protocol.name} for protocol in protocols],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _build_operation(
    protocol: WireProtocol, route: Route, schemas: dict[str, Any]
) -> dict[str, Any]:
    """Describe one route; the definitions of its schemas go to `schemas`."""
    words = re.findall(r"\w+", f"{protocol.name} {route.method.lower()} {route.path}")
    success: dict[str, Any] = {"description": "the answer"}
    if route.response_schema is not None:
        schema = _hoist_definitions(route.response_schema, protocol.name, schemas)
        success["content"] = {JSON: {"schema": schema}}
    operation: dict[str, Any] = {
        "operationId": "_".join(words),
        "tags": [protocol.name],
        "summary": route.summary,
        "parameters": list(_list_parameters(route)),
        "responses": {"200": success, **_error_responses(protocol, route)},
        "security": [] if route.scope == "open" else [{"key": []}],
    }
    if route.body_schema is not None:
        of_json = _hoist_definitions(route.body_schema, protocol.name, schemas)
        content = {kind: {"schema": _schema_for(kind, of_json)} for kind in route.media_types}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _list_parameters(route: Route) -> Iterator[dict[str, Any]]:
    for name in _VARIABLE.findall(route.path):
        yield {
            "name": name,
            "in": "path",
            "required": True,
            "description": _PARAMETERS.get(name, name),
            "schema": {"type": "string", "minLength": 1},
        }
    for name, meaning in route.query.items():
        query = {"name": name, "in": "query", "required": False, "description": meaning}
        yield query | {"schema": {"type": "string"}}


def _schema_for(media_type: str, of_json: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the schema of a request body in a media type."""
    if media_type == JSON:
        return of_json
    if media_type.startswith("text/"):
        return {"type": "string", "minLength": 1}
    if "form" in media_type:
        data = {"type": "string", "minLength": 1}
        return {"type": "object", "properties": {"data": data}, "required": ["data"]}
    return {}  # bytes


def _error_responses(protocol: WireProtocol, route: Route) -> dict[str, Any]:
    """Return the error responses of a route, by status."""
    kinds = list(_ALWAYS)
    if route.scope == "open":
        kinds.append("unready")
    else:
        kinds += _OF_KEYS
        if route.body_schema is not None:
            kinds += _OF_TEXTS
        if "{" in route.path or route.body_schema is not None:
            kinds += _OF_MODELS
    if route.scope == "management":
        kinds.append("no-method")
    by_status: dict[int, list[ErrorKind]] = {}
    for kind in kinds:
        by_status.setdefault(protocol.statuses.get(kind, DEFAULT_STATUSES[kind]), []).append(kind)
    of_status = sorted(by_status.items())
    return {str(status): _describe_error(protocol, status, each) for status, each in of_status}


def _describe_error(
    protocol: WireProtocol, status: int, kinds: Sequence[ErrorKind]
) -> dict[str, Any]:
    meanings = "; ".join(_MEANINGS[kind] for kind in kinds)
    example = json.loads(protocol.error_body(HTTPError(kinds[0], _MEANINGS[kinds[0]]), status))
    content = {"schema": _infer_schema(example), "example": example}
    return {"description": meanings, "content": {JSON: content}}


def _infer_schema(value: Any) -> dict[str, Any]:
    """Return the schema of JSON like `value`."""
    if isinstance(value, dict):
        properties = {key: _infer_schema(inner) for key, inner in value.items()}
        return {"type": "object", "properties": properties, "required": list(value)}
    types: dict[type, str] = {str: "string", int: "integer", type(None): "null"}
    return {"type": types[type(value)]}


def _hoist_definitions(
    schema: Mapping[str, Any], owner: str, schemas: dict[str, Any]
) -> dict[str, Any]:
    """Move the definitions of a schema to `schemas`, prefixed with their owner."""
    for name, definition in schema.get("$defs", {}).items():
        schemas[f"{owner}.{name}"] = _rewrite_refs(definition, owner)
    return {key: _rewrite_refs(value, owner) for key, value in schema.items() if key != "$defs"}


def _rewrite_refs(value: Any, owner: str) -> Any:
    if isinstance(value, dict):
        return {key: _rewrite_refs(inner, owner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_rewrite_refs(inner, owner) for inner in value]
    if isinstance(value, str) and value.startswith("#/$defs/"):
        return f"#/components/schemas/{owner}.{value.removeprefix('#/$defs/')}"
    return value
