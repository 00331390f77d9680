"""The service under Ray Serve: one replica that loads a bundle and answers HTTP.

Decides threads, admission limits and the health check; everything else is the service's and the
HTTP surface's. A replica is told the path of the bundle and loads it itself.
"""

import errno
import logging
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.config import HTTPOptions, ProxyLocation
from ray.serve.schema import LoggingConfig

from cluster.errors import BerthaError

APPLICATION = "bertha"
MAX_THREADS = 8  # the matrices of a small batch keep no more cores busy
# The batcher's own limit answers 429 in JSON; this one, in plain text, must never be reached first.
MAX_ONGOING_REQUESTS = 8192
OBJECT_STORE_BYTES = 128 * 1024 * 1024  # nothing large passes through it


class PortTaken(BerthaError):
    """The port is in use, or may not be used; the text says which and the way out."""


class ReplicaFailed(BerthaError):
    """A bundle that could not be loaded where it was to be served."""


class Replica:
    """One engine and its batcher behind the HTTP surface."""

    def __init__(self, bundle: str, num_threads: int) -> None:
        import torch  # what follows takes seconds, which whoever deploys must not wait for

        from serving.engine import Engine
        from serving.service import Service

        torch.set_num_threads(num_threads)
        engine = Engine.load(Path(bundle))
        engine.predict([engine.probe])  # the first answer is slower than the rest
        self._service = Service(engine, name_of(Path(bundle)))

    def __serve_build_asgi_app__(self) -> FastAPI:
        from serving.http import build

        return build(self._service)

    async def check_health(self) -> None:
        """Called by Serve, which replaces the replica when this raises."""
        if not await self._service.healthy():
            raise RuntimeError("the model does not answer")


def threads_for(num_cores: int) -> int:
    """Threads of the engine on a node of `num_cores`.

    One core is left to Serve's own processes: an engine on every core waits, at each layer, for the
    thread that they pushed aside, and answers later than one on fewer.
    """
    return max(1, min(num_cores - 1, MAX_THREADS))


def name_of(bundle: Path) -> str:
    """What people call a bundle: its directory, or the run it came from."""
    directory = bundle.resolve()
    return directory.parent.name if directory.name == "bundle" else directory.name


@contextmanager
def running(bundle: Path, host: str, port: int, address: str | None = None) -> Iterator[None]:
    """Serve `bundle` at host:port, on a Ray of its own or on the one at `address`.

    Enters when the replica answers; leaves when what waited is answered. Raises PortTaken before
    anything is started, and ReplicaFailed.
    """
    if address is None:
        _claim(host, port)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    with ExitStack() as ending:
        _join_ray(address)
        ending.callback(ray.shutdown)
        serve.start(
            proxy_location=ProxyLocation.HeadOnly,
            http_options=HTTPOptions(host=host, port=port),
            logging_config=quiet,
        )
        ending.callback(serve.delete, APPLICATION)
        _deploy(bundle, quiet)
        yield


def _join_ray(address: str | None) -> None:
    """A small Ray on this machine, or the one at `address`."""
    if address is not None:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        return
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=OBJECT_STORE_BYTES,
    )


def _deploy(bundle: Path, logs: LoggingConfig) -> None:
    """Start the replica on the Serve that runs; returns when it answers."""
    num_threads = threads_for(max(int(node["Resources"].get("CPU", 1)) for node in ray.nodes()))
    replica = serve.deployment(
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        health_check_period_s=10,
        health_check_timeout_s=30,
        graceful_shutdown_timeout_s=20,
        ray_actor_options={"num_cpus": num_threads},
    )(serve.ingress()(Replica))
    try:
        serve.run(
            replica.bind(str(bundle.resolve()), num_threads),
            name=APPLICATION,
            route_prefix="/",
            logging_config=logs,
        )
    except RuntimeError as error:
        raise ReplicaFailed(f"{bundle}: the replica did not start: {error}") from error


def _claim(host: str, port: int) -> None:
    """Raise PortTaken unless this process could listen at host:port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            reason = "in use" if error.errno == errno.EADDRINUSE else f"not to be had: {error}"
            raise PortTaken(
                f"{host}:{port} is {reason}; choose another, as in --port {port + 1}"
            ) from None
