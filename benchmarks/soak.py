"""Train, search and serve at once on three hosts while anything is killed, and count what is lost.

The hosts are namespaces of this machine (tests/e2e/hosts), raised with `bertha up` from
the shipped onprem.yaml. A small model is trained by two workers, elastically and with checkpoints,
a search runs trial after trial, and two replicas answer an even stream of requests; ended runs and
searches begin anew. Meanwhile replicas, front, HAProxy, workers, trials, drivers, raylets and whole
hosts are killed. At the end the losses of every run must be those of one process that nobody
disturbed, and the trials of every search those of such a search.

    make soak                                                       # 60 minutes, 100 kills
    PYTHONPATH=. python benchmarks/soak.py --minutes 5 --kills 6    # a trial

Needs root and what `make test-cluster` needs. Writes benchmarks/results/soak.json after each kill.
"""

import argparse
import functools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import bundles
import yaml
from serve import CACHE, RESULTS
from servers import exit_on_sigterm
from soak_kills import Killer, PlannedKill, plan_kills
from soak_loads import (
    RepeatedJob,
    RequestStream,
    Work,
    compare_losses,
    compare_trials,
    list_trials,
)
from soak_record import Record, SoakRecord, is_unharmed, summarize

from tests.e2e.hosts import lan
from tests.e2e.hosts.hosts import STATE, Host
from tests.e2e.hosts.training import recipe_arguments, train_alone
from tests.e2e.hosts.user import User, submit_job, wait_until
from tests.support.paths import ROOT
from trainers.tracking import provenance

HEAD, W1, W2 = Host("head", "10.77.7.10"), Host("w1", "10.77.7.11"), Host("w2", "10.77.7.12")
LAPTOP = Host("laptop", "10.77.7.2", login="")
WORKERS, ALL = [W1, W2], [HEAD, W1, W2, LAPTOP]
USER = User(LAPTOP)
FILE, TRAINING_FILE, SEARCH_FILE = "onprem.yaml", "training.yaml", "search.yaml"
PORT, RATE = 8000, 5.0
RUNS = STATE / "shared" / "runs"
RECIPE = recipe_arguments(steps=60, evaluated_every=30, saved_every=8)
SEARCH = [
    *recipe_arguments(steps=24, evaluated_every=8, saved_every=8),
    "tune.optimizer.learning_rate=log 1e-5..1e-3",
    "tune.batch.global_size=null",
    *("--sampler", "random", "--scheduler", "none", "--seeds", "1", "--trials", "4"),
]
FINISH_SECONDS = 900.0  # for what is under way after the last kill
ALONE_SECONDS = 900


def cluster_files() -> dict[str, Record]:
    """Return the shipped file filled in, and what a run and a search see of the cluster.

    The run has two workers and the search one trial at a time, so that replicas have room, too.
    """
    settings: Record = yaml.safe_load((ROOT / "cluster" / FILE).read_text())
    settings["provider"] |= {"head_ip": HEAD.address, "worker_ips": [W1.address, W2.address]}
    settings["auth"]["ssh_user"] = "root"
    settings["metadata"] |= {"accelerator": "cpu", "max_failures": 1000}
    elastic = settings["metadata"] | {"min_workers": 1, "resize_seconds": 5}
    two = settings["provider"] | {"worker_ips": [W1.address]}
    one = settings["provider"] | {"worker_ips": []}
    return {
        FILE: settings,
        TRAINING_FILE: settings | {"provider": two, "metadata": elastic},
        SEARCH_FILE: settings | {"provider": one},
    }


@contextmanager
def raised_cluster(logs: Path) -> Iterator[None]:
    """Make the hosts, with Ray up on them and the dashboard on the laptop."""
    with lan.host_network(ALL):
        USER.clone_checkout()
        for name, settings in cluster_files().items():
            USER.write_cluster_file(name, settings)
        USER.check_command(f"python -m cluster up {FILE} --yes")
        with USER.start_command(f"ray dashboard {FILE}", logs / "tunnel.log"):
            USER.wait_for_nodes({HEAD.address, W1.address, W2.address}, FILE)
            yield


def deploy_model() -> None:
    """Serve a bundle from two replicas."""
    bundle = bundles.copy_without_engines(None, CACHE / "plain")
    shutil.copytree(bundle, STATE / "shared" / "bundle")
    words = "serving deploy /mnt/shared/bundle --registry /mnt/shared/registry --as reviews"
    words += f" --address auto --host 0.0.0.0 --port {PORT} --replicas 2"
    USER.check_command(submit_job(words))


def quote_words(words: Sequence[str]) -> str:
    """Join words for a shell, through which `ray job submit` passes them twice."""
    return " ".join("'" + each + "'" if set(each) & set(" []=*") else each for each in words)


def training_work(expected: Sequence[float]) -> Work:
    """Return the training runs, which must have the losses `expected`."""
    words = f"trainers {quote_words(RECIPE)} --cluster {TRAINING_FILE} --run"
    return Work(
        "training",
        start=lambda run: f"{words} {run}",
        resume=lambda run: f"{words} {run} --resume",
        begun_file="recipe.yaml",
        compare=functools.partial(compare_losses, expected),
    )


def search_work(expected: Sequence[list[Any]]) -> Work:
    """Return the searches, which must have the trials `expected`."""
    words = f"tuning {quote_words(SEARCH)} --cluster {SEARCH_FILE} --run"
    return Work(
        "search",
        start=lambda run: f"{words} {run}",
        resume=lambda run: f"tuning resume {run}",
        begun_file="plan.yaml",
        compare=functools.partial(compare_trials, expected),
    )


def search_alone(place: Path) -> list[list[Any]]:
    """Search undisturbed on this machine; return the trials. `train_alone` was there before."""
    where = ["--cluster", str(place / "alone.yaml"), "--run", str(place / "search")]
    subprocess.run(
        [sys.executable, "-m", "tuning", *SEARCH, *where],
        check=True,
        stdout=subprocess.DEVNULL,
        cwd=ROOT,
        timeout=ALONE_SECONDS,
    )
    return list_trials(place / "search")


def kill_as_planned(
    planned: Sequence[PlannedKill], killer: Killer, stream: RequestStream, record: SoakRecord
) -> None:
    """Kill what is planned at its time, and count after each what the one before has cost."""
    started = time.monotonic()
    for each in planned:
        while time.monotonic() - started < each.at:
            time.sleep(0.2)
            killer.restore_hosts()
        moment = time.time()
        victim = killer.kill(each)
        if victim is not None:
            record.add("kills", {"at": round(each.at, 1), "moment": moment, **victim})
            record.update_requests(stream.read_outcomes())


def await_hosts(killer: Killer) -> None:
    """Wait until every host is back."""

    def is_back() -> bool:
        killer.restore_hosts()
        return killer.are_all_back()

    wait_until(is_back, FINISH_SECONDS, "a host did not come back")


def run_soak(options: argparse.Namespace, place: Path) -> Record:
    """Run the loads and the kills; return the record."""
    facts = {"environment": provenance.describe_environment(), "seed": options.seed}
    facts |= {"minutes": options.minutes, "rate": RATE, "recipe": RECIPE, "search": SEARCH}
    record = SoakRecord(options.out, facts)
    losses, trials = train_alone(RECIPE, place), search_alone(place)
    print(f"undisturbed: {len(losses)} steps, {len(trials)} trials", flush=True)
    with ExitStack() as stack:
        stack.enter_context(raised_cluster(place))
        deploy_model()
        stream = RequestStream(LAPTOP, HEAD, PORT, RATE, place)
        stack.callback(stream.stop)
        jobs = []
        for kind, work in (("training", training_work(losses)), ("searches", search_work(trials))):
            add = functools.partial(record.add, kind)
            jobs.append(RepeatedJob(work, USER, RUNS, place, add))
            stack.callback(jobs[-1].stop)
        killer = Killer(HEAD, WORKERS, lambda host: host.power_on(lan.etc_hosts(ALL)))
        planned = plan_kills(options.kills, 60 * options.minutes, options.seed)
        kill_as_planned(planned, killer, stream, record)
        await_hosts(killer)
        for job in jobs:
            job.start_no_more()
        for job in jobs:
            job.wait(FINISH_SECONDS)
        stream.stop()
        record.update_requests(stream.read_outcomes())
    return record.record


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "soak.json")
    return parser.parse_args(arguments)


def main() -> int:
    """Soak, print what was lost, and return 0 if no result was changed."""
    options = parse_arguments()
    lacking = lan.missing_requirements()
    if lacking:
        print(f"hosts cannot be made here: {lacking}", file=sys.stderr)
        return 2
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    exit_on_sigterm()
    with tempfile.TemporaryDirectory(prefix="bertha-soak-") as place:
        try:
            record = run_soak(options, Path(place))
        except KeyboardInterrupt:
            return 130
    print("\n".join(summarize(record)))
    return 0 if is_unharmed(record) else 1


if __name__ == "__main__":
    sys.exit(main())
