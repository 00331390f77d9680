"""Endpoints without Ray: registries of tiny bundles, and the surface of what they hold."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import httpx

from serving import protocols
from serving.deployment import admin_routes
from serving.http.asgi import Surface
from serving.http.keys import Keys
from serving.http.metrics import Meters, Sample
from serving.inference.model_server import House
from serving.interface import Limits
from serving.registry.canary_metrics import Tally
from serving.registry.registry import Registry

Scenario = Callable[[httpx.AsyncClient, House], Awaitable[None]]


def registry_of(place: Path, bundle: Path, name: str = "tiny") -> Registry:
    """A registry in which `bundle` is live."""
    registry = Registry.open(str(place))
    registry.deploy(name, registry.register(bundle, name))
    return registry


def play(
    registry: Registry,
    scenario: Scenario,
    limits: Limits | None = None,
    keys: Keys | None = None,
    budget_bytes: int = 1 << 30,
    seconds: float = 60,
) -> None:
    """Run a scenario with a client of a fresh house."""

    async def run() -> None:
        house = House(registry, Path("unused"), limits or Limits(), budget_bytes)
        await house.open()
        meters = Meters()

        async def counts() -> Mapping[Sample, float]:
            return meters.snapshot() | dict(house.answering.samples())

        async def tallies() -> Sequence[Tally]:
            return list(house.trials.tallies.values())

        operators = admin_routes.protocol(protocols.ALL, counts, tallies, lambda: True, "0")
        surface = Surface([*protocols.ALL, operators], house, keys=keys, meters=meters)
        transport = httpx.ASGITransport(surface, raise_app_exceptions=False)
        try:
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                await asyncio.wait_for(scenario(client, house), seconds)
        finally:
            await house.close()

    asyncio.run(run())


def ask(registry: Registry, method: str, path: str, **request: object) -> httpx.Response:
    """The response to one request."""
    responses = []

    async def scenario(client: httpx.AsyncClient, _: House) -> None:
        responses.append(await client.request(method, path, **request))

    play(registry, scenario)
    return responses[0]
