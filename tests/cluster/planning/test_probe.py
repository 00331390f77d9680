"""A probe: the model fitted to steps finds the hardware that they were made on."""

from dataclasses import replace
from pathlib import Path

import pytest

from cluster.costmodel.constants import CALIBRATED, TORCH
from cluster.costmodel.layout import Layout
from cluster.costmodel.step_time import step
from cluster.hardware import catalog
from cluster.hardware.types import Accelerator, Place
from cluster.planning import calibrate, demand, probe
from cluster.planning.plan import Wishes, plan
from cluster.planning.probe import Local, Measurement, Probe, ProbeError, Trial
from trainers.distributed.device import DEVICES
from trainers.planning.probe import TRIALS, at_hand, measured

OTHERS = (
    Trial(256, 4, 1024, 5000, 96, 24, 2048),
    Trial(384, 6, 1536, 30522, 40, 32, 2048),
    Trial(512, 4, 2048, 1000, 384, 10, 2048),
)


def hardware(workers: int) -> Local:
    """A processor that is unlike the one where fitting begins."""
    accelerator = Accelerator(
        "made up", "cpu", peaks=(("fp32", 150e9),), memory=32e9, memory_rate=25e9, link="memory",
        link_rate=3e9,
    )  # fmt: skip
    constants = replace(CALIBRATED, attention=0.3, launch_seconds=8e-6, passes_eager=40.0)
    stack = replace(TORCH, captured=True)
    return Local(Place(accelerator, workers, 1, None), constants, stack, "fp32")


def probed(*workers: int) -> Probe:
    timed = [
        Measurement(trial, n, hardware(n).step(trial.work("cpu")).total)
        for n in workers
        for trial in TRIALS
    ]
    return Probe("cpu", "made up", "fp32", 32e9, tuple(timed))


@pytest.mark.parametrize("workers", [1, 2])
def test_other_models_lengths_and_batches_are_predicted(workers: int) -> None:
    local = probed(1, 2).local(workers)
    for trial in OTHERS:
        true = hardware(workers).step(trial.work("cpu")).total
        assert local.step(trial.work("cpu")).total == pytest.approx(true, rel=0.05)


def test_one_disturbed_measurement_changes_little() -> None:
    known = probed(1)
    first = known.measurements[2]
    disturbed = replace(first, seconds=3 * first.seconds)
    rest = (*known.measurements[:2], disturbed, *known.measurements[3:])
    local = replace(known, measurements=rest).local(1)
    for trial in OTHERS:
        true = hardware(1).step(trial.work("cpu")).total
        assert local.step(trial.work("cpu")).total == pytest.approx(true, rel=0.12)


def test_a_probe_is_kept_and_read(tmp_path: Path) -> None:
    probe.write(tmp_path / "probe.json", probed(1))
    assert probe.read(tmp_path / "probe.json") == probed(1)
    with pytest.raises(ProbeError, match="tried 1 worker"):
        probed(1).local(4)
    (tmp_path / "wrong.json").write_text('{"measurements": 3}')
    with pytest.raises(ProbeError, match=r"trainers\.planning\.probe"):
        probe.read(tmp_path / "wrong.json")


def test_a_plan_tells_how_long_it_takes_here() -> None:
    told = list(calibrate.lines(demand.read("reviews"), probed(1, 2)))
    assert len(told) == 2
    assert told[0].startswith("here      1 x made up (cpu): ")
    assert calibrate.speeds(demand.read("reviews"), catalog.load(), probed(1)) == {}


def test_a_probed_accelerator_corrects_its_own_row() -> None:
    known = catalog.load()
    t4, asked = known.accelerator("T4"), demand.read("imdb")
    slow = replace(CALIBRATED, speed=0.8)
    timed = [
        Measurement(trial, 1, step(
            replace(trial.work("cuda"), precision="fp16"), Layout(dp_replicate=1),
            Place(t4, 1, 1, None), TORCH, slow,
        ).total)
        for trial in (*TRIALS, *OTHERS)
    ]  # fmt: skip
    found = calibrate.speeds(asked, known, Probe("cuda", "Tesla T4", "fp16", 15.6e9, tuple(timed)))
    assert found["T4"] == pytest.approx(0.8, rel=0.15)
    made = plan(asked, known, Wishes("time"), found)
    plain = plan(asked, known, Wishes("time"))
    slower, before = (
        next(o for o in each.best if o.machine.name == "g4dn.xlarge") for each in (made, plain)
    )
    assert slower.seconds > before.seconds


@pytest.mark.slow
def test_real_steps_are_timed_here_on_one_worker_and_two() -> None:
    few = (Trial(32, 2, 64, 100, 16, 4, 64), Trial(64, 1, 128, 200, 32, 4, 64))
    found = [each for n in (1, 2) for each in measured("cpu", n, 0.2, few)]
    assert [each.workers for each in found] == [1, 1, 2, 2]
    assert all(each.seconds > 0 for each in found)
    known = at_hand(DEVICES["cpu"], found)
    assert known.workers == (1, 2)
    assert known.local(2).step(few[0].work("cpu")).total > 0
