"""Requests, responses, errors and routes, whatever the wire protocol.

A protocol is a list of routes, each a handler of a request and the models, and a function that
writes an error the way the protocol's clients read it.
"""

import math
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from importlib import metadata
from itertools import islice
from typing import Any, Literal, NamedTuple

from cluster.errors import BerthaError
from serving.interface import InferenceResult, Models

JSON = "application/json"
TIMEOUT_HEADER = "x-request-timeout-seconds"
TRUNCATED_HEADER = "x-bertha-truncated"
MAX_NAMED_TEXTS = 100  # in that header
IGNORED_HEADER = "x-bertha-ignored"
MAX_NAMED_KEYS = 20  # in that header
MAX_TIMEOUT_SECONDS = 60.0

# When the client of the current request stops waiting, on the clock of `time.perf_counter`.
request_deadline: ContextVar[float | None] = ContextVar("request_deadline", default=None)

# The texts of the current request, by place, of which the model did not read all.
truncated_texts: ContextVar[list[int] | None] = ContextVar("truncated_texts", default=None)

# Keys of the current request's body that no schema here knows.
ignored_keys: ContextVar[list[str] | None] = ContextVar("ignored_keys", default=None)


@dataclass(slots=True)
class RequestRecord:
    """What is known of the current request beside its bytes.

    id: of x-request-id. client: the address that it came from. key: the name of the caller's API
    key, "" without one. model, version: that answered last; num_texts, num_tokens: so far.
    """

    id: str
    client: str = ""
    key: str = ""
    model: str = ""
    version: str = ""
    num_texts: int = 0
    num_tokens: int = 0


current_request: ContextVar[RequestRecord | None] = ContextVar("current_request", default=None)

# What a key may call: questions to models, changes of the registry, counters of operation.
Scope = Literal["inference", "management", "metrics"]

ErrorKind = Literal[
    "malformed",  # the body is not what the protocol says
    "empty",  # a text that holds nothing
    "unauthorized",  # no key, or one that is not known
    "forbidden",  # a key that may not do this
    "misdirected",  # a request to another name than the server answers to
    "no-route",
    "no-method",
    "no-model",
    "wrong-task",  # the model does not answer such questions
    "too-large",  # bytes, or texts of a request
    "too-long",  # tokens of a text, where the request forbids cutting it
    "unreadable",  # a text that the encoder cannot read
    "failed",  # the model raised on this batch
    "overloaded",  # too much waits, or a key asks too often
    "late",  # the request's own deadline passed
    "unready",  # the model is loading, or the server ends
    "internal",
]
DEFAULT_STATUSES: dict[ErrorKind, int] = {
    "malformed": 400,
    "empty": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "misdirected": 421,
    "no-route": 404,
    "no-method": 405,
    "no-model": 404,
    "wrong-task": 424,
    "too-large": 413,
    "too-long": 413,
    "unreadable": 422,
    "failed": 424,
    "overloaded": 429,
    "late": 504,
    "unready": 503,
    "internal": 500,
}
# The same errors over gRPC, whose own codes are few: RESOURCE_EXHAUSTED and UNAVAILABLE are those
# after which a client may ask again.
GRPC_CODES: dict[ErrorKind, str] = {
    "malformed": "INVALID_ARGUMENT",
    "empty": "INVALID_ARGUMENT",
    "unauthorized": "UNAUTHENTICATED",
    "forbidden": "PERMISSION_DENIED",
    "misdirected": "PERMISSION_DENIED",
    "no-route": "UNIMPLEMENTED",
    "no-method": "UNIMPLEMENTED",
    "no-model": "NOT_FOUND",
    "wrong-task": "FAILED_PRECONDITION",
    "too-large": "INVALID_ARGUMENT",
    "too-long": "INVALID_ARGUMENT",
    "unreadable": "INVALID_ARGUMENT",
    "failed": "INTERNAL",
    "overloaded": "RESOURCE_EXHAUSTED",
    "late": "DEADLINE_EXCEEDED",
    "unready": "UNAVAILABLE",
    "internal": "INTERNAL",
}


_KEY_NAME = re.compile(r"[A-Za-z0-9_.-]{1,60}")


class HTTPError(BerthaError):
    """A request that is rejected: the kind of error, a message, and when to try again."""

    def __init__(
        self, kind: ErrorKind, message: str, retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.retry_after_seconds = retry_after_seconds


class Request(NamedTuple):
    """A request, its body complete and decompressed.

    path_params: what the route's `{variables}` matched. query: the last value of each key. headers:
    by lower-case name. prefix: the path below which its client reaches the server, "" for none.
    """

    method: str
    path: str
    path_params: Mapping[str, str]
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    prefix: str = ""


class Response(NamedTuple):
    """A response, ready to send."""

    body: bytes = b""
    status: int = 200
    media_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()


Handler = Callable[[Request, Models], Awaitable[Response]]


@dataclass(frozen=True)
class Route:
    """One call of a protocol.

    path: as "/v2/models/{model}/infer"; a variable matches one segment, or what precedes a literal
    suffix of it, as in "{model}:predict". scope: the API keys that may call it; "open" needs none.
    For OpenAPI: JSON schemas, the media types of the body, and a description of each query key.
    """

    method: Literal["GET", "POST", "PUT", "DELETE", "OPTIONS"]
    path: str
    handler: Handler
    summary: str
    scope: Scope | Literal["open"] = "inference"
    body_schema: Mapping[str, Any] | None = None
    response_schema: Mapping[str, Any] | None = None
    media_types: tuple[str, ...] = (JSON,)
    query: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class WireProtocol:
    """A wire protocol: its routes, and how it writes errors.

    error_body: writes an error and its status as JSON. statuses: those that differ from
    `DEFAULT_STATUSES`.
    """

    name: str
    routes: tuple[Route, ...]
    error_body: Callable[[HTTPError, int], bytes]
    statuses: Mapping[ErrorKind, int] = field(default_factory=dict)

    def error_response(self, error: HTTPError) -> Response:
        """Return the response for an error, as clients of this protocol expect it."""
        status = self.statuses.get(error.kind, DEFAULT_STATUSES[error.kind])
        return Response(self.error_body(error, status), status, JSON, retry_headers(error))


def retry_headers(error: HTTPError) -> tuple[tuple[str, str], ...]:
    """Return the headers that say when to try again.

    Retry-After is of whole seconds (RFC 9110), and clients fail on fractions; some read
    retry-after-ms beside it.
    """
    wait = error.retry_after_seconds
    if wait is None:
        return ()
    milliseconds = max(1, math.ceil(1000 * wait))
    return ("retry-after", str(math.ceil(milliseconds / 1000))), (
        "retry-after-ms",
        str(milliseconds),
    )


def parse_deadline(headers: Mapping[str, str]) -> float | None:
    """Return the deadline of a request; None where it has none, or of no number above 0."""
    try:
        seconds = float(headers.get(TIMEOUT_HEADER, ""))
    except ValueError:
        return None
    if not (math.isfinite(seconds) and 0 < seconds < MAX_TIMEOUT_SECONDS):
        return None
    return time.perf_counter() + seconds


def note_answer(result: InferenceResult[Any]) -> None:
    """Note of the current request which model answered it, and how much."""
    record = current_request.get()
    if record is not None:
        record.model, record.version = result.model.name, result.model.version
        record.num_texts += len(result.rows)
        record.num_tokens += sum(result.num_tokens)


def note_truncated(texts: Sequence[int]) -> None:
    """Note the places of texts that were cut, for the header of the current request's answer."""
    noted = truncated_texts.get()
    if noted is not None:
        noted.extend(texts)


def truncated_headers() -> tuple[tuple[str, str], ...]:
    """Return the header that names the texts which were cut, as `0,3`; none where none was."""
    noted = truncated_texts.get()
    if not noted:
        return ()
    more = ",..." if len(noted) > MAX_NAMED_TEXTS else ""
    return ((TRUNCATED_HEADER, ",".join(map(str, noted[:MAX_NAMED_TEXTS])) + more),)


def is_accepted(accept: str, media_type: str) -> bool:
    """Return whether a client whose header is `accept` reads an answer of that media type."""
    kind = media_type.partition(";")[0]
    named = [each.partition(";")[0].strip().lower() for each in accept.split(",")]
    group = f"{kind.partition('/')[0]}/*"
    return not accept.strip() or any(each in ("*/*", "*", kind, group) for each in named)


def note_ignored(keys: Iterable[str]) -> None:
    """Note keys of the body that mean nothing here, for the header of the current answer."""
    noted = ignored_keys.get()
    if noted is not None and len(noted) < 10 * MAX_NAMED_KEYS:
        noted.extend(islice(keys, 10 * MAX_NAMED_KEYS))


def ignored_headers() -> tuple[tuple[str, str], ...]:
    """Return the header that names the keys which were ignored, as `foo,bar`; none where none."""
    noted = ignored_keys.get()
    if not noted:
        return ()
    # Only what is a name: the rest would be the client's own bytes in a header.
    names = sorted({key for key in noted if _KEY_NAME.fullmatch(key)})
    more = ",..." if len(names) > MAX_NAMED_KEYS or not names else ""
    return ((IGNORED_HEADER, ",".join(names[:MAX_NAMED_KEYS]) + more),)


def bertha_version() -> str:
    """Return the installed version, or "0" when run from a checkout that is not installed."""
    try:
        return metadata.version("bertha-ray")
    except metadata.PackageNotFoundError:
        return "0"
