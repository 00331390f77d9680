"""The cost model fitted to steps that were timed on this machine.

A probe (bertha probe) times steps of a few shapes; the accelerator and constants fitted
to them predict other models, lengths and batches on the same devices.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cluster.costmodel.constants import CALIBRATED, Constants, Stack, training_stack
from cluster.costmodel.layout import Layout
from cluster.costmodel.least_squares import FloatArray, least_squares
from cluster.costmodel.microbatches import Lengths
from cluster.costmodel.model_shape import ModelShape
from cluster.costmodel.step_time import StepTime, StepWork, predict_step
from cluster.errors import BerthaError
from cluster.hardware.catalog import Catalog
from cluster.hardware.types import Accelerator, Kind, Topology
from cluster.planning.workload import Workload

# Start of the fit, for a core of a CPU: FLOP/s, bytes/s of memory and between processes.
INITIAL_GUESS = {
    "peak": 60e9,
    "memory": 10e9,
    "link": 1e9,
    "attention": 0.5,
    "launch": 20e-6,
    "fresh": 2e-3,
    "passes": CALIBRATED.passes_eager,
    "embeddings": CALIBRATED.embeddings,
}
PRIOR_WEIGHT = 0.03  # of the initial guess, against a measurement's


class ProbeError(BerthaError):
    """A probe file that cannot be read or does not fit; the text says the way out."""


@dataclass(frozen=True)
class ProbeCase:
    """A model and a global batch whose steps are timed.

    tokens: mean of a sequence. token_budget: tokens that a device computes at once. spread: of
    lengths, uniform about the mean, as in Lengths.
    """

    hidden_size: int
    num_layers: int
    intermediate_size: int
    vocab_size: int
    tokens: int
    sequences: int
    token_budget: int
    spread: float = 0.0

    @property
    def num_heads(self) -> int:
        """Number of heads of 32, as small models have."""
        return max(1, self.hidden_size // 32)

    @property
    def shape(self) -> ModelShape:
        """Shape of a classifier of two classes."""
        return ModelShape(
            self.hidden_size, self.num_layers, self.num_heads, self.intermediate_size,
            self.vocab_size, 512, 2, self.hidden_size, "classification", 2,
        )  # fmt: skip

    @property
    def max_tokens(self) -> int:
        """Tokens of the longest sequence."""
        return round(self.tokens * (1 + self.spread))

    def step_work(self, kind: Kind) -> StepWork:
        """Return what a step computes on a `kind` of device."""
        lengths = Lengths(self.tokens, self.spread)
        return StepWork(
            self.shape, self.sequences, max(1, self.token_budget // self.tokens), self.tokens,
            lengths.attended, precision="fp32", spread=self.spread,
        )  # fmt: skip


@dataclass(frozen=True)
class Measurement:
    """Median seconds of a step of `trial` on `workers` devices of this machine."""

    trial: ProbeCase
    workers: int
    seconds: float


@dataclass(frozen=True)
class Probe:
    """Timed steps of a device; name: as its driver calls it."""

    kind: Kind
    name: str
    precision: str
    memory: float | None
    measurements: tuple[Measurement, ...]

    @property
    def workers(self) -> tuple[int, ...]:
        """Numbers of devices that were timed."""
        return tuple(sorted({each.workers for each in self.measurements}))

    def fit_devices(self, workers: int) -> ProbedDevices:
        """Fit the accelerator and constants that explain the steps on `workers` devices best.

        Seven or eight numbers: peak, memory bandwidth, the costs of attention, a kernel and a new
        shape, memory passes in layers and embeddings, and with several workers the link between
        them. Raises ProbeError for a number of workers that was not timed.
        """
        measurements = [each for each in self.measurements if each.workers == workers]
        if not measurements:
            tried = ", ".join(map(str, self.workers))
            raise ProbeError(f"the probe tried {tried} worker(s), not {workers}; probe again")
        free = [name for name in INITIAL_GUESS if name != "link" or workers > 1]
        prior = np.array([math.log(INITIAL_GUESS[name]) for name in free])

        def make_devices(logs: FloatArray) -> ProbedDevices:
            values = {name: math.exp(value) for name, value in zip(free, logs, strict=True)}
            return _make_devices(self, workers, values)

        def residuals(logs: FloatArray) -> FloatArray:
            devices = make_devices(logs)
            ratios = [
                math.log(devices.predict_step(each.trial.step_work(self.kind)).total / each.seconds)
                for each in measurements
            ]
            # Few steps cannot tell all numbers apart: a weak pull to the guess settles the rest.
            return np.concatenate([ratios, (logs - prior) * PRIOR_WEIGHT])

        return make_devices(least_squares(residuals, prior, rounds=60))


@dataclass(frozen=True)
class ProbedDevices:
    """Devices of this machine with the constants fitted to a probe."""

    topology: Topology
    constants: Constants
    stack: Stack
    precision: str

    def predict_step(self, work: StepWork) -> StepTime:
        """Predict a step of `work` with a copy of the model on each device."""
        layout = Layout(dp_replicate=self.topology.devices)
        work = replace(work, precision=self.precision)
        return predict_step(work, layout, self.topology, self.stack, self.constants)


def assume_cpu(workers: int) -> ProbedDevices:
    """Return `workers` cores of a CPU that was not probed."""
    unknown = Probe("cpu", "a core of a processor", "fp32", None, ())
    return _make_devices(unknown, workers, INITIAL_GUESS)


def relative_speeds(workload: Workload, catalog: Catalog, probe: Probe) -> Mapping[str, float]:
    """Return the probed accelerator's speed over the cost model's, by its name in the catalog.

    Empty where the catalog does not have it.
    """
    accelerator = _find_accelerator(catalog, probe)
    if accelerator is None:
        return {}
    topology = Topology(accelerator, 1, 1, None)
    work = workload.work_on(topology)
    stack = training_stack(accelerator.kind)
    expected = predict_step(work, Layout(dp_replicate=1), topology, stack).total
    return {accelerator.name: expected / probe.fit_devices(1).predict_step(work).total}


def _find_accelerator(catalog: Catalog, probe: Probe) -> Accelerator | None:
    """Find the row whose family is in the driver's name, with nearly the same memory."""
    words = set(re.split(r"[^A-Z0-9]+", probe.name.upper()))
    for accelerator in catalog.accelerators.values():
        family = re.split(r"[- ]", accelerator.name.upper())[0]
        memory = accelerator.memory or 0.0
        alike = probe.memory is not None and abs(probe.memory - memory) < 0.15 * memory
        if accelerator.kind == probe.kind and family in words and alike:
            return accelerator
    return None


def write_probe(path: Path, probe: Probe) -> None:
    """Write a probe as JSON."""
    path.write_text(json.dumps(asdict(probe), indent=1) + "\n", encoding="utf-8")


def read_probe(path: Path) -> Probe:
    """Read a probe that write_probe wrote. Raises ProbeError."""
    try:
        fields: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        measurements = tuple(
            Measurement(ProbeCase(**each["trial"]), each["workers"], each["seconds"])
            for each in fields["measurements"]
        )
        return Probe(**{**fields, "measurements": measurements})
    except (OSError, ValueError, KeyError, TypeError):
        raise ProbeError(f"{path}: not what `bertha probe --out FILE` writes") from None


def _make_devices(probe: Probe, workers: int, values: Mapping[str, float]) -> ProbedDevices:
    accelerator = Accelerator(
        name=probe.name,
        kind=probe.kind,
        peaks=((probe.precision, values["peak"]),),
        memory=probe.memory,
        memory_rate=values["memory"],
        link="memory",
        link_rate=values.get("link"),
    )
    constants = replace(
        CALIBRATED,
        attention=values["attention"],
        launch_seconds=values["launch"],
        fresh_seconds=values["fresh"],
        passes_eager=values["passes"],
        embeddings=values["embeddings"],
        systolic=1.0,
    )
    # A CPU runs kernels one by one: nothing hides what a launch costs, as in a captured graph.
    stack = replace(training_stack(probe.kind), captured=probe.kind == "cpu")
    return ProbedDevices(Topology(accelerator, workers, 1, None), constants, stack, probe.precision)
