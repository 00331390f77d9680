"""A front as a process without Ray: prints a line when it has HAProxy, started or adopted.

    python tests/support/front_process.py PORT REGISTRY ADDRESS...

Has a heartbeat of each replica every half second. Ends in order when its standard input does.
"""

import os
import select
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2]))

from serving.deployment.front import Front, Heartbeat


def main(port: str, registry: str, *addresses: str) -> None:
    front = Front("127.0.0.1", int(port), None, registry)
    for address in addresses:
        front.heartbeat(Heartbeat(address))
    print("ready", flush=True)
    while not select.select([sys.stdin], [], [], 0.5)[0]:
        for address in addresses:
            front.heartbeat(Heartbeat(address))
    front.__del__()


if __name__ == "__main__":
    main(*sys.argv[1:])
