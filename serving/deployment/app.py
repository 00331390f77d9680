"""An endpoint under Ray Serve: the front with HAProxy on the head node, and replicas behind it."""

import errno
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, ProxyLocation
from ray.serve.schema import LoggingConfig

from cluster.errors import BerthaError
from cluster.local_ray import LocalRay, run_local_ray
from cluster.private_files import private_directory
from cluster.ray_token import close_token_file
from serving.deployment.config import EndpointConfig, autoscaling_policy, limit_per_node
from serving.deployment.front import Front
from serving.deployment.front_log import print_lines
from serving.deployment.placement import actor_options, count_places, place_endpoint
from serving.deployment.replica import Replica

APPLICATION = "bertha"
OBJECT_STORE_BYTES = 128 * 1024 * 1024  # nothing large passes through it
REPLICA_VARIABLES = {
    "OMP_NUM_THREADS": "1",
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "2",
}
# Ray lowers the priority of workers, and its controller polls ten times a second; neither suits
# replicas that answer requests without passing through it.
RAY_VARIABLES = {"RAY_worker_niceness": "0", "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5"}
QUIET = LoggingConfig(log_level="WARNING", enable_access_log=False)


class PortUnavailable(BerthaError):
    """The port cannot be listened on; the message says why, and the way out."""


class ReplicaStartError(BerthaError):
    """An endpoint that could not be started."""


@contextmanager
def serve_locally(endpoint: EndpointConfig) -> Iterator[LocalRay]:
    """Serve on a Ray of its own, on this machine; yield that Ray.

    Enters when a replica answers; leaves when waiting requests are answered. Raises PortUnavailable
    and UnsafePathError before anything starts, and ReplicaStartError.
    """
    _check_port(endpoint.host, endpoint.port)
    if endpoint.feedback is not None:
        private_directory(endpoint.feedback)
    for name, value in RAY_VARIABLES.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    with ExitStack() as ending:
        on_terminate = signal.getsignal(signal.SIGTERM)
        local_ray = ending.enter_context(run_local_ray(OBJECT_STORE_BYTES))
        # Ray puts a handler of its own in place, which aborts the process and leaves the servers.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_terminate or signal.SIG_DFL)
        if endpoint.logs_requests and endpoint.log_file is None:
            pipe = ending.enter_context(print_lines(local_ray.directory / "log"))
            endpoint = endpoint.model_copy(update={"log_file": pipe})
        _start_application(endpoint, host="127.0.0.1")
        ending.callback(_delete_application, local_ray)
        yield local_ray


def _delete_application(local_ray: LocalRay) -> None:
    if local_ray.find_dead_server() is None:
        serve.delete(APPLICATION)


def deploy_endpoint(endpoint: EndpointConfig, address: str) -> EndpointConfig:
    """Serve on the Ray cluster at `address`, and leave it running; return what was placed.

    Raises PlacementError and ReplicaStartError.
    """
    close_token_file()
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    return _start_application(endpoint)


def _start_application(endpoint: EndpointConfig, host: str = "") -> EndpointConfig:
    """Deploy the front and the replicas; return the endpoint as placed when one answers.

    host: where replicas listen for HAProxy; by default the address of their node.
    """
    endpoint = place_endpoint(endpoint, ray.cluster_resources())
    nodes = ray._private.state.available_resources_per_node().values()
    serve.start(proxy_location=ProxyLocation.Disabled, logging_config=QUIET)
    front = serve.deployment(
        name="front",
        num_replicas=1,
        max_ongoing_requests=1000,
        health_check_period_s=2,
        health_check_timeout_s=10,
        ray_actor_options={"num_cpus": 0, "resources": {"node:__internal_head__": 0.001}},
    )(Front)
    replica = serve.deployment(
        name="replica",
        max_ongoing_requests=1000,
        max_replicas_per_node=limit_per_node(endpoint.max_replicas, count_places(endpoint, nodes)),
        autoscaling_config=AutoscalingConfig(
            min_replicas=endpoint.min_replicas,
            max_replicas=endpoint.max_replicas,
            initial_replicas=endpoint.min_replicas,
            look_back_period_s=11,
            upscale_delay_s=3,
            downscale_delay_s=endpoint.downscale_seconds,
            policy=AutoscalingPolicy(policy_function=autoscaling_policy),
        ),
        health_check_period_s=2,  # a replica that is killed is missed at its next check
        health_check_timeout_s=30,
        graceful_shutdown_timeout_s=40,
        ray_actor_options={
            **actor_options(endpoint),
            "runtime_env": {"env_vars": REPLICA_VARIABLES},
        },
    )(Replica)
    log_file = str(endpoint.log_file) if endpoint.log_file else None
    front_handle = front.bind(
        endpoint.host,
        endpoint.port,
        str(endpoint.certificate) if endpoint.certificate else None,
        endpoint.registry,
        endpoint.allowed_origins,
        (endpoint.log_format, log_file) if endpoint.logs_requests else None,
        endpoint.grpc,
    )
    try:
        serve.run(
            replica.bind(endpoint.model_dump(mode="json"), host, front_handle),
            name=APPLICATION,
            route_prefix=None,
            logging_config=QUIET,
        )
    except RuntimeError as error:
        raise ReplicaStartError(f"{endpoint.registry}: no replica started: {error}") from error
    return endpoint


def _check_port(host: str, port: int) -> None:
    """Raise PortUnavailable unless this process can listen at host:port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            reason = "in use" if error.errno == errno.EADDRINUSE else f"not to be had: {error}"
            raise PortUnavailable(
                f"{host}:{port} is {reason}; choose another, as in --port {port + 1}"
            ) from None
