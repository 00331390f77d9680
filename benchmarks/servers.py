"""A server as a tree of processes: start it, wait for it, measure it and stop it.

The processes of a tree are found by an environment variable that they inherit, so detached ones
(proxies, actors, workers) count too. Only processes with that mark are stopped, by their ids.
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


class ServerStartError(Exception):
    """A server exited or did not answer in time; the message has the end of its log."""


class Server:
    """A running command that answers HTTP on a port of 127.0.0.1."""

    def __init__(
        self, command: Sequence[str], port: int, environment: Mapping[str, str], log: Path
    ) -> None:
        self.port, self._log = port, log
        self._command, self._environment = list(command), dict(environment)
        self._mark = uuid.uuid4().hex
        self._output = log.open("wb")
        self._process = self._start()

    @property
    def pid(self) -> int:
        """The process id of the command itself."""
        return self._process.pid

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait_until_ready(self, path: str, body: str) -> None:
        """Wait until a request is answered with 200. Raises ServerStartError."""
        give_up = time.monotonic() + START_SECONDS
        while True:
            if self._process.poll() is not None:
                raise ServerStartError(
                    f"ended with status {self._process.returncode}: {self.last_lines()}"
                )
            status = post_body(self.port, path, body)
            if status == 200:
                return
            if time.monotonic() > give_up:
                raise ServerStartError(f"no answer (last status {status}): {self.last_lines()}")
            time.sleep(0.25)

    def exit_status(self) -> int | None:
        """Return the exit status of the command; None while it runs."""
        return self._process.poll()

    def restart(self) -> None:
        """Start a command that has exited again; what it left behind is killed, as systemd does."""
        self._kill_all()
        self._process = self._start()

    def processes(self) -> list[psutil.Process]:
        """Return all processes of the server, detached ones too."""
        processes = []
        for each in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if each.environ().get(MARK) == self._mark:
                    processes.append(each)
        return processes

    def stop(self) -> None:
        """Send SIGTERM, wait, then kill the processes that are left."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(END_SECONDS)
        self._kill_all()
        self._process.wait(5)
        self._output.close()

    def last_lines(self, number: int = 6) -> str:
        """Return the last lines of the log, joined."""
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return " | ".join(lines[-number:])[-800:]

    def _start(self) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            self._command,
            env={**os.environ, **self._environment, MARK: self._mark},
            stdout=self._output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            cwd=self._log.parent,
        )

    def _kill_all(self) -> None:
        """Kill what is left of the tree, and what it starts meanwhile."""
        for _ in range(10):
            processes = self.processes()
            for each in processes:
                with contextlib.suppress(psutil.Error):
                    each.kill()
            psutil.wait_procs(processes, timeout=5)
            if not processes:
                return


class CpuUsage:
    """CPU seconds of processes since construction."""

    def __init__(self, processes: Sequence[psutil.Process]) -> None:
        self._processes = processes
        self._before = {each.pid: _cpu_seconds(each) for each in processes}

    def seconds(self) -> float:
        """Return the CPU seconds of all processes; those that exited count 0."""
        return sum(
            max(0.0, _cpu_seconds(each) - self._before[each.pid])
            for each in self._processes
            if each.is_running()
        )


def memory_megabytes(processes: Sequence[psutil.Process]) -> float:
    """Return the proportional set size (PSS) of processes, in MiB."""
    total = 0
    for each in processes:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{each.pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
    return total / 1024


def _cpu_seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


def post_body(port: int, path: str, body: str, timeout: float = 10.0) -> int:
    """Send one POST and return its status; 0 without a response."""
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


def start_load(port: int, path: str, bodies: Path, **options: Any) -> "subprocess.Popen[str]":
    """Start the load generator. options: its flags, as concurrency=32 or by_second=True."""
    command = [sys.executable, str(LOAD), "--port", str(port), "--path", path]
    command += ["--bodies", str(bodies)]
    for name, value in options.items():
        if value is not None and value is not False:
            command.append(f"--{name.replace('_', '-')}")
            command += [] if value is True else [str(value)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def finish_load(process: "subprocess.Popen[str]") -> dict[str, Any]:
    """Wait for the load generator and return its report."""
    output, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the load generator ended with status {process.returncode}")
    report: dict[str, Any] = json.loads(output)
    return report


def find_free_port() -> int:
    """Return a port of 127.0.0.1 that is free, as are the two after it."""
    while True:
        port = random.randrange(20000, 30000)
        try:
            for number in range(port, port + 3):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", number))
        except OSError:
            continue
        return port


def exit_on_sigterm() -> None:
    """Let SIGTERM raise KeyboardInterrupt, once, so that servers are stopped on the way out."""

    def end(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # `timeout` sends it twice
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
