"""The soak: which kills it draws, how it picks victims, and what it counts and compares."""

import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.paths import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import soak
from soak_kills import KINDS, OUT_SECONDS, RAYLET, Killer, PlannedKill, count_lost, plan_kills
from soak_loads import compare_losses, compare_trials
from soak_record import SoakRecord, is_unharmed, summarize

from cluster import spec

KIND = {each.name: each for each in KINDS}


def test_kills_are_drawn_from_the_seed_one_for_each_part_of_the_time() -> None:
    planned = plan_kills(100, 3600.0, seed=0)
    assert planned == plan_kills(100, 3600.0, seed=0) != plan_kills(100, 3600.0, seed=1)
    assert [int(each.at // 36) for each in planned] == list(range(100))
    assert all(0 <= each.pick < 1 for each in planned)
    moments = [each.at % 36 for each in planned]
    assert min(moments) < 6 and max(moments) > 30


def test_every_kind_comes_once_in_each_round_in_an_order_that_changes() -> None:
    names = [each.kind.name for each in plan_kills(100, 3600.0, seed=3)]
    rounds = [names[start : start + len(KINDS)] for start in range(0, 96, len(KINDS))]
    assert all(sorted(each) == sorted(KIND) for each in rounds)
    assert len({tuple(each) for each in rounds}) > 1
    assert set(KIND) == {
        *("replica", "front", "haproxy", "worker", "trial", "driver"),
        *("raylet", "host"),
    }


@dataclass
class FakeHost:
    """A host on paper. processes: command lines by process id."""

    name: str
    processes: dict[int, str] = field(default_factory=dict)
    is_on: bool = True

    def matching_processes(self, pattern: str) -> list[str]:
        assert self.is_on, "nobody asks a host that is off"
        return [f"{n} {line}" for n, line in self.processes.items() if re.search(pattern, line)]

    def run(self, *words: str) -> None:
        assert words[:2] == ("kill", "-KILL")
        del self.processes[int(words[2])]

    def cut_power(self) -> None:
        self.is_on = False
        self.processes.clear()


RAYLET_LINE = f"/x/{RAYLET}--raylet_socket_name=y"


def _hosts() -> tuple[FakeHost, FakeHost, FakeHost]:
    head = {1: RAYLET_LINE, 2: "ray::ServeReplica:bertha:front", 3: "/x/haproxy -C /run/x -f y -db"}
    head |= {4: "/bin/sh -c python -m trainers reviews", 5: "/v/python -m trainers reviews --run r"}
    head |= {6: "/bin/sh -c $@ & guard /x/haproxy -C /run/x -f y -db"}
    one = {7: RAYLET_LINE, 8: "ray::_RayTrainWorker__execute.get_next"}
    two = {9: RAYLET_LINE, 10: "ray::ServeReplica:bertha:replica"}
    return FakeHost("head", head), FakeHost("w1", one), FakeHost("w2", two)


def _kill(killer: Killer, name: str, pick: float = 0.0) -> dict[str, Any] | None:
    return killer.kill(PlannedKill(0.0, KIND[name], pick))


def _killer(
    hosts: tuple[FakeHost, FakeHost, FakeHost], clock: Callable[[], float] = time.monotonic
) -> tuple[Killer, list[str]]:
    booted: list[str] = []

    def power_on(host: Any) -> None:
        host.is_on = True
        booted.append(host.name)

    return Killer(hosts[0], hosts[1:], power_on, clock), booted  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "host", "pid"),
    [
        ("replica", 2, 10),
        ("front", 0, 2),
        ("haproxy", 0, 3),
        ("worker", 1, 8),
        ("driver", 0, 5),
        ("raylet", 1, 7),
    ],
)
def test_the_process_itself_is_killed_and_nothing_else(kind: str, host: int, pid: int) -> None:
    hosts = _hosts()
    before = [set(each.processes) for each in hosts]
    killer, _ = _killer(hosts)
    killed = _kill(killer, kind)
    assert killed is not None and killed["kind"] == killed["planned"] == kind
    assert killed["host"] == hosts[host].name
    gone = [was - set(each.processes) for was, each in zip(before, hosts, strict=True)]
    assert gone == [{pid} if index == host else set() for index in range(3)]


def test_what_is_not_there_is_replaced_by_the_next_kind() -> None:
    hosts = _hosts()
    killed = _kill(_killer(hosts)[0], "trial")
    assert killed is not None and (killed["planned"], killed["kind"]) == ("trial", "driver")
    empty = (FakeHost("head"), FakeHost("w1"), FakeHost("w2"))
    assert _kill(_killer(empty)[0], "trial") is None


def test_one_worker_host_is_out_at_a_time_until_ray_is_back_there() -> None:
    now = [100.0]
    hosts = _hosts()
    killer, booted = _killer(hosts, lambda: now[0])
    killed = _kill(killer, "host", pick=0.9)
    assert killed is not None and killed["host"] == "w2" and not hosts[2].is_on
    other = _kill(killer, "raylet")
    assert other is not None and other["kind"] not in ("raylet", "host")
    now[0] += OUT_SECONDS - 1
    killer.restore_hosts()
    assert booted == []
    now[0] += 1
    killer.restore_hosts()
    assert booted == ["w2"] and not killer.are_all_back()
    hosts[2].processes[20] = RAYLET_LINE
    assert killer.are_all_back()
    again = _kill(killer, "raylet", pick=0.9)
    assert again is not None and (again["kind"], again["host"]) == ("raylet", "w2")


def test_requests_are_lost_to_the_kill_before_them() -> None:
    outcomes = [[1.0, 0, 0.1, "early"], [10.0, 200, 0.1, ""], [12.0, 503, 0.1, ""]]
    outcomes += [[14.5, 0, 0.1, "closed"], [20.0, 503, 0.1, ""], [29.0, 200, 0.1, ""]]
    first, second = count_lost([10.0, 20.0], 30.0, outcomes)
    assert first == {
        "window_seconds": 10.0,
        "sent": 3,
        "lost": 2,
        "how": {"503": 1, "closed": 1},
        "seconds_out": 2.5,
    }
    assert (second["sent"], second["lost"], second["seconds_out"]) == (2, 1, 0.0)
    assert count_lost([], 30.0, outcomes) == []


def _write_run(run: Path, losses: list[float]) -> Path:
    run.mkdir()
    rows = [{"kind": "step", "step": n, "loss": loss} for n, loss in enumerate(losses, 1)]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in rows))
    return run


def test_steps_that_are_missing_or_differ_are_counted(tmp_path: Path) -> None:
    run = _write_run(tmp_path / "run", [0.5, 0.400_01, 0.300_03])
    found = compare_losses([0.5, 0.4, 0.3, 0.2], run)
    assert (found["steps"], found["steps_changed"]) == (3, 2)
    assert found["largest_difference"] == pytest.approx(3e-5)
    assert compare_losses([0.5, 0.4, 0.300_02], run)["steps_changed"] == 0


def test_trials_that_are_missing_or_differ_are_counted(tmp_path: Path) -> None:
    trial = {"number": 0, "settings": {}, "seed": 1, "state": "complete", "repeats": None}
    curves = [[[100, 0.5]], [[100, 0.6]]]
    trials = [trial | {"number": n, "curve": c, "seconds": 3.0} for n, c in enumerate(curves)]
    (tmp_path / "result.json").write_text(json.dumps({"trials": trials}))
    expected: list[list[Any]] = [
        [n, {}, 1, "complete", None, curve] for n, curve in enumerate(curves)
    ]
    assert compare_trials(expected, tmp_path) == {"trials": 2, "trials_changed": 0}
    other: list[list[Any]] = [expected[0], [1, {}, 1, "complete", None, [[100, 0.7]]], expected[1]]
    assert compare_trials(other, tmp_path) == {"trials": 2, "trials_changed": 2}


def test_the_record_is_on_disk_after_each_kill_and_names_what_was_lost(tmp_path: Path) -> None:
    path = tmp_path / "soak.json"
    record = SoakRecord(path, {"minutes": 5.0})
    record.add("kills", {"kind": "front", "moment": 10.0})
    record.update_requests([[5.0, 503, 0.1, ""], [11.0, 200, 0.1, ""], [12.0, 0, 0.1, "closed"]])
    stored = json.loads(path.read_text())
    assert stored["kills"][0]["lost"] == 1 and stored["kills"][0]["how"] == {"closed": 1}
    assert stored["requests"] == {"sent": 3, "lost": 2, "lost_before_kills": 1}
    record.add("training", {"ended": True, "restarts": 2, "steps": 60, "steps_changed": 0})
    record.add("searches", {"ended": True, "restarts": 1, "trials": 4, "trials_changed": 0})
    assert is_unharmed(json.loads(path.read_text()))
    lines = summarize(record.record)
    assert "training: 1 runs, 0 of 60 steps changed, 2 restarts by the supervisor" in lines
    assert "  front: 1 kills, 1 lost, at most 1" in lines


@pytest.mark.parametrize(
    "harm",
    [
        {"training": [{"ended": True, "steps_changed": 1}]},
        {"training": [{"ended": False}]},
        {"training": []},
        {"searches": [{"ended": True, "trials_changed": 2}]},
        {"searches": []},
    ],
)
def test_a_changed_or_unfinished_result_is_harm(harm: dict[str, Any]) -> None:
    sound = {
        "training": [{"ended": True, "steps_changed": 0}],
        "searches": [{"ended": True, "trials_changed": 0}],
    }
    assert is_unharmed(sound)
    assert not is_unharmed(sound | harm)


def test_the_command_line_of_make_soak_is_taken() -> None:
    options = soak.parse_arguments(["--minutes", "60", "--kills", "100", "--seed", "0"])
    assert vars(options) == vars(soak.parse_arguments([]))
    assert options.out == ROOT / "benchmarks" / "results" / "soak.json"
    assert "SOAK := --minutes 60 --kills 100 --seed 0" in (ROOT / "Makefile").read_text()


def test_a_run_sees_two_machines_and_a_search_one_device(tmp_path: Path) -> None:
    counts = Counter[str]()
    for name, settings in soak.cluster_files().items():
        (tmp_path / name).write_text(yaml.safe_dump(settings))
        counts[name] = spec.load_cluster_spec(str(tmp_path / name)).num_workers
    assert counts == {"onprem.yaml": 3, "training.yaml": 2, "search.yaml": 1}


def test_words_reach_the_program_as_they_were_through_a_shell() -> None:
    words = [*soak.RECIPE, *soak.SEARCH]
    line = f"printf '%s\\n' {soak.quote_words(words)}"
    shown = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines() == words
