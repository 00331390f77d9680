"""Apps of every route over models that answer at once, asked without a socket."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from serving import protocols
from serving.deployment import admin_routes
from serving.http.asgi import App
from serving.http.messages import WireProtocol
from serving.http.metrics import Metrics, Sample
from serving.registry.canary_metrics import CanaryMetrics
from tests.support.fake_models import FakeModels


def all_protocols() -> list[WireProtocol]:
    """Return the protocols of a replica, with its routes for operators."""

    async def samples() -> Mapping[Sample, float]:
        return Metrics().snapshot()

    async def canaries() -> Sequence[CanaryMetrics]:
        return []

    admin = admin_routes.admin_protocol(protocols.ALL, samples, canaries, lambda: True, "0")
    return [*protocols.ALL, admin]


def ask_app(
    method: str,
    path: str,
    headers: Mapping[str, str] | None = None,
    body: Any = None,
    models: FakeModels | None = None,
    **settings: Any,
) -> httpx.Response:
    """Return the response of an app with these settings, its body as it came."""

    async def run() -> httpx.Response:
        app = App(all_protocols(), models or FakeModels(), **settings)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            del client.headers["accept-encoding"]
            return await client.request(method, path, headers=headers, json=body)

    return asyncio.run(run())
