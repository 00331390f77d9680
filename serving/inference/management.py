"""Changes to a registry, as protocols ask for them over HTTP; errors become refusals."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from cluster.errors import BerthaError
from serving.http.messages import Refusal
from serving.interface import ModelInfo
from serving.registry.model_ref import BadReference, NoModel
from serving.registry.naming import name_of
from serving.registry.registry import Registry


class Manager:
    """Implements `models.Management`.

    refresh: looks into the registry and adopts what it shows. find: what is known of a version.
    load, unload: of a reference, into memory and out of it.
    """

    def __init__(
        self,
        registry: Registry,
        refresh: Callable[[], Awaitable[None]],
        find: Callable[[str | None], ModelInfo],
        load: Callable[[str], Awaitable[None]],
        unload: Callable[[str], None],
    ) -> None:
        self._registry, self._refresh, self._find = registry, refresh, find
        self._load, self._unload = load, unload

    async def register(self, url: str, name: str | None) -> ModelInfo:
        """As `Management.register`. Only a directory that the server can see."""
        directory = Path(url.removeprefix("file://"))
        if "://" in url and not url.startswith("file://"):
            raise Refusal("malformed", f"url {url[:200]!r}: give the path of a bundle's directory")
        given = name or name_of(directory)
        version = await self._do(self._registry.register, directory, given)
        return self._find(f"{given}:{version}")

    async def set_default(self, name: str, version: str) -> None:
        """As `Management.set_default`."""
        await self._do(self._registry.deploy, name, version)

    async def unregister(self, name: str, version: str | None) -> None:
        """As `Management.unregister`."""
        await self._do(self._registry.remove, name, version or self._find(name).version)

    async def load(self, model: str) -> None:
        """As `Management.load`."""
        await self._load(model)

    async def unload(self, model: str) -> None:
        """As `Management.unload`."""
        self._unload(model)

    async def _do(self, change: Callable[..., Any], *arguments: Any) -> Any:
        """Change the registry in a thread, and see what became of it."""
        try:
            result = await asyncio.to_thread(change, *arguments)
        except (NoModel, BadReference) as error:
            raise Refusal("no-model", str(error)) from None
        except (BerthaError, OSError) as error:
            raise Refusal("malformed", str(error)) from None
        await self._refresh()
        return result
