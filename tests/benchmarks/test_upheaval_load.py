"""What faults need of the load generator: patience with an end, an even stream, an early end."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.test_serve import LOAD, generate_load, serve_answers
from tests.support.paths import ROOT

sys.path.append(str(ROOT / "benchmarks"))

from load import even_arrivals
from servers import find_free_port

pytestmark = pytest.mark.multiprocess


@pytest.fixture
def bodies(tmp_path: Path) -> Path:
    path = tmp_path / "bodies.json"
    path.write_text(json.dumps(['{"text": "a film"}']))
    return path


def test_arrivals_can_be_even() -> None:
    assert even_arrivals(20, 0.2) == [0.0, 0.05, 0.1, 0.15]
    assert len(even_arrivals(20, 60)) == 1200


def test_a_request_that_is_not_answered_in_time_fails_and_the_others_do_not(bodies: Path) -> None:
    stalled = lambda n: (200, 60.0 if n == 3 else 0.0)  # noqa: E731
    with serve_answers(stalled) as port:
        even = ("--rate", "20", "--even", "--concurrency", "2")
        report = generate_load(port, bodies, *even, "--timeout", "3")
    assert report["failures"] == {"no answer in time": 1}
    assert report["statuses"] == {"200": 11} and report["sent"] == 12
    assert report["outage"]["seconds_out"] == 0.0


def test_every_request_to_nobody_is_a_failure_of_its_own(bodies: Path) -> None:
    report = generate_load(find_free_port(), bodies, "--rate", "20", "--even")
    assert report["failures"] == {"no connection: ConnectionRefusedError": 12}
    assert report["outage"] == {
        "first_failure": 0.0,
        "seconds_out": 0.55,
        "longest_gap_seconds": 0.6,
    }


def test_sigterm_ends_a_load_early_and_it_reports(bodies: Path, tmp_path: Path) -> None:
    log = tmp_path / "outcomes"
    with serve_answers(lambda n: (503 if n == 2 else 200, 0.0)) as port:
        command = [sys.executable, str(LOAD), "--port", str(port), "--bodies", str(bodies)]
        command += ["--rate", "50", "--even", "--seconds", "600", "--outcomes", str(log)]
        started = time.time()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            give_up = time.monotonic() + 60
            while not _rows(log)[4:]:
                assert time.monotonic() < give_up and process.poll() is None
                time.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            output, _ = process.communicate(timeout=60)
    report, rows = json.loads(output), _rows(log)
    assert process.returncode == 0
    assert report["sent"] == len(rows) == sum(report["statuses"].values())
    assert 0 < report["seconds"] < 60
    assert [status for _, status, _, _ in rows].count(503) == 1
    assert all(started <= due <= time.time() for due, _, _, _ in rows)
    spread = rows[-1][0] - rows[0][0]  # of when they were due, whatever the machine does
    assert spread == pytest.approx(0.02 * (len(rows) - 1), abs=0.005)


def _rows(log: Path) -> list[list[Any]]:
    """The complete lines of the log of outcomes, in the order in which they were due."""
    lines = log.read_text().split("\n")[:-1] if log.exists() else []
    return sorted(json.loads(line) for line in lines)
