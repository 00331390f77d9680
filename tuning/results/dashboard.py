"""One live page for a search, while it runs and after: `bertha tune dashboard RUN`.

    /             money and time spent and the best trial so far, above one of
    /dashboard    optuna-dashboard over the journal: trials, learning curves, parallel coordinates,
                  importance, contours
    /search/heat  learning rate x batch size
    /report       the report, once the search has ended
    /tensorboard  TensorBoard over all trials, HParams first

It listens on loopback alone and changes nothing: the search may run, end and resume meanwhile.
Nothing is loaded from the network. On a cluster it is reached through a forwarded port, as by
`ray dashboard CLUSTER.yaml --port 8080 --remote-port 8080`.
"""

import argparse
import json
import re
import threading
import time
import webbrowser
from collections import Counter
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from pathlib import Path
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import optuna_dashboard

from cluster.errors import BerthaError
from trainers.tracking.progress import format_duration
from tuning.algorithms import pbt
from tuning.algorithms.trial import Trial, rank_completed, without_repeats
from tuning.results import figures, report
from tuning.space.space import format_point
from tuning.store import reader
from tuning.store.budget import parse_budget
from tuning.store.reader import RESULT, SearchSnapshot

HOST = "127.0.0.1"
LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")  # of a browser here, or behind a forwarded port
STATIC = Path(__file__).parent / "static"
FILES = {"/": ("index.html", "text/html"), "/theme.css": ("theme.css", "text/css")}
TENSORBOARD = "/tensorboard"

# A file of the run, and perhaps not written by us: it may hold figures, and may do nothing.
REPORT_HEADERS = (("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'"),)

Reply = tuple[HTTPStatus, str, bytes]  # status, content type, body


class DashboardError(BerthaError):
    """A page that cannot be shown; the text says the way out."""


class Dashboard:
    """The pages of one search, as a WSGI application. Raises JournalError if there is none."""

    def __init__(self, run: Path) -> None:
        self._run = run.resolve()
        self._storage = reader.open_readonly(run)
        reader.read_snapshot(run, self._storage)
        self._optuna_app: WSGIApplication = optuna_dashboard.wsgi(self._storage)
        self._tensorboard_app: WSGIApplication | None = None
        self._busy = threading.Lock()

    def __call__(self, environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        """Answer a request."""
        path = environ["PATH_INFO"]
        if re.sub(r":\d+$", "", environ.get("HTTP_HOST", "")) not in LOCAL_NAMES:
            # DNS rebinding: a page from elsewhere could have its own name resolve here, and read.
            return _send(start, _error_reply(HTTPStatus.FORBIDDEN, "asked for by another name"))
        if path == TENSORBOARD or path.startswith(f"{TENSORBOARD}/"):
            return self._load_tensorboard()(environ, start)
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            reason = "a search is changed by itself alone; this page only shows it"
            return _send(start, _error_reply(HTTPStatus.METHOD_NOT_ALLOWED, reason))
        if path in FILES:
            name, kind = FILES[path]
            content = (STATIC / name).read_bytes()
            return _send(start, (HTTPStatus.OK, f"{kind}; charset=utf-8", content))
        if path == "/report":
            return _send(start, self._report_reply(), REPORT_HEADERS)
        if path == "/search/status":
            return _send(start, self._status_reply())
        if path == "/search/heat":
            return _send(start, self._heat_map_reply())
        return self._optuna_app(environ, start)

    def _status_reply(self) -> Reply:
        status = {
            "run": self._run.name,
            "version": (self._run / reader.JOURNAL).stat().st_size,
            "report": (self._run / report.HTML).is_file(),
            "status": describe_status(reader.read_snapshot(self._run, self._storage)),
        }
        return HTTPStatus.OK, "application/json", json.dumps(status).encode()

    def _report_reply(self) -> Reply:
        try:
            content = (self._run / report.HTML).read_bytes()
        except FileNotFoundError:
            reason = f"no {report.HTML} yet: it is written when the search ends"
            return _error_reply(HTTPStatus.NOT_FOUND, reason)
        return HTTPStatus.OK, "text/html; charset=utf-8", content

    def _heat_map_reply(self) -> Reply:
        with self._busy:  # one at a time: a machine that trains has little time to draw
            figure = figures.plot_heat_map(reader.read_snapshot(self._run, self._storage))
        text = figure or (
            "<p>Nothing to show yet: learning rate and batch size are both searched, and one "
            "trial has been evaluated, where there is a map.</p>"
        )
        if figure:
            text += f"<p>{report.HEAT_MAP_TEXT}</p>"
        return HTTPStatus.OK, "text/html; charset=utf-8", text.encode()

    def _load_tensorboard(self) -> WSGIApplication:
        """Return TensorBoard over the runs of all trials, loaded at the first request."""
        with self._busy:
            if self._tensorboard_app is None:
                self._tensorboard_app = _make_tensorboard_app(self._run / "trials", TENSORBOARD)
            return self._tensorboard_app


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


def run_dashboard(run: str, port: int, open_browser: bool) -> int:
    """Show a search until interrupted; port 0 takes any. Raises BerthaError."""
    if "://" in run:
        raise DashboardError(
            f"{run}: the page reads a directory; `aws s3 sync {run} DIR`, as often "
            "as you like, makes one to look at"
        )
    with make_dashboard_server(Path(run), port) as server:
        url = f"http://{HOST}:{server.server_port}/"
        print(f"dashboard: {url}  (Ctrl-C ends it; the search goes on)", flush=True)
        if open_browser:
            webbrowser.open(url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
    return 0


def make_dashboard_server(run: Path, port: int) -> WSGIServer:
    """Return a server of the pages of `run`, bound to `port`. Raises BerthaError."""
    dashboard = Dashboard(run)
    try:
        return make_server(HOST, port, dashboard, _Server, _QuietHandler)
    except (OSError, OverflowError) as error:
        raise DashboardError(f"--port {port}: {error}; name another, or 0 for any") from None


def describe_status(snapshot: SearchSnapshot, now: float | None = None) -> dict[str, str]:
    """Return a line for each thing a person wants to know, by its title.

    now: seconds since 1970.
    """
    config, own = snapshot.config, without_repeats(snapshot.trials)
    size = config.population_size
    planned = 1 + size * pbt.ROUNDS if size else config.trials
    whole_runs = sum(trial.tokens for trial in snapshot.trials) / snapshot.total_tokens
    lines = {
        "state": _describe_state(snapshot, time.time() if now is None else now),
        "trials": f"{len(own)} of {planned}: {_count_states(own)}",
        "spent": str(snapshot.spent),
        "work": f"as many tokens as {whole_runs:.1f} whole runs",
    }
    repeats = snapshot.trials[len(own) :]
    if repeats:
        lines["other seeds"] = f"{len(repeats)} runs: {_count_states(repeats)}"
    if config.budget is not None:
        left = max(0.0, parse_budget(config.budget, snapshot.cluster) - snapshot.held_seconds)
        lines["budget"] = (
            f"{config.budget}; {format_duration(left)} of holding the cluster are left"
        )
    completed = rank_completed(snapshot.trials)
    if completed:
        best = completed[0]
        value = f"{snapshot.metric} {snapshot.to_metric(best.score or 0.0):.4f}"
        settings = format_point(best.settings)
        lines["best so far"] = f"trial {best.number}, {value} on the validation rows: {settings}"
    if snapshot.next_improvement is not None:
        lines["an even chance of better"] = f"expected to cost {snapshot.next_improvement} more"
    return lines


def _describe_state(snapshot: SearchSnapshot, now: float) -> str:
    if (snapshot.run / RESULT).is_file():
        return f"ended; see {snapshot.run.resolve() / 'report.html'}"
    if not snapshot.last_decision:
        return "begun"
    return f"newest decision {format_duration(max(0.0, now - snapshot.last_decision))} ago"


def _count_states(trials: Sequence[Trial]) -> str:
    counts = Counter(trial.state for trial in trials)
    return ", ".join(f"{count} {state}" for state, count in counts.items())


def _make_tensorboard_app(logdir: Path, prefix: str) -> WSGIApplication:
    """Return TensorBoard over `logdir` as a WSGI application below the path `prefix`."""
    from tensorboard import program  # takes seconds, and may never be asked for

    apps: list[WSGIApplication] = []

    class CapturingServer(program.TensorBoardServer):  # type: ignore[misc]
        """Serves nothing: TensorBoard hands its application to a server, and we want it alone."""

        def __init__(self, wsgi_app: WSGIApplication, flags: argparse.Namespace) -> None:
            apps.append(wsgi_app)

        def serve_forever(self) -> None:
            """Return at once."""

        def get_url(self) -> str:
            """Return the path it is served below."""
            return prefix

    board = program.TensorBoard(server_class=CapturingServer)
    # Its faster loader is a process of its own, which would outlive a dashboard that is killed.
    board.configure(logdir=str(logdir), path_prefix=prefix, load_fast="false")
    board.launch()
    return apps[0]


def _error_reply(status: HTTPStatus, reason: str) -> Reply:
    return status, "application/json", json.dumps({"reason": reason}).encode()


def _send(
    start: StartResponse, reply: Reply, more: Sequence[tuple[str, str]] = ()
) -> Iterable[bytes]:
    status, content_type, body = reply
    headers = [("Content-Type", content_type), ("Content-Length", str(len(body)))]
    start(f"{status.value} {status.phrase}", [*headers, ("Cache-Control", "no-store"), *more])
    return [body]
