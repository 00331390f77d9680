"""Cross-origin requests (CORS): which pages of other origins may read what this server answers.

No cookie counts here, so no answer allows credentials, and a page has only the key that it was
given. Management and metrics allow no origin at all. (Fetch standard, section 3.2.)

    headers, preflight = Origins(["https://app.example"]).share_path("POST", routes, asked)
"""

import re
from collections.abc import Iterable, Mapping, Sequence

from serving.http.messages import (
    IGNORED_HEADER,
    TRUNCATED_HEADER,
    HTTPError,
    Response,
    Route,
)

ANY = "*"
MAX_AGE_SECONDS = 7200  # of a preflight's answer; browsers keep none longer
MAX_ASKED_HEADERS = 2048  # characters
SHARED_SCOPES = ("open", "inference")  # of routes that other origins may call
# What a page may read beside the headers that it always may.
EXPOSED_HEADERS = (
    "content-encoding",
    IGNORED_HEADER,
    TRUNCATED_HEADER,
    "inference-header-content-length",
    "retry-after",
    "retry-after-ms",
    "server-timing",
    "x-request-id",
)

Headers = tuple[tuple[str, str], ...]

_ORIGIN = re.compile(r"https?://(?:[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])(?::[1-9][0-9]*)?")
_FIELD_NAMES = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+(?:\s*,\s*[!#$%&'*+.^_`|~0-9A-Za-z-]+)*")


class Origins:
    """The origins whose pages may read answers; none by default, `*` for all."""

    def __init__(self, allowed: Iterable[str] = ()) -> None:
        self._allowed = frozenset(allowed)

    def __bool__(self) -> bool:
        """Return whether any origin is allowed."""
        return bool(self._allowed)

    def share_path(
        self, method: str, routes: Sequence[Route], headers: Mapping[str, str]
    ) -> tuple[Headers, Response | None]:
        """Return the headers of any answer on a path, and the answer to a browser's preflight.

        routes: of all methods at the path. Raises HTTPError for a preflight that cannot be read.
        """
        asks = _is_preflight(method, headers) and bool(routes)
        asked = headers["access-control-request-method"] if asks else method
        scopes = {str(route.method): route.scope for route in routes}
        scope = scopes.get(asked, routes[0].scope if routes else "open")
        shared = self._headers_for(headers) if scope in SHARED_SCOPES else ()
        if not asks:
            return shared, None
        return shared, _answer_preflight(
            headers, [name for name, scope in scopes.items() if scope in SHARED_SCOPES]
        )

    def _headers_for(self, headers: Mapping[str, str]) -> Headers:
        """Return the headers that let the page which asked read the answer."""
        # What is the same for every origin may be cached for all of them.
        vary: Headers = () if ANY in self._allowed else (("vary", "Origin"),)
        origin = headers.get("origin", "")
        if ANY not in self._allowed and origin not in self._allowed:
            return vary
        return (
            ("access-control-allow-origin", ANY if ANY in self._allowed else origin),
            ("access-control-expose-headers", ", ".join(EXPOSED_HEADERS)),
            *vary,
        )


def _is_preflight(method: str, headers: Mapping[str, str]) -> bool:
    """Return whether a request is a browser's question about another one."""
    return (
        method == "OPTIONS" and "origin" in headers and "access-control-request-method" in headers
    )


def _answer_preflight(headers: Mapping[str, str], methods: Iterable[str]) -> Response:
    asked = headers.get("access-control-request-headers", "")
    if asked and (len(asked) > MAX_ASKED_HEADERS or not _FIELD_NAMES.fullmatch(asked)):
        raise HTTPError("malformed", "access-control-request-headers is no list of names")
    allowed: Headers = (("access-control-allow-methods", ", ".join(sorted(methods))),)
    if asked:
        # Whoever may ask may send any header: none of them is trusted more than another.
        allowed += (("access-control-allow-headers", asked),)
    allowed += (("access-control-max-age", str(MAX_AGE_SECONDS)),)
    return Response(status=204, headers=allowed)


def parse_origin(text: str) -> str:
    """Return an origin as browsers write it, or `*`. Raises ValueError that says the way out."""
    if text == ANY:
        return ANY
    origin = text.lower()
    if not _ORIGIN.fullmatch(origin):
        raise ValueError(
            f"{text!r} is no origin; give scheme, host and port alone, as in "
            "https://app.example:8443, or * for every page"
        )
    return origin.removesuffix(":80" if origin.startswith("http:") else ":443")
