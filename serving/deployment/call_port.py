"""Keep Ray Serve's replicas from listening for calls from other replicas.

Ray 2.60 opens a gRPC port at every address of the machine in each of them, whose requests it
unpickles, though calls take another way unless RAY_SERVE_USE_GRPC_BY_DEFAULT=1.
"""

from typing import Any


def close_call_port() -> None:
    """Have Serve start that server without a port. To be called as a replica is constructed.

    Serve opens the port when the constructor has returned, and offers no setting for it.
    """
    from ray.serve._private import constants, replica

    if not constants.RAY_SERVE_USE_GRPC_BY_DEFAULT:
        replica.add_port_to_grpc_server = _open_none


def _open_none(server: Any, address: str) -> int:
    return 0
