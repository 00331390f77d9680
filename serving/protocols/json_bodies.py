"""JSON bodies: parse one into a validated value, dump a value, explain a mistake in one sentence.

request = parse_body(TEIPredictRequest, b'{"inputs": "A warm, funny film."}')
json_response([{"label": "positive", "score": 0.98}])
"""

import json
import math
import re
import reprlib
from codecs import BOM_UTF8
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    RootModel,
    StrictStr,
    ValidationError,
    model_validator,
)
from pydantic_core import CoreSchema, ErrorDetails, from_json

from serving.http.messages import ErrorKind, HTTPError, Response, note_ignored

# Statuses of protocols that know no 424; the rest are the defaults of `serving.http.messages`.
PLAIN_STATUSES: dict[ErrorKind, int] = {"wrong-task": 400, "failed": 500}

AnyBody = TypeVar("AnyBody", bound=BaseModel)

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
# How pydantic names the branch of a union, which is no key of the body: list[str], InputTensor.
_UNION_BRANCH = re.compile(r".*\[|[A-Z]|(str|int|float|bool)$")


class _UntilMistake:
    """Mark a list that is read up to its first mistake; pydantic's own mark fits into no union.

    A body may hold a million mistakes, which pydantic would otherwise note one by one, for seconds
    in which this server answers nobody.
    """

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        schema = handler(source)
        assert schema["type"] == "list"
        return {**schema, "fail_fast": True}


AnyItem = TypeVar("AnyItem")
ClientList = Annotated[list[AnyItem], _UntilMistake()]
TextList = ClientList[StrictStr]


class JSONBody(BaseModel):
    """A JSON object that a client sends.

    refused: options of the protocol that this server lacks, each with the way out; a request that
    sets one is refused. meaningless: options that change no answer here, each with why. Any other
    key is ignored, and named in a header of the answer.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    refused: ClassVar[dict[str, str]] = {}
    meaningless: ClassVar[dict[str, str]] = {}
    _quiet_keys: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        super().__pydantic_init_subclass__(**options)
        cls._quiet_keys = frozenset((*cls.model_fields, *cls.meaningless))

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, value: Any) -> Any:
        """Refuse an option that is not offered. Raises HTTPError, for pydantic a ValueError."""
        if not isinstance(value, dict) or value.keys() <= cls._quiet_keys:
            return value
        others = value.keys() - cls._quiet_keys
        for key in others & cls.refused.keys():
            # What equals the protocol's default asks for nothing.
            if value[key] not in (None, False, "", [], {}):
                given = truncate_repr(value[key])
                raise HTTPError("malformed", f"{key} = {given}: {cls.refused[key]}")
        note_ignored(others - cls.refused.keys())
        return value


def parse_body(model: type[AnyBody], body: bytes) -> AnyBody:
    """Validate a body as `model`. Raises HTTPError, and nothing else."""
    # In two steps: in one, pydantic converts what it complains of for each branch of a union.
    return validate_body(model, parse_json(body))


def parse_json(body: bytes) -> Any:
    """Parse a body. Raises HTTPError, and nothing else."""
    try:
        return from_json(body.removeprefix(BOM_UTF8))
    except ValueError as error:
        raise HTTPError("malformed", f"the body is not JSON in UTF-8: {error}") from None


def validate_body(model: type[AnyBody], value: Any) -> AnyBody:
    """Validate a parsed body as `model`. Raises HTTPError, and nothing else."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise HTTPError("malformed", _explain_error(model, error)) from None


def parse_if_shaped(model: type[AnyBody], body: bytes) -> AnyBody | None:
    """Validate a body as `model` if it is JSON of that shape; return None for anything else.

    For calls that take texts of other media types too. What a client says of its body does not
    count: curl calls whatever `-d` sends a form.
    """
    if body.removeprefix(BOM_UTF8).lstrip()[:1] not in (b"{", b"[", b'"'):
        return None
    try:
        return parse_body(model, body)
    except HTTPError:
        return None


def dump_json(value: Any) -> bytes:
    """Encode `value` as JSON in UTF-8; NaN and infinity, which JSON lacks, become null."""
    try:
        text = _encode(value)
    except ValueError:
        text = _encode(_replace_nonfinite(value))
    return text.encode(errors="replace")  # half a surrogate, in a name that is echoed


def json_response(value: Any) -> Response:
    """Return a response of status 200 with `value` as its JSON."""
    return Response(dump_json(value))


def error_json(error: HTTPError, _: int) -> bytes:
    """Return the JSON of an error for protocols that have only a message."""
    return dump_json({"error": error.message})


def json_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return the JSON schema of a body, for the OpenAPI document."""
    return model.model_json_schema()


def truncate_repr(value: Any) -> str:
    """Return a short `repr` of any value, for an error message."""
    return reprlib.repr(value)


def _explain_error(model: type[BaseModel], error: ValidationError) -> str:
    """Describe the first mistake in one sentence, or an option that is refused."""
    details = error.errors(include_url=False)
    for each in details:
        if isinstance(refusal := each.get("ctx", {}).get("error"), HTTPError):
            return refusal.message
    detail = details[0]
    given = truncate_repr(detail["input"])
    if issubclass(model, RootModel):
        return f"the body is {given}: expected {model.model_fields['root'].description}"
    if not detail["loc"]:
        keys = ", ".join(model.model_fields)
        return f"the body is {given}, no JSON object; expected an object with {keys}"
    location, expected = _format_location(detail), _describe_field(model, detail)
    if detail["type"] == "missing":
        return "; ".join(filter(None, (f"{location} is missing", expected)))
    message = detail["msg"].removeprefix("Value error, ")
    return f"{location} = {given}: {expected or message[0].lower() + message[1:]}"


def _describe_field(model: type[BaseModel], detail: ErrorDetails) -> str:
    """Return what a field takes if its description says it better than pydantic, else ""."""
    field = model.model_fields.get(str(detail["loc"][0]))
    inner = detail["loc"][1:]
    of_branch = any(isinstance(part, str) and _UNION_BRANCH.match(part) for part in inner)
    missing = detail["type"] == "missing" and not inner
    return f"expected {field.description}" if field and (of_branch or missing) else ""


def _format_location(detail: ErrorDetails) -> str:
    """Return the path of the key at fault, as in inputs[0].shape."""
    location = ""
    for part in detail["loc"]:
        if isinstance(part, int):
            location += f"[{part}]"
        elif _UNION_BRANCH.match(part):
            break
        else:
            location += f".{part}" if location else part
    return location


def _replace_nonfinite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _replace_nonfinite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_replace_nonfinite(inner) for inner in value]
    return value
