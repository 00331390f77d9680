"""AWS, in a host of its own: `python -m aws.main ADDRESS CERTIFICATE KEY`, in its own directory.

The API speaks TLS on port 443, and plainly on port 80 so that who may not can be seen refused.
state.json says what there is, for who makes a host of each instance; notices.json is read.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import make_server

from . import fleet
from .front import AwsGateway
from .metadata import Credentials, MetadataServer

METADATA = "169.254.169.254"
STATE, NOTICES = Path("state.json"), Path("notices.json")


def main(address: str, certificate: str, key: str) -> None:
    credentials = Credentials()
    front = AwsGateway(DomainDispatcherApplication(create_backend_app), credentials)
    for port, context in ((443, (certificate, key)), (80, None)):
        server = make_server(
            address, port, front, threaded=True, request_handler=MotoRequestHandler,
            ssl_context=context,
        )  # fmt: skip
        threading.Thread(target=server.serve_forever, daemon=True).start()
    NOTICES.write_text("{}")
    metadata = MetadataServer(METADATA, credentials, NOTICES)
    threading.Thread(target=metadata.serve_forever, daemon=True).start()
    while True:
        _write_state(front)
        time.sleep(0.3)


def _write_state(front: AwsGateway) -> None:
    """Write state.json atomically, since others read it at any time."""
    state: Mapping[str, Any] = {
        "instances": [asdict(each) for each in fleet.list_instances()],
        "launches": front.launches,
        "refused": front.refused,
    }
    unfinished = STATE.with_suffix(".new")
    unfinished.write_text(json.dumps(state))
    unfinished.rename(STATE)


if __name__ == "__main__":
    main(*sys.argv[1:])
