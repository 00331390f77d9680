"""Change a registry as protocols ask for it over HTTP; failures become HTTPErrors."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from cluster.errors import BerthaError
from serving.http.messages import HTTPError
from serving.inference.executor import Executor
from serving.interface import ModelInfo
from serving.registry.model_ref import InvalidReference, ModelNotFound, default_model_name
from serving.registry.registry import Registry
from trainers.storage.filesystem import StoreError


class RegistryAdmin:
    """Implements `ModelManagement`.

    refresh: adopts what the registry shows. get_info: describes a version. load, unload: of a
    model, into memory and out of it.
    """

    def __init__(
        self,
        registry: Registry,
        executor: Executor,
        refresh: Callable[[], Awaitable[None]],
        get_info: Callable[[str | None], ModelInfo],
    ) -> None:
        self._registry, self._executor = registry, executor
        self._refresh, self._get_info = refresh, get_info

    async def register(self, url: str, name: str | None) -> ModelInfo:
        """Register a bundle; only a directory that the server can see."""
        directory = Path(url.removeprefix("file://"))
        if "://" in url and not url.startswith("file://"):
            raise HTTPError(
                "malformed", f"url {url[:200]!r}: give the path of a bundle's directory"
            )
        given = name or default_model_name(directory)
        version = await self._apply_change(self._registry.register, directory, given)
        return self._get_info(f"{given}:{version}")

    async def set_default(self, name: str, version: str) -> None:
        """Deploy a version."""
        await self._apply_change(self._registry.deploy, name, version)

    async def unregister(self, name: str, version: str | None) -> None:
        """Remove a version; of a name the only one too, while another name answers."""
        version = version or self._get_info(name).version
        await self._apply_change(self._remove_version, name, version)

    async def load_model(self, model: str) -> None:
        """Load a model into memory."""
        info = self._get_info(model)
        await self._executor.get_engine((info.name, info.version))

    async def unload_model(self, model: str) -> None:
        """Free the memory of a model."""
        info = self._get_info(model)
        self._executor.cache.evict_models([(info.name, info.version)])

    def _remove_version(self, name: str, version: str) -> None:
        states = self._registry.read_snapshot().states.values()
        others = any(state.live is not None for state in states if state.name != name)
        self._registry.remove_version(name, version, retire=others)

    async def _apply_change(self, change: Callable[..., Any], *arguments: Any) -> Any:
        """Change the registry in a thread, and adopt the result."""
        try:
            result = await asyncio.to_thread(change, *arguments)
        except (ModelNotFound, InvalidReference) as error:
            raise HTTPError("no-model", str(error)) from None
        except (StoreError, OSError) as error:
            raise HTTPError("unready", str(error)) from None
        except BerthaError as error:
            raise HTTPError("malformed", str(error)) from None
        try:
            await self._refresh()
        except (BerthaError, OSError) as error:
            raise HTTPError(
                "unready", f"the registry was changed, and cannot be read now: {error}"
            ) from None
        return result
