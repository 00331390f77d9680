"""A replica as a process without Ray: prints its address when it answers, and that for gRPC.

    python tests/support/replica_process.py REGISTRY [grpc]

Ends, after answering what is under way, when its standard input does.
"""

import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2]))

from serving.deployment.config import EndpointConfig
from serving.deployment.server import ReplicaServer


def main(registry: str, grpc: bool = False) -> None:
    server = ReplicaServer(EndpointConfig(registry=registry, grpc=grpc), "127.0.0.1")
    server.start()
    print(server.address, server.grpc_address, flush=True)
    sys.stdin.read()
    server.stop()


if __name__ == "__main__":
    main(sys.argv[1], "grpc" in sys.argv[2:])
