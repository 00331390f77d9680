"""A Ray in this process: actors are plain objects, and a call runs when its reply is fetched."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import ray

GCS_ADDRESS = "192.0.2.1:6379"


def node_id(name: str) -> str:
    """The id of a node, as long as Ray's."""
    return name.encode().hex().ljust(56, "0")


def node_row(name: str, address: str = "127.0.0.1", **changes: Any) -> dict[str, Any]:
    """A node as `ray.nodes` lists it, without resources."""
    row = {"NodeManagerHostname": name, "NodeManagerAddress": address, "NodeID": node_id(name)}
    return {**row, "Alive": True, "Resources": {}, **changes}


@dataclass
class FakeRay:
    """rows: of `ray.nodes`. actors: (node id, class name) -> the class that stands in for it.

    silent: ids of nodes whose actors never answer. killed, started: actors, in order; init_error:
    what joining raises.
    """

    rows: Sequence[Mapping[str, Any]] = ()
    actors: Mapping[tuple[str, str], type] = field(default_factory=dict)
    silent: frozenset[str] = frozenset()
    is_initialized: bool = False
    init_error: Exception | None = None
    started: list["FakeActor"] = field(default_factory=list)
    killed: list["FakeActor"] = field(default_factory=list)
    shutdowns: int = 0

    def install(self, patch: pytest.MonkeyPatch) -> "FakeRay":
        """Stand in for Ray."""
        for name in ("init", "shutdown", "remote", "get"):
            patch.setattr(ray, name, getattr(self, f"_{name}"))
        patch.setattr(ray, "is_initialized", lambda: self.is_initialized)
        patch.setattr(ray, "nodes", lambda: list(self.rows))
        patch.setattr(ray, "kill", self.killed.append)
        return self

    def _init(self, **_: Any) -> Any:
        if self.init_error is not None:
            raise self.init_error
        return SimpleNamespace(
            dashboard_url="127.0.0.1:8265", address_info={"gcs_address": GCS_ADDRESS}
        )

    def _shutdown(self) -> None:
        self.shutdowns += 1

    def _remote(self, actor: type) -> Any:
        def with_options(**options: Any) -> Any:
            node = options["scheduling_strategy"].node_id
            stand_in = self.actors.get((node, actor.__name__), actor)

            def start(*arguments: Any) -> FakeActor:
                self.started.append(FakeActor(stand_in(*arguments), node, options))
                return self.started[-1]

            return SimpleNamespace(remote=start)

        return SimpleNamespace(options=with_options)

    def _get(self, reply: "Reply", timeout: float) -> Any:
        if reply.node in self.silent:
            raise ray.exceptions.GetTimeoutError
        return reply.call()


@dataclass(frozen=True)
class Reply:
    """A call that an actor has been asked for."""

    node: str
    call: Callable[[], Any]


class FakeActor:
    """The handle of an actor on a node. options: with which it was started."""

    def __init__(self, instance: Any, node: str, options: Mapping[str, Any]) -> None:
        self.instance, self.node, self.options = instance, node, options

    def __getattr__(self, method: str) -> Any:
        function = getattr(self.instance, method)
        return SimpleNamespace(
            remote=lambda *arguments: Reply(self.node, lambda: function(*arguments))
        )
