"""What passes over the wire, whatever the protocol: requests, replies, refusals, routes.

Knows no HTTP server, no model and no protocol. A protocol is a list of routes, each a function of
a request and the models, and one function that words a refusal the way its clients read it.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from cluster.errors import BerthaError
from serving.interface import Models

JSON = "application/json"

Kind = Literal[
    "malformed",  # the body is not what the protocol says
    "empty",  # a text that holds nothing
    "unauthorized",  # no key, or one that is not known
    "forbidden",  # a key that may not do this
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
STATUSES: dict[Kind, int] = {
    "malformed": 400,
    "empty": 400,
    "unauthorized": 401,
    "forbidden": 403,
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


class Refusal(BerthaError):
    """A request that is not answered: of what kind, why in words, and when to come again."""

    def __init__(self, kind: Kind, message: str, retry_after_seconds: int | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.retry_after_seconds = retry_after_seconds


class Request(NamedTuple):
    """A request, its body whole and decompressed.

    names: what the route's `{variables}` matched. query: the last value of each key. headers: by
    lower-case name.
    """

    method: str
    path: str
    names: Mapping[str, str]
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes


class Reply(NamedTuple):
    """An answer, ready to send."""

    body: bytes = b""
    status: int = 200
    media_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()


Handler = Callable[[Request, Models], Awaitable[Reply]]


@dataclass(frozen=True)
class Route:
    """One call of a protocol.

    path: as in "/v2/models/{model}/infer"; a variable matches one segment, or what stands before a
    literal end of it, as in "{model}:predict". scope: which API keys may call it; "open" needs
    none. For the documentation: body and answer are JSON schemas, media_types what the body may be
    sent as, query the keys that are read after the `?`, each with its meaning.
    """

    method: Literal["GET", "POST", "PUT", "DELETE", "OPTIONS"]
    path: str
    handle: Handler
    summary: str
    scope: Literal["open", "inference", "management"] = "inference"
    body: Mapping[str, Any] | None = None
    answer: Mapping[str, Any] | None = None
    media_types: tuple[str, ...] = (JSON,)
    query: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Protocol:
    """A wire protocol: its routes, and how it says no.

    statuses: where they differ from `STATUSES`.
    """

    name: str
    routes: tuple[Route, ...]
    word: Callable[[Refusal, int], bytes]
    statuses: Mapping[Kind, int] = field(default_factory=dict)

    def refuse(self, refusal: Refusal) -> Reply:
        """The reply that tells a client of this protocol."""
        status = self.statuses.get(refusal.kind, STATUSES[refusal.kind])
        wait = refusal.retry_after_seconds
        headers = () if wait is None else (("retry-after", str(wait)),)
        return Reply(self.word(refusal, status), status, JSON, headers)
