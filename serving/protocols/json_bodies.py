"""Bodies: JSON becomes a checked value, a value becomes JSON, a mistake becomes one sentence.

Knows no protocol and no model.

    request = bodies.parse(PredictRequest, b'{"inputs": "A warm, funny film."}')
    bodies.dump([{"label": "positive", "score": 0.98}])
"""

import json
import math
import re
import reprlib
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, RootModel, ValidationError
from pydantic_core import ErrorDetails

from serving.http.messages import Refusal

AnyBody = TypeVar("AnyBody", bound=BaseModel)

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
# How pydantic names the branch of a union, which is no key of the body: list[str], Tensor.
_BRANCH = re.compile(r".*\[|[A-Z]|(str|int|float|bool)$")


class Body(BaseModel):
    """A JSON object that a client sends. Keys that are not listed are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


def parse(shape: type[AnyBody], body: bytes) -> AnyBody:
    """The body as a `shape`. Raises Refusal, whatever the bytes."""
    try:
        return shape.model_validate_json(body)
    except ValidationError as error:
        raise Refusal("malformed", _explain(shape, error)) from None


def dump(value: Any) -> bytes:
    """`value` as JSON in UTF-8. What JSON has no word for (NaN, infinity) becomes null."""
    try:
        text = _encode(value)
    except ValueError:
        text = _encode(_finite(value))
    return text.encode(errors="replace")  # half a surrogate, in a name that is echoed


def said(refusal: Refusal, _: int) -> bytes:
    """The JSON of an error where a protocol has but words for it."""
    return dump({"error": refusal.message})


def schema(shape: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of a body, for the documentation."""
    return shape.model_json_schema()


def shown(value: Any) -> str:
    """`value` for a message: short, whatever it is."""
    return reprlib.repr(value)


def _explain(shape: type[BaseModel], error: ValidationError) -> str:
    """One sentence for the first mistake."""
    detail = error.errors(include_url=False, include_context=False)[0]
    if detail["type"] == "json_invalid":
        return f"the body is not JSON in UTF-8: {detail['msg'].removeprefix('Invalid JSON: ')}"
    if issubclass(shape, RootModel):
        return f"the body is {shown(detail['input'])}: {_root(shape)}"
    if not detail["loc"]:
        return f"the body is {shown(detail['input'])}, no JSON object; {_keys(shape)}"
    place = _place(detail)
    if detail["type"] == "missing":
        return "; ".join(filter(None, (f"{place} is missing", _expected(shape, detail))))
    message = detail["msg"].removeprefix("Value error, ")
    expected = _expected(shape, detail) or message[0].lower() + message[1:]
    return f"{place} = {shown(detail['input'])}: {expected}"


def _expected(shape: type[BaseModel], detail: ErrorDetails) -> str:
    """What a key of the body takes, where its description says so better than pydantic."""
    field = shape.model_fields.get(str(detail["loc"][0]))
    inner = detail["loc"][1:]
    of_branch = any(isinstance(part, str) and _BRANCH.match(part) for part in inner)
    missing = detail["type"] == "missing" and not inner
    return f"expected {field.description}" if field and (of_branch or missing) else ""


def _root(shape: type[BaseModel]) -> str:
    return f"expected {shape.model_fields['root'].description}"


def _keys(shape: type[BaseModel]) -> str:
    return f"expected an object with {', '.join(shape.model_fields)}"


def _place(detail: ErrorDetails) -> str:
    """The key at fault, as in inputs[0].shape."""
    place = ""
    for part in detail["loc"]:
        if isinstance(part, int):
            place += f"[{part}]"
        elif _BRANCH.match(part):
            break
        else:
            place += f".{part}" if place else part
    return place


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value
