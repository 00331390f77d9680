"""What operators ask of an endpoint: the page, the documentation, metrics, and whether it is there.

Speaks to people, Prometheus and HAProxy. Knows no wire protocol of predictions but their schema.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from serving.deployment.haproxy import READY_PATH
from serving.http.messages import Protocol, Refusal, Reply, Request, Route
from serving.http.metrics import Sample, exposition
from serving.http.openapi import document
from serving.interface import Models
from serving.protocols.json_bodies import dump, said
from serving.registry.canary_metrics import Tally

PAGES = Path(__file__).parent.parent / "static"
PAGE_HEADERS = (
    (
        "content-security-policy",
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
        "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cache-control", "no-cache"),
)


def protocol(
    others: Sequence[Protocol],
    counts: Callable[[], Awaitable[Mapping[Sample, float]]],
    tallies: Callable[[], Awaitable[Sequence[Tally]]],
    accepting: Callable[[], bool],
    version: str,
) -> Protocol:
    """The routes for operators, the documentation that of `others`.

    counts, tallies: of all replicas. accepting: whether this replica wants requests.
    """

    async def metrics(_: Request, __: Models) -> Reply:
        text = exposition(await counts())
        return Reply(text.encode(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def canaries(_: Request, __: Models) -> Reply:
        return Reply(dump([tally.summary() for tally in await tallies()]))

    async def here(_: Request, __: Models) -> Reply:
        if not accepting():
            raise Refusal("unready", "this replica is ending", 1)
        return Reply(media_type="text/plain")

    async def schema(_: Request, __: Models) -> Reply:
        return Reply(_schema)

    routes = (
        Route("GET", "/", _page("index.html"), "The page for people", "open"),
        Route("GET", "/docs", _page("docs.html"), "This documentation", "open"),
        Route("GET", "/openapi.json", schema, "The OpenAPI document", "open"),
        Route("GET", "/metrics", metrics, "Counters for Prometheus, of all replicas", "open"),
        Route("GET", "/canaries", canaries, "Canaries beside their live versions"),
        Route("GET", READY_PATH, here, "Whether this replica wants requests", "open"),
    )
    found = Protocol("operations", routes, said)
    _schema = dump(document([*others, found], "Bertha", version))
    return found


def _page(file: str) -> Callable[[Request, Models], Awaitable[Reply]]:
    html = (PAGES / file).read_bytes()

    async def page(_: Request, __: Models) -> Reply:
        return Reply(html, media_type="text/html; charset=utf-8", headers=PAGE_HEADERS)

    return page
