"""Every engine of what could be deployed, measured on this machine by `python -m serving build`.

It leaves the engines and their figures in the bundle, which is all that goes between serving and
here. Chooses nothing: the search has, by validation rows alone.
"""

import math
import subprocess
import sys

from cluster.errors import BerthaError
from cluster.spec import ClusterSpec
from trainers.models import card
from trainers.tracking.run_directory import RunDirectory
from tuning.algorithms.pareto import MILLION, Variant, p95_seconds, usd

OPTIONS: tuple[str, ...] = ()  # of the command: what it does by itself


class EnginesError(BerthaError):
    """Engines that cannot be made or measured; the text says why."""


def measured(number: int, run: RunDirectory, metric: str, cluster: ClusterSpec) -> list[Variant]:
    """The engines of a trial's bundle, which are left in it. Raises EnginesError."""
    bundle = f"{run.address}/{run.bundle.name}"
    print(f"measuring the engines of trial {number}", flush=True)
    command = [sys.executable, "-m", "serving", "build", bundle, *OPTIONS]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise EnginesError(f"the engines of trial {number}: {last.removeprefix('error: ')}")
    built = card.parsed(run.read(f"{run.bundle.name}/{card.CARD}") or b"", bundle)
    return [_variant(number, each, built.max_length, metric, cluster) for each in built.engines]


def _variant(
    number: int, built: card.Built, longest: int, metric: str, cluster: ClusterSpec
) -> Variant:
    speeds = built.texts_per_second.values()  # of short texts and of long ones
    cpu_seconds = MILLION / math.prod(speeds) ** (1 / len(speeds))
    return Variant(
        trial=number,
        engine=built.name,
        metric=float(built.metrics[metric]),
        p95_seconds=p95_seconds(built.batch_tokens, longest, built.texts_per_second["long"]),
        cpu_seconds=cpu_seconds,
        usd=usd(cpu_seconds, cluster),
        refused=built.refused,
    )
