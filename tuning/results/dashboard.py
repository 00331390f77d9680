"""One live page for a search, while it runs and after: `python -m tuning dashboard RUN`.

    /             money and time spent, best so far, and below it one of
    /dashboard    optuna-dashboard over the journal: trials, learning curves, parallel coordinates,
                  importance, contours
    /search/heat  learning rate x batch size
    /tensorboard  TensorBoard over all trials, HParams first

It listens on loopback alone and changes nothing: the search may run, end and be resumed meanwhile.
All files are this machine's own. On a cluster it is reached through a port that is forwarded, as by
`ray dashboard CLUSTER.yaml --port 8080 --remote-port 8080`.
"""

import argparse
import json
import re
import threading
import webbrowser
from collections.abc import Iterable
from http import HTTPStatus
from pathlib import Path
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import optuna_dashboard

from cluster.errors import BerthaError
from tuning.results import figures
from tuning.results.status import status
from tuning.store import reader

HOST = "127.0.0.1"
LOCAL = ("127.0.0.1", "localhost", "[::1]")  # what a browser here, or behind a forward, asks for
PAGE = Path(__file__).parent / "static" / "index.html"
BOARD = "/tensorboard"

Reply = tuple[HTTPStatus, str, bytes]  # status, content type, body


class DashboardError(BerthaError):
    """A page that cannot be shown; the text says the way out."""


class Dashboard:
    """The pages of one search, as a WSGI application. Raises JournalError where there is none."""

    def __init__(self, run: Path) -> None:
        self._run = run.resolve()
        self._storage = reader.storage(run)
        reader.read(run, self._storage)
        self._trials: WSGIApplication = optuna_dashboard.wsgi(self._storage)
        self._board: WSGIApplication | None = None
        self._busy = threading.Lock()

    def __call__(self, environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        """Answer a request."""
        path = environ["PATH_INFO"]
        if re.sub(r":\d+$", "", environ.get("HTTP_HOST", "")) not in LOCAL:
            # Else a page from elsewhere could have its own name point here, and read.
            return _sent(start, _refusal(HTTPStatus.FORBIDDEN, "asked for by another name"))
        if path == BOARD or path.startswith(f"{BOARD}/"):
            return self._tensorboard()(environ, start)
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            told = "a search is changed by itself alone; this page only shows it"
            return _sent(start, _refusal(HTTPStatus.METHOD_NOT_ALLOWED, told))
        if path == "/":
            return _sent(start, (HTTPStatus.OK, "text/html; charset=utf-8", PAGE.read_bytes()))
        if path == "/search/status":
            return _sent(start, self._status())
        if path == "/search/heat":
            return _sent(start, self._heat())
        return self._trials(environ, start)

    def _status(self) -> Reply:
        snapshot = reader.read(self._run, self._storage)
        told = {
            "run": self._run.name,
            "version": (self._run / reader.JOURNAL).stat().st_size,
            "status": status(snapshot),
        }
        return HTTPStatus.OK, "application/json", json.dumps(told).encode()

    def _heat(self) -> Reply:
        with self._busy:  # a machine that trains has little time to draw
            drawn = figures.heat(reader.read(self._run, self._storage))
        told = "<p>Nothing to show yet: learning rate and batch size are both searched, and one "
        told += "trial has been evaluated, where there is a map.</p>"
        return HTTPStatus.OK, "text/html; charset=utf-8", (drawn or told).encode()

    def _tensorboard(self) -> WSGIApplication:
        """TensorBoard, once somebody asks for it."""
        with self._busy:
            if self._board is None:
                from tuning.results.tensorboard import mounted  # seconds, of who may never look

                self._board = mounted(self._run / "trials", BOARD)
            return self._board


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Requests are nobody's business."""


def main(arguments: list[str]) -> int:
    """The command `dashboard`: serve until it is interrupted. Raises BerthaError."""
    parser = argparse.ArgumentParser(prog="python -m tuning dashboard", description="a live page")
    parser.add_argument("run", help="the directory of the search")
    parser.add_argument("--port", type=int, default=8080, help="to listen at, 0 for any (8080)")
    parser.add_argument("--no-browser", action="store_true", help="open none")
    options = parser.parse_args(arguments)
    if "://" in options.run:
        raise DashboardError(
            f"{options.run}: the page reads a directory; `aws s3 sync {options.run} DIR`, as often "
            "as you like, makes one to look at"
        )
    with listening(Path(options.run), options.port) as server:
        url = f"http://{HOST}:{server.server_port}/"
        print(f"dashboard: {url}  (Ctrl-C ends it; the search goes on)", flush=True)
        if not options.no_browser:
            webbrowser.open(url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
    return 0


def listening(run: Path, port: int) -> WSGIServer:
    """A server of the pages of `run`, to be told to serve. Raises BerthaError."""
    pages = Dashboard(run)
    try:
        return make_server(HOST, port, pages, _Server, _Silent)
    except (OSError, OverflowError) as error:
        raise DashboardError(f"--port {port}: {error}; name another, or 0 for any") from None


def _refusal(what: HTTPStatus, why: str) -> Reply:
    return what, "application/json", json.dumps({"reason": why}).encode()


def _sent(start: StartResponse, reply: Reply) -> Iterable[bytes]:
    what, kind, body = reply
    headers = [("Content-Type", kind), ("Content-Length", str(len(body)))]
    start(f"{what.value} {what.phrase}", [*headers, ("Cache-Control", "no-store")])
    return [body]
