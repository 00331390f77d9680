"""Kill a search again and again, and compare its end with that of one that nothing happened to.

Two searches of the same small trials share one Ray. In the second, at random but seeded moments, a
process is killed with SIGKILL: the driver, the process of a trial, or one of a trial's workers.
After some kills of the driver its journal is cut within the last line, as a power cut would. It is
resumed each time. At the end both must have the same trials with the same learning curves, and of a
trial that had ended before a kill not one step may have been computed again.

    python benchmarks/search_kills.py --kills 20 [--devices 2] [--seed 0]

Writes benchmarks/results/search-kills.json. With one device a trial has no workers of its own.
"""

import argparse
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

# One token for this Ray and for the drivers that join it, read once by each process.
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex())

import psutil
import ray
import yaml

from trainers.tracking import provenance
from trainers.tracking.run_directory import RunDirectory
from tuning.store import reader
from tuning.store.reader import JOURNAL, RESULT, JournalError

RESULTS = Path(__file__).parent / "results" / "search-kills.json"
LAST_MOMENT = 0.95  # of all steps; later there may be nothing left to kill
LONGEST_PAUSE = 0.5  # seconds from a step to the kill, to meet all that lies between steps
STEP_ROW = b'{"kind": "step"'
DRIVER = (sys.executable, "-m", "tuning")
TITLES = {"trial": "ray::ImplicitFunc", "worker": "ray::RayTrainWorker"}

Victim = Literal["driver", "trial", "worker"]
Curve = list[list[float]]


@dataclass(frozen=True)
class Kill:
    """A kill of `victim` once `share` of all steps is computed and `pause` seconds have passed.

    cut: the share of the journal's last line that is cut off after the kill of a driver; or 0.
    """

    victim: Victim
    share: float
    pause: float = 0.0
    cut: float = 0.0


@dataclass
class Outcome:
    """The end of a search. kills: those that were done, with who was killed in fact."""

    trials: list[dict[str, Any]]
    steps: int
    lost_steps: int
    seconds: float
    repeated_trials: int = 0
    kills: list[dict[str, Any]] = field(default_factory=list)


def draw_kills(number: int, victims: Sequence[Victim], seed: int) -> list[Kill]:
    """Return kills in their order, the same for the same seed; every victim gets its turn."""
    draw = random.Random(seed)
    chosen = [victims[index % len(victims)] for index in range(number)]
    draw.shuffle(chosen)
    shares = sorted(draw.uniform(0.0, LAST_MOMENT) for _ in range(number))
    return [
        Kill(
            victim,
            share,
            draw.uniform(0.0, LONGEST_PAUSE),
            draw.choice((0.0, draw.uniform(0.01, 0.99))) if victim == "driver" else 0.0,
        )
        for victim, share in zip(chosen, shares, strict=True)
    ]


class KilledSearch:
    """A small search in `place`, driven by processes that may be killed.

    devices: of each trial. driver: the command that takes the arguments of `bertha tune`.
    trials, seeds: of the search.
    """

    def __init__(
        self,
        place: Path,
        devices: int,
        driver: Sequence[str] = DRIVER,
        trials: int = 4,
        seeds: int = 2,
    ) -> None:
        self.place, self._driver = place, list(driver)
        self._sizes = ["--trials", str(trials), "--seeds", str(seeds), "--sampler", "random"]
        draw, rows = random.Random(0), ["text,label"]
        for _ in range(200):
            numbers = [draw.gauss(0.0, 1.0) for _ in range(8)]
            label = "high" if sum(numbers) + draw.gauss(0.0, 2.0) > 0 else "low"
            rows.append(f"{' '.join(f'{number:.3f}' for number in numbers)},{label}")
        (place / "rows.csv").write_text("\n".join(rows) + "\n")
        recipe = {
            "model": {"name": "linear"},
            "data": {"source": str(place / "rows.csv")},
            "batch": {"global_size": 8},
            "optimizer": {"learning_rate": 0.01},
            "stopping": {"epochs": 30, "patience": None},
            "tune": {"optimizer.learning_rate": "log 1e-3..1e-1"},
        }
        if devices > 1:  # all of them for each trial: trials side by side decide by the clock
            recipe["layout"] = {"dp_replicate": devices}
        (place / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        metadata = {
            "devices_per_node": devices,
            "cache": str(place / "cache"),
            "max_failures": 100,
        }
        cluster = {"provider": {"type": "local"}, "metadata": metadata}
        (place / "cluster.yaml").write_text(yaml.safe_dump(cluster))

    @contextmanager
    def _drive(self, run: Path) -> Iterator[subprocess.Popen[str]]:
        """Start a driver that begins the search in `run`, or goes on with it."""
        command = self._driver
        if (run / "plan.yaml").is_file():
            command = [*command, "resume", str(run)]
        else:
            command = [*command, str(self.place / "recipe.yaml"), "--run", str(run), *self._sizes]
            command += ["--cluster", str(self.place / "cluster.yaml")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if ray.is_initialized():
            environment["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
        with (self.place / f"{run.name}.log").open("a") as log:
            process = subprocess.Popen(
                command,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
            )
            try:
                yield process
            finally:
                process.kill()
                process.wait()

    def run_whole(self, name: str) -> Outcome:
        """Search without a kill."""
        run, began = self.place / name, time.monotonic()
        with self._drive(run) as driver:
            self._check_end(driver, run)
        return self._read_outcome(run, time.monotonic() - began)

    def run_killed(self, name: str, kills: Sequence[Kill], num_steps: int) -> Outcome:
        """Search with kills. num_steps: of all trials of a search without one."""
        run, began = self.place / name, time.monotonic()
        done: list[dict[str, Any]] = []
        finished: dict[int, list[bytes]] = {}
        pending = list(kills)
        while True:
            with self._drive(run) as driver:
                while pending and _wait_for_steps(run, pending[0].share * num_steps, driver):
                    kill = pending.pop(0)
                    time.sleep(kill.pause)  # not to wait for anything: it is the moment itself
                    steps, victim = count_steps(run), _kill(kill.victim, driver)
                    done.append({**asdict(kill), "killed": victim, "steps": steps})
                    print(f"{len(done)}: {victim} killed after {steps} steps", flush=True)
                    if victim == "driver":
                        break
                else:
                    self._check_end(driver, run)
                    break
                driver.wait()
                if kill.cut and kill.victim == "driver":
                    cut_last_line(run / JOURNAL, kill.cut)
                finished |= {number: read_steps(run, number) for number in _list_ended(run)}
        outcome = self._read_outcome(run, time.monotonic() - began)
        outcome.kills = done
        outcome.repeated_trials = sum(
            read_steps(run, number) != lines for number, lines in finished.items()
        )
        return outcome

    def _check_end(self, driver: subprocess.Popen[str], run: Path) -> None:
        if driver.wait() != 0:
            log = (self.place / f"{run.name}.log").read_text()
            raise SystemExit(f"the search failed:\n{log[-3000:]}")

    def _read_outcome(self, run: Path, seconds: float) -> Outcome:
        result = json.loads((run / RESULT).read_bytes())
        kept = ("number", "settings", "seed", "state", "repeats", "curve", "tokens")
        trials = [{key: trial[key] for key in kept} for trial in result["trials"]]
        starts = [
            row
            for trial in trials
            for row in RunDirectory(run / "trials" / f"{trial['number']:04d}").metric_rows("start")
        ]
        lost = sum(row["lost_steps"] for row in starts)
        return Outcome(trials, count_steps(run), lost, seconds)


def count_steps(run: Path) -> int:
    """Return how many steps of all trials stand in their metrics."""
    return sum(path.read_bytes().count(STEP_ROW) for path in run.glob("trials/*/metrics.jsonl"))


def read_steps(run: Path, number: int) -> list[bytes]:
    """Return the steps of a trial as they were written, each with its time."""
    path = run / "trials" / f"{number:04d}" / "metrics.jsonl"
    return [line for line in path.read_bytes().splitlines() if line.startswith(STEP_ROW)]


def cut_last_line(path: Path, share: float) -> None:
    """Cut off a share of the last line of a file, its end at least and never all of it."""
    data = path.read_bytes().rstrip(b"\n")
    length = len(data) - (data.rfind(b"\n") + 1)
    os.truncate(path, len(data) - min(length - 1, int(length * share)))


def _list_ended(run: Path) -> list[int]:
    """Return the trials that have ended according to the journal."""
    try:
        trials = reader.read_snapshot(run).trials
    except JournalError:  # nothing is written down yet
        return []
    return [trial.number for trial in trials if trial.state in ("complete", "stopped")]


def _wait_for_steps(run: Path, number: float, driver: subprocess.Popen[str]) -> bool:
    """Return True once so many steps are computed, False when the search has ended before."""
    while count_steps(run) < number:
        if driver.poll() is not None:
            return False
        time.sleep(0.01)
    return driver.poll() is None


def _kill(victim: Victim, driver: subprocess.Popen[str]) -> Victim:
    """Kill a process of this kind, or the driver where there is none now; return which."""
    if victim != "driver":
        for process in psutil.Process().children(recursive=True):
            try:
                if process.cmdline() and process.cmdline()[0].startswith(TITLES[victim]):
                    process.send_signal(signal.SIGKILL)
                    return victim
            except psutil.Error:  # it has ended meanwhile
                continue
    driver.kill()
    return "driver"


def measure(place: Path, kills: Sequence[Kill], devices: int) -> dict[str, Any]:
    """Return the record of both searches. Starts a Ray in this process, unless one is there."""
    if not ray.is_initialized():
        ray.init(
            address="local",
            num_cpus=max(2, devices),
            log_to_driver=False,
            logging_level="error",
            include_dashboard=devices > 1,  # without one Ray does not free a dead trial's workers
        )
    search = KilledSearch(place, devices)
    whole = search.run_whole("whole")
    print(f"undisturbed: {len(whole.trials)} trials, {whole.steps} steps", flush=True)
    killed = search.run_killed("killed", kills, whole.steps)
    return {
        "devices": devices,
        "trials": len(whole.trials),
        "steps": whole.steps,
        "same_trials": killed.trials == whole.trials,
        "steps_at_the_end": killed.steps,
        "repeated_trials": killed.repeated_trials,
        "lost_steps": killed.lost_steps,
        "seconds": round(whole.seconds, 1),
        "seconds_with_kills": round(killed.seconds, 1),
        "kills": killed.kills,
    }


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--devices", type=int, default=2, choices=(1, 2), help="of each trial")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    victims: list[Victim] = ["driver", "trial", "worker"][: options.devices + 1]  # type: ignore[assignment]
    with tempfile.TemporaryDirectory(prefix="bertha-bench-") as place:
        record = measure(
            Path(place), draw_kills(options.kills, victims, options.seed), options.devices
        )
    ray.shutdown()
    report = {"environment": provenance.describe_environment(), "seed": options.seed, **record}
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({key: value for key, value in record.items() if key != "kills"}, indent=1))
    if not record["same_trials"] or record["repeated_trials"]:
        raise SystemExit("the killed search is not the same")


if __name__ == "__main__":
    main()
