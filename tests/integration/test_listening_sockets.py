"""Each command that starts servers, watched: other machines, and other users, reach none of them.

Real command lines over a tiny model. As long as one runs, what it and its descendants listen at is
listed again and again, so that what is open for a moment is seen too.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from tests.support.open_sockets import OpenSocket, list_open_sockets
from tests.support.paths import ROOT

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/net"),
]

SECONDS = 600
EVERY = 0.25
# What Ray's servers would tell whoever asks: exporters, and the dashboard with its agents.
DATA_PATHS = ("/metrics", "/nodes?view=summary", "/api/jobs/", "/logs")
# These speak to each other, and would wait for the rest of what an HTTP client sends; and these
# are our own servers, whose answers other tests are about.
NOT_ASKED = ("RayTrainWorker", "ServeReplica", "haproxy")
ONE = ("--trials", "1", "--seeds", "1")
SETTINGS = {
    "batch": {"global_size": 16, "max_length": 32, "token_budget": 128},
    "stopping": {"epochs": 1},
    "precision": "fp32",
    "tune": {"optimizer.learning_rate": "log 1e-4..3e-2"},
}


@dataclass
class Watched:
    """A command that runs, what it was seen to listen at, and what of that answered."""

    process: subprocess.Popen[bytes]
    temporary: Path
    output: Path
    seen: set[OpenSocket] = field(default_factory=set)
    exposed: set[OpenSocket] = field(default_factory=set)
    answered: list[str] = field(default_factory=list)

    def watch(self, is_over: Callable[[], bool]) -> None:
        """Look until it has ended or is over."""
        for _ in range(int(SECONDS / EVERY)):
            self._look()
            try:
                self.process.wait(EVERY)
                return
            except subprocess.TimeoutExpired:
                if is_over():
                    return
        raise AssertionError(f"still running after {SECONDS} s")

    def commands(self) -> str:
        return "\n".join(each.command for each in self.seen)

    def _look(self) -> None:
        try:
            root = psutil.Process(self.process.pid)
            found = list_open_sockets(root, ("RAY_TMPDIR", str(self.temporary)))
        except psutil.NoSuchProcess:
            return
        self.exposed |= {each for each in found if not each.is_private}
        asked = {each.port for each in self.seen}
        for each in found:
            is_ours = any(name in each.command for name in NOT_ASKED)
            if each.kind.startswith("tcp") and each.port not in asked and not is_ours:
                self.answered += [f"{each}: {path}" for path in list_answered(each)]
                asked.add(each.port)
        self.seen |= found


def list_answered(opened: OpenSocket) -> list[str]:
    """List the paths that a server gives to one without a token; none if it speaks no HTTP."""
    host = f"[{opened.address}]" if ":" in opened.address else opened.address
    try:
        with httpx.Client(base_url=f"http://{host}:{opened.port}", trust_env=False) as client:
            return [path for path in DATA_PATHS if client.get(path).status_code == 200]
    except httpx.HTTPError:
        return []


@contextmanager
def watched(*words: str) -> Iterator[Watched]:
    """A command of ours with a directory of its own for Ray's files."""
    with (
        tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as temporary,
        tempfile.NamedTemporaryFile() as output,
    ):
        process = subprocess.Popen(
            [sys.executable, "-m", *words],
            cwd=ROOT,
            env=os.environ | {"RAY_TMPDIR": temporary},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            yield Watched(process, Path(temporary), Path(output.name))
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, corpus: Path) -> list[str]:
    """A recipe, on two workers of this machine."""
    place = tmp_path_factory.mktemp("place")
    own = {"model": {"name": str(tiny_bert)}, "data": {"source": str(corpus)}}
    (place / "recipe.yaml").write_text(yaml.safe_dump(SETTINGS | own))
    metadata = {"devices_per_node": 2, "cache": str(place / "cache")}
    cluster = yaml.safe_dump({"provider": {"type": "local"}, "metadata": metadata})
    (place / "cluster.yaml").write_text(cluster)
    return [str(place / "recipe.yaml"), "--cluster", str(place / "cluster.yaml")]


def test_training_with_workers(words: list[str], tmp_path: Path) -> None:
    with watched("trainers", *words, "--run", str(tmp_path / "run")) as command:
        command.watch(is_over=lambda: False)
        assert command.process.returncode == 0, command.output.read_text()
        assert command.exposed == set() and command.answered == []
        assert "raylet" in command.commands() and "RayTrainWorker" in command.commands()
        assert list(command.temporary.iterdir()) == []


def test_a_search_and_its_pages(words: list[str], tmp_path: Path) -> None:
    run = tmp_path / "search"
    with watched("tuning", *words, "layout.tp=2", "--run", str(run), *ONE) as command:
        command.watch(is_over=lambda: False)
        assert command.process.returncode == 0, command.output.read_text()
        assert command.exposed == set() and command.answered == []
        assert "dashboard.py" in command.commands() and "RayTrainWorker" in command.commands()
        assert list(command.temporary.iterdir()) == []
    with watched("tuning", "dashboard", str(run), "--port", "0", "--no-browser") as command:
        command.watch(is_over=lambda: "http://127.0.0.1:" in command.output.read_text())
        command.watch(is_over=lambda: True)
        assert len(command.seen) == 1 and command.exposed == set()


def test_serving(tiny_classifier: Path) -> None:
    port = free_port()
    with watched("serving", "run", str(tiny_classifier), "--port", str(port)) as command:
        command.watch(is_over=lambda: f"http://127.0.0.1:{port}/docs" in command.output.read_text())
        command.watch(is_over=lambda: True)
        command.process.send_signal(signal.SIGTERM)
        assert command.process.wait(SECONDS) == 0, command.output.read_text()
        assert command.exposed == set() and command.answered == []
        assert "haproxy" in command.commands() and "ServeReplica" in command.commands()
        assert list(command.temporary.iterdir()) == []
