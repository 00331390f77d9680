"""A server as a tree of processes: started, waited for, measured and ended.

Every process of a tree is found by a variable that it inherited, so those that detached count too:
proxies, actors, workers. Only processes with that mark are ever ended, by their own ids. Knows no
framework.
"""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

MARK = "BERTHA_BENCHMARK"
START_SECONDS = 120.0
END_SECONDS = 25.0
LOAD = Path(__file__).parent / "load.py"

_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class DidNotStart(Exception):
    """A server that ended, or answered nothing in time; the text has what it said last."""


class Server:
    """A running command that answers HTTP on a port of 127.0.0.1."""

    def __init__(
        self, command: Sequence[str], port: int, environment: Mapping[str, str], log: Path
    ) -> None:
        self.port, self._log = port, log
        self._mark = uuid.uuid4().hex
        self._output = log.open("wb")
        self._process = subprocess.Popen(
            list(command),
            env={**os.environ, **environment, MARK: self._mark},
            stdout=self._output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            cwd=log.parent,
        )

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def wait(self, path: str, body: str) -> None:
        """Return when one request is answered with 200. Raises DidNotStart."""
        give_up = time.monotonic() + START_SECONDS
        while True:
            if self._process.poll() is not None:
                raise DidNotStart(f"ended with status {self._process.returncode}: {self._said()}")
            status = ask(self.port, path, body)
            if status == 200:
                return
            if time.monotonic() > give_up:
                raise DidNotStart(f"no answer (last status {status}): {self._said()}")
            time.sleep(0.25)

    def processes(self) -> list[psutil.Process]:
        """Every process that belongs to the server."""
        found = []
        for each in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if each.environ().get(MARK) == self._mark:
                    found.append(each)
        return found

    def end(self) -> None:
        """Ask it to end, then end what is left."""
        mine = self.processes()
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(END_SECONDS)
        for each in {*mine, *self.processes()}:
            with contextlib.suppress(psutil.Error):
                each.kill()
        psutil.wait_procs(mine, timeout=5)
        self._process.wait(5)
        self._output.close()

    def _said(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return " | ".join(lines[-6:])[-800:]


class Usage:
    """CPU seconds of processes since this was made."""

    def __init__(self, processes: Sequence[psutil.Process]) -> None:
        self._processes = processes
        self._before = {each.pid: _cpu(each) for each in processes}

    def seconds(self) -> float:
        """CPU seconds of all of them; of those that ended meanwhile, none."""
        return sum(
            max(0.0, _cpu(each) - self._before[each.pid])
            for each in self._processes
            if each.is_running()
        )


def megabytes(processes: Sequence[psutil.Process]) -> float:
    """Memory of processes, what they share counted in equal parts (PSS)."""
    total = 0
    for each in processes:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{each.pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
    return total / 1024


def _cpu(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


def ask(port: int, path: str, body: str, timeout: float = 10.0) -> int:
    """The status of one POST; 0 where nothing answered."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", body.encode(), {"Content-Type": "application/json"}
    )
    try:
        with _direct.open(request, timeout=timeout) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def begin_load(port: int, path: str, bodies: Path, **options: Any) -> "subprocess.Popen[str]":
    """Start the load generator. options: its own, as concurrency=32 or by_second=True."""
    command = [sys.executable, str(LOAD), "--port", str(port), "--path", path]
    command += ["--bodies", str(bodies)]
    for name, value in options.items():
        if value is not None and value is not False:
            command.append(f"--{name.replace('_', '-')}")
            command += [] if value is True else [str(value)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def finish_load(process: "subprocess.Popen[str]") -> dict[str, Any]:
    """What the load generator reported."""
    output, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the load generator ended with status {process.returncode}")
    found: dict[str, Any] = json.loads(output)
    return found


def free_port() -> int:
    """A port of 127.0.0.1 that nobody has, nor the two after it."""
    while True:
        port = random.randrange(20000, 30000)
        try:
            for number in range(port, port + 3):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", number))
        except OSError:
            continue
        return port


def end_in_order() -> None:
    """Let SIGTERM end this process as Ctrl-C does, once, so that servers are ended on the way."""

    def end(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # `timeout` sends it twice
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
