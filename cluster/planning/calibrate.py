"""What a probe of the hardware at hand changes in a plan: the run here, and a corrected catalogue.

Where the catalogue has the probed accelerator, machines with it go as fast as the probe says; the
machine at hand is told beside the table, as it costs nothing to rent. Knows no torch: the probe
runs as a program of its own (python -m trainers.planning.probe).
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from cluster.costmodel.constants import NINE_IN_TEN
from cluster.costmodel.layout import Layout
from cluster.costmodel.step_time import Work, step
from cluster.hardware.catalog import Catalogue
from cluster.hardware.types import Accelerator, Place
from cluster.planning import probe
from cluster.planning.demand import Demand
from cluster.planning.placement import job_of
from cluster.planning.plan import hours
from cluster.planning.probe import Probe, ProbeError

PROBE_SECONDS = 60.0


def probed(path: Path | None = None) -> Probe:
    """The probe in `path`, or a new one of this machine, a minute long. Raises ProbeError."""
    if path is not None:
        return probe.read(path)
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "probe.json"
        command = [sys.executable, "-m", "trainers.planning.probe", "--seconds", f"{PROBE_SECONDS}"]
        done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise ProbeError(f"--probe: {last}; try {' '.join(command[1:])} --out FILE")
        return probe.read(out)


def lines(demand: Demand, known: Probe) -> Iterator[str]:
    """How long the run takes on the probed devices, for each number of them that was tried.

    Between the ends of what holds without a probe: how much one narrows them was not measured yet.
    """
    for workers in known.workers:
        local = known.local(workers)
        seconds = demand.steps * local.step(work(local.place, demand)).total
        yield (
            f"here      {workers} x {known.name} ({known.kind}): {hours(seconds)} "
            f"({hours(seconds / NINE_IN_TEN)} to {hours(seconds * NINE_IN_TEN)}), "
            "by a probe"
        )


def speeds(demand: Demand, catalogue: Catalogue, known: Probe) -> Mapping[str, float]:
    """How fast the probed accelerator is against the model, by its name in the catalogue."""
    found = _in_catalogue(catalogue, known)
    if found is None:
        return {}
    place = Place(found, 1, 1, None)
    here = work(place, demand)
    expected = step(here, Layout(dp_replicate=1), place).total
    return {found.name: expected / known.local(1).step(here).total}


def work(place: Place, demand: Demand) -> Work:
    """What a step computes there."""
    job = job_of(place, demand)
    return job.work(job.token_budget)


def _in_catalogue(catalogue: Catalogue, known: Probe) -> Accelerator | None:
    """The row whose family stands in the driver's name, with nearly as much memory."""
    words = set(re.split(r"[^A-Z0-9]+", known.name.upper()))
    for accelerator in catalogue.accelerators.values():
        family = re.split(r"[- ]", accelerator.name.upper())[0]
        memory = accelerator.memory or 0.0
        alike = known.memory is not None and abs(known.memory - memory) < 0.15 * memory
        if accelerator.kind == known.kind and family in words and alike:
            return accelerator
    return None
