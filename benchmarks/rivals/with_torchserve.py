"""TorchServe: a handler that batches, a worker a core, each of one thread.

    python with_torchserve.py PORT WORKERS BATCH     archive this file as a model, and serve it

Needs Java. Its stock text classifier does not batch; this handler does, as its guide asks.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

DELAY_MILLISECONDS = 10
CONFIGURATION = """\
inference_address=http://127.0.0.1:{port}
management_address=http://127.0.0.1:{management}
metrics_address=http://127.0.0.1:{metrics}
model_store=store
load_models=rival.mar
disable_token_authorization=true
disable_system_metrics=true
models={models}
"""


class Handler:
    """The handler that TorchServe calls."""

    def initialize(self, context: Any) -> None:
        """Load the model, once in each worker."""
        from classifier import Classifier

        threads = int(os.environ.get("THREADS", "0"))
        self._classify = Classifier(num_threads=threads or None)

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[dict[str, Any]]:
        """Classify a batch."""
        bodies = [each.get("body") or each.get("data") for each in data]
        parsed = [each if isinstance(each, dict) else json.loads(each) for each in bodies]
        return self._classify([each["text"] for each in parsed])


def main() -> None:
    """Archive the model and serve it, in the current directory."""
    port, workers, batch = map(int, sys.argv[1:])
    script, tools = Path(__file__).resolve(), Path(sys.executable).parent
    Path("store").mkdir(exist_ok=True)
    archive = [str(tools / "torch-model-archiver"), "--model-name", "rival", "--version", "1.0"]
    archive += ["--handler", str(script), "--extra-files", str(script.parent / "classifier.py")]
    subprocess.run([*archive, "--export-path", "store", "--force"], check=True)
    settings = {"defaultVersion": True, "marName": "rival.mar", "minWorkers": workers}
    settings |= {"maxWorkers": workers, "batchSize": batch, "maxBatchDelay": DELAY_MILLISECONDS}
    settings |= {"responseTimeout": 120}
    text = CONFIGURATION.format(
        port=port,
        management=port + 1,
        metrics=port + 2,
        models=json.dumps({"rival": {"1.0": settings}}),
    )
    Path("config.properties").write_text(text)
    command = [str(tools / "torchserve"), "--start", "--foreground", "--ncs"]
    command += [
        "--ts-config",
        "config.properties",
        "--model-store",
        "store",
        "--models",
        "rival.mar",
    ]
    os.environ["PATH"] = f"{tools}:{os.environ['PATH']}"
    os.execv(command[0], [*command, "--disable-token-auth"])


if __name__ == "__main__":
    main()
