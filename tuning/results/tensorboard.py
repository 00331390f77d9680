"""TensorBoard as a part of another WSGI application, over the runs of all trials.

Knows no search.
"""

import argparse
from pathlib import Path
from wsgiref.types import WSGIApplication

from tensorboard import program


def mounted(logdir: Path, prefix: str) -> WSGIApplication:
    """TensorBoard over `logdir` for requests whose path begins with `prefix`."""
    found: list[WSGIApplication] = []

    class Mount(program.TensorBoardServer):  # type: ignore[misc]
        """Serves nothing itself: the application is all that is wanted."""

        def __init__(self, wsgi_app: WSGIApplication, flags: argparse.Namespace) -> None:
            found.append(wsgi_app)

        def serve_forever(self) -> None:
            """Others do."""

        def get_url(self) -> str:
            """Where others serve it."""
            return prefix

    board = program.TensorBoard(server_class=Mount)
    # Its faster loader is a process of its own, which would outlive a dashboard that is killed.
    board.configure(logdir=str(logdir), path_prefix=prefix, load_fast="false")
    board.launch()
    return found[0]
