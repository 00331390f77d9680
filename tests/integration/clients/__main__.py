"""Make every call, and write `docs/clients.md`.

python -m tests.integration.clients
"""

import os
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import huggingface_hub.constants

from tests.integration.clients import table
from tests.integration.clients.calls import ALL
from tests.support.served import serve_engines
from tests.support.tiny import write_tiny_bert


def main() -> int:
    """Write the page, unless a call fails that does not say why."""
    huggingface_hub.constants.HF_HUB_OFFLINE = False
    works, failed = {}, 0
    with tempfile.TemporaryDirectory() as place:
        serving = serve_engines(write_tiny_bert(Path(place, "bert")), Path(place))
        served = next(serving)
        for call in ALL:
            try:
                works[call.key] = table.make_call(call, served)
            except Exception as error:
                failed += 1
                print(f"{call.client}, {call.call}: {type(error).__name__}: {error}")
        next(serving, None)
    if not failed:
        table.PAGE.write_text(table.format_page(works), encoding="utf-8")
        print(f"{table.PAGE.name}: {len(works)} calls")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
