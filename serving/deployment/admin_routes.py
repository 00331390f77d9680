"""Routes for operators: the web page, OpenAPI, metrics, canaries, drift and readiness."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from serving.deployment.haproxy import READY_PATH
from serving.http.messages import (
    JSON,
    Handler,
    HTTPError,
    Request,
    Response,
    Route,
    WireProtocol,
)
from serving.http.metrics import Sample, to_prometheus
from serving.http.openapi import build_openapi
from serving.http.prefix import FORWARDED_PREFIX
from serving.inference.drift import describe_drift, psi_samples
from serving.interface import Models
from serving.protocols.json_bodies import dump_json, error_json
from serving.registry.canary_metrics import CanaryMetrics

STATIC_DIRECTORY = Path(__file__).parent.parent / "static"
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
VARY = ("vary", FORWARDED_PREFIX)


def admin_protocol(
    others: Sequence[WireProtocol],
    samples: Callable[[], Awaitable[Mapping[Sample, float]]],
    canary_metrics: Callable[[], Awaitable[Sequence[CanaryMetrics]]],
    is_accepting: Callable[[], bool],
    version: str,
) -> WireProtocol:
    """Return the routes for operators; OpenAPI documents `others` and these.

    samples, canary_metrics: of all replicas. accepting: whether this replica accepts requests.
    """

    async def get_metrics(_: Request, models: Models) -> Response:
        counted = dict(await samples())
        text = to_prometheus(counted | psi_samples(models.list_models(), counted))
        return Response(text.encode(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def get_canaries(_: Request, __: Models) -> Response:
        return Response(dump_json([each.summary() for each in await canary_metrics()]))

    async def get_drift(_: Request, models: Models) -> Response:
        return Response(dump_json(describe_drift(models.list_models(), await samples())))

    async def get_readiness(_: Request, __: Models) -> Response:
        if not is_accepting():
            raise HTTPError("unready", "this replica is ending", 1)
        return Response(media_type="text/plain")

    async def get_openapi(http: Request, _: Models) -> Response:
        body = openapi.replace(b'"url":"/"', b'"url":"%s"' % http.prefix.encode(), 1)
        return Response(body if http.prefix else openapi, headers=(VARY,))

    get_page = _page_handler("index.html")

    async def get_root(http: Request, models: Models) -> Response:
        accept = http.headers.get("accept", "")
        if "text/html" not in accept and JSON in accept:
            return Response(dump_json({"status": "alive"}))  # as KServe V1's clients ask
        return await get_page(http, models)

    routes = (
        Route("GET", "/", get_root, "The page for people; {status: alive} as JSON", "open"),
        Route("GET", "/docs", _page_handler("docs.html"), "This documentation", "open"),
        Route("GET", "/openapi.json", get_openapi, "The OpenAPI document", "open"),
        Route(
            "GET", "/metrics", get_metrics, "Counters for Prometheus, of all replicas", "metrics"
        ),
        *(
            Route("GET", path, get_metrics, "The same, as clients below a prefix ask", "metrics")
            for path in ("/infinity/metrics", "/tei/{model}/metrics")
        ),
        Route("GET", "/canaries", get_canaries, "Canaries beside their live versions", "metrics"),
        Route(
            "GET", "/drift", get_drift, "Recent texts and answers beside held-out ones", "metrics"
        ),
        Route("GET", READY_PATH, get_readiness, "Whether this replica accepts requests", "open"),
    )
    protocol = WireProtocol("operations", routes, error_json)
    openapi = dump_json(build_openapi([*others, protocol], "Bertha", version))
    return protocol


def _page_handler(file: str) -> Handler:
    html = (STATIC_DIRECTORY / file).read_bytes()

    async def get_page(http: Request, _: Models) -> Response:
        # A prefix holds no character that means something in HTML.
        page = html.replace(b'href="/', b'href="%s/' % http.prefix.encode())
        headers = (*PAGE_HEADERS, VARY)
        return Response(page, media_type="text/html; charset=utf-8", headers=headers)

    return get_page
