"""The load generator against small servers, and the arithmetic of the serving benchmark."""

import asyncio
import itertools
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.paths import ROOT

sys.path.append(str(ROOT / "benchmarks"))

from bundles import copy_with_nan_bias, copy_without_engines
from load import poisson_arrivals
from outcomes import Outcome, Tally, latency_quantiles, summarize_load
from report import count_failed, format_table
from servers import CpuUsage, Server, memory_megabytes

from serving.engine.engine import Engine
from tests.support.tiny_bundle import write_tiny_bundle

LOAD = ROOT / "benchmarks" / "load.py"
Answer = Callable[[int], tuple[int, float]]  # of the nth request: its status, after how long

_SERVER = """\
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"ok")
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@contextmanager
def serve_answers(answer: Answer) -> Iterator[int]:
    """A server that answers as told; its port. A status of 0 hangs up."""
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event, int]] = Future()
    counter = itertools.count()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().partition(b"content-length:")[2].split()[0])
                await reader.readexactly(length)
                status, seconds = answer(next(counter))
                await asyncio.sleep(seconds)
                if status == 0:
                    break
                writer.write(b"HTTP/1.1 %d x\r\ncontent-length: 2\r\n\r\nok" % status)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def run() -> None:
        ended = asyncio.Event()
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            started.set_result((asyncio.get_running_loop(), ended, port))
            await ended.wait()

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    loop, ended, port = started.result(10)
    yield port
    loop.call_soon_threadsafe(ended.set)
    thread.join(10)


@pytest.fixture
def bodies(tmp_path: Path) -> Path:
    path = tmp_path / "bodies.json"
    path.write_text(json.dumps(['{"text": "a film"}', '{"text": "another"}']))
    return path


def generate_load(port: int, bodies: Path, *more: str) -> dict[str, Any]:
    """What the load generator reports."""
    command = [sys.executable, str(LOAD), "--port", str(port)]
    command += ["--bodies", str(bodies), "--seconds", "0.6", *more]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def test_a_closed_loop_asks_again_when_it_is_answered(bodies: Path) -> None:
    with serve_answers(lambda n: (200, 0.02)) as port:
        report = generate_load(port, bodies, "--concurrency", "4")
    assert set(report["statuses"]) == {"200"}
    assert not report["failures"]
    assert report["statuses"]["200"] == report["sent"]
    assert 20 < report["requests_per_second"] <= 4 / 0.02
    assert report["milliseconds"]["p50"] >= 20
    assert report["client_cpu_seconds"] > 0


def test_refusals_are_counted_and_timed_apart(bodies: Path) -> None:
    with serve_answers(lambda n: (200, 0.05) if n % 2 else (429, 0.0)) as port:
        report = generate_load(port, bodies, "--concurrency", "2")
    assert set(report["statuses"]) == {"200", "429"}
    assert report["milliseconds"]["p50"] >= 50 > report["refused_milliseconds"]["p50"]


def test_a_server_that_hangs_up_is_a_failure_and_is_asked_again(bodies: Path) -> None:
    with serve_answers(lambda n: (0 if n == 3 else 200, 0.01)) as port:
        report = generate_load(port, bodies, "--concurrency", "1")
    assert report["failures"] == {"closed without an answer": 1}
    assert report["statuses"]["200"] > 5


def test_an_open_loop_counts_the_wait_for_a_stalled_server(bodies: Path) -> None:
    stalled = lambda n: (200, 0.3 if n < 512 else 0.0)  # noqa: E731
    with serve_answers(stalled) as port:
        report = generate_load(port, bodies, "--rate", "60", "--by-second", "--seed", "5")
    assert report["sent"] == len(poisson_arrivals(60, 0.6, 5))
    assert report["milliseconds"]["p50"] >= 300
    assert sum(each["answered"] for each in report["by_second"]) == report["sent"]


def test_arrivals_are_a_poisson_process_held_fixed_by_seed() -> None:
    moments = poisson_arrivals(100, 50, seed=1)
    assert moments == poisson_arrivals(100, 50, seed=1) != poisson_arrivals(100, 50, seed=2)
    assert len(moments) == pytest.approx(5000, rel=0.05)
    gaps = np.diff(moments)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.1)


def test_quantiles_and_throughput() -> None:
    assert latency_quantiles([]) == {}
    assert latency_quantiles([i / 1000 for i in range(101)])["p95"] == 95
    tally = Tally([Outcome(0, 0, 0.5, 200), Outcome(0, 0, 1.5, 200), Outcome(0, 0, 0.1, 500)])
    report = summarize_load(tally, 1.0, by_second=False)
    assert report["requests_per_second"] == 1  # what came too late is no throughput
    assert report["statuses"] == {"200": 2, "500": 1}


def test_the_table_compares_rounds_in_pairs() -> None:
    def record(row: str, number: int, rate: float) -> dict[str, Any]:
        took = {"p50": 1.0, "p99": 2.0}
        counts = {"statuses": {"200": 10, "429": 1}, "failures": {"never answered": 2}}
        cost = {"client_cpu_share": 0.1, "server_cpu_seconds_a_request": 0.004}
        case = {"texts": "short", "load": "closed 8", "half_cpu": False}
        what = {"row": row, "round": number, "requests_per_second": rate, "milliseconds": took}
        return what | counts | cost | case

    ceiling = {"row": "ceiling-fp32", "round": 0, "texts": "short", "load": "", "half_cpu": False}
    ceiling |= {"requests_per_second": 120.0, "engine": "torch fp32"}
    records = [record("bertha-fp32", 0, 100), record("mosec", 0, 50), ceiling]
    text = format_table(
        [*records, record("bertha-fp32", 1, 90), record("mosec", 1, 30)], {"x": "no java"}
    )
    assert "| mosec | 40.0 | 1.0 | 2.0 | 6 | 10% | 4.00 |  | 2.50 | 42% |" in text
    assert "ceiling-fp32 (torch fp32), short texts: 120.0 texts/s" in text
    assert "x: not measured: no java" in text
    assert count_failed(records[0]) == 3


def test_a_servers_processes_are_found_measured_and_ended(tmp_path: Path, bodies: Path) -> None:
    with serve_answers(lambda n: (200, 0.0)) as port:
        pass  # a port that was free a moment ago
    command = [sys.executable, "-c", _SERVER, str(port)]
    with Server(command, port, {}, tmp_path / "log") as server:
        server.wait_until_ready("/", "{}")
        (process,) = server.processes()
        usage = CpuUsage([process])
        generate_load(port, bodies, "--concurrency", "1")
        assert usage.seconds() > 0
        assert memory_megabytes([process]) > 1
    assert not process.is_running()


def test_the_bundle_that_is_served_reads_longer_texts_and_the_broken_one_none(
    tmp_path: Path, tiny_bert: Path
) -> None:
    source = write_tiny_bundle(tmp_path / "bundle", tiny_bert)
    longer = Engine.load(copy_without_engines(source, tmp_path / "plain", max_length=24))
    samples, _ = longer.encode(["a film " * 30])
    assert samples.lengths.tolist() == [24]
    with pytest.raises(FloatingPointError):
        Engine.load(copy_with_nan_bias(source, tmp_path / "broken")).predict(["a film"])
