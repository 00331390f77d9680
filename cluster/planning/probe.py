"""What real steps on the hardware at hand say of it: an accelerator and constants of its own.

A probe (python -m trainers.planning.probe) times steps of a few shapes; here the cost model is
fitted to them, so that it predicts other models, lengths and batches on the same devices. Knows no
torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cluster.costmodel.constants import CALIBRATED, TORCH, Constants, Stack
from cluster.costmodel.layout import Layout
from cluster.costmodel.least_squares import Numbers, least_squares
from cluster.costmodel.microbatches import Lengths, overhead_of
from cluster.costmodel.model_shape import Shape
from cluster.costmodel.step_time import Step, Work, step
from cluster.errors import BerthaError
from cluster.hardware.types import Accelerator, Kind, Place

# Where fitting begins, for a core of a processor: FLOP/s, bytes/s of memory and between processes.
BEGINNING = {
    "peak": 60e9,
    "memory": 10e9,
    "link": 1e9,
    "attention": 0.5,
    "launch": 20e-6,
    "fresh": 2e-3,
    "passes": CALIBRATED.passes_eager,
    "embeddings": CALIBRATED.embeddings,
}
PRIOR = 0.03  # of what a measurement pulls, the beginning does


class ProbeError(BerthaError):
    """A probe's file that cannot be read or does not fit; the text says the way out."""


@dataclass(frozen=True)
class Trial:
    """Steps that are timed: a model and a global batch of sequences of `tokens` in the mean.

    token_budget: tokens that a device takes at once. spread: of their lengths, evenly about the
    mean, as in cutting.py.
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
        """Heads of 32, as small models have."""
        return max(1, self.hidden_size // 32)

    @property
    def shape(self) -> Shape:
        """A classifier of two classes."""
        return Shape(
            self.hidden_size, self.num_layers, self.num_heads, self.intermediate_size,
            self.vocab_size, 512, 2, self.hidden_size, "classification", 2,
        )  # fmt: skip

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return round(self.tokens * (1 + self.spread))

    def work(self, kind: Kind) -> Work:
        """What a step of it computes on a `kind` of device."""
        lengths = Lengths(self.tokens, self.spread)
        return Work(
            self.shape, self.sequences, max(1, self.token_budget // self.tokens), self.tokens,
            lengths.attended, precision="fp32", spread=self.spread, overhead=overhead_of(kind),
        )  # fmt: skip


@dataclass(frozen=True)
class Measurement:
    """Median seconds of a step of `trial` on `workers` devices of this machine."""

    trial: Trial
    workers: int
    seconds: float


@dataclass(frozen=True)
class Probe:
    """What was measured. kind: of device. name: as its driver calls it."""

    kind: Kind
    name: str
    precision: str
    memory: float | None
    measurements: tuple[Measurement, ...]

    @property
    def workers(self) -> tuple[int, ...]:
        """Numbers of devices that were tried."""
        return tuple(sorted({each.workers for each in self.measurements}))

    def local(self, workers: int) -> Local:
        """The hardware as `workers` devices of it are. Raises ProbeError for a number not tried."""
        mine = [each for each in self.measurements if each.workers == workers]
        if not mine:
            tried = ", ".join(map(str, self.workers))
            raise ProbeError(f"the probe tried {tried} worker(s), not {workers}; probe again")
        return fitted(self, mine, workers)


@dataclass(frozen=True)
class Local:
    """The hardware at hand as the cost model sees it after a probe."""

    place: Place
    constants: Constants
    stack: Stack
    precision: str

    def step(self, work: Work) -> Step:
        """Seconds of a step of `work`, as copies on all its devices."""
        layout = Layout(dp_replicate=self.place.devices)
        work = replace(work, precision=self.precision)
        return step(work, layout, self.place, self.stack, self.constants)


def assumed(workers: int) -> Local:
    """A processor of which nothing was measured, `workers` of its cores training."""
    unknown = Probe("cpu", "a core of a processor", "fp32", None, ())
    return _local(unknown, workers, BEGINNING)


def fitted(probe: Probe, measurements: Sequence[Measurement], workers: int) -> Local:
    """The accelerator and constants that explain `measurements` best.

    Seven or eight numbers: peak, memory bandwidth, what attention, a kernel and a new shape cost,
    passes through memory in layers and embeddings, and with several workers the link between them.
    """
    free = [name for name in BEGINNING if name != "link" or workers > 1]
    prior = np.array([math.log(BEGINNING[name]) for name in free])

    def at_hand(at: Numbers) -> Local:
        values = {name: math.exp(value) for name, value in zip(free, at, strict=True)}
        return _local(probe, workers, values)

    def errors(at: Numbers) -> Numbers:
        local = at_hand(at)
        ratios = [
            math.log(local.step(each.trial.work(probe.kind)).total / each.seconds)
            for each in measurements
        ]
        return np.concatenate([ratios, (at - prior) * PRIOR])

    return at_hand(least_squares(errors, prior, rounds=60))


def write(path: Path, probe: Probe) -> None:
    """Keep a probe as JSON."""
    path.write_text(json.dumps(asdict(probe), indent=1) + "\n", encoding="utf-8")


def read(path: Path) -> Probe:
    """A probe that was kept. Raises ProbeError."""
    try:
        kept: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        measurements = tuple(
            Measurement(Trial(**each["trial"]), each["workers"], each["seconds"])
            for each in kept["measurements"]
        )
        return Probe(**{**kept, "measurements": measurements})
    except (OSError, ValueError, KeyError, TypeError):
        raise ProbeError(
            f"{path}: not what `python -m trainers.planning.probe --out FILE` writes"
        ) from None


def _local(probe: Probe, workers: int, values: Mapping[str, float]) -> Local:
    """A processor launches nothing ahead: what a kernel costs adds up there."""
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
    stack = replace(TORCH, captured=probe.kind == "cpu")
    return Local(Place(accelerator, workers, 1, None), constants, stack, probe.precision)
