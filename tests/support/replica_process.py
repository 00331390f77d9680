"""A replica as a process without Ray: prints its address when it answers.

    python tests/support/replica_process.py REGISTRY

Ends, after answering what is under way, when its standard input does.
"""

import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2]))

from serving.deployment.config import Endpoint
from serving.deployment.server import Listener


def main(registry: str) -> None:
    listener = Listener(Endpoint(registry=registry), "127.0.0.1")
    listener.start()
    print(listener.address, flush=True)
    sys.stdin.read()
    listener.end()


if __name__ == "__main__":
    main(sys.argv[1])
