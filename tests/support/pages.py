"""The page and its documentation over models that answer at once, without a replica."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from serving import protocols
from serving.deployment import admin_routes
from serving.http.asgi import App
from serving.http.keys import ApiKeys
from tests.support.fake_models import FakeModels
from tests.support.servers import serve_app


@contextmanager
def serving(models: FakeModels, keys: ApiKeys | None = None) -> Iterator[str]:
    """Serve the page over some models; yield its address."""

    async def counts() -> dict[Any, float]:
        return {}

    async def tallies() -> list[Any]:
        return []

    operators = admin_routes.admin_protocol(protocols.ALL, counts, tallies, lambda: True, "0")
    with serve_app(App([*protocols.ALL, operators], models, keys=keys)) as address:
        yield f"http://{address}/"
