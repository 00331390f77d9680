"""Endpoints without Ray: registries of tiny bundles, and the app of what they hold."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import httpx

from serving import protocols
from serving.deployment import admin_routes
from serving.http.asgi import App
from serving.http.keys import ApiKeys
from serving.http.metrics import Metrics, Sample
from serving.inference.feedback import FeedbackStore
from serving.inference.model_server import ModelServer
from serving.interface import Limits
from serving.registry.canary_metrics import CanaryMetrics
from serving.registry.registry import Registry

Scenario = Callable[[httpx.AsyncClient, ModelServer], Awaitable[None]]


def make_registry(place: Path, bundle: Path, name: str = "tiny") -> Registry:
    """A registry in which `bundle` is live."""
    registry = Registry.open(str(place))
    registry.deploy(name, registry.register(bundle, name))
    return registry


def run_scenario(
    registry: Registry,
    scenario: Scenario,
    limits: Limits | None = None,
    keys: ApiKeys | None = None,
    budget_bytes: int = 1 << 30,
    seconds: float = 60,
    response_bytes: int = 0,
    feedback: Path | None = None,
) -> None:
    """Run a scenario with a client of a fresh server."""

    async def run() -> None:
        server = ModelServer(
            registry,
            Path("unused"),
            limits or Limits(),
            budget_bytes,
            response_bytes=response_bytes,
            feedback=FeedbackStore(feedback) if feedback else None,
        )
        await server.start()
        meters = Metrics()

        async def counts() -> Mapping[Sample, float]:
            counted = (*server.executor.metric_samples(), *server.drift.metric_samples())
            return meters.snapshot() | dict(counted)

        async def tallies() -> Sequence[CanaryMetrics]:
            return list(server.canary_router.metrics.values())

        admin = admin_routes.admin_protocol(protocols.ALL, counts, tallies, lambda: True, "0")
        app = App([*protocols.ALL, admin], server, keys=keys, metrics=meters)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        try:
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                await asyncio.wait_for(scenario(client, server), seconds)
        finally:
            await server.close()

    asyncio.run(run())


def send_request(registry: Registry, method: str, path: str, **request: object) -> httpx.Response:
    """The response to one request."""
    responses = []

    async def scenario(client: httpx.AsyncClient, _: ModelServer) -> None:
        responses.append(await client.request(method, path, **request))

    run_scenario(registry, scenario)
    return responses[0]
