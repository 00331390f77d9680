"""What faults are made of: a broken S3, a clock that moves, a small disk, a server that ends."""

import os
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import recovery
from broken_s3 import BrokenS3
from places import NotPossible, Place, open_movable_clock, open_small_disk
from servers import Server, find_free_port
from storage_faults import fill_disk
from upheavals import EndpointUnderTest

from serving.registry.registry import Registry
from tests.support.servers import serve_app
from tests.support.tiny_bundle import write_linear_bundle

pytestmark = pytest.mark.multiprocess

# Answers POSTs; GET /exit ends it with status 3, and leaves a child behind.
_SERVER = """\
import http.server, os, subprocess, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"ok")
    def do_GET(self):
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600) # raylet/raylet"])
        print("the raylet is gone", flush=True)
        os._exit(3)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def s3() -> Iterator[BrokenS3]:
    """A proxy before a server that answers every request with its method, path and body."""
    with serve_app(_echo) as address:
        host, _, port = address.partition(":")
        with BrokenS3((host, int(port))) as proxy:
            thread = threading.Thread(target=proxy.serve_forever, args=(0.01,))
            thread.start()
            yield proxy
            proxy.shutdown()
            thread.join()


async def _echo(scope: dict[str, object], receive: object, send: object) -> None:
    assert callable(receive) and callable(send)
    body = (await receive())["body"]
    head = {"type": "http.response.start", "status": 201, "headers": [(b"etag", b"x")]}
    await send(head)
    text = f"{scope['method']} {scope['path']} ".encode() + body
    await send({"type": "http.response.body", "body": text})


def _put(s3: BrokenS3, timeout: float = 20.0) -> tuple[int, str]:
    url = f"{s3.environment['AWS_ENDPOINT_URL']}/models/a"
    request = urllib.request.Request(url, b"data", method="PUT")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=timeout) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_an_s3_that_is_sound_forwards(s3: BrokenS3) -> None:
    assert _put(s3) == (201, "PUT /models/a data")
    assert s3.num_broken == 0


@pytest.mark.parametrize(("status", "code"), [(503, "SlowDown"), (429, "TooManyRequests")])
def test_an_s3_refuses_until_it_is_mended(s3: BrokenS3, status: int, code: str) -> None:
    s3.breakage = str(status)
    refused, text = _put(s3)
    assert refused == status and f"<Code>{code}</Code>" in text
    s3.breakage = ""
    assert _put(s3)[0] == 201
    assert s3.num_broken == 1


def test_an_s3_that_is_silent_answers_nothing_until_it_is_mended(s3: BrokenS3) -> None:
    s3.breakage = "silent"
    with pytest.raises(TimeoutError):
        _put(s3, timeout=0.3)
    s3.breakage = ""
    assert _put(s3)[0] == 201


_READ_CLOCKS = """
import sys, threading, time
for line in sys.stdin:
    began = time.monotonic()
    woken = threading.Lock().acquire(timeout=5) and threading.Event().wait(0.05)
    print(round(time.time()), woken, time.monotonic() - began < 60, flush=True)
"""


def test_a_clock_is_moved_under_a_process_that_runs(tmp_path: Path) -> None:
    place_root = tmp_path / "place"
    place_root.mkdir()
    try:
        with open_movable_clock(place_root) as place:
            assert _wall_clock_jumps(place) == [0, 3600, -3600]
    except NotPossible as reason:
        pytest.skip(str(reason))


def _wall_clock_jumps(place: Place) -> list[int]:
    """By how many seconds a process sees its clock moved, waits with a timeout included."""
    jumps = []
    with subprocess.Popen(
        [sys.executable, "-c", _READ_CLOCKS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **place.environment},
    ) as process:
        assert process.stdin and process.stdout
        for seconds in (0, 3600, -3600):
            place.move_clock(seconds)
            process.stdin.write("\n")
            process.stdin.flush()
            wall, woken, soon = process.stdout.readline().split()
            assert (woken, soon) == ("False", "True")
            jumps.append(seconds if abs(int(wall) - _now() - seconds) < 60 else int(wall))
        process.stdin.close()
    return jumps


def _now() -> float:
    return float(subprocess.check_output(["date", "+%s"]))


def test_a_full_disk_refuses_a_change_and_takes_it_when_it_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "place"
    root.mkdir()
    monkeypatch.setattr("storage_faults.FAULT_SECONDS", 0.0)
    monkeypatch.setattr("places.DISK_MIB", 8)
    followed: list[bool] = []

    def go_on(endpoint: EndpointUnderTest) -> str:
        endpoint.registry.set_alias("reviews", "best", "1")
        followed.append(True)
        return "went on"

    monkeypatch.setattr("storage_faults._go_on", go_on)
    try:
        with open_small_disk(root) as place:
            registry = Registry.open(place.registry)
            registry.register(write_linear_bundle(tmp_path / "bundle", [2.0, -3.0]), "reviews")
            happened = fill_disk(_endpoint(None, registry, tmp_path), place)
            assert followed == [True]
            assert registry.read_state("reviews").aliases == {"best": "1"}
    except NotPossible as reason:
        pytest.skip(str(reason))
    assert happened.startswith('full: a change was refused ("') and happened.endswith("went on")
    assert "No space left on device" in happened
    assert not os.path.ismount(root)


def _endpoint(server: Server | None, registry: Registry, tmp_path: Path) -> EndpointUnderTest:
    return EndpointUnderTest(server, registry, tmp_path, tmp_path, 1.0, 1.0)  # type: ignore[arg-type]


def test_an_endpoint_that_exits_is_restarted_and_what_it_left_is_named_and_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "LEAVE_SECONDS", 0.0)
    port = find_free_port()
    with Server([sys.executable, "-c", _SERVER, str(port)], port, {}, tmp_path / "log") as server:
        server.wait_until_ready("/", "{}")
        endpoint = _endpoint(server, Registry.open(str(tmp_path / "registry")), tmp_path)
        assert server.exit_status() is None
        with pytest.raises(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/exit", timeout=30)
        (orphan,) = [each for each in server.processes() if each.pid != server.pid]
        happened = recovery.await_exit(endpoint)
        assert happened.startswith("exited with status 3 after ")
        assert 'the raylet is gone"), left the raylet; restarted, answered ' in happened
        assert not orphan.is_running()
        assert [each.pid for each in server.processes()] == [server.pid]
    assert server.exit_status() is not None


def test_an_endpoint_that_neither_exits_nor_answers_is_said_to_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "MAX_WAIT_SECONDS", 0.1)
    port = find_free_port()
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    with Server(command, port, {}, tmp_path / "log") as server:
        endpoint = _endpoint(server, Registry.open(str(tmp_path / "registry")), tmp_path)
        happened = recovery.await_exit(endpoint)
    assert happened.startswith("did not exit within 0 s: the process runs on with ")
    assert happened.endswith("does not answer")
